"""Kinds of runs that undid controllers in the hands of users, each in several variants.

Bounds are those of a customary Adam on the same problem, with room to spare.
"""

import functools

import jax
import jax.numpy as jnp
import jmp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale

import optax_meta

CONTROLLERS = {
    "distance": lambda steps: optax_meta.distance(total_steps=steps),
    "any-lr-v2": lambda steps: optax_meta.learned("any-lr-v2", total_steps=steps),
}
BOTH = pytest.mark.parametrize("controller", CONTROLLERS)


def train(controller, params, loss, steps, *, base=optax.adam, bad=(), horizon=True, change=None):
    """Train for some steps and return the final parameters; `bad` are steps whose loss is nan."""
    known = steps if horizon else None
    tx = optax_meta.control_hyperparams(base, CONTROLLERS[controller](known))(1e-3)
    is_bad = jnp.zeros(steps, bool).at[jnp.array([*bad], int)].set(True)

    def step(carry, spoiled):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        value, grads = (change or spoil)(spoiled, value, grads)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), is_bad)[0][0])(params)


def spoil(spoiled, value, grads):
    return jnp.where(spoiled, jnp.nan, value), grads


def spoil_gradients(spoiled, value, grads):
    return value, jax.tree.map(lambda g: jnp.where(spoiled, jnp.inf, g), grads)


def bowl(params):
    return jnp.sum((params["w"] - jnp.array([1.0, -2.0, 3.0])) ** 2)


@BOTH
@pytest.mark.parametrize("change", [spoil, spoil_gradients])
@pytest.mark.parametrize("horizon", [True, False])
def test_first_steps_that_are_not_finite_cost_those_steps(controller, change, horizon):
    start = {"w": jnp.ones(3)}
    final = train(controller, start, bowl, 300, bad=range(17), horizon=horizon, change=change)
    assert bowl(final) < (1e-4 if horizon else 0.1)


@BOTH
def test_steps_skipped_now_and_then_do_not_wear_the_rate_down(controller):
    start = {"w": jnp.ones(3)}
    final = train(controller, start, bowl, 300, bad=[*range(9), *range(20, 300, 20)])
    assert bowl(final) < 1e-3


def flax_scaling(scale, loss, params):
    scale, is_finite, value, grads = scale.value_and_grad(loss)(params)
    return scale, is_finite, value, grads


def jmp_scaling(scale, loss, params):
    value, grads = jax.value_and_grad(lambda p: scale.scale(loss(p)))(params)
    value, grads = scale.unscale((value, grads))
    is_finite = jmp.all_finite(grads)
    return scale.adjust(is_finite), is_finite, value, grads


# So high that the first steps overflow, as they do in practice.
SCALINGS = {
    "flax": (flax_scaling, lambda: DynamicScale(scale=jnp.float32(2.0**24))),
    "jmp": (jmp_scaling, lambda: jmp.DynamicLossScale(jnp.float32(2.0**24))),
}


@BOTH
@pytest.mark.parametrize("scaling", SCALINGS)
def test_half_precision_with_loss_scaling(controller, scaling):
    x = jax.random.normal(jax.random.key(0), (64, 8))
    y = jnp.sin(x @ jnp.arange(8.0) / 4.0)
    keys = jax.random.split(jax.random.key(1))
    params = {"a": jax.random.normal(keys[0], (8, 32)) / 3, "b": jax.random.normal(keys[1], 32) / 6}

    def loss(params):
        half = jax.tree.map(lambda p: p.astype(jnp.float16), params)
        out = jnp.tanh(x.astype(jnp.float16) @ half["a"]) @ half["b"]
        return jnp.mean((out.astype(jnp.float32) - y) ** 2)

    tx = optax_meta.control_hyperparams(optax.adam, CONTROLLERS[controller](400))(1e-3)
    differentiate, first = SCALINGS[scaling]

    def step(carry, _):
        params, state, scale = carry
        scale, is_finite, value, grads = differentiate(scale, loss, params)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state, scale), is_finite

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=400))
    (final, state, _), was_finite = run((params, tx.init(params), first()))
    assert not was_finite[:3].any()
    # XLA may leave out that gradients are rounded to float16, so that fewer overflow on the way.
    assert 3 <= optax_meta.record(state).num_nonfinite <= jnp.sum(~was_finite)
    assert loss(final) < 0.1 * loss(params)


@functools.cache
def embedded(rows):
    keys = jax.random.split(jax.random.key(0), 4)
    ids = jax.random.randint(keys[3], (256, 5), 0, 50)
    y = jnp.sin(1.7 * ids).sum(1)
    params = {
        "e": 0.1 * jax.random.normal(keys[0], (20000, 32))[:rows],
        "a": jax.random.normal(keys[1], (160, 32)) / 160**0.5,
        "b": jax.random.normal(keys[2], (32,)) / 32**0.5,
    }

    def loss(params):
        hidden = jnp.tanh(params["e"][ids].reshape(256, -1) @ params["a"])
        return jnp.mean((hidden @ params["b"] - y) ** 2)

    return params, loss


@BOTH
@pytest.mark.parametrize("base", [optax.adam, optax.sgd])
def test_rows_that_no_batch_uses_change_little(controller, base):
    params, loss = embedded(20000)
    assert loss(train(controller, params, loss, 300, base=base)) < 0.02


