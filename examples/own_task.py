"""A task of one's own, for `optax-meta fine-tune`, `compare` and `rollout`.

python examples/own_task.py                                  # tunes a policy to it, here
optax-meta fine-tune --task examples/own_task.py:task        # the same from the command line
"""

import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import optax_meta
from optax_meta.meta.tuning import fine_tune

MODEL = nn.Sequential([nn.Dense(32), jnp.tanh, nn.Dense(1)])


def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Draw rows of a noisy regression."""
    x_key, noise_key = jax.random.split(key)
    x = jax.random.normal(x_key, (count, 8))
    return x, jnp.sin(x[:, 0] + x[:, 1]) + 0.3 * jax.random.normal(noise_key, (count,))


def loss(params: dict, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return the mean squared error on a batch."""
    x, y = batch
    prediction = jnp.asarray(MODEL.apply(params, x))[:, 0]
    return jnp.mean(jnp.square(prediction - y))


def task() -> optax_meta.tasks.Task:
    """Return how parameters begin, what a batch is, what is minimized, and how a run is judged."""
    held_out = draw(jax.random.key(1), 2000)
    return optax_meta.tasks.Task(
        name="regression",
        description="an MLP on a noisy sine",
        init=lambda key: MODEL.init(key, jnp.zeros((1, 8))),
        sample=lambda key: draw(key, 64),
        loss=loss,
        evaluate=lambda params: {"loss": loss(params, held_out)},
    )


def main(folder: str, steps: int = 300, groups: int = 8) -> list[float]:
    """Tune a policy to it; return the held-out losses on seeds of their own, tuned."""
    tuned = fine_tune(task(), Path(folder), optimizer=optax.adamw, steps=steps, groups=groups)
    print(f"held-out loss {tuned.before.mean():.4f} before, {tuned.after.mean():.4f} tuned")
    print(f"use it with `optax_meta.learned({str(tuned.path)!r}, total_steps=…)`")
    return tuned.after.tolist()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tuned")
