"""The latest row as one live line in the terminal."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optax_meta.base import Controller
from optax_meta.checks import check_whole
from optax_meta.recording import COLUMNS, Row
from optax_meta.writers.extras import import_extra
from optax_meta.writers.writer import Writer, action_labels

if TYPE_CHECKING:
    from rich.progress import Progress

# Loss, one hyperparameter and an action take some 60 columns, the numbers on the right 40: in a
# narrower terminal the bar, which says least, would cut the row.
_WIDE = 110


def console(
    total_steps: int | None = None,
    *,
    controller: Controller | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Writer:
    """Show the run in one live line on standard error; needs rich.

    Loss, hyperparameters, last action, steps done, steps a second and time left. Silent where
    standard error is no terminal, but for the line after Ctrl-C.

    Args:
        total_steps: length of the run, ≥ 1; None where it is not known.
        controller: that of the run, which names its actions; None lets them go by their number.
        folder: where the run's files are; after Ctrl-C the line names its page.

    Returns:
        A `Writer`.

    Raises:
        ValueError: `total_steps` is below 1, or `controller` is none.
        ImportError: rich is not installed.

    Example:
        >>> with optax_meta.writers.console(total_steps=100) as writer:
        ...     writer.put([{"step": 1, "value": 0.5, "learning_rate": 1e-3}])
    """
    if total_steps is not None:
        total_steps = check_whole("total_steps", total_steps)
    import_extra("rich", "writers")
    line = _LiveLine(total_steps, None if folder is None else Path(folder))
    return Writer((line, action_labels(controller)))


class _LiveLine:
    """A live line, and a last one after Ctrl-C."""

    def __init__(self, total_steps: int | None, folder: Path | None) -> None:
        self.folder, self.total = folder, total_steps
        self.step: int | None = None
        self.action = ""
        self.bar = _bar()
        self.task = self.bar.add_task("", total=total_steps, speed="")

    def put(self, rows: Sequence[Row]) -> None:
        step = rows[-1]["step"]
        taken = [row for row in rows if "action" in row]
        if taken:
            self.action = taken[-1].get("action_label", f"action {taken[-1]['action']}")
        if self.step is None:
            # How long the steps before the first row took is not known: the clock starts here.
            self.bar.reset(self.task, completed=step)
            self.bar.start()
        self.step = step
        self.bar.update(self.task, completed=step, description=self._text(rows[-1]))
        speed = self.bar.tasks[0].speed
        if speed is not None:
            self.bar.update(self.task, speed=f"{speed:,.4g} steps/s")

    def close(self, *, stopped: bool) -> None:
        self.bar.stop()
        if not stopped:
            return
        of = "" if self.total is None else f" of {self.total}"
        page = "" if self.folder is None else f"; its page: optax-meta report {self.folder}"
        resume = "to resume, start again from your last checkpoint with the same writers"
        message = f"optax-meta: stopped at step {self.step or 0}{of}{page}; {resume}"
        print(message, file=sys.stderr)  # noqa: T201

    def _text(self, row: Row) -> str:
        numbers = {"loss": row.get("value"), **{n: row[n] for n in row if n not in COLUMNS}}
        parts = [f"{name.replace('_', ' ')} {_short(x)}" for name, x in numbers.items()]
        return " · ".join([*parts, self.action] if self.action else parts)


def _bar() -> "Progress":
    from rich import console, progress, table, text

    class Line(progress.ProgressColumn):
        """The row; where it does not fit, its end gives way, and no number beside it."""

        def render(self, task: progress.Task) -> text.Text:
            return text.Text(task.description, no_wrap=True, overflow="ellipsis")

    fixed = [table.Column(no_wrap=True) for _ in range(2)]
    terminal = console.Console(stderr=True)
    return progress.Progress(
        Line(),
        *([progress.BarColumn(bar_width=20)] if terminal.width >= _WIDE else []),
        progress.MofNCompleteColumn(table_column=fixed[0]),
        # Not rich's own column of speed, which counts bytes.
        progress.TextColumn("{task.fields[speed]}"),
        progress.TimeRemainingColumn(table_column=fixed[1]),
        console=terminal,
        disable=not (terminal.is_terminal or terminal.is_jupyter),
    )


def _short(x: float | None) -> str:
    return "-" if x is None else f"{x:.4g}"
