import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optax_meta import actions

START = {"learning_rate": jnp.float32(0.1), "weight_decay": jnp.float32(1e-4)}


def test_classic_is_the_cartesian_product():
    space = actions.classic()
    got = [
        {k: float(v) for k, v in actions.apply(space, jnp.int32(a), START).items()}
        for a in range(space.num_actions)
    ]
    expected = [(0.1 * f, 1e-4 + d) for f in (0.5, 1, 2) for d in (-1e-5, 0, 1e-5)]
    np.testing.assert_allclose(
        [(x["learning_rate"], x["weight_decay"]) for x in got], expected, rtol=1e-6
    )
    assert space.num_actions == space.num_logits == 9


@pytest.mark.parametrize(
    ("move", "start", "expected"),
    [
        (actions.scale("b1", (0.5, 1, 3), bounds=(0, 10)), 2.0, [1, 2, 6]),
        (actions.add("b1", (-0.5, 0, 3), bounds=(0, 10)), 2.0, [1.5, 2, 5]),
        (actions.log_step("b1", (-1, 0, 1), bounds=(1e-3, 10)), 2.0, [2 / np.e, 2, 2 * np.e]),
        (actions.scale("b1", (0.5, 1, 3), bounds=(1.5, 2.5)), 2.0, [1.5, 2, 2.5]),
        (actions.add("b1", (-5, 0, 5), bounds=(1.5, 2.5)), 2.0, [1.5, 2, 2.5]),
    ],
)
def test_moves_and_bounds(move, start, expected):
    space = actions.joint(move)
    got = [actions.apply(space, jnp.int32(a), {"b1": jnp.float32(start)})["b1"] for a in range(3)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@given(st.floats(1e-7, 1.0), st.floats(0, 1.0))
def test_hold_changes_no_bit(rate, decay):
    space = actions.classic()
    start = {"learning_rate": jnp.float32(rate), "weight_decay": jnp.float32(decay)}
    held = actions.apply(space, jnp.int32(actions.hold(space)), start)
    assert all(held[name] == start[name] for name in start)


def test_factored_probabilities_are_products():
    space = actions.factored(actions.scale("a"), actions.scale("b", (0.5, 1.0), bounds=(0, 1)))
    logits = jax.random.normal(jax.random.key(0), (space.num_logits,))
    first, second = jax.nn.softmax(logits[:3]), jax.nn.softmax(logits[3:])
    got = jnp.exp(actions.log_probs(space, logits))
    np.testing.assert_allclose(got, jnp.outer(first, second).ravel(), rtol=1e-5)
    assert space.num_logits == 5
    assert space.num_actions == 6


@pytest.mark.parametrize("make", [actions.joint, actions.factored])
def test_hold_logits_give_hold_its_probability(make):
    space = make(*actions.classic().moves)
    probs = jnp.exp(actions.log_probs(space, jnp.asarray(actions.hold_logits(space, 0.8))))
    np.testing.assert_allclose(probs[actions.hold(space)], 0.8, rtol=1e-5)
    np.testing.assert_allclose(probs.sum(), 1.0, rtol=1e-5)


def test_apply_keeps_what_is_not_steered_and_the_dtype():
    space = actions.learning_rate()
    start = {"learning_rate": jnp.bfloat16(0.5), "other": 7}
    moved = actions.apply(space, jnp.int32(2), start)
    assert moved["other"] == 7
    assert moved["learning_rate"].dtype == jnp.bfloat16


def moved(space, value, *chosen, last=-1):
    """Return the learning rate after each of the actions, one after another."""
    rates = []
    for action in chosen:
        value = actions.apply(space, jnp.int32(action), {"learning_rate": value}, last)[
            "learning_rate"
        ]
        rates.append(float(value))
        last = action
    return rates


def test_levels_do_not_add_up():
    space, start = actions.levels((0.5, 1.0, 2.0)), jnp.float32(0.1)
    np.testing.assert_allclose(
        moved(space, start, 2, 2, 0, 0, 1, 0), [0.2, 0.2, 0.05, 0.05, 0.1, 0.05], rtol=1e-6
    )
    assert moved(space, start, *[2] * 50) == moved(space, start, 2) * 50
    assert space.increments == ()
    assert actions.classic().increments == ("learning_rate", "weight_decay")


def test_a_value_that_somebody_changed_stays_changed_under_levels():
    space = actions.levels((0.5, 1.0, 2.0))
    (raised,) = moved(space, jnp.float32(0.1), 2)
    np.testing.assert_allclose(
        moved(space, jnp.float32(3.0 * raised), 2, 1, 0, last=2), [0.6, 0.3, 0.15], rtol=1e-6
    )


def test_levels_of_two_moves_are_told_apart():
    space = actions.joint(actions.level("a", (0.5, 1.0)), actions.level("b", (1.0, 3.0)))
    start = {"a": jnp.float32(0.1), "b": jnp.float32(0.1)}
    first = actions.apply(space, jnp.int32(1), start)  # a × 0.5, b × 3
    second = actions.apply(space, jnp.int32(2), first, jnp.int32(1))  # a × 1, b × 1
    np.testing.assert_allclose([first["a"], first["b"]], [0.05, 0.3], rtol=1e-6)
    np.testing.assert_allclose([second["a"], second["b"]], [0.1, 0.1], rtol=1e-6)


def test_what_the_bounds_of_a_level_clip_stays_clipped():
    space = actions.levels((0.5, 1.0, 4.0), bounds=(1e-3, 0.2))
    np.testing.assert_allclose(moved(space, jnp.float32(0.1), 2, 1), [0.2, 0.05], rtol=1e-6)


def test_an_ordered_space_is_a_discretized_gaussian():
    moves = actions.level("a", (0.5, 1.0, 2.0)), actions.log_step("b", (-0.2, 0.0))
    space = actions.ordered(*moves, spread=0.5)
    assert (space.num_actions, space.num_logits) == (6, 2)
    means = np.array([0.3, -0.4])
    heads = []
    for mean, places in zip(means, (np.log([0.5, 1.0, 2.0]), np.array([-0.2, 0.0])), strict=True):
        density = np.exp(-0.5 * ((places - mean) / 0.5) ** 2)
        heads.append(density / density.sum())
    got = jnp.exp(actions.log_probs(space, jnp.asarray(means, jnp.float32)))
    np.testing.assert_allclose(got, np.outer(*heads).ravel(), rtol=1e-5)


def test_an_ordered_space_starts_around_hold():
    space = actions.ordered(actions.level("a", (0.25, 0.5, 1.0, 2.0, 4.0)), spread=0.2)
    logits = jnp.asarray(actions.hold_logits(space, 0.9))
    probs = np.exp(actions.log_probs(space, logits))
    assert np.argmax(probs) == actions.hold(space) == 2
    np.testing.assert_allclose(probs, probs[::-1], rtol=1e-5)
    assert probs[2] > 0.99


@pytest.mark.parametrize(
    "space",
    [
        actions.classic(),
        actions.levels((0.5, 1.0)),
        actions.factored(actions.level("b1", (0.5, 1.0), bounds=(0.1, 0.9)), actions.scale("eps")),
        actions.ordered(actions.level("learning_rate"), actions.log_step("eps", (0.0, 0.1))),
    ],
)
def test_a_space_comes_back_from_its_card(space):
    assert actions.space_of(json.loads(json.dumps(actions.card_of(space)))) == space


def test_factors_are_those_of_each_action():
    space = actions.factored(
        actions.level("a", (0.5, 1.0, 2.0)), actions.add("b", (0.0, 1.0), bounds=(0, 9))
    )
    np.testing.assert_allclose(actions.factors(space, "a"), [0.5, 0.5, 1, 1, 2, 2])
    np.testing.assert_allclose(actions.factors(space, "a", 5), [0.25, 0.25, 0.5, 0.5, 1, 1])
    assert actions.factors(space, "b") is None
    assert actions.factors(space, "c") is None


def test_labels_name_every_action():
    labels = actions.labels(actions.classic())
    assert len(set(labels)) == 9
    assert labels[4] == "hold"
    assert labels[0] == "learning_rate ×0.5, weight_decay -1e-05"
    assert actions.labels(actions.levels((0.5, 1.0))) == ("learning_rate at ×0.5", "hold")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: actions.scale("a", (0.5, 0.0)), r"`factors` must lie in \(0, 1000\]"),
        (lambda: actions.scale("a", (-1.0,)), r"`factors` must lie in \(0, 1000\]"),
        (lambda: actions.scale("a", (1e300,)), r"`factors` must lie in \(0, 1000\]"),
        (lambda: actions.scale("a", ()), "`a` needs at least one choice"),
        (lambda: actions.add("a", (np.nan,), bounds=(0, 1)), "all finite"),
        (lambda: actions.scale("a", bounds=(1.0, 0.1)), "low < high"),
        (lambda: actions.log_step("a", (0.1,), bounds=(0.0, 1.0)), "must be positive"),
        (actions.joint, "one move for each hyperparameter"),
        (lambda: actions.joint(actions.scale("a"), actions.scale("a")), "one move for each"),
        (
            lambda: actions.hold_logits(actions.joint(actions.scale("a", (0.5, 2))), 0.9),
            "no hold action",
        ),
        (lambda: actions.hold_logits(actions.classic(), 1.0), "`hold_probability`"),
        (lambda: actions.level("a", (0.0, 1.0)), r"`factors` must lie in \(0, 1000\]"),
        (lambda: actions.levels(()), "`learning_rate` needs at least one choice"),
        (
            lambda: actions.ordered(*actions.classic().moves),
            "`weight_decay` is moved by increments",
        ),
        (actions.ordered, "one move for each hyperparameter"),
        *(
            (partial(actions.ordered, actions.level("a"), spread=spread), "`spread` must be")
            for spread in (0, -0.1, np.nan, np.inf, "x", True, None)
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
