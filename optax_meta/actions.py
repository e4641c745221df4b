"""What a policy may do: moves of one hyperparameter, and the spaces they span.

A `Move` lists the choices for one hyperparameter: factors to scale it by, increments to add, or
steps in log-space. An `ActionSpace` combines moves; an action is one integer that picks a choice
of every move, counted like `numpy.unravel_index` (the last move varies fastest).
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_meta.base import Bounds, Hyperparams


class Move(NamedTuple):
    """The choices for one hyperparameter.

    Attributes:
        hyperparam: its name.
        kind: "scale", "add" or "log".
        amounts: factors for "scale", increments for "add", natural-log steps for "log".
        bounds: smallest and largest value allowed.

    Example:
        >>> optax_meta.actions.scale("learning_rate", (0.5, 1.0)).amounts
        (0.5, 1.0)
    """

    hyperparam: str
    kind: str
    amounts: tuple[float, ...]
    bounds: Bounds


class ActionSpace(NamedTuple):
    """What a policy may do in one decision.

    Attributes:
        moves: one for each hyperparameter steered.
        factored: whether the policy has one head for each move, chosen independently (Σ choices
            logits), in place of one logit for each combination (Π choices logits).

    Example:
        >>> optax_meta.actions.classic().hyperparams
        ('learning_rate', 'weight_decay')
    """

    moves: tuple[Move, ...]
    factored: bool = False

    @property
    def hyperparams(self) -> tuple[str, ...]:
        """Names of the hyperparameters steered, in the order of the moves."""
        return tuple(move.hyperparam for move in self.moves)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of choices of each move."""
        return tuple(len(move.amounts) for move in self.moves)

    @property
    def num_actions(self) -> int:
        """Number of distinct actions."""
        return math.prod(self.shape)

    @property
    def num_logits(self) -> int:
        """Number of outputs the policy network needs."""
        return sum(self.shape) if self.factored else self.num_actions


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
    if not all(0.0 < factor <= 1e3 for factor in factors):
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


def joint(*moves: Move) -> ActionSpace:
    """Span the Cartesian product of `moves`: one logit for each combination.

    Args:
        *moves: one for each hyperparameter.

    Returns:
        An `ActionSpace`.

    Raises:
        ValueError: no move, or two of one hyperparameter.

    Example:
        >>> space = optax_meta.actions.joint(optax_meta.actions.scale("learning_rate"))
        >>> space.num_actions, space.num_logits
        (3, 3)
    """
    return _space(moves, factored=False)


def factored(*moves: Move) -> ActionSpace:
    """Span the same product with one independent head for each move: fewer logits.

    Args:
        *moves: as for `joint`.

    Returns:
        An `ActionSpace`.

    Raises:
        ValueError: as `joint`.

    Example:
        >>> lr, eps = (optax_meta.actions.scale(name) for name in ("learning_rate", "eps"))
        >>> space = optax_meta.actions.factored(lr, eps)
        >>> space.num_actions, space.num_logits
        (9, 6)
    """
    return _space(moves, factored=True)


def learning_rate(
    factors: Sequence[float] = (0.5, 1.0, 2.0), *, bounds: Bounds = (1e-8, 10.0)
) -> ActionSpace:
    """Steer the learning rate alone, which every optimizer has.

    Args:
        factors: each in (0, 1000]; 1 holds.
        bounds: smallest and largest learning rate.

    Returns:
        An `ActionSpace`.

    Raises:
        ValueError: as `scale`.

    Example:
        >>> space = optax_meta.actions.learning_rate()
        >>> tx = optax_meta.control_hyperparams(
        ...     optax.sgd, optax_meta.reinforce(action_space=space)
        ... )(learning_rate=0.1)
    """
    return joint(scale("learning_rate", factors, bounds=bounds))


def classic(
    factors: Sequence[float] = (0.5, 1.0, 2.0),
    increments: Sequence[float] = (-1e-5, 0.0, 1e-5),
    *,
    learning_rate_bounds: Bounds = (1e-8, 10.0),
    weight_decay_bounds: Bounds = (0.0, 1.0),
) -> ActionSpace:
    """Build the classic nine actions: learning-rate factors × weight-decay increments.

    Args:
        factors: of the learning rate, each in (0, 1000].
        increments: of the weight decay.
        learning_rate_bounds: smallest and largest learning rate.
        weight_decay_bounds: smallest and largest weight decay.

    Returns:
        An `ActionSpace` for optimizers that have both, such as `optax.adamw`.

    Raises:
        ValueError: as `scale` and `add`.

    Example:
        >>> optax_meta.actions.classic().num_actions
        9
    """
    return joint(
        scale("learning_rate", factors, bounds=learning_rate_bounds),
        add("weight_decay", increments, bounds=weight_decay_bounds),
    )


def apply(space: ActionSpace, action: jax.Array, hyperparams: Hyperparams) -> Hyperparams:
    """Return the hyperparameters after `action`, clamped to the bounds of each move.

    Args:
        space: the action space.
        action: int32[], in [0, num_actions).
        hyperparams: current values, float[] each; those not steered are passed through.

    Returns:
        A new dict with the dtypes of `hyperparams`. A choice that holds changes no bit.

    Example:
        >>> space = optax_meta.actions.learning_rate()
        >>> new = optax_meta.actions.apply(space, jnp.array(2), {"learning_rate": jnp.array(0.5)})
        >>> print(new["learning_rate"])
        1.0
    """
    choices = np.unravel_index(np.arange(space.num_actions), space.shape)
    moved = {
        move.hyperparam: _apply_move(move, choice, action, hyperparams[move.hyperparam])
        for move, choice in zip(space.moves, choices, strict=True)
    }
    return {**hyperparams, **moved}


