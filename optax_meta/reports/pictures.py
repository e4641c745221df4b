"""The pictures of a comparison's or a run's page: charts for `report.js`, or drawn by matplotlib.

What a reader points at, zooms into or switches is a chart; what stands still is an image.
"""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from optax_meta.meta.evaluation import Comparison, MethodResult, summarize
from optax_meta.recording import Record
from optax_meta.reports import charts, plots, rows
from optax_meta.reports.charts import Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LARGEST_SVG = 700_000  # bytes; a few of that size still load within a second
_MOST_TOLD = 10  # steps in a sentence
_WIDE, _NARROW = 9.0, 4.5  # inches, of an image on a desk or on paper, and on a phone


class Image(NamedTuple):
    """A picture that stands still.

    Attributes:
        alt: what it shows, for those who cannot see it.
        wide: address of its data.
        narrow: the same for a phone, with text as large on less room.
    """

    alt: str
    wide: str
    narrow: str


class Picture(NamedTuple):
    """A section of a page: either charts or an image.

    Attributes:
        title: of the section.
        caption: what to read from it.
        charts: drawn in the browser.
        image: drawn here.
    """

    title: str
    caption: str
    charts: Sequence[Chart] = ()
    image: Image | None = None


class _Draw(Protocol):
    def __call__(self, record: Record, labels: Sequence[str], *, ax: "Axes") -> "Axes": ...


def comparison_pictures(comparison: Comparison) -> Iterator[Picture]:
    """Yield the pictures of a comparison: how the methods rank, then those of `run_pictures`."""
    yield Picture(
        "Final loss",
        "Lower is better. Where intervals overlap widely, more seeds are needed.",
        image=_image(
            "Final loss of each method with its interval", partial(_draw_ranking, comparison)
        ),
    )
    yield from run_pictures(comparison.methods)


def run_pictures(methods: Mapping[str, MethodResult]) -> Iterator[Picture]:
    """Yield the pictures of runs by the names of their methods.

    Example:
        >>> rows = [{"step": 1, "decided": False, "loss": 2.0, "learning_rate": 0.1}]
        >>> methods = {"mine": optax_meta.reports.rows.method_result(rows, {})}
        >>> [picture.title for picture in optax_meta.reports.pictures.run_pictures(methods)]
        ['Training loss', 'What the controllers did']
    """
    seeds = max(len(result.losses) for result in methods.values())
    policies = {name: result for name, result in methods.items() if _has_decided(result)}
    yield _losses(methods, seeds)
    yield _timelines(methods, seeds, knows=bool(policies))
    if policies:
        yield _probabilities(policies, seeds)
        yield _actions(policies, seeds)
    if learners := {name: result for name, result in policies.items() if _learns(result)}:
        yield _rewards(learners, seeds)
        yield _earnings(learners, seeds)


