"""Folders of reports: `report.html` and the files that it was made from.

Needs the extra `report`.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from optax_meta import writers
from optax_meta.meta.evaluation import Comparison
from optax_meta.recording import Row
from optax_meta.reports import files, page
from optax_meta.reports.rows import Run, method_result

Read = Callable[[Path], list[Row]]
"""How the rows of a file are read."""


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """Make sure that a report can be written there, before anything is run.

    Leaves nothing behind: a folder that did not exist still does not.

    Args:
        folder: where a report shall go.

    Returns:
        The folder.

    Raises:
        ValueError: it cannot be created or written to.

    Example:
        >>> optax_meta.reports.folder.check_folder("/proc/nowhere")
        Traceback (most recent call last):
        ValueError: cannot write to `/proc/nowhere`: ...
    """
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        # From the inside out; an interrupted comparison leaves no empty folders.
        for path in missing:
            path.rmdir()
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return folder


def write_report(comparison: Comparison, folder: str | os.PathLike[str]) -> Path:
    """Write `report.html`, `results.json` and `records/METHOD.jsonl`.

    They are made beside `folder` first and moved in together, so none is ever half-written. Those
    of an earlier report in the folder are replaced; nothing else in it is touched.

    Args:
        comparison: from `optax_meta.compare`.
        folder: where to; created where it does not exist.

    Returns:
        Path of the page.

    Raises:
        ValueError: the folder cannot be written to, or a method's name cannot be that of a file.

    Example:
        >>> comparison = optax_meta.compare("quadratic", ["constant"], steps=3, seeds=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = optax_meta.reports.folder.write_report(comparison, folder)
        >>> path.name
        'report.html'
    """
    files.check_names(comparison.methods)
    folder = check_folder(folder)
    # First what may fail for other reasons: then nothing has been written yet.
    text = page.comparison_page(comparison)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Inside it, so that moving is renaming on one file system.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as temporary:
            new = Path(temporary)
            files.write_comparison(comparison, new)
            (new / "report.html").write_text(text, encoding="utf-8")
            _replace(new, folder, comparison)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return folder / "report.html"


def rebuild_report(folder: str | os.PathLike[str], out: str | None = None) -> Path:
    """Write the page again from the files in a folder.

    Args:
        folder: one that `optax-meta compare` or `optax-meta meta-train` wrote, running or not, or
            one with `*.jsonl` of step rows, as `optax_meta.writers.jsonl` writes them: several are
            runs side by side, each by the name of its file.
        out: path of the page; None for `report.html` in the folder.

    Returns:
        Path of the page.

    Raises:
        ValueError: the folder holds none of these, a file of it cannot be read, or the page cannot
            be written.

    Example:
        >>> optax_meta.reports.folder.rebuild_report("/proc/nowhere")
        Traceback (most recent call last):
        ValueError: `/proc/nowhere` must be a folder
    """
    folder = Path(folder)
    if not folder.is_dir():
        hint = f": pass `{folder.parent}`" if folder.is_file() else ""
        raise ValueError(f"`{folder}` must be a folder{hint}")
    path = folder / "report.html" if out is None else Path(out)
    check_folder(path.parent)
    text = page_of(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _cannot_write(path, error) from error
    return path


def page_of(folder: Path, *, read: Read = writers.read_rows, is_live: bool = False) -> str:
    """Return the page of the files in a folder.

    Args:
        folder: as for `rebuild_report`.
        read: the rows of a file, by its path.
        is_live: whether the page asks for itself again, as `optax-meta watch` serves it.

    Raises:
        ValueError: the folder holds no such files, or one of them cannot be read.

    Example:
        >>> from pathlib import Path
        >>> optax_meta.reports.folder.page_of(Path("/proc"))
        Traceback (most recent call last):
        ValueError: `/proc` must hold results.json ...
    """
    sources = _sources(folder)
    if not sources:
        raise ValueError(
            f"`{folder}` must hold results.json (of `optax-meta compare`), log.jsonl (of "
            f"`optax-meta meta-train`) or *.jsonl of step rows{_hint(folder)}"
        )
    if sources[0].name == "results.json":
        return page.comparison_page(files.read_comparison(folder), is_live=is_live)
    rows = {source: read(source) for source in sources}
    return _page_of_rows(rows, is_live=is_live)


def _replace(new: Path, folder: Path, comparison: Comparison) -> None:
    """Move a report's files into a folder in the place of an earlier one's."""
    (folder / "records").mkdir(exist_ok=True)
    for path in files.outdated(folder, comparison.methods):
        path.unlink()
    for path in sorted(path for path in new.rglob("*") if path.is_file()):
        path.replace(folder / path.relative_to(new))


@contextlib.contextmanager
def _blamed(source: Path) -> Iterator[None]:
    """Say of which file it is that something is wrong."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        kinds = "rows of steps or of updates"
        raise ValueError(f"`{source}` must hold {kinds}: {files.reason(error)}") from error


def _page_of_rows(rows: dict[Path, list[Row]], *, is_live: bool) -> str:
    first = next(iter(rows))
    name = first.absolute().parent.name or first.stem
    results = {}
    for source, found in rows.items():
        with _blamed(source):
            # Both are called log.jsonl by someone: the columns say what they are.
            if len(rows) == 1 and "update" in found[0]:
                return page.log_page(name, source.name, found, is_live=is_live)
            card = cast("Run", writers.read_card(source))
            results[source.name] = method_result(found, card)
    return page.run_page(name, results, is_live=is_live)


def _sources(folder: Path) -> list[Path]:
    """Return the files that a folder's page is made from."""
    # The records of a comparison lie in a folder of their own, so that theirs are not taken for it.
    for pattern in ("results.json", "log.jsonl", "*.jsonl"):
        if found := sorted(folder.glob(pattern)):
            return found
    return []


def _hint(folder: Path) -> str:
    """Return where inside a folder there is a source, empty where there is none."""
    runs = [path for path in sorted(folder.iterdir()) if path.is_dir() and _sources(path)]
    return f"; pass a folder inside it, such as `{runs[0]}`" if runs else ""


def _cannot_write(path: Path, error: OSError) -> ValueError:
    return ValueError(f"cannot write to `{path}`: {error.strerror or error}")