def log_probs(space: ActionSpace, logits: jax.Array) -> jax.Array:
    """Return log π(a) of every action, normalized.

    For a factored space log π(a) = Σₖ log πₖ(aₖ), one softmax for each move.

    Args:
        space: the action space.
        logits: float32[num_logits].

    Returns:
        float32[num_actions].

    Example:
        >>> space = optax_meta.actions.learning_rate()
        >>> print(np.exp(optax_meta.actions.log_probs(space, jnp.zeros(3))).round(2))
        [0.33 0.33 0.33]
    """
    if not space.factored:
        return jax.nn.log_softmax(logits)
    heads = jnp.split(logits, list(itertools.accumulate(space.shape))[:-1])
    total = jnp.zeros((), logits.dtype)
    for head in heads:
        total = total[..., None] + jnp.expand_dims(jax.nn.log_softmax(head), range(total.ndim))
    return total.ravel()


def hold(space: ActionSpace) -> int | None:
    """Return the action that changes nothing, None where the space has none.

    Args:
        space: the action space.

    Returns:
        An index in [0, num_actions), or None.

    Example:
        >>> optax_meta.actions.hold(optax_meta.actions.classic())
        4
    """
    choices = [_hold_choice(move) for move in space.moves]
    if any(choice is None for choice in choices):
        return None
    return int(np.ravel_multi_index([choice or 0 for choice in choices], space.shape))


def hold_logits(space: ActionSpace, probability: float) -> np.ndarray:
    """Return logits that give `probability` to holding and share the rest evenly.

    Args:
        space: an action space that has a hold action.
        probability: in (0, 1); of holding everything, also in a factored space.

    Returns:
        float32[num_logits].

    Raises:
        ValueError: the space has no hold action, or the probability is out of range.

    Example:
        >>> space = optax_meta.actions.learning_rate()
        >>> logits = optax_meta.actions.hold_logits(space, 0.9)
        >>> print(np.exp(optax_meta.actions.log_probs(space, logits)).round(2))
        [0.05 0.9  0.05]
    """
    action = hold(space)
    if action is None:
        raise ValueError(
            "the action space has no hold action: give each move a factor of 1 or a step of 0, "
            'or start with `start="uniform"`'
        )
    if not 0.0 < probability < 1.0:
        raise ValueError(f"`hold_probability` must lie in (0, 1), got {probability}")
    if not space.factored:
        return _peak(space.num_actions, action, probability)
    each = probability ** (1.0 / len(space.moves))
    choices = np.unravel_index(action, space.shape)
    heads = [_peak(n, int(choice), each) for n, choice in zip(space.shape, choices, strict=True)]
    return np.concatenate(heads)


def labels(space: ActionSpace) -> tuple[str, ...]:
    """Return a short name for each action, for tables and legends.

    Args:
        space: the action space.

    Returns:
        As many names as there are actions, in their order.

    Example:
        >>> optax_meta.actions.labels(optax_meta.actions.learning_rate())
        ('learning_rate ×0.5', 'hold', 'learning_rate ×2')
    """
    named = [[_label(move, amount) for amount in move.amounts] for move in space.moves]
    return tuple(", ".join(filter(None, choice)) or "hold" for choice in itertools.product(*named))


_HOLD = {"scale": 1.0, "add": 0.0, "log": 0.0}


def _hold_choice(move: Move) -> int | None:
    identity = _HOLD[move.kind]
    return move.amounts.index(identity) if identity in move.amounts else None


def _label(move: Move, amount: float) -> str:
    if amount == _HOLD[move.kind]:
        return ""
    effect = {"scale": f"×{amount:.3g}", "add": f"{amount:+g}", "log": f"×e^{amount:g}"}[move.kind]
    return f"{move.hyperparam} {effect}"


def _apply_move(move: Move, choice: np.ndarray, action: jax.Array, value: jax.Array) -> jax.Array:
    """Apply a move, of which `choice` says for each action what it does."""
    value = jnp.asarray(value)
    amounts = np.asarray(move.amounts)[choice]
    effects = np.exp(amounts) if move.kind == "log" else amounts
    amount = jnp.asarray(effects, value.dtype)[action]
    return jnp.clip(value + amount if move.kind == "add" else value * amount, *move.bounds)


def _peak(size: int, position: int, probability: float) -> np.ndarray:
    logits = np.zeros(size, np.float32)
    if size > 1:
        logits[position] = np.log(probability * (size - 1) / (1.0 - probability))
    return logits


def _move(hyperparam: str, kind: str, amounts: Sequence[float], bounds: Bounds) -> Move:
    amounts = tuple(float(amount) for amount in amounts)
    if not amounts or not all(map(math.isfinite, amounts)):
        raise ValueError(f"`{hyperparam}` needs at least one choice, all finite, got {amounts}")
    return Move(hyperparam, kind, amounts, check_bounds(bounds))


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


def _space(moves: Sequence[Move], *, factored: bool) -> ActionSpace:
    names = [move.hyperparam for move in moves]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"an action space needs one move for each hyperparameter, got {names}")
    return ActionSpace(tuple(moves), factored)
