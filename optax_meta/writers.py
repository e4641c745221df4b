"""Where the rows of a run go: files, TensorBoard, experiment trackers, the terminal, a table.

A writer takes what `optax_meta.record(opt_state)` returns: one row, or rows stacked by `lax.scan`.
The packages are optional and imported where they are used.
"""

import contextlib
import importlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import jax

from optax_meta.base import check_whole
from optax_meta.recording import COLUMNS, Record, Row, flatten

if TYPE_CHECKING:
    import pandas as pd

_WIDE = 110  # columns; a terminal with fewer shows no bar beside the row


class _Destination(Protocol):
    def put(self, rows: Sequence[Mapping[str, Any]]) -> None: ...
    def close(self, *, stopped: bool) -> None: ...


class Writer:
    """Takes the rows of a run, as they come, and passes them on.

    Made by the functions of this module and used in `with`, which closes it also where the run
    fails or is stopped. Reading a row waits for its step on the device: in a Python loop write
    every so many steps, or stack the rows of many by `lax.scan`. On several hosts only the first
    one writes.

    Attributes:
        outlets: pairs of a destination and the names of the actions. A destination is any object
            with `put(rows)`, rows as `flatten` makes them, and `close(stopped=…)`, which is told
            whether Ctrl-C ended the run.

    Example:
        >>> with optax_meta.writers.console(total_steps=100) as writer:
        ...     writer.put([{"step": 1, "value": 0.5, "learning_rate": 1e-3}])
    """

    outlets: tuple[tuple[_Destination, tuple[str, ...]], ...]

    def __init__(self, *outlets: tuple[_Destination, Sequence[str]]) -> None:
        for _, labels in outlets:
            if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
                raise ValueError(
                    f"`labels` must be names of actions, `controller.action_labels`, got {labels!r}"
                )
        self.outlets = tuple((destination, tuple(labels)) for destination, labels in outlets)

    def write(self, rows: Record) -> None:
        """Write one row, or rows stacked along a leading axis [T].

        Args:
            rows: from `optax_meta.record`; fetched from the device once.

        Raises:
            ValueError: this is something else, or was called inside `jit`.
        """
        if jax.process_index() > 0:
            return
        flat = {labels: flatten(rows, labels) for labels in {labels for _, labels in self.outlets}}
        if any("seed" in row for found in flat.values() for row in found):
            raise ValueError("`rows` must be of one run: write each of a batch by itself")
        for destination, labels in self.outlets:
            if flat[labels]:
                destination.put(flat[labels])

    def put(self, flat: Sequence[Mapping[str, Any]]) -> None:
        """Write rows that are plain already.

        Args:
            flat: JSON values by name, among them the column that counts.
        """
        if flat and jax.process_index() == 0:
            for destination, _ in self.outlets:
                destination.put(flat)

    def close(self, *, stopped: bool = False) -> None:
        """Finish what is written; a file is opened again by the next row.

        Args:
            stopped: whether Ctrl-C ended the run.
        """
        with contextlib.ExitStack() as stack:
            for destination, _ in reversed(self.outlets):
                stack.callback(destination.close, stopped=stopped)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(stopped=kind is not None and issubclass(kind, KeyboardInterrupt))


def jsonl(
    path: str | os.PathLike[str], *, labels: Sequence[str] = (), counter: str = "step"
) -> Writer:
    """Write rows as JSON lines, the file that `optax-meta report DIR` makes a page of.

    Where the file exists, it goes on: rows at or after the first new step are replaced, so that a
    run that goes on from an earlier checkpoint leaves each step once, and one that starts anew
    starts the file anew. A run that is killed leaves at most its last line cut off, which readers
    ignore.

    Args:
        path: the file, `*.jsonl`; folders are made where there are none.
        labels: names of the actions, `controller.action_labels`, for `action_label`.
        counter: the column that counts.

    Returns:
        A `Writer`.

    Raises:
        ValueError: `path` is a folder or has another ending; from the first row, if the file holds
            something else.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.constant())(0.5)
        >>> row = optax_meta.record(tx.init(jnp.zeros(2)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with optax_meta.writers.jsonl(f"{folder}/steps.jsonl") as writer:
        ...         writer.write(row)
        ...     assert optax_meta.writers.read_rows(f"{folder}/steps.jsonl")[0]["step"] == 0
    """
    path = Path(path)
    if path.suffix != ".jsonl" or path.is_dir():
        raise ValueError(f"`path` must be a file such as `run/steps.jsonl`, got `{path}`")
    return Writer((_JsonLines(path, counter), labels))


