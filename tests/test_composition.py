"""Inside and around the rest of Optax and JAX."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib
from test_contract import problem

import optax_meta

ANY_LR = optax_meta.load_policy("any-lr-v2")
STEPS = 20
CONTROLLERS = {
    "constant": optax_meta.constant,
    "plateau": lambda: optax_meta.plateau(factor=0.5, patience=1),
    "hypergradient": optax_meta.hypergradient,
    "distance": lambda: optax_meta.distance(total_steps=STEPS),
    "reinforce": lambda: optax_meta.reinforce(decision_interval=2, train_every=3),
    "any_lr": lambda: optax_meta.learned(ANY_LR, total_steps=STEPS),
}


def controlled(name, rate=1e-2, factory=optax.adamw):
    return optax_meta.control_hyperparams(factory, CONTROLLERS[name]())(learning_rate=rate)


WRAPPERS = {
    "chain": lambda tx: optax.chain(optax.clip(0.5), tx, optax.add_decayed_weights(-1e-5)),
    "masked": lambda tx: optax.chain(
        optax.masked(tx, {"w": True, "b": False}),
        optax.masked(optax.set_to_zero(), {"w": False, "b": True}),
    ),
    "partition": lambda tx: optax.partition(
        {"mine": tx, "theirs": optax.sgd(0.1)}, {"w": "mine", "b": "theirs"}
    ),
    "multi_steps": lambda tx: optax.MultiSteps(tx, 2),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "flatten": optax.flatten,
    "schedule_free": lambda tx: contrib.schedule_free(tx, learning_rate=1e-2, b1=0.9),
}


@jax.value_and_grad
def loss_and_grads(params):
    return jnp.sum((params["w"] - 2.0) ** 2) + jnp.sum((params["b"] - 1.0) ** 2)


def scan(step, tx):
    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=STEPS))(problem())


HEAVY = {("any_lr", wrapper) for wrapper in WRAPPERS if wrapper != "multi_steps"}
INSIDE = [
    pytest.param(*case, marks=pytest.mark.heavy if case in HEAVY else ())
    for case in itertools.product(CONTROLLERS, WRAPPERS)
]


@pytest.mark.parametrize(("name", "wrapper"), INSIDE)
def test_wrapped_it_trains_and_can_be_read(name, wrapper):
    tx = WRAPPERS[wrapper](controlled(name))

    def step(carry, _):
        params, state = carry
        value, grads = loss_and_grads(params)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), value

    (_, state), values = scan(step, tx)
    assert values[-1] < values[0]
    assert optax_meta.record(state).step == (STEPS // 2 if wrapper == "multi_steps" else STEPS)
    if name in ("constant", "plateau"):
        np.testing.assert_allclose(optax_meta.hyperparams(state)["learning_rate"], 1e-2)


def wrapped(wrapper, learning_rate):
    tx = optax.adamw(learning_rate)
    if wrapper == "schedule_free":
        return contrib.schedule_free(tx, learning_rate, b1=0.9)
    return WRAPPERS[wrapper](tx)


@pytest.mark.parametrize(
    "controller",
    [
        pytest.param(optax_meta.plateau(factor=0.5, patience=4, threshold=0.5), id="plateau"),
        pytest.param(optax_meta.hypergradient(), id="hypergradient", marks=pytest.mark.heavy),
    ],
)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_around_a_wrapper_the_rate_in_force_is_the_one_that_is_read(controller, wrapper):
    factory = functools.partial(wrapped, wrapper)
    tx = optax_meta.control_hyperparams(factory, controller)(learning_rate=1e-2)

    def step(carry, _):
        params, state = carry
        value, grads = loss_and_grads(params)
        updates, new = tx.update(grads, state, params, value=value)
        rate = optax_meta.hyperparams(new)["learning_rate"]
        bare = optax.with_extra_args_support(factory(rate))
        wanted, _ = bare.update(grads, state.inner_state.inner_state, params, value=value)
        return (optax.apply_updates(params, updates), new), (value, rate, updates, wanted)

    _, (values, rates, updates, wanted) = scan(step, tx)
    assert values[-1] < values[0]
    assert np.unique(rates).size > 1
    for key, update in updates.items():
        assert np.all(np.isfinite(update))
        np.testing.assert_allclose(update, wanted[key], rtol=1e-5, atol=1e-8)


def test_a_controller_for_each_group():
    slow = optax_meta.control_hyperparams(optax.adamw, optax_meta.classic_reinforce())(0.25)
    transforms = {"fast": controlled("plateau", 0.5), "slow": slow}
    tx = optax.partition(transforms, {"w": "fast", "b": "slow"})
    state = tx.init(problem())
    _, state = tx.update(problem(), state, problem(), value=1.0)
    found = optax_meta.hyperparams(state)
    assert set(found) == {"fast/learning_rate", "slow/learning_rate", "slow/weight_decay"}
    np.testing.assert_allclose(found["fast/learning_rate"], 0.5)


def test_vmap_over_seeds():
    def train(seed):
        controller = optax_meta.reinforce(decision_interval=1, explore_from=0.0, seed=seed)
        tx = optax_meta.control_hyperparams(optax.adamw, controller)(1e-2)

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(params, state, params, value=jnp.sum(params**2))
            return (optax.apply_updates(params, updates), state), optax_meta.record(state)

        x = jnp.ones(3)
        return jax.lax.scan(step, (x, tx.init(x)), length=12)[1].hyperparams["learning_rate"]

    seeds = jnp.arange(3, dtype=jnp.uint32)
    rates = jax.jit(jax.vmap(train))(seeds)
    assert len({tuple(row) for row in np.asarray(rates)}) == 3
    np.testing.assert_allclose(rates[1], jax.jit(train)(seeds[1]), rtol=1e-6)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.heavy) if n == "any_lr" else n for n in CONTROLLERS]
)
def test_the_gradient_through_inner_steps(name):
    controller = {
        **CONTROLLERS,
        "reinforce": lambda: optax_meta.reinforce(  # calibrated, it would forget the start
            action_space=optax_meta.actions.learning_rate(), wrappers={}
        ),
    }[name]()
    factory = optax_meta.control_hyperparams(optax.sgd, controller)

    @functools.partial(jax.jit, static_argnums=1)
    def last_loss(rate, start):
        tx = factory(learning_rate=rate)

        def step(carry, _):
            x, state = carry
            updates, state = tx.update(x, state, x, value=0.5 * x**2)
            return (x + updates, state), None

        x = jnp.float32(start)
        (x, _), _ = jax.lax.scan(step, (x, tx.init(x)), length=3)
        return 0.5 * x**2

    slope = jax.grad(last_loss)(jnp.float32(0.1), 1.0)
    at_zero = jax.grad(last_loss)(jnp.float32(0.1), 0.0)  # where a norm has no derivative
    assert np.isfinite(slope)
    assert at_zero == 0.0
    if name == "distance":  # the start is forgotten
        np.testing.assert_allclose(slope, 0.0, atol=1e-6)
    elif name != "any_lr":
        factors = np.exp([0.0, 0.1, 0.2]) if name == "hypergradient" else np.ones(3)
        left = 1.0 - 0.1 * factors
        np.testing.assert_allclose(slope, -(np.prod(left) ** 2) * np.sum(factors / left), rtol=1e-5)


def test_a_wrapper_forgets_no_start_that_its_controller_does_not_steer():
    decays = []

    def factory(learning_rate, weight_decay=1e-3):
        decays.append(weight_decay)
        return optax.lion(learning_rate, weight_decay=weight_decay)

    controller = optax_meta.calibrated(optax_meta.hypergradient(), total_decay=5.0)
    optax_meta.control_hyperparams(factory, controller)().init(jnp.ones(3))
    assert set(decays) == {1e-3}
