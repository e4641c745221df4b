"""The charts of a meta-training's page, made from the rows of its log."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from optax_meta.recording import Row
from optax_meta.reports import charts, curves
from optax_meta.reports.pictures import Picture

# A log has a dozen columns of thousands of updates; a spike must show, its exact place need not.
_LOG_POINTS = 1000
# Of the rows, the share that one point of a line is the mean of.
_SMOOTHED_SHARE = 50

Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""(updates, values) by name, int[T] and float[T]."""


class _Column(NamedTuple):
    title: str
    label: str
    caption: str
    is_log: bool = False


_COLUMNS = {
    "loss": _Column(
        "How runs end",
        "mean final loss",
        "Each point is a group of runs that share a seed; seeds differ, and so do their losses.",
    ),
    "level": _Column(
        "Where the policy stands",
        "nats from where it began",
        "The logarithm of how much higher it sets a hyperparameter than the policy it came from. "
        "Where it has settled, nothing more is being learned.",
    ),
    "fall": _Column("How far the loss falls", "fall of the log loss", "Higher is better."),
    "spread": _Column(
        "How far runs of a group differ",
        "spread of the log loss",
        "What the policy learns from: where it nears zero, choices no longer matter.",
        is_log=True,
    ),
    "entropy": _Column(
        "Entropy of the policy",
        "entropy, nats",
        "A slow fall is learning; a sudden one means that it stopped exploring.",
    ),
    "grad_norm": _Column(
        "Norm of the policy gradient", "norm", "Spikes mark unlucky updates.", is_log=True
    ),
    "inner_steps_per_second": _Column(
        "Throughput",
        "inner steps a second",
        "A drop means that the machine was busy with something else.",
    ),
}


def log_pictures(rows: Sequence[Row]) -> Iterator[Picture]:
    """Yield a picture for each known group of columns that a log holds.

    Example:
        >>> rows = [{"update": 1, "fall/mlp": 0.5}, {"update": 2, "fall/mlp": 0.75}]
        >>> [picture.title for picture in optax_meta.reports.log_charts.log_pictures(rows)]
        ['How far the loss falls']
    """
    width = max(1, len(rows) // _SMOOTHED_SHARE)
    means = f" Lines are means over {width} updates." if width > 1 else ""
    for group, column in _COLUMNS.items():
        if found := _curves(rows, group):
            chart = log_chart(
                group, column.title, column.label, found, smoothing=width, is_log=column.is_log
            )
            yield Picture(column.title, column.caption + means, [chart])


def log_chart(
    name: str,
    title: str,
    label: str,
    found: Curves,
    *,
    smoothing: int = 1,
    is_log: bool = False,
) -> charts.Chart:
    """Return a chart of columns of a log: running means, and faintly what they are of.

    Args:
        name: the chart's id.
        title: of the chart.
        label: of the vertical axis.
        found: what to draw.
        smoothing: width of the running mean over rows, ≥ 1.
        is_log: whether the axis is logarithmic at first, where all values are positive.

    Example:
        >>> found = {"a": (np.array([1, 2]), np.array([0.5, 0.25]))}
        >>> chart = optax_meta.reports.log_charts.log_chart("a", "A", "a", found)
        >>> chart["series"][0]["y"]
        [0.5, 0.25]
    """
    series = [_series(key, i, *curve, smoothing) for i, (key, curve) in enumerate(found.items())]
    # A logarithmic axis would hide a spread of 0, which is what one looks for.
    are_positive = all(np.all(y[np.isfinite(y)] > 0.0) for _, y in found.values())
    return {
        "id": name,
        "title": title,
        "x": "update",
        "y": label,
        "log": is_log and are_positive,
        "others": "every update",
        # The raw values of ten families over each other would be noise.
        "faint": len(series) == 1,
        "series": series,
    }


def _series(name: str, style: int, x: np.ndarray, y: np.ndarray, smoothing: int) -> charts.Series:
    kept, spikes = curves.spread(x.size, _LOG_POINTS), curves.extremes(y, _LOG_POINTS)
    line = charts.points(x[kept], curves.running_mean(y, smoothing)[kept])
    raw = [charts.points(x[spikes], y[spikes])] if smoothing > 1 else []
    return {"name": name, "style": style, **line, "others": raw}


def _curves(rows: Sequence[Row], group: str) -> Curves:
    """Return the columns GROUP and GROUP/NAME; a log may skip rows."""
    names = {name for row in rows for name in row if name.partition("/")[0] == group}
    return {
        name.rpartition("/")[2]: (
            np.array([row["update"] for row in rows if name in row]),
            np.array([row[name] for row in rows if name in row], float),
        )
        for name in sorted(names)
    }
