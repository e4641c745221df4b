"""Methods compared fairly: same initial parameters, same batches, several seeds."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_meta.base import Controller, check_whole
from optax_meta.checkpoints import load_policy
from optax_meta.controllers.constant import constant
from optax_meta.controllers.hypergradient import hypergradient
from optax_meta.controllers.learned import learned
from optax_meta.controllers.plateau import plateau
from optax_meta.controllers.reinforce import reinforce
from optax_meta.controllers.warmup import warmup_plateau
from optax_meta.meta.tasks import TASKS, Task, figures_at, train_step
from optax_meta.recording import Record, record
from optax_meta.transform import control_hyperparams

Method = Callable[[int, jax.Array], Controller]
"""(total steps, seed as uint32[]) → the controller for one run."""

_BOTH = ("learning_rate", "weight_decay")

METHODS: dict[str, Method] = {
    "constant": lambda steps, seed: constant(hyperparams=_BOTH),  # noqa: ARG005
    "plateau": lambda steps, seed: plateau(factor=0.5, patience=3)._replace(  # noqa: ARG005
        decision_interval=10
    ),
    "warmup-plateau": lambda steps, seed: warmup_plateau(  # noqa: ARG005
        max(steps // 20, 1), factor=0.5, patience=30
    ),
    "hypergradient": lambda steps, seed: hypergradient(step_size=0.02),  # noqa: ARG005
    "any-lr-v1": lambda steps, seed: learned(  # noqa: ARG005
        load_policy("any-lr-v1"), total_steps=steps
    ),
    "reinforce": lambda steps, seed: reinforce(seed=seed, total_steps=steps),
    "random-walk": lambda steps, seed: reinforce(
        seed=seed, total_steps=steps, start="uniform", policy_learning_rate=0.0
    ),
}
"""Methods by the name that the command line takes."""


class MethodResult(NamedTuple):
    """All runs of one method; S seeds, T steps.

    Attributes:
        initial: what `Task.evaluate` gives before the first step, float64[S] by name.
        final: the same after the last step.
        losses: training loss of each step on its batch, float32[S, T]; may hold inf and nan.
        records: a `Record` of numpy arrays with leading axes [S, T].
        seconds: wall-clock of each run without compilation, float64[S].
        action_labels: names of the actions; empty for a controller without a policy.
        features: names of what its policy sees; empty where they are not known.
    """

    initial: dict[str, np.ndarray]
    final: dict[str, np.ndarray]
    losses: np.ndarray
    records: Record
    seconds: np.ndarray
    action_labels: tuple[str, ...]
    features: tuple[str, ...]


class Comparison(NamedTuple):
    """What was run, how, and what came out.

    Attributes:
        task: the task's name.
        description: what it is, one sentence.
        optimizer: name of the inner optimizer's factory.
        learning_rate: the starting rate.
        steps: length of each run.
        seeds: number of runs of each method; the seeds are 0, 1, ….
        planned_seeds: how many were asked for; more than `seeds` where it was stopped.
        methods: results by name.
        bare_seconds: wall-clock of the optimizer without a controller, float64[S].
        versions: of the libraries and the device that ran it.
    """

    task: str
    description: str
    optimizer: str
    learning_rate: float
    steps: int
    seeds: int
    planned_seeds: int
    methods: dict[str, MethodResult]
    bare_seconds: np.ndarray
    versions: dict[str, str]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `compare`; keeps what was finished.

    Attributes:
        partial: the seeds that every method finished; None for fewer than two.
    """

    def __init__(self, partial: Comparison | None) -> None:
        super().__init__()
        self.partial = partial


class Interval(NamedTuple):
    """A mean and the half-width of its 95 % interval (Student's t over seeds).

    Attributes:
        mean: over the seeds.
        half_width: of the interval, in the same unit.
    """

    mean: float
    half_width: float


