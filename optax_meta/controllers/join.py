"""Controllers one after the other."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp

from optax_meta.base import NEVER, Bounds, Controller, Hyperparams, Step
from optax_meta.checks import Number, is_set
from optax_meta.metrics import Metrics, with_progress
from optax_meta.origins import keep_origin
from optax_meta.recording import StagesState


@keep_origin
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
        tells of the decisions of the policy in charge; where several of them have one, their
        actions and features are counted on, those of the first policy first.

    Raises:
        ValueError: these are no controllers, the lengths do not fit, or the boundaries do not rise
            from above 0.

    Example:
        >>> stages = [optax_meta.warmup(100), optax_meta.constant(), optax_meta.plateau()]
        >>> controller = optax_meta.join(stages, boundaries=[100, 500])
    """
    _check(controllers, boundaries)
    starts = (0, *boundaries)
    names = tuple(dict.fromkeys(name for c in controllers for name in c.hyperparams))
    is_dense = any(callable(c.dense_steps) or c.dense_steps > 0 for c in controllers)
    return Controller(
        init=lambda hyperparams: StagesState(
            jnp.int32(0), tuple(c.init(_pick(c, hyperparams)) for c in controllers)
        ),
        update=partial(_update, tuple(controllers), starts),
        hyperparams=names,
        decision_interval=_common_interval(controllers, starts),
        dense_steps=partial(_is_dense, tuple(controllers), starts) if is_dense else 0,
        bounds={name: _common_bounds(controllers, name) for name in names},
        action_labels=_numbered([c.action_labels for c in controllers]),
        features=_numbered([c.features for c in controllers]),
        needs_value=any(c.needs_value for c in controllers),
        needs_alignment=any(c.needs_alignment for c in controllers),
        guards_nonfinite=any(c.guards_nonfinite for c in controllers),
        max_growth=_least_growth(controllers),
        default_start=controllers[0].default_start,
        incremental=tuple(sorted({name for c in controllers for name in c.incremental})),
    )


def _check(controllers: Sequence[Controller], boundaries: Sequence[int]) -> None:
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
    if any(not first < second for first, second in itertools.pairwise((0, *boundaries))):
        raise ValueError(f"`boundaries` must rise from above 0, got {tuple(boundaries)}")


def _pick(controller: Controller, hyperparams: Hyperparams) -> Hyperparams:
    return {name: hyperparams[name] for name in controller.hyperparams}


def _numbered(names: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Chain names; where several stages have some, say of which stage each is."""
    if sum(map(bool, names)) < 2:
        return tuple(itertools.chain(*names))
    return tuple(f"stage {i}: {name}" for i, those in enumerate(names, 1) for name in those)


def _common_bounds(controllers: Sequence[Controller], name: str) -> Bounds:
    bounds = [c.bounds[name] for c in controllers if name in c.bounds]
    lows, highs = zip((-math.inf, math.inf), *bounds, strict=True)
    return max(lows), min(highs)


def _least_growth(controllers: Sequence[Controller]) -> Number:
    limits = [c.max_growth for c in controllers if is_set(c.max_growth, math.inf)]
    return reduce(jnp.minimum, limits) if limits else math.inf


def _common_interval(
    controllers: Sequence[Controller], starts: Sequence[int]
) -> int | Callable[[Step], Step]:
    intervals = [c.decision_interval for c in controllers]
    if all(isinstance(interval, int) and interval == 1 for interval in intervals):
        return 1
    return partial(_next_due, tuple(controllers), tuple(starts))


def _next_due(controllers: Sequence[Controller], starts: Sequence[int], step: Step) -> Step:
    """Return the first step after this one at which whoever is in charge then decides."""
    due = jnp.int32(NEVER)
    for controller, start, end in zip(controllers, starts, (*starts[1:], NEVER), strict=True):
        # Before its start a stage is asked for its first decision, with its own count.
        own = jnp.maximum(jnp.asarray(step, jnp.int32), start - 1) - start
        mine = start + jnp.asarray(controller.next_due(own), jnp.int32)
        due = jnp.minimum(due, jnp.where(mine < end, mine, NEVER))
    return due


def _is_dense(controllers: Sequence[Controller], starts: Sequence[int], step: Step) -> jax.Array:
    found = jnp.bool_(False)
    for controller, start in zip(controllers, starts, strict=True):
        mine = jnp.asarray(controller.is_dense(step - start))
        found = jnp.where(jnp.asarray(step) >= start, mine, found)
    return found


def _since(metrics: Metrics, start: int) -> Metrics:
    """Return the metrics as if the run had begun at `start`."""
    step, before = metrics.step - start, start * metrics.per_step
    left = jnp.maximum(1.0 - before, 1e-9)
    share = jnp.where(step > 0, jnp.clip((metrics.progress - before) / left, 0.0, 1.0), 0.0)
    per_step = jnp.where(step > 0, metrics.per_step / left, 0.0)
    share = jnp.where(metrics.progress > 0.0, share, metrics.progress)
    return metrics._replace(step=step, progress=share, per_step=per_step)


def _update(
    controllers: tuple[Controller, ...],
    starts: tuple[int, ...],
    metrics: Metrics,
    state: StagesState,
    hyperparams: Hyperparams,
) -> tuple[Hyperparams, StagesState]:
    window_start = metrics.step - jnp.maximum(metrics.num_steps.astype(jnp.int32) - 1, 0)
    ends = (*starts[1:], NEVER)
    new_states = []
    for controller, start, end, own in zip(controllers, starts, ends, state.stages, strict=True):
        is_in_charge = (metrics.step >= start) & (window_start < end)
        passed = with_progress(_since(metrics, start), controller.total_steps)
        mine = _pick(controller, hyperparams)
        changed = controller.update(passed, own, mine)
        mine, own = jax.tree.map(  # noqa: PLW2901
            partial(jnp.where, is_in_charge), changed, (mine, own)
        )
        hyperparams = {**hyperparams, **mine}
        new_states.append(own)
    in_charge = jnp.sum(metrics.step >= jnp.array(starts[1:], jnp.int32), dtype=jnp.int32)
    return hyperparams, StagesState(in_charge, tuple(new_states))
