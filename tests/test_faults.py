"""Whatever the run does: parameters stay finite, bounds hold, and what happened is counted."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_meta

LENGTH = 48
CONTROLLERS = {
    "constant": lambda: optax_meta.constant(guards_nonfinite=True),
    "plateau": lambda: optax_meta.plateau(factor=0.5, patience=1),
    "warmup_plateau": lambda: optax_meta.warmup_plateau(5, factor=0.5, patience=1),
    "hypergradient": optax_meta.hypergradient,
    "reinforce": lambda: optax_meta.reinforce(start="uniform", decision_interval=2, train_every=3),
    "learned": lambda: optax_meta.learned(
        optax_meta.init_policy(jax.random.key(1), start="uniform"), decision_interval=3
    ),
}
HARMLESS = st.sampled_from([0.0, 1.0, -1.0, 0.3, 1e-40, -1e-45, 7e4, -2.5])
LOSSES = HARMLESS | st.sampled_from([1e38, -1e38, np.nan, np.inf, -np.inf])
# A norm above 3.6e19 counts as not finite, so that nothing here is close to it.
GRADS = HARMLESS | st.sampled_from([1e15, -1e15, np.nan, np.inf, -np.inf])


def runs(elements):
    return st.lists(elements, min_size=LENGTH, max_size=LENGTH).map(np.float32)


@functools.cache
def trainer(name):
    controller = CONTROLLERS[name]()
    tx = optax_meta.control_hyperparams(optax.adamw, controller)(learning_rate=1e-2)
    params = {"w": jnp.array([1.0, -2.0, 0.5]), "empty": {}, "none": None}

    @jax.jit
    def train(values, grads):
        def step(carry, inputs):
            params, state = carry
            value, grad = inputs
            gradient = {"w": jnp.full(3, grad), "empty": {}, "none": None}
            updates, state = tx.update(gradient, state, params, value=value)
            params = optax.apply_updates(params, updates)
            return (params, state), (params["w"], optax_meta.record(state))

        return jax.lax.scan(step, (params, tx.init(params)), (values, grads))

    return controller, train


def check(name, values, grads):
    controller, train = trainer(name)
    (params, state), (weights, rows) = train(values, grads)
    assert np.all(np.isfinite(weights))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.inner_state))
    assert np.all(np.isfinite(state.statistics))
    for hyperparam, taken in rows.hyperparams.items():
        low, high = controller.bounds.get(hyperparam, (0.0, np.inf))
        assert np.all((taken >= np.float32(low)) & (taken <= np.float32(high)))
    bad = ~(np.isfinite(values) & np.isfinite(grads))
    np.testing.assert_array_equal(rows.num_nonfinite, np.cumsum(bad))
    for row, good in ((rows.value, values), (rows.grad_norm, np.abs(grads) * np.float32(3**0.5))):
        seen = good[~bad]
        if seen.size:  # recovered: the latest finite one, whatever came before
            np.testing.assert_allclose(row[-1], seen[-1], rtol=1e-5, atol=1e-30)
    return params, rows


@pytest.mark.parametrize("name", CONTROLLERS)
@hypothesis.settings(max_examples=60)
@hypothesis.given(runs(LOSSES), runs(GRADS))
def test_any_losses_and_gradients(name, values, grads):
    check(name, values, grads)


@pytest.mark.parametrize("share", [0.01, 0.2])
@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_share_of_faulty_steps(name, fault, share):
    chance = np.random.default_rng(0)
    values, grads = chance.normal(size=(2, LENGTH)).astype(np.float32)
    values[chance.random(LENGTH) < share] = fault
    grads[chance.random(LENGTH) < share] = fault
    check(name, values, grads)


@pytest.mark.parametrize("name", CONTROLLERS)
@pytest.mark.parametrize("value", [0.0, -3.0, 1e38, -1e38, 1e-42, np.nan])
@pytest.mark.parametrize("grad", [0.0, 1.0, 1e-42, np.nan])
def test_a_constant_loss_and_gradient(name, value, grad):
    check(name, np.full(LENGTH, value, np.float32), np.full(LENGTH, grad, np.float32))


def test_a_million_steps_are_counted():
    controller = optax_meta.plateau(patience=10**7)
    tx = optax_meta.control_hyperparams(optax.sgd, controller, decision_interval=10**7)(0.0)
    x = jnp.array(1.0)

    @jax.jit
    def train(state):
        def step(i, state):
            value = jnp.where(i % 4 == 0, jnp.nan, 1.0)
            return tx.update(x, state, x, value=value)[1]

        return jax.lax.fori_loop(0, 10**6, step, state)

    row = optax_meta.record(train(tx.init(x)))
    assert row.step == 10**6
    assert row.num_nonfinite == 250_000
    assert row.value == 1.0
