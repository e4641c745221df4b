"""Rows as the history of a run of Weights & Biases."""

from collections.abc import Sequence
from typing import Protocol

from optax_meta.base import Controller
from optax_meta.recording import Row
from optax_meta.writers.columns import scalars
from optax_meta.writers.extras import import_extra
from optax_meta.writers.tracker import Tracker
from optax_meta.writers.writer import Writer, action_labels


class _Run(Protocol):
    """What is asked of a `wandb.Run`, whose package is too large for the checks to install."""

    @property
    def step(self) -> int: ...
    def log(self, data: dict[str, float], step: int | None = None) -> None: ...


def wandb(
    run: _Run | None = None, *, controller: Controller | None = None, prefix: str = ""
) -> Writer:
    """Log numbers to a run of Weights & Biases, with their steps.

    Rows at steps that the run has passed are left out: it cannot change them.

    Args:
        run: from `wandb.init()`; None for the active one.
        controller: that of the run, which names its actions; None lets them go by their number.
        prefix: of all names, for instance `"controller/"`.

    Returns:
        A `Writer`, which does not finish the run.

    Raises:
        ValueError: `run` is something else, None is active, or `controller` is none.
        ImportError: `run` is None and wandb is not installed.

    Example:
        >>> from types import SimpleNamespace
        >>> run = SimpleNamespace(step=0, log=lambda row, step: print(step, row))  # `wandb.init()`
        >>> with optax_meta.writers.wandb(run) as writer:
        ...     writer.put([{"step": 1, "value": 0.5}])
        1 {'value': 0.5}
    """
    labels = action_labels(controller)
    active = import_extra("wandb", "wandb").run if run is None else run
    if not callable(getattr(active, "log", None)):
        raise ValueError(
            f"`run` must be what `wandb.init()` returned: call it first; got {active!r}"
        )

    def send(rows: Sequence[Row]) -> None:
        # A call a step: wandb has no other way, and merges what comes at the same step.
        for row in rows:
            active.log(dict(scalars(row, labels, prefix)), step=row["step"])

    return Writer((Tracker(lambda: active.step, send), labels))
