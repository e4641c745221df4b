"""Pictures of runs: every function draws on matplotlib axes and returns them.

Needs the extra `report`. Works in a notebook and in the report alike.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from optax_meta.recording import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from optax_meta.evaluation import Summary

# Okabe and Ito's palette, which colour-blind readers can tell apart, less its yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def loss_curves(
    losses: Mapping[str, np.ndarray], *, smoothing: int = 20, ax: "Axes | None" = None
) -> "Axes":
    """Draw the training loss of each method: mean over seeds, band from lowest to highest.

    Args:
        losses: float[S, T] by method: S seeds, T steps.
        smoothing: width of the running mean over steps, ≥ 1.
        ax: what to draw on; None for new axes.

    Returns:
        The axes.

    Example:
        >>> losses = {"constant": np.exp(-np.arange(100.0))[None]}
        >>> ax = optax_meta.plots.loss_curves(losses)
    """
    ax = _axes(ax)
    for color, (name, runs) in zip(_colors(losses), losses.items(), strict=True):
        smooth = np.stack([running_mean(run, smoothing) for run in np.atleast_2d(runs)])
        steps = np.arange(1, smooth.shape[1] + 1)
        ax.plot(steps, smooth.mean(axis=0), color=color, label=name)
        ax.fill_between(
            steps, smooth.min(axis=0), smooth.max(axis=0), color=color, alpha=0.12, linewidth=0
        )
    if all(np.nanmin(runs) > 0 for runs in losses.values()):
        ax.set_yscale("log")
    ax.set(xlabel="step", ylabel=f"training loss (mean of {smoothing} steps)")
    ax.legend(frameon=False)
    return ax


def timeline(
    record: Record,
    hyperparam: str = "learning_rate",
    *,
    ax: "Axes | None" = None,
    color: str = COLORS[0],
) -> "Axes":
    """Draw a hyperparameter over a run, with a dot wherever a decision changed it.

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
        raise ValueError(f"the record has no {hyperparam!r}; it has {known}")
    ax = _axes(ax)
    values = np.atleast_2d(np.asarray(record.hyperparams[hyperparam]))
    steps = np.arange(1, values.shape[1] + 1)
    for run in values[1:]:
        ax.step(steps, run, where="post", color=color, alpha=0.25, linewidth=0.8)
    first = values[0]
    ax.step(steps, first, where="post", color=color, linewidth=1.8)
    decided = np.atleast_2d(np.asarray(record.decided))[0]
    changed = np.flatnonzero(decided & (np.diff(first, prepend=first[0]) != 0.0))
    if changed.size <= first.size // 4:
        ax.plot(steps[changed], first[changed], "o", color=color, markersize=4)
    if values.min() > 0 and values.max() / values.min() > 3:
        ax.set_yscale("log")
    elif ax.get_yscale() == "linear":
        ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useOffset=False)
    if ax.get_yscale() == "linear" and values.min() == values.max() != 0.0:
        ax.set_ylim(*sorted((0.5 * values.min(), 1.5 * values.max())))
    ax.set(xlabel="step", ylabel=hyperparam.replace("_", " "))
    return ax


def action_histogram(
    record: Record, labels: Sequence[str], *, ax: "Axes | None" = None, color: str = COLORS[0]
) -> "Axes":
    """Draw how often a policy chose each action.

    Args:
        record: stacked rows of a controller with a policy.
        labels: names of the actions, `Controller.action_labels`.
        ax: what to draw on; None for new axes.
        color: of the bars.

    Returns:
        The axes.

    Raises:
        ValueError: the controller has no policy.

    Example:
        >>> controller = optax_meta.reinforce(decision_interval=1)
        >>> tx = optax_meta.control_hyperparams(optax.adamw, controller)(1e-3)
        >>> def step(state, _):
        ...     x = jnp.ones(2)
        ...     _, state = tx.update(x, state, x, value=1.0)
        ...     return state, optax_meta.record(state)
        >>> _, rows = jax.lax.scan(step, tx.init(jnp.ones(2)), length=20)
        >>> ax = optax_meta.plots.action_histogram(rows, controller.action_labels)
    """
    if record.decision is None:
        raise ValueError("the record holds no actions: its controller has no policy")
    ax = _axes(ax)
    taken = np.asarray(record.decision.action)[np.asarray(record.decided)]
    counts = np.bincount(taken, minlength=len(labels))
    bars = ax.barh(
        [label.replace("_", " ") for label in labels], counts / max(counts.sum(), 1), color=color
    )
    ax.bar_label(bars, [f" {count}" for count in counts])
    ax.set(xlabel="share of decisions", xlim=(0, 1.1))
    ax.invert_yaxis()
    return ax


def ranking(rows: "Sequence[Summary]", *, ax: "Axes | None" = None) -> "Axes":
    """Draw the final loss of each method with its 95 % interval, best on top.

    Args:
        rows: from `evaluation.summarize`.
        ax: what to draw on; None for new axes.

    Returns:
        The axes.

    Example:
        >>> comparison = optax_meta.compare("quadratic", ["constant", "plateau"], steps=20, seeds=2)
        >>> ax = optax_meta.plots.ranking(optax_meta.evaluation.summarize(comparison))
    """
    ax = _axes(ax)
    means = [row.final_loss.mean for row in rows]
    halves = [row.final_loss.half_width for row in rows]
    names = [row.method for row in rows]
    ax.errorbar(means, names, xerr=halves, fmt="o", color=COLORS[0], capsize=4, linewidth=1.5)
    ax.set(xlabel="final loss, mean and 95 % interval over seeds")
    ax.invert_yaxis()
    ax.margins(y=0.15)
    return ax


def _axes(ax: "Axes | None") -> "Axes":
    if ax is None:
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError(
                "pictures need matplotlib: pip install 'optax-meta[report]'"
            ) from error
        ax = plt.subplots(layout="constrained")[1]
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _colors(items: Mapping[str, object]) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(len(items))]


def running_mean(x: np.ndarray, width: int) -> np.ndarray:
    """Return the mean of the last `width` values, fewer at the start.

    >>> print(running_mean(np.array([1.0, 3.0, 5.0]), 2))
    [1. 2. 4.]
    """
    total = np.concatenate([[0.0], np.cumsum(x, dtype=np.float64)])
    end = np.arange(1, x.size + 1)
    start = np.maximum(end - width, 0)
    return (total[end] - total[start]) / (end - start)
