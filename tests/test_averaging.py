"""The average of the parameters: what it weighs, where it is read, and that it changes nothing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_meta


def follow(share, path):
    """Return the average after each point of a path that starts at 0."""
    tx = optax_meta.averaged(share)

    def step(carry, point):
        x, state = carry
        updates, state = tx.update(point - x, state, x)
        return (optax.apply_updates(x, updates), state), state.average

    x = jnp.zeros(())
    return jax.lax.scan(step, (x, tx.init(x)), jnp.asarray(path, jnp.float32))[1]


def test_a_share_of_one_is_the_mean():
    path = np.random.default_rng(0).normal(size=20).astype(np.float32)
    means = np.cumsum(path) / np.arange(1, 21)
    np.testing.assert_allclose(follow(1.0, path), means, rtol=1e-5, atol=1e-6)


def test_hand_computed_weights():
    # 1, then 1/(1 + 0.5), then 1/(1 + 0.5 · 2)
    np.testing.assert_allclose(follow(0.5, [3.0, 6.0, 1.0]), [3.0, 5.0, 3.0], rtol=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_it_covers_the_same_share_of_a_run_at_any_time(share):
    path = np.arange(1, 2001)  # the parameters say the time
    ages = 1.0 - np.asarray(follow(share, path)) / path
    np.testing.assert_allclose(ages[[499, 999, 1999]], share / (1.0 + share), rtol=0.02)


def test_updates_pass_unchanged_and_narrow_parameters_are_averaged_widely():
    params = {"w": jnp.ones(3, jnp.bfloat16), "steps": jnp.int32(7), "none": None}
    tx = optax_meta.averaged(0.1)
    updates = {"w": jnp.full(3, 1e-2, jnp.bfloat16), "steps": jnp.int32(0), "none": None}
    given, state = tx.update(updates, tx.init(params), params)
    chex.assert_trees_all_equal(given, updates)
    average = optax_meta.averaged_params(state)
    assert average["w"].dtype == jnp.float32
    assert average["steps"] == 7


def test_the_average_of_a_noisy_run_ends_nearer_than_its_parameters():
    tx = optax.chain(optax.sgd(0.5), optax_meta.averaged())

    def step(carry, noise):
        x, state = carry
        updates, state = tx.update(x + noise, state, x)
        return (optax.apply_updates(x, updates), state), None

    x = jnp.full(50, 10.0)
    noise = jax.random.normal(jax.random.key(0), (500, 50))
    (x, state), _ = jax.lax.scan(step, (x, tx.init(x)), noise)
    raw, averaged = (jnp.linalg.norm(p) for p in (x, optax_meta.averaged_params(state)))
    assert averaged < 0.35 * raw


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: optax.chain(optax.clip(1.0), tx),
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.partition({"all": tx}, {"w": "all"}),
    ],
)
def test_it_is_read_from_any_state(wrap):
    params = {"w": jnp.arange(3.0)}
    controlled = optax_meta.control_hyperparams(optax.adam, optax_meta.constant())(1e-3)
    state = wrap(optax.chain(controlled, optax_meta.averaged())).init(params)
    train_state = optax_meta.TrainState(
        step=0, apply_fn=None, params=params, tx=None, opt_state=state
    )
    for holder in (state, train_state):
        chex.assert_trees_all_equal(optax_meta.averaged_params(holder), params)


def test_it_is_read_from_an_nnx_optimizer():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    tx = optax.chain(optax.sgd(0.1), optax_meta.averaged(1.0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    average = optax_meta.averaged_params(optimizer)
    np.testing.assert_allclose(average["kernel"], model.kernel[...], rtol=1e-6)
    nnx.update(model, average)


def test_errors():
    for share in (0.0, 1.5, "half", jnp.nan):
        with pytest.raises(ValueError, match=r"`share` must lie in \(0, 1\]"):
            optax_meta.averaged(share)
    tx, x = optax_meta.averaged(), jnp.ones(2)
    with pytest.raises(ValueError, match="`averaged` needs the parameters"):
        tx.update(x, tx.init(x))
    with pytest.raises(ValueError, match="exactly one average of parameters, found 0"):
        optax_meta.averaged_params(optax.sgd(0.1).init(x))
    with pytest.raises(ValueError, match="found 2"):
        optax_meta.averaged_params(optax.chain(tx, tx).init(x))
