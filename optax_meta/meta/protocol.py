"""How controllers are judged: against a sweep of schedules, over many cells.

A cell is a task, an inner optimizer, a starting learning rate and a horizon. All methods see the
same initial parameters and batches for a seed. A method's ratio is its final loss over that of an
oracle: the best of 13 constant rates under three schedules, chosen on other seeds than it is scored
on.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_meta.base import Controller, check_whole
from optax_meta.meta.evaluation import library_versions
from optax_meta.meta.tasks import Task, figures_at, train_step
from optax_meta.transform import control_hyperparams

CAP = 10.0
CHECKPOINTS = 20
"""At how many evenly spaced steps a run is evaluated, to see when it has the oracle's loss."""
SWEEP_RATES = tuple(10.0 ** (half / 2.0) for half in range(-10, 3))
SCHEDULES = ("constant", "linear", "cosine")
FIGURES = ("losses", "times", "test_losses")
"""What `judge` returns of a method in a cell, by the method's name: one number a run."""
_ORACLE_SEED = 10_000

Factory = Callable[..., optax.GradientTransformation]


class Run(NamedTuple):
    """What a contender is told of a run; all of it is traced.

    Attributes:
        rate: the learning rate to start from, float32[].
        steps: length of the run, int32[].
        seed: of the method's own draws, uint32[].

    Example:
        >>> walk = optax_meta.protocol.Contender.from_controller(
        ...     lambda run: optax_meta.reinforce(seed=run.seed, total_steps=run.steps)
        ... )
    """

    rate: Any
    steps: Any
    seed: Any = 0


class Contender(NamedTuple):
    """A method to be judged.

    Attributes:
        make: (factory of the inner optimizer, `Run`) → what is trained with; where there are
            `settings` they come third.
        settings: numbers or arrays, traced. Contenders that differ in these alone, made from one by
            `_replace(settings=…)`, share their compiled programs.
        optimizers: names of the inner optimizers that it is for; None for any.
        params: (optimizer state, parameters) → the parameters to evaluate; None for these.
        any_start: whether every starting rate gives the same run, which is then made once.

    Example:
        >>> cosine = optax_meta.protocol.Contender(
        ...     lambda factory, run: factory(optax_meta.protocol.schedule(2, run.rate, run.steps))
        ... )
    """

    make: Callable[..., optax.GradientTransformation]
    settings: Any = None
    optimizers: tuple[str, ...] | None = None
    params: Callable[[Any, Any], Any] | None = None
    any_start: bool = False

    @classmethod
    def from_controller(
        cls, make: Callable[..., Controller], *, settings: Any = None, any_start: bool = False
    ) -> "Contender":
        """Return the contender of a controller.

        Args:
            make: `Run` → controller; where there are settings they come second.
            settings: as in `Contender`.
            any_start: as in `Contender`.
        """
        return cls(
            lambda factory, run, *settings: control_hyperparams(factory, make(run, *settings))(
                run.rate
            ),
            settings=settings,
            any_start=any_start,
        )

    @classmethod
    def from_schedule(cls, kind: str, rate: float | None = None) -> "Contender":
        """Return the contender of a schedule.

        Args:
            kind: out of `SCHEDULES`.
            rate: its highest learning rate; None for the starting rate.
        """
        return cls(
            _scheduled,
            settings=(SCHEDULES.index(kind), np.nan if rate is None else rate),
            any_start=rate is not None,
        )

    def transformation(self, factory: Factory, run: Run) -> optax.GradientTransformationExtraArgs:
        """Return what is trained with.

        Args:
            factory: of the inner optimizer.
            run: what the method is told.
        """
        given = () if self.settings is None else (self.settings,)
        return optax.with_extra_args_support(self.make(factory, run, *given))


