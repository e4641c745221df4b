"""A wrapper: the starting rate is forgotten, and one is found that moves the parameters."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_meta.base import Controller, Hyperparams, State, Tree, check_wrapped
from optax_meta.checks import Number, check_number, check_numbers, check_whole, is_set
from optax_meta.metrics import USUAL_RATE, Metrics

RATE, DECAY = "learning_rate", "weight_decay"
_USUAL_DECAY = 1e-4
_LARGEST_JUMP = 1e3
"""A rate changes by no more than this from one step to the next, however little it moved."""
_RETREAT = 0.1
"""Where no step was finite the rate may be far too high: a decade a step finds out in eight."""


class CalibratedState(NamedTuple):
    """State of `calibrated`.

    Attributes:
        reference: the calibrated rate that `span` is counted from, float[]; before, the start; an
            empty tuple without one.
        controller_state: what the controller carries.
    """

    reference: Tree
    controller_state: State


class _Calibration(NamedTuple):
    """The static part of `calibrated`."""

    controller: Controller
    steps: int
    target_ratio: Number
    probe_rate: Number
    total_decay: Number
    span: Number


def calibrated(
    controller: Controller,
    *,
    steps: int = 8,
    target_ratio: Number = 1e-2,
    probe_rate: Number = 1e-6,
    total_decay: Number = 0.0,
    span: Number = math.inf,
) -> Controller:
    """Forget the starting learning rate: probe low, then set it by what a move turns out to be.

    The first update is made at no more than `probe_rate`; each of the next ones scales the rate
    until an update moves the parameters by `target_ratio` of their norm. The controller is given
    the calibrated rate at each of these steps, and its decision is made on top of it; afterwards it
    has the rate for itself. Works for any optimizer and any scale of the parameters, from a strided
    sample of them. An optimizer that accumulates gradients must make its first move within five
    steps; then steps without a move change nothing. Where all parameters start at zero, which
    tells no scale, their root mean square counts as at least 0.1.

    Args:
        controller: any that steers `learning_rate` and goes on from the rate that it is given: a
            warm-up, which sets its own, leaves nothing to calibrate. `annealed` goes around.
        steps: how many of the first steps calibrate, ≥ 1; each is decided upon.
        target_ratio: norm of a move over norm of the parameters to calibrate to, ≥ 0.
        probe_rate: largest learning rate of the very first update, ≥ 0; it is lower still where
            gradients are so large that a gradient step would pass `target_ratio`.
        total_decay: for a controller of `weight_decay`, too, in a run of known length: rate × decay
            of the first decisions but that of step 0 is this over the number of steps, so that the
            starting decay is forgotten, too; before, it takes no more than `target_ratio` off the
            parameters. 0 for leaving it alone.
        span: afterwards the controller may move the rate by no more than this factor up or down
            from the calibrated one, ≥ 1, so that what knows nothing yet cannot wander off;
            `math.inf` for as far as it likes.

    Returns:
        A `Controller`. Needs `params=`. What it forgets may be left out where the optimizer is
        made. Asked by `optax_meta.decide` alone, and not at each of the first steps, it
        calibrates nothing and begins at the rate that it is given.

    Raises:
        ValueError: this is no controller of the learning rate, or a number is out of range.

    Source: the ratio of update to parameters as a measure of the rate is from Y. You et al.,
    "Large Batch Training of Convolutional Networks", https://arxiv.org/abs/1708.03888; starting
    low and probing up from A. Cutkosky et al., "Mechanic: A Learning Rate Tuner",
    https://arxiv.org/abs/2306.00144; rate · weight decay · steps as the measure of decay from
    X. Wang and L. Aitchison, "How to set AdamW's weight decay as you scale model and dataset size",
    https://arxiv.org/abs/2405.13698.

    Example:
        >>> controller = calibrated(optax_meta.plateau(factor=0.5))
        >>> tx = optax_meta.control_hyperparams(optax.adamw, controller)(weight_decay=0.1)
    """
    check_wrapped("calibrated", controller, RATE)
    steps = check_whole("steps", steps)
    check_numbers(target_ratio=target_ratio, probe_rate=probe_rate, total_decay=total_decay)
    check_number("span", span, 1.0)
    if RATE in controller.default_start:
        raise ValueError(
            "`calibrated` must go around a controller that is not calibrated yet: use it once"
        )
    low, high = controller.bounds.get(RATE, (0.0, math.inf))
    forgotten = {RATE: min(max(USUAL_RATE, low), high)}
    if DECAY in controller.hyperparams and is_set(total_decay, 0.0):
        forgotten[DECAY] = _USUAL_DECAY
    setting = _Calibration(controller, steps, target_ratio, probe_rate, total_decay, span)
    return controller._replace(
        init=partial(_init, setting),
        update=partial(_update, setting),
        dense_steps=_dense(controller, steps),
        needs_alignment=True,
        default_start={**controller.default_start, **forgotten},
    )


def _dense(controller: Controller, steps: int) -> Number:
    if isinstance(controller.dense_steps, int):
        return max(controller.dense_steps, steps)
    return lambda step: controller.is_dense(step) | (step < steps)


def _init(setting: _Calibration, hyperparams: Hyperparams) -> CalibratedState:
    has_span = is_set(setting.span, math.inf)
    reference = jnp.array(hyperparams[RATE], copy=True) if has_span else ()
    return CalibratedState(reference, setting.controller.init(hyperparams))


def _update(
    setting: _Calibration, metrics: Metrics, state: CalibratedState, hyperparams: Hyperparams
) -> tuple[Hyperparams, CalibratedState]:
    given = hyperparams[RATE]
    is_early = _is_calibrating(setting, metrics) & ~metrics.is_over
    lead = jnp.where(is_early, _calibrated_rate(setting, metrics, given), given)
    leading = {**hyperparams, RATE: lead, **_calibrated_decay(setting, metrics, hyperparams, lead)}
    # The rate before the first step is forgotten, so that it must not be observed either.
    used = dict(metrics.hyperparams)
    if RATE in used:
        used[RATE] = jnp.where(metrics.step > 0, used[RATE], USUAL_RATE)
    wanted, controller_state = setting.controller.update(
        metrics._replace(hyperparams=used), state.controller_state, leading
    )
    # A raise on top of a rate whose moves do not show yet would be blind.
    is_blind = is_early & (metrics.step > 0) & (metrics.num_moves == 0.0)
    rate = jnp.where(is_blind, jnp.minimum(wanted[RATE], lead), wanted[RATE])
    reference = state.reference
    if isinstance(reference, jax.Array):
        # What others made of the rate, by hand or by clipping it, is where it may be moved from.
        reference = jnp.where(is_early, lead, _within(setting.span, reference, given))
        rate = jnp.where(is_early, rate, _within(setting.span, rate, reference))
    return {**wanted, RATE: rate}, CalibratedState(reference, controller_state)


def _within(span: Number, x: jax.Array, center: jax.Array) -> jax.Array:
    """Return x, no further from a center than by a factor."""
    return jnp.clip(x, center / span, center * span)


def _is_calibrating(setting: _Calibration, metrics: Metrics) -> jax.Array:
    """Tell whether it is early and asked at each step: by `decide` alone it begins as it is."""
    steps = metrics.num_steps
    is_each = jnp.where(metrics.step > 0, steps == 1.0, steps > 0.0)
    return is_each & (metrics.step < setting.steps)


def _calibrated_rate(setting: _Calibration, metrics: Metrics, rate: jax.Array) -> jax.Array:
    """Return the rate at which a move should have the wanted length, to be tried next."""
    wanted = setting.target_ratio / jnp.maximum(metrics.update_ratio, 1e-30)
    to_show = metrics.visible_rate(setting.target_ratio) / jnp.maximum(_as_float(rate), 1e-30)
    # Where moves were seen before, an optimizer is accumulating gradients: nothing to learn.
    unseen = jnp.where(metrics.update_norm > 0.0, 1.0, jnp.maximum(to_show, 1.0))
    jump = jnp.where(metrics.num_moves > 0.0, wanted, unseen)
    jump = jnp.clip(jump, 1.0 / _LARGEST_JUMP, _LARGEST_JUMP)
    # Nothing is learned where no gradient was seen, or no step at this rate.
    tells = (metrics.grad_norm > 0.0) & (metrics.num_judged > 0.0)
    jump = jnp.where(metrics.saw_finite, jnp.where(tells, jump, 1.0), _RETREAT)
    return jnp.where(
        metrics.step > 0, rate * jump.astype(rate.dtype), _probe(setting, metrics, rate)
    )


def _probe(setting: _Calibration, metrics: Metrics, rate: jax.Array) -> jax.Array:
    steepest = metrics.steepest_rate(setting.target_ratio)
    highest = jnp.where(steepest > 0.0, steepest, setting.probe_rate)
    return jnp.minimum(rate, jnp.minimum(setting.probe_rate, highest).astype(rate.dtype))


def _calibrated_decay(
    setting: _Calibration, metrics: Metrics, hyperparams: Hyperparams, rate: jax.Array
) -> Hyperparams:
    if DECAY not in hyperparams or not is_set(setting.total_decay, 0.0):
        return {}
    decay, rate = hyperparams[DECAY], jnp.maximum(_as_float(rate), 1e-30)
    wanted = setting.total_decay * metrics.per_step / rate
    dense = _dense(setting.controller, setting.steps)
    is_first: Any = dense(metrics.step) if callable(dense) else metrics.step < dense
    # The length of the run, if there is one, shows at the next step.
    is_near = (metrics.step == 0) & (metrics.progress >= 0.0)
    harmless = jnp.minimum(_as_float(decay), setting.target_ratio / rate).astype(decay.dtype)
    early = jnp.where(is_near, harmless, decay)
    return {
        DECAY: jnp.where(
            is_first & (metrics.progress > 0.0) & ~metrics.is_over,
            wanted.astype(decay.dtype),
            early,
        )
    }


def _as_float(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)
