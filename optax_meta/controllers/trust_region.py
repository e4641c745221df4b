"""A wrapper: no move of the parameters is longer than a share of the way ahead of them."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_meta.base import Controller, Hyperparams, State, check_wrapped
from optax_meta.checks import Number, check_number, check_numbers, is_set
from optax_meta.metrics import Metrics
from optax_meta.origins import keep_origin

_LARGEST_JUMP = 1e3
"""A bound is this many times the present value at most, however short the last move was."""
_STILL = 10.0
"""After so many finite steps without a move a rate must be too low to show, and may be raised."""
_PROBE_RATIO = 5e-2
"""Where no move was seen, a rate at which a gradient step passes this share of the norm is high."""


class TrustRegionState(NamedTuple):
    """State of `trust_region`.

    Attributes:
        values: the controller's own value, and what the optimizer was given for it; float[2].
        controller_state: what the controller carries.
    """

    values: jax.Array
    controller_state: State


class _Region(NamedTuple):
    """The static part of `trust_region`."""

    controller: Controller
    max_share: Number
    hyperparam: str


@keep_origin
def trust_region(
    controller: Controller,
    *,
    max_share: Number = 2.0,
    max_growth: Number = math.inf,
    hyperparam: str = "learning_rate",
) -> Controller:
    """Clip what a controller decides, so that no move is longer than a share of the way ahead.

    The value is kept so low that the last move, scaled with it, would have been no longer than
    `max_share` of the distance that the parameters have to go at least (`Metrics.distance`), root
    mean square; both are estimated from a strided sample. A rule that sets its values, such as
    `plateau`, keeps them, and the optimizer gets the lower of the two; one that moves the values it
    is given, such as a policy, goes on from what the optimizer got. Where no move was seen the
    value may only rise to one at which a move would show, where no step after a move was finite it
    is halved. After the end of a run of known length nothing changes any more.

    Args:
        controller: any that steers the hyperparameter.
        max_share: largest root mean square of a move over the distance, ≥ 0. Good runs have 0.4 in
            the middle; from 1 on many networks fail to learn.
        max_growth: gradients are scaled down to this times the mean norm that the last decision
            saw, ≥ 1; `math.inf` for not.
        hyperparam: name of the hyperparameter that is clipped; moves must be in proportion to it.

    Returns:
        A `Controller`. Needs `params=`.

    Raises:
        ValueError: this is no controller of the hyperparameter, or a number is out of range.

    Source: the distance from K. Mishchenko and A. Defazio, "Prodigy: An Expeditiously Adaptive
    Parameter-Free Learner", https://arxiv.org/abs/2306.06101.

    Example:
        >>> controller = trust_region(optax_meta.hypergradient(), max_share=0.5)
        >>> tx = optax_meta.control_hyperparams(optax.sgd, controller)(learning_rate=0.1)
    """
    check_wrapped("trust_region", controller, hyperparam)
    check_numbers(max_share=max_share)
    check_number("max_growth", max_growth, 1.0)
    setting = _Region(controller, max_share, hyperparam)
    lowest = jnp.minimum if is_set(controller.max_growth, math.inf) else lambda _, new: new
    return controller._replace(
        init=partial(_init, setting),
        update=partial(_update, setting),
        needs_alignment=True,
        max_growth=lowest(controller.max_growth, max_growth),
    )


def _init(setting: _Region, hyperparams: Hyperparams) -> TrustRegionState:
    start = hyperparams[setting.hyperparam]
    return TrustRegionState(jnp.stack([start, start]), setting.controller.init(hyperparams))


def _update(
    setting: _Region, metrics: Metrics, state: TrustRegionState, hyperparams: Hyperparams
) -> tuple[Hyperparams, TrustRegionState]:
    name, controller = setting.hyperparam, setting.controller
    given, (own, returned) = hyperparams[name], state.values
    returned = controller.keep_in_bounds(name, returned, returned, metrics.bounds)
    # What was set by hand replaces the own value, and so does what was clipped, where the
    # controller would otherwise wander off to where the optimizer does not follow.
    own = given if name in controller.incremental else jnp.where(given == returned, own, given)
    wanted, controller_state = controller.update(
        metrics, state.controller_state, {**hyperparams, name: own}
    )
    new = controller.keep_in_bounds(name, own, wanted[name])
    # A value below zero moves the parameters the other way, and no less.
    largest = _bound(setting, metrics, jnp.abs(given))
    value = jnp.where(metrics.is_over, given, jnp.clip(new, -largest, largest))
    value = controller.keep_in_bounds(name, given, value, metrics.bounds)
    values = jnp.stack([new, value])
    return {**wanted, name: value}, TrustRegionState(values, controller_state)


def _bound(setting: _Region, metrics: Metrics, given: jax.Array) -> jax.Array:
    """Return the largest value allowed, float[]."""
    used = given.astype(jnp.float32)
    room = setting.max_share * metrics.distance / jnp.maximum(metrics.update_rms, 1e-30)
    moved = used * jnp.minimum(room, _LARGEST_JUMP)
    # Blind, it may only rise to where a move should show: then there is something to go by.
    num_finite = metrics.num_steps - metrics.num_nonfinite
    to_show = metrics.visible_rate(_PROBE_RATIO, used)
    to_show = jnp.where(num_finite >= _STILL, _LARGEST_JUMP * used, to_show)
    blind = jnp.where(metrics.update_rms > 0.0, used, to_show)
    largest = jnp.where(metrics.num_moves > 0.0, moved, blind)
    # Before anything moved, steps that are not finite are not this value's doing.
    lost = jnp.where(metrics.update_rms > 0.0, 0.5 * used, used)
    return jnp.where(metrics.saw_finite, largest, lost).astype(given.dtype)
