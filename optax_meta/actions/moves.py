"""Moves: the choices that there are for one hyperparameter."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_meta.base import Bounds

LARGEST_FACTOR = 1e3
"""No factor and no level of a move is larger."""


class Move(NamedTuple):
    """The choices for one hyperparameter.

    Attributes:
        hyperparam: its name.
        kind: "scale", "add", "log" or "level".
        amounts: factors for "scale" and "level", increments for "add", natural-log steps for "log".
        bounds: smallest and largest value allowed.

    Example:
        >>> optax_meta.actions.scale("learning_rate", (0.5, 1.0)).amounts
        (0.5, 1.0)
    """

    hyperparam: str
    kind: str
    amounts: tuple[float, ...]
    bounds: Bounds


def scale(
    hyperparam: str, factors: Sequence[float] = (0.5, 1.0, 2.0), *, bounds: Bounds = (1e-8, 10.0)
) -> Move:
    """Multiply a hyperparameter by one of `factors`.

    Args:
        hyperparam: its name in the optimizer's factory.
        factors: each in (0, 1000]; 1 holds.
        bounds: smallest and largest value allowed.

    Returns:
        A `Move`.

    Raises:
        ValueError: no factor, one out of range, or crossed bounds.

    Example:
        >>> optax_meta.actions.scale("learning_rate", (0.5, 1.0, 2.0)).kind
        'scale'
    """
    if not all(0.0 < factor <= LARGEST_FACTOR for factor in factors):
        raise ValueError(f"`factors` must lie in (0, 1000], got {tuple(factors)}")
    return _move(hyperparam, "scale", factors, bounds)


def add(hyperparam: str, increments: Sequence[float], *, bounds: Bounds) -> Move:
    """Add one of `increments` to a hyperparameter.

    Args:
        hyperparam: its name in the optimizer's factory.
        increments: each finite; 0 holds.
        bounds: smallest and largest value allowed.

    Returns:
        A `Move`.

    Raises:
        ValueError: no increment, one that is not finite, or crossed bounds.

    Example:
        >>> optax_meta.actions.add("b1", (-0.01, 0.0, 0.01), bounds=(0.5, 0.99)).amounts
        (-0.01, 0.0, 0.01)
    """
    return _move(hyperparam, "add", increments, bounds)


def log_step(hyperparam: str, steps: Sequence[float], *, bounds: Bounds = (1e-8, 10.0)) -> Move:
    """Add one of `steps` to the natural logarithm of a hyperparameter.

    Args:
        hyperparam: its name in the optimizer's factory.
        steps: each finite, in nats; 0 holds.
        bounds: smallest and largest value allowed, both > 0.

    Returns:
        A `Move`.

    Raises:
        ValueError: no step, one that is not finite, crossed bounds, or a bound ≤ 0.

    Example:
        >>> optax_meta.actions.log_step("eps", (-0.2, 0.0, 0.2), bounds=(1e-9, 1e-3)).kind
        'log'
    """
    if not bounds[0] > 0.0:
        raise ValueError(f"`bounds` of a step in log-space must be positive, got {bounds}")
    return _move(hyperparam, "log", steps, bounds)


def level(
    hyperparam: str,
    factors: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
    *,
    bounds: Bounds = (1e-12, 1e6),
) -> Move:
    """Set a hyperparameter to one of `factors` times what it would be if nobody chose.

    Unlike a factor that was applied, a level is left again: choices do not add up, so that their
    logarithm cannot wander off.

    Args:
        hyperparam: its name in the optimizer's factory.
        factors: each in (0, 1000]; 1 for what the wrappers would do, or for the start.
        bounds: smallest and largest value allowed; what they clip stays clipped.

    Returns:
        A `Move`.

    Raises:
        ValueError: no factor, one out of range, or crossed bounds.

    Source: few arms that are rates, not changes of them, H. Donâncio et al., "Dynamic Learning Rate
    for Deep Reinforcement Learning: A Bandit Approach", https://arxiv.org/abs/2410.12598.

    Example:
        >>> optax_meta.actions.level("learning_rate").amounts
        (0.25, 0.5, 1.0, 2.0, 4.0)
    """
    return scale(hyperparam, factors, bounds=bounds)._replace(kind="level")


_HOLD = {"scale": 1.0, "add": 0.0, "log": 0.0, "level": 1.0}


def positions(move: Move) -> np.ndarray:
    """Return how far from hold each choice lies, in nats.

    Args:
        move: any but one of increments.

    Returns:
        float64[choices].

    Example:
        >>> print(positions(optax_meta.actions.level("eps", (0.5, 1.0))).round(2))
        [-0.69  0.  ]
    """
    amounts = np.asarray(move.amounts)
    return amounts if move.kind == "log" else np.log(amounts)


def hold_choice(move: Move) -> int | None:
    """Return the choice that changes nothing, None where there is none."""
    identity = _HOLD[move.kind]
    return move.amounts.index(identity) if identity in move.amounts else None


def label(move: Move, amount: float) -> str:
    """Return a short name for a choice, empty for the one that changes nothing."""
    if amount == _HOLD[move.kind]:
        return ""
    effect = {
        "scale": f"×{amount:.3g}",
        "add": f"{amount:+g}",
        "log": f"×e^{amount:g}",
        "level": f"at ×{amount:.3g}",
    }[move.kind]
    return f"{move.hyperparam} {effect}"


def apply_move(
    move: Move, choice: np.ndarray, action: jax.Array, last_action: jax.Array, value: jax.Array
) -> jax.Array:
    """Apply a move, of which `choice` says for each action what it does."""
    value = jnp.asarray(value)
    amounts = np.asarray(move.amounts)[choice]
    effects = jnp.asarray(np.exp(amounts) if move.kind == "log" else amounts, value.dtype)
    amount = effects[action]
    if move.kind == "level":
        # In proportion to the last level, so that a value that somebody else changed stays changed.
        amount /= jnp.where(last_action < 0, jnp.ones_like(amount), effects[last_action])
    return jnp.clip(value + amount if move.kind == "add" else value * amount, *move.bounds)


def wider_move(move: Move, span: float) -> Move:
    """Return a move with further levels up to a factor, as far apart as the last two on a side."""
    inside, below, above = sorted(set(move.amounts)), [], []
    if len(inside) > 1 and inside[0] < 1.0:
        below = _further(inside[0], inside[0] / inside[1], 1.0 / span)
    if len(inside) > 1 and inside[-1] > 1.0:
        above = _further(inside[-1], inside[-1] / inside[-2], span)
    return move._replace(amounts=(*reversed(below), *move.amounts, *above))


def _further(last: float, ratio: float, end: float) -> list[float]:
    """Return what follows `last` in a geometric row up to `end`, with some slack for rounding."""
    count = math.floor(math.log(end / last) / math.log(ratio) + 1e-6)
    return [last * ratio**k for k in range(1, count + 1)]


def check_bounds(bounds: Bounds) -> Bounds:
    """Return `bounds` as two floats.

    Args:
        bounds: smallest and largest value allowed.

    Raises:
        ValueError: they are no two numbers, or crossed, equal or nan.

    Example:
        >>> optax_meta.actions.check_bounds((0, 1))
        (0.0, 1.0)
    """
    try:
        low, high = map(float, bounds)
    except (TypeError, ValueError):
        low = high = math.nan
    if not low < high:
        raise ValueError(f"`bounds` must be (low, high) with low < high, got {bounds!r}")
    return low, high


def _move(hyperparam: str, kind: str, amounts: Sequence[float], bounds: Bounds) -> Move:
    amounts = tuple(float(amount) for amount in amounts)
    if not amounts or not all(map(math.isfinite, amounts)):
        raise ValueError(f"`{hyperparam}` needs at least one choice, all finite, got {amounts}")
    return Move(hyperparam, kind, amounts, check_bounds(bounds))
