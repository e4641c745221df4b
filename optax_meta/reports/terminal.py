"""What a command shows in the terminal: a progress bar while it works, then a table.

Needs rich, of the extras `report` and `meta`.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:  # the page needs matplotlib, which `meta-train` does without
    from optax_meta.meta.evaluation import Comparison
    from optax_meta.reports.table import Table as TextTable

Show = Callable[[str, int, int], None]
"""Called with (label, done, total)."""

# All columns of the ranking take 130; in a narrower terminal these say most.
_WIDE = 130
_NARROW = (
    "method",
    "final loss",
    "loss reduction %",
    "test accuracy %",
    "rates",
    "time ×",
)


@contextlib.contextmanager
def progress_bar() -> Iterator[Show]:
    """Show a progress bar on standard error, where that is a terminal.

    Yields:
        What sets its label and its length, called with (label, done, total).

    Example:
        >>> from optax_meta.reports import terminal
        >>> with terminal.progress_bar() as show:
        ...     show("seed 3 of 10", 3, 10)
    """
    # Results go to standard output, alone: it may be a file.
    console = Console(stderr=True)
    text = TextColumn("{task.description}", markup=False)
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    columns = (text, BarColumn(), MofNCompleteColumn(), *times)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda label, done, total: bar.update(
            task, description=label, completed=done, total=total
        )


def print_ranking(comparison: "Comparison", ranking: "TextTable") -> None:
    """Print the table of a comparison, as much of it as the terminal is wide.

    Args:
        comparison: from `optax_meta.compare`.
        ranking: its rows as text, from `result_table`.
    """
    console = Console()
    title = (
        f"{comparison.task}, optax.{comparison.optimizer} from {comparison.learning_rate:g}, "
        f"{comparison.steps} steps, {comparison.seeds} seeds"
    )
    caption = "mean ± half-width of the 95 % interval over seeds; time × the bare optimizer's"
    if console.width < _WIDE:
        ranking = ranking.select(_NARROW)
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ranking.columns:
        justify = "left" if column == "method" else "right"
        # Other columns may break a line; what is compared must stand on one.
        table.add_column(column, justify=justify, no_wrap=column in ("method", "final loss"))
    for row in ranking.rows:
        table.add_row(*row)
    console.print(table)


def print_link(label: str, path: Path) -> None:
    """Print where a file is, on one line, as a link where the terminal knows links.

    Args:
        label: what the file is.
        path: where it is.
    """
    link = f"[link={path.resolve().as_uri()}]{path}[/link]"
    Console().print(f"{label}: {link}", soft_wrap=True)
