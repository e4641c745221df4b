"""A wrapper: values fall to zero towards the end of a run of known length."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_meta.base import Controller, Hyperparams, State, check_wrapped
from optax_meta.checks import Number, check_numbers, check_whole, is_set
from optax_meta.metrics import Metrics
from optax_meta.origins import keep_origin


class AnnealedState(NamedTuple):
    """State of `annealed`.

    Attributes:
        values: the controller's own value, what was returned for it, and by which factor; float[3].
        controller_state: what the controller carries.
    """

    values: jax.Array
    controller_state: State


class _Annealing(NamedTuple):
    """The static part of `annealed`."""

    controller: Controller
    power: Number
    last_raise: Number
    raise_power: Number
    hyperparam: str


@keep_origin
def annealed(
    controller: Controller,
    *,
    total_steps: Number | None = None,
    power: Number = 1.0,
    last_raise: Number = math.inf,
    raise_power: Number = 0.0,
    hyperparam: str = "learning_rate",
) -> Controller:
    """Let what a controller decides fall to zero towards the end of the run.

    The optimizer gets own value × (1 - p)ᵏ, p the share of the run that is over and k the `power`.
    The controller keeps its own value and never sees the factor, so that asking twice, for instance
    by `optax_meta.decide`, changes nothing twice. What somebody else changes, a wrapper around this
    one or `optax_meta.set_hyperparams`, the own value follows in proportion. After the end nothing
    changes any more. Where the length of the run is not known nothing falls.

    Args:
        controller: any that steers the hyperparameter.
        total_steps: length of the run, counted in calls of `update`; an int32[] may be traced, and
            below 1 where it is not known. None for what the controller was made with.
        power: k, ≥ 0; 1 falls linearly.
        last_raise: once more than this share of the run is over no decision raises the own value
            any more, since what is learned late comes too late; `math.inf` for to the end.
        raise_power: in a run of T steps, fewer than 1000, that share is `last_raise` times
            (1000/T) to this power, ≥ 0: short runs have less time to get where they belong.
        hyperparam: name of the hyperparameter that falls.

    Returns:
        A `Controller`.

    Raises:
        ValueError: this is no controller of the hyperparameter, a number is out of range, or the
            controller was made for a run of another length.

    Source: A. Defazio et al., "When, Why and How Much? Adaptive Learning Rate Scheduling by
    Refinement", 2023, https://arxiv.org/abs/2310.07831, for the linear fall.

    Example:
        >>> controller = annealed(optax_meta.hypergradient(), total_steps=1000)
        >>> tx = optax_meta.control_hyperparams(optax.sgd, controller)(learning_rate=0.1)
    """
    check_wrapped("annealed", controller, hyperparam)
    check_numbers(power=power, last_raise=last_raise, raise_power=raise_power)
    setting = _Annealing(controller, power, last_raise, raise_power, hyperparam)
    return controller._replace(
        init=partial(_init, setting),
        update=partial(_update, setting),
        total_steps=_length(controller.total_steps, total_steps),
    )


def _length(known: Number | None, total_steps: Number | None) -> Number | None:
    if total_steps is None:
        return known
    total_steps = check_whole("total_steps", total_steps)
    if isinstance(known, int) and isinstance(total_steps, int) and known != total_steps:
        raise ValueError(
            f"`total_steps` must be that of the controller, {known}, got {total_steps}: "
            "pass it once"
        )
    return total_steps


def _init(setting: _Annealing, hyperparams: Hyperparams) -> AnnealedState:
    start = hyperparams[setting.hyperparam]
    values = jnp.stack([start, start, jnp.ones_like(start)])
    return AnnealedState(values, setting.controller.init(hyperparams))


def _update(
    setting: _Annealing, metrics: Metrics, state: AnnealedState, hyperparams: Hyperparams
) -> tuple[Hyperparams, AnnealedState]:
    name, controller = setting.hyperparam, setting.controller
    given, (own, returned, factor) = hyperparams[name], state.values
    returned = controller.keep_in_bounds(name, returned, returned, metrics.bounds)
    # A bit that differs from what was returned is somebody else's change.
    changed = given / jnp.where(factor > 0.0, factor, 1.0)
    own = jnp.where(given == returned, own, changed)
    wanted, controller_state = controller.update(
        metrics, state.controller_state, {**hyperparams, name: own}
    )
    new = controller.keep_in_bounds(name, own, wanted[name])
    if is_set(setting.last_raise, math.inf):
        new = jnp.where(_is_late(setting, metrics), jnp.minimum(new, own), new)
    left = jnp.maximum(1.0 - metrics.progress, 0.0) ** setting.power
    factor = jnp.where(metrics.progress >= 0.0, left, 1.0).astype(new.dtype)
    value = controller.keep_in_bounds(name, given, new * factor, metrics.bounds)
    falling = {**wanted, name: value}
    kept = {k: jnp.where(metrics.is_over, hyperparams[k], v) for k, v in falling.items()}
    values = jnp.where(metrics.is_over, state.values, jnp.stack([new, value, factor]))
    return kept, AnnealedState(values, controller_state)


def _is_late(setting: _Annealing, metrics: Metrics) -> jax.Array:
    share = setting.last_raise * jnp.maximum(metrics.shortness, 1.0) ** setting.raise_power
    return metrics.progress > share  # never where the length is not known: progress is -1
