"""A wrapper: the starting rate is forgotten; rates are counted in shares of the way ahead."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_meta.base import Controller, Hyperparams, State, check_wrapped
from optax_meta.checks import Number, check_number, check_numbers, check_whole, is_set
from optax_meta.controllers.decaying import DECAY_OF_MOVE, decay_at, decaying
from optax_meta.controllers.way import Way, share_of_distance
from optax_meta.metrics import USUAL_RATE, Metrics
from optax_meta.origins import keep_origin

RATE, DECAY = "learning_rate", "weight_decay"
_USUAL_DECAY = 1e-4
_LARGEST_JUMP = 1e3
"""A rate changes by no more than this from one decision to the next, however little it moved."""
_MEMORY = 0.99
"""Decay, a step, of the average of what a unit rate moves: long against the noise of one step."""
_RETREAT, _RETURN, _FURTHEST = 0.5, 1.2, 0.03
"""Where no step was finite the rate is halved: it may be too high. It comes back slowly, a step,
since loss scaling skips steps that were not, but at a decision no slower than it went, and it never
goes further than this: ten corrupt batches in a row must not cost the rest of the run."""
_SPANNED = 2.0
"""So much more than usual a unit rate moves at most, as long as the rate has not come back."""
_PROBE_RATIO = 1e-2
"""No probe moves further than this share of the parameters' norm, if moves were gradient steps."""


class CalibratedState(NamedTuple):
    """State of `calibrated`.

    Attributes:
        values: the controller's own value, what was returned for it, and the own value before the
            first step, float[3].
        last: as in `_Last`, float32[12].
        unit: sum over moves of the root mean square that a unit rate moves, and of their weights,
            older ones decayed, float32[2].
        controller_state: what the controller carries.
    """

    values: jax.Array
    last: jax.Array
    unit: jax.Array
    controller_state: State


class _Last(NamedTuple):
    """What a decision needs to know of the last one, float32[] each.

    Attributes:
        way: that was come, nine numbers.
        kept: the factor that steps which are not finite left.
        decaying: what share of the parameters decays in a step.
        highest: loss so far.
    """

    way: Way
    kept: jax.Array
    decaying: jax.Array
    highest: jax.Array

    @classmethod
    def unpack(cls, packed: jax.Array) -> "_Last":
        """Read what `pack` wrote."""
        size = len(Way._fields)
        return cls(Way(*packed[:size]), *packed[size:])

    def pack(self) -> jax.Array:
        """Return all numbers in one vector, float32[12]."""
        return jnp.stack([x.astype(jnp.float32) for x in jax.tree.leaves(self)])


class _Calibration(NamedTuple):
    """The static part of `calibrated`."""

    controller: Controller
    share: Number
    growing_share: Number
    length_power: Number
    steps: int
    probe_rate: Number
    total_decay: Number
    largest_decay: Number
    span: Number


