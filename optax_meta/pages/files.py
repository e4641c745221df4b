"""The files of a report's folder: what is written into them, and read back.

`results.json` holds what a comparison found, `records/METHOD.jsonl` one row a step; a file of such
rows alone is a run.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optax_meta.evaluation import Comparison, Interval, MethodResult, summarize
from optax_meta.recording import Decision, Record

_ROW = ("seed", "step", "loss", "grad_norm", "decided", "num_nonfinite", "action_label")


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


def step_rows(result: MethodResult) -> Iterator[dict[str, Any]]:
    """One row a step; the decision's details where one was taken."""
    records = result.records
    decision = None if records.decision is None else records.decision._asdict()
    for seed, losses in enumerate(result.losses):
        for t, loss in enumerate(losses):
            at = (seed, t)
            row: dict[str, Any] = {
                "seed": seed,
                "step": int(records.step[at]),
                "loss": float(loss) if np.isfinite(loss) else None,
                "grad_norm": float(records.grad_norm[at]),
                **{name: float(x[at]) for name, x in records.hyperparams.items()},
                "decided": bool(records.decided[at]),
                "num_nonfinite": int(records.num_nonfinite[at]),
            }
            if decision is not None and row["decided"]:
                row |= {name: np.asarray(x[at]).tolist() for name, x in decision.items()}
                row["action_label"] = result.action_labels[row["action"]]
            yield row


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log; the last line of one that is being written may be cut off."""
    rows = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"line {number} of `{path}` is not JSON") from error
        if row is not None:
            rows.append(row)
    if not rows:
        raise ValueError(f"`{path}` holds no complete row yet")
    return rows


def read_comparison(folder: Path) -> Comparison:
    """Return the comparison that `results` and `step_rows` were written from."""
    try:
        held = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        runs = held.pop("runs")
        methods = {
            name: method_result(read_rows(folder / "records" / f"{name}.jsonl"), run)
            for name, run in runs.items()
        }
        held.pop("ranking")
        bare = np.array(held.pop("bare_seconds"))
        return Comparison(**held, methods=methods, bare_seconds=bare)
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"`{folder}` is no complete folder of this version's `optax-meta compare`: {error}"
        ) from error


def method_result(rows: list[dict[str, Any]], run: Mapping[str, Any]) -> MethodResult:
    """Stack rows as [seeds, steps]; nan where a run is shorter than the longest."""
    if not {"seed", "step", "loss", "decided"} <= rows[0].keys():
        raise ValueError("a row of steps needs at least seed, step, loss and decided")
    seeds = {seed: i for i, seed in enumerate(dict.fromkeys(row["seed"] for row in rows))}
    shape = (len(seeds), max(row["step"] for row in rows))

    def stack(name: str) -> np.ndarray:
        values = np.full(shape, np.nan)
        for row in rows:
            value = row.get(name)
            values[seeds[row["seed"]], row["step"] - 1] = np.nan if value is None else value
        return values

    names = [n for n in rows[0] if n not in (*_ROW, *Decision._fields)]
    zeros = np.zeros(shape)
    fields: dict[str, Any] = {
        "step": np.broadcast_to(np.arange(1, shape[1] + 1), shape),
        "value": stack("loss"),
        "cost": zeros,
        "grad_norm": stack("grad_norm"),
        "alignment": zeros,
        "hyperparams": {name: stack(name) for name in names},
        "decided": np.nan_to_num(stack("decided")).astype(bool),
        "num_nonfinite": np.nan_to_num(stack("num_nonfinite")).astype(int),
        "decision": _stack_decisions(rows, seeds, shape),
    }
    return MethodResult(
        initial=_arrays(run.get("initial", {})),
        final=_arrays(run.get("final", {})),
        losses=stack("loss"),
        records=Record(**fields),
        seconds=np.array(run.get("seconds", [])),
        action_labels=tuple(run.get("action_labels", _labels(rows))),
        features=tuple(run.get("features", ())),
    )


def _stack_decisions(
    rows: list[dict[str, Any]], seeds: Mapping[int, int], shape: tuple[int, int]
) -> Any:
    taken = [row for row in rows if "action" in row]
    if not taken:
        return None
    fields = {}
    for name in Decision._fields:
        example = np.asarray(taken[0][name])
        fields[name] = np.zeros((*shape, *example.shape), example.dtype)
        for row in taken:
            fields[name][seeds[row["seed"]], row["step"] - 1] = row[name]
    return Decision(**fields)


def _labels(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the names of the actions that were taken; the others go by their number."""
    taken = {row["action"]: row["action_label"] for row in rows if "action_label" in row}
    count = max((len(row["probabilities"]) for row in rows if "probabilities" in row), default=0)
    return tuple(taken.get(i, f"action {i}") for i in range(count))


def _arrays(values: Mapping[str, list[float | None]]) -> dict[str, np.ndarray]:
    return {name: np.array(x, np.float64) for name, x in values.items()}