class Summary(NamedTuple):
    """One method in a table.

    Attributes:
        method: its name.
        final_loss: on the task's fixed data; a diverged run counts with its initial loss.
        loss_reduction: (initial - final)/initial, in percent.
        versus_best: 2(f - b)/(|f| + |b|) in percent for final losses f and, of the best method with
            the same seed, b: a relative difference that no single bad run can dominate.
        test_accuracy: None where the task has none.
        num_rates: distinct learning rates in a run, mean over seeds.
        lowest_rate: smallest learning rate in any run.
        highest_rate: largest learning rate in any run.
        num_diverged: runs that ended non-finite or above their initial loss.
        seconds: wall-clock of a run.
        overhead: time relative to the bare optimizer, median over seeds.
    """

    method: str
    final_loss: Interval
    loss_reduction: Interval
    versus_best: Interval
    test_accuracy: Interval | None
    num_rates: float
    lowest_rate: float
    highest_rate: float
    num_diverged: int
    seconds: Interval
    overhead: float

    @property
    def is_tied(self) -> bool:
        """Whether the interval of the difference to the best holds 0, or this is the best."""
        return self.versus_best.mean <= self.versus_best.half_width


def compare(
    task: Task | str = "digits",
    methods: Sequence[str] | Mapping[str, Method | Controller] = tuple(METHODS),
    *,
    optimizer: Callable[..., optax.GradientTransformation] = optax.adamw,
    learning_rate: float = 1e-3,
    steps: int = 500,
    seeds: int = 10,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Train a task with each method over several seeds.

    For a seed all methods see the same initial parameters and batches. The runs of the methods
    alternate, so that a slow moment of the machine hits all of them.

    Args:
        task: a `Task` or the name of one.
        methods: names of built-in methods, or controllers by name; a function (total steps, seed)
            → `Controller` is called for each run, with a traced seed.
        optimizer: the inner factory.
        learning_rate: the starting rate.
        steps: length of each run, ≥ 1.
        seeds: runs of each method, ≥ 2, since intervals need two.
        progress: called with (what is done next, units done, units in all).

    Returns:
        A `Comparison`.

    Raises:
        ValueError: a name is unknown or a number out of range.
        Interrupted: Ctrl-C; its `partial` holds the seeds that every method finished.

    Example:
        >>> comparison = optax_meta.compare("quadratic", ["constant", "plateau"], steps=20, seeds=2)
        >>> comparison.methods["plateau"].losses.shape
        (2, 20)
    """
    chosen: Task = _named(TASKS, "task", task)() if isinstance(task, str) else task
    if not isinstance(methods, Mapping):
        methods = {name: _named(METHODS, "method", name) for name in methods}
    steps, seeds = check_whole("steps", steps), check_whole("seeds", seeds, 2)
    check_whole("methods", len(methods))
    if bad := [name for name in methods if not name or set(name) & set("/\\\0")]:
        raise ValueError(
            f"a method's name becomes that of a file, got {bad[0]!r}: leave / and \\ out"
        )
    if not 0.0 < learning_rate < math.inf:
        raise ValueError(f"`learning_rate` must be positive and finite, got {learning_rate}")
    for method in methods.values():  # what does not fit is told before anything is compiled
        controller = _controller(method, steps, jnp.uint32(0))
        control_hyperparams(optimizer, controller)(learning_rate=learning_rate)
    setting = {
        "task": chosen.name,
        "description": chosen.description,
        "optimizer": getattr(optimizer, "__name__", str(optimizer)),
        "learning_rate": learning_rate,
        "steps": steps,
        "planned_seeds": seeds,
    }
    train = partial(_train, chosen, optimizer, learning_rate, steps)
    tick = _Ticker(progress, len(methods) * (seeds + 1) + 1 + seeds)
    outcomes: dict[str, list[Any]] = {name: [] for name in ("", *methods)}
    try:
        _run_all(train, methods, seeds, tick, outcomes)
    except KeyboardInterrupt:
        finished = min(len(runs) for runs in outcomes.values())
        partial_result = _comparison(setting, methods, outcomes, finished) if finished > 1 else None
        raise Interrupted(partial_result) from None
    return _comparison(setting, methods, outcomes, seeds)


def summarize(comparison: Comparison) -> list[Summary]:
    """Return one row a method, the lowest mean final loss first.

    Args:
        comparison: from `compare`.

    Returns:
        Rows in the order of the ranking, losers included.

    Example:
        >>> comparison = optax_meta.compare("quadratic", ["constant", "plateau"], steps=20, seeds=2)
        >>> rows = optax_meta.meta.evaluation.summarize(comparison)
        >>> len(rows)
        2
    """
    finals = {name: _capped(result) for name, result in comparison.methods.items()}
    best = finals[min(finals, key=lambda name: finals[name].mean())]
    rows = [
        _summary(name, result, finals[name], best, comparison.bare_seconds)
        for name, result in comparison.methods.items()
    ]
    return sorted(rows, key=lambda row: row.final_loss.mean)


def interval(values: np.ndarray) -> Interval:
    """Return a mean over seeds with its 95 % interval, mean ± t·s/√S.

    Args:
        values: one a seed, float[S], S ≥ 2.

    Returns:
        An `Interval`.

    Example:
        >>> optax_meta.meta.evaluation.interval(np.array([1.0, 3.0])).mean
        2.0
    """
    from scipy import stats

    half = stats.t.ppf(0.975, values.size - 1) * stats.sem(values)
    return Interval(float(values.mean()), float(half))


def _run_all(
    train: Callable[..., Any],
    methods: Mapping[str, Method | Controller],
    seeds: int,
    tick: "_Ticker",
    outcomes: dict[str, list[Any]],
) -> None:
    """Compile all methods, "" for none, then append to `outcomes` run by run."""
    seed0 = jnp.uint32(0)
    runners: dict[str, Any] = {
        "": tick("compiling", jax.jit(partial(train, None)).lower(seed0).compile)
    }
    for name, method in methods.items():
        lowered = jax.jit(partial(train, method)).lower
        runners[name] = tick(f"compiling {name}", lambda lowered=lowered: lowered(seed0).compile())
    latest = ""
    for seed in range(seeds):
        for name, runner in runners.items():
            label = f"seed {seed + 1}/{seeds}, {name or 'no controller'}{latest}"
            outcome = tick(label, partial(_timed, runner, jnp.uint32(seed)))
            outcomes[name].append(outcome)
            latest = f" · {_told(name, *outcome)}"


def _comparison(
    setting: dict[str, Any],
    methods: Mapping[str, Method | Controller],
    outcomes: Mapping[str, list[Any]],
    seeds: int,
) -> Comparison:
    steps = setting["steps"]
    results = {
        name: _gather(outcomes[name][:seeds], _controller(method, steps, jnp.uint32(0)))
        for name, method in methods.items()
    }
    bare = np.array([seconds for _, seconds in outcomes[""][:seeds]])
    return Comparison(
        **setting,
        seeds=seeds,
        methods=results,
        bare_seconds=bare,
        versions=library_versions(),
    )


def _named(registry: Mapping[str, Any], kind: str, name: str) -> Any:
    if name not in registry:
        raise ValueError(f"unknown {kind} {name!r}: choose from {', '.join(registry)}")
    return registry[name]


def _controller(method: Method | Controller, steps: int, seed: jax.Array) -> Controller:
    return method if isinstance(method, Controller) else method(steps, seed)


def _train(
    task: Task,
    optimizer: Callable[..., optax.GradientTransformation],
    learning_rate: float,
    steps: int,
    method: Method | Controller | None,
    seed: jax.Array,
) -> tuple[Any, Any, jax.Array, Record | None]:
    """Run one training as a single scan; return first and last parameters, losses, records."""
    init_key, data_key = jax.random.split(jax.random.key(seed))
    params = task.init(init_key)
    if method is None:
        tx = optax.with_extra_args_support(optimizer(learning_rate=learning_rate))
    else:
        controller = _controller(method, steps, seed)
        tx = control_hyperparams(optimizer, controller)(learning_rate=learning_rate)

    def step(carry: tuple[Any, Any], at: tuple[Any, Any]) -> tuple[tuple[Any, Any], Any]:
        params, opt_state, loss = train_step(task, tx, *at, *carry)
        row = None if method is None else record(opt_state)
        return (params, opt_state), (loss, row)

    at = (jax.random.split(data_key, steps), jnp.arange(steps))
    (final, _), (losses, rows) = jax.lax.scan(step, (params, tx.init(params)), at)
    return (figures_at(task, params, 0), figures_at(task, final, steps), losses, rows)


def _timed(runner: Callable[..., Any], seed: jax.Array) -> tuple[Any, float]:
    start = time.perf_counter()
    outcome = jax.block_until_ready(runner(seed))
    return outcome, time.perf_counter() - start


def _told(name: str, run: Any, seconds: float) -> str:
    """Return what a run came to, for those who wait."""
    _, final, losses, _ = run
    loss, speed = float(final["loss"]), losses.size / seconds
    return f"{name or 'no controller'}: loss {loss:.3g}, {speed:,.0f} steps/s"


class _Ticker:
    """Call functions in a row and report how many are done."""

    def __init__(self, progress: Callable[[str, int, int], None] | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, label: str, work: Callable[[], Any]) -> Any:
        if self.progress is not None:
            self.progress(label, self.done, self.total)
        result = work()
        self.done += 1
        if self.progress is not None:
            self.progress(label, self.done, self.total)
        return result


def _gather(outcomes: list[Any], controller: Controller) -> MethodResult:
    runs = [run for run, _ in outcomes]
    initial, final, losses, rows = jax.tree.map(lambda *xs: np.stack(xs), *runs)
    seconds = np.array([seconds for _, seconds in outcomes])
    to_double = partial(jax.tree.map, np.float64)
    labels, features = controller.action_labels, controller.features
    return MethodResult(
        to_double(initial), to_double(final), losses, rows, seconds, labels, features
    )


def _capped(result: MethodResult) -> np.ndarray:
    return np.where(_has_diverged(result), result.initial["loss"], result.final["loss"])


def _relative_difference(final: np.ndarray, best: np.ndarray) -> np.ndarray:
    total = np.abs(final) + np.abs(best)
    return 200.0 * (final - best) / np.where(total > 0.0, total, 1.0)


def _has_diverged(result: MethodResult) -> np.ndarray:
    final = result.final["loss"]
    return ~np.isfinite(final) | (final > result.initial["loss"])


def _summary(
    name: str,
    result: MethodResult,
    final: np.ndarray,
    best: np.ndarray,
    bare_seconds: np.ndarray,
) -> Summary:
    initial = result.initial["loss"]
    rates = result.records.hyperparams.get("learning_rate", np.zeros((len(final), 1)))
    accuracy = result.final.get("test_accuracy")
    return Summary(
        method=name,
        final_loss=interval(final),
        loss_reduction=interval(100.0 * (initial - final) / np.abs(initial)),
        versus_best=interval(_relative_difference(final, best)),
        test_accuracy=None if accuracy is None else interval(accuracy),
        num_rates=float(np.mean([np.unique(run).size for run in np.asarray(rates)])),
        lowest_rate=float(np.min(rates)),
        highest_rate=float(np.max(rates)),
        num_diverged=int(_has_diverged(result).sum()),
        seconds=interval(result.seconds),
        overhead=float(np.median(result.seconds / bare_seconds)),
    )


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries and the kind of device, by name."""
    libraries = ("optax-meta", "jax", "optax", "flax")
    device = jax.devices()[0]
    return {**{name: version(name) for name in libraries}, "device": device.device_kind}