@keep_origin
def calibrated(
    controller: Controller,
    *,
    share: Number = 0.4,
    growing_share: Number = 1.5,
    length_power: Number = 0.25,
    steps: int = 20,
    probe_rate: Number = 1e-6,
    total_decay: Number = 0.0,
    largest_decay: Number = DECAY_OF_MOVE,
    span: Number = math.inf,
) -> Controller:
    """Count the learning rate in what moves the parameters by a share of the way ahead of them.

    The optimizer gets own value / first own value × c·d/u. Here d is how far parameters have to go
    at least (`Metrics.distance`), which grows as gradients tell; u the root mean square of what a
    rate of one moves them by, measured for any optimizer; and c the `share`. So the starting rate
    is forgotten, and a controller that holds follows the distance rule; one that halves its value
    moves half as far as that. Where gradients point back along the way come, so that the optimum
    was passed and moves are noise around it, c falls; where moves lead downhill for certain, it
    rises, up to four times. Where moves add up more than under a momentum
    of 0.9, as Lion's do, c is lower in proportion; where less, as under plain SGD, higher. The very
    first update, before anything moved, is a probe. The controller keeps its own value; what
    somebody else changes, a wrapper around this one or `optax_meta.set_hyperparams`, the own value
    follows in proportion.

    An optimizer that accumulates gradients must make its first move within five steps. Where all
    parameters start at zero, which tells no scale, their root mean square counts as 0.1.

    Args:
        controller: any that steers `learning_rate` and goes on from the rate that it is given: a
            warm-up, which sets its own, gives its rates a meaning that they do not have. `annealed`
            goes around.
        share: c, ≥ 0: root mean square of a move over the distance, under a momentum of about 0.9.
            After sixty moves the way come over the root of the sum of their squares says how far
            they add up. That is 3 to 5 there; where it is less, as under plain SGD, c is times 3
            over that, where it is more, as under Lion, times 5 over that, up to three times either
            way.
        growing_share: c where the distance has grown by a seventh in each of the last steps, and
            in between where it has by less: parameters started far too small, and so far the way
            ahead is only known to be longer than that.
        length_power: in a run of length T both shares are times (1000/T) to this power, ≥ 0:
            shorter runs have fewer moves to get there. Runs of fewer than 100 steps count as that
            long, those of unknown length as 16,000 steps.
        steps: so many of the first steps are decided upon each, ≥ 1, while the distance is found.
        probe_rate: largest learning rate of the very first update, ≥ 0; it is lower still where
            gradients are so large that a gradient step would pass a hundredth of the parameters.
        total_decay: for a controller of `weight_decay`, too, in a run of known length: rate × decay
            of the first decisions but that of step 0 is this over the number of steps, so that the
            starting decay is forgotten, too; later it is what the controller made of that. It is
            less where it would be more than a tenth of a move, and at step 0 takes no more than a
            hundredth off the parameters. 0 for leaving it alone.
        largest_decay: share of a move, ≥ 0, that decay may become where the training loss is below
            a tenth of its highest and falls on: examples are learned by heart then, and what is
            not in them is better forgotten. 2 for small tables; where the loss may vanish since
            data have no noise, or begins far too high, this keeps it from getting there.
        span: the controller may move its own value by no more than this factor up or down, ≥ 1, so
            that what knows nothing yet cannot wander off; `math.inf` for as far as it likes.

    Returns:
        A `Controller`. Needs `params=`. What it forgets may be left out where the optimizer is
        made.

    Raises:
        ValueError: this is no controller of the learning rate, or a number is out of range.

    Source: the distance from K. Mishchenko and A. Defazio, "Prodigy: An Expeditiously Adaptive
    Parameter-Free Learner", https://arxiv.org/abs/2306.06101; starting low and probing up from
    A. Cutkosky et al., "Mechanic: A Learning Rate Tuner", https://arxiv.org/abs/2306.00144;
    rate · weight decay · steps as the measure of decay from X. Wang and L. Aitchison, "How to set
    AdamW's weight decay as you scale model and dataset size", https://arxiv.org/abs/2405.13698.

    Example:
        >>> controller = calibrated(optax_meta.plateau(factor=0.5))
        >>> tx = optax_meta.control_hyperparams(optax.adamw, controller)(weight_decay=0.1)
    """
    check_wrapped("calibrated", controller, RATE)
    steps = check_whole("steps", steps)
    check_numbers(
        share=share,
        growing_share=growing_share,
        length_power=length_power,
        probe_rate=probe_rate,
        total_decay=total_decay,
        largest_decay=largest_decay,
    )
    check_number("span", span, 1.0)
    if RATE in controller.default_start:
        raise ValueError(
            "`calibrated` must go around a controller that is not calibrated yet: use it once"
        )
    low, high = controller.bounds.get(RATE, (0.0, math.inf))
    forgotten = {RATE: min(max(USUAL_RATE, low), high)}
    if DECAY in controller.hyperparams and is_set(total_decay, 0.0):
        forgotten[DECAY] = _USUAL_DECAY
    setting = _Calibration(
        controller,
        share,
        growing_share,
        length_power,
        steps,
        probe_rate,
        total_decay,
        largest_decay,
        span,
    )
    return controller._replace(
        init=partial(_init, setting),
        update=partial(_update, setting),
        dense_steps=_dense(controller, steps),
        needs_alignment=True,
        default_start={**controller.default_start, **forgotten},
    )


def _dense(controller: Controller, steps: int) -> Any:
    if isinstance(controller.dense_steps, int):
        return max(controller.dense_steps, steps)
    return lambda step: controller.is_dense(step) | (step < steps)


def _init(setting: _Calibration, hyperparams: Hyperparams) -> CalibratedState:
    start = hyperparams[RATE]
    start = jnp.where(start == 0.0, jnp.asarray(USUAL_RATE, start.dtype), start)
    values, unit = jnp.stack([start, start, start]), jnp.zeros(2, jnp.float32)
    last = _Last(Way.unknown(), *map(jnp.float32, (1.0, 0.0, 0.0)))
    return CalibratedState(values, last.pack(), unit, setting.controller.init(hyperparams))


