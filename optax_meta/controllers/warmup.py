"""Warm-up, and controllers one after the other."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp

from optax_meta.base import Bounds, Controller, Hyperparams, check_whole, is_set
from optax_meta.controllers.plateau import plateau
from optax_meta.metrics import Metrics


def warmup(steps: int, *, init_scale: float = 0.0, hyperparam: str = "learning_rate") -> Controller:
    """Raise the learning rate linearly to its starting value over the first steps.

    At step t = 0, 1, … it is peak·(s + (1 - s)·min((t + 1)/steps, 1)), s the `init_scale` and the
    peak the value passed to the optimizer: the first step is not wasted, and step `steps - 1` is
    the first at the peak.

    Args:
        steps: length of the warm-up in steps, ≥ 1.
        init_scale: share of the peak to rise from, in [0, 1].
        hyperparam: name of the hyperparameter to warm up.

    Returns:
        A `Controller` that holds the peak afterwards. Needs no loss.

    Raises:
        ValueError: an argument is out of range.

    Source: P. Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017,
    https://arxiv.org/abs/1706.02677.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.warmup(4))(learning_rate=1.0)
        >>> x = jnp.array(0.0)
        >>> _, state = tx.update(x, tx.init(x))
        >>> print(optax_meta.hyperparams(state)["learning_rate"])
        0.25
    """
    steps = check_whole("steps", steps)
    if not 0.0 <= init_scale <= 1.0:
        raise ValueError(f"`init_scale` must lie in [0, 1], got {init_scale}")

    def update(
        metrics: Metrics, state: jax.Array, hyperparams: Hyperparams
    ) -> tuple[Hyperparams, jax.Array]:
        share = jnp.clip((jnp.minimum(metrics.step, steps) + 1) / steps, 0.0, 1.0).astype(
            state.dtype
        )
        scale = init_scale + (1.0 - init_scale) * share
        return {**hyperparams, hyperparam: state * scale}, state

    return Controller(
        init=lambda hyperparams: jnp.array(hyperparams[hyperparam], copy=True),
        update=update,
        hyperparams=(hyperparam,),
        needs_value=False,
    )


def join(controllers: Sequence[Controller], boundaries: Sequence[int]) -> Controller:
    """Run controllers one after the other, as `optax.join_schedules` does schedules.

    Controller i is in charge from step `boundaries[i-1]` on, counts its steps from there, and
    decides as often as it would alone. Where decisions average several steps, one whose window lies
    across a boundary is taken by both controllers in order, so that a warm-up always arrives at its
    peak.

    Args:
        controllers: at least one.
        boundaries: first step of each controller but the first, rising, one fewer than
            `controllers`.

    Returns:
        A `Controller` that steers what any of them steers, within the bounds of all. Its record
        tells of the decisions of a policy where one of them has one.

    Raises:
        ValueError: these are no controllers, the lengths do not fit, or the boundaries do not rise
            from above 0.

    Example:
        >>> stages = [optax_meta.warmup(100), optax_meta.constant(), optax_meta.plateau()]
        >>> controller = optax_meta.join(stages, boundaries=[100, 500])
    """
    if not all(isinstance(controller, Controller) for controller in controllers):
        raise ValueError(
            "`controllers` must be a list of Controllers, as in "
            "`join([warmup(100), plateau()], boundaries=[100])`"
        )
    if not controllers or len(boundaries) != len(controllers) - 1:
        raise ValueError(
            f"`boundaries` must be one fewer than `controllers`, got {len(boundaries)} for "
            f"{len(controllers)}"
        )
    starts = (0, *boundaries)
    if any(not first < second for first, second in itertools.pairwise(starts)):
        raise ValueError(f"`boundaries` must rise from above 0, got {tuple(boundaries)}")
    names = tuple(dict.fromkeys(name for c in controllers for name in c.hyperparams))
    limits = [c.max_growth for c in controllers if is_set(c.max_growth, math.inf)]
    max_growth: Any = reduce(jnp.minimum, limits) if limits else math.inf
    labelled = [c for c in controllers if c.action_labels]
    is_dense = any(callable(c.dense_steps) or c.dense_steps > 0 for c in controllers)
    return Controller(
        init=lambda hyperparams: tuple(c.init(_pick(c, hyperparams)) for c in controllers),
        update=partial(_update, tuple(controllers), starts),
        hyperparams=names,
        decision_interval=_common_interval(controllers, starts),
        dense_steps=_in_charge([c.is_dense for c in controllers], starts) if is_dense else 0,
        bounds={name: _common_bounds(controllers, name) for name in names},
        action_labels=labelled[0].action_labels if len(labelled) == 1 else (),
        features=labelled[0].features if len(labelled) == 1 else (),
        needs_value=any(c.needs_value for c in controllers),
        needs_alignment=any(c.needs_alignment for c in controllers),
        guards_nonfinite=any(c.guards_nonfinite for c in controllers),
        max_growth=max_growth,
    )


def warmup_plateau(
    warmup_steps: int, *, init_scale: float = 0.0, **plateau_options: Any
) -> Controller:
    """Warm up, then reduce on plateau: the two that users ask for together.

    Args:
        warmup_steps: length of the warm-up in steps, ≥ 1; losses are not judged meanwhile.
        init_scale: as for `optax_meta.warmup`.
        **plateau_options: as for `optax_meta.plateau`.

    Returns:
        A `Controller`.

    Raises:
        ValueError: as `warmup` and `plateau`.

    Example:
        >>> controller = optax_meta.warmup_plateau(100, factor=0.5, patience=20)
    """
    name = plateau_options.get("hyperparam", "learning_rate")
    first = warmup(warmup_steps, init_scale=init_scale, hyperparam=name)
    return join([first, plateau(**plateau_options)], [warmup_steps])


def _pick(controller: Controller, hyperparams: Hyperparams) -> Hyperparams:
    return {name: hyperparams[name] for name in controller.hyperparams}


def _common_bounds(controllers: Sequence[Controller], name: str) -> Bounds:
    bounds = [c.bounds[name] for c in controllers if name in c.bounds]
    lows, highs = zip((-jnp.inf, jnp.inf), *bounds, strict=True)
    return max(lows), min(highs)


def _common_interval(controllers: Sequence[Controller], starts: Sequence[int]) -> Any:
    intervals = [c.decision_interval for c in controllers]
    if all(isinstance(interval, int) and interval == 1 for interval in intervals):
        return 1

    return _in_charge([c.is_due for c in controllers], starts)


def _in_charge(
    asked: Sequence[Callable[[Any], Any]], starts: Sequence[int]
) -> Callable[[jax.Array], jax.Array]:
    """Return the function of the step that asks whoever is in charge, with its own count."""

    def of_step(step: jax.Array) -> jax.Array:
        found = jnp.bool_(False)
        for ask, start in zip(asked, starts, strict=True):
            found = jnp.where(step >= start, ask(step - start), found)
        return found

    return of_step


def _update(
    controllers: tuple[Controller, ...],
    starts: tuple[int, ...],
    metrics: Metrics,
    state: tuple[Any, ...],
    hyperparams: Hyperparams,
) -> tuple[Hyperparams, tuple[Any, ...]]:
    window_start = metrics.step - jnp.maximum(metrics.num_steps.astype(jnp.int32) - 1, 0)
    new_states = []
    for controller, start, end, own in zip(
        controllers, starts, (*starts[1:], jnp.iinfo(jnp.int32).max), state, strict=True
    ):
        is_in_charge = (metrics.step >= start) & (window_start < end)
        seen = metrics._replace(step=metrics.step - start)
        mine = _pick(controller, hyperparams)
        changed = controller.update(seen, own, mine)
        mine, own = jax.tree.map(  # noqa: PLW2901
            partial(jnp.where, is_in_charge), changed, (mine, own)
        )
        hyperparams = {**hyperparams, **mine}
        new_states.append(own)
    return hyperparams, tuple(new_states)
