"""What runs leave behind: one HTML page, for a comparison also one JSON file and the records.

Needs the extra `report`.
"""

import base64
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from optax_meta import writers
from optax_meta.meta.evaluation import Comparison, Interval, MethodResult, Summary, summarize
from optax_meta.recording import Row
from optax_meta.reports import charts, files, plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_LARGEST_SVG = 700_000  # bytes
_WIDE, _NARROW = 9.0, 4.5  # inches, of a picture on a desk or on paper, and on a phone

_Curves = dict[str, tuple[np.ndarray, np.ndarray]]


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
    narrow: str
    charts: list[dict[str, Any]]


def result_table(comparison: Comparison) -> Table:
    """Return the ranking as text.

    Args:
        comparison: from `optax_meta.compare`.

    Returns:
        Columns and rows; a column that the task has no values for is left out.

    Example:
        >>> comparison = optax_meta.compare("quadratic", ["constant", "plateau"], steps=20, seeds=2)
        >>> optax_meta.reports.page.result_table(comparison).columns[:2]
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
        >>> optax_meta.reports.page.check_folder("/proc/nowhere")
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
        raise ValueError(
            f"cannot write to `{folder}`: {error.strerror}; choose another folder"
        ) from error
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
        ValueError: the folder cannot be written to.

    Example:
        >>> comparison = optax_meta.compare("quadratic", ["constant", "plateau"], steps=20, seeds=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = optax_meta.reports.page.write_report(comparison, folder)
        >>> page.name
        'report.html'
    """
    folder = check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as temporary:
        new = Path(temporary)
        (new / "records").mkdir()
        for name, result in comparison.methods.items():
            lines = (json.dumps(row, allow_nan=False) for row in files.step_rows(result))
            text = "\n".join(lines) + "\n"
            (new / "records" / f"{name}.jsonl").write_text(text, encoding="utf-8")
        results = json.dumps(files.results(comparison), indent=1, allow_nan=False)
        (new / "results.json").write_text(results + "\n", encoding="utf-8")
        (new / "report.html").write_text(_page(comparison), encoding="utf-8")
        (folder / "records").mkdir(exist_ok=True)
        for name in _methods(folder) - set(comparison.methods):
            (folder / "records" / f"{name}.jsonl").unlink(missing_ok=True)
        for path in sorted(path for path in new.rglob("*") if path.is_file()):
            path.replace(folder / path.relative_to(new))
    return folder / "report.html"


