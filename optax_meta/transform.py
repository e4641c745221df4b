"""`control_hyperparams`: any Optax factory under any controller.

A step in order: `measuring` looks at it, `guards` keeps from the optimizer what would harm it,
`tracking` adds it to the window, `deciding` asks the controller where it is due, and the optimizer
that `injection` builds from the decided values makes the update.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, NoReturn, get_args

import jax
import jax.numpy as jnp
import optax

from optax_meta import guards, measuring, snapshots, spikes, tracking
from optax_meta.base import Controller, Hyperparams, State
from optax_meta.checks import check_interval, is_set
from optax_meta.deciding import FOREIGN, advance, decide_if_due, is_own, is_static
from optax_meta.injection import Factory, Injection, first_values, split
from optax_meta.state import ByHand, ControlState, widest
from optax_meta.tracking import Statistics

OnSpike = Literal["record", "clip", "skip", "roll_back"]
"""What is done about a step whose loss or gradient norm leaps."""


def control_hyperparams(
    inner_factory: Factory,
    controller: Controller,
    *,
    decision_interval: float | None = None,
    axis_name: str | None = None,
    on_spike: OnSpike = "record",
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
        on_spike: what is done where a loss, or a gradient norm, leaps far beyond what is usual, see
            `optax_meta.spikes.limits`; the `record` counts such steps in any case. "record" does
            nothing else. "clip" scales gradients down to the largest norm that would not have
            leapt. "skip" lets the optimizer see zeros for them, as for a step that is not finite,
            and the step enters no average. "roll_back" does that, too, and goes back to a snapshot
            of parameters and optimizer, up to 50 steps old, where three steps in a row leap or are
            not finite: it costs a copy of both, needs `params=`, and whatever follows in a chain
            must pass the updates on as they are. After five steps in a row a leap counts as new
            data, and what is usual follows.

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
            the interval no whole number ≥ 1 or `math.inf`, or `on_spike` unknown; from the
            factory, if a steered hyperparameter is unknown, is not a number, or starts out of
            bounds; from `update`, if `value` is missing or no scalar, `progress` no number in
            [0, 1], or the gradients do not fit the parameters.

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
    if on_spike not in get_args(OnSpike):
        known = ", ".join(map(repr, get_args(OnSpike)))
        raise ValueError(f"`on_spike` must be one of {known}, got {on_spike!r}")
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
        injection = split(inner_factory, controller, args, kwargs)
        core = _Core(controller, injection, ask, axis_name, on_spike)
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
    on_spike: OnSpike

    @property
    def guards(self) -> bool:
        """Whether anything is kept from the optimizer."""
        return self.controller.guards_nonfinite or self.on_spike != "record"


def _init(core: _Core, params: optax.Params) -> ControlState:
    start = first_values(core.injection.start, widest(params))
    samples, least_norm = (), 0.0
    if core.controller.needs_alignment:
        samples, least_norm = measuring.first_samples(params)
    inner: Any = core.injection.transformation(start).init(params)
    snapshot = snapshots.Snapshot.first(params, inner.inner_state) if _rolls_back(core) else ()
    return ControlState(
        statistics=Statistics.empty(least_norm).pack(),
        controller_state=core.controller.init(start),
        last_samples=samples,
        by_hand=ByHand.nothing(len(start)).pack(),
        inner_state=inner,
        snapshot=snapshot,
    )


def _rolls_back(core: _Core) -> bool:
    return core.on_spike == "roll_back"


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
    if _rolls_back(core) != isinstance(state.snapshot, snapshots.Snapshot):
        raise ValueError(FOREIGN)
    _check_shapes(updates, params)
    _check_passed(core, params, extra_args)
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
    limits = spikes.limits(known.spikes)
    largest = _largest_norm(core, known, limits)
    measured, samples, distance = measuring.measure(
        known, state.step, updates, params, state.last_samples, extra_args, core.axis_name, largest
    )
    seen, is_leap = spikes.watch(known.spikes, measured.value, measured.grad_norm, limits)
    left_out = is_leap & (core.on_spike in ("skip", "roll_back"))
    if largest is not None:
        updates, measured = guards.clip_growth(updates, measured, largest)
    statistics = tracking.accumulate(
        known._replace(spikes=seen, horizon=horizon), measured, distance, left_out=left_out
    )
    if core.guards:
        value = jnp.where(left_out, known.spikes.value, statistics.last.value)
        updates, extra_args = guards.zero_nonfinite(
            updates, extra_args, measured, value, left_out=left_out
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
    new = ControlState(statistics.pack(), controller_state, samples, state.by_hand, inner_state)
    return _kept_well(state, params, updates, new) if _rolls_back(core) else (updates, new)


def _largest_norm(core: _Core, known: Statistics, limits: spikes.Limits) -> jax.Array | None:
    """Return the norm that gradients are held to, float32[], 0 for any; None where they never are.

    A step that is left out is held to it, too, so that no more of it enters the distance.
    """
    controller = core.controller
    if not (controller.guards_nonfinite and is_set(controller.max_growth, math.inf)):
        return None if core.on_spike == "record" else limits.grad_norm
    largest = controller.max_growth * known.usual_grad_norm
    if core.on_spike == "record":
        return largest
    return jnp.where(largest > 0.0, jnp.minimum(largest, limits.grad_norm), limits.grad_norm)


def _kept_well(
    old: ControlState, params: optax.Params | None, updates: optax.Updates, new: ControlState
) -> tuple[optax.Updates, ControlState]:
    """Go back to the snapshot where it is time, and renew it where the run is well."""
    statistics = Statistics.unpack(new.statistics)
    streak, inner = statistics.spikes.streak, new.inner_state
    updates, inner_state, is_back = snapshots.gone_back(
        old.snapshot, streak, params, updates, inner.inner_state
    )
    snapshot = snapshots.renewed(
        old.snapshot, old.step, params, old.inner_state.inner_state, streak
    )
    # The way back is no move of the optimizer's: it tells nothing about the rate.
    unjudged = tracking.unjudged(statistics).pack()
    return updates, new._replace(
        statistics=jnp.where(is_back, unjudged, new.statistics),
        inner_state=inner._replace(inner_state=inner_state),
        snapshot=snapshot,
    )


def _check_passed(core: _Core, params: optax.Params | None, extra_args: Mapping[str, Any]) -> None:
    controller = core.controller
    if controller.needs_value and extra_args.get("value") is None:
        got = ", ".join(f"`{name}`" for name in extra_args if name != "value")
        raise ValueError(
            "the controller needs the loss: call `tx.update(grads, state, params, value=loss)`, "
            "under Flax `optimizer.update(model, grads, value=loss)` or "
            "`state.apply_gradients(grads=grads, value=loss)` with `optax_meta.TrainState`, since "
            f"Flax's own passes no loss on{f'; got {got}' if got else ''}"
        )
    if (controller.needs_alignment or _rolls_back(core)) and params is None:
        what = "rolling back" if _rolls_back(core) else "the controller"
        raise ValueError(f"{what} needs the parameters: call `tx.update(grads, state, params)`")


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
