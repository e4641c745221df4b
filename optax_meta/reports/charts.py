"""The data of the report's interactive charts, drawn in the browser by `report.js`."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np

from optax_meta.base import Hyperparams
from optax_meta.meta.evaluation import MethodResult
from optax_meta.recording import Decision
from optax_meta.reports import curves
from optax_meta.reports.rows import is_replanned

# A screen is some 1000 pixels wide: three points a pixel lose nothing that could be seen.
MAX_POINTS = 3000
# With its probabilities and observation a decision takes some 300 bytes of the page.
MAX_DECISIONS = 4000
# Faint lines show the spread only; more of them, or finer ones, would make the page heavy.
_MAX_OTHERS = 9
_OTHER_POINTS = 200


class Points(TypedDict):
    """A line.

    Attributes:
        x: steps or updates.
        y: values; None where there is none, and the line has a gap.
    """

    x: list[int]
    y: list[float | None]


Explained = tuple[int, int, float | None, list[float | None], list[float | None]]
"""A decision: step, action, reward, probabilities, observation."""


class Series(TypedDict):
    """A line with what belongs to it.

    Attributes:
        x: as in `Points`.
        y: as in `Points`.
        name: of its method, or of a column.
        style: number of its colour and dashes.
        others: faint lines, thinned.
        step: whether a value holds up to the next point.
        decisions: of a policy.
        features: names of what the policy observed.
        actions: names of its actions.
        leaps: steps at which a loss or a gradient leapt, on any seed.
    """

    x: list[int]
    y: list[float | None]
    name: str
    style: int
    others: list[Points]
    step: NotRequired[bool]
    decisions: NotRequired[list[Explained]]
    features: NotRequired[Sequence[str]]
    actions: NotRequired[Sequence[str]]
    leaps: NotRequired[list[int]]


class Chart(TypedDict):
    """A chart.

    Attributes:
        id: unique on its page.
        title: for readers.
        x: label of the axis.
        y: label of the other axis.
        log: whether that one is logarithmic at first.
        others: what the faint lines are.
        faint: whether they are shown at first.
        series: its lines.
    """

    id: str
    title: str
    x: str
    y: str
    log: bool
    others: str
    faint: bool
    series: list[Series]


def loss_chart(
    losses: Mapping[str, np.ndarray],
    smoothing: int,
    leaps: Mapping[str, Sequence[int]] | None = None,
) -> Chart:
    """Return the chart of the training loss: mean over seeds of the smoothed loss.

    Args:
        losses: float[S, T] by method, as `curves` defines them.
        smoothing: width of the running mean over steps, ≥ 1.
        leaps: steps to mark, by method; None for none.

    Example:
        >>> chart = optax_meta.reports.charts.loss_chart({"constant": np.ones((2, 20))}, 5)
        >>> len(chart["series"][0]["x"])
        20
    """
    series: list[Series] = []
    for i, (name, runs) in enumerate(losses.items()):
        smooth = curves.smoothed(runs, smoothing)
        # A single seed is its own mean.
        others = smooth[:_MAX_OTHERS] if len(smooth) > 1 else []
        mean = _line(curves.mean_over_seeds(runs, smoothing), MAX_POINTS)
        faint = [_line(run, _OTHER_POINTS) for run in others]
        marks = list((leaps or {}).get(name, ()))
        series.append({"name": name, "style": i, **mean, "others": faint, "leaps": marks})
    label = f"loss, mean of {smoothing} steps" if smoothing > 1 else "loss"
    return _chart("loss", "Training loss", label, series)


def moved(hyperparams: Hyperparams) -> list[str]:
    """Return which hyperparameters changed in any run; the learning rate in any case.

    Args:
        hyperparams: float[S, T] by name, nan after the end of a run.

    Example:
        >>> runs = {"learning_rate": np.ones((2, 9)), "weight_decay": np.arange(9.0)[None]}
        >>> optax_meta.reports.charts.moved(runs)
        ['learning_rate', 'weight_decay']
    """

    def changed(runs: np.ndarray) -> bool:
        lowest, highest = curves.lowest_and_highest(runs, axis=-1)
        return bool(np.any(lowest < highest))

    return [
        name
        for name, runs in hyperparams.items()
        if name == "learning_rate" or changed(np.asarray(runs))
    ]


def hyperparam_charts(methods: Mapping[str, MethodResult]) -> list[Chart]:
    """Return a chart for each hyperparameter: seed 0 with its decisions, the others thinned.

    Example:
        >>> rows = [{"step": 1, "decided": False, "loss": 2.0, "learning_rate": 0.1}]
        >>> methods = {"mine": optax_meta.reports.rows.method_result(rows, {})}
        >>> [chart["id"] for chart in optax_meta.reports.charts.hyperparam_charts(methods)]
        ['learning_rate']
    """
    steered = {name: moved(result.records.hyperparams) for name, result in methods.items()}
    names = dict.fromkeys(hyperparam for found in steered.values() for hyperparam in found)

    def chart(hyperparam: str) -> Chart:
        series = [
            _timeline(name, i, hyperparam, result)
            for i, (name, result) in enumerate(methods.items())
            if hyperparam in steered[name]
        ]
        label = hyperparam.replace("_", " ")
        return _chart(hyperparam, label, label, series)

    return list(map(chart, names))


def progress_charts(methods: Mapping[str, MethodResult]) -> list[Chart]:
    """Return the chart of progress, seed 0 of each; none where it rises evenly for all.

    Example:
        >>> rows = [{"step": 1, "decided": False, "loss": 2.0}]
        >>> methods = {"mine": optax_meta.reports.rows.method_result(rows, {})}
        >>> optax_meta.reports.charts.progress_charts(methods)
        []
    """
    if not any(map(is_replanned, methods.values())):
        return []
    series: list[Series] = []
    for i, (name, result) in enumerate(methods.items()):
        progress = np.asarray(result.records.progress, np.float64)[0]
        if (progress >= 0.0).any():
            line = _line(np.where(progress < 0.0, np.nan, progress), MAX_POINTS)
            series.append({"name": name, "style": i, **line, "others": []})
    chart = _chart("progress", "progress", "share of the run that is over", series)
    return [{**chart, "log": False}]


def reward_chart(methods: Mapping[str, MethodResult]) -> Chart:
    """Return the chart of rewards, running means over a tenth of the decisions, and baselines.

    Args:
        methods: those that learn within a run; of each the first seed is drawn.

    Example:
        >>> choice = {"action": 1, "log_prob": -0.1, "entropy": 0.3, "reward": 0.5, "baseline": 0.2}
        >>> choice |= {"probabilities": [0.1, 0.9], "observation": [0.5]}
        >>> rows = [{"step": t, "decided": True, "loss": 2.0, **choice} for t in (1, 2)]
        >>> methods = {"mine": optax_meta.reports.rows.method_result(rows, {})}
        >>> [line["name"] for line in optax_meta.reports.charts.reward_chart(methods)["series"]]
        ['mine: reward', 'mine: baseline']
    """
    series: list[Series] = []
    for result, name in zip(methods.values(), methods, strict=True):
        seed = _first_seed(result)
        if seed is None:
            continue
        kept = curves.spread(seed.steps.size, MAX_POINTS)
        reward, baseline = np.asarray(seed.decision.reward), np.asarray(seed.decision.baseline)
        smooth = curves.running_mean(reward, max(1, reward.size // 10))
        for label, values in (("reward", smooth), ("baseline", baseline)):
            line = points(seed.steps[kept], values[kept])
            style = len(series)
            series.append({"name": f"{name}: {label}", "style": style, **line, "others": []})
    return {**_chart("reward", "reward", "reward of a decision", series), "log": False}


def points(x: np.ndarray, y: np.ndarray) -> Points:
    """Return a line of int[N] and float[N], with as many digits as can be seen.

    Example:
        >>> optax_meta.reports.charts.points(np.array([1, 2]), np.array([1 / 3, np.nan]))
        {'x': [1, 2], 'y': [0.33333, None]}
    """
    return {"x": x.tolist(), "y": [_number(v, 5) for v in y]}


def embed(charts: Sequence[Chart]) -> str:
    """Return charts as JSON that may stand inside a `<script>` element.

    Example:
        >>> "<" in optax_meta.reports.charts.embed([{"title": "</script>"}])
        False
    """
    text = json.dumps(charts, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    # In JSON "<" stands in strings only, where this says the same without closing the element.
    return text.replace("<", "\\u003c")


def _chart(name: str, title: str, label: str, series: list[Series]) -> Chart:
    """Return a chart over steps, logarithmic where its values differ much."""
    values = np.array([v for s in series for v in s["y"] if v is not None])
    # Below a factor of three a linear axis shows as much, and is read more easily.
    is_log = bool(values.size > 0 and values.min() > 0 and values.max() > 3 * values.min())
    return {
        "id": name,
        "title": title,
        "x": "step",
        "y": label,
        "log": is_log,
        "others": "all seeds",
        "faint": False,
        "series": series,
    }


def _timeline(name: str, style: int, hyperparam: str, result: MethodResult) -> Series:
    runs = np.asarray(result.records.hyperparams[hyperparam], np.float64)
    steps = np.arange(1, runs.shape[1] + 1)
    kept = _corners(runs[0])
    series: Series = {
        "name": name,
        "style": style,
        **points(steps[kept], runs[0][kept]),
        "others": [_line(run, _OTHER_POINTS) for run in runs[1 : 1 + _MAX_OTHERS]],
        "step": True,
    }
    decisions = _decisions(result)
    if decisions is not None:
        # A file of rows alone names no features.
        known = result.features or _numbered(len(decisions[0][-1]))
        series["decisions"], series["features"] = decisions, known
        series["actions"] = result.action_labels
    return series


def _corners(run: np.ndarray) -> np.ndarray:
    """Return where a run begins, changes, and ends: a line of steps needs no other points."""
    # nan differs from itself: after the end of a run each step would be a change.
    last = np.flatnonzero(np.isfinite(run))[-1:]
    moves = np.flatnonzero(np.diff(run[: 1 + int(last.sum())], prepend=np.nan) != 0.0)
    kept = np.unique([*moves, *last])
    return kept if kept.size <= MAX_POINTS else curves.spread(run.size, MAX_POINTS)


class _Seed(NamedTuple):
    """Decisions of one run, each field of `Decision` with a leading axis."""

    steps: np.ndarray
    decision: Decision


def _decisions(result: MethodResult) -> list[Explained] | None:
    """Return what explains seed 0; None where it holds no decision of a policy."""
    seed = _first_seed(result)
    if seed is None:
        return None
    decision = seed.decision
    action, reward = np.asarray(decision.action), np.asarray(decision.reward)
    probabilities = np.asarray(decision.probabilities)
    observation = np.asarray(decision.observation)
    # A decision's reward stands in the record of the next one; a frozen policy earns none.
    rewards = [*(reward[1:] if reward.any() else np.full(reward.size - 1, np.nan)), np.nan]
    return [
        (
            int(seed.steps[i]),
            int(action[i]),
            _number(rewards[i]),
            [_number(x) for x in probabilities[i]],
            [_number(x) for x in observation[i]],
        )
        for i in curves.spread(seed.steps.size, MAX_DECISIONS)
    ]


def _first_seed(result: MethodResult) -> _Seed | None:
    records = result.records
    taken = np.flatnonzero(np.asarray(records.decided)[0])
    if records.decision is None or not taken.size:
        return None
    fields = (np.asarray(x)[0][taken] for x in records.decision)
    return _Seed(taken + 1, Decision(*fields))


def _numbered(count: int) -> list[str]:
    return [f"feature {i + 1}" for i in range(count)]


def _line(run: np.ndarray, most: int) -> Points:
    kept = curves.spread(run.size, most)
    return points(kept + 1, run[kept])


def _number(x: float, digits: int = 4) -> float | None:
    return float(f"{x:.{digits}g}") if np.isfinite(x) else None
