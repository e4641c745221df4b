"""Rows of a run, passed on to where they are kept or shown."""

import contextlib
from collections.abc import Sequence
from typing import Protocol, Self

import jax

from optax_meta.base import Controller
from optax_meta.recording import Record, Row, flatten


class Destination(Protocol):
    """Where rows go: what a new file of this package implements."""

    def put(self, rows: Sequence[Row]) -> None:
        """Take at least one row, as `flatten` makes them."""
        ...

    def close(self, *, stopped: bool) -> None:
        """Finish what is written; `stopped` says whether Ctrl-C ended the run."""
        ...


def action_labels(controller: Controller | None) -> tuple[str, ...]:
    """Return the names of a controller's actions, none without one.

    Raises:
        ValueError: it is no `Controller`.

    >>> optax_meta.writers.writer.action_labels("hold")
    Traceback (most recent call last):
    ValueError: `controller` must be that of the run, ... got 'hold'
    """
    if controller is None:
        return ()
    if not isinstance(controller, Controller):
        raise ValueError(
            "`controller` must be that of the run, as `control_hyperparams` gets it, got "
            f"{controller!r}"
        )
    return controller.action_labels


class Writer:
    """Takes the rows of a run, as they come, and passes them on.

    Made by the functions of this package and used in `with`, which closes it also where the run
    fails or is stopped. Reading a row waits for its step on the device: in a Python loop write
    every so many steps, or stack the rows of many by `lax.scan`. On several hosts only the first
    one writes.

    Attributes:
        outlets: pairs of a destination and the names of the actions. A destination is any object
            with `put(rows)`, rows as `flatten` makes them, and `close(stopped=…)`, where `stopped`
            says whether Ctrl-C ended the run.

    Example:
        >>> with optax_meta.writers.console(total_steps=100) as writer:
        ...     writer.put([{"step": 1, "value": 0.5, "learning_rate": 1e-3}])
    """

    outlets: tuple[tuple[Destination, tuple[str, ...]], ...]

    def __init__(self, *outlets: tuple[Destination, tuple[str, ...]]) -> None:
        self.outlets = outlets

    def write(self, rows: Record) -> None:
        """Write one row, or rows stacked along a leading axis [T].

        Args:
            rows: from `optax_meta.record`; fetched from the device once.

        Raises:
            ValueError: this is something else, or was called inside `jit`.
        """
        if jax.process_index() > 0:
            return
        # Writers that were joined mostly share their labels: flattened once for each set of these.
        flat = {labels: flatten(rows, labels) for labels in {labels for _, labels in self.outlets}}
        if any("seed" in row for rows_of_run in flat.values() for row in rows_of_run):
            raise ValueError("`rows` must be of one run: write each of a batch by itself")
        for destination, labels in self.outlets:
            if flat[labels]:
                destination.put(flat[labels])

    def put(self, flat: Sequence[Row]) -> None:
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
        # A stack calls every one of them, also where one before has failed.
        with contextlib.ExitStack() as stack:
            for destination, _ in reversed(self.outlets):
                stack.callback(destination.close, stopped=stopped)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(stopped=kind is not None and issubclass(kind, KeyboardInterrupt))


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
