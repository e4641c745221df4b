"""The optimizers that policies are meta-trained under, drawn at random as part of a task."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

Factory = Callable[..., optax.GradientTransformation]

OPTIMIZERS: Mapping[str, Factory] = {
    "sgd": lambda b1, b2: optax.identity(),  # noqa: ARG005
    "momentum": lambda b1, b2: optax.trace(b1),  # noqa: ARG005
    "adam": optax.scale_by_adam,
    "rmsprop": lambda b1, b2: optax.scale_by_rms(b2),  # noqa: ARG005
    "lion": optax.scale_by_lion,
}
"""Inner optimizers by name: (decay of the first, decay of the second moment) → direction."""


def draw_optimizer(names: Sequence[str], key: jax.Array) -> Factory:
    """Return the factory of a random optimizer, by its learning rate.

    All directions are computed and one is taken: under `vmap` a branch would compute all as well,
    and one program serves every draw.

    Args:
        names: out of `OPTIMIZERS`, drawn evenly.
        key: of the draw.
    """
    kind_key, decay_key = jax.random.split(key)
    kind = jax.random.randint(kind_key, (), 0, len(names))
    b1, b2 = _draw_decays(decay_key)
    # Directions alone: the rate, which the policy steers, multiplies whichever is taken.
    directions = [OPTIMIZERS[name](b1, b2) for name in names]

    def init(params: optax.Params) -> optax.OptState:
        return [direction.init(params) for direction in directions]

    def factory(learning_rate: jax.Array) -> optax.GradientTransformation:
        def update(
            updates: optax.Updates, state: Any, params: optax.Params | None = None
        ) -> tuple[optax.Updates, Any]:
            pairs = [
                d.update(updates, s, params) for d, s in zip(directions, list(state), strict=True)
            ]
            moves, states = zip(*pairs, strict=True)
            picked = jax.tree.map(lambda *u: -learning_rate * jax.lax.select_n(kind, *u), *moves)
            return picked, list(states)

        return optax.GradientTransformation(init, update)

    return factory


def draw_adamw(weight_decays: tuple[float, float], key: jax.Array) -> Factory:
    """Return AdamW with random decay rates and a random weight decay to start from.

    Args:
        weight_decays: range of the weight decay, drawn log-uniformly.
        key: of the draw.
    """
    weight_decay_key, decay_key = jax.random.split(key)
    b1, b2 = _draw_decays(decay_key)
    weight_decay = log_uniform(weight_decay_key, *weight_decays)
    return partial(optax.adamw, b1=b1, b2=b2, weight_decay=weight_decay)


def log_uniform(key: jax.Array, low: float, high: float) -> jax.Array:
    """Draw float32[] log-uniformly."""
    return jnp.exp(jax.random.uniform(key, minval=math.log(low), maxval=math.log(high)))


def _draw_decays(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draw decay rates of first and second moments, float32[] each."""
    b1_key, b2_key = jax.random.split(key)
    # Log-uniform in their memory 1/(1 - b), as they are tuned: 0.8 … 0.98 around the usual 0.9,
    # and 0.95 … 0.999, from what language models use up to the default.
    b1 = 1.0 - 10.0 ** jax.random.uniform(b1_key, minval=-1.7, maxval=-0.7)
    b2 = 1.0 - 10.0 ** jax.random.uniform(b2_key, minval=-3.0, maxval=-1.3)
    return b1, b2
