"""Frozen policies as contenders, and what these may differ in and still share a compiled program.

That is the parameters of the policy and the numbers of its wrappers, such as `annealed.power`; both
are traced. Counts, and which wrappers there are, are compiled in.
"""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

import optax_meta
from optax_meta import protocol
from optax_meta.checks import Number
from optax_meta.controllers.wrapping import WRAPPERS
from optax_meta.meta.protocol import Contender

NUMBERS: dict[str, float] = {
    f"{name}.{argument.name}": argument.default
    for name, wrapper in WRAPPERS.items()
    for argument in inspect.signature(wrapper).parameters.values()
    if isinstance(argument.default, float)
}
"""Every number of a wrapper that may be traced, with its default."""


class Settings(NamedTuple):
    """What is traced of a policy, or tells it from another one.

    Attributes:
        params: its parameters.
        numbers: those of its wrappers, by names out of `NUMBERS`.
        compiled: what `compiled_in` returns. Nothing reads it; where it is another one,
            `protocol.judge` runs the policy again.
        horizon_is_known: 1 where the policy gets the length of the run, else 0.
    """

    params: Any
    numbers: Mapping[str, Number]
    compiled: Mapping[str, int]
    horizon_is_known: int = 1


def settings(policy: optax_meta.Policy, *, horizon_is_known: bool = True) -> Settings:
    """Return the settings of a policy."""
    return Settings(policy.params, numbers(policy), compiled_in(policy), int(horizon_is_known))


def numbers(policy: optax_meta.Policy) -> dict[str, float]:
    """Return the numbers of a policy's wrappers, defaults included."""
    found = {}
    for name, default in NUMBERS.items():
        wrapper, argument = name.split(".")
        if wrapper in policy.wrappers:
            found[name] = float(policy.wrappers[wrapper].get(argument, default))
    return found


def compiled_in(policy: optax_meta.Policy) -> dict[str, int]:
    """Return the counts of a policy and its wrappers, and the places of these from inside out."""
    found = {"dense_steps": policy.dense_steps, "num_decisions": policy.num_decisions}
    for place, (wrapper, options) in enumerate(policy.wrappers.items()):
        named = {f"{wrapper}.{argument}": value for argument, value in options.items()}
        found |= {wrapper: place} | {k: v for k, v in named.items() if k not in NUMBERS}
    return found


def changed(policy: optax_meta.Policy, numbers: Mapping[str, Number]) -> optax_meta.Policy:
    """Return a policy with other numbers in its wrappers.

    Args:
        policy: whose wrappers these are.
        numbers: by names out of `NUMBERS`; the others stay.

    Raises:
        ValueError: the policy has no such wrapper.
    """
    # Their order comes from the policy: a mapping that was traced is sorted by name.
    wrappers = {wrapper: dict(options) for wrapper, options in policy.wrappers.items()}
    for name, number in numbers.items():
        wrapper, argument = name.split(".")
        if wrapper not in wrappers:
            raise ValueError(f"`{name}`: the policy's wrappers are {', '.join(wrappers) or 'none'}")
        wrappers[wrapper][argument] = number
    return policy._replace(wrappers=wrappers)


def with_settings(policy: optax_meta.Policy, settings: Settings) -> optax_meta.Policy:
    """Return a policy with the parameters and numbers of another one; they may be traced."""
    return changed(policy._replace(params=settings.params), settings.numbers)


def contender(policy: optax_meta.Policy) -> Contender:
    """Return the contender of a frozen policy.

    Where `compiled_in` is the same, `_replace(settings=settings(other))` gives that of another one,
    and both share a program.
    """

    def make(run: protocol.Run, settings: Settings) -> optax_meta.Controller:
        steps = settings.horizon_is_known * run.steps
        return optax_meta.learned(with_settings(policy, settings), total_steps=steps)

    return Contender.from_controller(
        make, settings=settings(policy), any_start="calibrated" in policy.wrappers
    )


def holding(policy: optax_meta.Policy) -> optax_meta.Policy:
    """Return the policy that changes nothing itself, inside the wrappers of another."""
    return optax_meta.init_policy(
        jax.random.key(0),
        encoder=policy.encoder,
        action_space=policy.action_space,
        wrappers=policy.wrappers,
        dense_steps=policy.dense_steps,
        num_decisions=policy.num_decisions,
        hidden_sizes=policy.network.hidden_sizes,
    )
