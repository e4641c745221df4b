"""A hand on a running state: hyperparameters, what holds them, and the length of the run.

Pure functions of any state that holds controlled optimizers, to be jitted or not. What they change
is part of the state, so that checkpoints keep it.
"""

import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from optax_meta import tracking
from optax_meta.checks import Number, check_whole, is_real_scalar
from optax_meta.horizon import planned
from optax_meta.metrics import LARGEST
from optax_meta.state import (
    ByHand,
    ControlState,
    find_control_states,
    full_name,
    replace_control_states,
)
from optax_meta.tracking import Statistics

_LARGEST_STEP = 2**30


def set_hyperparams(opt_state: Any, /, **values: jax.typing.ArrayLike) -> Any:
    """Set hyperparameters by hand; the controller goes on from there.

    The values hold from the next update on, clipped to the controller's bounds there, until the
    controller decides otherwise: at its next decision, which a rule that holds leaves alone, or
    where they are frozen never. A value that turns out not to be finite under `jit` changes
    nothing.

    Args:
        opt_state: as for `optax_meta.hyperparams`.
        **values: scalars by name; names as `optax_meta.hyperparams` returns them.

    Returns:
        `opt_state` with the new values, in the dtype of the old ones.

    Raises:
        ValueError: the state holds no controlled optimizer or does not steer one of the names, or a
            value is no finite real scalar.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.plateau())(0.5)
        >>> state = optax_meta.set_hyperparams(tx.init(jnp.zeros(2)), learning_rate=0.25)
        >>> print(optax_meta.hyperparams(state)["learning_rate"])
        0.25
    """
    _check_names(opt_state, values)
    for name, value in values.items():
        _check_value(name, value)

    def change(label: str, state: ControlState) -> ControlState:
        state = state.with_arrays()
        new = {
            name: _replaced(old, values.get(full_name(label, name)))
            for name, old in state.hyperparams.items()
        }
        return _unjudged(state).with_hyperparams(new)

    return replace_control_states(opt_state, change)


def freeze(opt_state: Any, /, *names: str) -> Any:
    """Hold hyperparameters where they are, whatever the controller decides.

    It is still asked and goes on seeing the run. What it keeps of its own follows the frozen value,
    as one that was set by hand, so that after `unfreeze` it goes on from there. A frozen value can
    be set by `set_hyperparams`, and stays within its bounds.

    Args:
        opt_state: as for `optax_meta.hyperparams`.
        *names: which, as `optax_meta.hyperparams` returns them; all where none is given.

    Returns:
        `opt_state` with these frozen.

    Raises:
        ValueError: the state holds no controlled optimizer or does not steer one of the names.

    Example:
        >>> controller = optax_meta.annealed(optax_meta.constant(), total_steps=4)
        >>> tx = optax_meta.control_hyperparams(optax.sgd, controller)(1.0)
        >>> x = jnp.zeros(2)
        >>> state = optax_meta.freeze(tx.init(x), "learning_rate")
        >>> for _ in range(3):
        ...     _, state = tx.update(x, state, x)
        >>> print(optax_meta.hyperparams(state)["learning_rate"])
        1.0
    """
    return _frozen(opt_state, names, is_frozen=1.0)


def unfreeze(opt_state: Any, /, *names: str) -> Any:
    """Let the controller move again what `freeze` held; it goes on from the frozen value.

    A rule that sets its values, such as `warmup`, sets them again.

    Args:
        opt_state: as for `optax_meta.hyperparams`.
        *names: which, as `optax_meta.hyperparams` returns them; all where none is given.

    Returns:
        `opt_state` with these free.

    Raises:
        ValueError: the state holds no controlled optimizer or does not steer one of the names.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.plateau())(0.5)
        >>> state = optax_meta.unfreeze(optax_meta.freeze(tx.init(jnp.zeros(2))))
    """
    return _frozen(opt_state, names, is_frozen=0.0)


