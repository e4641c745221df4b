"""Data-parallel training on all devices of one machine: the batch divided, the rest replicated.

`jax.jit` sees the whole batch, so that loss and gradients are means over all devices and the
controller needs no communication of its own: the learning rate is the same everywhere. On a CPU
eight devices are forced; on several machines see `multi_host.py`.

    python examples/data_parallel.py
"""

import argparse
import os
from typing import Any

if __name__ == "__main__":  # before JAX is imported; changes nothing where there are accelerators
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_meta

MODEL: Any = nn.Sequential([nn.Dense(64), nn.tanh, nn.Dense(1)])


def sample(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return a batch of 128 noisy examples."""
    x_key, noise_key = jax.random.split(key)
    x = jax.random.normal(x_key, (128, 8))
    noise = 0.1 * jax.random.normal(noise_key, (128, 1))
    return x, jnp.sin(x.sum(axis=1, keepdims=True)) + noise


def main(steps: int = 300) -> tuple[list[float], list[float]]:
    """Train; return the loss of every step, and the last learning rate on every device."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    replicated, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    controller = optax_meta.learned("any-lr-v2", total_steps=steps)
    tx = optax_meta.control_hyperparams(optax.adamw, controller)()

    def train_step(params, opt_state, x, y):  # noqa: ANN001, ANN202
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((MODEL.apply(p, x) - y) ** 2))(params)
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        return optax.apply_updates(params, updates), opt_state, loss

    train_step = jax.jit(train_step, out_shardings=replicated, donate_argnums=(0, 1))
    params = MODEL.init(jax.random.key(0), jnp.zeros((1, 8)))
    params, opt_state = jax.device_put((params, tx.init(params)), replicated)
    losses, rates = [], []
    for step in range(steps):
        batch = jax.device_put(sample(jax.random.key(step)), divided)
        params, opt_state, loss = train_step(params, opt_state, *batch)
        losses.append(float(loss))
        if (step + 1) % max(1, steps // 5) == 0:
            rate = optax_meta.hyperparams(opt_state)["learning_rate"]
            rates = [float(shard.data) for shard in rate.addressable_shards]
            print(f"step {step + 1}: loss {loss:.4f}, learning rate {rates[0]:.2g}")
    print(f"learning rate on {len(rates)} devices: {', '.join(f'{rate:.4g}' for rate in rates)}")
    return losses, rates


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().steps)
