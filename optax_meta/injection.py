"""How an Optax factory takes hyperparameters that change: the lean form of `inject_hyperparams`.

Only what the controller steers is injected; everything else stays static, as the factory was
called. So masks, dtypes and integers survive, and under `constant` no bit differs.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from optax_meta.base import Controller, Hyperparams
from optax_meta.checks import is_number

Factory = Callable[..., optax.GradientTransformation]


class Injection(NamedTuple):
    """A call of a factory, split into what is steered and the rest.

    Attributes:
        start: values of the steered hyperparameters to start from, by name.
        build: steered values by name → the transformation.
    """

    start: dict[str, Any]
    build: Factory

    def transformation(self, hyperparams: Mapping[str, Any]) -> optax.GradientTransformation:
        """Return the injected transformation for these values.

        Args:
            hyperparams: of all steered hyperparameters, by name.
        """
        # All have one dtype; older versions of Optax would cast strongly typed values, too.
        dtype = next((jnp.result_type(x) for x in hyperparams.values()), jnp.float32)
        inject: Any = optax.inject_hyperparams(self.build, hyperparam_dtype=dtype)
        return inject(**hyperparams)


def split(
    factory: Factory, controller: Controller, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Injection:
    """Split a call of a factory into starting values and a function of the steered values.

    Args:
        factory: for instance `optax.adamw`.
        controller: of which the names, the bounds and `default_start` are read.
        args: positional arguments of the call.
        kwargs: named ones.

    Raises:
        TypeError: the factory takes no such arguments.
        ValueError: a steered hyperparameter is unknown, no number, or out of bounds.
    """
    signature = inspect.signature(factory)
    bound = _bind(factory, signature, controller, args, kwargs)
    rest = {p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD}
    values = dict(bound.arguments)
    for name in rest:
        values.update(values.pop(name))
    start = {name: _start(factory, controller, values, name) for name in controller.hyperparams}

    def build(**steered: jax.Array) -> optax.GradientTransformation:
        arguments = {k: v for k, v in bound.arguments.items() if k not in rest}
        extra = {k: values[k] for k in values if k not in signature.parameters}
        # Weakly typed, as a Python float would be: so the optimizer keeps its dtypes.
        weak = {name: jax.lax.full_like(jnp.asarray(0.0), x) for name, x in steered.items()}
        arguments |= {k: v for k, v in weak.items() if k in arguments}
        extra |= {k: v for k, v in weak.items() if k in extra}
        call = inspect.BoundArguments(signature, arguments)
        return _without_progress(factory(*call.args, **call.kwargs, **extra))

    parameters = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in start]
    build.__signature__ = inspect.Signature(parameters)
    return Injection(start, build)


def _without_progress(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return a transformation that does not see `progress`, unless it takes that."""
    if not isinstance(tx, optax.GradientTransformationExtraArgs):
        return tx  # it gets no such arguments at all
    takes = inspect.signature(tx.update).parameters
    if "progress" in takes or any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        return tx
    plain: Any = tx.update

    def update(*args: Any, progress: object = None, **extra_args: Any) -> Any:
        del progress
        return plain(*args, **extra_args)

    without: Any = update
    return optax.GradientTransformationExtraArgs(tx.init, without)


def first_values(start: Mapping[str, Any], dtype: Any) -> Hyperparams:
    """Return the starting values as strongly typed arrays of their own.

    A user's array would be aliased into the state and die where that is donated.

    Args:
        start: by name.
        dtype: float32 or float64.
    """
    return {name: jnp.array(value, dtype, copy=True) for name, value in start.items()}


def _bind(
    factory: Factory,
    signature: inspect.Signature,
    controller: Controller,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> inspect.BoundArguments:
    try:
        bound = signature.bind_partial(*args, **kwargs)
        bound.arguments |= {
            name: value
            for name, value in controller.default_start.items()
            if name not in bound.arguments and _needs_value(signature, name)
        }
        # So that what is still missing is named.
        signature.bind(*bound.args, **bound.kwargs)
    except TypeError as error:
        names = ", ".join(signature.parameters)
        wrong = [name for name in kwargs if name not in signature.parameters]
        what = f"got an unexpected argument {wrong[0]!r}" if wrong else str(error)
        raise TypeError(f"`{_name(factory)}`: {what}; its arguments are {names}") from None
    bound.apply_defaults()
    return bound


def _needs_value(signature: inspect.Signature, name: str) -> bool:
    """Tell whether an argument has no default, or one that is no number, as in Adafactor."""
    parameter = signature.parameters.get(name)
    return parameter is not None and not is_number(parameter.default)


def _start(factory: Factory, controller: Controller, values: Mapping[str, Any], name: str) -> Any:
    """Return the value that a steered hyperparameter starts from."""
    if name not in values:
        numeric = [k for k, v in values.items() if is_number(v)] or ["none"]
        raise ValueError(
            f"the controller steers `{name}`, which `{_name(factory)}` does not have; its "
            f"hyperparameters are: {', '.join(numeric)}. Choose another optimizer, in a function "
            f"of your own name the argument `{name}`, or choose what the controller steers (for "
            "`reinforce`: `action_space=optax_meta.actions.learning_rate()`)"
        )
    value = values[name]
    if not is_number(value) or jnp.shape(value) != ():
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


def _name(factory: Factory) -> str:
    return getattr(factory, "__name__", "the optimizer")
