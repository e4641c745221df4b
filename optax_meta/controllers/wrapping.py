"""Wrappers by name, as policies and their files keep them."""

import inspect
from collections.abc import Callable, Mapping

from optax_meta.base import Controller
from optax_meta.checks import check_known, chosen
from optax_meta.controllers.annealed import annealed
from optax_meta.controllers.calibrated import calibrated
from optax_meta.controllers.trust_region import trust_region
from optax_meta.policies import Wrappers

WRAPPERS: Mapping[str, Callable[..., Controller]] = {
    "calibrated": calibrated,
    "annealed": annealed,
    "trust_region": trust_region,
}

OPTIONS: Mapping[str, Mapping[str, object]] = {
    name: {k: p.default for k, p in list(inspect.signature(make).parameters.items())[1:]}
    for name, make in WRAPPERS.items()
}
"""Arguments of each wrapper by name, with their defaults."""

EVERY_GOOD_RUN: Wrappers = {
    "calibrated": {"span": 4.0},
    "annealed": {},
    "trust_region": {"max_growth": 1.5},
}
"""What a policy that knows nothing yet should at least live inside: a rate that moves parameters
by a share of the way ahead, from which it cannot wander off, that falls to the end, and throws no
run away. Within a factor of four either way a random walk in a run of known length still passes
Optax's tests of convergence; without a bound it does not."""


def wrapped(controller: Controller, wrappers: Wrappers) -> Controller:
    """Put wrappers around a controller.

    Args:
        controller: innermost.
        wrappers: keyword arguments by the wrapper's name, the innermost first.

    Returns:
        A `Controller`.

    Raises:
        ValueError: a name or an argument is unknown, or a wrapper refuses.

    >>> wrapped(optax_meta.plateau(), {"annealed": {"force": 2.0}})
    Traceback (most recent call last):
    ValueError: `annealed` has no argument `force`: choose from ...
    """
    if not isinstance(wrappers, Mapping) or not all(
        isinstance(options, Mapping) for options in wrappers.values()
    ):
        raise ValueError(
            '`wrappers` must be arguments by name, as in `{"annealed": {"power": 2.0}}`, got '
            f"{wrappers!r}"
        )
    for name, options in wrappers.items():
        wrapper = chosen("wrapper", WRAPPERS, name)
        known = [n for n in OPTIONS[name] if n != "total_steps"]  # passed to the policy itself
        check_known(name, options, known)
        controller = wrapper(controller, **options)
    return controller
