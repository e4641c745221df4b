"""When a loss or a gradient leaps: what is usual, and how far beyond it is too far.

The rule has no scale: it compares with a running mean and a running deviation, of the loss and of
the logarithm of the gradient norm, in which noise is heavy-tailed no more.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_meta.metrics import LARGEST

ALARM_STEPS = 20
"""So many finite steps come first without an alarm: what is usual is not known yet."""
PATIENCE = 5
"""Where more steps than these leap in a row the data have changed, and what is usual follows."""
_MEMORY, _LONG_MEMORY = 0.97, 0.99
"""Decay of what is usual, a step, as in ZClip: some 30 steps; and of how far losses deviate."""
_DEVIATIONS = 8.0
"""A leap is so many deviations above the mean. What recurs is none: a deviation that enters the
average no further than to this limit still raises it, so that where more than one step in 8² - 1
leaps by the same, it leaps no more. Losses may be that heavy-tailed."""
_MOST = 2.0
"""So many deviations of the norm enter their average at most: clipping must not learn from what it
clips."""
_LARGEST_DEVIATION = 1e37
_LEAST_RISE = 0.5
"""And by so much of the mean loss, since in a full batch next to nothing deviates."""
_LEAST_FACTOR = 4.0
"""And to so many times the mean gradient norm."""
_LARGEST_LOG = math.log(LARGEST)


class Spikes(NamedTuple):
    """What is known of leaps, float32[] each.

    Attributes:
        num_usual: finite steps so far.
        value: running mean of the loss.
        value_deviation: root mean square deviation from it.
        log_norm: running mean of the logarithm of the gradient norm.
        log_norm_deviation: mean absolute deviation from it.
        streak: steps in a row that leapt or were not finite.
        total: steps so far that leapt.
    """

    num_usual: jax.Array
    value: jax.Array
    value_deviation: jax.Array
    log_norm: jax.Array
    log_norm_deviation: jax.Array
    streak: jax.Array
    total: jax.Array

    @classmethod
    def none(cls) -> "Spikes":
        """Return what is known before the first step."""
        return cls(*[jnp.float32(0.0)] * len(cls._fields))


class Limits(NamedTuple):
    """How far the next step may go, float32[] each; any number while nothing is usual yet."""

    value: jax.Array
    grad_norm: jax.Array


def limits(known: Spikes) -> Limits:
    """Return what the loss and the gradient norm of the next step leap beyond.

    Args:
        known: before that step.

    Source: A. Kumar et al., "ZClip: Adaptive Spike Mitigation for LLM Pre-Training", 2025,
    https://arxiv.org/abs/2504.02507, for a running mean and deviation of the norm; here of its
    logarithm, and of the loss.

    Example:
        >>> known = Spikes.none()._replace(num_usual=jnp.float32(20), value=jnp.float32(2.0))
        >>> print(*limits(known))
        3.0 4.0
    """
    rise = jnp.maximum(_DEVIATIONS * known.value_deviation, _LEAST_RISE * jnp.abs(known.value))
    log_rise = jnp.maximum(_DEVIATIONS * known.log_norm_deviation, jnp.log(_LEAST_FACTOR))
    log_norm = jnp.minimum(known.log_norm + log_rise, _LARGEST_LOG)
    found = Limits(known.value + rise, jnp.exp(log_norm))
    return Limits(*(jnp.where(known.num_usual < ALARM_STEPS, LARGEST, x) for x in found))


def watch(
    known: Spikes, value: jax.Array, grad_norm: jax.Array, limit: Limits
) -> tuple[Spikes, jax.Array]:
    """Return what is known after a step, and whether it leapt, bool[].

    What leaps enters the averages no further than to its limit, so that one leap does not hide the
    next. After `PATIENCE` of them in a row the means are these limits: so those rise step by step
    to what new data have, and at no step is there none. A step that is not finite, or whose
    gradient is 0, tells nothing.

    Args:
        known: before the step.
        value: its loss, float32[].
        grad_norm: of its gradients, float32[].
        limit: `limits(known)`.
    """
    is_finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
    is_leap = is_finite & ((value > limit.value) | (grad_norm > limit.grad_norm))
    streak = jnp.where(is_leap | ~is_finite, known.streak + 1.0, 0.0)
    log_norm = jnp.log(jnp.minimum(grad_norm, limit.grad_norm))
    usual = _usual(known, jnp.minimum(value, limit.value), log_norm, is_new=streak > PATIENCE)
    tells = is_finite & (grad_norm > 0.0)
    seen = Spikes(*(jnp.where(tells, new, old) for new, old in zip(usual, known, strict=True)))
    return seen._replace(streak=streak, total=known.total + is_leap.astype(jnp.float32)), is_leap


def _usual(known: Spikes, value: jax.Array, log_norm: jax.Array, *, is_new: jax.Array) -> Spikes:
    """Return what is usual after a step that is no further away than its limits.

    Args:
        known: before the step.
        value: its loss, float32[].
        log_norm: logarithm of its gradient norm, float32[].
        is_new: whether the data have changed, bool[].
    """
    first = 1.0 / (known.num_usual + 1.0)
    weight = jnp.maximum(first, 1.0 - _MEMORY)
    slow = jnp.maximum(first, 1.0 - _LONG_MEMORY)
    of_mean = jnp.where(is_new, 1.0, weight)
    deviation = jnp.minimum(jnp.abs(value - known.value), _LARGEST_DEVIATION)
    log_deviation = jnp.abs(log_norm - known.log_norm)
    most = jnp.where(known.num_usual < ALARM_STEPS, LARGEST, _MOST * known.log_norm_deviation)
    # At the first step nothing deviates from anything.
    has_mean = known.num_usual > 0.0
    deviation, log_deviation = (
        jnp.where(has_mean, x, 0.0) for x in (deviation, jnp.minimum(log_deviation, most))
    )
    spread = jnp.hypot(jnp.sqrt(1.0 - slow) * known.value_deviation, jnp.sqrt(slow) * deviation)
    return known._replace(
        num_usual=known.num_usual + 1.0,
        value=(1.0 - of_mean) * known.value + of_mean * value,
        value_deviation=spread,
        log_norm=(1.0 - of_mean) * known.log_norm + of_mean * log_norm,
        log_norm_deviation=(1.0 - weight) * known.log_norm_deviation + weight * log_deviation,
    )
