"""What is known of one cell, and how it is kept in a file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Cell = Mapping[str, Any]
"""JSON values, as `judge` describes them."""

FIGURES = ("losses", "times", "test_losses")
"""What `judge` returns of a method in a cell, by the method's name: one number a run."""
_FIELDS = {*FIGURES, "initial", "sweep", "oracle", "versions", "fingerprints"}


def has_diverged(cell: Cell, losses: Any) -> np.ndarray:
    """Return which runs ended not finite or above where they began, bool[…, S].

    Args:
        cell: which says where runs began.
        losses: at the end, float[…, S].
    """
    losses = np.array(losses, float)  # from JSON: lists
    return ~np.isfinite(losses) | (losses > np.array(cell["initial"]))


def oracle_loss(cell: Cell) -> float:
    """Return the oracle's mean over seeds: no lucky or diverged run of it decides a ratio.

    Args:
        cell: one that has an oracle.
    """
    losses = np.array(cell["oracle"]["losses"], float)
    return float(np.mean(np.where(has_diverged(cell, losses), cell["initial"], losses)))


def read(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a cell, empty where there is nothing yet.

    Args:
        path: of its file.
        header: what it must be of.

    Raises:
        ValueError: the file is damaged, of another version, or of another header.
    """
    if not path.exists():
        return {}
    try:
        done = json.loads(path.read_text())
    except ValueError:
        done = None
    # More keys may be there: those of a later version, which knows what these mean.
    if not isinstance(done, dict) or not done.keys() >= _FIELDS:
        raise ValueError(
            f"`{path}` is damaged, or was written by another version: choose another folder or "
            "remove it"
        )
    for key, value in header.items():
        if done.get(key) != value:
            raise ValueError(
                f"`{path}` holds results for another `{key}`, {done.get(key)} in place of {value}: "
                "choose another folder or remove it"
            )
    return done


def write(path: Path, cell: Cell) -> None:
    """Keep a cell, whole or not at all: a run may be killed at any moment.

    Args:
        path: of its file.
        cell: what is known.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".partial")  # a rename is all or nothing, a write is not
    whole.write_text(json.dumps(cell))
    whole.replace(path)
