"""The files of a comparison: what is written into a folder, and read back.

`results.json` holds what was found, `records/METHOD.jsonl` one row a step. A name becomes that of a
file only where it is written, and is checked there; what is read or removed is chosen among the
files that lie in `records/`, so no name of a results.json leads out of it.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from optax_meta import writers
from optax_meta.meta.evaluation import Comparison, Interval, MethodResult, Summary, summarize
from optax_meta.recording import Row
from optax_meta.reports import rows

# Fields of a `Comparison` that are JSON values as they are.
_SETTING = (
    "task",
    "description",
    "optimizer",
    "learning_rate",
    "steps",
    "seeds",
    "planned_seeds",
    "versions",
)


def check_names(names: Iterable[str]) -> None:
    r"""Make sure that each name can be that of a file within its folder, on any system.

    Raises:
        ValueError: one is empty or holds a separator, NUL or half a surrogate pair.

    Example:
        >>> optax_meta.reports.files.check_names(["plateau", "../victim"])
        Traceback (most recent call last):
        ValueError: `methods` must have names without /, \ and NUL, got '../victim'
    """
    for name in names:
        # The separators of all systems, since a folder may be copied to another.
        is_bare = name != "" and not set(name) & set("/\\\0")
        # Where a drive's letter leads elsewhere, so does the joined path.
        if not (is_bare and _is_text(name) and _records(Path(), name).parent == Path("records")):
            raise ValueError(f"`methods` must have names without /, \\ and NUL, got {name!r}")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write the files of a comparison into an empty folder.

    Raises:
        ValueError: the name of a method cannot be that of a file.
        OSError: the folder cannot be written to.
    """
    check_names(comparison.methods)
    (folder / "records").mkdir()
    for name, result in comparison.methods.items():
        lines = (json.dumps(row, allow_nan=False) + "\n" for row in rows.step_rows(result))
        _records(folder, name).write_text("".join(lines), encoding="utf-8")
    # Indented, so that two versions of it can be compared line by line.
    text = json.dumps(_results(comparison), indent=1, allow_nan=False) + "\n"
    (folder / "results.json").write_text(text, encoding="utf-8")


def read_comparison(folder: Path) -> Comparison:
    """Return the comparison that `write_comparison` wrote into a folder.

    Raises:
        ValueError: a file is missing or holds something else.

    Example:
        >>> from pathlib import Path
        >>> optax_meta.reports.files.read_comparison(Path("/proc"))
        Traceback (most recent call last):
        ValueError: `/proc` must be a complete folder of this version's `optax-meta compare`: ...
    """
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        runs, bare_seconds = results["runs"], np.array(results["bare_seconds"])
        records = _records_of(runs, folder)
        # The ranking in there is for readers; ours is computed again.
        methods = {name: rows.method_result(records[name], run) for name, run in runs.items()}
        setting = {name: results[name] for name in _SETTING}
        return Comparison(**setting, methods=methods, bare_seconds=bare_seconds)
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        kind = "complete folder of this version's `optax-meta compare`"
        raise ValueError(f"`{folder}` must be a {kind}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return what an error says, for those that say it in words; else its kind as well.

    Example:
        >>> optax_meta.reports.files.reason(KeyError("runs"))
        "KeyError('runs')"
    """
    return str(error) if isinstance(error, (OSError, ValueError)) else repr(error)


def outdated(folder: Path, kept: Iterable[str]) -> Iterator[Path]:
    """Yield the records of an earlier comparison in a folder, but those of the methods `kept`.

    Files that its results.json does not name are someone else's, and so are all where it cannot be
    read.

    Example:
        >>> from pathlib import Path
        >>> list(optax_meta.reports.files.outdated(Path("/proc"), []))
        []
    """
    try:
        text = (folder / "results.json").read_text(encoding="utf-8")
        named = set(json.loads(text)["runs"])
    except (OSError, KeyError, TypeError, ValueError):
        return
    # From what lies there, never by joining a name to the folder.
    there = _there(folder)
    yield from (there[name] for name in named.intersection(there).difference(kept))


def _records(folder: Path, name: str) -> Path:
    return folder / "records" / f"{name}.jsonl"


def _records_of(names: Iterable[str], folder: Path) -> dict[str, list[Row]]:
    there = _there(folder)
    if missing := [name for name in names if name not in there]:
        raise ValueError(f"its records/ holds no file of {missing[0]!r}")
    return {name: writers.read_rows(there[name]) for name in names}


def _there(folder: Path) -> dict[str, Path]:
    """Return the files of records that a folder holds, by method."""
    found = (folder / "records").glob("*.jsonl")
    return {path.stem: path for path in found if path.is_file()}


def _results(comparison: Comparison) -> dict[str, object]:
    """Return what `results.json` holds, as JSON values."""
    return {
        **{name: getattr(comparison, name) for name in _SETTING},
        "ranking": [_summary(row) for row in summarize(comparison)],
        "bare_seconds": comparison.bare_seconds.tolist(),
        "runs": {name: _run(result) for name, result in comparison.methods.items()},
    }


def _summary(row: Summary) -> dict[str, Any]:
    return {
        name: value._asdict() if isinstance(value, Interval) else value
        for name, value in row._asdict().items()
    }


def _run(result: MethodResult) -> rows.Run:
    return {
        "initial": _lists(result.initial),
        "final": _lists(result.final),
        "seconds": result.seconds.tolist(),
        "action_labels": result.action_labels,
        "features": result.features,
        "config": result.config,
    }


def _lists(values: dict[str, np.ndarray]) -> rows.JsonNumbers:
    """Return arrays as lists; JSON has no nan or inf, for which None stands."""
    return {
        name: [x if np.isfinite(x) else None for x in array.tolist()]
        for name, array in values.items()
    }
