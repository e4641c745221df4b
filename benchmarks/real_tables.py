"""Tables of the real cells, from their JSON: ratios to the best schedule, and the losses."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from wording import label, number, table, within

HERE = Path(__file__).parent
_CAP = 10.0
_DRAWS = 500
_LEAST_EXCESS = 0.01
"""Of the sweep's loss: where less could be had beyond it, excess says nothing."""

SHOWN = (
    "sweep",
    "best single schedule",
    "prodigy + linear",
    "moves of the norm, best constant",
    "moves of each matrix, best constant",
    "distance",
    "any-lr-v2",
    "adamw-lr-wd-v2",
)
"""Methods that the losses themselves are shown of."""

Cell = Mapping[str, Any]


def losses_of(cell: Cell, method: str) -> np.ndarray:
    """Return a method's losses, float64[S]; a run that diverged counts as one that did nothing."""
    found = cell["methods"][method]
    triples = zip(found["loss"], found["initial"], found["diverged"], strict=True)
    return np.array([initial if bad else loss for loss, initial, bad in triples])


def mean_loss(cell: Cell, method: str) -> float:
    """Return the mean of `losses_of`."""
    return float(losses_of(cell, method).mean())


def ratio(cell: Cell, method: str) -> float:
    """Return a method's held-out loss over that of the best schedule of the sweep."""
    return mean_loss(cell, method) / mean_loss(cell, "sweep")


def best_known(cell: Cell) -> float:
    """Return the lowest loss that any method has, or the best schedule in four times the steps."""
    means = [mean_loss(cell, method) for method in cell["methods"]]
    return min([*means, cell.get("longer", np.inf)])


def excess_ratio(cell: Cell, method: str) -> float | None:
    """Return what a method has above the best known, over what the sweep has; None if that is 0."""
    least, sweep = best_known(cell), mean_loss(cell, "sweep")
    if sweep - least < _LEAST_EXCESS * sweep:
        return None
    return float(np.clip((mean_loss(cell, method) - least) / (sweep - least), 1 / _CAP, _CAP))


def geometric(values: Sequence[float]) -> float | None:
    """Return the geometric mean, None of nothing."""
    return float(np.exp(np.mean(np.log(values)))) if values else None


def interval(cells: Sequence[Cell], method: str) -> tuple[float, float]:
    """Return where the geometric mean of the ratios lies, 95 %, by a bootstrap over seeds."""
    pairs = [(losses_of(cell, method), losses_of(cell, "sweep")) for cell in cells]
    draws = np.random.default_rng(0)
    found = []
    for _ in range(_DRAWS):
        drawn = [(x[k], y[k]) for x, y in pairs for k in [draws.integers(0, len(x), len(x))]]
        found.append(geometric([float(x.mean() / y.mean()) for x, y in drawn]))
    low, high = np.percentile(np.array(found, float), [2.5, 97.5])
    return float(low), float(high)


def accuracy(cell: Cell, method: str) -> float | None:
    """Return the mean held-out accuracy, None where there is none."""
    found = cell["methods"][method].get("test_accuracy")
    return None if found is None else float(np.mean(np.nan_to_num(np.array(found, float))))


def scores(cells: Sequence[Cell]) -> str:
    """Return a row for each method, the lowest geometric mean first, what loses included."""
    methods = dict.fromkeys(name for cell in cells for name in cell["methods"])
    rows = [_score(method, [c for c in cells if method in c["methods"]]) for method in methods]
    columns = ("method", "held-out loss", "worst cell", "excess", "accuracy", "diverged", "cells")
    return table(columns, (row for _, row in sorted(rows, key=lambda pair: pair[0])))


def _score(method: str, cells: Sequence[Cell]) -> tuple[float, tuple[str, ...]]:
    ratios = [ratio(cell, method) for cell in cells]
    excess = [x for x in (excess_ratio(cell, method) for cell in cells) if x is not None]
    pairs = [(accuracy(cell, method), accuracy(cell, "sweep")) for cell in cells]
    gains = [mine - best for mine, best in pairs if mine is not None and best is not None]
    gain = f"{np.mean(gains):+.1%}" if gains else "–"
    diverged = np.mean([cell["methods"][method]["diverged"] for cell in cells])
    mean = geometric(ratios) or np.inf
    whole = f"{mean:.3f} {within(interval(cells, method), 3)}"
    shown = (whole, number(max(ratios), 2), number(geometric(excess)))
    return mean, (label(method), *shown, gain, f"{diverged:.0%}", str(len(cells)))


