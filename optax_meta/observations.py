"""State encoders: what a policy sees of the run.

`classic` is the state of eight features. Every feature is finite and in [-1, 1] for any input.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_meta.base import Encoder, Hyperparams
from optax_meta.metrics import Metrics

_LARGEST = 1e30
_SMALLEST = 1e-30


def squash(x: jax.Array) -> jax.Array:
    """Return s/(1 + |s|) with s = sign(x)·log(1 + |x|): odd, monotone, in (-1, 1).

    Args:
        x: any float32 array; nan counts as 0.

    Returns:
        float32 of the same shape.

    >>> print(np.asarray(squash(jnp.array([0.0, 1.0, -1.0, jnp.inf, jnp.nan]))).round(2))
    [ 0.    0.41 -0.41  0.99  0.  ]
    """
    x = _finite(x)
    symlog = jnp.sign(x) * jnp.log1p(jnp.abs(x))
    return symlog / (1.0 + jnp.abs(symlog))


def squash_log(x: jax.Array, center: jax.typing.ArrayLike) -> jax.Array:
    """Return tanh((log₁₀ x - log₁₀ center)/3): 0 at `center`, ±0.76 three decades away.

    Args:
        x: float32 array, meant to be ≥ 0; anything below 1e-30 counts as 1e-30.
        center: the value that maps to 0, > 0; a number or an array of the same shape.

    Returns:
        float32 of the same shape, in [-1, 1].

    >>> print(np.asarray(squash_log(jnp.array([1e-3, 1.0, 0.0]), 1e-3)).round(2))
    [ 0.    0.76 -1.  ]
    """
    decades = jnp.log10(jnp.clip(_finite(x), _SMALLEST, _LARGEST)) - jnp.log10(center)
    return jnp.tanh(decades / 3.0)


def trend(history: jax.Array, size: jax.Array) -> jax.Array:
    """Return (n - o)/(|n| + |o|) for the means o, n of the older and the newer half.

    Negative while the series falls; does not depend on its scale; 0 for a constant one.

    Args:
        history: float32[H], newest first; only the first `size` entries are looked at.
        size: how many entries are filled, in [0, H]; below 2 there is no trend and 0 is returned.

    Returns:
        float32[], in [-1, 1].

    >>> print(trend(jnp.array([1.0, 1.0, 4.0, 2.0]), jnp.array(4.0)).round(4))
    -0.5
    """
    age = jnp.arange(history.size, dtype=jnp.float32)
    half = jnp.floor(size / 2.0)
    scale = jnp.max(jnp.abs(history))
    history = history / jnp.where(scale > 0.0, scale, 1.0)
    new = jnp.sum(jnp.where(age < half, history, 0.0)) / jnp.maximum(half, 1.0)
    is_old = (age >= size - half) & (age < size)
    old = jnp.sum(jnp.where(is_old, history, 0.0)) / jnp.maximum(half, 1.0)
    total = jnp.abs(new) + jnp.abs(old)
    return jnp.clip((new - old) / jnp.where(total > 0.0, total, 1.0), -1.0, 1.0)


def progress(metrics: Metrics) -> jax.Array:
    """Return 2p - 1 for the share p of the run that is over.

    Without a horizon p = t/(t + 1000), t the step: it still grows, ever slower.

    Args:
        metrics: of which `progress` and `step` are read.

    Returns:
        float32[], in [-1, 1].
    """
    step = metrics.step.astype(jnp.float32)
    share = jnp.where(metrics.progress < 0.0, step / (step + 1000.0), metrics.progress)
    return 2.0 * jnp.clip(_finite(share), 0.0, 1.0) - 1.0


class ClassicState(NamedTuple):
    """History of the classic encoder.

    Attributes:
        history: losses in row 0, gradient norms in row 1, newest first; the first entry of row 2
            is how many are filled; float32[3, H].
    """

    history: jax.Array


def classic(*, history: int = 10) -> Encoder:
    """Build the encoder of the eight classic features.

    ==================  ====================================================================
    `loss`              squash(loss), see `squash`
    `learning_rate`     squash_log(learning rate, center=1e-3), see `squash_log`
    `grad_norm`         squash_log(gradient norm, center=1)
    `weight_decay`      squash_log(weight decay, center=1e-4)
    `cost`              squash(cost)
    `loss_trend`        trend of the last `history` losses, see `trend`
    `grad_norm_trend`   trend of the last `history` gradient norms
    `progress`          2p - 1, see `progress`
    ==================  ====================================================================

    A hyperparameter that is not steered counts as 0, so its feature is the constant -1.

    Args:
        history: how many decisions the trends look back, ≥ 2.

    Returns:
        An `Encoder` with eight features.

    Raises:
        ValueError: `history` is below 2.

    Example:
        >>> encoder = optax_meta.observations.classic(history=20)
        >>> encoder.features[:3]
        ('loss', 'learning_rate', 'grad_norm')
    """
    if history < 2:
        raise ValueError(f"`history` must be at least 2, got {history}")
    features = (
        "loss",
        "learning_rate",
        "grad_norm",
        "weight_decay",
        "cost",
        "loss_trend",
        "grad_norm_trend",
        "progress",
    )
    init = partial(_classic_init, history)
    return Encoder(init, _classic_update, features, "classic", {"history": history})


ENCODERS: dict[str, Callable[..., Encoder]] = {"classic": classic}
"""Encoders that a saved policy can name; each is built again from its `config`."""


def _classic_init(history: int) -> ClassicState:
    return ClassicState(jnp.zeros((3, history), jnp.float32))


def _classic_update(
    metrics: Metrics, state: ClassicState, hyperparams: Hyperparams
) -> tuple[jax.Array, ClassicState]:
    def steered(name: str) -> jax.Array:
        return jnp.asarray(hyperparams.get(name, 0.0), jnp.float32)

    size = jnp.minimum(state.history[2, 0] + 1.0, state.history.shape[1])
    newest = jnp.stack([_finite(metrics.value), _finite(metrics.grad_norm), size])
    history = jnp.concatenate([newest[:, None], state.history[:, :-1]], axis=1)
    values = squash(jnp.stack([metrics.value, metrics.cost]))
    scales = jnp.stack([steered("learning_rate"), metrics.grad_norm, steered("weight_decay")])
    logs = squash_log(scales, jnp.array([1e-3, 1.0, 1e-4], jnp.float32))
    trends = jax.vmap(trend, (0, None))(history[:2], size)
    parts = [values[:1], logs, values[1:], trends, progress(metrics)[None]]
    return jnp.concatenate(parts), ClassicState(history)


def _finite(x: jax.Array) -> jax.Array:
    x = jnp.asarray(x, jnp.float32)
    return jnp.clip(jnp.nan_to_num(x, nan=0.0), -_LARGEST, _LARGEST)