class Score(NamedTuple):
    """One method over many cells; an interval is that of a bootstrap over seeds, 95 %.

    Attributes:
        method: its name.
        geometric_mean: of all capped ratios; 1 is the oracle, lower is better.
        geometric_interval: its interval.
        interquartile_mean: of the cells' mean ratios.
        interquartile_interval: its interval.
        within_tenth: share of cells whose geometric mean is at most 1.1.
        diverged: share of runs that ended non-finite or above their initial loss.
        reached: share of runs that have the loss that the oracle ends with, then or earlier.
        time_to_oracle: share of its steps after which the median run first has it; inf where most
            runs never do.
        cells: how many cells.

    Example:
        >>> cell = {"floor": 0.0, "initial": [9.0, 9.0], "oracle": {"losses": [1.0, 1.0]}}
        >>> cell |= {"losses": {"mine": [[2.0, 2.0]]}, "times": {"mine": [[np.inf, np.inf]]}}
        >>> [row] = optax_meta.protocol.score([cell])
        >>> round(row.geometric_mean, 3), row.time_to_oracle
        (2.0, inf)
    """

    method: str
    geometric_mean: float
    geometric_interval: tuple[float, float]
    interquartile_mean: float
    interquartile_interval: tuple[float, float]
    within_tenth: float
    diverged: float
    reached: float
    time_to_oracle: float
    cells: int


def schedule(kind: Any, rate: Any, steps: Any) -> Callable[[Any], jax.Array]:
    """Return a schedule of the sweep: 0 constant, 1 linear, 2 cosine, as `SCHEDULES`.

    Linear and cosine fall to 0 at the end and warm up over the first twentieth.

    Args:
        kind: index into `SCHEDULES`, an integer or int32[]; may be traced, like the next two.
        rate: the highest learning rate, a number or float32[].
        steps: length of the run, a number or int32[].

    Returns:
        step, int32[] → learning rate, float32[].

    Example:
        >>> print(schedule(1, 1.0, 100)(jnp.array(50)).round(3))
        0.526
    """

    def value(step: Any) -> jax.Array:
        warm = jnp.maximum(steps / 20.0, 1.0)
        share = jnp.clip((step - warm) / jnp.maximum(steps - warm, 1.0), 0.0, 1.0)
        falls = jnp.stack(
            [jnp.ones_like(share), 1.0 - share, 0.5 * (1.0 + jnp.cos(jnp.pi * share))]
        )
        rise = jnp.where(jnp.asarray(kind) == 0, 1.0, jnp.minimum((step + 1.0) / warm, 1.0))
        return rate * rise * falls[kind]

    return value