def losses(cells: Sequence[Cell], methods: Sequence[str]) -> str:
    """Return held-out losses and accuracies, a row for each cell."""
    rows = []
    for cell in cells:
        kind, rate = cell["best"]
        name = f"{cell['name']}, {cell['parameters'] / 1e6:.2f}M, {cell['steps']} steps"
        rows.append((name, f"{kind} {rate:.2g}", *(_loss(cell, method) for method in methods)))
    return table(("held-out loss (accuracy)", "best schedule", *map(label, methods)), rows)


def ratios(half: str, methods: Sequence[str]) -> list[tuple[str, ...]]:
    """Return a row for each optimizer of a half: geometric means of the ratios of these methods."""
    cells = read(half)
    rows = []
    for optimizer in sorted({cell["optimizer"] for cell in cells}):
        mine = [cell for cell in cells if cell["optimizer"] == optimizer]
        having = {m: [ratio(c, m) for c in mine if m in c["methods"]] for m in methods}
        count = f"{len(mine)} cell{'s' * (len(mine) > 1)}, {optimizer}"
        rows.append((count, *(number(geometric(having[m]), 3) for m in methods)))
    return rows


def _loss(cell: Cell, method: str) -> str:
    if method not in cell["methods"]:
        return "–"
    found, share = f"{mean_loss(cell, method):.3f}", accuracy(cell, method)
    return found if share is None else f"{found} ({share:.1%})"


def read(half: str) -> list[dict[str, Any]]:
    """Return the cells of a half that were written, none before the first time."""
    path = HERE / f"real-{half}.json"
    return json.loads(path.read_text())["cells"] if path.exists() else []


def half_scores(half: str) -> str:
    """Return the scores of a half for a page."""
    cells = read(half)
    return scores(cells) if cells else f"To come: `python benchmarks/real.py --half {half} --write`"


def half_losses(half: str) -> str:
    """Return the losses of a half for a page: of the best methods, and of the shipped policy."""
    cells = read(half)
    shown = [method for method in SHOWN if any(method in cell["methods"] for cell in cells)]
    return losses(cells, shown) if cells else "To come."


NOT_RUN = "Not run, for lack of a GPU: only in miniature, and for one step in full size."


def large_gpts() -> str:
    """Return what a large GPT came to, by device, for a page."""
    files = sorted(HERE.glob("large_gpt-*.json"))
    return "\n\n".join(large_gpt(json.loads(path.read_text())) for path in files) or NOT_RUN


def large_gpt(results: Mapping[str, Any]) -> str:
    """Return a row for each method that a large GPT was trained with."""
    names = ("held-out loss", "lowest on the way", "training loss", "step, ms", "memory, GB")
    rows = [
        (
            method,
            *(number(found[name], 3) for name in ("loss", "lowest_loss", "train_loss")),
            number(found["step_milliseconds"], 1),
            number(found["memory_bytes"] / 1e9),
        )
        for method, found in results["methods"].items()
    ]
    device = results["versions"]["device"]
    title = f"{device}, {results['parameters'] / 1e6:.2f}M, {results['steps']} steps"
    return table((title, *names), rows)


def tunings() -> str:
    """Return what tuning reaches and what it keeps, for a page."""
    path = HERE / "tuning.json"
    return tuning(json.loads(path.read_text())["cells"]) if path.exists() else "To come."


def tuning(cells: Sequence[Cell]) -> str:
    """Return a row for each cell and method of tuning."""
    columns = ("", "loss", "accuracy", "accuracy before", "highest loss", "moved")
    return table(columns, (row for cell in cells for row in _tuned(cell)))


def _tuned(cell: Cell) -> list[tuple[str, ...]]:
    def mean(figures: Mapping[str, Any], name: str) -> float:
        return float(np.mean(figures[name]))

    rows = []
    for method, found in cell["methods"].items():
        before = "source_accuracy"
        kept = f"{mean(found, before):.1%}" if before in found else "–"
        rise = np.max(np.divide(found["highest_loss"], found["loss_at_start"]))
        shown = (number(mean(found, "loss"), 3), f"{mean(found, 'test_accuracy'):.1%}", kept)
        name = f"{cell['name']}: {label(method)}"
        rows.append((name, *shown, f"{rise:.2f} ×", f"{mean(found, 'moved'):.0%}"))
    return rows
