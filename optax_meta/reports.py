"""What a comparison leaves behind: one HTML page, one JSON file, the records.

Needs the extra `report`.
"""

import base64
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from optax_meta import plots
from optax_meta.evaluation import Comparison, Interval, MethodResult, Summary, summarize

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Table(NamedTuple):
    """A table of text: the same for the terminal, the page and Markdown."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def select(self, columns: Sequence[str]) -> "Table":
        """Return a narrower table: those of `columns` that there are."""
        kept = [i for i, column in enumerate(self.columns) if column in columns]
        rows = [tuple(row[i] for i in kept) for row in self.rows]
        return Table(tuple(self.columns[i] for i in kept), rows)


class _Picture(NamedTuple):
    title: str
    alt: str
    caption: str
    source: str


def result_table(comparison: Comparison) -> Table:
    """Return the ranking as text.

    Args:
        comparison: from `optax_meta.compare`.

    Returns:
        Columns and rows; a column that the task has no values for is left out.

    Example:
        >>> comparison = optax_meta.compare("quadratic", ["constant", "plateau"], steps=20, seeds=2)
        >>> optax_meta.reports.result_table(comparison).columns[:2]
        ('rank', 'method')
    """
    rows = summarize(comparison)
    has_accuracy = rows[0].test_accuracy is not None
    columns = (
        "rank",
        "method",
        "final loss",
        "loss reduction %",
        "behind the best %",
        *(("test accuracy %",) if has_accuracy else ()),
        "rates",
        "lowest … highest rate",
        "diverged",
        "seconds a run",
        "time ×",
    )
    return Table(columns, [_cells(rank, row, comparison.seeds) for rank, row in enumerate(rows, 1)])


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
        >>> optax_meta.reports.check_folder("/proc/nowhere")
        Traceback (most recent call last):
        ValueError: cannot write to `/proc/nowhere`: ...
    """
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for path in missing:
            path.rmdir()
    except OSError as error:
        raise ValueError(f"cannot write to `{folder}`: {error.strerror}") from error
    return folder


def write_report(comparison: Comparison, folder: str | os.PathLike[str]) -> Path:
    """Write `report.html`, `results.json` and `records/METHOD.jsonl`.

    They are made beside `folder` first and moved in together, so none is ever half-written.
    Earlier ones of the same names are replaced.

    Args:
        comparison: from `optax_meta.compare`.
        folder: where to; created where it does not exist.

    Returns:
        Path of the page.

    Raises:
        ValueError: the folder cannot be written to.

    Example:
        >>> comparison = optax_meta.compare("quadratic", ["constant", "plateau"], steps=20, seeds=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = optax_meta.reports.write_report(comparison, folder)
        >>> page.name
        'report.html'
    """
    folder = check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as temporary:
        new = Path(temporary)
        (new / "records").mkdir()
        for name, result in comparison.methods.items():
            lines = (json.dumps(row, allow_nan=False) for row in _record_rows(result))
            text = "\n".join(lines) + "\n"
            (new / "records" / f"{name}.jsonl").write_text(text, encoding="utf-8")
        results = json.dumps(_results(comparison), indent=1, allow_nan=False)
        (new / "results.json").write_text(results + "\n", encoding="utf-8")
        (new / "report.html").write_text(_page(comparison), encoding="utf-8")
        shutil.rmtree(folder / "records", ignore_errors=True)
        for path in sorted(new.iterdir()):
            path.replace(folder / path.name)
    return folder / "report.html"


def _cells(rank: int, row: Summary, seeds: int) -> tuple[str, ...]:
    accuracy = row.test_accuracy
    is_best = row.versus_best.mean == row.versus_best.half_width == 0.0
    behind = _text(row.versus_best, 0) + (" ≈" if row.is_tied else "")
    return (
        str(rank),
        row.method,
        _text(row.final_loss, 4),
        _text(row.loss_reduction, 1),
        "-" if is_best else behind,
        *(() if accuracy is None else (_text(Interval(*(100.0 * x for x in accuracy)), 1),)),
        f"{row.num_rates:.1f}",
        f"{row.lowest_rate:.2g} … {row.highest_rate:.2g}",
        f"{row.num_diverged}/{seeds}",
        f"{row.seconds.mean:.2f}",
        f"{row.overhead:.2f}",
    )


def _text(value: Interval, digits: int) -> str:
    return f"{value.mean:.{digits}f} ± {value.half_width:.{digits}f}"


def _results(comparison: Comparison) -> dict[str, Any]:
    runs = {
        name: {
            "initial": _lists(result.initial),
            "final": _lists(result.final),
            "seconds": result.seconds.tolist(),
            "action_labels": result.action_labels,
        }
        for name, result in comparison.methods.items()
    }
    setting = {
        key: getattr(comparison, key)
        for key in (
            "task",
            "description",
            "optimizer",
            "learning_rate",
            "steps",
            "seeds",
            "versions",
        )
    }
    summary = [
        {
            name: value._asdict() if isinstance(value, Interval) else value
            for name, value in row._asdict().items()
        }
        for row in summarize(comparison)
    ]
    bare = comparison.bare_seconds.tolist()
    return {**setting, "ranking": summary, "bare_seconds": bare, "runs": runs}


def _lists(values: dict[str, np.ndarray]) -> dict[str, list[float | None]]:
    """JSON has no nan or inf: null stands for both."""
    return {
        name: [x if np.isfinite(x) else None for x in array.tolist()]
        for name, array in values.items()
    }


