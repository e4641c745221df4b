import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_meta
from optax_meta import control_hyperparams, decide

CONTROLLER = optax_meta.plateau(factor=0.5, patience=1)
TX = control_hyperparams(optax.adamw, CONTROLLER, decision_interval=math.inf)(learning_rate=1e-2)


def trained(tx, steps=7, value=1.0):
    params = jnp.ones(3)
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(params, state, params, value=value)
        params = optax.apply_updates(params, updates)
    return state


def rate(state):
    return float(optax_meta.hyperparams(state)["learning_rate"])


def test_an_infinite_interval_never_decides_by_itself():
    state = trained(TX)
    assert rate(state) == pytest.approx(1e-2)
    assert not optax_meta.record(state).decided
    assert state.controller_state.best_value == np.finfo(np.float32).max


def test_decisions_on_a_validation_loss():
    state, rates = trained(TX), []
    for loss in (3.0, 2.0, 2.5, 2.5, 1.0):
        state = jax.jit(lambda s, v: decide(CONTROLLER, s, value=v))(state, loss)
        rates.append(rate(state))
    np.testing.assert_allclose(rates, [1e-2, 1e-2, 1e-2, 5e-3, 5e-3])
    assert state.step == 7
    assert optax_meta.record(state).decided


def test_the_controller_sees_the_told_value_and_the_measured_rest():
    def see(metrics, state, hyperparams):
        del state
        names = ("value", "cost", "grad_norm", "num_steps", "num_nonfinite", "step")
        return hyperparams, jnp.stack([getattr(metrics, name) for name in names])

    seeing = optax_meta.Controller(lambda hyperparams: jnp.zeros(6), see)
    tx = control_hyperparams(optax.sgd, seeing, decision_interval=math.inf)(0.0)
    state = trained(tx)
    seen = decide(seeing, state, value=5.0, cost=2.0).controller_state
    np.testing.assert_allclose(seen, [5.0, 2.0, math.sqrt(3.0), 7.0, 0.0, 7.0], rtol=1e-6)
    seen = decide(seeing, state, value=math.nan).controller_state
    np.testing.assert_allclose(seen, [1.0, 0.0, math.sqrt(3.0), 7.0, 7.0, 7.0], rtol=1e-6)
    lost = trained(tx, value=math.nan)
    seen = decide(seeing, lost, value=5.0).controller_state
    assert seen[3] > seen[4]


def test_moves_are_averaged_over_the_steps_that_saw_one():
    def see(metrics, state, hyperparams):
        del state
        names = ("num_judged", "num_moves", "update_norm", "alignment", "persistence")
        return hyperparams, jnp.stack([getattr(metrics, name) for name in names])

    seeing = optax_meta.Controller(lambda hyperparams: jnp.zeros(5), see, needs_alignment=True)
    tx = control_hyperparams(optax.sgd, seeing, decision_interval=math.inf)(0.5)
    grads, params = jnp.array([0.0, 2.0]), jnp.ones(2)
    state, seen = tx.init(params), []
    for steps in (1, 3, 1, 0):
        for _ in range(steps):
            updates, state = tx.update(grads, state, params, value=1.0)
            params = optax.apply_updates(params, updates)
        state = decide(seeing, state, value=1.0)
        seen.append(state.controller_state)
    # The first move that is seen after a decision was made before it.
    expected = [[0, 0, 0.0, 0.0, 0.0], [2, 2, 1.0, 1.0, 1.0], [0, 0, 1.0, 1.0, 1.0]]
    np.testing.assert_allclose(seen, [*expected, expected[-1]], rtol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(optax.clip(1.0), tx),
        lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
        lambda tx: optax.masked(tx, True),
    ],
)
def test_inside_other_transformations(wrap):
    state = wrap(TX).init(jnp.ones(3))
    for _ in range(3):
        state = decide(CONTROLLER, state, value=1.0)
    assert rate(state) == pytest.approx(5e-3)


def test_inside_a_train_state():
    state = optax_meta.TrainState.create(apply_fn=None, params={"w": jnp.ones(3)}, tx=TX)
    for _ in range(3):
        state = decide(CONTROLLER, state, value=1.0)
    assert rate(state) == pytest.approx(5e-3)
    state = state.apply_gradients(grads=state.params, value=1.0)
    assert rate(state) == pytest.approx(5e-3)


@pytest.mark.parametrize("whole", [False, True])
def test_inside_an_nnx_optimizer(whole):
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    grads = nnx.grad(lambda model: jnp.sum(model(jnp.ones((1, 2)))))(model)
    optimizer.update(model, grads, value=1.0)
    for value in (1.0, 2.0, 2.0):
        if whole:
            optimizer = optax_meta.decide(CONTROLLER, optimizer, value=value)
        else:
            optimizer.opt_state = optax_meta.decide(CONTROLLER, optimizer.opt_state, value=value)
    optimizer.update(model, grads, value=1.0)
    assert float(optax_meta.hyperparams(optimizer)["learning_rate"]) == pytest.approx(5e-3)


