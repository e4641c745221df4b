"""One controller for all groups of parameters, with fixed ratios between their rates.

The factory that is controlled takes one `learning_rate` and gives each group its share of it: lower
layers less (layer-wise decay), biases twice as much, matrices Muon and all else AdamW. The record
shows the one rate; what a group gets is that times its ratio.

    pip install scikit-learn
    python examples/group_ratios.py
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import optax_meta

IMAGES, LABELS = (jnp.asarray(x) for x in load_digits(return_X_y=True))
IMAGES = IMAGES.astype(jnp.float32) / 16.0
HELD_OUT = 400
MODEL: Any = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(10)])
LAYERS = {"layers_0": 0.25, "layers_2": 0.5, "layers_4": 1.0}


def layer_wise(learning_rate: Any) -> optax.GradientTransformation:
    """Give the layer below half the rate of the one above."""
    groups: Any = {layer: optax.adamw(ratio * learning_rate) for layer, ratio in LAYERS.items()}
    return optax.partition(groups, {"params": {layer: layer for layer in LAYERS}})


def doubled_biases(learning_rate: Any) -> optax.GradientTransformation:
    """Give biases twice the rate, and no weight decay."""
    groups: Any = {"kernel": optax.adamw(learning_rate), "bias": optax.adam(2.0 * learning_rate)}
    return optax.partition(groups, kinds)


def muon_and_adamw(learning_rate: Any) -> optax.GradientTransformation:
    """Give matrices Muon, and all else, which `muon` leaves to AdamW, a tenth of its rate."""
    rest = optax.masked(optax.scale(0.1), lambda x: jax.tree.map(lambda leaf: leaf.ndim != 2, x))
    return optax.chain(optax.contrib.muon(learning_rate, adam_weight_decay=1e-4), rest)


def kinds(params: Any) -> Any:
    """Return "kernel" or "bias" for each parameter."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key, params)


def loss_fn(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy, float32[]."""
    logits = MODEL.apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(optimizer: Any, steps: int, seed: int) -> tuple[float, Any]:
    """Train on batches of 64 in one scan; return held-out loss and optimizer state."""
    tx = optax.with_extra_args_support(optimizer)

    def train_step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, opt_state = carry
        batch = jax.random.randint(key, (64,), HELD_OUT, LABELS.size)
        loss, grads = jax.value_and_grad(loss_fn)(params, IMAGES[batch], LABELS[batch])
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        return (optax.apply_updates(params, updates), opt_state), None

    params = MODEL.init(jax.random.key(seed), IMAGES[:1])
    keys = jax.random.split(jax.random.key(seed + 1), steps)
    run = jax.jit(lambda carry: jax.lax.scan(train_step, carry, keys)[0])
    params, opt_state = run((params, tx.init(params)))
    return float(loss_fn(params, IMAGES[:HELD_OUT], LABELS[:HELD_OUT])), opt_state


def main(steps: int = 400, seed: int = 0) -> dict[str, float]:
    """Train each recipe under a cosine and under one policy; return the held-out losses."""
    losses = {}
    for factory, peak in ((layer_wise, 3e-3), (doubled_biases, 3e-3), (muon_and_adamw, 2e-2)):
        name = factory.__name__
        cosine = optax.warmup_cosine_decay_schedule(0.0, peak, steps // 10, steps)
        stock = optax.inject_hyperparams(factory)(learning_rate=cosine)
        controller = optax_meta.learned("any-lr-v2", total_steps=steps)
        ours = optax_meta.control_hyperparams(factory, controller)()
        losses[f"{name}, cosine {peak:g}"], _ = train(stock, steps, seed)
        losses[f"{name}, any-lr-v2"], opt_state = train(ours, steps, seed)
        stock_loss, loss = list(losses.values())[-2:]
        print(f"{name}: held-out loss {stock_loss:.3f} by cosine {peak:g}, {loss:.3f} by any-lr-v2")
        print(f"  the record of the last step: {optax_meta.record(opt_state).hyperparams}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    main(parser.parse_args().steps)