def judge(
    tasks: Sequence[Task],
    contenders: Mapping[str, Contender],
    optimizers: Mapping[str, Factory],
    *,
    learning_rates: Sequence[float],
    horizons: Sequence[int],
    seeds: int = 10,
    oracle_seeds: int = 3,
    folder: Path | None = None,
    compiler_options: dict[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Run every method on every cell.

    Args:
        tasks: what is trained; their names tell them apart.
        contenders: methods by name.
        optimizers: factories of inner optimizers by name.
        learning_rates: starting rates.
        horizons: lengths of the runs in steps.
        seeds: runs of a method in a cell, ≥ 2.
        oracle_seeds: runs of each schedule of the sweep that it is chosen on, ≥ 1.
        folder: where finished parts are kept; a second call there runs what is missing, and what
            has other `settings` than it had. Where more of a contender changes than these, its
            name must.
        compiler_options: of XLA, for all methods alike: a cut of many short runs spends its time
            compiling.
        progress: called with what is done next, from several threads.

    Returns:
        One dict for each task, optimizer and horizon: their names; "initial" float[S]; "sweep"
        float[3][13], the mean losses that the oracle is chosen by; "oracle": kind, rate and
        float[S] of its losses and test losses; "floor"; and by method float[K][S] for K starting
        rates and S seeds: "losses"; "times", the shares of the steps, in twentieths, after which
        the run first has the oracle's mean loss, inf where it never does; "test_losses", what the
        task gives as "test_loss" after the last step, None where it holds no data out and inf where
        it is not a number. "versions": of the libraries that the schedules were run with.

    Raises:
        ValueError: fewer than two seeds, a rate or a horizon out of range, two tasks of one name,
            or a folder with results for other rates or seeds, of another version, or damaged.

    Example:
        >>> task = optax_meta.tasks.quadratic(dim=2)
        >>> hold = optax_meta.protocol.Contender.from_controller(
        ...     lambda run: optax_meta.constant()
        ... )
        >>> cells = optax_meta.protocol.judge([task], {"hold": hold}, {"sgd": optax.sgd},
        ...     learning_rates=[0.1], horizons=[5], seeds=2, oracle_seeds=1)
        >>> len(cells[0]["losses"]["hold"][0])
        2
    """
    names = [task.name for task in tasks]
    seeds = int(check_whole("seeds", seeds, 2))
    oracle_seeds = int(check_whole("oracle_seeds", oracle_seeds))
    horizons = [int(check_whole("horizons", steps)) for steps in horizons]
    rates = [float(rate) for rate in learning_rates]
    if not rates or not all(0.0 < rate < math.inf for rate in rates):
        raise ValueError(f"`learning_rates` must be positive and finite, got {rates}")
    if len(set(names)) < len(names):
        raise ValueError(f"tasks need different names, got {names}")
    cells = []
    for task in tasks:
        for name, factory in optimizers.items():
            runs = _Runs(task, factory, {}, compiler_options)
            fitting = {
                label: contender
                for label, contender in contenders.items()
                if contender.optimizers is None or name in contender.optimizers
            }
            for steps in horizons:
                path = None if folder is None else folder / f"{task.name}-{name}-{steps}.json"
                done = {} if path is None else _finished(path)
                setting = {
                    "task": task.name,
                    "optimizer": name,
                    "steps": steps,
                    "learning_rates": rates,
                    "seeds": seeds,
                    "oracle_seeds": oracle_seeds,
                    "floor": task.floor,
                }
                for key, value in setting.items():
                    if done and done.get(key) != value:
                        raise ValueError(
                            f"`{path}` holds results for another `{key}`, {done.get(key)} in place "
                            f"of {value}: choose another folder or remove it"
                        )
                cell = _cell(runs, fitting, setting, done, progress)
                if path is not None and cell != done:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    whole = path.with_suffix(".partial")
                    whole.write_text(json.dumps(cell))
                    whole.replace(path)
                cells.append(cell)
    return cells


def score(cells: Sequence[Mapping[str, Any]], *, rates: Sequence[int] | None = None) -> list[Score]:
    """Summarize the cells: one row a method, the lowest geometric mean first.

    Args:
        cells: from `judge`.
        rates: indices of the starting rates to look at; None for all.

    Returns:
        Rows, losers included. A method is scored on the cells that it ran in. Cells whose oracle
        is itself lost on a seed that it is scored on are left out for all: no yardstick.

    Source: interquartile mean and stratified bootstrap as in R. Agarwal et al., "Deep Reinforcement
    Learning at the Edge of the Statistical Precipice", https://arxiv.org/abs/2108.13264.

    Example:
        >>> cell = {"floor": 0.0, "initial": [9.0, 9.0], "oracle": {"losses": [1.0, 1.0]}}
        >>> cell["losses"] = {"mine": [[2.0, 2.0]], "other": [[1.0, 1.0]]}
        >>> cell["times"] = {"mine": [[np.inf, np.inf]], "other": [[0.9, 1.0]]}
        >>> [row.method for row in optax_meta.protocol.score([cell])]
        ['other', 'mine']
    """
    cells = comparable(cells)
    methods = dict.fromkeys(name for cell in cells for name in cell["losses"])
    rows = [_score(name, cells, rates) for name in methods]
    return sorted(rows, key=lambda row: row.geometric_mean)


def comparable(cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the cells whose oracle is lost on no seed: the others have no yardstick.

    Args:
        cells: from `judge`.

    Example:
        >>> cells = [{"oracle": {"losses": [1.0, end]}, "initial": [4.0, 4.0]}
        ...     for end in (2.0, 5.0, np.inf)]
        >>> len(optax_meta.protocol.comparable(cells))
        1
    """
    return [cell for cell in cells if not _lost(cell, cell["oracle"]["losses"]).any()]


def best_single(cells: Sequence[Mapping[str, Any]]) -> tuple[str, float]:
    """Return the one schedule of the sweep that serves all cells best, in hindsight.

    Args:
        cells: from `judge`, of one inner optimizer.

    Returns:
        Kind and highest rate, for `Contender.from_schedule`: those of the lowest geometric mean of
        capped ratios to each cell's best, on the seeds that the oracle is chosen on.

    Example:
        >>> sweep = np.ones((3, 13))
        >>> sweep[2, 4] = 0.5
        >>> kind, rate = optax_meta.protocol.best_single([{"floor": 0.0, "sweep": sweep}])
        >>> print(kind, round(rate, 6))
        cosine 0.001
    """
    excess = [np.array(cell["sweep"], float) - cell["floor"] for cell in cells]
    logs = [np.log(np.clip(x / max(x.min(), 1e-12), 1.0, CAP)) for x in excess]
    kind, index = np.unravel_index(np.argmin(np.mean(logs, axis=0)), np.shape(logs[0]))
    return SCHEDULES[kind], SWEEP_RATES[index]


def ratios(cell: Mapping[str, Any], method: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the capped ratios and which runs diverged.

    Args:
        cell: one dict of those that `judge` returns.
        method: one of its methods.

    Returns:
        float64[K, S], final loss over that of the oracle, held to [1/`CAP`, `CAP`], and bool[K, S]
        for K starting rates and S seeds; a diverged run counts `CAP`.

    Example:
        >>> cell = {"floor": 0.0, "initial": [9.0, 9.0], "oracle": {"losses": [1.0, 1.0]}}
        >>> cell["losses"] = {"mine": [[2.0, 99.0]]}
        >>> print(*optax_meta.protocol.ratios(cell, "mine"))
        [[ 2. 10.]] [[False  True]]
    """
    losses = np.array(cell["losses"][method], float)
    diverged = _lost(cell, losses)
    best = _oracle_loss(cell)
    excess = np.maximum(losses - cell["floor"], 0.0) / max(best - cell["floor"], 1e-12)
    return np.where(diverged, CAP, np.clip(excess, 1.0 / CAP, CAP)), diverged


def _oracle_loss(cell: Mapping[str, Any]) -> float:
    """Return the oracle's mean over seeds: one lucky or lost run of it must not decide a ratio."""
    losses = np.array(cell["oracle"]["losses"], float)
    return float(np.mean(np.where(_lost(cell, losses), cell["initial"], losses)))


def _lost(cell: Mapping[str, Any], losses: Any) -> np.ndarray:
    """Return which runs diverged: ended not finite or above where they began, bool[…, S]."""
    losses = np.array(losses, float)
    return ~np.isfinite(losses) | (losses > np.array(cell["initial"]))


def resampled(parts: Sequence[np.ndarray], draws: int = 1000) -> Iterator[np.ndarray]:
    """Yield bootstrap samples of runs: seeds are drawn anew for each task, optimizer and horizon.

    Args:
        parts: float[K, S] for each of these, K starting rates, whose runs share their seeds.
        draws: how many samples.

    Yields:
        float[ΣK, S].

    Example:
        >>> parts = [np.array([[1.0, 2.0], [3.0, 4.0]])]
        >>> {x.shape for x in optax_meta.protocol.resampled(parts, draws=3)}
        {(2, 2)}
    """
    generator = np.random.default_rng(0)
    for _ in range(draws):
        yield np.concatenate([x[:, generator.integers(0, x.shape[1], x.shape[1])] for x in parts])


def _score(method: str, cells: Sequence[Mapping[str, Any]], rates: Sequence[int] | None) -> Score:
    from scipy import stats

    cells = [cell for cell in cells if method in cell["losses"]]
    chosen = slice(None) if rates is None else list(rates)
    pairs = [ratios(cell, method) for cell in cells]
    parts = [np.log(ratio[chosen]) for ratio, _ in pairs]
    logs, diverged = np.concatenate(parts), np.concatenate([lost[chosen] for _, lost in pairs])
    times = np.concatenate([np.array(cell["times"][method], float)[chosen] for cell in cells])

    def figures(logs: np.ndarray) -> tuple[float, float]:
        means = logs.mean(axis=1)
        return float(np.exp(means.mean())), float(stats.trim_mean(np.exp(means), 0.25))

    boot = np.array([figures(part) for part in resampled(parts)])
    low, high = np.percentile(boot, [2.5, 97.5], axis=0)
    geometric, interquartile = figures(logs)
    return Score(
        method=method,
        geometric_mean=geometric,
        geometric_interval=(float(low[0]), float(high[0])),
        interquartile_mean=interquartile,
        interquartile_interval=(float(low[1]), float(high[1])),
        within_tenth=float(np.mean(np.exp(logs.mean(axis=1)) <= 1.1)),
        diverged=float(diverged.mean()),
        reached=float(np.mean(times <= 1.0)),
        time_to_oracle=float(np.quantile(times, 0.5, method="higher")),
        cells=len(logs),
    )


class _Runs(NamedTuple):
    """The runs of one task and inner optimizer; every program is compiled once for all horizons."""

    task: Task
    factory: Factory
    compiled: dict[Any, Any]
    compiler_options: dict[str, Any] | None

    def __call__(
        self,
        contender: Contender,
        rates: Any,
        seeds: Any,
        steps: int,
        *,
        watch: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return losses before the run and during it, and on held-out data, float[K, S(, C)].

        Where nobody watches, the one at the end alone is not nan; without held-out data, none is.
        """
        key = _program(contender)
        if key not in self.compiled:
            run = partial(_train, self.task, self.factory, contender._replace(settings=None))
            over_seeds = jax.vmap(run, (None, None, 0, None, None))
            self.compiled[key] = jax.jit(
                jax.vmap(over_seeds, (None, 0, None, None, None)),
                compiler_options=self.compiler_options,
            )
        settings = jax.tree.map(np.asarray, contender.settings)
        rate, seed = np.asarray(rates, np.float32), np.asarray(seeds, np.uint32)
        out = self.compiled[key](settings, rate, seed, np.int32(steps), np.bool_(watch))
        initial, curve, held_out = (np.asarray(x, float) for x in out)
        return initial, curve, held_out

    def told(self, test_losses: np.ndarray) -> list[Any]:
        """Return losses on held-out data, None where there are no such data."""
        if "test_loss" in jax.eval_shape(self._figures):
            return np.where(np.isnan(test_losses), np.inf, test_losses).tolist()
        return np.full(test_losses.shape, None).tolist()

    def _figures(self) -> dict[str, jax.Array]:
        return figures_at(self.task, self.task.init(jax.random.key(0)), 0)

    def oracle(self, steps: int, oracle_seeds: int, scored: np.ndarray) -> dict[str, Any]:
        """Choose the best schedule of the sweep and run it on the seeds that are scored."""
        chosen_on = _ORACLE_SEED + np.arange(oracle_seeds)
        tuned = []
        for kind in SCHEDULES:
            initial, curves, _ = self(Contender.from_schedule(kind), SWEEP_RATES, chosen_on, steps)
            final = curves[..., -1]
            held = np.where(np.isfinite(final), np.minimum(final, initial), initial)
            tuned.append(held.mean(axis=1))
        kind, index = np.unravel_index(np.argmin(tuned), np.shape(tuned))
        chosen = Contender.from_schedule(SCHEDULES[kind])
        initial, curves, held_out = self(chosen, SWEEP_RATES[index : index + 1], scored, steps)
        return {
            "initial": initial[0].tolist(),
            "sweep": np.stack(tuned).tolist(),
            "oracle": {
                "schedule": SCHEDULES[kind],
                "rate": SWEEP_RATES[index],
                "losses": curves[0, :, -1].tolist(),
                "test_losses": self.told(held_out[0]),
            },
        }

    def judge(
        self, contender: Contender, rates: Sequence[float], seeds: Any, steps: int, goal: float
    ) -> dict[str, list[list[float]]]:
        """Return the `FIGURES` of one contender, float[K][S] each."""
        few = rates[:1] if contender.any_start else rates
        # A schedule runs one rate at a time, as that of the oracle does: the same program.
        parts = [[rate] for rate in few] if contender.make is _scheduled else [few]
        found = [self(contender, part, seeds, steps, watch=True)[1:] for part in parts]
        curves, held_out = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        reached = curves <= goal
        times = np.where(
            reached.any(axis=-1), (1.0 + reached.argmax(axis=-1)) / CHECKPOINTS, np.inf
        )
        shape = len(rates), len(seeds)
        losses, times, held_out = (
            np.broadcast_to(x, shape) for x in (curves[..., -1], times, held_out)
        )
        figures = losses.tolist(), times.tolist(), self.told(held_out)
        return dict(zip(FIGURES, figures, strict=True))


def _program(contender: Contender) -> Any:
    """Return what contenders that can share a compiled program have in common."""
    return contender.make, contender.params


def _scheduled(factory: Factory, run: Run, settings: Any) -> optax.GradientTransformation:
    kind, rate = settings
    highest = jnp.where(jnp.isnan(rate), run.rate, rate)
    return factory(learning_rate=schedule(kind, highest, run.steps))


def _cell(
    runs: _Runs,
    contenders: Mapping[str, Contender],
    setting: Mapping[str, Any],
    done: dict[str, Any],
    progress: Callable[[str], None] | None,
) -> dict[str, Any]:
    """Run what is missing in a cell; programs that differ are compiled and run side by side."""
    steps, rates = setting["steps"], setting["learning_rates"]
    cell, scored = {**done}, np.arange(setting["seeds"])

    def announce(name: str) -> None:
        if progress is not None:
            progress(f"{setting['task']}, {setting['optimizer']}, {steps} steps: {name}")

    if "oracle" not in cell:
        announce("sweep")
        oracle = runs.oracle(steps, setting["oracle_seeds"], scored)
        empty = {**{field: {} for field in FIGURES}, "fingerprints": {}}
        cell = {**setting, **oracle, **empty, "versions": library_versions()}
    goal = _oracle_loss(cell)

    def judge(names: Sequence[str]) -> dict[str, Any]:
        found = {}
        for name in names:
            announce(name)
            found[name] = runs.judge(contenders[name], rates, scored, steps, goal)
        return found

    prints = {name: _fingerprint(contender.settings) for name, contender in contenders.items()}
    groups: dict[Any, list[str]] = {}
    for name, contender in contenders.items():
        if name not in cell["losses"] or cell["fingerprints"].get(name) != prints[name]:
            groups.setdefault(_program(contender), []).append(name)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = pool.map(judge, groups.values())
        found = {name: figures for part in parts for name, figures in part.items()}
    names = dict.fromkeys([*contenders, *cell["losses"]])
    for field in FIGURES:
        whole = {**cell[field], **{name: figures[field] for name, figures in found.items()}}
        cell[field] = {name: whole[name] for name in names}
    return {**cell, "fingerprints": {**cell["fingerprints"], **prints}}


def _finished(path: Path) -> dict[str, Any]:
    """Return what is kept of a cell, empty where there is nothing yet."""
    if not path.exists():
        return {}
    try:
        done = json.loads(path.read_text())
    except ValueError:
        done = None
    wanted = {*FIGURES, "initial", "sweep", "oracle", "versions", "fingerprints"}
    if not isinstance(done, dict) or not done.keys() >= wanted:
        raise ValueError(
            f"`{path}` is damaged, or was written by another version: choose another folder or "
            "remove it"
        )
    return done


def _fingerprint(settings: Any) -> str:
    """Return a hash of a contender's settings, such as a policy's parameters."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(settings):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _train(
    task: Task,
    factory: Factory,
    contender: Contender,
    settings: Any,
    rate: jax.Array,
    seed: jax.Array,
    steps: jax.Array,
    watch: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return losses before a run of any length, at its `CHECKPOINTS`, float[C], and held-out."""
    init_key, data_key = jax.random.split(jax.random.key(seed))
    params = task.init(init_key)
    told = Run(rate, steps, seed)
    tx = contender._replace(settings=settings).transformation(factory, told)

    def step(t: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        return train_step(task, tx, jax.random.fold_in(data_key, t), t, *carry)[:2]

    def stretch(run: tuple[Any, Any], index: jax.Array) -> tuple[Any, jax.Array]:
        start, end = (steps * i // CHECKPOINTS for i in (index, index + 1))
        run = jax.lax.fori_loop(start, end, step, run)
        is_seen = watch | (index == CHECKPOINTS - 1)
        unseen = jnp.full(2, jnp.nan, jnp.float32)
        return run, jax.lax.cond(is_seen, evaluate, lambda *_: unseen, run, end)

    def evaluate(run: tuple[Any, Any], at: jax.Array) -> jax.Array:
        final, opt_state = run
        if contender.params is not None:
            final = contender.params(opt_state, final)
        figures = figures_at(task, final, at)
        pair = figures["loss"], figures.get("test_loss", jnp.nan)
        return jnp.stack([jnp.asarray(x, jnp.float32) for x in pair])

    _, curve = jax.lax.scan(stretch, (params, tx.init(params)), jnp.arange(CHECKPOINTS))
    return figures_at(task, params, 0)["loss"], curve[:, 0], curve[-1, 1]
