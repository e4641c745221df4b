"""The look that all pictures share: axes, colours, dashes, ticks."""

from typing import TYPE_CHECKING, TypedDict

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

Dashes = str | tuple[int, tuple[float, ...]]

# Okabe and Ito's palette, which colour-blind readers can tell apart, less its yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# For print without colour; five and seven have no common divisor, so 35 lines differ.
_DASHES: tuple[Dashes, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1.5, 2)),
    (0, (6, 2, 1.5, 2)),
    (0, (11, 3)),
)


class LineStyle(TypedDict):
    """Keyword arguments of `Axes.plot`."""

    color: str
    linestyle: Dashes
    linewidth: float


def line_style(i: int, *, bold: bool = False) -> LineStyle:
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


def axes_or_new(ax: "Axes | None") -> "Axes":
    """Return the axes, or those of a new figure, without the frame's upper and right side.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if ax is None:
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError(
                "pictures need matplotlib: pip install 'optax-meta[report]'"
            ) from error
        ax = plt.subplots(layout="constrained")[1]
    # Nothing is read off them.
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def band(ax: "Axes", i: int, x: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Fill between two curves, float[T] each, faintly in the colour of line `i`."""
    ax.fill_between(x, low, high, color=COLORS[i % len(COLORS)], alpha=0.12, linewidth=0)


def plain_ticks(axis: "Axis") -> None:
    """Label 1, 2, 5 of each decade of a logarithmic axis, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def legend(ax: "Axes", fontsize: float | None = None) -> None:
    """Add a legend whose lines are long enough to show their dashes."""
    ax.legend(frameon=False, handlelength=3, fontsize=fontsize)
