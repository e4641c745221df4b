"""Flax NNX: LoRA on a trained network, with `wrt=nnx.LoRAParam`, against warm-up and linear decay.

A network that reads digits learns to read them turned by ninety degrees. Only the LoRA factors are
trained; the controller sees these alone, and knows no rate to start from.

    pip install scikit-learn
    python examples/nnx_lora.py
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

import optax_meta

IMAGES, LABELS = (jnp.asarray(x) for x in load_digits(return_X_y=True))
IMAGES = IMAGES.astype(jnp.float32).reshape(-1, 8, 8) / 16.0
HELD_OUT = 400
TURNED = jnp.rot90(IMAGES, axes=(1, 2))


class Model(nnx.Module):
    """Two hidden layers, each with a LoRA of rank 4 beside it."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.LoRALinear(64, 64, lora_rank=4, rngs=rngs)
        self.second = nnx.LoRALinear(64, 64, lora_rank=4, rngs=rngs)
        self.head = nnx.LoRALinear(64, 10, lora_rank=4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits, float32[batch, 10]."""
        x = nnx.relu(self.first(x.reshape(-1, 64)))
        return self.head(nnx.relu(self.second(x)))


def loss_fn(model: Model, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy, float32[]."""
    return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()


def train(model: Model, optimizer: Any, kind: Any, images: jax.Array, steps: int) -> float:
    """Train the variables of one kind in place; return the held-out loss."""
    state = nnx.Optimizer(model, optax.with_extra_args_support(optimizer), wrt=kind)

    @nnx.jit
    def train_step(model: Model, state: nnx.Optimizer, key: jax.Array) -> None:
        batch = jax.random.randint(key, (64,), HELD_OUT, LABELS.size)
        grad_fn = nnx.value_and_grad(loss_fn, argnums=nnx.DiffState(0, kind))
        loss, grads = grad_fn(model, images[batch], LABELS[batch])
        state.update(model, grads, value=loss)

    for key in jax.random.split(jax.random.key(0), steps):
        train_step(model, state, key)
    return float(loss_fn(model, images[:HELD_OUT], LABELS[:HELD_OUT]))


def main(steps: int = 300, seed: int = 0) -> dict[str, float]:
    """Train the network once, then its LoRA each way; return the held-out losses."""
    trained = Model(nnx.Rngs(seed))
    train(trained, optax.adamw(3e-3), nnx.Param, IMAGES, steps)
    warmup = max(steps // 10, 1)
    rise = optax.linear_schedule(0.0, 2e-3, warmup)
    fall = optax.linear_schedule(2e-3, 0.0, steps - warmup)
    linear = optax.join_schedules([rise, fall], [warmup])
    controller = optax_meta.learned("any-lr-v2", total_steps=steps)
    losses = {"before": float(loss_fn(trained, TURNED[:HELD_OUT], LABELS[:HELD_OUT]))}
    for name, optimizer in {
        "warm-up + linear 2e-3": optax.adamw(linear),
        "any-lr-v2": optax_meta.control_hyperparams(optax.adamw, controller)(),
    }.items():
        model = nnx.clone(trained)
        losses[name] = train(model, optimizer, nnx.LoRAParam, TURNED, steps)
    for name, loss in losses.items():
        print(f"{name}: held-out loss {loss:.3f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().steps)