def _methods(folder: Path) -> set[str]:
    """Return the methods of an earlier report in a folder; none where it cannot be read."""
    try:
        return set(json.loads((folder / "results.json").read_text(encoding="utf-8"))["runs"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def rebuild_report(folder: str | os.PathLike[str], out: str | None = None) -> Path:
    """Write the page again from the files in a folder.

    Args:
        folder: one that `optax-meta compare` or `optax-meta meta-train` wrote, running or not, or
            one with a single `*.jsonl` of step rows, as `optax_meta.writers.jsonl` writes it.
        out: path of the page; None for `report.html` in the folder.

    Returns:
        Path of the page.

    Raises:
        ValueError: the folder holds none of these, a file of it cannot be read, or the page cannot
            be written.

    Example:
        >>> optax_meta.reports.page.rebuild_report("/proc/nowhere")
        Traceback (most recent call last):
        ValueError: `/proc/nowhere` is not a folder: pass one that holds results
    """
    folder = Path(folder)
    if not folder.is_dir():
        instead = f"`{folder.parent}`" if folder.is_file() else "one that holds results"
        raise ValueError(f"`{folder}` is not a folder: pass {instead}")
    page = folder / "report.html" if out is None else Path(out)
    check_folder(page.parent)
    text = _page_of(folder)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"cannot write to `{page}`: {error.strerror}; choose another file"
        ) from error
    return page


def _page_of(folder: Path) -> str:
    source = _source(folder)
    if source is None:
        runs = [path for path in sorted(folder.iterdir()) if path.is_dir() and _source(path)]
        instead = f"a folder inside it, such as `{runs[0]}`" if runs else "another folder"
        logs = list(folder.glob("*.jsonl"))
        raise ValueError(
            f"`{folder}` holds neither results.json (of `optax-meta compare`) nor log.jsonl (of "
            f"`optax-meta meta-train`) nor one file of step rows, but {len(logs)} *.jsonl; "
            f"pass {instead}"
        )
    if source.name == "results.json":
        return _page(files.read_comparison(folder))
    rows = writers.read_rows(source)
    return _log_page(source, rows) if "update" in rows[0] else _run_page(source, rows)


def _source(folder: Path) -> Path | None:
    """Return the file that a folder's page is made from, if there is one."""
    for pattern in ("results.json", "log.jsonl", "*.jsonl"):
        found = list(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
    return None


def _run_page(path: Path, rows: list[Row]) -> str:
    try:
        result = files.method_result(rows, {})
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"`{path}` must hold rows of steps, got {error!r}") from error
    seeds, steps = result.losses.shape
    name = path.absolute().parent.name or path.stem
    return _render(
        title=f"Run: {name}",
        verdict=f"{steps} steps, {seeds} {'run' if seeds == 1 else 'runs'}.",
        figures=list(_run_pictures({name: result})),
        setting=[("file", path.name), ("steps", str(steps)), ("runs", str(seeds))],
        note="Made from the rows of this file alone.",
    )


class _Column(NamedTuple):
    title: str
    label: str
    caption: str
    is_log: bool = False


_COLUMNS = {
    "fall": _Column("How far the loss falls", "fall of the log loss", "Higher is better."),
    "spread": _Column(
        "How far runs of a group differ",
        "spread of the log loss",
        "What the policy learns from: where it nears zero, choices no longer matter.",
        is_log=True,
    ),
    "entropy": _Column(
        "Entropy of the policy",
        "entropy, nats",
        "A slow fall is learning; a sudden one means that it stopped exploring.",
    ),
    "grad_norm": _Column(
        "Norm of the policy gradient", "norm", "Spikes mark unlucky updates.", is_log=True
    ),
    "inner_steps_per_second": _Column(
        "Throughput",
        "inner steps a second",
        "A drop means that the machine was busy with something else.",
    ),
}


def _log_page(path: Path, rows: list[Row]) -> str:
    done = rows[-1]["update"]
    return _render(
        title=f"Meta-training: {path.absolute().parent.name}",
        verdict=f"{done} updates of the policy.",
        figures=list(_log_pictures(rows)),
        setting=[("updates", str(done)), ("file", path.name)],
        note="Made from log.jsonl alone, while the run goes on or after it.",
    )


def _log_pictures(rows: list[Row]) -> Iterator[_Picture]:
    for group, column in _COLUMNS.items():
        curves = _curves(rows, group)
        if not curves:
            continue
        width = max(1, len(rows) // 50)
        chart = charts.log_chart(
            group, column.title, column.label, curves, smoothing=width, is_log=column.is_log
        )
        means = f" Lines are means over {width} updates." if width > 1 else ""
        scale = "log" if chart["log"] else "linear"
        yield _picture(
            column.title,
            f"{column.label} over updates",
            column.caption + means,
            partial(_draw_log, column.label, scale, curves, width),
            [chart],
        )


def _draw_log(label: str, scale: str, curves: _Curves, smoothing: int, width: float) -> "Figure":
    figure, ((ax,),) = _new_figure(width, 4)
    for i, (name, (x, y)) in enumerate(curves.items()):
        style = plots.line_style(i)
        if len(curves) == 1 and smoothing > 1:
            ax.plot(x, y, color=style["color"], alpha=0.3, linewidth=0.8)
        marker = "o" if len(x) == 1 else ""
        ax.plot(x, plots.running_mean(y, smoothing), label=name, marker=marker, **style)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set(xlabel="update", ylabel=label, yscale=scale)
    ax.xaxis.get_major_locator().set_params(integer=True)
    if len(curves) > 1:
        figure.legend(loc="outside right", frameon=False, fontsize="small")
    return figure


def _curves(rows: list[Row], group: str) -> _Curves:
    """Return (updates, values) of the columns GROUP and GROUP/NAME; a log may skip rows."""
    names = dict.fromkeys(n for row in rows for n in row if n.partition("/")[0] == group)
    return {
        name.rpartition("/")[2]: (
            np.array([row["update"] for row in rows if name in row]),
            np.array([row[name] for row in rows if name in row], float),
        )
        for name in sorted(names)
    }


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


def _page(comparison: Comparison) -> str:
    return _render(
        title=f"{comparison.task}: {len(comparison.methods)} methods, {comparison.optimizer} "
        f"from {comparison.learning_rate:g}",
        verdict=_verdict(comparison),
        table=result_table(comparison),
        seeds=comparison.seeds,
        figures=list(_pictures(comparison)),
        setting=_setting(comparison),
        note="For a seed all methods see the same initial parameters and batches. The numbers "
        "stand in results.json, every step of every run in records/.",
    )


def _render(*, figures: list[_Picture], **parts: Any) -> str:
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("optax_meta", "reports"), autoescape=select_autoescape(default=True)
    )
    return environment.get_template("report.html.jinja").render(
        **parts,
        figures=figures,
        data=charts.embed([chart for figure in figures for chart in figure.charts]),
        script=(Path(__file__).parent / "report.js").read_text(encoding="utf-8"),
    )


def _verdict(comparison: Comparison) -> str:
    best, *others = summarize(comparison)
    tied = [row.method for row in others if row.is_tied]
    beaten = [row.method for row in others if not row.is_tied]
    text = f"{comparison.steps} steps, {comparison.seeds} seeds. "
    text += f"Lowest mean final loss: {best.method}."
    if comparison.seeds < comparison.planned_seeds:
        done = f"{comparison.seeds} of {comparison.planned_seeds} seeds are finished"
        text = f"Stopped early: {done}. {text}"
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
    yield _picture(
        "Final loss",
        "Final loss of each method with its interval",
        "Lower is better. Where intervals overlap widely, more seeds are needed.",
        partial(_draw_ranking, comparison),
    )
    yield from _run_pictures(comparison.methods)


def _run_pictures(methods: Mapping[str, MethodResult]) -> Iterator[_Picture]:
    seeds, steps = next(iter(methods.values())).losses.shape
    bold, first, of_all = (
        (" Bold: the first seed; faint: the others.", " The first seed alone.", " of all seeds")
        if seeds > 1
        else ("", "", "")
    )
    alone = " Methods that leave a hyperparameter alone have no line for it."
    smoothing = max(1, min(20, steps // 10))
    yield _picture(
        "Loss curves",
        "Training loss over steps, one line a method",
        "Which run falls fast, and which falls far. Mean over seeds of the smoothed mini-batch "
        "loss; on paper the band spans all seeds."
        if seeds > 1
        else "How fast the smoothed mini-batch loss falls, and how far.",
        partial(_draw_curves, methods, smoothing),
        [charts.loss_chart(methods, smoothing)],
    )
    policies = {n: r for n, r in methods.items() if _has_decided(r)}
    knew = ", and what the policy knew when it moved it" if policies else ""
    yield _picture(
        "What the controllers did",
        "Timelines of every hyperparameter, one panel for each method",
        f"When a hyperparameter moved{knew}.{bold}{alone if len(methods) > 1 else ''}",
        partial(_draw_timelines, methods),
        charts.hyperparam_charts(methods),
    )
    if policies:
        yield _picture(
            "When the policy was sure",
            "Probability of each action at each decision, one panel for each policy",
            "A row is an action: the stronger its colour, the more probable; a dot marks the one "
            "that was chosen. One strong row means that the policy was sure, equally faint ones "
            f"that it chose by chance.{first}",
            partial(_draw_panels, policies, 1.3, plots.decisions),
        )
        yield _picture(
            "Which actions were taken",
            "Histogram of actions of each policy",
            f"All decisions{of_all}. A policy that learns nothing keeps its first shares.",
            partial(_draw_panels, policies, 1.0, plots.action_histogram),
        )


def _has_decided(result: MethodResult) -> bool:
    records = result.records
    return records.decision is not None and bool(np.asarray(records.decided)[0].any())


def _new_figure(
    width: float, height: float, shape: tuple[int, int] = (1, 1), **options: Any
) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(*shape, squeeze=False, **options)


def _draw_ranking(comparison: Comparison, width: float) -> "Figure":
    figure, ((ax,),) = _new_figure(width, 1.2 + 0.4 * len(comparison.methods))
    plots.ranking(summarize(comparison), ax=ax)
    return figure


def _draw_curves(methods: Mapping[str, MethodResult], smoothing: int, width: float) -> "Figure":
    figure, ((ax,),) = _new_figure(width, 4.5)
    losses = {name: result.losses for name, result in methods.items()}
    plots.loss_curves(losses, smoothing=smoothing, ax=ax)
    return figure


def _draw_timelines(methods: Mapping[str, MethodResult], width: float) -> "Figure":
    panels = [
        (name, hyperparam, result)
        for name, result in methods.items()
        for hyperparam in charts.moved(result)
    ]
    colors = dict(zip(methods, plots.COLORS * len(methods), strict=False))
    figure, axes = _new_figure(width, 2.2 * -(-len(panels) // 2), (-(-len(panels) // 2), 2))
    for ax, (name, hyperparam, result) in zip(axes.flat, panels, strict=False):
        plots.timeline(result.records, hyperparam, ax=ax, color=colors[name]).set_title(name)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    return figure


def _draw_panels(
    policies: Mapping[str, MethodResult], margin: float, draw: Callable[..., Any], width: float
) -> "Figure":
    """Draw a panel for each policy, `margin` inches higher than the names of its actions."""
    heights = [margin + sum(map(_height, result.action_labels)) for result in policies.values()]
    figure, axes = _new_figure(width, sum(heights), (len(policies), 1), height_ratios=heights)
    for ax, (name, result) in zip(axes.flat, policies.items(), strict=True):
        draw(result.records, result.action_labels, ax=ax).set_title(name)
    return figure


def _height(label: str) -> float:
    """Return the inches that the name of an action takes, with a line for each of its parts."""
    return 0.13 + 0.17 * len(label.split(", "))


def _picture(
    title: str,
    alt: str,
    caption: str,
    draw: Callable[[float], "Figure"],
    interactive: Sequence[dict[str, Any]] = (),
) -> _Picture:
    """Draw a figure by its width; a phone gets one of its own where no chart stands for it."""
    narrow = "" if interactive else _encode(draw(_NARROW))
    return _Picture(title, alt, caption, _encode(draw(_WIDE)), narrow, list(interactive))


def _encode(figure: "Figure") -> str:
    """Return a figure as the address of its data: SVG, or where that is large, PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    kind = "svg+xml"
    if buffer.tell() > _LARGEST_SVG:
        buffer, kind = io.BytesIO(), "png"
        figure.savefig(buffer, format="png", dpi=120)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind};base64,{encoded}"