def tensorboard(
    folder: str | os.PathLike[str],
    *,
    labels: Sequence[str] = (),
    prefix: str = "",
    counter: str = "step",
) -> Writer:
    """Write numbers as TensorBoard events; needs tensorboardX.

    The probabilities of actions stand under `p/`; what the policy saw is left out. A run that goes
    on gets a further file, which tells TensorBoard to forget the old events at or after its first
    step.

    Args:
        folder: as for `tensorboard --logdir`.
        labels: names of the actions, `controller.action_labels`.
        prefix: of all tags, for instance `"controller/"`.
        counter: the column that counts.

    Returns:
        A `Writer`.

    Raises:
        ValueError: `folder` is a file.
        ImportError: tensorboardX is not installed.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with optax_meta.writers.tensorboard(folder) as writer:
        ...         writer.put([{"step": 1, "value": 0.5}])
    """
    if Path(folder).is_file():
        raise ValueError(f"`folder` must be a folder for events, got the file `{folder}`")
    _require("tensorboardX", "writers")
    return Writer((_TensorBoard(Path(folder), labels, prefix, counter), labels))


def wandb(run: Any = None, *, labels: Sequence[str] = (), prefix: str = "") -> Writer:
    """Log numbers to a run of Weights & Biases, with their steps.

    Rows at steps that the run has passed are left out: it cannot change them.

    Args:
        run: from `wandb.init()`; None for the active one.
        labels: names of the actions, `controller.action_labels`.
        prefix: of all names, for instance `"controller/"`.

    Returns:
        A `Writer`, which does not finish the run.

    Raises:
        ValueError: `run` is something else, or None is active.
        ImportError: `run` is None and wandb is not installed.

    Example:
        >>> from types import SimpleNamespace
        >>> run = SimpleNamespace(step=0, log=lambda row, step: print(step, row))  # `wandb.init()`
        >>> with optax_meta.writers.wandb(run) as writer:
        ...     writer.put([{"step": 1, "value": 0.5}])
        1 {'value': 0.5}
    """
    run = _require("wandb", "wandb").run if run is None else run
    if not callable(getattr(run, "log", None)):
        raise ValueError(f"`run` must be what `wandb.init()` returned: call it first; got {run!r}")

    def send(new: Sequence[Mapping[str, Any]]) -> None:
        for row in new:
            run.log(dict(_tagged(row, labels, prefix)), step=row["step"])

    return Writer((_Service(lambda: run.step, send), labels))


def mlflow(run_id: str | None = None, *, labels: Sequence[str] = (), prefix: str = "") -> Writer:
    """Log numbers to a run of MLflow, with their steps.

    Stacked rows go in batches. Rows at steps that the run holds are left out: it cannot change
    them; the metric `step` remembers which.

    Args:
        run_id: of the run; None for the active one.
        labels: names of the actions, `controller.action_labels`.
        prefix: of all names, for instance `"controller/"`.

    Returns:
        A `Writer`, which does not end the run.

    Raises:
        ValueError: `run_id` is no text, or None and no run is active.
        ImportError: mlflow is not installed.

    Example:
        >>> optax_meta.writers.mlflow(run_id=3)
        Traceback (most recent call last):
        ValueError: `run_id` must be text, ... got 3
    """
    if not isinstance(run_id, str | None):
        raise ValueError(f"`run_id` must be text, `run.info.run_id`, got {run_id!r}")
    active = _require("mlflow", "mlflow").active_run() if run_id is None else None
    if run_id is None and active is None:
        raise ValueError(
            "no MLflow run is active: call `mlflow.start_run()` first or pass `run_id`"
        )
    run_id = active.info.run_id if active is not None else run_id
    client = _require("mlflow", "mlflow").MlflowClient()
    metric = _require("mlflow.entities", "mlflow").Metric

    def first_step() -> float:
        return 1 + client.get_run(run_id).data.metrics.get(f"{prefix}step", -math.inf)

    def send(new: Sequence[Mapping[str, Any]]) -> None:
        now = int(1000 * time.time())
        metrics = [
            metric(name, float(value), now, row["step"])
            for row in new
            for name, value in (*_tagged(row, labels, prefix), (f"{prefix}step", row["step"]))
        ]
        client.log_batch(run_id, metrics=metrics)

    return Writer((_Service(first_step, send), labels))


def console(
    total_steps: int | None = None,
    *,
    labels: Sequence[str] = (),
    folder: str | os.PathLike[str] | None = None,
) -> Writer:
    """Show the run in one live line on standard error; needs rich.

    Loss, hyperparameters, last action, steps done, steps a second and time left. Silent where
    standard error is no terminal, but for the line after Ctrl-C.

    Args:
        total_steps: length of the run, ≥ 1; None where it is not known.
        labels: names of the actions, `controller.action_labels`.
        folder: where the run's files are; after Ctrl-C the line names its page.

    Returns:
        A `Writer`.

    Raises:
        ValueError: `total_steps` is below 1.
        ImportError: rich is not installed.

    Example:
        >>> with optax_meta.writers.console(total_steps=100) as writer:
        ...     writer.put([{"step": 1, "value": 0.5, "learning_rate": 1e-3}])
    """
    if total_steps is not None:
        total_steps = check_whole("total_steps", total_steps)
    _require("rich", "writers")
    return Writer((_Console(total_steps, None if folder is None else Path(folder)), labels))


