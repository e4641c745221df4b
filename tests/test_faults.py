"""Whatever the run does: parameters stay finite, bounds hold, and what happened is counted."""

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_meta

LENGTH, LONG = 48, 1000
ANY_LR = optax_meta.load_policy("any-lr-v2")
CONTROLLERS = {
    "constant": lambda: optax_meta.constant(guards_nonfinite=True),
    "plateau": lambda: optax_meta.plateau(factor=0.5, patience=1),
    "warmup_plateau": lambda: optax_meta.warmup_plateau(5, factor=0.5, patience=1),
    "hypergradient": optax_meta.hypergradient,
    "distance": lambda: optax_meta.distance(total_steps=LONG),
    "reinforce": lambda: optax_meta.reinforce(decision_interval=2, train_every=3),
    "learned": lambda: optax_meta.learned(
        optax_meta.init_policy(jax.random.key(1), start="uniform"), decision_interval=3
    ),
    "any_lr": lambda: optax_meta.learned(ANY_LR, total_steps=LONG),
}
FACTORIES = {"any_lr": functools.partial(optax.sgd, momentum=0.9)}
FAULTS = [np.nan, np.inf, -np.inf]
HARMLESS = st.sampled_from([0.0, 1.0, -1.0, 0.3, 1e-40, -1e-45, 7e4, -2.5])
LOSSES = HARMLESS | st.sampled_from([1e38, -1e38, np.nan, np.inf, -np.inf])
# A norm above 3.6e19 counts as not finite, so that nothing here is close to it.
GRADS = HARMLESS | st.sampled_from([1e15, -1e15, np.nan, np.inf, -np.inf])


def runs(elements):
    return st.lists(elements, min_size=LENGTH, max_size=LENGTH).map(np.float32)


@functools.cache
def trainer(name):
    controller = CONTROLLERS[name]()
    factory = FACTORIES.get(name, optax.adamw)
    tx = optax_meta.control_hyperparams(factory, controller)(learning_rate=1e-2)
    rest = {"empty": {}, "none": None, "no_rows": jnp.zeros((0, 2))}
    params = {"w": jnp.array([1.0, -2.0, 0.5]), **rest}

    @jax.jit
    def train(first_step, *inputs):
        def step(carry, inputs):
            params, state = carry
            value, grad, cost = inputs
            gradient = {"w": jnp.full(3, grad), **rest}
            updates, state = tx.update(gradient, state, params, value=value, cost=cost)
            params = optax.apply_updates(params, updates)
            return (params, state), (params["w"], optax_meta.record(state))

        state = tx.init(params)
        state = state._replace(inner_state=state.inner_state._replace(count=first_step))
        return jax.lax.scan(step, (params, state), inputs)

    return controller, train


def check(name, values, grads, costs=None, first_step=0):
    controller, train = trainer(name)
    costs = np.ones_like(values) if costs is None else costs
    (_, state), (weights, rows) = train(np.int32(first_step), values, grads, costs)
    assert np.all(np.isfinite(weights))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.inner_state))
    assert np.all(np.isfinite(state.statistics))
    for hyperparam, taken in rows.hyperparams.items():
        low, high = controller.bounds.get(hyperparam, (0.0, np.inf))
        assert np.all((taken >= np.float32(low)) & (taken <= np.float32(high)))
    bad = ~(np.isfinite(values) & np.isfinite(grads) & np.isfinite(costs))
    np.testing.assert_array_equal(rows.num_nonfinite, np.cumsum(bad))
    pairs = [(rows.value, values), (rows.cost, costs)]
    if controller.max_growth == np.inf:  # else the gradients may be scaled down
        pairs.append((rows.grad_norm, np.abs(grads) * np.float32(3**0.5)))
    for row, good in pairs:
        seen = good[~bad]
        if seen.size:  # recovered: the latest finite one, whatever came before
            np.testing.assert_allclose(row[-1], seen[-1], rtol=1e-5, atol=1e-30)
    return controller, rows


@pytest.mark.parametrize("name", CONTROLLERS)
@hypothesis.settings(max_examples=60)
@hypothesis.given(runs(LOSSES), runs(GRADS), runs(LOSSES))
def test_any_losses_gradients_and_costs(name, values, grads, costs):
    check(name, values, grads, costs)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", CONTROLLERS)