def _update(
    setting: _Calibration, metrics: Metrics, state: CalibratedState, hyperparams: Hyperparams
) -> tuple[Hyperparams, CalibratedState]:
    given, first, controller = hyperparams[RATE], state.values[2], setting.controller
    returned = controller.keep_in_bounds(RATE, state.values[1], state.values[1], metrics.bounds)
    own, before = _own(state, returned, given), _Last.unpack(state.last)
    last = _after(before, metrics, has_moved=state.unit[1] > 0.0)
    moves, unit = _unit(metrics, state.unit, given, last.kept)
    shares = setting.share, setting.growing_share, setting.length_power
    wanted = share_of_distance(last.way, metrics, *shares) * last.kept * metrics.distance
    lead = _lead(setting, metrics, wanted, moves, given)
    total, largest = setting.total_decay, setting.largest_decay
    last = last._replace(decaying=decaying(metrics, wanted, last.highest, total, largest))
    leading = {**hyperparams, RATE: own}
    if DECAY in hyperparams and is_set(total, 0.0):
        was = state.values[1] * first / jnp.where(state.values[0] == 0.0, first, state.values[0])
        change = last.decaying / jnp.maximum(before.decaying, 1e-30)
        was = was * jnp.where(before.decaying > 0.0, change, 1.0)
        dense: Any = _dense(controller, setting.steps)
        is_first: Any = dense(metrics.step) if callable(dense) else metrics.step < dense
        decay = hyperparams[DECAY]
        leading[DECAY] = decay_at(lead, last.decaying, decay, was, metrics, is_first=is_first)
    decided, controller_state = controller.update(metrics, state.controller_state, leading)
    new = controller.keep_in_bounds(RATE, own, decided[RATE])
    if is_set(setting.span, math.inf):
        sizes = jnp.abs(first) / setting.span, jnp.abs(first) * setting.span
        new = jnp.sign(first) * jnp.clip(jnp.abs(new), *sizes)
    level = jnp.where(unit[1] > 0.0, new / first, 1.0)
    value = jnp.where(metrics.is_over, given, (jnp.sign(first) * lead * level).astype(given.dtype))
    value = controller.keep_in_bounds(RATE, given, value, metrics.bounds)
    values = jnp.stack([new, value, first])
    return {**decided, RATE: value}, CalibratedState(values, last.pack(), unit, controller_state)


def _own(state: CalibratedState, returned: jax.Array, given: jax.Array) -> jax.Array:
    """Return the controller's own value, changed in proportion where somebody else did."""
    own = state.values[0]
    # A bit that differs from what was returned is somebody else's change.
    changed = own * (given / jnp.where(returned == 0.0, 1.0, returned))
    is_own = (given == returned) | (returned == 0.0)
    # Before a move was seen the rate is forgotten: that of the run's start, or of another stage.
    return jnp.where(is_own | (state.unit[1] == 0.0), own, changed)


def _after(last: _Last, metrics: Metrics, *, has_moved: jax.Array) -> _Last:
    """Return what is known after the steps since the last decision."""
    kept = last.kept
    back = jnp.minimum(_RETURN**metrics.num_steps, 1.0 / _RETREAT)
    kept = jnp.where(metrics.saw_finite, jnp.minimum(back * kept, 1.0), kept)
    has_moved |= metrics.num_moves > 0.0
    retreated = jnp.maximum(_RETREAT * kept, _FURTHEST)
    kept = jnp.where(~metrics.saw_finite & has_moved, retreated, kept)
    highest = jnp.maximum(last.highest, metrics.value)
    return _Last(last.way.after(metrics), kept, last.decaying, highest)


def _unit(
    metrics: Metrics, unit: jax.Array, given: jax.Array, kept: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return what a unit rate moves now at most, float32[], and its average, float32[2]."""
    used = jnp.abs(metrics.hyperparams.get(RATE, given)).astype(jnp.float32)
    moved = metrics.update_rms / jnp.maximum(used, 1e-30)
    tells = (metrics.num_moves > 0.0) & (used > 0.0) & (moved > 0.0) & jnp.isfinite(moved)
    moved = jnp.where(tells, moved, 0.0)
    # After steps that were not finite a move is that of several, under rates that were higher.
    most = _SPANNED * unit[0] / jnp.maximum(unit[1], 1e-30)
    moved = jnp.where((kept < 1.0) & (unit[1] > 0.0), jnp.minimum(moved, most), moved)
    left = jnp.where(tells, _MEMORY**metrics.num_moves, 1.0)
    unit = left * unit + (1.0 - left) * jnp.stack([moved, 1.0])
    usual = unit[0] / jnp.maximum(unit[1], 1e-30)
    # Moves that become longer count at once: the next one is shorter, as if gradients were clipped.
    return jnp.maximum(moved, usual), unit


def _lead(
    setting: _Calibration,
    metrics: Metrics,
    wanted: jax.Array,
    moves: jax.Array,
    given: jax.Array,
) -> jax.Array:
    """Return the rate at which a move has the wanted root mean square, to be used next, float[]."""
    used = jnp.abs(given).astype(jnp.float32)
    rate = wanted / jnp.maximum(moves, 1e-30)
    rate = jnp.clip(rate, used / _LARGEST_JUMP, used * _LARGEST_JUMP)
    # Where no move was ever seen it may be too small to show, or gradients are accumulated.
    tells = (metrics.grad_norm > 0.0) & (metrics.num_judged > 0.0)
    to_show = metrics.visible_rate(_PROBE_RATIO, used)
    blind = jnp.where(tells & metrics.saw_finite, to_show, used)
    steepest = metrics.steepest_rate(_PROBE_RATIO)
    probe = jnp.minimum(setting.probe_rate, jnp.where(steepest > 0.0, steepest, jnp.inf))
    blind = jnp.where(metrics.step > 0, blind, jnp.minimum(used, probe))
    return jnp.where(moves > 0.0, rate, blind).astype(given.dtype)
