"""A wrapper: no move of the parameters is longer than a share of their norm."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_meta.base import Controller, Hyperparams, State, check_wrapped
from optax_meta.checks import Number, check_number, check_numbers, is_set
from optax_meta.metrics import Metrics

_LARGEST_JUMP = 1e3
"""A bound is this many times the present value at most, however short the last move was."""
_STILL = 10.0
"""After so many finite steps without a move a rate must be too low to show, and may be raised."""
_LARGEST_PERSISTENCE = 0.95
"""Cosines of successive moves count as at most this: near 1 their reach has no bound."""


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
    max_ratio: Number
    min_ratio: Number
    ratio_power: Number
    persistence_power: Number
    hyperparam: str


def trust_region(
    controller: Controller,
    *,
    max_ratio: Number = 0.05,
    min_ratio: Number = 0.0,
    ratio_power: Number = 0.0,
    persistence_power: Number = 0.0,
    max_growth: Number = math.inf,
    hyperparam: str = "learning_rate",
) -> Controller:
    """Clip what a controller decides, so that no move is longer than a share of the parameters.

    The value is kept so low that the last move, scaled with it, would have been no longer than
    `max_ratio` of the parameters' norm; both are estimated from a strided sample. A rule that sets
    its values, such as `plateau`, keeps them, and the optimizer gets the lower of the two; one that
    moves the values it is given, such as a policy, goes on from what the optimizer got. Where no
    move was seen the value may only rise to one at which a move would show, where no step was
    finite it is halved. After the end of a run of known length nothing changes any more.

    Args:
        controller: any that steers the hyperparameter.
        max_ratio: largest norm of a move over that of the parameters, ≥ 0.
        min_ratio: no share that follows from the next two is below this, ≥ 0.
        ratio_power: in a run of known length T the share is `max_ratio` times (1000/T) to this
            power, ≥ 0: shorter runs have fewer updates to get there. Runs of fewer than 100 steps
            count as that long.
        persistence_power: the share is divided by ((1 + ρ)/(1 - ρ)) to this power, ≥ 0, ρ the
            cosine of successive moves less that of move and negative gradient, kept in [0, 0.95]:
            moves that momentum alone keeps in one direction lead further than their length tells;
            at ½ all lead as far. Moves that still go downhill are not held back.
        max_growth: gradients are scaled down to this times the mean norm that the last decision
            saw, ≥ 1; `math.inf` for not.
        hyperparam: name of the hyperparameter that is clipped; moves must be in proportion to it.

    Returns:
        A `Controller`. Needs `params=`.

    Raises:
        ValueError: this is no controller of the hyperparameter, or a number is out of range.

    Source: the ratio of update to parameters from Y. You et al., "Large Batch Training of
    Convolutional Networks", https://arxiv.org/abs/1708.03888; the distance that correlated steps
    lead from A. Sokal, "Monte Carlo Methods in Statistical Mechanics",
    https://doi.org/10.1007/978-1-4899-0319-8_6.

    Example:
        >>> controller = trust_region(optax_meta.hypergradient(), max_ratio=0.02)
        >>> tx = optax_meta.control_hyperparams(optax.sgd, controller)(learning_rate=0.1)
    """
    check_wrapped("trust_region", controller, hyperparam)
    check_numbers(
        max_ratio=max_ratio,
        min_ratio=min_ratio,
        ratio_power=ratio_power,
        persistence_power=persistence_power,
    )
    check_number("max_growth", max_growth, 1.0)
    setting = _Region(controller, max_ratio, min_ratio, ratio_power, persistence_power, hyperparam)
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
    # What was set by hand replaces the own value, and so does what was clipped, where the
    # controller would otherwise wander off to where the optimizer does not follow.
    own = given if controller.is_incremental else jnp.where(given == returned, own, given)
    wanted, controller_state = controller.update(
        metrics, state.controller_state, {**hyperparams, name: own}
    )
    new = controller.keep_in_bounds(name, own, wanted[name])
    # A value below zero moves the parameters the other way, and no less.
    largest = _bound(setting, metrics, jnp.abs(given))
    value = jnp.where(metrics.is_over, given, jnp.clip(new, -largest, largest))
    value = controller.keep_in_bounds(name, given, value)
    values = jnp.stack([new, value])
    return {**wanted, name: value}, TrustRegionState(values, controller_state)


def _bound(setting: _Region, metrics: Metrics, given: jax.Array) -> jax.Array:
    """Return the largest value allowed, float[]."""
    used = given.astype(jnp.float32)
    moved = used * _room(setting, metrics)
    # Blind, it may only rise to where a move should show: then there is something to go by.
    num_finite = metrics.num_steps - metrics.num_nonfinite
    to_show = jnp.maximum(used, metrics.visible_rate(setting.max_ratio))
    to_show = jnp.where(num_finite >= _STILL, _LARGEST_JUMP * used, to_show)
    blind = jnp.where(metrics.update_norm > 0.0, used, to_show)
    largest = jnp.where(metrics.num_moves > 0.0, moved, blind)
    return jnp.where(metrics.saw_finite, largest, 0.5 * used).astype(given.dtype)


def _room(setting: _Region, metrics: Metrics) -> jax.Array:
    """Return by how much the last move may be scaled and be no longer than it may."""
    stretch = metrics.shortness**setting.ratio_power
    stretch = jnp.where(metrics.progress > 0.0, stretch, 1.0)
    inert = metrics.persistence - jnp.maximum(metrics.alignment, 0.0)
    rho = jnp.clip(inert, 0.0, _LARGEST_PERSISTENCE)
    reach = ((1.0 + rho) / (1.0 - rho)) ** setting.persistence_power
    room = jnp.maximum(setting.max_ratio * stretch / reach, setting.min_ratio)
    return jnp.minimum(room / jnp.maximum(metrics.update_ratio, 1e-30), _LARGEST_JUMP)
