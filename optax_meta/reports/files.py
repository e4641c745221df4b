"""The files of a report's folder: what is written into them, and read back.

`results.json` holds what a comparison found, `records/METHOD.jsonl` one row a step; a file of such
rows alone is a run.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optax_meta import writers
from optax_meta.meta.evaluation import Comparison, Interval, MethodResult, summarize
from optax_meta.recording import COLUMNS, Decision, Record, Row, flatten


def results(comparison: Comparison) -> dict[str, Any]:
    """Return what `results.json` holds, as JSON values."""
    runs = {
        name: {
            "initial": _lists(result.initial),
            "final": _lists(result.final),
            "seconds": result.seconds.tolist(),
            "action_labels": result.action_labels,
            "features": result.features,
        }
        for name, result in comparison.methods.items()
    }
    setting = {
        key: getattr(comparison, key)
        for key in (
            "task",
            "description",
            "optimizer",
            "learning_rate",
            "steps",
            "seeds",
            "planned_seeds",
            "versions",
        )
    }
    summary = [
        {
            name: value._asdict() if isinstance(value, Interval) else value
            for name, value in row._asdict().items()
        }
        for row in summarize(comparison)
    ]
    bare = comparison.bare_seconds.tolist()
    return {**setting, "ranking": summary, "bare_seconds": bare, "runs": runs}


def _lists(values: dict[str, np.ndarray]) -> dict[str, list[float | None]]:
    """JSON has no nan or inf: null stands for both."""
    return {
        name: [x if np.isfinite(x) else None for x in array.tolist()]
        for name, array in values.items()
    }


def step_rows(result: MethodResult) -> Iterator[Row]:
    """One row a step, with the loss of its batch; None where that is not finite."""
    flat = flatten(result.records, result.action_labels)
    for row, loss in zip(flat, result.losses.flat, strict=True):
        yield {**row, "loss": float(loss) if np.isfinite(loss) else None}


def read_comparison(folder: Path) -> Comparison:
    """Return the comparison that `results` and `step_rows` were written from."""
    try:
        held = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        runs = held.pop("runs")
        methods = {
            name: method_result(writers.read_rows(folder / "records" / f"{name}.jsonl"), run)
            for name, run in runs.items()
        }
        held.pop("ranking")
        bare = np.array(held.pop("bare_seconds"))
        return Comparison(**held, methods=methods, bare_seconds=bare)
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"`{folder}` is no complete folder of this version's `optax-meta compare`: {error}; "
            "pass another, or compare anew"
        ) from error


def method_result(rows: list[Row], run: Mapping[str, Any]) -> MethodResult:
    """Stack rows as [seeds, steps]; nan where a run is shorter than the longest.

    A run may leave out steps: until its next row, and before its first, the nearest one holds.
    """
    rows = [{"seed": 0, **row} for row in rows]
    if not {"step", "decided"} <= rows[0].keys() or not {"value", "loss"} & rows[0].keys():
        raise ValueError("a row of steps needs at least step, decided, and value or loss")
    rows = [row for row in rows if row["step"] >= 1]
    if not rows:
        raise ValueError("at least one row must have a step of 1 or more")
    seeds = {seed: i for i, seed in enumerate(dict.fromkeys(row["seed"] for row in rows))}
    shape = (len(seeds), max(row["step"] for row in rows))
    at = tuple(np.array([(seeds[row["seed"]], row["step"] - 1) for row in rows]).T)
    held = _held(at, shape)

    def stack(name: str) -> np.ndarray:
        values = np.full(shape, np.nan)
        values[at] = [np.nan if row.get(name) is None else row[name] for row in rows]
        return np.where(held < 0, np.nan, np.take_along_axis(values, held, axis=1))

    names = [name for name in rows[0] if name not in COLUMNS]
    decided = np.zeros(shape, bool)
    decided[at] = [row["decided"] for row in rows]
    losses = stack("loss" if "loss" in rows[0] else "value")
    fields: dict[str, Any] = {
        "step": np.broadcast_to(np.arange(1, shape[1] + 1), shape),
        "value": stack("value"),
        "cost": stack("cost"),
        "grad_norm": stack("grad_norm"),
        "alignment": stack("alignment"),
        "hyperparams": {name: stack(name) for name in names},
        "decided": decided,
        "num_nonfinite": np.nan_to_num(stack("num_nonfinite")).astype(int),
        "decision": _stack_decisions(rows, at, shape),
    }
    return MethodResult(
        initial=_arrays(run.get("initial", {})),
        final=_arrays(run.get("final", {})),
        losses=losses,
        records=Record(**fields),
        seconds=np.array(run.get("seconds", [])),
        action_labels=tuple(run.get("action_labels", _labels(rows))),
        features=tuple(run.get("features", ())),
    )


def _held(at: tuple[np.ndarray, ...], shape: tuple[int, int]) -> np.ndarray:
    """Return for each step which one has its row, int[seeds, steps]; -1 after a run's last."""
    steps = np.arange(shape[1])
    is_there = np.zeros(shape, bool)
    is_there[at] = True
    latest = np.maximum.accumulate(np.where(is_there, steps, -1), axis=1)
    first, last = is_there.argmax(axis=1)[:, None], latest[:, -1:]
    return np.where(steps > last, -1, np.where(latest < 0, first, latest))


def _stack_decisions(
    rows: list[Row], at: tuple[np.ndarray, ...], shape: tuple[int, int]
) -> Decision | None:
    taken = [i for i, row in enumerate(rows) if "action" in row]
    if not taken:
        return None
    there = tuple(indices[taken] for indices in at)
    fields = {}
    for name in Decision._fields:
        dtype = np.int64 if name == "action" else np.float64
        values = np.array([rows[i][name] for i in taken], dtype)
        fields[name] = np.zeros((*shape, *values.shape[1:]), dtype)
        fields[name][there] = values
    return Decision(**fields)


def _labels(rows: list[Row]) -> tuple[str, ...]:
    """Return the names of the actions that were taken; the others go by their number."""
    taken = {row["action"]: row["action_label"] for row in rows if "action_label" in row}
    count = max((len(row["probabilities"]) for row in rows if "probabilities" in row), default=0)
    return tuple(taken.get(i, f"action {i}") for i in range(count))


def _arrays(values: Mapping[str, list[float | None]]) -> dict[str, np.ndarray]:
    return {name: np.array(x, np.float64) for name, x in values.items()}