def _record_rows(result: MethodResult) -> Iterator[dict[str, Any]]:
    """One row a step; the decision's details where one was taken."""
    records = result.records
    decision = None if records.decision is None else records.decision._asdict()
    for seed, losses in enumerate(result.losses):
        for t, loss in enumerate(losses):
            at = (seed, t)
            row: dict[str, Any] = {
                "seed": seed,
                "step": int(records.step[at]),
                "loss": float(loss) if np.isfinite(loss) else None,
                "grad_norm": float(records.grad_norm[at]),
                **{name: float(x[at]) for name, x in records.hyperparams.items()},
                "decided": bool(records.decided[at]),
                "num_nonfinite": int(records.num_nonfinite[at]),
            }
            if decision is not None and row["decided"]:
                row |= {name: np.asarray(x[at]).tolist() for name, x in decision.items()}
                row["action_label"] = result.action_labels[row["action"]]
            yield row


def _page(comparison: Comparison) -> str:
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("optax_meta", ""), autoescape=select_autoescape(default=True)
    )
    return environment.get_template("report.html.jinja").render(
        title=f"{comparison.task}: {len(comparison.methods)} methods, {comparison.optimizer} "
        f"from {comparison.learning_rate:g}",
        verdict=_verdict(comparison),
        table=result_table(comparison),
        seeds=comparison.seeds,
        figures=list(_pictures(comparison)),
        setting=_setting(comparison),
    )


def _verdict(comparison: Comparison) -> str:
    best, *others = summarize(comparison)
    tied = [row.method for row in others if row.is_tied]
    beaten = [row.method for row in others if not row.is_tied]
    text = f"Lowest mean final loss: {best.method}."
    if tied:
        text += f" Not told apart from it by {comparison.seeds} seeds: {', '.join(tied)}."
    if beaten:
        text += f" Behind it: {', '.join(beaten)}."
    return text


def _setting(comparison: Comparison) -> list[tuple[str, str]]:
    return [
        ("task", comparison.description),
        ("optimizer", f"optax.{comparison.optimizer}"),
        ("starting learning rate", f"{comparison.learning_rate:g}"),
        ("steps a run", str(comparison.steps)),
        ("seeds", f"0 … {comparison.seeds - 1}"),
        *comparison.versions.items(),
    ]


def _pictures(comparison: Comparison) -> Iterator[_Picture]:
    methods = comparison.methods
    yield _picture(
        "Final loss",
        "Final loss of each method with its interval",
        "Lower is better. Where intervals overlap widely, more seeds are needed.",
        _draw_ranking(comparison),
    )
    yield _picture(
        "Loss curves",
        "Training loss over steps, one line a method",
        "Mean over seeds of the smoothed mini-batch loss; the band spans all seeds.",
        _draw_curves(comparison),
    )
    yield _picture(
        "What the controllers did",
        "Timelines of every hyperparameter, one panel for each method",
        "Bold: the first seed, with a dot where a decision changed the value (left out where it "
        "changes at nearly every step). Faint: the other seeds. Methods that leave a "
        "hyperparameter alone have no panel for it.",
        _draw_timelines(comparison),
    )
    if any(result.records.decision is not None for result in methods.values()):
        yield _picture(
            "Which actions were taken",
            "Histogram of actions of each policy",
            "All decisions of all seeds. A policy that learns nothing keeps its first shares.",
            _draw_actions(comparison),
        )


def _new_figure(width: float, height: float, shape: tuple[int, int] = (1, 1)) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(*shape, squeeze=False)


def _draw_ranking(comparison: Comparison) -> "Figure":
    figure, axes = _new_figure(9, 1.2 + 0.4 * len(comparison.methods))
    plots.ranking(summarize(comparison), ax=axes[0, 0])
    return figure


def _draw_curves(comparison: Comparison) -> "Figure":
    figure, axes = _new_figure(9, 4.5)
    losses = {name: result.losses for name, result in comparison.methods.items()}
    smoothing = max(1, min(20, comparison.steps // 10))
    plots.loss_curves(losses, smoothing=smoothing, ax=axes[0, 0])
    return figure


def _draw_timelines(comparison: Comparison) -> "Figure":
    panels = [
        (name, hyperparam, result)
        for name, result in comparison.methods.items()
        for hyperparam in result.records.hyperparams
    ]
    colors = dict(zip(comparison.methods, plots.COLORS * len(comparison.methods), strict=False))
    figure, axes = _new_figure(9, 2.2 * -(-len(panels) // 2), (-(-len(panels) // 2), 2))
    for ax, (name, hyperparam, result) in zip(axes.flat, panels, strict=False):
        plots.timeline(result.records, hyperparam, ax=ax, color=colors[name]).set_title(name)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    return figure


def _draw_actions(comparison: Comparison) -> "Figure":
    policies = {n: r for n, r in comparison.methods.items() if r.records.decision is not None}
    tallest = max(len(result.action_labels) for result in policies.values())
    figure, axes = _new_figure(9, (1 + 0.3 * tallest) * len(policies), (len(policies), 1))
    for ax, (name, result) in zip(axes.flat, policies.items(), strict=True):
        plots.action_histogram(result.records, result.action_labels, ax=ax).set_title(name)
    return figure


def _picture(title: str, alt: str, caption: str, figure: "Figure") -> _Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return _Picture(title, alt, caption, f"data:image/svg+xml;base64,{encoded}")