@BOTH
def test_a_frozen_backbone_changes_little(controller):
    frozen = {"trained": {"w": jnp.ones(3)}, "backbone": 10.0 * jnp.ones((300, 300))}

    def loss(params):
        return bowl(params["trained"]) + 0.0 * jnp.sum(params["backbone"])

    assert loss(train(controller, frozen, loss, 300)) < 1e-3


@BOTH
@pytest.mark.parametrize("base", [optax.adam, optax.sgd, optax.lion])
def test_parameters_of_unlike_scale_are_not_lost(controller, base):
    t = jnp.linspace(0.0, 10.0, 64)

    def loss(p):
        curve = p["T"] * jnp.exp(-p["k"] * t) - 300.0 * jnp.exp(-0.3 * t)
        return jnp.mean(curve**2)

    start = {"T": jnp.float32(280.0), "k": jnp.float32(0.2)}
    final = train(controller, start, loss, 500, base=base)
    assert loss(final) < 0.05 * loss(start)


@BOTH
@pytest.mark.parametrize("start", [0.0, 1e-12, 1e-8, 1e-6, 1e-4, 1e-2, 1.0])
def test_no_cliff_between_zero_and_one(controller, start):
    x = jax.random.normal(jax.random.key(0), (200, 5))

    def loss(w):
        return jnp.mean((x @ w - x @ jnp.arange(5.0)) ** 2)

    assert loss(train(controller, jnp.full(5, start), loss, 300)) < 0.01


@BOTH
@pytest.mark.parametrize("depth", [8, 20])
def test_deep_plain_networks_train(controller, depth):
    keys = jax.random.split(jax.random.key(1), depth + 1)
    widths = [16] * (depth + 1) + [1]
    params = [
        jax.random.normal(key, (n, m)) / 4
        for key, n, m in zip(keys, widths[:-1], widths[1:], strict=True)
    ]
    x = jax.random.normal(jax.random.key(2), (128, 16))
    y = jnp.sin(2.0 * x[:, :1]) + 0.5 * x[:, 1:2] * x[:, 2:3]

    def loss(params):
        hidden = x
        for kernel in params[:-1]:
            hidden = jnp.tanh(hidden @ kernel)
        return jnp.mean((hidden @ params[-1] - y) ** 2)

    assert loss(train(controller, params, loss, 600)) < 0.02


def masked_inside(controller):
    frozen = {"a": False, "frozen": True}

    def factory(learning_rate):
        return optax.chain(optax.masked(optax.set_to_zero(), frozen), optax.adam(learning_rate))

    return optax_meta.control_hyperparams(factory, controller)(1e-3)


def partitioned(controller):
    def factory(learning_rate):
        parts = {"trained": optax.adam(learning_rate), "frozen": optax.set_to_zero()}
        return optax.partition(parts, {"a": "trained", "frozen": "frozen"})

    return optax_meta.control_hyperparams(factory, controller)(1e-3)


def masked_after(controller):
    tx = optax_meta.control_hyperparams(optax.adam, controller)(1e-3)
    return optax.chain(tx, optax.masked(optax.set_to_zero(), {"a": False, "frozen": True}))


@BOTH
@pytest.mark.parametrize("make", [masked_inside, partitioned, masked_after])
def test_gradients_that_reach_no_parameter_steer_nothing(controller, make):
    tx = make(CONTROLLERS[controller](200))
    start = {"a": jnp.ones(4), "frozen": jnp.full((5, 3), 2.0)}

    def loss(params):
        return jnp.sum((params["a"] - jnp.array([1.0, -2.0, 3.0, 0.0])) ** 2)

    @jax.jit
    @jax.vmap
    def run(masked):
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            grads = {**grads, "frozen": jnp.full((5, 3), masked)}
            updates, state = tx.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), None, length=200)
        return loss(params), params["frozen"]

    finals, frozen = run(jnp.array([0.0, jnp.nan, jnp.inf, 1e6, 1e15, 1e25]))
    assert np.max(finals) < 1e-3
    np.testing.assert_array_equal(frozen, 2.0)


@BOTH
def test_a_good_start_is_not_ruined_on_the_way(controller):
    x = jax.random.normal(jax.random.key(0), (512, 20))
    y = x @ jnp.linspace(-1.0, 1.0, 20) + 0.3 * jax.random.normal(jax.random.key(1), (512,))
    optimum = jnp.linalg.lstsq(x, y)[0]
    tx = optax_meta.control_hyperparams(optax.adam, CONTROLLERS[controller](500))(1e-3)

    def step(carry, key):
        w, state = carry
        rows = jax.random.randint(key, (32,), 0, 512)
        value, grads = jax.value_and_grad(lambda w: jnp.mean((x[rows] @ w - y[rows]) ** 2))(w)
        updates, state = tx.update(grads, state, w, value=value)
        w = optax.apply_updates(w, updates)
        return (w, state), jnp.mean((x @ w - y) ** 2)

    keys = jax.random.split(jax.random.key(2), 500)
    _, losses = jax.jit(lambda c: jax.lax.scan(step, c, keys))((optimum, tx.init(optimum)))
    best = np.mean((x @ optimum - y) ** 2)
    assert np.max(losses) < 2.0 * best
    assert losses[-1] < 1.05 * best
