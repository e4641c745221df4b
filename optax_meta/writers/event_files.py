"""Rows as the event files that TensorBoard shows."""

import math
import os
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from optax_meta.base import Controller
from optax_meta.recording import Row
from optax_meta.writers.columns import scalars
from optax_meta.writers.extras import import_extra
from optax_meta.writers.writer import Writer, action_labels

if TYPE_CHECKING:
    from tensorboardX import FileWriter


def tensorboard(
    folder: str | os.PathLike[str],
    *,
    controller: Controller | None = None,
    prefix: str = "",
    counter: str = "step",
) -> Writer:
    """Write numbers as TensorBoard events; needs tensorboardX.

    The probabilities of actions stand under `p/`; observations are left out. A run that goes on
    gets a further file, which tells TensorBoard to forget the old events at or after its first
    step.

    Args:
        folder: as for `tensorboard --logdir`.
        controller: that of the run, which names its actions; None lets them go by their number.
        prefix: of all tags, for instance `"controller/"`.
        counter: the column that counts.

    Returns:
        A `Writer`.

    Raises:
        ValueError: `folder` is a file, or `controller` none.
        ImportError: tensorboardX is not installed.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with optax_meta.writers.tensorboard(folder) as writer:
        ...         writer.put([{"step": 1, "value": 0.5}])
    """
    if Path(folder).is_file():
        raise ValueError(f"`folder` must be a folder for events, got the file `{folder}`")
    # Asked for now, used from the first row on: what is missing shows before the run, not in it.
    import_extra("tensorboardX", "writers")
    labels = action_labels(controller)
    return Writer((_EventFiles(Path(folder), labels, prefix, counter), labels))


class _EventFiles:
    """Event files, one for each time that the run started or went back."""

    def __init__(self, folder: Path, labels: Sequence[str], prefix: str, counter: str) -> None:
        self.folder, self.counter = folder, counter
        self.scalars = partial(scalars, labels=labels, prefix=prefix, counter=counter)
        self.writer: FileWriter | None = None
        self.last = math.inf

    def put(self, rows: Sequence[Row]) -> None:
        # By name, since type checkers find nothing in modules that protobuf makes at run time.
        summary = import_module("tensorboardX.proto.summary_pb2").Summary
        if self.writer is None or rows[0][self.counter] <= self.last:
            self.close(stopped=False)
            self.writer = self._open(rows[0][self.counter])
        for row in rows:
            # One event a row: with one a number, TensorBoardX takes ten times as long.
            values = [summary.Value(tag=tag, simple_value=x) for tag, x in self.scalars(row)]
            self.writer.add_summary(summary(value=values), row[self.counter])
        self.last = rows[-1][self.counter]

    def close(self, *, stopped: bool) -> None:  # noqa: ARG002 - only the live line asks
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _open(self, step: int) -> "FileWriter":
        from tensorboardX import FileWriter

        # Files are read in the order of their names, which hold the time in whole seconds.
        count = len(list(self.folder.glob("events*")))
        suffix = f".{count:04}"
        writer = FileWriter(str(self.folder), flush_secs=10, filename_suffix=suffix)
        if count:
            # A start at a step is how TensorBoard learns that later events are out of date.
            events = import_module("tensorboardX.proto.event_pb2")
            start = events.SessionLog(status=events.SessionLog.START)
            writer.add_event(events.Event(session_log=start), step)
        return writer
