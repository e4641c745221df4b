"""Several methods on one task, run by run."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_meta.base import Controller
from optax_meta.checks import check_whole, chosen
from optax_meta.configs import card_of, from_config
from optax_meta.meta.evaluation import running
from optax_meta.meta.evaluation.methods import METHODS, Method, Optimizer, name_of, steered_by
from optax_meta.meta.evaluation.results import Comparison, Interrupted, MethodResult
from optax_meta.meta.evaluation.running import Outcome, Training
from optax_meta.meta.tasks import TASKS, Task
from optax_meta.meta.versions import library_versions
from optax_meta.transform import control_hyperparams

Progress = Callable[[str, int, int], None]
Given = Method | Controller | Mapping[str, Any] | str
"""A method: a function, a controller, its config, or the name of a built-in method."""
_T = TypeVar("_T")


def compare(
    task: Task | str = "digits",
    methods: Sequence[str] | Mapping[str, Given] = tuple(METHODS),
    *,
    optimizer: Optimizer = optax.adamw,
    learning_rate: float = 1e-3,
    steps: int = 500,
    seeds: int = 10,
    progress: Progress | None = None,
) -> Comparison:
    """Train a task with each method over several seeds.

    For a seed all methods see the same initial parameters and batches. The runs of the methods
    alternate, so that a slow moment of the machine hits all of them.

    Args:
        task: a `Task` or the name of one.
        methods: names of built-in methods, which steer the learning rate, and the weight decay
            where the optimizer has one; or by names of your own controllers, their configs, as
            `from_config` takes them, or names of built-in methods: a function (total steps, seed) →
            `Controller` is called for each run, with a traced seed.
        optimizer: the inner factory; any that takes a `learning_rate`.
        learning_rate: the starting rate.
        steps: length of each run, ≥ 1.
        seeds: runs of each method, ≥ 2, since intervals need two.
        progress: called with (what is done next, units done, units in all).

    Returns:
        A `Comparison`.

    Raises:
        ValueError: a name is unknown, a number out of range, or the optimizer takes no learning
            rate, or not what a controller steers.
        Interrupted: Ctrl-C; its `partial` holds the seeds that every method finished.

    Example:
        >>> comparison = optax_meta.compare("quadratic", ["constant"], steps=3, seeds=2)
        >>> comparison.methods["constant"].losses.shape
        (2, 3)
    """
    task = chosen("task", TASKS, task)() if isinstance(task, str) else task
    steps, seeds = int(check_whole("steps", steps)), int(check_whole("seeds", seeds, 2))
    if not 0.0 < learning_rate < math.inf:
        raise ValueError(f"`learning_rate` must be positive and finite, got {learning_rate}")
    setting = _Setting(task, optimizer, learning_rate, steps)
    made = _checked(setting, methods)
    tick = _Ticker(progress, len(made) * (seeds + 1) + 1 + seeds)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in ("", *made)}
    finish = partial(_comparison, setting, made, outcomes, seeds)
    try:
        _run_all(setting, made, seeds, tick, outcomes)
    except KeyboardInterrupt:
        # A seed that some methods have not run would compare unlike with unlike.
        finished = min(len(runs) for runs in outcomes.values())
        raise Interrupted(finish(finished) if finished > 1 else None) from None
    return finish(seeds)


class _Setting(NamedTuple):
    """What all runs have in common."""

    task: Task
    optimizer: Optimizer
    learning_rate: float
    steps: int


def _checked(setting: _Setting, methods: Sequence[str] | Mapping[str, Given]) -> dict[str, Method]:
    """Return all methods as functions; what does not fit is refused before anything is compiled."""
    names = steered_by(setting.optimizer)  # also where no method asks: every run has a rate
    if not isinstance(methods, Mapping):
        methods = {name: name for name in methods}
    check_whole("methods", len(methods))
    if bad := [name for name in methods if not name or set(name) & set("/\\\0")]:
        raise ValueError(
            f"a method's name becomes that of a file, got {bad[0]!r}: leave / and \\ out"
        )
    made = {name: _as_method(names, method) for name, method in methods.items()}
    for method in made.values():
        # What a factory or a starting rate does not allow is refused here, seconds before XLA.
        controller = method(setting.steps, jnp.uint32(0))
        control_hyperparams(setting.optimizer, controller)(learning_rate=setting.learning_rate)
    return made


def _as_method(names: tuple[str, ...], given: Given) -> Method:
    if isinstance(given, str):
        return partial(chosen("method", METHODS, given), names)
    controller = from_config(given) if isinstance(given, Mapping) else given
    if not callable(controller) and not isinstance(controller, Controller):
        raise ValueError(
            f"`methods` must be Controllers, got {type(given).__name__}: give one, its config, a "
            "function that makes it, or the name of a built-in method"
        )
    return (lambda _steps, _seed: controller) if isinstance(controller, Controller) else controller


def _run_all(
    setting: _Setting,
    methods: Mapping[str, Method],
    seeds: int,
    tick: "_Ticker",
    outcomes: dict[str, list[Outcome]],
) -> None:
    """Compile all methods, "" for none, then append to `outcomes` run by run."""
    # All before the first run, so that compilation is in no method's seconds.
    runners: dict[str, Callable[[jax.Array], Training]] = {}
    for name, method in {"": None, **methods}.items():
        lower = jax.jit(partial(running.train, *setting, method)).lower
        work = partial(_compile, lower)
        runners[name] = tick(f"compiling {name}".rstrip(), work)
    latest = ""
    # Seeds outside, methods inside: a slow moment of the machine hits all of them.
    for seed in range(seeds):
        for name, runner in runners.items():
            label = f"seed {seed + 1}/{seeds}, {name or 'no controller'}{latest}"
            outcome = tick(label, partial(running.timed, runner, jnp.uint32(seed)))
            outcomes[name].append(outcome)
            latest = f" · {name or 'no controller'}: {outcome.figures}"


def _compile(lower: Callable[..., jax.stages.Lowered]) -> jax.stages.Compiled:
    return lower(jnp.uint32(0)).compile()


def _comparison(
    setting: _Setting,
    methods: Mapping[str, Method],
    outcomes: Mapping[str, list[Outcome]],
    planned_seeds: int,
    seeds: int,
) -> Comparison:
    """Return the first `seeds` runs of every method."""
    controllers = {name: make(setting.steps, jnp.uint32(0)) for name, make in methods.items()}
    return Comparison(
        task=setting.task.name,
        description=setting.task.description,
        optimizer=name_of(setting.optimizer),
        learning_rate=setting.learning_rate,
        steps=setting.steps,
        seeds=seeds,
        planned_seeds=planned_seeds,
        methods={name: _gather(outcomes[name][:seeds], c) for name, c in controllers.items()},
        bare_seconds=np.array([outcome.seconds for outcome in outcomes[""][:seeds]]),
        versions=library_versions(),
    )


def _gather(outcomes: Sequence[Outcome], controller: Controller) -> MethodResult:
    trainings = [outcome.training for outcome in outcomes]
    initial, final, losses, records = jax.tree.map(lambda *xs: np.stack(xs), *trainings)
    return MethodResult(
        # In double precision, since differences of nearly equal losses are taken of them.
        initial=jax.tree.map(np.float64, initial),
        final=jax.tree.map(np.float64, final),
        losses=losses,
        records=records,
        seconds=np.array([outcome.seconds for outcome in outcomes]),
        **card_of(controller)._asdict(),
    )


class _Ticker:
    """Call functions in a row and report how many are done."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, label: str, work: Callable[[], _T]) -> _T:
        self._report(label)
        result = work()
        self.done += 1
        self._report(label)
        return result

    def _report(self, label: str) -> None:
        if self.progress is not None:
            self.progress(label, self.done, self.total)
