"""The methods that can be compared by name."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial

import jax
import optax

from optax_meta import actions
from optax_meta.base import Controller
from optax_meta.controllers.constant import constant
from optax_meta.controllers.hypergradient import hypergradient
from optax_meta.controllers.learned import learned
from optax_meta.controllers.plateau import plateau
from optax_meta.controllers.reinforce import classic_reinforce, reinforce
from optax_meta.controllers.warmup import warmup_plateau

Method = Callable[[int, jax.Array], Controller]
"""(total steps, seed as uint32[]) → the controller for one run."""

Optimizer = Callable[..., optax.GradientTransformation]
_STEERED = ("learning_rate", "weight_decay")


def _constant(names: tuple[str, ...], steps: int, seed: jax.Array) -> Controller:
    del steps, seed
    return constant(hyperparams=names)


def _plateau(names: tuple[str, ...], steps: int, seed: jax.Array) -> Controller:
    del names, steps, seed
    # Losses of single batches are noisy: it decides on means of ten.
    return plateau(factor=0.5, patience=3)._replace(decision_interval=10)


def _warmup_plateau(names: tuple[str, ...], steps: int, seed: jax.Array) -> Controller:
    del names, seed
    return warmup_plateau(max(steps // 20, 1), factor=0.5, patience=30)


def _hypergradient(names: tuple[str, ...], steps: int, seed: jax.Array) -> Controller:
    del names, steps, seed
    return hypergradient(step_size=0.02)


def _any_lr(names: tuple[str, ...], steps: int, seed: jax.Array) -> Controller:
    del names, seed
    return learned("any-lr-v2", total_steps=steps)


def _reinforce(names: tuple[str, ...], steps: int, seed: jax.Array) -> Controller:
    del names
    return reinforce(seed=seed, total_steps=steps)


def _random_walk(names: tuple[str, ...], steps: int, seed: jax.Array) -> Controller:
    # Two thirds of the classic nine actions move the weight decay.
    space = actions.classic() if "weight_decay" in names else actions.learning_rate()
    options = {"seed": seed, "total_steps": steps, "policy_learning_rate": 0.0}
    return classic_reinforce(action_space=space, **options)


METHODS: Mapping[str, Callable[[tuple[str, ...], int, jax.Array], Controller]] = {
    "constant": _constant,
    "plateau": _plateau,
    "warmup-plateau": _warmup_plateau,
    "hypergradient": _hypergradient,
    "any-lr-v2": _any_lr,
    "reinforce": _reinforce,
    # The classic actions, drawn evenly and never learned from: what learning must beat.
    "random-walk": _random_walk,
}
"""Methods by the name that the command line takes; before what a `Method` takes come the names of
the hyperparameters that the optimizer has, out of learning rate and weight decay."""


def steered_by(optimizer: Optimizer) -> tuple[str, ...]:
    """Return which of learning rate and weight decay an optimizer has.

    Args:
        optimizer: a factory, such as `optax.adamw`.

    Raises:
        ValueError: it is no function, or takes no learning rate.

    >>> optax_meta.meta.evaluation.methods.steered_by(optax.adamw)
    ('learning_rate', 'weight_decay')
    """
    if not callable(optimizer):
        raise ValueError(
            "`optimizer` must be a function such as `optax.adamw`, not the optimizer it returns; "
            f"got {type(optimizer).__name__}"
        )
    parameters = inspect.signature(optimizer).parameters
    if "learning_rate" not in parameters:
        raise ValueError(
            f"`optimizer` must take a `learning_rate`, which `{name_of(optimizer)}` does not; its "
            f"arguments are: {', '.join(parameters) or 'none'}. Wrap it in a function of your own "
            "that takes one"
        )
    return tuple(name for name in _STEERED if name in parameters)


def name_of(optimizer: Optimizer) -> str:
    """Return what an optimizer is called in a report.

    Args:
        optimizer: a factory; of a partial one the arguments are named as well.

    >>> from functools import partial
    >>> optax_meta.meta.evaluation.methods.name_of(partial(optax.sgd, momentum=0.9))
    'sgd(momentum=0.9)'
    """
    if isinstance(optimizer, partial):
        given = [*map(repr, optimizer.args), *(f"{k}={v!r}" for k, v in optimizer.keywords.items())]
        return f"{name_of(optimizer.func)}({', '.join(given)})"
    return getattr(optimizer, "__name__", type(optimizer).__name__)
