"""Curves as they are drawn: smoothed, taken over seeds, thinned to what a picture can show.

Curves of several seeds are float[S, T]: nan after the end of a run that is shorter than the
longest, inf where a run that goes on has diverged.
"""

import numpy as np


def running_mean(x: np.ndarray, width: int) -> np.ndarray:
    """Return the mean of the finite ones of the last `width` values, fewer at the start.

    Args:
        x: float[T].
        width: how many, ≥ 1.

    Returns:
        float[T]; nan where none is finite.

    Example:
        >>> print(optax_meta.plots.running_mean(np.array([1.0, 3.0, np.nan, 5.0]), 2))
        [1. 2. 3. 5.]
    """
    finite = np.isfinite(x)
    end = np.arange(1, x.size + 1)
    start = np.maximum(end - width, 0)
    # Differences of running sums: the cost does not grow with the width.
    total, number = (
        np.concatenate([[0.0], np.cumsum(y, dtype=np.float64)])
        for y in (np.where(finite, x, 0.0), finite)
    )
    count = number[end] - number[start]
    return np.where(count > 0, total[end] - total[start], np.nan) / np.maximum(count, 1.0)


def has_ended(runs: np.ndarray) -> np.ndarray:
    """Return which steps lie after the last of their run, bool[S, T].

    Example:
        >>> print(optax_meta.reports.curves.has_ended(np.array([[1.0, np.nan, 2.0, np.nan]])))
        [[False False False  True]]
    """
    is_padding = np.isnan(runs)[:, ::-1]
    return np.logical_and.accumulate(is_padding, axis=1)[:, ::-1]


def smoothed(runs: np.ndarray, width: int) -> np.ndarray:
    """Return the running mean of each run up to its end, float[S, T].

    Example:
        >>> print(optax_meta.reports.curves.smoothed(np.array([[1.0, 3.0, np.nan]]), 2))
        [[ 1.  2. nan]]
    """
    means = np.stack([running_mean(run, width) for run in runs])
    # A running mean would go on for `width` steps after the last value.
    return np.where(has_ended(runs), np.nan, means)


def mean_over_seeds(runs: np.ndarray, width: int) -> np.ndarray:
    """Return the mean over the runs that have not ended of their running means, float[T].

    It is nan where one of these has no finite value: leaving a diverged run out would flatter the
    rest.

    Example:
        >>> runs = np.array([[1.0, 1.0, np.nan, np.nan], [3.0, 3.0, 3.0, np.inf]])
        >>> print(optax_meta.reports.curves.mean_over_seeds(runs, 1))
        [ 2.  2.  3. nan]
    """
    ended = has_ended(runs)
    total = np.where(ended, 0.0, smoothed(runs, width)).sum(axis=0)
    count = (~ended).sum(axis=0)
    return np.where(count > 0, total, np.nan) / np.maximum(count, 1)


def lowest_and_highest(runs: np.ndarray, axis: int | None = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the greatest value over an axis; nan only where all are.

    Example:
        >>> print(*optax_meta.reports.curves.lowest_and_highest(np.array([[1.0], [np.nan], [3.0]])))
        [1.] [3.]
    """
    # Unlike `nanmin` these do not warn where a step has no value at all.
    return np.fmin.reduce(runs, axis=axis), np.fmax.reduce(runs, axis=axis)


def spread(size: int, most: int) -> np.ndarray:
    """Return at most `most` of 0 … size - 1, evenly, with both ends; int[≤ most].

    Example:
        >>> print(optax_meta.reports.curves.spread(101, 3))
        [  0  50 100]
    """
    return np.unique(np.linspace(0, size - 1, min(size, most)).round().astype(int))


def extremes(values: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` indices of values, evenly, with every spike among them; int[≤ most].

    Example:
        >>> print(optax_meta.reports.curves.extremes(np.array([0.0, 0.0, 9.0, 0.0, 0.0, 0.0]), 2))
        [0 2]
    """
    if values.size <= most:
        return np.arange(values.size)
    # Both ends of each stretch: half as many stretches as points.
    parts = np.array_split(np.arange(values.size), most // 2)
    low, high = (np.where(np.isfinite(values), values, edge) for edge in (np.inf, -np.inf))
    lowest = [part[low[part].argmin()] for part in parts]
    return np.unique(lowest + [part[high[part].argmax()] for part in parts])
