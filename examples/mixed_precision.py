"""Mixed precision: bfloat16 compute, float32 master weights, and a controller on top.

The optimizer holds float32 parameters; the loss casts a copy of them down, computes in bfloat16 and
averages in float32. The gradients arrive in float32, since that is what was differentiated. The
controller's state is float32 whatever the parameters are. bfloat16 has the range of float32, so
nothing is scaled; a step whose gradients are not finite is skipped by the controller's guard.

    python examples/mixed_precision.py
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import optax_meta

CLASSES = 8
MODEL: Any = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(CLASSES)])


def loss_fn(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy, float32[], computed in bfloat16 up to the logits."""
    half = optax.tree.cast(params, jnp.bfloat16)
    logits = MODEL.apply(half, x.astype(jnp.bfloat16)).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def sample(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return a batch of 128 points around one centre a class, and their labels."""
    label_key, noise_key = jax.random.split(key)
    labels = jax.random.randint(label_key, (128,), 0, CLASSES)
    centres = jax.random.normal(jax.random.key(0), (CLASSES, 16))
    return centres[labels] + jax.random.normal(noise_key, (128, 16)), labels


def main(steps: int = 300) -> tuple[Any, Any, optax_meta.Record]:
    """Train in one scan; return parameters, optimizer state and all rows of the timeline."""
    factory = optax_meta.control_hyperparams(optax.adamw, optax_meta.hypergradient())
    tx = factory(learning_rate=1e-4)
    params = MODEL.init(jax.random.key(1), jnp.zeros((1, 16)))  # float32: the master weights

    def train_step(carry, key):  # noqa: ANN001, ANN202
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, *sample(key))
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        return (optax.apply_updates(params, updates), opt_state), optax_meta.record(opt_state)

    keys = jax.random.split(jax.random.key(2), steps)
    train = jax.jit(lambda carry: jax.lax.scan(train_step, carry, keys), donate_argnums=0)
    (params, opt_state), rows = train((params, tx.init(params)))
    every = max(1, steps // 5)
    for step in range(every - 1, steps, every):
        loss, rate = rows.value[step], rows.hyperparams["learning_rate"][step]
        print(f"step {step + 1}: loss {loss:.4f}, learning rate {rate:.2g}")
    return params, opt_state, rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().steps)
