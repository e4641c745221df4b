"""What arguments must satisfy, checked when a factory is called."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_T = TypeVar("_T")

Number: TypeAlias = Any
"""A Python number, or a scalar array that may be traced."""


def is_set(number: Number, off: float) -> bool:
    """Whether a number that may be traced differs from the one that turns it off; if so, it may.

    >>> is_set(0.0, off=0.0), is_set(jnp.float32(0.0), off=0.0)
    (False, True)
    """
    return not isinstance(number, (int, float)) or number != off


def is_number(value: object) -> bool:
    """Whether a value is a number or an array of numbers: no bool, no schedule, no key.

    >>> is_number(0.5), is_number(jnp.ones(2)), is_number(True), is_number(jax.random.key(0))
    (True, True, False, False)
    """
    if isinstance(value, bool) or callable(value):
        return False
    dtype = getattr(value, "dtype", None)
    return (
        isinstance(value, (int, float, complex))
        if dtype is None
        else jnp.issubdtype(dtype, jnp.number)
    )


def is_real_scalar(value: Any) -> bool:
    """Whether a value, which may be traced, is a single number that is not complex.

    >>> is_real_scalar(jnp.float32(0.5)), is_real_scalar(jnp.ones(1)), is_real_scalar(1j)
    (True, False, False)
    """
    kind = getattr(value, "dtype", type(value))
    is_real = is_number(value) and not jnp.issubdtype(kind, jnp.complexfloating)
    return is_real and jnp.shape(value) == ()


def check_whole(name: str, number: Number, least: int = 1) -> Any:
    """Refuse what is no count; return it, a NumPy integer as an `int`.

    Args:
        name: of the argument, for the message.
        number: an integer, also as an array; of a traced scalar nothing but the dtype is checked.
        least: smallest value allowed.

    Raises:
        ValueError: it is something else, or smaller.

    >>> check_whole("patience", 2.5)
    Traceback (most recent call last):
    ValueError: `patience` must be a whole number ≥ 1, got 2.5
    """
    if not _is_whole(number, least):
        raise ValueError(f"`{name}` must be a whole number ≥ {least}, got {number!r}")
    if isinstance(number, jax.Array) and jnp.issubdtype(number.dtype, jnp.unsignedinteger):
        return number.astype(jnp.int32)  # it is subtracted from
    return int(number) if isinstance(number, (np.integer, np.ndarray)) else number


def check_number(name: str, number: Number, least: float = 0.0) -> None:
    """Refuse what is no number, or one that is too small; of a traced one nothing is checked.

    Args:
        name: of the argument, for the message.
        number: a number, also as a scalar array; may be infinite.
        least: smallest value allowed.

    Raises:
        ValueError: it is something else, smaller, or nan.

    >>> check_number("power", -1.0)
    Traceback (most recent call last):
    ValueError: `power` must be a number ≥ 0, got -1.0
    """
    if isinstance(number, Tracer):
        return
    value = np.asarray(number)[()] if isinstance(number, jax.Array) else number
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not is_number or not value >= least:
        raise ValueError(f"`{name}` must be a number ≥ {least:g}, got {number!r}")


def check_numbers(**numbers: Number) -> None:
    """Refuse what is no number ≥ 0, as `check_number` does.

    Args:
        **numbers: arguments by name.

    Raises:
        ValueError: one is something else.

    >>> check_numbers(power=1.0, last_raise=-0.5)
    Traceback (most recent call last):
    ValueError: `last_raise` must be a number ≥ 0, got -0.5
    """
    for name, number in numbers.items():
        check_number(name, number)


def check_share(name: str, number: Number) -> None:
    """Refuse what is no number in [0, 1]; of a traced one nothing but shape and dtype are checked.

    Args:
        name: of the argument, for the message.
        number: a scalar, also as an array.

    Raises:
        ValueError: it is something else.

    >>> check_share("progress", 1.5)
    Traceback (most recent call last):
    ValueError: `progress` must be a number in [0, 1], the share of the run that is over, got 1.5
    """
    if not is_real_scalar(number) or not (
        isinstance(number, Tracer) or 0.0 <= float(number) <= 1.0
    ):
        raise ValueError(
            f"`{name}` must be a number in [0, 1], the share of the run that is over, got "
            f"{number!r}"
        )


def check_seed(seed: Any) -> None:
    """Refuse what is no seed; of a traced scalar nothing but the dtype is checked.

    Args:
        seed: an integer that fits uint32, also as an array.

    Raises:
        ValueError: it is something else.

    >>> check_seed(-1)
    Traceback (most recent call last):
    ValueError: `seed` must be an integer in [0, 2³²), got -1
    """
    fits = _is_whole(seed, 0)
    if not fits or (not isinstance(seed, Tracer) and int(seed) >= 2**32):
        raise ValueError(f"`seed` must be an integer in [0, 2³²), got {seed!r}")


def check_interval(interval: Any) -> Any:
    """Refuse what is no number of steps between decisions.

    Args:
        interval: as `check_whole` takes it, or `math.inf`.

    Raises:
        ValueError: it is something else, or smaller than 1.

    >>> check_interval(10.0)
    Traceback (most recent call last):
    ValueError: `decision_interval` must be a whole number ≥ 1 or `math.inf`, got 10.0
    """
    if _is_whole(interval, 1):
        return check_whole("decision_interval", interval)
    if interval != math.inf:
        raise ValueError(
            f"`decision_interval` must be a whole number ≥ 1 or `math.inf`, got {interval!r}"
        )
    return math.inf


def _is_whole(number: Any, least: int) -> bool:
    if isinstance(number, (jax.Array, np.ndarray)):
        is_int = jnp.issubdtype(number.dtype, jnp.integer) and number.shape == ()
        return is_int and (isinstance(number, Tracer) or int(number) >= least)
    is_int = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
    return is_int and bool(number >= least)


def chosen(kind: str, choices: Mapping[str, _T], name: object) -> _T:
    """Return what a name stands for.

    Args:
        kind: what is chosen, for the message.
        choices: what there is, by name.
        name: which of them.

    Raises:
        ValueError: it is none of them.

    >>> chosen("mode", {"min": 1, "max": -1}, "least")
    Traceback (most recent call last):
    ValueError: unknown mode 'least': choose from min, max
    """
    if not isinstance(name, str) or name not in choices:
        raise ValueError(f"unknown {kind} {name!r}: choose from {', '.join(choices)}")
    return choices[name]


def check_known(name: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse arguments that a function does not have.

    Args:
        name: of the function, for the message.
        given: names of arguments.
        known: those that it has.

    Raises:
        ValueError: one is another.

    >>> check_known("plateau", ["patiance"], ["factor", "patience"])
    Traceback (most recent call last):
    ValueError: `plateau` has no argument `patiance`: choose from factor, patience
    """
    if unknown := [option for option in given if option not in known]:
        raise ValueError(f"`{name}` has no argument `{unknown[0]}`: choose from {', '.join(known)}")
