"""Pictures of runs: every function draws on matplotlib axes and returns them.

Needs the extra `report`. Works in a notebook and in the report alike.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optax_meta.meta import protocol
from optax_meta.recording import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from optax_meta.meta.evaluation import Summary

# Okabe and Ito's palette, which colour-blind readers can tell apart, less its yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# For print without colour; five and seven have no common divisor, so 35 lines differ.
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 2)), (0, (6, 2, 1.5, 2)), (0, (11, 3)))
_TAUS = np.geomspace(0.5, protocol.CAP, 200)
_RESAMPLES = 200
_RATIO = f"final loss ÷ that of a {len(protocol.SWEEP_RATES) * len(protocol.SCHEDULES)}-trial sweep"


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
    for i, (name, runs) in enumerate(losses.items()):
        smooth = np.stack([running_mean(run, smoothing) for run in np.atleast_2d(runs)])
        steps = np.arange(1, smooth.shape[1] + 1)
        ax.plot(steps, smooth.mean(axis=0), label=name, **line_style(i))
        _band(ax, i, steps, smooth.min(axis=0), smooth.max(axis=0))
    if all(np.all((runs > 0) | np.isnan(runs)) for runs in losses.values()):
        ax.set_yscale("log")
    ax.set(xlabel="step", ylabel=f"training loss (mean of {smoothing} steps)")
    ax.legend(frameon=False, handlelength=3)
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
    lowest, highest = np.nanmin(values), np.nanmax(values)  # nan after the end of a shorter run
    if 0 < 3 * lowest < highest:
        ax.set_yscale("log")
    elif ax.get_yscale() == "linear":
        ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useOffset=False)
    if ax.get_yscale() == "linear" and lowest == highest != 0.0:
        ax.set_ylim(*sorted((0.5 * lowest, 1.5 * highest)))
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
        raise ValueError("the record holds no actions: its controller has no policy; pass another")
    ax = _axes(ax)
    taken = np.asarray(record.decision.action)[np.asarray(record.decided)]
    counts = np.bincount(taken, minlength=len(labels))
    bars = ax.barh(_names(labels), counts / max(counts.sum(), 1), color=color)
    ax.bar_label(bars, [f" {count}" for count in counts])
    ax.set(xlabel="share of decisions", xlim=(0, 1.1))
    ax.invert_yaxis()
    return ax


def decisions(
    record: Record,
    labels: Sequence[str],
    features: Sequence[str] | None = None,
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw how sure a policy was at each decision of a run, and what it chose.

    A row is an action, a column lasts from a decision to the next: the darker, the more probable;
    a dot marks the chosen action.

    Args:
        record: stacked rows of a controller with a policy, leading axes [T] for one run or [S, T]
            for several, of which the first is drawn.
        labels: names of the actions, `Controller.action_labels`.
        features: names of what the policy saw, `Controller.features`, to draw below the actions,
            from blue for -1 to red for 1; None to leave them out.
        ax: what to draw on; None for new axes.

    Returns:
        The axes.

    Raises:
        ValueError: the controller has no policy or decided nothing, or the names do not fit.

    Example:
        >>> controller = optax_meta.reinforce(decision_interval=1)
        >>> tx = optax_meta.control_hyperparams(optax.adamw, controller)(1e-3)
        >>> x = jnp.ones(2)
        >>> step = lambda state, _: (tx.update(x, state, x, value=1.0)[1], optax_meta.record(state))
        >>> _, rows = jax.lax.scan(step, tx.init(x), length=20)
        >>> ax = optax_meta.plots.decisions(rows, controller.action_labels)
    """
    steps, end, taken = _first_run(record)
    sure, seen = taken["probabilities"], taken["observation"]
    for name, names, values in (("labels", labels, sure), ("features", features, seen)):
        if names is not None and len(names) != values.shape[1]:
            raise ValueError(f"`{name}` must hold {values.shape[1]} names, got {len(names)}")
    ax = _axes(ax)
    edges = np.append(steps, max(end, steps[-1]) + 1)
    rows = np.arange(len(labels) + 1) - 0.5
    # Thousands of cells: as a bitmap, even within an SVG.
    mesh = ax.pcolormesh(edges, rows, sure.T, cmap="Blues", vmin=0.0, vmax=1.0, rasterized=True)
    middles = (edges[1:] + edges[:-1]) / 2.0
    room = 72.0 / ax.figure.dpi * ax.bbox.width / steps.size  # points
    size = float(np.clip(0.5 * room, 1.5, 6.0))
    ax.plot(
        middles,
        taken["action"],
        "o",
        color=COLORS[1],
        markersize=size,
        markeredgewidth=0,
        label="chosen",
    )
    ax.figure.colorbar(mesh, ax=ax, label="probability", fraction=0.05, pad=0.02)
    if features is not None:
        rows = np.arange(len(features) + 1) + len(labels)
        limits: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -1.0, "vmax": 1.0}
        ax.pcolormesh(edges, rows, seen.T, rasterized=True, **limits)
    below = [len(labels) + 0.5 + i for i in range(len(features or ()))]
    ax.set_yticks([*range(len(labels)), *below], [*_names(labels), *_names(features or ())])
    ax.set(xlabel="step", xlim=(edges[0], edges[-1]))
    ax.invert_yaxis()
    return ax


