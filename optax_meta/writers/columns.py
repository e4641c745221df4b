"""The lists in a row as columns of their own, and the numbers among these as trackers take them."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from optax_meta.recording import Row


def columns(row: Row, labels: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Give each probability and each feature a name of its own.

    Args:
        row: as `flatten` makes it.
        labels: names of the actions; without these they go by their number.

    Yields:
        Name and value, one number or text each: `p(LABEL)`, `observation(0)`, …
    """
    for name, value in row.items():
        if name == "probabilities":
            names = labels or range(len(value))
            yield from ((f"p({label})", x) for label, x in zip(names, value, strict=True))
        elif name == "observation":
            yield from ((f"observation({i})", x) for i, x in enumerate(value))
        else:
            yield name, value


def scalars(
    row: Row, labels: Sequence[str], prefix: str, counter: str = "step"
) -> Iterator[tuple[str, float]]:
    """Return the finite numbers of a row, by names that trackers take.

    Args:
        row: as `flatten` makes it.
        labels: names of the actions.
        prefix: of all names.
        counter: the column that counts, left out since trackers take it apart.

    Yields:
        Name, of letters, digits and `-_./`, and value; observations, dozens a row, are left out.
    """
    for name, value in columns(row, labels):
        # A bool is an int too.
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and name != counter and not name.startswith("observation("):
            # Trackers group names by what stands before a slash: `p/hold` beside `p/…`.
            plain = re.sub(r"^p\((.*)\)$", r"p/\1", name).replace("×", "x")
            # The strictest, MLflow, refuses a name with any other character.
            yield prefix + re.sub(r"[^-/\w.]+", "_", plain), value
