"""Functions that features are made of: bounded, finite for any input, without units."""

import jax
import jax.numpy as jnp

from optax_meta.metrics import USUAL_STEPS, Metrics

# Beyond these float32's squares and quotients overflow or vanish.
_LARGEST = 1e30
_SMALLEST = 1e-30


def squash(x: jax.Array) -> jax.Array:
    """Return s/(1 + |s|) with s = sign(x)·log(1 + |x|): odd, monotone, in (-1, 1).

    Args:
        x: float32[…]; nan counts as 0.

    Returns:
        float32[…], of the same shape.

    >>> print(np.asarray(squash(jnp.array([0.0, 1.0, -1.0, jnp.inf, jnp.nan]))).round(2))
    [ 0.    0.41 -0.41  0.99  0.  ]
    """
    x = finite(x)
    symlog = jnp.sign(x) * jnp.log1p(jnp.abs(x))
    return symlog / (1.0 + jnp.abs(symlog))


def squash_log(x: jax.Array, center: jax.typing.ArrayLike) -> jax.Array:
    """Return tanh((log₁₀ x - log₁₀ center)/3): 0 at `center`, ±0.76 three decades away.

    Args:
        x: float32[…], meant to be ≥ 0; anything below 1e-30 counts as 1e-30.
        center: the value that maps to 0, > 0; a number or an array of the same shape.

    Returns:
        float32[…], of the same shape, in [-1, 1].

    >>> print(np.asarray(squash_log(jnp.array([1e-3, 1.0, 0.0]), 1e-3)).round(2))
    [ 0.    0.76 -1.  ]
    """
    decades = jnp.log10(jnp.clip(finite(x), _SMALLEST, _LARGEST)) - jnp.log10(center)
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

    >>> zeros = optax_meta.Metrics(*jnp.zeros(19))
    >>> print(progress(zeros._replace(step=jnp.array(1000), progress=jnp.array(-1.0))))
    0.0
    """
    step = metrics.step.astype(jnp.float32)
    share = jnp.where(metrics.progress < 0.0, step / (step + USUAL_STEPS), metrics.progress)
    return 2.0 * jnp.clip(finite(share), 0.0, 1.0) - 1.0


def log(x: jax.Array) -> jax.Array:
    """Return the natural logarithm of x ≥ 0, at least log 1e-30.

    Args:
        x: float[…].

    >>> print(log(jnp.array(1.0)))
    0.0
    """
    return jnp.log(jnp.clip(finite(x), _SMALLEST, _LARGEST))


def over(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return x/y for y ≥ 0, where 0/0 is 0.

    Args:
        x: float32[].
        y: float32[].

    >>> print(over(jnp.array(0.0), jnp.array(0.0)))
    0.0
    """
    return jnp.where(x == 0.0, 0.0, x / jnp.maximum(y, _SMALLEST))


def finite(x: jax.Array) -> jax.Array:
    """Return x as float32 within ±1e30, 0 for nan.

    Args:
        x: real, of any dtype and shape.

    >>> print(finite(jnp.array(jnp.nan)))
    0.0
    """
    x = jnp.asarray(x).astype(jnp.float32)
    return jnp.clip(jnp.nan_to_num(x, nan=0.0), -_LARGEST, _LARGEST)
