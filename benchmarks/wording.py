"""How the pages word names and figures of the JSON files."""

from collections.abc import Iterable, Mapping

# Names in the files that say less than a reader of a page needs.
LABELS = {
    "reinforce from scratch": "reinforce from nothing, no wrappers",
    "sweep": "best of a sweep",
    "greedy": "GreedyLR's rule",
    "moves of the norm, by law": "moves η of the norm, η by a published law",
    "moves of each matrix, by law": "moves η of each matrix, η by a published law",
    "moves of each matrix, norms kept, by law": "Hyperball, η by a published law",
    "moves of each matrix, norms kept, best constant": "Hyperball, best η for all cells",
    "moves of the norm, best constant": "moves η of the norm, best η for all cells",
    "moves of each matrix, best constant": "moves η of each matrix, best η for all cells",
}


def label(name: str) -> str:
    """Return the name that a page has for that of a file."""
    return LABELS.get(name, name)


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown; the first column is text, the others are figures."""
    columns = list(columns)
    marks = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, marks, *rows))


def number(value: float | None, digits: int = 2) -> str:
    """Return a figure, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def within(interval: Iterable[float], digits: int = 2) -> str:
    """Return an interval."""
    low, high = interval
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def plus_minus(value: Mapping[str, float], digits: int, scale: float = 1.0) -> str:
    """Return a mean and half of its interval."""
    return f"{scale * value['mean']:.{digits}f} ± {scale * value['half_width']:.{digits}f}"


def made_with(versions: dict[str, str] | list[dict[str, str]]) -> str:
    """Return what something was run with."""
    found = versions if isinstance(versions, list) else [versions]
    return "; ".join(", ".join(f"{name} {version}" for name, version in v.items()) for v in found)
