"""Flax NNX with the stock `nnx.Optimizer`: under `nnx.jit` and under `nnx.scan`.

`nnx.Optimizer.update` passes further keyword arguments on, so the loss goes in as `value=loss`.
`optax_meta.hyperparams` and `optax_meta.record` read the optimizer itself.

    python examples/nnx_optimizer.py
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import optax_meta

Batch = tuple[jax.Array, jax.Array]
Carry = tuple[nnx.Sequential, nnx.Optimizer]


def loss_fn(model: nnx.Sequential, batch: Batch) -> jax.Array:
    """Return the mean squared error."""
    x, y = batch
    return jnp.mean((model(x) - y) ** 2)


@nnx.jit
def train_step(model: nnx.Sequential, optimizer: nnx.Optimizer, batch: Batch) -> optax_meta.Record:
    """Take one step in place; return its row of the timeline."""
    loss, grads = nnx.value_and_grad(loss_fn)(model, batch)
    optimizer.update(model, grads, value=loss)
    return optax_meta.record(optimizer)


@nnx.jit
@nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
def train_steps(carry: Carry, batch: Batch) -> tuple[Carry, optax_meta.Record]:
    """Take many steps in place; return the carry and all rows of the timeline."""
    return carry, train_step(*carry, batch)


def make() -> Carry:
    """Return a fresh model and its optimizer."""
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(4, 32, rngs=rngs), nnx.tanh, nnx.Linear(32, 1, rngs=rngs))
    controller = optax_meta.hypergradient()
    tx = optax_meta.control_hyperparams(optax.adamw, controller)(learning_rate=1e-3)
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def sample(key: jax.Array) -> Batch:
    """Return a batch of 64 noisy examples."""
    x_key, noise_key = jax.random.split(key)
    x = jax.random.normal(x_key, (64, 4))
    return x, jnp.sin(x[:, :1]) + 0.1 * jax.random.normal(noise_key, (64, 1))


def main(steps: int = 200) -> tuple[nnx.Optimizer, optax_meta.Record]:
    """Train twice; return the optimizer of the single steps and the rows of the scan."""
    batches = jax.vmap(sample)(jax.random.split(jax.random.key(0), steps))
    model, optimizer = make()
    for step in range(steps):
        row = train_step(model, optimizer, jax.tree.map(lambda x, i=step: x[i], batches))
        if (step + 1) % max(1, steps // 5) == 0:
            rate = optax_meta.hyperparams(optimizer)["learning_rate"]
            print(f"step {step + 1}: loss {row.value:.4f}, learning rate {rate:.2g}")
    _, rows = train_steps(make(), batches)
    rate = rows.hyperparams["learning_rate"][-1]
    print(f"in one scan: loss {rows.value[-1]:.4f}, learning rate {rate:.2g}")
    return optimizer, rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    main(parser.parse_args().steps)
