"""One HTML page that needs nothing beside it, in a browser or on paper.

Needs the extra `report`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from optax_meta.meta.evaluation import Comparison, MethodResult
from optax_meta.recording import Row
from optax_meta.reports import charts
from optax_meta.reports.log_charts import log_pictures
from optax_meta.reports.pictures import Picture, comparison_pictures, run_pictures
from optax_meta.reports.table import Table, result_table, verdict


class _Page(NamedTuple):
    """What the template shows.

    Attributes:
        title: of the page.
        verdict: the result in a line.
        pictures: the sections.
        setting: what was run, as (name, value).
        note: where the numbers are.
        table: a ranking; None for a page of one run.
        seeds: how many its intervals are over.
        is_live: whether it asks for itself again.
    """

    title: str
    verdict: str
    pictures: Sequence[Picture]
    setting: Sequence[tuple[str, str]]
    note: str
    table: Table | None = None
    seeds: int = 0
    is_live: bool = False


def comparison_page(comparison: Comparison, *, is_live: bool = False) -> str:
    """Return the page of a comparison; `is_live` as for the others."""
    return _render(
        _Page(
            title=f"{comparison.task}: {len(comparison.methods)} methods, {comparison.optimizer} "
            f"from {comparison.learning_rate:g}",
            verdict=verdict(comparison),
            pictures=list(comparison_pictures(comparison)),
            setting=_setting(comparison),
            note="For a seed all methods start from the same initial parameters and take the same "
            "batches. The numbers stand in results.json, every step of every run in records/. "
            "Beside a method stands the config of its first seed, for optax_meta.from_config.",
            table=result_table(comparison),
            seeds=comparison.seeds,
            is_live=is_live,
        )
    )


def run_page(name: str, results: Mapping[str, MethodResult], *, is_live: bool = False) -> str:
    """Return the page of runs of one's own.

    Args:
        name: of all of them.
        results: by the names of the files that they come from; at least one.
        is_live: whether the page asks for itself again, as `optax-meta watch` serves it.

    Example:
        >>> rows = [{"step": 1, "decided": False, "loss": 2.0, "learning_rate": 0.1}]
        >>> results = {"mine.jsonl": optax_meta.reports.rows.method_result(rows, {})}
        >>> "1 steps, 1 run." in optax_meta.reports.page.run_page("mine", results)
        True
    """
    sizes = {file: _size(result) for file, result in results.items()}
    is_one = len(results) == 1
    shown = {name if is_one else Path(file).stem: result for file, result in results.items()}
    configs = list(_configs(shown))
    again = " A config makes the controller again, by optax_meta.from_config." if configs else ""
    return _render(
        _Page(
            title=f"{'Run' if is_one else 'Runs'}: {name}",
            verdict=f"{next(iter(sizes.values()))}." if is_one else f"{len(results)} runs.",
            pictures=list(run_pictures(shown)),
            setting=[*sizes.items(), *configs],
            note=f"Made from the rows of {'this file' if is_one else 'these files'}.{again}",
            is_live=is_live,
        )
    )


def _size(result: MethodResult) -> str:
    seeds, steps = result.losses.shape
    counted = {"steps not finite": "num_nonfinite", "progress misread": "num_misread"}
    # Counts grow over a run, and of its last step is what there was.
    totals = {k: int(np.max(getattr(result.records, name))) for k, name in counted.items()}
    told = "".join(f"; {what}: {count}" for what, count in totals.items() if count)
    return f"{steps} steps, {seeds} {'run' if seeds == 1 else 'runs'}{told}"


def log_page(name: str, file: str, rows: Sequence[Row], *, is_live: bool = False) -> str:
    """Return the page of a meta-training, running or not.

    Args:
        name: of the run.
        file: that the rows come from.
        rows: one an update.
        is_live: as for `run_page`.

    Example:
        >>> rows = [{"update": 1, "fall/mlp": 0.5}]
        >>> "1 updates of the policy" in optax_meta.reports.page.log_page("mine", "log.jsonl", rows)
        True
    """
    done = rows[-1]["update"]
    return _render(
        _Page(
            title=f"Meta-training: {name}",
            verdict=f"{done} updates of the policy.",
            pictures=list(log_pictures(rows)),
            setting=[("updates", str(done)), ("file", file)],
            note=f"Made from {file} alone, while the run goes on or after it.",
            is_live=is_live,
        )
    )


def waiting_page(name: str, why: str) -> str:
    """Return the page of a run that has not written a row yet, which asks for itself again.

    Args:
        name: of the run.
        why: there is nothing to show.

    Example:
        >>> "no row yet" in optax_meta.reports.page.waiting_page("mine", "no row yet")
        True
    """
    return _render(
        _Page(
            title=f"Waiting: {name}",
            verdict="Nothing to show yet. This page shows the run as soon as there is something.",
            pictures=[],
            setting=[("what is missing", why)],
            note="",
            is_live=True,
        )
    )


def _setting(comparison: Comparison) -> list[tuple[str, str]]:
    return [
        ("task", comparison.description),
        ("optimizer", f"optax.{comparison.optimizer}"),
        ("starting learning rate", f"{comparison.learning_rate:g}"),
        ("steps a run", str(comparison.steps)),
        ("seeds", f"0 … {comparison.seeds - 1}"),
        *comparison.versions.items(),
        *_configs(comparison.methods),
    ]


def _configs(methods: Mapping[str, MethodResult]) -> Iterator[tuple[str, str]]:
    """Yield what makes each method's controller again, for `optax_meta.from_config`."""
    for name, result in methods.items():
        if result.config is not None:
            yield name, json.dumps(result.config, ensure_ascii=False)


def _render(page: _Page) -> str:
    # An optional extra: reading and writing files needs none.
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("optax_meta", "reports"), autoescape=select_autoescape(default=True)
    )
    scripts = ["ticks.js", "report.js", *(["live.js"] if page.is_live else [])]
    return environment.get_template("report.html.jinja").render(
        page=page,
        data=charts.embed(list(_charts(page.pictures))),
        # Read as text, not as templates: braces mean something else in there.
        style=_asset("report.css"),
        script="".join(map(_asset, scripts)),
    )


def _charts(pictures: Iterable[Picture]) -> Iterable[charts.Chart]:
    return (chart for picture in pictures for chart in picture.charts)


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
