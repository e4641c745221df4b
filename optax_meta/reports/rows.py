"""Rows of steps, as files hold them, to and from the arrays of a `MethodResult`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from optax_meta.meta.evaluation import MethodResult
from optax_meta.recording import COLUMNS, Decision, Record, Row, flatten

JsonNumbers = Mapping[str, Sequence[float | None]]
"""Numbers by name; None stands for nan and inf, which JSON lacks."""


class Run(TypedDict, total=False):
    """What is known of a method's runs beside their rows.

    Attributes:
        initial: figures before the first step, one a seed.
        final: figures after the last.
        seconds: wall-clock of each run.
        action_labels: names of the actions.
        features: names of what the policy observed.
        config: of the controller; None where it has none.
    """

    initial: JsonNumbers
    final: JsonNumbers
    seconds: Sequence[float]
    action_labels: Sequence[str]
    features: Sequence[str]
    config: Mapping[str, Any] | None


def step_rows(result: MethodResult) -> Iterator[Row]:
    """Yield one row a step, with the loss of its batch; None where that is not finite.

    Example:
        >>> rows = [{"step": 1, "decided": False, "loss": 2.0, "learning_rate": 0.1}]
        >>> result = optax_meta.reports.rows.method_result(rows, {})
        >>> [row["loss"] for row in optax_meta.reports.rows.step_rows(result)]
        [2.0]
    """
    flat = flatten(result.records, result.action_labels)
    # The record repeats the last finite loss; what the step itself had stands beside it.
    details = zip(flat, result.losses.flat, _is_padding(result.records).flat, strict=True)
    for row, loss, is_padding in details:
        if not is_padding:
            yield {**row, "loss": float(loss) if np.isfinite(loss) else None}


def method_result(rows: Sequence[Row], run: Run) -> MethodResult:
    """Stack rows as [seeds, steps]; nan where a run is shorter than the longest.

    A run may leave out steps: until its next row, and before its first, the nearest one holds.

    Raises:
        ValueError: a column is missing, or no row is of a step.

    Example:
        >>> rows = [{"step": i, "decided": False, "loss": 2.0, "lr": 0.1} for i in (1, 2)]
        >>> optax_meta.reports.rows.method_result(rows, {}).records.hyperparams["lr"]
        array([[0.1, 0.1]])
    """
    rows = _steps_of(rows)
    grid = _Grid.of(rows)
    names = [name for name in rows[0] if name not in COLUMNS]
    fields: dict[str, Any] = {  # of numpy arrays: a record that has left the device
        "step": grid.steps(),
        **{name: grid.fill(name) for name in ("value", "cost", "grad_norm", "alignment")},
        "hyperparams": {name: grid.fill(name) for name in names},
        "decided": grid.decided(),
        "num_nonfinite": grid.counts("num_nonfinite"),
        "num_spikes": grid.counts("num_spikes"),
        "progress": np.nan_to_num(grid.fill("progress"), nan=-1.0),
        "num_misread": grid.counts("num_misread"),
        "decision": grid.decision(),
    }
    return MethodResult(
        initial=_arrays(run.get("initial", {})),
        final=_arrays(run.get("final", {})),
        losses=grid.fill("loss" if "loss" in rows[0] else "value"),
        records=Record(**fields),
        seconds=np.array(run.get("seconds", [])),
        action_labels=_labels(rows, run.get("action_labels", ())),
        features=tuple(run.get("features", ())),
        config=run.get("config"),
    )


def losses_to_draw(result: MethodResult) -> np.ndarray:
    """Return the training losses, float[S, T]: nan after a run's end, inf where it diverged.

    Example:
        >>> rows = [{"step": 1, "seed": seed, "decided": False, "loss": None} for seed in (0, 1)]
        >>> rows += [{"step": 2, "seed": 1, "decided": False, "loss": 3.0}]
        >>> result = optax_meta.reports.rows.method_result(rows, {})
        >>> print(optax_meta.reports.rows.losses_to_draw(result))
        [[inf nan]
         [inf  3.]]
    """
    losses = np.where(np.isfinite(result.losses), result.losses, np.inf)
    return np.where(_is_padding(result.records), np.nan, losses)


def leaps(result: MethodResult) -> list[int]:
    """Return the steps, from 1, at which a loss or a gradient leapt, on any seed.

    Example:
        >>> rows = [
        ...     {"step": t, "decided": False, "loss": 2.0, "num_spikes": n}
        ...     for t, n in ((1, 0), (2, 1), (3, 1))
        ... ]
        >>> optax_meta.reports.rows.leaps(optax_meta.reports.rows.method_result(rows, {}))
        [2]
    """
    totals = np.asarray(result.records.num_spikes)
    return (np.flatnonzero((np.diff(totals, prepend=0, axis=1) > 0).any(axis=0)) + 1).tolist()


def last_lesson(result: MethodResult) -> int:
    """Return the step, from 1, at which the first seed's policy learned last; 0 for never.

    Example:
        >>> choice = {"action": 1, "log_prob": -0.1, "entropy": 0.3, "reward": 0.5}
        >>> choice |= {"probabilities": [0.1, 0.9], "observation": [0.5]}
        >>> rows = [
        ...     {"step": t, "decided": True, "loss": 2.0, "baseline": b, **choice}
        ...     for t, b in ((1, 0.0), (2, 0.1), (3, 0.1))
        ... ]
        >>> last_lesson(method_result(rows, {}))
        2
    """
    decision = result.records.decision
    if decision is None:
        return 0
    taken = np.flatnonzero(np.asarray(result.records.decided)[0])
    baseline = np.asarray(decision.baseline)[0][taken]
    lessons = np.flatnonzero(np.diff(baseline, prepend=0.0))
    return int(taken[lessons[-1]]) + 1 if lessons.size else 0


def is_replanned(result: MethodResult, tolerance: float = 0.02) -> bool:
    """Return whether the progress of the first seed is known, but does not rise evenly from 0.

    Its horizon has changed then or became known late, or progress was passed that is uneven.

    Args:
        result: of a method.
        tolerance: by which progress may be off; of rows that leave out steps it rises in stairs.

    Example:
        >>> rows = [{"step": t, "decided": False, "loss": 2.0} for t in range(1, 101)]
        >>> told = [row | {"progress": (row["step"] - 1) / 100} for row in rows]
        >>> cut = told[:50] + [row | {"progress": row["step"] / 75 - 0.167} for row in rows[50:]]
        >>> method_result = optax_meta.reports.rows.method_result
        >>> [optax_meta.reports.rows.is_replanned(method_result(x, {})) for x in (rows, told, cut)]
        [False, False, True]
    """
    progress = np.asarray(result.records.progress)[0]
    progress = progress[~_is_padding(result.records)[0]]
    (under_way,) = np.nonzero((progress > 0.0) & (progress < 1.0))
    if not under_way.size:
        return False
    # Of a run of one length: that at which it was last seen to go on.
    length = under_way[-1] / progress[under_way[-1]]
    even = np.minimum(np.arange(progress.size) / length, 1.0)
    return bool((np.abs(progress - even) > tolerance).any())


def _steps_of(rows: Sequence[Row]) -> list[Row]:
    """Return the rows after an update; row 0, before the first, has nothing to draw."""
    # The rows of a single run, as `writers.jsonl` writes them, number no seed.
    rows = [{"seed": 0, **row} for row in rows]
    if not {"step", "decided"} <= rows[0].keys() or not {"value", "loss"} & rows[0].keys():
        raise ValueError("a row of steps needs at least step, decided, and value or loss")
    rows = [row for row in rows if row["step"] >= 1]
    if not rows:
        raise ValueError("at least one row must have a step of 1 or more")
    return rows


def _is_padding(records: Record) -> np.ndarray:
    """Return which columns stand after the end of a run, whose counter stays there; bool[S, T]."""
    steps = np.asarray(records.step)
    return steps < np.arange(1, steps.shape[1] + 1)


class _Grid(NamedTuple):
    """Where rows stand among S seeds and T steps.

    Attributes:
        rows: N of them.
        at: seed and step of each, int[N] and int[N].
        latest: of each step, the one whose row holds; -1 after a run's last, int[S, T].
    """

    rows: list[Row]
    at: tuple[np.ndarray, np.ndarray]
    latest: np.ndarray

    @classmethod
    def of(cls, rows: list[Row]) -> "_Grid":
        """Number the seeds in the order of their first rows."""
        seeds = {seed: i for i, seed in enumerate(dict.fromkeys(row["seed"] for row in rows))}
        at = np.array([seeds[r["seed"]] for r in rows]), np.array([r["step"] - 1 for r in rows])
        steps = np.arange(at[1].max() + 1)
        is_there = np.zeros((len(seeds), steps.size), bool)
        is_there[at] = True
        # Without this a run that is written every tenth step would be nine tenths gaps.
        latest = np.maximum.accumulate(np.where(is_there, steps, -1), axis=1)
        first, last = is_there.argmax(axis=1)[:, None], latest[:, -1:]
        return cls(rows, at, np.where(steps > last, -1, np.where(latest < 0, first, latest)))

    def fill(self, name: str) -> np.ndarray:
        """Return a column, float64[S, T]: nan where it has no number or the run has ended."""
        values = np.full(self.latest.shape, np.nan)
        # None, where JSON lacks a nan, and a column that this row leaves out say the same.
        values[self.at] = [np.nan if row.get(name) is None else row[name] for row in self.rows]
        kept = np.take_along_axis(values, self.latest, axis=1)
        return np.where(self.latest < 0, np.nan, kept)

    def counts(self, name: str) -> np.ndarray:
        """Return a column of counts, int[S, T]: 0 where it has no number."""
        return np.nan_to_num(self.fill(name)).astype(int)

    def steps(self) -> np.ndarray:
        """Return the count of steps, which ends where the run does, int[S, T]."""
        return np.minimum(np.arange(self.latest.shape[1]), self.latest.max(axis=1)[:, None]) + 1

    def decided(self) -> np.ndarray:
        """Return where a decision was taken, which no row says for its neighbours; bool[S, T]."""
        decided = np.zeros(self.latest.shape, bool)
        decided[self.at] = [row["decided"] for row in self.rows]
        return decided

    def decision(self) -> Decision | None:
        """Return the decisions where they were taken, 0 elsewhere; None where there are none."""
        taken = [i for i, row in enumerate(self.rows) if "action" in row]
        if not taken:
            return None
        there = tuple(indices[taken] for indices in self.at)

        def scatter(name: str) -> np.ndarray:
            dtype = np.int64 if name == "action" else np.float64
            missing = [i for i in taken if name not in self.rows[i]]
            if missing:
                raise ValueError(f"a row with an action needs `{name}`, too")
            values = np.array([self.rows[i][name] for i in taken], dtype)
            field = np.zeros((*self.latest.shape, *values.shape[1:]), dtype)
            field[there] = values
            return field

        return Decision(*map(scatter, Decision._fields))  # type: ignore[arg-type] # numpy arrays


def _labels(rows: list[Row], known: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the actions that are known or were taken; others go by their number."""
    count = max((len(row["probabilities"]) for row in rows if "probabilities" in row), default=0)
    # Those of another controller name nothing here.
    if count in (0, len(known)):
        return tuple(known)
    # Rows hold all probabilities, but the name of the one action only.
    taken: dict[int, str] = {r["action"]: r["action_label"] for r in rows if "action_label" in r}
    return tuple(taken.get(i, f"action {i}") for i in range(count))


def _arrays(values: JsonNumbers) -> dict[str, np.ndarray]:
    return {name: np.array(x, np.float64) for name, x in values.items()}