def set_bounds(opt_state: Any, /, **bounds: tuple[Number, Number] | None) -> Any:
    """Bound hyperparameters from now on, within the bounds that the controller was made with.

    They hold from the next update on, for whatever the controller decides or a hand sets. Under
    `jit`, bounds that turn out to be nan or in the wrong order change nothing.

    Args:
        opt_state: as for `optax_meta.hyperparams`.
        **bounds: smallest and largest value by name, scalars, as float32; infinite for any, None
            for no bounds but the controller's. Names as `optax_meta.hyperparams` returns them.

    Returns:
        `opt_state` with the new bounds.

    Raises:
        ValueError: the state holds no controlled optimizer or does not steer one of the names, or
            bounds are no two real scalars in order.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.constant())(0.5)
        >>> x = jnp.zeros(2)
        >>> state = optax_meta.set_bounds(tx.init(x), learning_rate=(1e-5, 1e-2))
        >>> print(optax_meta.hyperparams(tx.update(x, state, x)[1])["learning_rate"])
        0.01
    """
    _check_names(opt_state, bounds)
    pairs = {name: _pair(name, pair) for name, pair in bounds.items()}

    def change(held: ByHand, position: int, name: str) -> ByHand:
        pair = (jnp.asarray(bound).astype(jnp.float32) for bound in pairs[name])
        low, high = (jnp.clip(bound, -LARGEST, LARGEST) for bound in pair)
        # Of traced ones nothing was checked.
        is_in_order = low <= high
        low = jnp.where(is_in_order, low, held.low[position])
        high = jnp.where(is_in_order, high, held.high[position])
        return held._replace(
            low=held.low.at[position].set(low), high=held.high.at[position].set(high)
        )

    return _changed(opt_state, pairs, change)


def set_horizon(opt_state: Any, /, *, total_steps: Number) -> Any:
    """Set the length of the run: one that was not known, or is extended or cut.

    It counts in place of the `total_steps` that the controller was made with, at any time and as
    often as one likes; not where `progress` is passed to `update`, which counts more. No rate
    jumps. `Metrics.progress` goes on from where it was: in a run that is cut, or whose length
    becomes known late, evenly to one at the new end. In one that is extended it falls back to
    step / total_steps within a tenth of what is left: what was given up of the peak is not made up
    for at once. So a run that had ended is warmed up again. A length that is not beyond the
    present step ends the run: its rate stays as it is.

    Args:
        opt_state: as for `optax_meta.hyperparams`; all controlled optimizers in it.
        total_steps: from the first step on, counted in calls of `update`, ≥ 1; int32[] may be
            traced, and changes nothing below 1. Exact up to 2²⁴.

    Returns:
        `opt_state` with the new length. A stage of `join` that was made with a length of its own
        keeps that.

    Raises:
        ValueError: the state holds no controlled optimizer, or `total_steps` is no whole number.

    Source: A. Ibrahim et al., "Simple and Scalable Strategies to Continually Pre-train Large
    Language Models", https://arxiv.org/abs/2403.08763, for warming up again.

    Example:
        >>> controller = optax_meta.learned("any-lr-v2", total_steps=1000)
        >>> state = optax_meta.control_hyperparams(optax.adamw, controller)().init(jnp.ones(3))
        >>> state = optax_meta.set_horizon(state, total_steps=4000)
    """
    total_steps = _steps("total_steps", total_steps)
    return _planned(opt_state, lambda _: (total_steps, total_steps), is_cooldown=False)


def cooldown(opt_state: Any, /, *, steps: Number) -> Any:
    """Anneal over the next steps, from where the run is to its end.

    For a run without a horizon, whose rate was held so far (warm-up, stable, decay): the state
    before it can be kept, and cooled down again later or over another number of steps. In a run
    with a horizon, what is left of the fall takes that long. Rates of `annealed` controllers fall
    in proportion to (steps left / steps)ᵏ, k its power, and nothing else changes them: unlike after
    `set_horizon` none goes up to what a run of this length would have had. A run that is over has
    nothing left to anneal: extend it first.

    Args:
        opt_state: as for `optax_meta.hyperparams`; all controlled optimizers in it.
        steps: how many, counted in calls of `update`, ≥ 1; int32[] may be traced, and changes
            nothing below 1. Together with those so far exact up to 2²⁴.

    Returns:
        `opt_state` that ends so many steps later. Where `progress` is passed to `update`, pass none
        from here on, or that of the cooldown, from 0 to 1.

    Raises:
        ValueError: the state holds no controlled optimizer, or `steps` is no whole number.

    Source: S. Hu et al., "MiniCPM: Unveiling the Potential of Small Language Models with Scalable
    Training Strategies", https://arxiv.org/abs/2404.06395; A. Hägele et al., "Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations", https://arxiv.org/abs/2405.18392.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.adamw, optax_meta.learned("any-lr-v2"))()
        >>> trunk = tx.init(jnp.ones(3))  # … train, for as long as you like …
        >>> short = optax_meta.cooldown(trunk, steps=100)
        >>> long = optax_meta.cooldown(trunk, steps=1000)
    """
    steps = _steps("steps", steps)
    return _planned(opt_state, lambda state: (state.step + steps, steps), is_cooldown=True)