def _losses(methods: Mapping[str, MethodResult], seeds: int) -> Picture:
    caption = (
        "Which run falls fast, and which falls far. Mean over seeds of the smoothed mini-batch "
        "loss; it ends where one of them has diverged."
        if seeds > 1
        else "How fast the smoothed mini-batch loss falls, and how far."
    )
    losses = {name: rows.losses_to_draw(result) for name, result in methods.items()}
    leaps = {name: rows.leaps(result) for name, result in methods.items()}
    caption += _told(leaps)
    steps = next(iter(losses.values())).shape[1]
    # Wide enough to calm mini-batches, narrow enough to keep the shape of a short run.
    smoothing = max(1, min(20, steps // 10))
    return Picture("Training loss", caption, [charts.loss_chart(losses, smoothing, leaps)])


def _told(leaps: Mapping[str, Sequence[int]]) -> str:
    """Return which steps leapt, in a sentence or none."""
    found = {name: steps for name, steps in leaps.items() if steps}
    if not found:
        return ""
    told = []
    for name, steps in found.items():
        more = f" and {len(steps) - _MOST_TOLD} more" if len(steps) > _MOST_TOLD else ""
        first = ", ".join(map(str, steps[:_MOST_TOLD]))
        told.append(f"{f'{name}: ' if len(leaps) > 1 else ''}{first}{more}")
    return f" Rings mark steps at which a loss or a gradient leapt: {'; '.join(told)}."


def _timelines(methods: Mapping[str, MethodResult], seeds: int, *, knows: bool) -> Picture:
    caption = "When a hyperparameter moved"
    caption += ", and what the policy observed when it moved it." if knows else "."
    if seeds > 1:
        caption += " Bold: the first seed; “all seeds” adds the others faintly."
    if len(methods) > 1:
        caption += " Methods that leave a hyperparameter alone have no line for it."
    progress = charts.progress_charts(methods)
    if progress:
        caption += (
            " Progress is the share of the run that is over, as controllers see it: it bends where "
            "a horizon was set, extended or cut, and has no line where none was known."
        )
    drawn = [*charts.hyperparam_charts(methods), *progress]
    return Picture("What the controllers did", caption, drawn)


def _probabilities(policies: Mapping[str, MethodResult], seeds: int) -> Picture:
    caption = (
        "A row is an action: the stronger its colour, the more probable; a dot marks the one that "
        "was chosen. One strong row means that the policy was sure, equally faint ones that it "
        "chose by chance."
    )
    caption += " The first seed alone." if seeds > 1 else ""
    alt = "Probability of each action at each decision, one panel for each policy"
    image = _image(alt, partial(_draw_panels, policies, 1.3, plots.decisions))
    return Picture("When the policy was sure", caption, image=image)


def _actions(policies: Mapping[str, MethodResult], seeds: int) -> Picture:
    of_all = " of all seeds" if seeds > 1 else ""
    caption = f"All decisions{of_all}. A policy that learns nothing keeps its first shares."
    draw = partial(_draw_panels, policies, 1.0, plots.action_histogram)
    image = _image("Histogram of actions of each policy", draw)
    return Picture("Which actions were taken", caption, image=image)


def _rewards(learners: Mapping[str, MethodResult], seeds: int) -> Picture:
    caption = (
        "What decisions earned, and the moving average of returns that they are compared with. "
        "A policy learns from what lies above or below it."
    )
    caption += " The first seed alone." if seeds > 1 else ""
    stops = {name: rows.last_lesson(result) for name, result in learners.items()}
    for name, step in stops.items():
        told = f"took its last lesson at step {step}" if step else "took no lesson"
        caption += f" {name} {told}."
    return Picture("How rewards went", caption, [charts.reward_chart(learners)])


def _earnings(learners: Mapping[str, MethodResult], seeds: int) -> Picture:
    of_all = " of all seeds" if seeds > 1 else ""
    caption = (
        f"Decisions{of_all}. Where the bars of all actions overlap, nothing within these runs told "
        "which is better, and whatever the policy prefers is chance."
    )
    draw = partial(_draw_panels, learners, 1.0, plots.rewards_by_action)
    image = _image("Mean reward of each action of each policy, with its error", draw)
    return Picture("Which actions earned what", caption, image=image)


def _learns(result: MethodResult) -> bool:
    decision = result.records.decision
    return decision is not None and bool(np.asarray(decision.reward).any())


def _has_decided(result: MethodResult) -> bool:
    records = result.records
    # Of seed 0, whose decisions are drawn: it may have ended before its first.
    return records.decision is not None and bool(np.asarray(records.decided)[0].any())


def _draw_ranking(comparison: Comparison, width: float) -> "Figure":
    # Room for the axis, and a line of text for each method.
    figure, axes = _new_figure(width, [1.2 + 0.4 * len(comparison.methods)])
    plots.ranking(summarize(comparison), ax=axes[0])
    return figure


def _draw_panels(
    policies: Mapping[str, MethodResult], margin: float, draw: _Draw, width: float
) -> "Figure":
    """Draw a panel for each policy, `margin` inches higher than the names of its actions."""
    heights = [margin + sum(map(_height, result.action_labels)) for result in policies.values()]
    figure, axes = _new_figure(width, heights)
    for ax, (name, result) in zip(axes, policies.items(), strict=True):
        draw(result.records, result.action_labels, ax=ax).set_title(name)
    return figure


def _height(label: str) -> float:
    """Return the inches that the name of an action takes, with a line for each of its parts."""
    # Matplotlib's 10 points are 0.14 inches; the rest is the space between lines and rows.
    return 0.13 + 0.17 * len(label.split(", "))


def _new_figure(width: float, heights: Sequence[float]) -> "tuple[Figure, Sequence[Axes]]":
    """Return a figure of panels one above the other, all in inches."""
    from matplotlib.figure import Figure

    # Not pyplot's, which would keep it alive and ask for a display.
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)
    return figure, list(axes.flat)


def _image(alt: str, draw: "Callable[[float], Figure]") -> Image:
    """Draw a figure by its width, once for each."""
    return Image(alt, _encode(draw(_WIDE)), _encode(draw(_NARROW)))


def _encode(figure: "Figure") -> str:
    """Return a figure as the address of its data: SVG, or where that is large, PNG."""
    buffer = io.BytesIO()
    # Without the date, so that the same files make the same page.
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    kind = "svg+xml"
    if buffer.tell() > _LARGEST_SVG:
        buffer, kind = io.BytesIO(), "png"
        figure.savefig(buffer, format="png", dpi=120)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind};base64,{encoded}"
