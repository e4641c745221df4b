"""Rows as a table of pandas."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax

from optax_meta.base import Controller
from optax_meta.recording import Record, Row, flatten
from optax_meta.writers.columns import columns
from optax_meta.writers.extras import import_extra
from optax_meta.writers.json_lines import read_rows
from optax_meta.writers.writer import action_labels

if TYPE_CHECKING:
    import pandas as pd

_Records = Record | Sequence[Record] | str | os.PathLike[str]


def frame(records: _Records, controller: Controller | None = None) -> "pd.DataFrame":
    """Return a run as a table, one row a step; needs pandas.

    Args:
        records: stacked rows, leading axes [T] or for several runs [S, T]; a list of single rows;
            or the path of a file that `jsonl` wrote.
        controller: that of the run, which names its actions; None lets them go by their number.

    Returns:
        Columns `step`, `value`, `cost`, `grad_norm`, `alignment`, one for each hyperparameter,
        `decided`, `num_nonfinite`, `num_spikes`, `progress`, `num_misread`; for a controller with a
        policy `action`, `log_prob`, `entropy`, `reward`, `baseline`, `p(LABEL)` for each action and
        `observation(0)`, …, missing where no decision was taken; for several runs `seed`.

    Raises:
        ValueError: `records` is none of these, or `controller` none.
        ImportError: pandas is not installed.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.constant())(0.5)
        >>> state = tx.init(jnp.zeros(2))
        >>> optax_meta.writers.frame(optax_meta.record(state)).learning_rate.tolist()
        [0.5]
    """
    labels = action_labels(controller)
    pandas = import_extra("pandas", "writers")
    table = pandas.DataFrame([dict(columns(row, labels)) for row in _rows(records, labels)])
    # Most steps take no action: as floats, which nan would make of them, indices index nothing.
    return table.astype({"action": "Int64"}) if "action" in table else table


def _rows(records: _Records, labels: Sequence[str]) -> list[Row]:
    if isinstance(records, str | os.PathLike):
        return read_rows(records)
    # A `Record` is a tuple, hence itself a sequence.
    if isinstance(records, Sequence) and not isinstance(records, Record):
        # One transfer for all of them, not one a row.
        fetched = jax.device_get(list(records))
        return [row for record in fetched for row in flatten(record, labels)]
    return flatten(records, labels)
