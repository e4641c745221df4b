"""Factories of controllers whose results know the call that they came from."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec

from optax_meta.base import Controller, Origin

_P = ParamSpec("_P")


def keep_origin(factory: Callable[_P, Controller]) -> Callable[_P, Controller]:
    """Decorate a factory: `Controller.origin` then holds its name and the arguments given.

    Args:
        factory: a function that returns a controller.

    Returns:
        The same function but for that.

    >>> optax_meta.plateau(factor=0.5).origin.arguments
    {'factor': 0.5}
    """
    signature = inspect.signature(factory)
    rest = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]

    @functools.wraps(factory)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> Controller:
        made = factory(*args, **kwargs)
        given = dict(signature.bind(*args, **kwargs).arguments)
        for name in rest:  # as they were given: each by its own name
            given |= given.pop(name, {})
        return made._replace(origin=Origin(factory.__name__, given, made))

    return call
