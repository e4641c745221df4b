"""A small transformer learns Python's own sources, character by character.

Three learning rates, judged by the loss on held-out text: constant, warm-up and cosine decay with a
peak, both at 1e-3, and what the shipped policy chooses, which is told the number of steps alone.

    python examples/text_transformer.py
"""

import argparse
import dataclasses
import inspect
import textwrap
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_meta

SOURCES = "".join(
    inspect.getsource(module) for module in (argparse, inspect, textwrap, dataclasses)
)
TEXT = np.frombuffer(SOURCES.encode("ascii", "replace"), np.uint8).astype(np.int32)
TRAIN, HELD_OUT = np.split(TEXT, [len(TEXT) * 9 // 10])
CONTEXT, BATCH, WIDTH, LAYERS = 64, 16, 64, 2


class Transformer(nn.Module):
    """Layers of causal attention and of two dense layers each."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return the logits of every next character, float32[batch, context, 128]."""
        positions = self.param("positions", nn.initializers.normal(0.02), (CONTEXT, WIDTH))
        x = nn.Embed(128, WIDTH)(tokens) + positions[None]
        for _ in range(LAYERS):
            attention = nn.MultiHeadDotProductAttention(num_heads=4)
            x += attention(nn.LayerNorm()(x), mask=nn.make_causal_mask(tokens))
            x += nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x))))
        return nn.Dense(128)(nn.LayerNorm()(x))


MODEL: Any = Transformer()


def sample(text: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return pieces of the text, int32[size, CONTEXT + 1]."""
    starts = np.random.default_rng(seed).integers(len(text) - CONTEXT, size=(size, 1))
    return text[starts + np.arange(CONTEXT + 1)]


@jax.jit
def loss_fn(params: Any, batch: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of the next character, in nats."""
    logits = MODEL.apply(params, batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()


def train(tx: optax.GradientTransformationExtraArgs, steps: int) -> float:
    """Train; return the loss on the held-out text."""
    params = MODEL.init(jax.random.key(0), jnp.zeros((1, CONTEXT), int))
    opt_state = tx.init(params)

    @jax.jit
    def train_step(params, opt_state, batch):  # noqa: ANN001, ANN202
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        return optax.apply_updates(params, updates), opt_state

    for step in range(steps):
        params, opt_state = train_step(params, opt_state, sample(TRAIN, BATCH, seed=step))
    return float(loss_fn(params, sample(HELD_OUT, 256, seed=0)))


def main(steps: int = 300) -> dict[str, float]:
    """Train once each way; return the held-out losses."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, steps // 10, steps)
    controller = optax_meta.learned("any-lr-v2", total_steps=steps)
    controlled = optax_meta.control_hyperparams(optax.adamw, controller)()
    losses = {
        "constant 1e-3": train(optax.adamw(1e-3), steps),
        "warm-up + cosine 1e-3": train(optax.adamw(schedule), steps),
        "any-lr-v2": train(controlled, steps),
    }
    for name, loss in losses.items():
        print(f"{name}: held-out loss {loss:.3f} nats a character")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().steps)
