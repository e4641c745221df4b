"""Quickstart: a learning rate that is far too small, left alone and in the hands of a policy.

Three things differ from plain Optax: the optimizer is made by `control_hyperparams`, the loss goes
in as `value=loss`, and `hyperparams` reads what the controller chose.

    python examples/quickstart.py
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import optax_meta

MODEL: Any = nn.Sequential([nn.Dense(32), nn.tanh, nn.Dense(1)])


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean squared error."""
    return jnp.mean((MODEL.apply(params, x) - y) ** 2)


def sample(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return a batch of 64 noisy examples."""
    x_key, noise_key = jax.random.split(key)
    x = jax.random.normal(x_key, (64, 4))
    return x, jnp.sin(3.0 * x[:, :1]) + 0.1 * jax.random.normal(noise_key, (64, 1))


def train(controller: optax_meta.Controller, steps: int) -> list[float]:
    """Train under a controller; return the loss of every step."""
    tx = optax_meta.control_hyperparams(optax.adamw, controller)(learning_rate=1e-5)
    params = MODEL.init(jax.random.key(0), jnp.zeros((1, 4)))
    opt_state = tx.init(params)

    @jax.jit
    def train_step(params, opt_state, key):  # noqa: ANN001, ANN202
        loss, grads = jax.value_and_grad(loss_fn)(params, *sample(key))
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        return optax.apply_updates(params, updates), opt_state, loss

    losses = []
    for step in range(steps):
        params, opt_state, loss = train_step(params, opt_state, jax.random.key(step))
        losses.append(float(loss))
        every = max(1, steps // 5)
        if (step + 1) % every == 0:
            rate = optax_meta.hyperparams(opt_state)["learning_rate"]
            mean = sum(losses[-every:]) / every
            print(f"  step {step + 1}: loss {mean:.4f}, learning rate {rate:.2g}")
    return losses


def main(steps: int = 1000) -> dict[str, list[float]]:
    """Train twice from the same start; return the losses of both runs."""
    controllers = {
        "constant": optax_meta.constant(),
        "any-lr-v2": optax_meta.learned("any-lr-v2", total_steps=steps),
    }
    losses = {}
    for name, controller in controllers.items():
        print(f"{name}:")
        losses[name] = train(controller, steps)
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1000)
    main(parser.parse_args().steps)
