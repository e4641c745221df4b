"""`control_hyperparams`: any Optax factory under any controller.

The twin of `optax.inject_hyperparams`, and built on it. Only the hyperparameters that the
controller steers are injected; everything else stays static, as the factory was called.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from optax_meta import metrics as metrics_lib
from optax_meta.base import Controller, Hyperparams, check_interval, is_set
from optax_meta.metrics import Metrics, Statistics

_FOREIGN = (
    "`state` is that of another controller, or of another version of this one: start from `init`, "
    "or fit what was saved with `optax_meta.graft`"
)


class ControlState(NamedTuple):
    """State of a controlled optimizer.

    Attributes:
        statistics: `metrics.Statistics`, packed, float32[22].
        controller_state: what the controller carries.
        last_samples: strided samples of the parameters one step ago and two steps ago,
            float32[2, k], for a controller that asks for alignment; else an empty tuple.
        inner_state: an `optax.InjectStatefulHyperparamsState`, which holds the hyperparameters,
            the step and the state of the inner optimizer.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.plateau())(0.5)
        >>> state = tx.init(jnp.zeros(2))
        >>> print(state.step, state.hyperparams["learning_rate"])
        0 0.5
    """

    statistics: jax.Array
    controller_state: Any
    last_samples: Any
    inner_state: Any

    @property
    def hyperparams(self) -> Hyperparams:
        """Current values of the steered hyperparameters, float32[] each."""
        return self.inner_state.hyperparams

    @property
    def step(self) -> jax.Array:
        """Number of updates so far, int32[]."""
        return self.inner_state.count


def control_hyperparams(
    inner_factory: Callable[..., optax.GradientTransformation],
    controller: Controller,
    *,
    decision_interval: float | None = None,
    axis_name: str | None = None,
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """Let a controller steer the hyperparameters of any Optax optimizer.

    Used like `optax.inject_hyperparams`: the result takes the arguments of `inner_factory`, of
    which those that the controller steers are starting values: Python numbers, arrays or traced
    scalars. They are stored as float32 (float64 if a parameter is) and handed to the factory weakly
    typed, so the optimizer keeps the dtypes that it has with a Python float.

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
        `update(grads, state, params, value=loss, cost=None)` takes the loss and a cost as scalars;
        further keyword arguments go to the inner optimizer.

    Raises:
        ValueError: `inner_factory` is no function, `controller` no `Controller`, or
            the interval no whole number ≥ 1 or `math.inf`; from the factory, if a steered
            hyperparameter is unknown, is not a number, or starts out of bounds; from `update`, if
            `value` is missing or no scalar, or the gradients do not fit the parameters.

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
        hint = ": write `learned(policy)`" if name == "Policy" else hint
        raise ValueError(f"`controller` must be a Controller, got {name}{hint}")
    if unknown := set(controller.bounds) - set(controller.hyperparams):
        raise ValueError(
            f"the controller has bounds for {', '.join(sorted(unknown))} but steers "
            f"{', '.join(controller.hyperparams)}"
        )
    interval: Any = controller.decision_interval if decision_interval is None else decision_interval
    if decision_interval is not None or not callable(interval):
        controller = controller._replace(decision_interval=check_interval(interval))

    def factory(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        start, build = _split(inner_factory, controller, args, kwargs)
        ask: Any = partial(_decide, controller)
        if not _is_static(controller.decision_interval):
            # Where nobody jits, a branch of the same identity at every step is compiled once.
            ask = jax.jit(ask, inline=True)
        update: Any = partial(_update, controller, ask, axis_name, build)
        return optax.GradientTransformationExtraArgs(
            partial(_init, controller, start, build), update
        )

    factory.__doc__ = inner_factory.__doc__
    for name in ("init", "update"):
        setattr(factory, name, partial(_not_built, name))
    return factory


def _not_built(name: str, *_: Any, **__: Any) -> NoReturn:
    raise ValueError(
        f"`{name}` belongs to the optimizer, and this is its factory: call it first, as in "
        "`tx = control_hyperparams(optax.adamw, controller)(learning_rate=1e-3)`"
    )


def decide(
    controller: Controller,
    opt_state: Any,
    *,
    value: jax.typing.ArrayLike,
    cost: jax.typing.ArrayLike | None = None,
) -> Any:
    """Let a controller decide now, on a loss of its own: for instance the validation loss.

    For a loss that is known once an epoch: make the optimizer with `decision_interval=math.inf`, so
    that it never decides by itself, and call this between epochs. Nothing else changes: no update,
    no step counted. A pure function, to be jitted or not. The controller sees `value` (and `cost`,
    if given) in place of the averages over the steps since its last decision; the other metrics,
    and the number of steps, are those of the steps. A value that is not finite counts as a window
    without a finite step.

    Args:
        controller: the one that the optimizer was made with.
        opt_state: any pytree with exactly one `ControlState`: `optax.chain`, `optax.MultiSteps`, a
            Flax `TrainState`.
        value: the loss to judge, a scalar, the same on all devices.
        cost: a scalar in any unit.

    Returns:
        `opt_state` with new hyperparameters, which hold from the next update on.

    Raises:
        ValueError: the state holds no controlled optimizer or several, or `value` is no scalar.

    Example:
        >>> controller = optax_meta.plateau(factor=0.5, patience=1)
        >>> tx = optax_meta.control_hyperparams(optax.sgd, controller, decision_interval=math.inf)
        >>> state = tx(learning_rate=1.0).init(jnp.zeros(2))
        >>> for validation_loss in (1.0, 2.0, 2.0):
        ...     state = optax_meta.decide(controller, state, value=validation_loss)
        >>> print(optax_meta.hyperparams(state)["learning_rate"])
        0.5
    """
    leaves, structure = jax.tree.flatten(opt_state, is_leaf=_is_control_state)
    positions = [i for i, leaf in enumerate(leaves) if _is_control_state(leaf)]
    if len(positions) != 1:
        raise ValueError(
            f"`opt_state` must hold exactly one controlled optimizer, found {len(positions)}: pass "
            "the state of one, for instance `opt_state.inner_states[label]` of `optax.partition`"
        )
    found: ControlState = leaves[positions[0]]
    state = jax.tree.map(_read_variable, found, is_leaf=_is_variable)
    if not _is_own(controller, state):
        raise ValueError(_FOREIGN)
    statistics = Statistics.unpack(state.statistics)
    if value is None:
        raise ValueError("`decide` needs a loss to judge, got None: pass `value=validation_loss`")
    told = jnp.stack([_scalar("value", value), _scalar("cost", cost)])
    told = told if cost is not None else told.at[1].set(statistics.means[1])
    is_finite = jnp.all(jnp.isfinite(told))
    num_steps, num_nonfinite, num_moves = statistics.window
    num_nonfinite = jnp.minimum(num_nonfinite, jnp.maximum(num_steps - 1.0, 0.0))
    num_nonfinite = jnp.where(is_finite, num_nonfinite, jnp.maximum(num_steps, 1.0))
    statistics = statistics._replace(
        means=jnp.where(is_finite, statistics.means.at[:2].set(told), statistics.means),
        window=jnp.stack([num_steps, num_nonfinite, num_moves]),
    )
    operands = (state.hyperparams, state.controller_state)
    hyperparams, controller_state = _ask(controller, statistics, state.step, *operands)
    statistics = metrics_lib.decided(statistics, moved=False)
    state = state._replace(
        statistics=statistics.pack(),
        controller_state=controller_state,
        inner_state=state.inner_state._replace(hyperparams=hyperparams),
    )
    leaves[positions[0]] = jax.tree.map(_write_variable, found, state, is_leaf=_is_variable)
    return structure.unflatten(leaves)


def hyperparams(opt_state: Any) -> Hyperparams:
    """Return the current hyperparameters from any state that holds a controlled optimizer.

    Args:
        opt_state: the state itself, or any pytree around it: `optax.chain`, `optax.partition`,
            `optax.MultiSteps`, a Flax `TrainState`, an `nnx.Optimizer`.

    Returns:
        float32[] by name; they stay when the state is donated. Where the state holds several
        controlled optimizers, the names are prefixed by what tells these apart, for instance the
        label of `optax.partition`.

    Raises:
        ValueError: the state holds none.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.plateau())(0.5)
        >>> state = optax.chain(optax.clip(1.0), tx).init(jnp.zeros(2))
        >>> print(optax_meta.hyperparams(state)["learning_rate"])
        0.5
    """
    found = find_control_states(opt_state)
    if len(found) == 1:
        return dict(detach(next(iter(found.values())).hyperparams))
    return {
        f"{label}/{name}": detach(value)
        for label, state in found.items()
        for name, value in state.hyperparams.items()
    }


def find_control_states(opt_state: Any) -> dict[str, ControlState]:
    """Return every `ControlState` in a pytree, by the shortest label that tells them apart.

    Args:
        opt_state: any pytree, or an object with an `opt_state` such as `nnx.Optimizer`.

    Returns:
        States by label; the label of a single one is "".

    Raises:
        ValueError: there is none.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.constant())(0.1)
        >>> list(optax_meta.transform.find_control_states(tx.init(jnp.zeros(2))))
        ['']
    """
    opt_state = getattr(opt_state, "opt_state", opt_state)
    flat, _ = jax.tree.flatten_with_path(opt_state, is_leaf=_is_control_state)
    found = [(path, state) for path, state in flat if _is_control_state(state)]
    if not found:
        raise ValueError(
            "no controlled optimizer in this state: pass the state of a transformation made with "
            "`optax_meta.control_hyperparams`, or one that contains it; under NNX the optimizer, "
            "not its `nnx.state`"
        )
    names = [[jax.tree_util.keystr((key,), simple=True) for key in path] for path, _ in found]
    shared = [set(level) for level in itertools.zip_longest(*names)]
    labels = [
        "/".join(k for k, keys in zip(n, shared, strict=False) if len(keys) > 1) for n in names
    ]
    states = [jax.tree.map(_read_variable, state, is_leaf=_is_variable) for _, state in found]
    return dict(zip(labels, states, strict=True))


def detach(tree: Any) -> Any:
    """Return copies of arrays, which outlive a state that is donated to the next step.

    Args:
        tree: any pytree of arrays; traced ones are returned as they are.

    >>> x = jnp.ones(2)
    >>> detach(x).unsafe_buffer_pointer() == x.unsafe_buffer_pointer()
    False
    """
    return jax.tree.map(lambda x: x if isinstance(x, Tracer) else jnp.array(x, copy=True), tree)


def _is_control_state(x: Any) -> bool:
    return isinstance(x, ControlState)


def _is_variable(x: Any) -> bool:
    from flax import nnx

    return isinstance(x, nnx.Variable)


def _read_variable(x: Any) -> Any:
    """Unwrap the variables that `nnx.Optimizer` makes of every leaf."""
    return x[...] if _is_variable(x) else x


def _write_variable(x: Any, value: Any) -> Any:
    return x.replace(value) if _is_variable(x) else value


def _split(
    inner_factory: Callable[..., optax.GradientTransformation],
    controller: Controller,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[dict[str, Any], Callable[..., optax.GradientTransformation]]:
    """Split a call of the factory into starting values and a function of the steered values."""
    signature = inspect.signature(inner_factory)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        optimizer = getattr(inner_factory, "__name__", "the optimizer")
        names = ", ".join(signature.parameters)
        wrong = [name for name in kwargs if name not in signature.parameters]
        what = f"got an unexpected argument {wrong[0]!r}" if wrong else str(error)
        raise TypeError(f"`{optimizer}`: {what}; its arguments are {names}") from None
    bound.apply_defaults()
    rest = {p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD}
    values = dict(bound.arguments)
    for name in rest:
        values.update(values.pop(name))
    start = {
        name: _starting_value(inner_factory, controller, values, name)
        for name in controller.hyperparams
    }

    def build(**steered: Any) -> optax.GradientTransformation:
        arguments = {k: v for k, v in bound.arguments.items() if k not in rest}
        extra = {k: values[k] for k in values if k not in signature.parameters}
        weak = {name: jax.lax.full_like(jnp.asarray(0.0), x) for name, x in steered.items()}
        arguments |= {k: v for k, v in weak.items() if k in arguments}
        extra |= {k: v for k, v in weak.items() if k in extra}
        call = inspect.BoundArguments(signature, arguments)
        return inner_factory(*call.args, **call.kwargs, **extra)

    parameters = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in start]
    build.__signature__ = inspect.Signature(parameters)
    return start, build


def _starting_value(
    inner_factory: Callable[..., Any], controller: Controller, values: Mapping[str, Any], name: str
) -> Any:
    optimizer = getattr(inner_factory, "__name__", "the optimizer")
    if name not in values:
        numeric = [k for k, v in values.items() if _is_number(v)] or ["none"]
        raise ValueError(
            f"the controller steers `{name}`, which `{optimizer}` does not have; its "
            f"hyperparameters are: {', '.join(numeric)}. Choose another optimizer, in a function "
            f"of your own name the argument `{name}`, or choose what the controller steers (for "
            "`reinforce`: `action_space=optax_meta.actions.learning_rate()`)"
        )
    value = values[name]
    if not _is_number(value) or jnp.shape(value) != ():
        what = repr(value)
        if callable(value):
            what = "a schedule: pass its peak, and let `warmup` or `join` do what it did"
        raise ValueError(
            f"`{name}` is steered by the controller and must start from a number, got {what}"
        )
    low, high = controller.bounds.get(name, (-math.inf, math.inf))
    if not isinstance(value, Tracer) and not low <= value <= high:
        why = "it is multiplied, so that 0 would stay 0; " if value == 0 else ""
        raise ValueError(
            f"`{name}` must start within the controller's bounds [{low:g}, {high:g}], got {value}: "
            f"{why}start elsewhere, or widen the bounds where the controller takes them"
        )
    return value


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or callable(value):
        return False
    dtype = getattr(value, "dtype", None)
    return isinstance(value, (int, float)) if dtype is None else jnp.issubdtype(dtype, jnp.number)


def _inject(build: Callable[..., optax.GradientTransformation], start: Any) -> Any:
    # The dtype only matters for weakly typed values, of which there are none.
    return optax.inject_hyperparams(build, hyperparam_dtype=jnp.float32)(**start)


def _init(
    controller: Controller,
    start: dict[str, Any],
    build: Callable[..., optax.GradientTransformation],
    params: optax.Params,
) -> ControlState:
    leaves = [leaf for leaf in jax.tree.leaves(params) if hasattr(leaf, "dtype")]
    dtypes = [jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in leaves]
    is_double = any(jnp.finfo(d).bits == 64 for d in dtypes if jnp.issubdtype(d, jnp.inexact))
    dtype = jnp.float64 if is_double else jnp.float32
    fresh = {name: jnp.array(value, dtype, copy=True) for name, value in start.items()}
    last_samples: Any = ()
    statistics = Statistics.empty()
    if controller.needs_alignment:
        sampled = metrics_lib.sample(params)
        last_samples = jnp.stack([sampled, sampled])
        statistics = Statistics.empty(metrics_lib.least_norm(params, sampled))
    return ControlState(
        statistics=statistics.pack(),
        controller_state=controller.init(fresh),
        last_samples=last_samples,
        inner_state=_inject(build, fresh).init(params),
    )


def _update(
    controller: Controller,
    ask: Callable[..., Any],
    axis_name: str | None,
    build: Callable[..., optax.GradientTransformation],
    updates: optax.Updates,
    state: ControlState,
    params: optax.Params | None = None,
    *unnamed: Any,
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
    try:
        return _step(controller, ask, axis_name, build, updates, state, params, extra_args)
    except Exception as error:
        if _is_own(controller, state):
            raise
        raise ValueError(_FOREIGN) from error


def _is_own(controller: Controller, state: ControlState) -> bool:
    """Tell whether a state has the structure and the shapes that this controller's own has."""
    if set(state.hyperparams) != set(controller.hyperparams):
        return False

    def shapes(tree: Any) -> Any:
        return jax.tree.map(jnp.shape, tree)

    own = jax.eval_shape(controller.init, dict(state.hyperparams))
    sampled = [jnp.shape(leaf)[:-1] for leaf in jax.tree.leaves(state.last_samples)]
    return (
        shapes(state.controller_state) == shapes(own)
        and jnp.shape(state.statistics) == Statistics.empty().pack().shape
        and sampled == [(2,)] * controller.needs_alignment
    )


def _step(
    controller: Controller,
    ask: Callable[..., Any],
    axis_name: str | None,
    build: Callable[..., optax.GradientTransformation],
    updates: optax.Updates,
    state: ControlState,
    params: optax.Params | None,
    extra_args: Mapping[str, Any],
) -> tuple[optax.Updates, ControlState]:
    known = Statistics.unpack(state.statistics)
    measured, last_samples = _measure(
        controller, axis_name, known, updates, state, params, extra_args
    )
    if controller.guards_nonfinite and is_set(controller.max_growth, math.inf):
        updates, measured = _hold_growth(
            controller.max_growth * known.usual_grad_norm[0], updates, measured
        )
    statistics = metrics_lib.accumulate(known, measured)
    if controller.guards_nonfinite:
        updates, extra_args = _guard(measured, statistics, updates, extra_args)
    hyperparams, controller_state, statistics = ask(
        statistics, state.step, state.hyperparams, state.controller_state
    )
    updates, inner_state = _inject(build, hyperparams).update(
        updates,
        state.inner_state._replace(hyperparams=hyperparams),
        params,
        **extra_args,
    )
    return updates, ControlState(statistics.pack(), controller_state, last_samples, inner_state)


def _hold_growth(
    largest: jax.Array, updates: optax.Updates, measured: jax.Array
) -> tuple[optax.Updates, jax.Array]:
    """Scale gradients down to a norm of `largest`, where it is above 0."""
    grad_norm = measured[2]
    is_held = (largest > 0.0) & (grad_norm > largest) & jnp.isfinite(grad_norm)
    shrink = jnp.where(is_held, largest / grad_norm, 1.0)
    held = jax.tree.map(lambda g: g * shrink.astype(jnp.result_type(g)), updates)
    return held, measured.at[2].set(grad_norm * shrink)


def _guard(
    measured: jax.Array,
    statistics: Statistics,
    updates: optax.Updates,
    extra_args: Mapping[str, Any],
) -> tuple[optax.Updates, dict[str, Any]]:
    """Put zeros for the gradients, and the last finite loss, where this step is not finite."""
    is_healthy = jnp.isfinite(measured[0]) & jnp.isfinite(measured[2])
    safe = dict(extra_args)
    if safe.get("value") is not None:
        value = jnp.asarray(safe["value"])
        safe["value"] = jnp.where(is_healthy, value, statistics.last[0].astype(value.dtype))
    zeroed = jax.tree.map(lambda g: jnp.where(is_healthy, g, jnp.zeros_like(g)), updates)
    return zeroed, safe


def _measure(
    controller: Controller,
    axis_name: str | None,
    known: Statistics,
    updates: optax.Updates,
    state: ControlState,
    params: optax.Params | None,
    extra_args: Mapping[str, Any],
) -> tuple[jax.Array, Any]:
    """Return what `metrics.Statistics` averages, float32[8], and the new samples."""
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

    def averaged(x: jax.Array) -> jax.Array:
        return x if axis_name is None else jax.lax.pmean(x, axis_name)

    grad_norm = metrics_lib.global_norm(updates)
    move, last_samples = jnp.zeros(4, jnp.float32), ()
    if controller.needs_alignment:
        slope = averaged(metrics_lib.sample(updates))
        # On all devices alike, or none.
        leaves, is_finite = metrics_lib.inexact(params), jnp.isfinite(averaged(grad_norm))
        move, last_samples = _align(slope, leaves, state.last_samples, is_finite)
        move = move.at[3].max(known.least_param_norm[0])
    value, cost = (_scalar(name, extra_args.get(name)) for name in ("value", "cost"))
    # No gradient flows through what is measured: that of a norm at zero is nan.
    change = jnp.where(state.step > 0, _distance(value, known.last[0]), 0.0)
    parts = [jnp.stack([value, cost, grad_norm]), move, change[None]]
    return averaged(jax.lax.stop_gradient(jnp.concatenate(parts))), last_samples


@partial(jax.jit, inline=True)
def _align(
    slope: jax.Array, params: list[jax.Array], last_samples: jax.Array, is_finite: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return alignment, persistence, norms of move and parameters, float32[4], and new samples.

    The sample is taken under `lax.cond`, which XLA cannot reorder: else it copies all donated
    parameters, since the sample could be read after they were overwritten. What is computed from
    samples stays outside: a branch that returns more writes more.
    """
    # Nothing here is differentiated, and a reduction of several operands cannot be.
    slope, params, last_samples = jax.lax.stop_gradient((slope, params, last_samples))

    def remember() -> jax.Array:
        position = metrics_lib.sample(params)
        if not slope.shape == position.shape == last_samples.shape[1:]:
            raise ValueError(
                "gradients, parameters and state do not belong together: pass the gradients of "
                "those parameters that `init` saw; integer parameters with gradients belong under "
                "an optimizer of their own (`optax.partition`)"
            )
        return jnp.stack([position, last_samples[0]])

    samples = jax.lax.cond(is_finite, remember, lambda: last_samples)
    seen = metrics_lib.geometry(slope, *samples, last_samples[1])
    return jnp.where(is_finite, seen, 0.0), samples


def _distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return |x - y|, finite where both are."""
    return jnp.minimum(jnp.abs(x - y), jnp.finfo(jnp.float32).max)


def _decide(
    controller: Controller,
    statistics: Statistics,
    step: jax.Array,
    hyperparams: Hyperparams,
    controller_state: Any,
) -> tuple[Hyperparams, Any, Statistics]:
    """Ask the controller where a decision is due; else keep everything."""
    decide = partial(_ask, controller, statistics, step)
    operands = (hyperparams, controller_state)
    after = metrics_lib.decided(statistics, moved=True)
    if _is_static(controller.decision_interval):
        if controller.decision_interval == math.inf:
            return *operands, statistics
        return *decide(*operands), after
    is_due = controller.is_due(step)
    chosen = jax.lax.cond(is_due, decide, lambda *same: same, *operands)
    return *chosen, jax.tree.map(lambda new, old: jnp.where(is_due, new, old), after, statistics)


def _is_static(decision_interval: Any) -> bool:
    """Whether every step is decided upon, or none: there is no branch to take."""
    is_number = isinstance(decision_interval, (int, float))
    return is_number and decision_interval in (1, math.inf)


def _ask(
    controller: Controller,
    statistics: Statistics,
    step: jax.Array,
    hyperparams: Hyperparams,
    controller_state: Any,
) -> tuple[Hyperparams, Any]:
    """Show the window to the controller and return what it decides, kept in bounds."""
    measured = (*statistics.means, *statistics.window)
    seen = Metrics(*measured, step=step, progress=jnp.float32(-1.0))
    decided: Any = controller.update(seen, controller_state, hyperparams)
    is_pair = isinstance(decided, tuple) and len(decided) == 2 and isinstance(decided[0], Mapping)
    if not is_pair or set(decided[0]) != set(hyperparams):
        got = ", ".join(map(str, decided[0])) if is_pair else type(decided).__name__
        raise ValueError(
            "the controller's `update` must return (new hyperparameters by name, new state), with "
            f"the names {', '.join(hyperparams)} and no others, got {got}"
        )
    wanted, controller_state = decided
    kept = {
        name: _keep_in_bounds(controller, name, old, wanted[name])
        for name, old in hyperparams.items()
    }
    return kept, controller_state


def _keep_in_bounds(controller: Controller, name: str, old: jax.Array, new: Any) -> jax.Array:
    if jnp.shape(new) != ():
        raise ValueError(
            f"the controller's `update` must return a scalar for `{name}`, got one of shape "
            f"{jnp.shape(new)}"
        )
    new = jnp.asarray(new, old.dtype)
    new = jnp.where(jnp.isfinite(new), new, old)
    return jnp.clip(new, *controller.bounds[name]) if name in controller.bounds else new


def _scalar(name: str, value: Any) -> jax.Array:
    if value is None:
        return jnp.float32(0.0)
    if isinstance(value, (tuple, list, Mapping, str)):
        raise ValueError(
            f"`{name}` must be a real scalar, got a {type(value).__name__}: pass the loss alone, "
            "with `has_aux=True` the first of what `value_and_grad` returns"
        )
    value = jnp.asarray(value)
    if value.shape != () or jnp.iscomplexobj(value):
        raise ValueError(
            f"`{name}` must be a real scalar, got {value.dtype}{list(value.shape)}: pass a mean, "
            f"such as `{name}=losses.mean()`"
        )
    return value.astype(jnp.float32)


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