def tee(*writers: Writer) -> Writer:
    """Join writers to one that passes every row to all of them.

    Args:
        writers: at least one.

    Returns:
        A `Writer`; rows are fetched from the device once for all.

    Raises:
        ValueError: there is none, or one is something else.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = optax_meta.writers.jsonl(f"{folder}/steps.jsonl")
        ...     with optax_meta.writers.tee(file, optax_meta.writers.console(100)) as writer:
        ...         writer.put([{"step": 1, "value": 0.5}])
    """
    if not writers or not all(isinstance(writer, Writer) for writer in writers):
        raise ValueError(f"`writers` must be writers such as `writers.jsonl(…)`, got {writers!r}")
    return Writer(*(outlet for writer in writers for outlet in writer.outlets))


def frame(
    records: Record | Sequence[Record] | str | os.PathLike[str], labels: Sequence[str] = ()
) -> "pd.DataFrame":
    """Return a run as a table, one row a step; needs pandas.

    Args:
        records: stacked rows, leading axes [T] or for several runs [S, T]; a list of single rows;
            or the path of a file that `jsonl` wrote.
        labels: names of the actions, `controller.action_labels`.

    Returns:
        Columns `step`, `value`, `cost`, `grad_norm`, `alignment`, one for each hyperparameter,
        `decided`, `num_nonfinite`; for a controller with a policy `action`, `log_prob`, `entropy`,
        `reward`, `p(LABEL)` for each action and `observation(0)`, …, missing where no decision was
        taken; for several runs `seed`.

    Raises:
        ValueError: `records` is none of these.
        ImportError: pandas is not installed.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.constant())(0.5)
        >>> state = tx.init(jnp.zeros(2))
        >>> optax_meta.writers.frame(optax_meta.record(state)).learning_rate.tolist()
        [0.5]
    """
    pandas = _require("pandas", "writers")
    if isinstance(records, str | os.PathLike):
        flat = read_rows(records)
    elif isinstance(records, Sequence) and not isinstance(records, Record):
        flat = [row for record in jax.device_get(list(records)) for row in flatten(record, labels)]
    else:
        flat = flatten(records, labels)
    table = pandas.DataFrame([dict(_expanded(row, labels)) for row in flat])
    return table.astype({"action": "Int64"}) if "action" in table else table


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Return the rows of a file of JSON lines.

    Args:
        path: of the file, finished, being written, or left by a run that was killed: a last line
            that is cut off is ignored.

    Returns:
        Its rows, at least one.

    Raises:
        ValueError: it holds no complete row, or another line is not JSON.

    Example:
        >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        ...     _ = file.write('{"step": 1}' + chr(10) + '{"st')
        ...     file.flush()
        ...     optax_meta.writers.read_rows(file.name)
        [{'step': 1}]
    """
    found = []
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"line {number} of `{path}` is not JSON: remove it") from error
        if row is not None:
            found.append(row)
    if not found:
        raise ValueError(f"`{path}` holds no complete row yet: read it again later")
    return found


class _JsonLines:
    """A file in which no step stands twice."""

    def __init__(self, path: Path, counter: str) -> None:
        self.path, self.counter = path, counter
        self.file: Any = None
        self.last = math.inf

    def put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file, self.last = self.path.open("a+b"), math.inf
        if rows[0][self.counter] <= self.last:
            self.file.truncate(self._end_before(rows[0][self.counter]))
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        self.file.write(text.encode())
        self.file.flush()
        self.last = rows[-1][self.counter]

    def close(self, *, stopped: bool) -> None:  # noqa: ARG002 - every destination is told
        if self.file is not None:
            self.file.close()
            self.file = None

    def _end_before(self, step: int) -> int:
        """Return where the first row at or after `step` begins, or a last line that is cut off."""
        end = 0
        self.file.seek(0)
        for number, line in enumerate(self.file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                if json.loads(line)[self.counter] >= step:
                    break
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"line {number} of `{self.path}` is no row with `{self.counter}`, and the file "
                    "is left as it is: write to another one"
                ) from error
            end += len(line)
        return end


class _TensorBoard:
    """Event files, one for each time that the run started or went back."""

    def __init__(self, folder: Path, labels: Sequence[str], prefix: str, counter: str) -> None:
        self.folder, self.counter = folder, counter
        self.numbers = partial(_tagged, labels=labels, prefix=prefix, counter=counter)
        self.writer: Any = None
        self.last = math.inf

    def put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        summary = importlib.import_module("tensorboardX.proto.summary_pb2").Summary
        if self.writer is None or rows[0][self.counter] <= self.last:
            self.close(stopped=False)
            self.writer = self._open(rows[0][self.counter])
        for row in rows:
            # One event a row: with one a number, TensorBoardX takes ten times as long.
            values = [summary.Value(tag=tag, simple_value=x) for tag, x in self.numbers(row)]
            self.writer.add_summary(summary(value=values), row[self.counter])
        self.last = rows[-1][self.counter]

    def close(self, *, stopped: bool) -> None:  # noqa: ARG002 - every destination is told
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _open(self, step: int) -> Any:
        from tensorboardX import FileWriter

        # Files are read in the order of their names, which hold the time in whole seconds.
        count = len(list(self.folder.glob("events*")))
        suffix = f".{count:04}"
        writer = FileWriter(str(self.folder), flush_secs=10, filename_suffix=suffix)
        if count:
            events = importlib.import_module("tensorboardX.proto.event_pb2")
            start = events.SessionLog(status=events.SessionLog.START)
            writer.add_event(events.Event(session_log=start), step)
        return writer


class _Service:
    """A run of a tracker, which can only grow: rows at steps that it has are left out."""

    def __init__(
        self,
        first_step: Callable[[], float],
        send: Callable[[Sequence[Mapping[str, Any]]], None],
    ) -> None:
        self.first_step, self.send = first_step, send
        self.next: float | None = None

    def put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if self.next is None:
            self.next = self.first_step()
        new = [row for row in rows if row["step"] >= self.next]
        if new:
            self.send(new)
            self.next = new[-1]["step"] + 1

    def close(self, *, stopped: bool) -> None:
        """Leave the run to whoever started it."""


class _Console:
    """A live line, and a last one after Ctrl-C."""

    def __init__(self, total_steps: int | None, folder: Path | None) -> None:
        from rich import console, progress, table, text

        class Line(progress.ProgressColumn):
            """The row; where it does not fit, its end gives way, and no number beside it."""

            def render(self, task: progress.Task) -> text.Text:
                return text.Text(task.description, no_wrap=True, overflow="ellipsis")

        self.folder, self.total = folder, total_steps
        self.step: int | None = None
        self.action = ""
        terminal = console.Console(stderr=True)
        fixed = [table.Column(no_wrap=True) for _ in range(2)]
        self.bar = progress.Progress(
            Line(),
            *([progress.BarColumn(bar_width=20)] if terminal.width >= _WIDE else []),
            progress.MofNCompleteColumn(table_column=fixed[0]),
            progress.TextColumn("{task.fields[speed]}"),
            progress.TimeRemainingColumn(table_column=fixed[1]),
            console=terminal,
            disable=not (terminal.is_terminal or terminal.is_jupyter),
        )
        self.task = self.bar.add_task("", total=total_steps, speed="")

    def put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        step = rows[-1]["step"]
        taken = [row for row in rows if "action" in row]
        if taken:
            self.action = taken[-1].get("action_label", f"action {taken[-1]['action']}")
        if self.step is None:  # how long the steps before the first row took is not known
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

    def _text(self, row: Mapping[str, Any]) -> str:
        numbers = {"loss": row.get("value"), **{n: row[n] for n in row if n not in COLUMNS}}
        shown = [f"{name.replace('_', ' ')} {_short(x)}" for name, x in numbers.items()]
        return " · ".join([*shown, self.action] if self.action else shown)


def _short(x: float | None) -> str:
    return "-" if x is None else f"{x:.4g}"


def _expanded(row: Mapping[str, Any], labels: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Give each probability and each feature a name of its own."""
    for name, value in row.items():
        if name == "probabilities":
            names = labels or range(len(value))
            yield from ((f"p({label})", x) for label, x in zip(names, value, strict=True))
        elif name == "observation":
            yield from ((f"observation({i})", x) for i, x in enumerate(value))
        else:
            yield name, value


def _tagged(
    row: Mapping[str, Any], labels: Sequence[str], prefix: str, counter: str = "step"
) -> Iterator[tuple[str, float]]:
    """Return the finite numbers by names that trackers take: letters, digits and `-_./`."""
    for name, value in _expanded(row, labels):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and name != counter and not name.startswith("observation("):
            plain = re.sub(r"^p\((.*)\)$", r"p/\1", name).replace("×", "x")
            yield prefix + re.sub(r"[^-/\w.]+", "_", plain), value


def _require(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        raise ImportError(f"this needs {name}: pip install 'optax-meta[{extra}]'") from error
