"""What a comparison came to, in text: a table for terminal, page and Markdown, and a verdict."""

from collections.abc import Sequence
from typing import NamedTuple

from optax_meta.meta.evaluation import Comparison, Interval, Summary, summarize


class Table(NamedTuple):
    """A table of text.

    Attributes:
        columns: their names.
        rows: one cell a column.
    """

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def select(self, columns: Sequence[str]) -> "Table":
        """Return a narrower table: those of `columns` that there are."""
        kept = [i for i, column in enumerate(self.columns) if column in columns]
        rows = [tuple(row[i] for i in kept) for row in self.rows]
        return Table(tuple(self.columns[i] for i in kept), rows)


def result_table(comparison: Comparison) -> Table:
    """Return the ranking as text.

    Args:
        comparison: from `optax_meta.compare`.

    Returns:
        Columns and rows; a column that the task has no values for is left out.

    Example:
        >>> comparison = optax_meta.compare("quadratic", ["constant"], steps=3, seeds=2)
        >>> optax_meta.reports.table.result_table(comparison).columns[:2]
        ('rank', 'method')
    """
    rows = summarize(comparison)
    has_accuracy = rows[0].test_accuracy is not None
    columns = (
        "rank",
        "method",
        "final loss",
        "loss reduction %",
        "behind the best %",
        *(("test accuracy %",) if has_accuracy else ()),
        "rates",
        "lowest … highest rate",
        "diverged",
        "seconds a run",
        "time ×",
    )
    return Table(columns, [_cells(rank, row, comparison.seeds) for rank, row in enumerate(rows, 1)])


def verdict(comparison: Comparison) -> str:
    """Return which method was best, which are tied with it, and which are not."""
    best, *others = summarize(comparison)
    tied = [row.method for row in others if row.is_tied]
    beaten = [row.method for row in others if not row.is_tied]
    text = f"{comparison.steps} steps, {comparison.seeds} seeds. "
    text += f"Lowest mean final loss: {best.method}."
    # First, since it qualifies all that follows.
    if comparison.seeds < comparison.planned_seeds:
        done = f"{comparison.seeds} of {comparison.planned_seeds} seeds are finished"
        text = f"Stopped early: {done}. {text}"
    if tied:
        text += f" Not distinguished from it by {comparison.seeds} seeds: {', '.join(tied)}."
    if beaten:
        text += f" Behind it: {', '.join(beaten)}."
    return text


def _cells(rank: int, row: Summary, seeds: int) -> tuple[str, ...]:
    accuracy = row.test_accuracy
    # Only the best one differs from itself by exactly nothing on every seed.
    is_best = row.versus_best.mean == row.versus_best.half_width == 0.0
    behind = _text(row.versus_best, 0) + (" ≈" if row.is_tied else "")
    return (
        str(rank),
        row.method,
        _text(row.final_loss, 4),
        _text(row.loss_reduction, 1),
        "-" if is_best else behind,
        *(() if accuracy is None else (_text(Interval(*(100.0 * x for x in accuracy)), 1),)),
        f"{row.num_rates:.1f}",  # a mean over seeds
        f"{row.lowest_rate:.2g} … {row.highest_rate:.2g}",
        f"{row.num_diverged}/{seeds}",
        f"{row.seconds.mean:.2f}",
        f"{row.overhead:.2f}",
    )


def _text(value: Interval, digits: int) -> str:
    return f"{value.mean:.{digits}f} ± {value.half_width:.{digits}f}"
