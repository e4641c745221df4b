"""A pretrained network fine-tuned on few examples, against warm-up and linear decay.

A network that was trained on the digits 0 to 4 gets a new head and learns 5 to 9 from 200 images.
The stock recipe is a rate ten times smaller than that of the first training; the policy gets none.

    pip install scikit-learn
    python examples/fine_tuning.py
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import optax_meta

MODEL: Any = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(5)])
HEAD = "layers_4"
Data = tuple[jax.Array, jax.Array]


def load() -> tuple[Data, Data, Data]:
    """Return images and labels: to pretrain on, to fine-tune on, and held out."""
    images, labels = load_digits(return_X_y=True)
    x = (images / 16.0).astype(np.float32)
    old, new = np.flatnonzero(labels < 5), np.flatnonzero(labels >= 5)
    first, second, third = (
        (jnp.asarray(x[i]), jnp.asarray(labels[i] - least))
        for i, least in ((old, 0), (new[:200], 5), (new[200:], 5))
    )
    return first, second, third


def loss_fn(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy, float32[]."""
    logits = MODEL.apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(optimizer: Any, params: Any, data: Data, steps: int, seed: int) -> Any:
    """Train on batches of 32 in one scan; return the parameters."""
    tx = optax.with_extra_args_support(optimizer)

    def train_step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, opt_state = carry
        batch = jax.random.choice(key, data[1].size, (32,))
        loss, grads = jax.value_and_grad(loss_fn)(params, data[0][batch], data[1][batch])
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(jax.random.key(seed), steps)
    return jax.jit(lambda c: jax.lax.scan(train_step, c, keys)[0][0])((params, tx.init(params)))


def main(steps: int = 300, seed: int = 0) -> dict[str, float]:
    """Pretrain, then fine-tune each way; return the held-out losses."""
    old, new, held_out = load()
    fresh, head = (MODEL.init(jax.random.key(i), old[0][:1]) for i in (seed, seed + 1))
    trained = train(optax.adamw(3e-3), fresh, old, 400, seed)
    trained = {"params": {**trained["params"], HEAD: head["params"][HEAD]}}
    warmup = max(steps // 10, 1)
    rise = optax.linear_schedule(0.0, 3e-4, warmup)
    fall = optax.linear_schedule(3e-4, 0.0, steps - warmup)
    linear = optax.adamw(optax.join_schedules([rise, fall], [warmup]))
    controller = optax_meta.learned("any-lr-v2", total_steps=steps)
    ours = optax_meta.control_hyperparams(optax.adamw, controller)()
    losses = {}
    for name, optimizer, start in (
        ("from nothing, warm-up + linear 3e-4", linear, fresh),
        ("warm-up + linear 3e-4", linear, trained),
        ("any-lr-v2", ours, trained),
    ):
        params = train(optimizer, start, new, steps, seed + 1)
        losses[name] = float(loss_fn(params, *held_out))
        print(f"{name}: held-out loss {losses[name]:.3f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().steps)
