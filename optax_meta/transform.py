"""`control_hyperparams`: any Optax factory under any controller.

A step in order: `measuring` looks at it, `guards` keeps from the optimizer what would harm it,
`tracking` adds it to the window, `deciding` asks the controller where it is due, and the optimizer
that `injection` builds from the decided values makes the update.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import optax

from optax_meta import guards, measuring, tracking
from optax_meta.base import Controller, Hyperparams, State
from optax_meta.checks import check_interval, is_set
from optax_meta.deciding import FOREIGN, advance, decide_if_due, is_own, is_static
from optax_meta.injection import Factory, Injection, first_values, split
from optax_meta.state import ByHand, ControlState, widest
from optax_meta.tracking import Statistics


def control_hyperparams(
    inner_factory: Factory,
    controller: Controller,
    *,
    decision_interval: float | None = None,
    axis_name: str | None = None,
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """Let a controller steer the hyperparameters of any Optax optimizer.

    Used like `optax.inject_hyperparams`: the result takes the arguments of `inner_factory`, of
    which those that the controller steers are starting values: Python numbers, arrays or traced
    scalars; one that the controller forgets anyway may be left out. They are stored as float32
    (float64 if a parameter is) and handed to the factory weakly typed, so the optimizer keeps the
    dtypes that it has with a Python float.

    The controller decides at step 0 and then every `decision_interval` steps; each decision sees
    averages over the steps since the last one and holds from the same update on. A step whose loss,
    cost or gradient norm is not finite enters no average; where loss or gradient norm is not finite
    the inner optimizer sees zeros for the gradients, unless the controller, like `constant`, asks
    for no guard. A hyperparameter never becomes non-finite and never leaves its bounds.

    Args:
        inner_factory: an Optax factory, or any function that returns a gradient transformation.
        controller: what decides, for instance `optax_meta.plateau()`.
        decision_interval: steps between decisions, ≥ 1; None for the controller's own; `math.inf`
            to decide only where `decide` is called.
        axis_name: axis of a `pmap` or `shard_map` over which loss, cost, gradient norm and
            alignment are averaged, so that all replicas decide alike.

    Returns:
        A factory of `optax.GradientTransformationExtraArgs`. Its
        `update(grads, state, params, value=loss, cost=None, progress=None)` takes the loss and a
        cost as scalars; further keyword arguments go to the inner optimizer, and these to one that
        takes them. `progress` is the share of the run that is over, a scalar in [0, 1] such as
        `tokens_seen / tokens_planned`: it counts in place of steps. Without it, after it was
        passed, progress goes on at the rate that it had. One that is traced is clipped; one that is
        not finite counts as not passed; both are counted in `Record.num_misread`.

    Raises:
        ValueError: `inner_factory` is no function, `controller` no `Controller`, or
            the interval no whole number ≥ 1 or `math.inf`; from the factory, if a steered
            hyperparameter is unknown, is not a number, or starts out of bounds; from `update`, if
            `value` is missing or no scalar, `progress` no number in [0, 1], or the gradients do not
            fit the parameters.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.adamw, optax_meta.plateau())(1e-3)
        >>> params = {"w": jnp.ones(3)}
        >>> state = tx.init(params)
        >>> updates, state = tx.update(params, state, params, value=1.0)
        >>> print(optax_meta.hyperparams(state)["learning_rate"])
        0.001
    """
    if not callable(inner_factory):
        raise ValueError(
            "`inner_factory` must be a function such as `optax.adamw`, not the optimizer it "
            f"returns; got {type(inner_factory).__name__}: write "
            "`control_hyperparams(optax.adamw, controller)(learning_rate=1e-3)`"
        )
    if not isinstance(controller, Controller):
        name = getattr(controller, "__name__", type(controller).__name__)
        hint = ": call it" if callable(controller) else ""
        hint = ": write `learned(policy)`" if name in ("Policy", "str") else hint
        raise ValueError(f"`controller` must be a Controller, got {name}{hint}")
    if unknown := set(controller.bounds) - set(controller.hyperparams):
        raise ValueError(
            f"the controller has bounds for {', '.join(sorted(unknown))} but steers "
            f"{', '.join(controller.hyperparams)}: give bounds for what it steers"
        )
    interval: Any = controller.decision_interval if decision_interval is None else decision_interval
    if decision_interval is not None or not callable(interval):
        controller = controller._replace(decision_interval=check_interval(interval))
    if decision_interval is not None:
        controller = controller._replace(decisions_per_run=0)

    def factory(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        ask = partial(decide_if_due, controller)
        if not is_static(controller.decision_interval):
            # Where nobody jits, a branch of the same identity at every step is compiled once.
            ask = jax.jit(ask, inline=True)
        core = _Core(controller, split(inner_factory, controller, args, kwargs), ask, axis_name)
        update: Any = partial(_update, core)
        return optax.GradientTransformationExtraArgs(partial(_init, core), update)

    factory.__doc__ = inner_factory.__doc__
    for name in ("init", "update"):
        setattr(factory, name, partial(_not_built, name))
    return factory


def _not_built(name: str, *_: object, **__: object) -> NoReturn:
    raise ValueError(
        f"`{name}` belongs to the optimizer, and this is its factory: call it first, as in "
        "`tx = control_hyperparams(optax.adamw, controller)(learning_rate=1e-3)`"
    )


class _Core(NamedTuple):
    """The static part of a controlled optimizer."""

    controller: Controller
    injection: Injection
    ask: Callable[..., tuple[Hyperparams, State, Statistics]]
    axis_name: str | None


def _init(core: _Core, params: optax.Params) -> ControlState:
    start = first_values(core.injection.start, widest(params))
    samples, least_norm = (), 0.0
    if core.controller.needs_alignment:
        samples, least_norm = measuring.first_samples(params)
    return ControlState(
        statistics=Statistics.empty(least_norm).pack(),
        controller_state=core.controller.init(start),
        last_samples=samples,
        by_hand=ByHand.nothing(len(start)).pack(),
        inner_state=core.injection.transformation(start).init(params),
    )


def _update(
    core: _Core,
    updates: optax.Updates,
    state: ControlState,
    params: optax.Params | None = None,
    *unnamed: object,
    **extra_args: Any,
) -> tuple[optax.Updates, ControlState]:
    if unnamed:
        raise ValueError(
            "`update` takes gradients, state and parameters by position and the rest by name: "
            "`tx.update(grads, state, params, value=loss)`"
        )
    if not isinstance(state, ControlState):
        raise ValueError(
            f"`state` must come from this transformation's `init`, got {type(state).__name__}; a "
            "state restored from a checkpoint needs `init`'s as its target"
        )
    _check_shapes(updates, params)
    _check_passed(core.controller, params, extra_args)
    try:
        return _step(core, updates, state.with_arrays(), params, extra_args)
    except Exception as error:
        if is_own(core.controller, state):
            raise
        raise ValueError(FOREIGN) from error


def _step(
    core: _Core,
    updates: optax.Updates,
    state: ControlState,
    params: optax.Params | None,
    extra_args: Mapping[str, Any],
) -> tuple[optax.Updates, ControlState]:
    controller, known = core.controller, Statistics.unpack(state.statistics)
    horizon = advance(controller, known, state.step, extra_args.get("progress"), core.axis_name)
    is_held = controller.guards_nonfinite and is_set(controller.max_growth, math.inf)
    largest = controller.max_growth * known.usual_grad_norm if is_held else None
    measured, samples, distance = measuring.measure(
        known, state.step, updates, params, state.last_samples, extra_args, core.axis_name, largest
    )
    if largest is not None:
        updates, measured = guards.clip_growth(updates, measured, largest)
    statistics = tracking.accumulate(known, measured, distance)._replace(horizon=horizon)
    if controller.guards_nonfinite:
        updates, extra_args = guards.zero_nonfinite(
            updates, extra_args, measured, statistics.last.value
        )
    # Set by hand they may be anything.
    bounds = ByHand(*state.by_hand).bounds(state.hyperparams)
    hyperparams = {
        name: controller.keep_in_bounds(name, value, value, bounds)
        for name, value in state.hyperparams.items()
    }
    hyperparams, controller_state, statistics = core.ask(
        statistics, state.step, state.by_hand, hyperparams, state.controller_state
    )
    updates, inner_state = core.injection.transformation(hyperparams).update(
        updates, state.with_hyperparams(hyperparams).inner_state, params, **extra_args
    )
    return updates, ControlState(
        statistics.pack(), controller_state, samples, state.by_hand, inner_state
    )


def _check_passed(
    controller: Controller, params: optax.Params | None, extra_args: Mapping[str, Any]
) -> None:
    if controller.needs_value and extra_args.get("value") is None:
        got = ", ".join(f"`{name}`" for name in extra_args if name != "value")
        raise ValueError(
            "the controller needs the loss: call `tx.update(grads, state, params, value=loss)`, "
            "under Flax `optimizer.update(model, grads, value=loss)` or "
            "`state.apply_gradients(grads=grads, value=loss)` with `optax_meta.TrainState`, since "
            f"Flax's own passes no loss on{f'; got {got}' if got else ''}"
        )
    if controller.needs_alignment and params is None:
        raise ValueError(
            "the controller needs the parameters: call `tx.update(grads, state, params)`"
        )


def _check_shapes(updates: optax.Updates, params: optax.Params | None) -> None:
    if jax.tree.structure(updates) != jax.tree.structure(params):
        return  # no params, or a wrapper's own structure: the inner optimizer judges
    flat, _ = jax.tree.flatten_with_path(updates)
    for (path, grad), param in zip(flat, jax.tree.leaves(params), strict=True):
        if jnp.shape(grad) != jnp.shape(param):
            raise ValueError(
                f"the gradient of `{jax.tree_util.keystr(path, simple=True, separator='.')}` has "
                f"shape {jnp.shape(grad)}, its parameter {jnp.shape(param)}: they must agree"
            )
