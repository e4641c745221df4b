"""Flax linen with a `TrainState`: the two shortest correct training steps.

The stock `apply_gradients` has no way to pass the loss on, so with it `state.tx.update` is called
by hand. `optax_meta.train_state.TrainState` is the same class with an `apply_gradients(grads=grads,
value=loss)` that does. Both give the same numbers.

    python examples/linen_train_state.py [--ours]
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state as flax_train_state

import optax_meta
from optax_meta import train_state

MODEL: Any = nn.Sequential([nn.Dense(32), nn.tanh, nn.Dense(1)])


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean squared error."""
    return jnp.mean((MODEL.apply({"params": params}, x) - y) ** 2)


@jax.jit
def stock_step(state: Any, x: jax.Array, y: jax.Array) -> Any:
    """Take one step with the `TrainState` of Flax."""
    loss, grads = jax.value_and_grad(loss_fn)(state.params, x, y)
    updates, opt_state = state.tx.update(grads, state.opt_state, state.params, value=loss)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state)


@jax.jit
def our_step(state: Any, x: jax.Array, y: jax.Array) -> Any:
    """Take the same step with the `TrainState` of optax_meta."""
    loss, grads = jax.value_and_grad(loss_fn)(state.params, x, y)
    return state.apply_gradients(grads=grads, value=loss)


def sample(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return a batch of 64 noisy examples."""
    x_key, noise_key = jax.random.split(key)
    x = jax.random.normal(x_key, (64, 4))
    return x, jnp.sin(x[:, :1]) + 0.1 * jax.random.normal(noise_key, (64, 1))


def main(steps: int = 200, *, ours: bool = False) -> Any:
    """Train; return the last `TrainState`."""
    # A decision on the mean loss of ten steps: single batches are too noisy to judge.
    factory = optax_meta.control_hyperparams(
        optax.adamw, optax_meta.plateau(factor=0.5, patience=2), decision_interval=10
    )
    params = MODEL.init(jax.random.key(0), jnp.zeros((1, 4)))["params"]
    cls = train_state.TrainState if ours else flax_train_state.TrainState
    state = cls.create(apply_fn=MODEL.apply, params=params, tx=factory(learning_rate=3e-2))
    for step in range(steps):
        batch = sample(jax.random.key(step))
        state = our_step(state, *batch) if ours else stock_step(state, *batch)
        if (step + 1) % max(1, steps // 5) == 0:
            loss = optax_meta.record(state).value
            rate = optax_meta.hyperparams(state)["learning_rate"]
            print(f"step {step + 1}: loss {loss:.4f}, learning rate {rate:.2g}")
    return state


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--ours", action="store_true", help="with the TrainState of optax_meta")
    args = parser.parse_args()
    main(args.steps, ours=args.ours)
