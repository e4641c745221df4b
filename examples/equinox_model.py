"""Equinox: the usual filtered step, with one keyword more, against a constant rate and a cosine.

The model is a pytree of which only the arrays are trained, so `tx.init` and `tx.update` get
`eqx.filter(model, eqx.is_inexact_array)`, as with any Optax optimizer.

    pip install equinox scikit-learn
    python examples/equinox_model.py
"""

import argparse
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import optax_meta

IMAGES, LABELS = (jnp.asarray(x) for x in load_digits(return_X_y=True))
IMAGES = IMAGES.astype(jnp.float32) / 16.0
TRAIN = slice(400, None)  # the first 400 are held out
HELD_OUT = slice(0, 400)


def loss_fn(model: eqx.nn.MLP, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy, float32[]."""
    logits = jax.vmap(model)(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(optimizer: Any, steps: int, seed: int) -> tuple[float, float]:
    """Train on batches of 64; return the held-out loss and accuracy."""
    tx = optax.with_extra_args_support(optimizer)
    model = eqx.nn.MLP(64, 10, width_size=64, depth=2, key=jax.random.key(seed))
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def train_step(model: eqx.nn.MLP, opt_state: Any, key: jax.Array) -> Any:
        batch = jax.random.choice(key, LABELS[TRAIN].size, (64,))
        x, labels = IMAGES[TRAIN][batch], LABELS[TRAIN][batch]
        loss, grads = eqx.filter_value_and_grad(loss_fn)(model, x, labels)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        return eqx.apply_updates(model, updates), opt_state

    for key in jax.random.split(jax.random.key(seed + 1), steps):
        model, opt_state = train_step(model, opt_state, key)
    found = jax.vmap(model)(IMAGES[HELD_OUT]).argmax(axis=1)
    accuracy = float(jnp.mean(found == LABELS[HELD_OUT]))
    return float(loss_fn(model, IMAGES[HELD_OUT], LABELS[HELD_OUT])), accuracy


def main(steps: int = 500, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Train once each way; return the held-out losses and accuracies."""
    cosine = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 10, steps)
    controller = optax_meta.learned("any-lr-v2", total_steps=steps)
    found = {
        "constant 1e-3": train(optax.adamw(1e-3), steps, seed),
        "warm-up + cosine 3e-3": train(optax.adamw(cosine), steps, seed),
        "any-lr-v2": train(optax_meta.control_hyperparams(optax.adamw, controller)(), steps, seed),
    }
    for name, (loss, accuracy) in found.items():
        print(f"{name}: held-out loss {loss:.3f}, accuracy {accuracy:.1%}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=500)
    main(parser.parse_args().steps)