def _planned(
    opt_state: Any, ends: Callable[[ControlState], tuple[Number, Number]], *, is_cooldown: bool
) -> Any:
    """Set the length of the run; `ends` returns it, and what must be ≥ 1 for it to count."""

    def change(_: str, state: ControlState) -> ControlState:
        known = Statistics.unpack(state.statistics)
        total, count = (jnp.asarray(x).astype(jnp.float32) for x in ends(state))
        new = planned(known.horizon, total, is_cooldown=is_cooldown)
        new = jax.tree.map(lambda n, old: jnp.where(count >= 1.0, n, old), new, known.horizon)
        return state._replace(statistics=known._replace(horizon=new).pack())

    return replace_control_states(opt_state, change)


def _frozen(opt_state: Any, names: tuple[str, ...], *, is_frozen: float) -> Any:
    _check_names(opt_state, names)

    def change(held: ByHand, position: int, name: str) -> ByHand:
        del name
        return held._replace(is_frozen=held.is_frozen.at[position].set(is_frozen))

    return _changed(opt_state, names or _known(opt_state), change)


def _changed(
    opt_state: Any, names: Collection[str], change: Callable[[ByHand, int, str], ByHand]
) -> Any:
    """Change what holds each of the named hyperparameters."""

    def change_all(label: str, state: ControlState) -> ControlState:
        held = ByHand(*state.by_hand)
        for position, short in enumerate(sorted(state.hyperparams)):
            if (name := full_name(label, short)) in names:
                held = change(held, position, name)
        return _unjudged(state._replace(by_hand=held.pack()))

    return replace_control_states(opt_state, change_all)


def _unjudged(state: ControlState) -> ControlState:
    # No step has seen a move under these yet, and the next sees the last under the old.
    return state._replace(statistics=tracking.unjudged(Statistics.unpack(state.statistics)).pack())


def _known(opt_state: Any) -> list[str]:
    return [
        full_name(label, name)
        for label, state in find_control_states(opt_state).items()
        for name in state.hyperparams
    ]


def _check_names(opt_state: Any, names: Collection[str]) -> None:
    known = _known(opt_state)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"`{unknown[0]}` is not steered by this optimizer: choose from {', '.join(known)}; "
            "`constant(hyperparams=[…])` steers any other"
        )


def _steps(name: str, steps: Number) -> Number:
    steps = check_whole(name, steps)
    if isinstance(steps, int) and steps > _LARGEST_STEP:
        raise ValueError(f"`{name}` must be at most 2³⁰, got {steps}")
    return steps


def _check_value(name: str, value: Any) -> None:
    # What float32 cannot hold would become infinite, and set nothing.
    if not is_real_scalar(value) or not (isinstance(value, Tracer) or abs(float(value)) <= LARGEST):
        raise ValueError(f"`{name}` must be a finite real scalar, got {value!r}")


def _replaced(old: jax.Array, new: Any) -> jax.Array:
    if new is None:
        return old
    value = jnp.asarray(new).astype(old.dtype)
    return jnp.where(jnp.isfinite(value), value, old)


def _pair(name: str, pair: Any) -> tuple[Any, Any]:
    if pair is None:
        return -math.inf, math.inf
    is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(map(is_real_scalar, pair))
    is_traced = is_pair and any(isinstance(bound, Tracer) for bound in pair)
    if not is_pair or not (is_traced or float(pair[0]) <= float(pair[1])):
        raise ValueError(
            f"the bounds of `{name}` must be two real scalars, the smaller first, as in "
            f"`{name}=(1e-5, 1e-2)`, got {pair!r}"
        )
    return pair[0], pair[1]
