"""Rewards: small callables (before, after) → scalar.

Each compares the metrics of two successive decisions, is bounded, and gives its worst value where
the later one saw a step that was not finite. A reward of one's own is any such function.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from optax_meta.metrics import Metrics


class Reward(Protocol):
    """What the policy earns for its last action.

    Example:
        >>> def lower_gradients(before, after):
        ...     return jnp.clip(before.grad_norm - after.grad_norm, -1.0, 1.0)
        >>> controller = optax_meta.reinforce(reward=lower_gradients)
    """

    def __call__(self, before: Metrics, after: Metrics) -> jax.Array:
        """Return a finite float32[].

        Args:
            before: the run up to the decision before this one.
            after: the run since.
        """
        ...


def improvement(*, cost_weight: float = 0.1, bound: float = 10.0) -> Reward:
    """Build the classic reward, (previous loss - loss) + w·(previous cost - cost).

    Args:
        cost_weight: w, in units of loss per unit of cost.
        bound: the reward is clipped to [-bound, bound], > 0.

    Returns:
        A reward.

    Raises:
        ValueError: `bound` is not positive and finite, or `cost_weight` not finite.

    Example:
        >>> controller = optax_meta.reinforce(reward=optax_meta.rewards.improvement(cost_weight=1))
    """
    _check_bound(bound)
    if not (isinstance(cost_weight, jax.Array) or math.isfinite(cost_weight)):
        raise ValueError(f"`cost_weight` must be finite, got {cost_weight}")

    return partial(_improvement, cost_weight=cost_weight, bound=bound)


def log_improvement(*, floor: float = 1e-8, bound: float = 1.0) -> Reward:
    """Build the reward log(previous loss) - log(loss), which does not depend on the loss's scale.

    Args:
        floor: losses below it, also negative ones, count as this much, > 0.
        bound: the reward is clipped to [-bound, bound], in nats, > 0.

    Returns:
        A reward. Its sum over a run telescopes to log(first loss) - log(last loss).

    Raises:
        ValueError: `floor` or `bound` is not positive and finite.

    Example:
        >>> controller = optax_meta.reinforce(reward=optax_meta.rewards.log_improvement())
    """
    _check_bound(bound)
    if not 0.0 < floor < float("inf"):
        raise ValueError(f"`floor` must be positive and finite, got {floor}")

    return partial(_log_improvement, floor=floor, bound=bound)


def relative_improvement(*, bound: float = 1.0) -> Reward:
    """Build the reward 2(o - n)/(|o| + |n|) for losses o, n, which may be negative.

    For small changes it equals the log-improvement; it never exceeds 2.

    Args:
        bound: the reward is clipped to [-bound, bound], > 0.

    Returns:
        A reward.

    Raises:
        ValueError: `bound` is not positive and finite.

    Example:
        >>> reward = optax_meta.rewards.relative_improvement()
        >>> controller = optax_meta.reinforce(reward=reward)
    """
    _check_bound(bound)

    return partial(_relative_improvement, bound=bound)


def trend(*, annealing_gain: float = 0.1, bound: float = 3.0) -> Reward:
    """Build the reward that counts a fall of the loss in standard errors, annealing taken out.

    δ is the mean change of the loss from step to step, so that means of n steps before and after
    differ by δ√(2/n) by chance alone. Smaller moves lower the loss at once, by about κδ for each
    nat, whatever they cost later: that much is taken off again, by the moves' root mean square,
    which a fall of the rate towards the end of a run shortens, too. Learning compares what is left
    with its moving average, so that only what lies above the trend counts.

    Args:
        annealing_gain: κ ≥ 0. Networks of twelve kinds have 0.02 to 0.4, most of them about 0.1.
        bound: the reward is clipped to [-bound, bound], in standard errors, > 0.

    Returns:
        A reward; its κ needs a controller that asks for alignment, as one within `calibrated` does.

    Raises:
        ValueError: `bound` is not positive and finite, or `annealing_gain` negative or not finite.

    Example:
        >>> controller = optax_meta.reinforce(reward=optax_meta.rewards.trend(annealing_gain=0.2))
    """
    _check_bound(bound)
    if not 0.0 <= annealing_gain < float("inf"):
        raise ValueError(f"`annealing_gain` must be ≥ 0 and finite, got {annealing_gain}")

    return partial(_trend, annealing_gain=annealing_gain, bound=bound)


REWARDS: Mapping[str, Callable[..., Reward]] = {
    "improvement": improvement,
    "log_improvement": log_improvement,
    "relative_improvement": relative_improvement,
    "trend": trend,
}
"""Rewards that a config can name, each with its keyword arguments."""


def card_of(reward: Reward) -> dict[str, Any] | None:
    """Return name and arguments of a reward of this file, None for another, JSON values.

    Args:
        reward: any.

    Example:
        >>> card_of(log_improvement(bound=2.0))
        {'name': 'log_improvement', 'floor': 1e-08, 'bound': 2.0}
    """
    if not isinstance(reward, partial) or reward.func not in _NAMES:
        return None
    return {"name": _NAMES[reward.func], **reward.keywords}


def _improvement(before: Metrics, after: Metrics, *, cost_weight: float, bound: float) -> jax.Array:
    gain = (before.value - after.value) + cost_weight * (before.cost - after.cost)
    return _bounded(gain, after, bound)


def _log_improvement(before: Metrics, after: Metrics, *, floor: float, bound: float) -> jax.Array:
    before_log, after_log = (jnp.log(jnp.maximum(m.value, floor)) for m in (before, after))
    return _bounded(before_log - after_log, after, bound)


def _relative_improvement(before: Metrics, after: Metrics, *, bound: float) -> jax.Array:
    old, new = before.value / 2.0, after.value / 2.0
    total = jnp.abs(old) + jnp.abs(new)
    return _bounded(2.0 * (old - new) / jnp.where(total > 0.0, total, 1.0), after, bound)


def _trend(before: Metrics, after: Metrics, *, annealing_gain: float, bound: float) -> jax.Array:
    noise = after.value_change
    are_known = (before.update_rms > 0.0) & (after.update_rms > 0.0)
    ratio = jnp.where(are_known, after.update_rms, 1.0) / jnp.where(
        are_known, before.update_rms, 1.0
    )
    fall = before.value - after.value + annealing_gain * noise * jnp.log(ratio)
    error = noise * jnp.sqrt(2.0 / jnp.maximum(after.num_steps, 1.0))
    # A loss that does not change at all is neither better nor worse.
    return _bounded(fall / jnp.where(error > 0.0, error, 1.0), after, bound)


_NAMES: Mapping[Callable[..., Any], str] = {
    _improvement: "improvement",
    _log_improvement: "log_improvement",
    _relative_improvement: "relative_improvement",
    _trend: "trend",
}


def _bounded(reward: jax.Array, after: Metrics, bound: float) -> jax.Array:
    failed = (after.num_nonfinite > 0) | jnp.isnan(reward)
    return jnp.where(failed, -bound, jnp.clip(reward, -bound, bound))


def _check_bound(bound: float) -> None:
    if not 0.0 < bound < float("inf"):
        raise ValueError(f"`bound` must be positive and finite, got {bound}")
