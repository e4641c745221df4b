"""Controllers from configs, and configs from controllers.

A config is a mapping of JSON values: what YAML, Hydra and command lines hold.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike, fspath
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from optax_meta import actions, observations, rewards
from optax_meta.actions import ActionSpace
from optax_meta.base import Controller, Encoder, Origin
from optax_meta.checks import check_interval, check_known, chosen
from optax_meta.controllers.constant import constant
from optax_meta.controllers.distance import distance
from optax_meta.controllers.hypergradient import hypergradient
from optax_meta.controllers.join import join
from optax_meta.controllers.learned import learned
from optax_meta.controllers.plateau import plateau
from optax_meta.controllers.reinforce import reinforce
from optax_meta.controllers.warmup import warmup, warmup_plateau
from optax_meta.controllers.wrapping import WRAPPERS

CONTROLLERS: Mapping[str, Callable[..., Controller]] = {
    factory.__name__: factory
    for factory in (
        constant,
        plateau,
        warmup,
        warmup_plateau,
        join,
        hypergradient,
        distance,
        reinforce,
        learned,
    )
}
"""Factories that a config can name; wrappers have names of their own, `WRAPPERS`."""

_PASSED_ON = {"warmup_plateau": plateau}
"""Whose arguments stand behind the `**` of a factory."""
_INFINITIES = {"inf": math.inf, "-inf": -math.inf}
_INTERVAL = "decision_interval"


def from_config(config: Mapping[str, Any]) -> Controller:
    """Make a controller from JSON values, as YAML, Hydra or a command line hold them.

    Args:
        config: "controller", the name of one, such as "learned" or "join"; beside it the keyword
            arguments that it takes, by name. Of every controller also "decision_interval", and
            "wrappers", a list of what it lives inside, the innermost first: each a mapping of
            "name" and the keyword arguments of that wrapper. `learned` and `reinforce` have
            wrappers of their own where none are listed. For `join` the "controllers" are a list of
            configs; a policy is the name of a shipped one or a path; encoder and reward are
            mappings of "name" and arguments, an action space is one of "moves" and "factored", as
            `to_config` writes them. "inf" stands for infinity, which JSON lacks. Any mapping will
            do, also one of OmegaConf.

    Returns:
        A `Controller`.

    Raises:
        ValueError: a name is unknown, a value is of another kind than the argument, or what the
            factory refuses.

    Example:
        >>> wrappers = [{"name": "annealed", "total_steps": 1000}, {"name": "trust_region"}]
        >>> config = {"controller": "plateau", "factor": 0.5, "wrappers": wrappers}
        >>> controller = from_config(config)
        >>> tx = optax_meta.control_hyperparams(optax.adamw, controller)(learning_rate=1e-3)
    """
    given = _mapping("config", config)
    factory = chosen("controller", CONTROLLERS, given.pop("controller", None))
    known = _parameters(factory)
    wrappers = given.pop("wrappers", None)
    interval = None if _INTERVAL in known else given.pop(_INTERVAL, None)
    options = _options(factory.__name__, known, given, ("controller", _INTERVAL, "wrappers"))
    if wrappers is not None and "wrappers" in known:
        options["wrappers"] = {}
    controller = factory(**options)
    if interval is not None:
        interval = check_interval(_number(_INTERVAL, interval))
        controller = controller._replace(decision_interval=interval)
    for entry in _list("wrappers", wrappers or []):
        controller = _wrapped(controller, _mapping("wrappers", entry))
    return controller


def to_config(controller: Controller) -> dict[str, Any]:
    """Return the config that makes a controller again: the inverse of `from_config`.

    Args:
        controller: what a factory of this library returned, also inside wrappers, and with another
            decision interval.

    Returns:
        JSON values: the arguments that were given, and all wrappers of a policy.

    Raises:
        ValueError: the controller was written by hand, another field of it was replaced, or one of
            its arguments has no name: a policy that is no file, a function of one's own, a traced
            number.

    Example:
        >>> to_config(optax_meta.annealed(optax_meta.plateau(factor=0.5), total_steps=1000))
        {'controller': 'plateau', 'factor': 0.5, 'wrappers': [{'name': 'annealed', \
'total_steps': 1000}]}
    """
    origin = controller.origin
    if origin is None:
        raise ValueError(
            "this controller was written by hand and has no config: use what a factory such as "
            "`optax_meta.plateau` made"
        )
    if origin.factory in WRAPPERS:
        config = to_config(origin.arguments["controller"])
        config["wrappers"] = [*config.get("wrappers", []), _entry(origin)]
    else:
        given = {k: v for k, v in origin.arguments.items() if k != "wrappers"}
        config = {"controller": origin.factory, **_plain_options(given)}
        if "wrappers" in _parameters(CONTROLLERS[origin.factory]):
            config["wrappers"] = _inside(origin.made)
    if _replaced(controller, origin):
        config[_INTERVAL] = _plain(_INTERVAL, controller.decision_interval)
    return config


class Card(NamedTuple):
    """What is worth knowing of the controller of a run that has been recorded.

    Attributes:
        action_labels: names of its actions; empty without a policy.
        features: names of what its policy observes; likewise.
        config: what makes it again; None for one of the user's own.
    """

    action_labels: tuple[str, ...]
    features: tuple[str, ...]
    config: dict[str, Any] | None


def card_of(controller: Controller) -> Card:
    """Return what is worth knowing of a controller.

    Args:
        controller: any.

    Example:
        >>> print(card_of(optax_meta.plateau(factor=0.5)).config)
        {'controller': 'plateau', 'factor': 0.5}
    """
    try:
        config = to_config(controller)
    except ValueError:
        config = None
    return Card(controller.action_labels, controller.features, config)


def _mapping(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        example = '`{"controller": "plateau", "factor": 0.5}`'
        if name == "wrappers":
            example = '`[{"name": "annealed", "total_steps": 1000}]`'
        raise ValueError(f"`{name}` must be as in {example}, got {value!r}")
    return {str(key): value[key] for key in value}


def _list(name: str, value: object) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"`{name}` must be a list, got {value!r}")
    return list(value)


def _parameters(factory: Callable[..., Controller]) -> dict[str, inspect.Parameter]:
    found = inspect.signature(factory).parameters
    named = {name: p for name, p in found.items() if p.kind is not p.VAR_KEYWORD}
    passed_on = _PASSED_ON.get(factory.__name__)
    return named if passed_on is None else {**named, **_parameters(passed_on)}


def _options(
    name: str,
    known: Mapping[str, inspect.Parameter],
    given: Mapping[str, Any],
    general: Sequence[str] = (),
) -> dict[str, Any]:
    """Return keyword arguments of a factory; `general` are those of the config itself."""
    check_known(name, given, [*dict.fromkeys((*known, *general))])
    needed = [key for key, parameter in known.items() if parameter.default is parameter.empty]
    if missing := [key for key in needed if key not in given]:
        raise ValueError(f"`{name}` needs `{missing[0]}`: give it in the config")
    # None says what leaving out says, where a factory takes it.
    said = {k: v for k, v in given.items() if v is not None or known[k].default is not None}
    # What has no reader of its own is a number.
    return {key: _READERS.get(key, _number)(key, value) for key, value in said.items()}


def _wrapped(controller: Controller, entry: dict[str, Any]) -> Controller:
    wrapper = chosen("wrapper", WRAPPERS, entry.pop("name", None))
    known = _parameters(wrapper)
    del known["controller"]
    return wrapper(controller, **_options(wrapper.__name__, known, entry))


def _number(name: str, value: object) -> Any:
    if isinstance(value, str) and value in _INFINITIES:
        return _INFINITIES[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = ": YAML reads 1e-3 as text, write 1.0e-3" if isinstance(value, str) else ""
        raise ValueError(f"`{name}` must be a number, got {value!r}{hint}")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"`{name}` must be a text, got {value!r}")
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be true or false, got {value!r}")
    return value


def _numbers(name: str, value: object) -> tuple[Any, ...]:
    return tuple(_number(name, number) for number in _list(name, value))


def _texts(name: str, value: object) -> tuple[str, ...]:
    return tuple(_text(name, text) for text in _list(name, value))


def _configs(name: str, value: object) -> list[Controller]:
    return [from_config(config) for config in _list(name, value)]


def _space(name: str, value: object) -> ActionSpace:
    card = _mapping(name, value)
    try:
        moves = [_mapping(name, move) for move in _list("moves", card["moves"])]
        for move in moves:
            move |= {key: _numbers(key, move[key]) for key in ("amounts", "bounds")}
        return actions.space_of({"factored": False, **card, "moves": moves})
    except KeyError as error:
        raise ValueError(f"`{name}` needs `{error.args[0]}`: give it in the config") from None


def _named(kind: str, makers: Mapping[str, Callable[..., Any]], _: str, value: object) -> Any:
    """Return what one of several makers makes, from "name" and its numbers."""
    given = _mapping(kind, value)
    make = chosen(kind, makers, given.pop("name", None))
    known = inspect.signature(make).parameters
    return make(**_options(make.__name__, known, given))


_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "action_space": _space,
    "boundaries": _numbers,
    "bounds": _numbers,
    "controllers": _configs,
    "encoder": partial(_named, "encoder", observations.ENCODERS),
    "guards_nonfinite": _flag,
    "hidden_sizes": _numbers,
    "hyperparam": _text,
    "hyperparams": _texts,
    "mode": _text,
    "policy": _text,
    "reward": partial(_named, "reward", rewards.REWARDS),
    "start": _text,
    "threshold_mode": _text,
}


def _replaced(controller: Controller, origin: Origin) -> bool:
    """Return whether the decision interval was replaced since, which a config can say."""
    pairs = zip(controller._replace(origin=None), origin.made._replace(origin=None), strict=True)
    fields = [name for name, (a, b) in zip(Controller._fields, pairs, strict=True) if a is not b]
    if others := [name for name in fields if name != _INTERVAL]:
        raise ValueError(
            f"`{others[0]}` of this controller was replaced, which no config can say: pass it to "
            "the factory, or leave it"
        )
    return bool(fields)


def _inside(controller: Controller) -> list[dict[str, Any]]:
    """Return the wrappers that a policy was put inside, the innermost first."""
    entries = []
    while controller.origin is not None:
        entries.insert(0, _entry(controller.origin))
        controller = controller.origin.arguments["controller"]
    return entries


def _entry(origin: Origin) -> dict[str, Any]:
    given = {name: value for name, value in origin.arguments.items() if name != "controller"}
    return {"name": origin.factory, **_plain_options(given)}


def _plain_options(given: Mapping[str, Any]) -> dict[str, Any]:
    # None is what an argument is where it is left out.
    return {name: _plain(name, value) for name, value in given.items() if value is not None}


def _plain(name: str, value: Any) -> Any:
    """Return an argument as JSON values."""
    for kind, write in _WRITERS.items():
        if isinstance(value, kind):
            value = write(value)
            break
    if isinstance(value, dict):
        return {key: _plain(name, item) for key, item in value.items()}
    if type(value) in (list, tuple):  # none with names, such as a policy
        return [_plain(name, item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if not isinstance(value, str | int | float):
        hint = ": save it with `save_policy` and pass the path" if name == "policy" else ""
        raise ValueError(f"`{name}` must be a JSON value to stand in a config, got {value!r}{hint}")
    return value


def _named_encoder(encoder: Encoder) -> Any:
    is_built_in = encoder.name in observations.ENCODERS
    return {"name": encoder.name, **encoder.config} if is_built_in else encoder


def _scalar(array: Any) -> Any:
    is_known = np.shape(array) == () and not isinstance(array, Tracer)
    return array.item() if is_known else array


_WRITERS: Mapping[Any, Callable[[Any], Any]] = {
    Controller: to_config,
    ActionSpace: actions.card_of,
    Encoder: _named_encoder,
    partial: lambda reward: rewards.card_of(reward) or reward,
    PathLike: fspath,
    (jax.Array, np.ndarray, np.generic): _scalar,
}
