"""Progress that is passed; a horizon that is extended, cut, or known late."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import optax_meta
from optax_meta import annealed, calibrated, constant, control_hyperparams, cooldown, set_horizon

X = jnp.linspace(1.0, 2.0, 4)


@functools.cache
def falling(total_steps=None):
    rule = annealed(constant(), total_steps=total_steps)
    return control_hyperparams(optax.sgd, rule)(1.0)


@functools.cache
def updating(tx):
    """One compiled update, shared by the tests of an optimizer."""
    return jax.jit(lambda s, p: tx.update(X, s, X, value=1.0, progress=p)[1])


def follow(tx, state, progress):
    """Return a record each step, one for each entry of `progress`, which may be None."""
    rows = []
    for passed in progress:
        state = updating(tx)(state, passed)
        rows.append(optax_meta.record(state))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows), state


def rates(tx, state, progress):
    return follow(tx, state, progress)[0].hyperparams["learning_rate"]


@functools.cache
def policy(total_steps=None):
    controller = optax_meta.learned("any-lr-v2", total_steps=total_steps)
    return control_hyperparams(optax.adamw, controller)(weight_decay=0.1)


def test_progress_that_is_step_over_total_changes_no_bit():
    """Neither what a policy and its wrappers decide, nor how often."""
    total, steps = 250, 40
    shares = np.arange(steps, dtype=np.float32) / np.float32(total)
    known = follow(policy(total), policy(total).init(X), [None] * steps)[0]
    passed = follow(policy(), policy().init(X), shares)[0]
    told = follow(policy(), set_horizon(policy().init(X), total_steps=total), [None] * steps)[0]
    jax.tree.map(np.testing.assert_array_equal, known, passed)
    jax.tree.map(np.testing.assert_array_equal, known, told)
    np.testing.assert_array_equal(known.progress, shares)
    assert known.decided.sum() == 20 + 7  # the first twenty, then every third


def test_progress_overrides_the_length_and_passing_none_goes_on_at_its_rate():
    tx = falling(total_steps=1000)
    shares = [t / 20 for t in range(20)]
    np.testing.assert_allclose(
        rates(tx, tx.init(X), map(np.float32, shares)), 1.0 - np.array(shares), rtol=1e-6
    )
    now_and_then = [
        np.float32(s) if t < 3 or t % 4 == 0 else np.float32("nan") for t, s in enumerate(shares)
    ]
    rows, state = follow(falling(), falling().init(X), now_and_then)
    np.testing.assert_allclose(rows.progress, shares, rtol=1e-5)
    assert rows.num_misread[-1] == sum(math.isnan(x) for x in now_and_then)
    np.testing.assert_allclose(rates(falling(), state, [None, None])[0], 1.0 / 20.0, rtol=1e-3)


def test_tokens_count_alike_whatever_the_batches_are():
    """A batch that grows, and gradients that are accumulated: the fall goes by tokens."""
    tokens = np.cumsum([0] + [100] * 10 + [400] * 10 + [1600] * 5)
    shares = np.asarray(tokens[:-1] / tokens[-1], np.float32)
    tx = optax.MultiSteps(falling(), 2)
    got = rates(tx, tx.init(X), np.repeat(shares, 2))[1::2]
    np.testing.assert_allclose(got, 1.0 - shares, rtol=1e-6)


@pytest.mark.parametrize("begins", [0, 60])
def test_the_length_is_told_from_progress_that_begins_at_any_step(begins):
    """Where a new state takes over in the middle of a run, and where only an end is foreseen."""
    first, rest = (0.3, 140) if begins == 0 else (0.0, 100)
    length = begins + rest

    watching = optax_meta.Controller(
        lambda _: jnp.float32(0.0), lambda metrics, _, hyperparams: (hyperparams, metrics.per_step)
    )
    tx = control_hyperparams(optax.sgd, watching)(0.0)
    state, update = tx.init(X), jax.jit(tx.update)
    for t in range(length):
        passed = np.float32(first + (1.0 - first) * (t - begins) / rest)
        passed = passed if t >= begins else np.float32("nan")
        state = update(X, state, X, value=1.0, progress=passed)[1]
    np.testing.assert_allclose(state.controller_state, 1.0 / length, rtol=1e-3)


def test_an_optimizer_that_does_not_take_progress_does_not_see_it():
    def factory(learning_rate, takes):
        def scaled(by):
            return jax.tree.map(lambda g: -learning_rate * by * g, X), optax.EmptyState()

        plain = lambda grads, state, params, *, value: scaled(value)  # noqa: E731
        any_more = lambda grads, state, params, *, progress, **_: scaled(progress)  # noqa: E731
        return optax.GradientTransformationExtraArgs(
            lambda _: optax.EmptyState(), any_more if takes else plain
        )

    for takes in (False, True):
        tx = control_hyperparams(factory, constant())(0.1, takes=takes)
        updates, _ = tx.update(X, tx.init(X), X, value=2.0, progress=0.5)
        np.testing.assert_allclose(updates, -0.1 * X * (0.5 if takes else 2.0), rtol=1e-6)


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, math.inf, "half", True, 0.5j, [0.1, 0.2]])
def test_a_progress_that_is_none_is_refused(value):
    tx = falling()
    with pytest.raises(ValueError, match=r"`progress` must be a number in \[0, 1\]"):
        tx.update(X, tx.init(X), X, value=1.0, progress=value)


def test_a_traced_progress_is_clipped_and_counted():
    rows, _ = follow(falling(), falling().init(X), np.float32([0.0, 0.1, np.nan, np.inf, -1, 0.5]))
    np.testing.assert_allclose(rows.progress[:4], [0.0, 0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_array_equal(rows.num_misread, [0, 0, 1, 2, 3, 3])
    assert np.all(np.isfinite(rows.hyperparams["learning_rate"]))


def test_with_an_axis_name_all_replicas_see_the_mean_progress():
    """Each has counted its own tokens, and all must stay at one rate."""
    rule = annealed(constant(), total_steps=None)
    tx = control_hyperparams(optax.sgd, rule, axis_name="d")(1.0)

    def step(state, passed):
        return tx.update(X, state, X, value=1.0, progress=passed)[1]

    state = jax.vmap(lambda _: tx.init(X))(jnp.arange(2))
    for passed in ([0.0, 0.0], [0.1, 0.3], [0.2, 0.6]):
        state = jax.vmap(step, axis_name="d")(state, jnp.float32(passed))
        rows = jax.vmap(optax_meta.record)(state)
        np.testing.assert_allclose(rows.progress, [np.mean(passed)] * 2, rtol=1e-6)
    np.testing.assert_allclose(rows.hyperparams["learning_rate"], [0.6, 0.6], rtol=1e-6)


def test_whoever_else_takes_the_loss_takes_progress():
    tx = falling()
    state = optax_meta.TrainState.create(apply_fn=None, params={"x": X}, tx=tx)
    state = state.apply_gradients(grads={"x": X}, value=1.0, progress=0.25)
    assert optax_meta.hyperparams(state)["learning_rate"] == 0.75
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, nnx.state(model, nnx.Param), value=1.0, progress=0.25)
    assert optax_meta.hyperparams(optimizer)["learning_rate"] == 0.75
    rule = annealed(constant())
    asked = control_hyperparams(optax.sgd, rule, decision_interval=math.inf)(1.0)
    told = optax_meta.decide(rule, asked.init(X), value=1.0, progress=0.25)
    told = optax_meta.decide(rule, told, value=1.0, progress=0.25)
    assert optax_meta.hyperparams(told)["learning_rate"] == 0.75


TX = control_hyperparams(optax.sgd, annealed(calibrated(constant())))()


@jax.jit
def hundred(carry):
    def step(carry, _):
        x, state = carry
        loss, grads = jax.value_and_grad(lambda x: jnp.mean((x - 3.0) ** 2))(x)
        updates, state = TX.update(grads, state, x, value=loss)
        row = optax_meta.record(state)
        return (optax.apply_updates(x, updates), state), (row.hyperparams["learning_rate"], loss)

    return jax.lax.scan(step, carry, length=100)


def run(steps, carry):
    """Return rates and losses of some hundreds of steps, and where they end."""
    rows = []
    for _ in range(steps // 100):
        carry, row = hundred(carry)
        rows.append(row)
    return *np.concatenate(rows, axis=1), carry


def start(total_steps=None):
    state = TX.init(X)
    return X, state if total_steps is None else set_horizon(state, total_steps=total_steps)


@pytest.mark.parametrize(
    ("planned", "change", "then", "end"),
    [
        (1000, 500, lambda s: set_horizon(s, total_steps=4000), 4000),
        (1000, 1000, lambda s: set_horizon(s, total_steps=4000), 4000),
        (4000, 200, lambda s: set_horizon(s, total_steps=400), 400),
        (None, 500, lambda s: set_horizon(s, total_steps=4000), 4000),
        (None, 800, lambda s: cooldown(s, steps=200), 1000),
        (1000, 500, lambda s: cooldown(s, steps=1000), 1500),
    ],
)
def test_no_jump_where_the_horizon_changes(planned, change, then, end):
    before, losses, (x, state) = run(change, start(planned))
    after, more, _ = run(end - change + 100, (x, then(state)))
    rate, loss = np.append(before, after), np.append(losses, more)
    fall = (rate[change + 1 : end] / rate[change : end - 1])[:100]
    assert np.all(fall > 0.95)
    if change < (planned or math.inf):
        assert np.all(fall < 1.1)
    assert rate[change] == pytest.approx(rate[change - 1], rel=0.01)
    assert loss[change + 1] <= 1.01 * loss[change]
    assert rate[end - 1] < 0.01 * rate.max()  # it ends where it should
    np.testing.assert_array_equal(rate[end:], rate[end - 1])


def test_after_an_extension_it_is_as_if_the_length_had_been_known():
    _, _, (x, state) = run(500, start(1000))
    rate, _, _ = run(1500, (x, set_horizon(state, total_steps=4000)))
    known, _, _ = run(2000, start(4000))
    # But for the distance that either has found until then.
    np.testing.assert_allclose(rate[500:] / rate[500], known[1000:] / known[1000], rtol=1e-3)
    assert np.all(np.abs(np.diff(rate)) < 0.02 * rate[:-1])


def test_a_trunk_cools_down_as_often_as_one_likes():
    trunk, _, carry = run(300, start())
    for steps in (100, 200):
        rate, _, _ = run(steps, (carry[0], cooldown(carry[1], steps=steps)))
        np.testing.assert_allclose(rate, trunk[-1] * (1.0 - np.arange(steps) / steps), rtol=1e-3)
    onward, _, _ = run(100, carry)
    np.testing.assert_allclose(onward, trunk[-1], rtol=1e-3)


def test_progress_that_leaps_is_another_horizon():
    """Forth and back, as where the tokens that are planned change."""
    shares = [t / 100 for t in range(20)]
    for later in (800, 25):
        passed = np.float32(shares + [t / later for t in range(20, min(later, 120))])
        got = rates(falling(), falling().init(X), passed)
        assert got[20] == pytest.approx(got[19], rel=1e-6)
        assert np.max(np.diff(got)) < 0.02
        assert got[-1] == pytest.approx(1.0 - passed[-1] if later == 800 else 0.81 / 5, rel=1e-3)
    stairs = np.float32([t // 5 / 10 for t in range(50)])  # epochs are no such leap
    np.testing.assert_allclose(rates(falling(), falling().init(X), stairs), 1.0 - stairs, rtol=1e-6)


def by_hand(state):
    state = optax_meta.set_hyperparams(state, learning_rate=0.3)
    return optax_meta.set_bounds(state, learning_rate=(0.1, 0.5))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: set_horizon(optax_meta.freeze(state), total_steps=1000),
        lambda state: cooldown(by_hand(state), steps=250),
    ],
    ids=["frozen, extended", "set, bounded, cooled down"],
)
def test_a_run_that_was_killed_goes_on_with_what_was_done_to_it(tmp_path, change):
    _, _, (x, state) = run(100, start(400))
    carry = hundred((x, change(state)))[0]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", carry)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "run", start())
    state, missing, unused = optax_meta.graft(TX.init(X), carry[1]._asdict())
    assert not missing
    assert not unused
    expected = hundred(carry)
    for other in (restored, (carry[0], state)):
        jax.tree.map(np.testing.assert_array_equal, hundred(other), expected)


def test_all_of_it_is_one_trace_eager_or_not():
    update = jax.jit(
        chex.assert_max_traces(lambda s, p: TX.update(X, s, X, value=1.0, progress=p), n=1)
    )
    state = jax.jit(lambda s, n: set_horizon(s, total_steps=n))(TX.init(X), 5)
    eager = set_horizon(TX.init(X), total_steps=5)
    jax.tree.map(np.testing.assert_array_equal, state, eager)
    for change in (
        lambda s: s,
        lambda s: cooldown(s, steps=2),
        lambda s: jax.jit(lambda s, n: cooldown(s, steps=n))(s, 2),
        lambda s: set_horizon(s, total_steps=10),
        optax_meta.freeze,
        lambda s: optax_meta.set_bounds(s, learning_rate=(0.0, 1.0)),
    ):
        _, state = update(change(state), np.float32("nan"))
    unknown = TX.init(X)
    traced = jax.jit(lambda s, n: cooldown(set_horizon(s, total_steps=n), steps=n))(unknown, 0)
    jax.tree.map(np.testing.assert_array_equal, traced, unknown)


def test_every_controlled_optimizer_in_a_state_gets_the_horizon():
    tx = optax.partition(
        {"a": falling(), "b": optax.MultiSteps(falling(), 2)}, {"w": "a", "b": "b"}
    )
    params = {"w": X, "b": X}
    state = set_horizon(tx.init(params), total_steps=4)
    update = jax.jit(tx.update)
    for _ in range(4):
        _, state = update(params, state, params, value=1.0)
    found = [float(rate) for rate in optax_meta.hyperparams(state).values()]
    assert found == [0.25, 0.75]  # in its own steps the second is at 1 of 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: set_horizon(s, total_steps=0), "`total_steps` must be a whole number ≥ 1"),
        (lambda s: set_horizon(s, total_steps=10.0), "`total_steps` must be a whole number ≥ 1"),
        (lambda s: set_horizon(s, total_steps=2**31), "`total_steps` must be at most 2³⁰"),
        (lambda s: cooldown(s, steps=-1), "`steps` must be a whole number ≥ 1, got -1"),
        (lambda s: cooldown({}, steps=1), "no controlled optimizer in this state"),
    ],
)
def test_nonsense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        change(TX.init(X))


def test_a_stage_of_a_join_sees_its_part_of_a_horizon_that_changes():
    stages = optax_meta.join([constant(), annealed(constant())], [5])
    tx = control_hyperparams(optax.sgd, stages)(1.0)
    state = set_horizon(tx.init(X), total_steps=15)
    np.testing.assert_allclose(
        rates(tx, state, [None] * 15), np.minimum(1.0, 1.5 - np.arange(15) / 10), rtol=1e-5
    )
