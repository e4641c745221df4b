"""The data of the report's interactive charts, drawn in the browser by `report.js`.

A chart is a dict of JSON values: `id`, `title`, `x`, `y` (labels of the axes), `log`, `others`
(what its faint lines are), `faint` (whether they are shown at first) and `series`. A series has a
`name`, points `x` and `y`, `style` (the number of its colour and dashes), `step` where a value
holds up to the next point, `others` (thinned faint lines) and, for a policy, `decisions` with the
`features` and `actions` that name their numbers.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optax_meta.meta.evaluation import MethodResult
from optax_meta.reports.plots import running_mean

MAX_POINTS = 3000
MAX_DECISIONS = 4000
_MAX_OTHERS = 9
_OTHER_POINTS = 200
_LOG_POINTS = 1000


def loss_chart(methods: Mapping[str, MethodResult], smoothing: int) -> dict[str, Any]:
    """Return the chart of the training loss: mean over seeds of the smoothed loss.

    Args:
        methods: results by name.
        smoothing: width of the running mean over steps, ≥ 1.

    Example:
        >>> comparison = optax_meta.compare("quadratic", ["constant"], steps=20, seeds=2)
        >>> chart = optax_meta.reports.charts.loss_chart(comparison.methods, smoothing=5)
        >>> len(chart["series"][0]["x"])
        20
    """
    series = []
    for i, (name, result) in enumerate(methods.items()):
        smooth = np.stack([running_mean(run, smoothing) for run in result.losses])
        series.append(
            {
                "name": name,
                "style": i,
                **_line(smooth.mean(axis=0), MAX_POINTS),
                "others": [_line(run, _OTHER_POINTS) for run in smooth[:_MAX_OTHERS]]
                if len(smooth) > 1
                else [],
            }
        )
    return _chart("loss", "Training loss", "step", f"loss, mean of {smoothing} steps", series)


def moved(result: MethodResult) -> list[str]:
    """Return which hyperparameters a method moved; the learning rate in any case.

    Example:
        >>> comparison = optax_meta.compare("quadratic", ["constant"], steps=20, seeds=2)
        >>> optax_meta.reports.charts.moved(comparison.methods["constant"])
        ['learning_rate']
    """
    runs = result.records.hyperparams.items()
    return [name for name, run in runs if name == "learning_rate" or np.ptp(run) > 0.0]


def hyperparam_charts(methods: Mapping[str, MethodResult]) -> list[dict[str, Any]]:
    """Return a chart for each hyperparameter: seed 0 with its decisions, the others thinned.

    Example:
        >>> comparison = optax_meta.compare("quadratic", ["constant"], steps=20, seeds=2)
        >>> charts = optax_meta.reports.charts.hyperparam_charts(comparison.methods)
        >>> [chart["id"] for chart in charts]
        ['learning_rate']
    """
    steered = {name: moved(result) for name, result in methods.items()}
    return [
        _chart(
            hyperparam,
            hyperparam.replace("_", " "),
            "step",
            hyperparam.replace("_", " "),
            [
                {"style": i, **_timeline(name, hyperparam, result)}
                for i, (name, result) in enumerate(methods.items())
                if hyperparam in steered[name]
            ],
        )
        for hyperparam in dict.fromkeys(h for names in steered.values() for h in names)
    ]


def log_chart(
    name: str,
    title: str,
    y: str,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    smoothing: int = 1,
    is_log: bool = False,
) -> dict[str, Any]:
    """Return a chart of columns of a log: running means, and faintly what they are of.

    Args:
        name: the chart's id.
        title: of the chart.
        y: label of its axis.
        curves: (updates, values) by name, int[T] and float[T].
        smoothing: width of the running mean over rows, ≥ 1.
        is_log: whether the axis is logarithmic at first, where all values are positive.

    Example:
        >>> curves = {"a": (np.array([1, 2]), np.array([0.5, 0.25]))}
        >>> chart = optax_meta.reports.charts.log_chart("a", "A", "a", curves)
        >>> chart["series"][0]["y"]
        [0.5, 0.25]
    """
    series = []
    for i, (key, (x, values)) in enumerate(curves.items()):
        kept, extremes = _spread(x.size, _LOG_POINTS), _extremes(values, _LOG_POINTS)
        smooth = running_mean(values, smoothing)
        raw = [_points(x[extremes], values[extremes])] if smoothing > 1 else []
        series.append({"name": key, "style": i, **_points(x[kept], smooth[kept]), "others": raw})
    are_positive = all(np.all(v[np.isfinite(v)] > 0.0) for _, v in curves.values())
    changes = {"others": "every update", "faint": len(series) == 1, "log": is_log and are_positive}
    return _chart(name, title, "update", y, series) | changes


def embed(charts: Sequence[Mapping[str, Any]]) -> str:
    """Return charts as JSON that may stand inside a `<script>` element.

    Example:
        >>> "<" in optax_meta.reports.charts.embed([{"title": "</script>"}])
        False
    """
    text = json.dumps(charts, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _chart(name: str, title: str, x: str, y: str, series: list[dict[str, Any]]) -> dict[str, Any]:
    values = np.array([v for s in series for v in s["y"] if v is not None])
    spans = values.size > 0 and values.min() > 0 and values.max() > 3 * values.min()
    labels = {"title": title, "x": x, "y": y, "others": "all seeds"}
    return {"id": name, **labels, "faint": False, "log": bool(spans), "series": series}


def _timeline(name: str, hyperparam: str, result: MethodResult) -> dict[str, Any]:
    runs = np.asarray(result.records.hyperparams[hyperparam], np.float64)
    steps = np.arange(1, runs.shape[1] + 1)
    moves = np.flatnonzero(np.diff(runs[0], prepend=np.nan) != 0.0)
    kept = np.unique(np.append(moves, steps.size - 1))
    if kept.size > MAX_POINTS:
        kept = _spread(steps.size, MAX_POINTS)
    return {
        "name": name,
        "step": True,
        **_points(steps[kept], runs[0][kept]),
        "others": [_line(run, _OTHER_POINTS) for run in runs[1 : 1 + _MAX_OTHERS]],
        **_decisions(result),
    }


def _decisions(result: MethodResult) -> dict[str, Any]:
    """Return what explains seed 0; a decision's reward stands in the record of the next one."""
    records = result.records
    taken = np.flatnonzero(np.asarray(records.decided)[0])
    if records.decision is None or not taken.size:
        return {}
    of_seed = {key: np.asarray(x)[0][taken] for key, x in records.decision._asdict().items()}
    has_rewards = of_seed["reward"].any()  # a frozen policy earns none
    rewards = [*(float(r) if has_rewards else None for r in of_seed["reward"][1:]), None]
    kept = _spread(taken.size, MAX_DECISIONS)
    decisions = [
        [
            int(taken[i]) + 1,
            int(of_seed["action"][i]),
            _number(rewards[i]),
            [_number(x) for x in of_seed["probabilities"][i]],
            [_number(x) for x in of_seed["observation"][i]],
        ]
        for i in kept
    ]
    width = of_seed["observation"].shape[1]
    features = result.features or tuple(f"feature {i + 1}" for i in range(width))
    return {"decisions": decisions, "features": features, "actions": result.action_labels}


def _line(run: np.ndarray, most: int) -> dict[str, Any]:
    kept = _spread(run.size, most)
    return _points(kept + 1, run[kept])


def _points(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    return {"x": x.tolist(), "y": [_number(v, 5) for v in y]}


def _spread(size: int, most: int) -> np.ndarray:
    """Return at most `most` of 0 … size - 1, evenly, with both ends."""
    return np.unique(np.linspace(0, size - 1, min(size, most)).round().astype(int))


def _extremes(values: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` indices of values, evenly, with every spike among them."""
    if values.size <= most:
        return np.arange(values.size)
    parts = np.array_split(np.arange(values.size), most // 2)
    low, high = (np.where(np.isfinite(values), values, edge) for edge in (np.inf, -np.inf))
    lowest = [part[low[part].argmin()] for part in parts]
    return np.unique(lowest + [part[high[part].argmax()] for part in parts])


def _number(x: float | None, digits: int = 4) -> float | None:
    return None if x is None or not np.isfinite(x) else float(f"{x:.{digits}g}")
