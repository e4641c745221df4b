"""Gradient accumulation with `optax.MultiSteps`, around the controlled optimizer and inside it.

Around: the controller sees one update for each `EVERY` micro-batches, so `total_steps` counts
these, and the loss that it should see is the mean over them, which the loop passes on. Inside: it
sees every micro-batch, and `total_steps` counts these. There the optimizer must make its first move
within five steps; with more micro-batches to an update put `MultiSteps` around.

    pip install scikit-learn
    python examples/accumulation.py
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import optax_meta

EVERY = 4
IMAGES, LABELS = (jnp.asarray(x) for x in load_digits(return_X_y=True))
IMAGES = IMAGES.astype(jnp.float32) / 16.0
HELD_OUT = 400
MODEL: Any = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(10)])


def loss_fn(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy, float32[]."""
    logits = MODEL.apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(tx: Any, steps: int, seed: int) -> tuple[tuple[float, float], Any]:
    """Train on micro-batches of 16; return held-out loss, accuracy, and the optimizer state."""
    params = MODEL.init(jax.random.key(seed), IMAGES[:1])

    def train_step(carry: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        params, opt_state, total = carry
        i, key = inputs
        batch = jax.random.randint(key, (16,), HELD_OUT, LABELS.size)
        loss, grads = jax.value_and_grad(loss_fn)(params, IMAGES[batch], LABELS[batch])
        # The mean over the micro-batches since the last update, of which the last one is passed on.
        total = jnp.where(i % EVERY == 0, loss, total + loss)
        value = total / (i % EVERY + 1)
        updates, opt_state = tx.update(grads, opt_state, params, value=value)
        return (optax.apply_updates(params, updates), opt_state, total), None

    keys = jax.random.split(jax.random.key(seed + 1), steps)
    carry = params, tx.init(params), jnp.float32(0.0)
    run = jax.jit(lambda carry: jax.lax.scan(train_step, carry, (jnp.arange(steps), keys))[0])
    params, opt_state, _ = run(carry)
    x, labels = IMAGES[:HELD_OUT], LABELS[:HELD_OUT]
    accuracy = jnp.mean(MODEL.apply(params, x).argmax(axis=1) == labels)
    return (float(loss_fn(params, x, labels)), float(accuracy)), opt_state


def accumulating(learning_rate: Any, weight_decay: float = 1e-4) -> Any:
    """Return AdamW that moves once in `EVERY` updates: the factory to control."""
    adamw = optax.adamw(learning_rate, weight_decay=weight_decay)
    return optax.MultiSteps(adamw, EVERY).gradient_transformation()


def main(steps: int = 1200, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Train once each way; return the held-out losses and accuracies."""
    updates = steps // EVERY
    cosine = optax.warmup_cosine_decay_schedule(0.0, 3e-3, updates // 10, updates)
    learned, control = optax_meta.learned, optax_meta.control_hyperparams
    around = control(optax.adamw, learned("any-lr-v2", total_steps=updates))()
    inside = control(accumulating, learned("any-lr-v2", total_steps=steps))()
    found = {}
    for name, tx in {
        "warm-up + cosine 3e-3": optax.MultiSteps(optax.adamw(cosine), EVERY),
        "any-lr-v2, MultiSteps around": optax.MultiSteps(around, EVERY),
        "any-lr-v2, MultiSteps inside": inside,
    }.items():
        found[name], opt_state = train(tx, steps, seed)
        loss, accuracy = found[name]
        counted = "" if "any" not in name else f", {optax_meta.record(opt_state).step} steps seen"
        print(f"{name}: held-out loss {loss:.3f}, accuracy {accuracy:.1%}{counted}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1200, help="micro-batches")
    main(parser.parse_args().steps)