def start_sensitivity(
    cells: Sequence[Mapping[str, Any]],
    methods: Mapping[str, str] | Sequence[str],
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw what the starting learning rate does to the final loss, relative to a tuned schedule.

    A point is the geometric mean of the capped ratios of all runs that started there; 1 is the
    oracle, lower is better, and a flat line means that the start does not matter.

    Args:
        cells: from `protocol.judge`. Those without a yardstick are left out, as `protocol.score`
            does.
        methods: which to draw, as labels by name or as names; the first is drawn bold.
        ax: what to draw on; None for new axes.

    Returns:
        The axes, both logarithmic.

    Raises:
        ValueError: no cell has a yardstick, or none holds one of the methods.

    Example:
        >>> cell = {"learning_rates": [0.1, 1.0], "initial": [4.0, 4.0], "floor": 0.0,
        ...     "oracle": {"losses": [1.0, 1.0]}, "losses": {"mine": [[1.1, 1.2], [0.9, 2.0]]}}
        >>> ax = optax_meta.plots.start_sensitivity([cell], {"mine": "my method"})
        >>> print(ax.lines[0].get_xdata())
        [0.1 1. ]
    """
    cells, labels = _scored(cells, methods)
    ax = _axes(ax)
    for i, (name, label) in enumerate(labels.items()):
        logs: dict[float, list[np.ndarray]] = {}
        for cell in (cell for cell in cells if name in cell["losses"]):
            ratios = protocol.ratios(cell, name)[0]
            for rate, ratio in zip(cell["learning_rates"], ratios, strict=True):
                logs.setdefault(rate, []).append(np.log(ratio))
        rates = sorted(logs)
        means = [float(np.exp(np.mean(logs[rate]))) for rate in rates]
        ax.plot(rates, means, marker="o", label=label, **line_style(i, bold=i == 0))
    ax.axhline(1.0, color="grey", linewidth=0.8)
    ax.set(xscale="log", yscale="log", xlabel="starting learning rate")
    ax.set_ylabel(_RATIO)
    _plain_ticks(ax.yaxis)
    ax.legend(fontsize=8, frameon=False, handlelength=3)
    return ax


def performance_profile(
    cells: Sequence[Mapping[str, Any]],
    methods: Mapping[str, str] | Sequence[str],
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the share of runs whose ratio to a tuned schedule is at most τ, for τ from 0.5 to 10.

    Higher is better: the value at τ = 1 is how often a method is as good as the oracle, the right
    end how often it comes within ten times of it. A run that diverged counts nowhere. The band is
    the pointwise 95 % interval of a bootstrap over seeds.

    Args:
        cells: from `protocol.judge`. Those without a yardstick are left out, as `protocol.score`
            does.
        methods: which to draw, as labels by name or as names; the first is drawn bold.
        ax: what to draw on; None for new axes.

    Returns:
        The axes, logarithmic in τ.

    Raises:
        ValueError: no cell has a yardstick, or none holds one of the methods.

    Source: R. Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
    Precipice", 2021, https://arxiv.org/abs/2108.13264; E. Dolan and J. Moré, "Benchmarking
    Optimization Software with Performance Profiles", 2002, https://arxiv.org/abs/cs/0102001.

    Example:
        >>> cell = {"initial": [4.0, 4.0], "floor": 0.0, "oracle": {"losses": [1.0, 1.0]},
        ...     "losses": {"mine": [[1.1, 1.2], [0.9, 2.0]]}}
        >>> ax = optax_meta.plots.performance_profile([cell], ["mine"])
        >>> print(ax.lines[0].get_ydata()[[0, -1]])
        [0. 1.]
    """
    cells, labels = _scored(cells, methods)
    ax = _axes(ax)
    for i, (name, label) in enumerate(labels.items()):
        pairs = [protocol.ratios(cell, name) for cell in cells if name in cell["losses"]]
        parts = [np.where(lost | (ratio >= protocol.CAP), np.inf, ratio) for ratio, lost in pairs]
        boot = [_shares(part) for part in protocol.resampled(parts, _RESAMPLES)]
        ax.plot(_TAUS, _shares(np.concatenate(parts)), label=label, **line_style(i, bold=i == 0))
        _band(ax, i, _TAUS, *np.percentile(boot, [2.5, 97.5], axis=0))
    ax.axvline(1.0, color="grey", linewidth=0.8)
    ax.set(xscale="log", xlim=(_TAUS[0], _TAUS[-1]), ylim=(0.0, 1.02))
    ax.set(xlabel=f"τ: {_RATIO}", ylabel="share of runs at τ or below")
    _plain_ticks(ax.xaxis)
    ax.legend(fontsize=8, frameon=False, handlelength=3)
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
        >>> ax = optax_meta.plots.ranking(optax_meta.meta.evaluation.summarize(comparison))
    """
    ax = _axes(ax)
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
            _plain_ticks(ax.xaxis)
    ax.set(xlabel="final loss, mean and 95 % interval over seeds")
    ax.invert_yaxis()
    ax.margins(y=0.15)
    return ax


def line_style(i: int, *, bold: bool = False) -> dict[str, Any]:
    """Return colour, dashes and width of a line of a picture, for matplotlib.

    Args:
        i: which line, ≥ 0; after 35 they repeat.
        bold: whether it is the one to look at.

    Returns:
        Keyword arguments of `Axes.plot`.

    Example:
        >>> optax_meta.plots.line_style(0)
        {'color': '#0072B2', 'linestyle': '-', 'linewidth': 1.5}
    """
    color, dashes = COLORS[i % len(COLORS)], _DASHES[i % len(_DASHES)]
    return {"color": color, "linestyle": dashes, "linewidth": 2.5 if bold else 1.5}


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
    total, number = (
        np.concatenate([[0.0], np.cumsum(y, dtype=np.float64)])
        for y in (np.where(finite, x, 0.0), finite)
    )
    count = number[end] - number[start]
    return np.where(count > 0, total[end] - total[start], np.nan) / np.maximum(count, 1.0)


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


def _band(ax: "Axes", i: int, x: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    ax.fill_between(x, low, high, color=COLORS[i % len(COLORS)], alpha=0.12, linewidth=0)


def _plain_ticks(axis: "Axis") -> None:
    """Label 1, 2, 5 of each decade of a logarithmic axis, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _names(labels: Sequence[str]) -> list[str]:
    """Return labels as they are shown: a joint action takes a line for each of its parts."""
    return [label.replace("_", " ").replace(", ", ",\n") for label in labels]


def _first_run(record: Record) -> tuple[np.ndarray, int, dict[str, np.ndarray]]:
    """Return steps and contents of the decisions of the first run, and its last step."""
    if record.decision is None:
        raise ValueError(
            "the record holds no decisions: its controller has no policy; pass another"
        )
    decided, steps = (np.atleast_2d(np.asarray(x))[0] for x in (record.decided, record.step))
    if not decided.any():
        raise ValueError(
            "the record holds no decisions: the run ended before the first; pass a longer one"
        )
    several = np.ndim(record.decided) > 1
    contents = {name: np.asarray(x) for name, x in record.decision._asdict().items()}
    taken = {name: (x[0] if several else x)[decided] for name, x in contents.items()}
    return steps[decided], int(steps[-1]), taken


def _scored(
    cells: Sequence[Mapping[str, Any]], methods: Mapping[str, str] | Sequence[str]
) -> tuple[list[Mapping[str, Any]], dict[str, str]]:
    """Return the cells that have a yardstick, and labels by method."""
    labels = dict(methods) if isinstance(methods, Mapping) else {name: name for name in methods}
    kept = protocol.comparable(cells)
    if not kept:
        raise ValueError(
            f"none of {len(cells)} cells has an oracle that is lost on no seed: add other cells"
        )
    known = dict.fromkeys(name for cell in kept for name in cell["losses"])
    for name in labels:
        if name not in known:
            raise ValueError(f"no cell holds the method {name!r}; they hold {', '.join(known)}")
    return kept, labels


def _shares(ratio: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.sort(ratio, axis=None), _TAUS, side="right") / ratio.size
