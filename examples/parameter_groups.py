"""A controller for each group of parameters, with `optax.partition`.

The embedding is trained by Adam under the hypergradient rule, all else by AdamW under a plateau
rule; `hyperparams` reads both rates, each under the label of its group.

    python examples/parameter_groups.py
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import optax_meta

WORDS = 50


class Model(nn.Module):
    """An embedding and a small network on top."""

    @nn.compact
    def __call__(self, words: jax.Array) -> jax.Array:
        """Return a value for every word, float32[batch, 1]."""
        x = nn.Embed(WORDS, 16, name="embedding")(words)
        return nn.Dense(1)(nn.tanh(nn.Dense(32)(x)))


MODEL: Any = Model()


def loss_fn(params: Any, words: jax.Array, values: jax.Array) -> jax.Array:
    """Return the mean squared error."""
    return jnp.mean((MODEL.apply({"params": params}, words) - values) ** 2)


def sample(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return 128 words and a noisy value of each."""
    word_key, noise_key = jax.random.split(key)
    words = jax.random.randint(word_key, (128,), 0, WORDS)
    values = jax.random.normal(jax.random.key(0), (WORDS, 1))
    return words, values[words] + 0.1 * jax.random.normal(noise_key, (128, 1))


def main(steps: int = 600) -> tuple[list[float], dict[str, jax.Array]]:
    """Train; return the loss of every step and the last hyperparameters."""
    rule = optax_meta.hypergradient()
    adam = optax_meta.control_hyperparams(optax.adam, rule)(learning_rate=1e-3)
    # A decision on the mean loss of twenty steps: single batches are too noisy to judge.
    rule = optax_meta.plateau(factor=0.5, patience=2)
    adamw = optax_meta.control_hyperparams(optax.adamw, rule, decision_interval=20)(
        learning_rate=3e-3
    )
    params = MODEL.init(jax.random.key(1), jnp.zeros(1, int))["params"]
    labels = {name: "embedding" if name == "embedding" else "network" for name in params}
    tx = optax.partition({"embedding": adam, "network": adamw}, labels)
    opt_state = tx.init(params)

    @jax.jit
    def train_step(params, opt_state, key):  # noqa: ANN001, ANN202
        loss, grads = jax.value_and_grad(loss_fn)(params, *sample(key))
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        return optax.apply_updates(params, updates), opt_state, loss

    losses = []
    for step in range(steps):
        params, opt_state, loss = train_step(params, opt_state, jax.random.key(step))
        losses.append(float(loss))
        if (step + 1) % max(1, steps // 5) == 0:
            read = optax_meta.hyperparams(opt_state)
            rates = ", ".join(f"{name} {rate:.2g}" for name, rate in read.items())
            print(f"step {step + 1}: loss {loss:.4f}, {rates}")
    return losses, optax_meta.hyperparams(opt_state)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    main(parser.parse_args().steps)
