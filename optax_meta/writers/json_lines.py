"""Rows as lines of JSON, in a file that a run can go on with."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from optax_meta.base import Controller
from optax_meta.configs import card_of
from optax_meta.recording import Row
from optax_meta.writers.writer import Writer, action_labels


def jsonl(
    path: str | os.PathLike[str], *, controller: Controller | None = None, counter: str = "step"
) -> Writer:
    """Write rows as JSON lines, the file that `optax-meta report DIR` makes a page of.

    Where the file exists, it goes on: rows at or after the first new step are replaced, so that a
    run that goes on from an earlier checkpoint leaves each step once, and one that starts anew
    starts the file anew. A run that is killed leaves at most its last line cut off, which readers
    ignore.

    Args:
        path: the file, `*.jsonl`; folders are made where there are none.
        controller: that of the run, which names the actions in `action_label`. With the first row
            its config, and what its policy sees and does, are kept beside the file, in
            `NAME.controller.json`, for the page.
        counter: the column that counts.

    Returns:
        A `Writer`.

    Raises:
        ValueError: `path` is a folder or has another ending, or `controller` is none; from the
            first row, if the file holds something else.

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
    return Writer((_JsonLines(path, counter, controller), action_labels(controller)))


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
    rows = Follower(path).read()
    if not rows:
        raise ValueError(f"`{path}` holds no complete row yet: read it again later")
    return rows


def write_card(path: Path, controller: Controller) -> None:
    """Keep what a controller is beside the rows of its run, in `NAME.controller.json`.

    Args:
        path: of the file with the rows.
        controller: that of the run.
    """
    card = card_of(controller)._asdict()
    text = json.dumps(card, indent=1, allow_nan=False, ensure_ascii=False)
    _card_path(path).write_text(text + "\n", encoding="utf-8")


def read_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what `jsonl` kept of a run's controller beside its rows; empty where there is nothing.

    Args:
        path: of the file with the rows.

    Returns:
        "action_labels", "features" and "config", as `optax_meta.from_config` takes it or None.

    Raises:
        ValueError: the card is no mapping in JSON.

    Example:
        >>> controller, row = optax_meta.plateau(factor=0.5), {"step": 1, "value": 0.5}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/steps.jsonl"
        ...     with optax_meta.writers.jsonl(path, controller=controller) as writer:
        ...         writer.put([row])
        ...     print(optax_meta.writers.read_card(path)["config"])
        {'controller': 'plateau', 'factor': 0.5}
    """
    card = _card_path(Path(path))
    try:
        found = json.loads(card.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"`{card}` is no card of a controller: remove it")
    return found


def _card_path(path: Path) -> Path:
    return path.with_suffix(".controller.json")


class Follower:
    """Reads a file of JSON lines again and again while it grows, each line once.

    A file that was cut, by a run that goes on from an earlier checkpoint, is read anew.

    Args:
        path: of the file.

    Example:
        >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        ...     follower = optax_meta.writers.Follower(file.name)
        ...     _ = file.write('{"step": 1}' + chr(10) + '{"st')
        ...     file.flush()
        ...     first = follower.read()
        ...     _ = file.write('ep": 2}' + chr(10))
        ...     file.flush()
        ...     first, follower.read()
        ([{'step': 1}], [{'step': 1}, {'step': 2}])
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._start_anew()

    def read(self) -> list[Row]:
        """Return all rows so far, those of the last call included.

        Raises:
            ValueError: a line is not JSON; a last one that is cut off is left for the next call.
            OSError: the file cannot be read.
        """
        *lines, rest = self._new_bytes().split(b"\n")
        for line in lines:
            row = self._row(line)
            self._last, self._end, self._count = line, self._end + len(line) + 1, self._count + 1
            if row is not None:
                self._rows.append(row)
        try:
            unfinished = self._row(rest)
        except ValueError:
            unfinished = None
        # A file that somebody else wrote may end without the end of a line.
        return [*self._rows, *([] if unfinished is None else [unfinished])]

    def _start_anew(self) -> None:
        self._rows: list[Row] = []
        self._last, self._end, self._count = b"", 0, 0

    def _new_bytes(self) -> bytes:
        with self.path.open("rb") as file:
            if self._end:
                file.seek(self._end - len(self._last) - 1)
                # What was cut and has grown again has another last line here.
                if file.read(len(self._last) + 1) != self._last + b"\n":
                    self._start_anew()
                    file.seek(0)
            return file.read()

    def _row(self, line: bytes) -> Row | None:
        try:
            return json.loads(line) if line.strip() else None
        except ValueError as error:
            number = self._count + 1
            raise ValueError(f"line {number} of `{self.path}` is not JSON: remove it") from error


class _JsonLines:
    """A file in which no step stands twice."""

    def __init__(self, path: Path, counter: str, controller: Controller | None) -> None:
        self.path, self.counter, self.controller = path, counter, controller
        self.file: BinaryIO | None = None
        # What a file holds already is not known: ∞ makes the first row look for its place in it.
        self.last = math.inf

    def put(self, rows: Sequence[Row]) -> None:
        is_opened = self.file is None
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # In append mode every write lands at the end, wherever the reading below has stopped.
            self.file, self.last = self.path.open("a+b"), math.inf
        if rows[0][self.counter] <= self.last:
            self.file.truncate(self._end_before(self.file, rows[0][self.counter]))
        # Not before the file is known to be one of rows: else it is left as it is.
        if is_opened and self.controller is not None:
            write_card(self.path, self.controller)
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        self.file.write(text.encode())
        # A page may be made of the file while the run goes on.
        self.file.flush()
        self.last = rows[-1][self.counter]

    def close(self, *, stopped: bool) -> None:  # noqa: ARG002 - only the live line asks
        if self.file is not None:
            self.file.close()
            self.file = None

    def _end_before(self, file: BinaryIO, step: int) -> int:
        """Return where the first row at or after `step` begins, or a last line that is cut off."""
        end = 0
        file.seek(0)
        for number, line in enumerate(file, 1):
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
