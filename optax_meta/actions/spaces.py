"""Action spaces: what a policy may do in one decision."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_meta.actions.moves import (
    LARGEST_FACTOR,
    Move,
    add,
    apply_move,
    hold_choice,
    label,
    level,
    scale,
    wider_move,
)
from optax_meta.base import Bounds, Hyperparams
from optax_meta.checks import check_number


class ActionSpace(NamedTuple):
    """What a policy may do in one decision.

    Attributes:
        moves: one for each hyperparameter steered.
        factored: whether the policy has one head for each move, chosen independently (Σ choices
            logits), in place of one logit for each combination (Π choices logits).
        spread: of `ordered`, in nats; 0 for a logit for each choice.

    Example:
        >>> optax_meta.actions.classic().hyperparams
        ('learning_rate', 'weight_decay')
    """

    moves: tuple[Move, ...]
    factored: bool = False
    spread: float = 0.0

    @property
    def hyperparams(self) -> tuple[str, ...]:
        """Names of the hyperparameters steered, in the order of the moves."""
        return tuple(move.hyperparam for move in self.moves)

    @property
    def increments(self) -> tuple[str, ...]:
        """Names of those that are moved from where they are rather than set to a level."""
        return tuple(move.hyperparam for move in self.moves if move.kind != "level")

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
        if self.spread:
            return len(self.moves)
        return sum(self.shape) if self.factored else self.num_actions


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


def ordered(*moves: Move, spread: float = 0.25) -> ActionSpace:
    """Span the product with one number for each move: where among its choices the policy stands.

    A choice that lies x nats from hold is taken with a probability in proportion to
    exp(-(x - μ)²/2s²), where the network's output μ is 0 at first and s is the spread. What is
    learned of one choice tells of its neighbours, so that few parameters and few runs do.

    Args:
        *moves: one for each hyperparameter, of factors or steps in log-space.
        spread: s, in nats, > 0: how far around it chooses while it explores.

    Returns:
        An `ActionSpace`.

    Raises:
        ValueError: as `joint`; a move adds; or the spread is out of range.

    Source: a discretized Gaussian policy, as in Y. Tang and S. Agrawal, "Discretizing Continuous
    Action Space for On-Policy Optimization", https://arxiv.org/abs/1901.10500.

    Example:
        >>> space = ordered(level("learning_rate", (0.5, 1.0, 2.0)))
        >>> print(np.exp(optax_meta.actions.log_probs(space, jnp.zeros(1))).round(2))
        [0.02 0.96 0.02]
    """
    if adds := [move.hyperparam for move in moves if move.kind == "add"]:
        raise ValueError(
            f"`{adds[0]}` is moved by increments, which have no logarithm: use factors"
        )
    check_number("spread", spread)
    if not 0.0 < spread < math.inf:
        raise ValueError(f"`spread` must be positive and finite, got {spread}")
    return _space(moves, factored=True)._replace(spread=float(spread))


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


def levels(
    factors: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0), *, bounds: Bounds = (1e-12, 1e6)
) -> ActionSpace:
    """Choose the level of the learning rate, relative to what the wrappers would do.

    Args:
        factors: each in (0, 1000]; 1 for what they would do.
        bounds: smallest and largest learning rate of the policy's own.

    Returns:
        An `ActionSpace`.

    Raises:
        ValueError: as `level`.

    Example:
        >>> optax_meta.actions.labels(optax_meta.actions.levels((0.5, 1.0)))
        ('learning_rate at ×0.5', 'hold')
    """
    return joint(level("learning_rate", factors, bounds=bounds))


def wider(space: ActionSpace, hyperparam: str, span: float) -> ActionSpace:
    """Add levels of a hyperparameter beyond the outermost ones, as far apart as the last two.

    Args:
        space: what to choose from so far.
        hyperparam: whose levels reach further then. There are no more of them below where none lies
            below 1, nor above where none lies above; nothing changes where it has no levels.
        span: how far up and down, as a factor in [1, 1000]; levels that reach further stay.

    Returns:
        An `ActionSpace` that holds wherever `space` does. A policy with a logit for each choice
        does not fit it; one with `ordered` actions does.

    Raises:
        ValueError: `span` is out of range.

    Example:
        >>> space = ordered(level("learning_rate", (0.5, 1.0, 2.0)))
        >>> wider(space, "learning_rate", 4.0).moves[0].amounts
        (0.25, 0.5, 1.0, 2.0, 4.0)
    """
    check_number("span", span, 1.0)
    if not span <= LARGEST_FACTOR:
        raise ValueError(f"`span` must be at most {LARGEST_FACTOR:g}, got {span}")
    moves = [
        wider_move(move, float(span))
        if (move.hyperparam, move.kind) == (hyperparam, "level")
        else move
        for move in space.moves
    ]
    return space._replace(moves=tuple(moves))


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


def apply(
    space: ActionSpace,
    action: jax.Array,
    hyperparams: Hyperparams,
    last_action: jax.typing.ArrayLike = -1,
) -> Hyperparams:
    """Return the hyperparameters after `action`, clamped to the bounds of each move.

    Args:
        space: the action space.
        action: int32[], in [0, num_actions).
        hyperparams: current values, float[] each; those not steered are passed through.
        last_action: that came before, int32[], whose levels are left; -1 for none.

    Returns:
        A new dict with the dtypes of `hyperparams`. A choice that holds changes no bit.

    Example:
        >>> space = optax_meta.actions.learning_rate()
        >>> new = optax_meta.actions.apply(space, jnp.array(2), {"learning_rate": jnp.array(0.5)})
        >>> print(new["learning_rate"])
        1.0
    """
    choices = np.unravel_index(np.arange(space.num_actions), space.shape)
    last = jnp.asarray(last_action, jnp.int32)
    moved = {
        move.hyperparam: apply_move(move, choice, action, last, hyperparams[move.hyperparam])
        for move, choice in zip(space.moves, choices, strict=True)
    }
    return {**hyperparams, **moved}


def factors(
    space: ActionSpace, hyperparam: str, last_action: jax.typing.ArrayLike = -1
) -> jax.Array | None:
    """Return by which factor each action changes a hyperparameter.

    Args:
        space: the action space.
        hyperparam: name of one.
        last_action: as for `apply`.

    Returns:
        float32[num_actions]; None where it is not steered, or by increments.

    Example:
        >>> print(optax_meta.actions.factors(optax_meta.actions.learning_rate(), "learning_rate"))
        [0.5 1.  2. ]
    """
    if hyperparam not in space.hyperparams:
        return None
    index = space.hyperparams.index(hyperparam)
    if space.moves[index].kind == "add":
        return None
    wide = space.moves[index]._replace(bounds=(-math.inf, math.inf))
    choice = np.unravel_index(np.arange(space.num_actions), space.shape)[index]
    every = jnp.arange(space.num_actions)
    last = jnp.asarray(last_action, jnp.int32)
    return apply_move(wide, choice, every, last, jnp.ones(space.num_actions, jnp.float32))


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
    choices = [hold_choice(move) for move in space.moves]
    if any(choice is None for choice in choices):
        return None
    return int(np.ravel_multi_index([choice or 0 for choice in choices], space.shape))


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
    named = [[label(move, amount) for amount in move.amounts] for move in space.moves]
    return tuple(", ".join(filter(None, choice)) or "hold" for choice in itertools.product(*named))


def _space(moves: Sequence[Move], *, factored: bool) -> ActionSpace:
    names = [move.hyperparam for move in moves]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"an action space needs one move for each hyperparameter, got {names}")
    return ActionSpace(tuple(moves), factored)