def test_a_resumed_run_decides_alike():
    state = decide(CONTROLLER, trained(TX), value=1.0)
    copy = optax_meta.graft(TX.init(jnp.ones(3)), state).state
    for _ in range(2):
        state, copy = (decide(CONTROLLER, s, value=1.0) for s in (state, copy))
    jax.tree.map(np.testing.assert_array_equal, state, copy)


def test_bad_arguments():
    with pytest.raises(ValueError, match="exactly one controlled optimizer, found 0"):
        decide(CONTROLLER, optax.adam(1.0).init(jnp.ones(3)), value=1.0)
    with pytest.raises(ValueError, match="`value` must be a real scalar"):
        decide(CONTROLLER, TX.init(jnp.ones(3)), value=jnp.ones(2))
    with pytest.raises(ValueError, match="needs a loss to judge, got None"):
        decide(CONTROLLER, TX.init(jnp.ones(3)), value=None)
    for bad in (0, 1.5, -math.inf, math.nan):
        with pytest.raises(ValueError, match=r"must be a whole number ≥ 1 or `math\.inf`"):
            control_hyperparams(optax.sgd, CONTROLLER, decision_interval=bad)


def test_what_is_set_by_hand_holds_until_the_next_decision_within_bounds():
    controller = optax_meta.hypergradient(bounds=(1e-4, 1.0))
    tx = control_hyperparams(optax.sgd, controller, decision_interval=3)(1e-2)
    params = jnp.ones(2)
    _, state = tx.update(params, tx.init(params), params)
    for value, used in ((0.25, 0.25), (50.0, 1.0), (1e-9, 1e-4)):
        state = optax_meta.set_hyperparams(state, learning_rate=value)
        updates, _ = tx.update(params, state, params)
        np.testing.assert_allclose(updates, -used * params, rtol=1e-6)


def test_an_integer_start_may_be_set_to_any_value():
    tx = control_hyperparams(optax.sgd, optax_meta.constant())(1)
    params = jnp.ones(2)
    state = optax_meta.set_hyperparams(tx.init(params), learning_rate=0.25)
    np.testing.assert_allclose(tx.update(params, state, params)[0], -0.25 * params)
    state = optax.tree.set(tx.init(params), learning_rate=2)
    np.testing.assert_allclose(tx.update(params, state, params)[0], -2.0 * params)


def test_one_of_several_is_set_by_its_full_name():
    tx = optax.partition(
        {k: control_hyperparams(optax.sgd, optax_meta.constant())(0.1) for k in "ab"},
        {"a": "a", "b": "b"},
    )
    state = tx.init({"a": jnp.ones(1), "b": jnp.ones(1)})
    state = optax_meta.set_hyperparams(state, **{"a/learning_rate": 0.5})
    rates = {name: float(value) for name, value in optax_meta.hyperparams(state).items()}
    assert rates == {"a/learning_rate": 0.5, "b/learning_rate": pytest.approx(0.1)}


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.chain(optax.clip(1.0), tx)])
def test_set_inside_an_nnx_optimizer(wrap):
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, wrap(TX), wrt=nnx.Param)
    optimizer.opt_state = optax_meta.set_hyperparams(optimizer.opt_state, learning_rate=0.25)
    assert float(optax_meta.hyperparams(optimizer)["learning_rate"]) == 0.25


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 0.1}, "`rate` is not steered by this optimizer: choose from learning_rate"),
        ({"learning_rate": math.nan}, "`learning_rate` must be a finite real scalar, got nan"),
        ({"learning_rate": "0.1"}, "`learning_rate` must be a finite real scalar, got '0.1'"),
        ({"learning_rate": jnp.ones(2)}, "`learning_rate` must be a finite real scalar"),
        ({"learning_rate": 1j}, "`learning_rate` must be a finite real scalar"),
        ({"learning_rate": 1e39}, "`learning_rate` must be a finite real scalar, got 1e"),
        ({"learning_rate": None}, "`learning_rate` must be a finite real scalar, got None"),
        ({"learning_rate": {}}, "`learning_rate` must be a finite real scalar"),
        ({"learning_rate": jax.random.key(0)}, "`learning_rate` must be a finite real scalar"),
    ],
)
def test_what_cannot_be_set(values, message):
    with pytest.raises(ValueError, match=message):
        optax_meta.set_hyperparams(TX.init(jnp.ones(2)), **values)


def test_what_turns_out_not_to_be_finite_sets_nothing():
    state = TX.init(jnp.ones(2))
    setting = jax.jit(lambda s, x: optax_meta.set_hyperparams(s, learning_rate=x))
    assert rate(setting(state, jnp.nan)) == pytest.approx(1e-2)
