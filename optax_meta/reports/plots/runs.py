"""Pictures of runs: their losses, their hyperparameters, how methods rank."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from optax_meta.recording import Record
from optax_meta.reports import curves
from optax_meta.reports.plots.style import (
    COLORS,
    axes_or_new,
    band,
    legend,
    line_style,
    plain_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from optax_meta.meta.evaluation import Summary


def loss_curves(
    losses: Mapping[str, np.ndarray], *, smoothing: int = 20, ax: "Axes | None" = None
) -> "Axes":
    """Draw the training loss of each method: mean over seeds, band from lowest to highest.

    Args:
        losses: float[S, T] by method: S seeds, T steps; nan after the end of a shorter run.
        smoothing: width of the running mean over steps, ≥ 1.
        ax: what to draw on; None for new axes.

    Returns:
        The axes.

    Example:
        >>> losses = {"constant": np.exp(-np.arange(100.0))[None]}
        >>> ax = optax_meta.plots.loss_curves(losses)
    """
    ax = axes_or_new(ax)
    for i, name in enumerate(losses):
        runs = np.atleast_2d(losses[name])
        steps = np.arange(1, runs.shape[1] + 1)
        ax.plot(steps, curves.mean_over_seeds(runs, smoothing), label=name, **line_style(i))
        band(ax, i, steps, *curves.lowest_and_highest(curves.smoothed(runs, smoothing)))
    # A negative loss, as of a reward, has no logarithm.
    if all(np.all((runs > 0) | np.isnan(runs)) for runs in losses.values()):
        ax.set_yscale("log")
    ax.set(xlabel="step", ylabel=f"training loss (mean of {smoothing} steps)")
    legend(ax)
    return ax


def timeline(
    record: Record,
    hyperparam: str = "learning_rate",
    *,
    ax: "Axes | None" = None,
    color: str = COLORS[0],
) -> "Axes":
    """Draw a hyperparameter over a run: a dot where a decision changed it, a cross for a leap.

    Args:
        record: stacked rows, leading axes [T] for one run or [S, T] for several; the first is drawn
            bold with its decisions, the others faint.
        hyperparam: which one.
        ax: what to draw on; None for new axes.
        color: of the lines.

    Returns:
        The axes.

    Raises:
        ValueError: the record does not hold this hyperparameter.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.warmup(5))(0.1)
        >>> def step(state, _):
        ...     _, state = tx.update(jnp.ones(2), state)
        ...     return state, optax_meta.record(state)
        >>> _, rows = jax.lax.scan(step, tx.init(jnp.ones(2)), length=20)
        >>> ax = optax_meta.plots.timeline(rows)
    """
    if hyperparam not in record.hyperparams:
        known = ", ".join(record.hyperparams)
        raise ValueError(f"`hyperparam` must be one of the record's: {known}; got {hyperparam!r}")
    ax = axes_or_new(ax)
    values = np.atleast_2d(np.asarray(record.hyperparams[hyperparam]))
    steps = np.arange(1, values.shape[1] + 1)
    for run in values[1:]:
        ax.step(steps, run, where="post", color=color, alpha=0.25, linewidth=0.8)
    first = values[0]
    ax.step(steps, first, where="post", color=color, linewidth=1.8)
    decided = np.atleast_2d(np.asarray(record.decided))[0]
    changed = np.flatnonzero(decided & (np.diff(first, prepend=first[0]) != 0.0))
    # Where every other step changes, dots would hide the line.
    if changed.size <= first.size // 4:
        ax.plot(steps[changed], first[changed], "o", color=color, markersize=4)
    spikes = np.atleast_2d(np.asarray(record.num_spikes))[0]
    leapt = np.flatnonzero(np.diff(spikes, prepend=0) > 0)
    if leapt.size:
        ax.plot(steps[leapt], first[leapt], "x", color=color, markersize=7)
    _scale(ax, values)
    ax.set(xlabel="step", ylabel=hyperparam.replace("_", " "))
    return ax


def _scale(ax: "Axes", values: np.ndarray) -> None:
    """Choose a scale on which changes show, and no change looks like none."""
    lowest, highest = curves.lowest_and_highest(values, axis=None)
    # Where several are drawn on the same axes, logarithmic once is logarithmic for all.
    if 0 < 3 * lowest < highest:
        ax.set_yscale("log")
    elif ax.get_yscale() == "linear":
        ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useOffset=False)
    # Else matplotlib would enlarge the last digit of a constant to the whole height.
    if ax.get_yscale() == "linear" and lowest == highest != 0.0:
        low, high = sorted((0.5 * float(lowest), 1.5 * float(highest)))
        ax.set_ylim(low, high)


def ranking(rows: "Sequence[Summary]", *, ax: "Axes | None" = None) -> "Axes":
    """Draw the final loss of each method with its 95 % interval, best on top.

    Args:
        rows: from `evaluation.summarize`.
        ax: what to draw on; None for new axes.

    Returns:
        The axes.

    Example:
        >>> from optax_meta.meta.evaluation import Interval, Summary
        >>> x = Interval(1.0, 0.1)
        >>> rows = [Summary("mine", x, x, x, None, 1.0, 0.1, 0.1, 0, x, 1.0)]
        >>> ax = optax_meta.plots.ranking(rows)
    """
    ax = axes_or_new(ax)
    means = np.array([row.final_loss.mean for row in rows])
    halves = np.array([row.final_loss.half_width for row in rows])
    names = [row.method for row in rows]
    ax.errorbar(means, names, xerr=halves, fmt="o", color=COLORS[0], capsize=4, linewidth=1.5)
    if means.min() > 0 and means.max() > 3 * means.min():
        # An interval that holds 0 has no left end there: its line runs to the edge.
        ends = [*means, *(means - halves)[means > halves], *(means + halves)]
        ax.set_xscale("log", nonpositive="clip")
        ax.set_xlim(min(ends) / 1.5, max(ends) * 1.5)
        if max(ends) < 50 * min(ends):  # with more decades they would collide
            plain_ticks(ax.xaxis)
    ax.set(xlabel="final loss, mean and 95 % interval over seeds")
    ax.invert_yaxis()
    ax.margins(y=0.15)
    return ax
