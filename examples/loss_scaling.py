"""Half precision in float16 with jmp's dynamic loss scale, against warm-up and cosine.

The loss is scaled up so that small gradients do not vanish in float16, and the gradients are scaled
down again. Where the scale was too large they are not finite: such a step is skipped and the scale
halved. The stock loop undoes the step by `jmp.select_tree`; a controller's guard does it by itself,
and counts it. What the controller gets is the loss without the scale, and gradients without it.

    pip install jmp
    python examples/loss_scaling.py
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import jmp
import optax

import optax_meta

CLASSES = 8
MODEL: Any = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(CLASSES)])
POLICY = jmp.get_policy("params=float32,compute=float16,output=float32")
State = tuple[Any, Any, jmp.DynamicLossScale]


def loss_fn(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy, float32[], computed in float16 up to the logits."""
    logits = MODEL.apply(POLICY.cast_to_compute(params), POLICY.cast_to_compute(x))
    logits = POLICY.cast_to_output(logits)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def sample(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return a batch of 128 points around one centre a class, and their labels."""
    label_key, noise_key = jax.random.split(key)
    labels = jax.random.randint(label_key, (128,), 0, CLASSES)
    centres = jax.random.normal(jax.random.key(0), (CLASSES, 16))
    return centres[labels] + jax.random.normal(noise_key, (128, 16)), labels


def train(optimizer: Any, steps: int, seed: int, *, guards: bool) -> tuple[float, Any, int]:
    """Return the loss on fresh data, the last optimizer state, and how many steps were skipped."""
    tx = optax.with_extra_args_support(optimizer)

    def train_step(carry: State, key: jax.Array) -> tuple[State, jax.Array]:
        params, opt_state, scale = carry

        def scaled(params: Any) -> tuple[jax.Array, jax.Array]:
            loss = loss_fn(params, *sample(key))
            return scale.scale(loss), loss

        grads, loss = jax.grad(scaled, has_aux=True)(params)
        grads = scale.unscale(grads)
        is_finite = jmp.all_finite(grads)
        updates, new_state = tx.update(grads, opt_state, params, value=loss)
        new = optax.apply_updates(params, updates), new_state
        if not guards:
            new = jmp.select_tree(is_finite, new, (params, opt_state))
        return (*new, scale.adjust(is_finite)), is_finite

    params = MODEL.init(jax.random.key(seed), jnp.zeros((1, 16)))
    # Too large, as the first guess may be: some steps are skipped before it fits.
    scale = jmp.DynamicLossScale(jnp.float32(2.0**24), period=max(steps // 4, 1))
    keys = jax.random.split(jax.random.key(seed + 1), steps)
    carry = params, tx.init(params), scale
    (params, opt_state, _), finite = jax.jit(lambda c: jax.lax.scan(train_step, c, keys))(carry)
    held_out = jax.vmap(sample)(jax.random.split(jax.random.key(99), 16))
    loss = jax.vmap(lambda batch: loss_fn(params, *batch))(held_out).mean()
    return float(loss), opt_state, int(steps - finite.sum())


def main(steps: int = 300, seed: int = 0) -> dict[str, float]:
    """Train once each way; return the losses on fresh data."""
    cosine = optax.warmup_cosine_decay_schedule(0.0, 1e-2, steps // 10, steps)
    stock, _, skipped = train(optax.adamw(cosine), steps, seed, guards=False)
    print(f"warm-up + cosine 1e-2: loss {stock:.4f}, {skipped} steps skipped by select_tree")
    controller = optax_meta.learned("any-lr-v2", total_steps=steps)
    tx = optax_meta.control_hyperparams(optax.adamw, controller)()
    ours, opt_state, _ = train(tx, steps, seed, guards=True)
    counted = int(optax_meta.record(opt_state).num_nonfinite)
    print(f"any-lr-v2: loss {ours:.4f}, {counted} steps skipped by the guard")
    return {"warm-up + cosine 1e-2": stock, "any-lr-v2": ours}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().steps)
