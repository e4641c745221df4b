"""What holds hyperparameters from outside: frozen values, and bounds that are set while it runs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_meta
from optax_meta import annealed, calibrated, constant, control_hyperparams, trust_region

X = jnp.linspace(1.0, 2.0, 4)
HALVING = optax_meta.Controller(
    lambda _: (), lambda _, s, h: ({k: 0.5 * v for k, v in h.items()}, s), needs_value=False
)
BOTH = HALVING._replace(hyperparams=("learning_rate", "weight_decay"))


def follow(tx, state, steps, x=X):
    """Return the rates of some steps, and the state."""
    update, rates = jax.jit(tx.update), []
    for _ in range(steps):
        updates, state = update(jnp.ones_like(x), state, x, value=1.0)
        x = optax.apply_updates(x, updates)
        rates.append(optax_meta.hyperparams(state)["learning_rate"])
    return np.array(rates), state


def test_a_frozen_value_does_not_move_and_others_do():
    tx = control_hyperparams(optax.adamw, BOTH)(learning_rate=1.0, weight_decay=1.0)
    state = optax_meta.freeze(tx.init(X), "learning_rate")
    rates, state = follow(tx, state, 3)
    np.testing.assert_array_equal(rates, 1.0)
    assert optax_meta.hyperparams(state)["weight_decay"] == 0.125
    state = optax_meta.decide(BOTH, state, value=1.0)
    assert optax_meta.hyperparams(state)["learning_rate"] == 1.0
    state = optax_meta.set_hyperparams(state, learning_rate=0.5)
    np.testing.assert_array_equal(follow(tx, state, 2)[0], 0.5)
    free = jax.jit(lambda s: optax_meta.unfreeze(s, "learning_rate"))(state)
    np.testing.assert_array_equal(follow(tx, free, 2)[0], [0.25, 0.125])
    held, state = follow(tx, optax_meta.freeze(free), 2)
    np.testing.assert_array_equal(held, 0.5)
    np.testing.assert_array_equal(follow(tx, optax_meta.unfreeze(state), 1)[0], 0.25)


@pytest.mark.parametrize(
    "wrap", [annealed, lambda c: trust_region(annealed(calibrated(c), power=2.0))]
)
def test_unfreezing_goes_on_from_there(wrap):
    tx = control_hyperparams(optax.sgd, wrap(constant()))(1e-2)
    state = optax_meta.set_horizon(tx.init(X), total_steps=200)
    before, state = follow(tx, state, 30)
    held, state = follow(tx, optax_meta.freeze(state), 100)
    np.testing.assert_array_equal(held, before[-1])
    after, _ = follow(tx, optax_meta.unfreeze(state), 40)
    rates = np.append(held[-1], after)
    change = rates[1:] / rates[:-1]
    assert np.all((change > 0.9) & (change < 1.1))
    assert after[-1] < held[-1]


@pytest.mark.parametrize("wrap", [lambda c: c, annealed, calibrated, trust_region])
def test_bounds_hold(wrap):
    tx = control_hyperparams(optax.sgd, wrap(annealed(constant(), total_steps=100)))(1e-2)
    free, state = follow(tx, tx.init(X), 40)
    low, high = 0.2 * free[-1], 0.5 * free[-1]
    bounded, _ = follow(tx, optax_meta.set_bounds(state, learning_rate=(low, high)), 50)
    np.testing.assert_array_less(bounded, high * (1.0 + 1e-6))
    np.testing.assert_array_less(low * (1.0 - 1e-6), bounded)


def test_a_wrapper_keeps_its_own_value_under_bounds():
    tx = control_hyperparams(optax.sgd, annealed(constant(), total_steps=100))(1e-2)
    state = optax_meta.set_bounds(tx.init(X), learning_rate=(0.0, 2e-3))
    rates, state = follow(tx, state, 50)
    np.testing.assert_allclose(rates, 2e-3, rtol=1e-6)
    lifted = optax_meta.set_bounds(state, learning_rate=None)
    np.testing.assert_allclose(follow(tx, lifted, 1)[0], 5e-3, rtol=1e-5)
    # Near the end the rule is below the bound, which then does nothing.
    np.testing.assert_allclose(follow(tx, state, 45)[0][-1], 1e-2 * 0.06, rtol=1e-3)


def test_bounds_under_jit_and_those_of_the_controller():
    rule = HALVING._replace(bounds={"learning_rate": (0.1, 10.0)})
    tx = control_hyperparams(optax.sgd, rule)(1.0)
    bound = jax.jit(lambda s, low, high: optax_meta.set_bounds(s, learning_rate=(low, high)))
    state = tx.init(X)
    np.testing.assert_allclose(follow(tx, bound(state, 0.3, 9.0), 3)[0], [0.5, 0.3, 0.3])
    np.testing.assert_allclose(follow(tx, bound(state, 0.0, math.inf), 5)[0][-1], 0.1)
    for nonsense in ((2.0, 1.0), (math.nan, 1.0), (0.0, math.nan)):
        jax.tree.map(np.testing.assert_array_equal, bound(state, *nonsense), state)


def test_groups_are_named_by_their_labels():
    tx = optax.partition(
        {name: control_hyperparams(optax.sgd, HALVING)(1.0) for name in "ab"}, {"w": "a", "b": "b"}
    )
    params = {"w": X, "b": X}
    state = optax_meta.freeze(tx.init(params), "a/learning_rate")
    state = optax_meta.set_bounds(state, **{"b/learning_rate": (0.3, 1.0)})
    for _ in range(3):
        _, state = tx.update(params, state, params, value=1.0)
    found = {name: float(rate) for name, rate in optax_meta.hyperparams(state).items()}
    assert found == pytest.approx({"a/learning_rate": 1.0, "b/learning_rate": 0.3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: optax_meta.freeze(s, "rate"), "`rate` is not steered .* from learning_rate"),
        (lambda s: optax_meta.unfreeze(s, "rate"), "`rate` is not steered"),
        (lambda s: optax_meta.set_bounds(s, rate=(0.0, 1.0)), "`rate` is not steered"),
        (lambda s: optax_meta.set_bounds(s, learning_rate=(1.0, 0.5)), "the smaller first"),
        (lambda s: optax_meta.set_bounds(s, learning_rate=(0.0, math.nan)), "the smaller first"),
        (lambda s: optax_meta.set_bounds(s, learning_rate=0.5), "two real scalars"),
        (lambda s: optax_meta.set_bounds(s, learning_rate=(0.1, X)), "two real scalars"),
        (lambda s: optax_meta.freeze({"a": 1}), "no controlled optimizer in this state"),
    ],
)
def test_nonsense_is_refused(change, message):
    tx = control_hyperparams(optax.sgd, HALVING)(1.0)
    with pytest.raises(ValueError, match=message):
        change(tx.init(X))
