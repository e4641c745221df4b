"""What a comparison came to."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from optax_meta.recording import Record


class MethodResult(NamedTuple):
    """All runs of one method; S seeds, T steps.

    Attributes:
        initial: what `Task.evaluate` gives before the first step, float64[S] by name.
        final: the same after the last step.
        losses: training loss of each step on its batch, float32[S, T]; may hold inf and nan.
        records: a `Record` of numpy arrays with leading axes [S, T].
        seconds: wall-clock of each run without compilation, float64[S].
        action_labels: names of the actions; empty for a controller without a policy.
        features: names of what its policy observes; empty where they are not known.
        config: of the controller, as `optax_meta.to_config` gives it for the first seed; None where
            it has none.
    """

    initial: dict[str, np.ndarray]
    final: dict[str, np.ndarray]
    losses: np.ndarray
    records: Record
    seconds: np.ndarray
    action_labels: tuple[str, ...]
    features: tuple[str, ...]
    config: Mapping[str, Any] | None = None


class Comparison(NamedTuple):
    """What was run, how, and what came out.

    Attributes:
        task: the task's name.
        description: what it is, one sentence.
        optimizer: name of the inner optimizer's factory.
        learning_rate: the starting rate.
        steps: length of each run.
        seeds: number of runs of each method; the seeds are 0, 1, ….
        planned_seeds: how many were asked for; more than `seeds` where it was stopped.
        methods: results by name.
        bare_seconds: wall-clock of the optimizer without a controller, float64[S].
        versions: of the libraries and the device that ran it.
    """

    task: str
    description: str
    optimizer: str
    learning_rate: float
    steps: int
    seeds: int
    planned_seeds: int
    methods: dict[str, MethodResult]
    bare_seconds: np.ndarray
    versions: dict[str, str]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `compare`; keeps what was finished.

    Attributes:
        partial: the seeds that every method finished; None for fewer than two.
    """

    def __init__(self, partial: Comparison | None) -> None:
        super().__init__()
        self.partial = partial
