"""Pictures of benchmark cells, as `protocol.judge` returns them: ratios to a tuned schedule."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optax_meta.meta import protocol
from optax_meta.reports.plots.style import axes_or_new, band, legend, line_style, plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Cell = Mapping[str, Any]
"""One setting with all its losses, as JSON values."""

# From half the oracle's loss, which few runs reach, to where `protocol` caps the ratios.
_TAUS = np.geomspace(0.5, protocol.CAP, 200)
_RESAMPLES = 200  # five of them then lie beyond each end of a 95 % interval
_RATIO = f"final loss ÷ that of a {len(protocol.SWEEP_RATES) * len(protocol.SCHEDULES)}-trial sweep"


def start_sensitivity(
    cells: Sequence[Cell],
    methods: Mapping[str, str] | Sequence[str],
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw what the starting learning rate does to the final loss, relative to a tuned schedule.

    A point is the geometric mean of the capped ratios of all runs that started there; 1 is the
    oracle, lower is better, and a flat line means that the start does not matter.

    Args:
        cells: from `protocol.judge`. Those whose oracle diverged are excluded, as `protocol.score`
            does.
        methods: which to draw, as labels by name or as names; the first is drawn bold.
        ax: what to draw on; None for new axes.

    Returns:
        The axes, both logarithmic.

    Raises:
        ValueError: all cells are excluded, or none of them holds one of the methods.

    Example:
        >>> cell = {"learning_rates": [0.1, 1.0], "initial": [4.0, 4.0], "floor": 0.0,
        ...     "oracle": {"losses": [1.0, 1.0]}, "losses": {"mine": [[1.1, 1.2], [0.9, 2.0]]}}
        >>> ax = optax_meta.plots.start_sensitivity([cell], {"mine": "my method"})
        >>> print(ax.lines[0].get_xdata())
        [0.1 1. ]
    """
    cells, labels = _comparable(cells, methods)
    ax = axes_or_new(ax)
    for i, (name, label) in enumerate(labels.items()):
        rates, means = _means_by_start(cells, name)
        ax.plot(rates, means, marker="o", label=label, **line_style(i, bold=i == 0))
    ax.axhline(1.0, color="grey", linewidth=0.8)
    ax.set(xscale="log", yscale="log", xlabel="starting learning rate")
    ax.set_ylabel(_RATIO)
    plain_ticks(ax.yaxis)
    legend(ax, fontsize=8)
    return ax


def performance_profile(
    cells: Sequence[Cell],
    methods: Mapping[str, str] | Sequence[str],
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the share of runs whose ratio to a tuned schedule is at most τ, for τ from 0.5 to 10.

    Higher is better: the value at τ = 1 is how often a method is as good as the oracle, the right
    end how often it comes within ten times of it. A run that diverged counts nowhere. The band is
    the pointwise 95 % interval of a bootstrap over seeds.

    Args:
        cells: from `protocol.judge`. Those whose oracle diverged are excluded, as `protocol.score`
            does.
        methods: which to draw, as labels by name or as names; the first is drawn bold.
        ax: what to draw on; None for new axes.

    Returns:
        The axes, logarithmic in τ.

    Raises:
        ValueError: all cells are excluded, or none of them holds one of the methods.

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
    cells, labels = _comparable(cells, methods)
    ax = axes_or_new(ax)
    for i, (name, label) in enumerate(labels.items()):
        pairs = [protocol.ratios(cell, name) for cell in cells if name in cell["losses"]]
        # The cap is where "at most τ" ends: a run there may be any number of times worse.
        parts = [np.where(failed | (r >= protocol.CAP), np.inf, r) for r, failed in pairs]
        boot = [_shares(part) for part in protocol.resampled(parts, _RESAMPLES)]
        ax.plot(_TAUS, _shares(np.concatenate(parts)), label=label, **line_style(i, bold=i == 0))
        band(ax, i, _TAUS, *np.percentile(boot, [2.5, 97.5], axis=0))
    ax.axvline(1.0, color="grey", linewidth=0.8)
    ax.set(xscale="log", xlim=(_TAUS[0], _TAUS[-1]), ylim=(0.0, 1.02))
    ax.set(xlabel=f"τ: {_RATIO}", ylabel="share of runs at τ or below")
    plain_ticks(ax.xaxis)
    legend(ax, fontsize=8)
    return ax


def _means_by_start(cells: Sequence[Cell], name: str) -> tuple[list[float], list[float]]:
    """Return the starting rates, and the geometric mean of the ratios of each."""
    # Cells may start elsewhere: runs are matched by the value of the rate, not by its place.
    logs: dict[float, list[np.ndarray]] = {}
    for cell in (cell for cell in cells if name in cell["losses"]):
        ratios = protocol.ratios(cell, name)[0]
        for rate, ratio in zip(cell["learning_rates"], ratios, strict=True):
            logs.setdefault(rate, []).append(np.log(ratio))
    rates = sorted(logs)
    return rates, [float(np.exp(np.mean(logs[rate]))) for rate in rates]


def _comparable(
    cells: Sequence[Cell], methods: Mapping[str, str] | Sequence[str]
) -> tuple[Sequence[Cell], dict[str, str]]:
    """Return the cells that are not excluded, and labels by method."""
    labels = dict(methods) if isinstance(methods, Mapping) else {name: name for name in methods}
    kept = protocol.comparable(cells)
    if not kept:
        raise ValueError(
            f"`cells` must hold one whose oracle diverged on no seed, got {len(cells)} that did"
        )
    known = dict.fromkeys(name for cell in kept for name in cell["losses"])
    for name in labels:
        if name not in known:
            raise ValueError(f"`methods` must be among {', '.join(known)}, got {name!r}")
    return kept, labels


def _shares(ratio: np.ndarray) -> np.ndarray:
    """Return the share of the ratios at each τ or below, float[len(_TAUS)]."""
    # One sort for all τ: a bootstrap asks this thousands of times.
    return np.searchsorted(np.sort(ratio, axis=None), _TAUS, side="right") / ratio.size
