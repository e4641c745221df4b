"""Tables of what learning within and across runs brings."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from wording import table, within

HERE = Path(__file__).parent
_DRAWS = 1000
_ACROSS = {
    "across": "`across_runs`, the last five of twenty",
    "tuned": "after `fine-tune`: 64 runs of a quarter of the steps",
    "narrow": "the same of a copy a quarter as wide",
}


def _read(name: str) -> dict[str, Any]:
    return json.loads((HERE / f"{name}.json").read_text())


def _over(losses: Any, base: Any) -> np.ndarray:
    """Return log-ratios of runs on the same seeds."""
    return np.log(np.array(losses, float)) - np.log(np.array(base, float))


def _mean(logs: Sequence[np.ndarray]) -> str:
    """Return a geometric mean over cells, and its interval by a bootstrap over seeds."""
    draws = np.random.default_rng(0)
    means = [
        np.mean([draws.choice(cell.ravel(), cell.size).mean() for cell in logs])
        for _ in range(_DRAWS)
    ]
    low, high = np.exp(np.percentile(means, [2.5, 97.5]))
    return f"{np.exp(np.mean([x.mean() for x in logs])):.3f} {within((low, high), 3)}"


def learning() -> str:
    """Return what learning within a run brings: over not learning, inside the same wrappers."""
    found = _read("learning")
    policy = found["policy"]
    methods = ("reinforce", f"reinforce({policy})")
    groups: dict[str, Any] = {
        half: [cell["losses"] for cell in found["cells"] if cell["half"] == half]
        for half in ("validation", "reported")
    }
    groups["small tasks, 5000 steps, excess"] = [task["excess"] for task in found["tasks"]]
    rows = []
    for method in methods:
        for group, cells in groups.items():
            logs = [_over(cell[method], cell[policy]) for cell in cells if method in cell]
            if not logs:  # the small tasks under a policy that decides as often as the fresh agent
                continue
            # Differences far below what such a task's noise leaves tell nothing.
            logs = [np.clip(x, -np.log(10.0), np.log(10.0)) for x in logs]
            worst = max(float(np.exp(x.mean())) for x in logs)
            name = {"validation": "cells that choose", "reported": "cells that are only reported"}
            rows.append((f"`{method}`: {name.get(group, group)}", _mean(logs), f"{worst:.3f}"))
    return table((f"loss over that of {policy}, which holds", "geometric mean", "worst cell"), rows)


def learning_starts() -> str:
    """Return what methods that are given a rate end at, over the fresh agent, by that rate."""
    cells = [cell for cell in _read("learning")["cells"] if cell["started"]]
    rates = list(cells[0]["started"]["constant"])
    rows = []
    for method in cells[0]["started"]:
        logs = [
            [
                np.log(c["started"][method][rate]) - np.log(c["losses"]["reinforce"][0])
                for c in cells
            ]
            for rate in rates
        ]
        bad = sum(cell["diverged"][method] for cell in cells)
        means = [f"{np.exp(np.mean(row)):.2f}" for row in logs]
        rows.append((method, *means, f"{bad} of {len(cells) * len(rates)}"))
    return table(("over `reinforce`", *rates, "diverged"), rows)


def across() -> str:
    """Return where the last runs of a row end, over the policy that it began with."""
    found = _read("across")
    last = found["last"]
    rows = []
    for cell in found["cells"]:
        losses: Mapping[str, Any] = cell["losses"]
        base = np.array(losses["learned"])
        ends = base[:, -last:]
        row = [f"{cell['name']}, {cell['steps']} steps"]
        for found in (losses[name] for name in _ACROSS):
            of = [_over(np.array(found)[:, -last:], ends[: len(found)])] if found else []
            row.append(_mean(of) if of else "–")
        explored = np.array(losses["across"])[:, :-last]
        row.append(f"{np.exp(_over(explored, base[:, :-last]).mean()):.3f}")
        rows.append(row)
    return table(("over the shipped policy", *_ACROSS.values(), "while exploring"), rows)


def reward_ranking() -> str:
    """Return how well rewards within a run know which level ends lower."""
    found = _read("reward_ranking")
    clear = found["clear"]
    columns: dict[str, list[str]] = {}
    lengths = sorted({cell["steps"] for cell in found["cells"]})
    for steps in lengths:
        cells = [cell for cell in found["cells"] if cell["steps"] == steps]
        for label in cells[0]["slopes"]:
            slopes = [np.mean(cell["slopes"][label]) for cell in cells]
            # Which of half and twice the rate ends lower, where they differ.
            truths = [
                np.clip(cell["half"], -2, 2) - np.clip(cell["twice"], -2, 2) for cell in cells
            ]
            told = [
                np.sign(slope) == np.sign(truth)
                for slope, truth in zip(slopes, truths, strict=True)
                if abs(truth) > clear
            ]
            columns.setdefault(label, []).extend(
                (f"{sum(told)} of {len(told)}", f"{np.mean(slopes):+.1f}")
            )
    heads = [f"{steps} steps: {what}" for steps in lengths for what in ("right", "mean slope")]
    return table(("reward", *heads), ((label, *values) for label, values in columns.items()))
