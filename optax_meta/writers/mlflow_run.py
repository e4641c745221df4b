"""Rows as the metrics of a run of MLflow."""

import math
import time
from collections.abc import Sequence

from optax_meta.base import Controller
from optax_meta.recording import Row
from optax_meta.writers.columns import scalars
from optax_meta.writers.extras import import_extra
from optax_meta.writers.tracker import Tracker
from optax_meta.writers.writer import Writer, action_labels


def mlflow(
    run_id: str | None = None, *, controller: Controller | None = None, prefix: str = ""
) -> Writer:
    """Log numbers to a run of MLflow, with their steps.

    Stacked rows go in batches. Rows at steps that the run has already are left out: it cannot
    change them; the metric `step` remembers which.

    Args:
        run_id: of the run; None for the active one.
        controller: that of the run, which names its actions; None lets them go by their number.
        prefix: of all names, for instance `"controller/"`.

    Returns:
        A `Writer`, which does not end the run.

    Raises:
        ValueError: `run_id` is no text, or None and no run is active; or `controller` is none.
        ImportError: mlflow is not installed.

    Example:
        >>> optax_meta.writers.mlflow(run_id=3)
        Traceback (most recent call last):
        ValueError: `run_id` must be text, ... got 3
    """
    if not isinstance(run_id, str | None):
        raise ValueError(f"`run_id` must be text, `run.info.run_id`, got {run_id!r}")
    labels = action_labels(controller)
    run_id = _active_run_id() if run_id is None else run_id
    client = import_extra("mlflow", "mlflow").MlflowClient()
    metric = import_extra("mlflow.entities", "mlflow").Metric
    # MLflow keeps no step of a run as a whole, only those of each metric.
    step_name = f"{prefix}step"

    def next_step() -> float:
        return 1 + client.get_run(run_id).data.metrics.get(step_name, -math.inf)

    def send(rows: Sequence[Row]) -> None:
        now = int(1000 * time.time())  # MLflow counts milliseconds
        metrics = [
            metric(name, float(value), now, row["step"])
            for row in rows
            for name, value in (*scalars(row, labels, prefix), (step_name, row["step"]))
        ]
        client.log_batch(run_id, metrics=metrics)

    return Writer((Tracker(next_step, send), labels))


def _active_run_id() -> str:
    active = import_extra("mlflow", "mlflow").active_run()
    if active is None:
        raise ValueError(
            "no MLflow run is active: call `mlflow.start_run()` first or pass `run_id`"
        )
    return active.info.run_id