def test_one_faulty_step_in_five(name, fault):
    chance = np.random.default_rng(0)
    inputs = chance.normal(size=(3, LENGTH)).astype(np.float32)
    is_faulty = chance.random((3, LENGTH)) < 0.2
    assert is_faulty.any(axis=1).all()
    check(name, *np.where(is_faulty, np.float32(fault), inputs))


@pytest.mark.parametrize("name", ["hypergradient", "any_lr"])
def test_one_faulty_step_in_a_hundred(name):
    chance = np.random.default_rng(0)
    inputs = chance.normal(size=(3, LONG)).astype(np.float32)
    faults = np.where(chance.random((3, LONG)) < 0.01, chance.choice(FAULTS, (3, LONG)), 0.0)
    for row in faults:
        assert {*map(str, row)} == {"0.0", *map(str, FAULTS)}
    check(name, *(inputs + faults.astype(np.float32)))


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_constant_loss_and_gradient(name):
    values, grads = (0.0, -3.0, 1e38, -1e38, 1e-42, np.nan), (0.0, 1.0, 1e-42, np.nan)
    for pair in itertools.product(values, grads):
        check(name, *(np.full(LENGTH, x, np.float32) for x in pair))


@pytest.mark.parametrize("first_step", [10**6, 2**31 - 100])
@pytest.mark.parametrize("name", ["reinforce", "learned", "any_lr"])
def test_policies_decide_after_a_million_steps_and_more(name, first_step):
    values, grads = np.random.default_rng(0).normal(size=(2, LENGTH)).astype(np.float32)
    controller, rows = check(name, values, grads, first_step=first_step)
    steps = np.arange(first_step, first_step + LENGTH)
    np.testing.assert_array_equal(rows.step, steps + 1)
    np.testing.assert_array_equal(rows.decided, steps % controller.decision_interval == 0)
    chosen, seen = (x[rows.decided] for x in (rows.decision.action, rows.decision.observation))
    assert np.all(chosen >= 0)
    assert np.all(np.abs(seen) <= 1.0)
    rates = rows.hyperparams["learning_rate"]
    assert (np.unique(rates).size == 1) == (name == "any_lr")  # whose run is over
    if name == "reinforce":
        assert np.any(rows.decision.reward != 0.0)


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


@pytest.mark.parametrize("name", ["any-lr-v2", "adamw-lr-wd-v2"])
@pytest.mark.parametrize("start", [3, 15, 60])
def test_ten_corrupt_batches_in_a_row_cost_little(name, start):
    controller = optax_meta.learned(name, total_steps=300)
    tx = optax_meta.control_hyperparams(optax.adamw, controller)()
    x = jax.random.normal(jax.random.key(0), (512, 16))
    target = jnp.sin(x @ jnp.linspace(-1.0, 1.0, 16))
    keys = jax.random.split(jax.random.key(1), 300)

    def loss_of(params, rows):
        hidden = jnp.tanh(x[rows] @ params["in"])
        return jnp.mean((hidden @ params["out"] - target[rows]) ** 2)

    @jax.jit
    def end(number):
        def step(carry, inputs):
            params, state = carry
            t, key = inputs
            value, grads = jax.value_and_grad(loss_of)(
                params, jax.random.randint(key, (32,), 0, 512)
            )
            is_corrupt = (t >= start) & (t < start + number)
            value = jnp.where(is_corrupt, jnp.nan, value)
            grads = jax.tree.map(lambda g: jnp.where(is_corrupt, jnp.nan, g), grads)
            updates, state = tx.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), None

        params = {
            "in": 0.25 * jax.random.normal(jax.random.key(2), (16, 32)),
            "out": 0.1 * jax.random.normal(jax.random.key(3), (32,)),
        }
        carry = params, tx.init(params)
        return loss_of(jax.lax.scan(step, carry, (jnp.arange(300), keys))[0][0], jnp.arange(512))

    without = end(0)
    assert without < 0.1  # of 0.5 at the start
    assert end(10) < 1.25 * without
