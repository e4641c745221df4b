"""Pictures of what a policy decided: how often, and how sure it was."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from optax_meta.recording import Record
from optax_meta.reports.plots.style import COLORS, axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def action_histogram(
    record: Record, labels: Sequence[str], *, ax: "Axes | None" = None, color: str = COLORS[0]
) -> "Axes":
    """Draw how often a policy chose each action.

    Args:
        record: stacked rows of a controller with a policy.
        labels: names of the actions, `Controller.action_labels`.
        ax: what to draw on; None for new axes.
        color: of the bars.

    Returns:
        The axes.

    Raises:
        ValueError: the controller has no policy.

    Example:
        >>> choice = {"action": 1, "log_prob": -0.1, "entropy": 0.3, "reward": 0.0, "baseline": 0.0}
        >>> choice |= {"probabilities": [0.1, 0.9], "observation": [0.5]}
        >>> rows = [{"step": 1, "decided": True, "loss": 2.0, **choice}]  # of a file
        >>> result = optax_meta.reports.rows.method_result(rows, {})
        >>> ax = optax_meta.plots.action_histogram(result.records, ["halve", "hold"])
    """
    if record.decision is None:
        raise ValueError("`record` must hold a policy's actions, got one of a controller without")
    ax = axes_or_new(ax)
    taken = np.asarray(record.decision.action)[np.asarray(record.decided)]
    # With all labels: an action that was never taken is news.
    counts = np.bincount(taken, minlength=len(labels))
    bars = ax.barh(_shown(labels), counts / max(counts.sum(), 1), color=color)
    ax.bar_label(bars, [f" {count}" for count in counts])
    # A little more than the whole, for the number beside the bar.
    ax.set(xlabel="share of decisions", xlim=(0, 1.1))
    ax.invert_yaxis()
    return ax


def rewards_by_action(
    record: Record, labels: Sequence[str], *, ax: "Axes | None" = None, color: str = COLORS[0]
) -> "Axes":
    """Draw what each action earned: the mean reward, ± two standard errors.

    Args:
        record: stacked rows of a controller that learns, leading axes [T] or [S, T].
        labels: names of the actions, `Controller.action_labels`.
        ax: what to draw on; None for new axes.
        color: of the dots.

    Returns:
        The axes.

    Raises:
        ValueError: the controller has no policy.

    Example:
        >>> choice = {"action": 1, "log_prob": -0.1, "entropy": 0.3, "reward": 0.5, "baseline": 0.2}
        >>> choice |= {"probabilities": [0.1, 0.9], "observation": [0.5]}
        >>> rows = [{"step": t, "decided": True, "loss": 2.0, **choice} for t in (1, 2)]
        >>> result = optax_meta.reports.rows.method_result(rows, {})
        >>> ax = optax_meta.plots.rewards_by_action(result.records, ["halve", "hold"])
    """
    if record.decision is None:
        raise ValueError("`record` must hold a policy's rewards, got one of a controller without")
    ax = axes_or_new(ax)
    earned = _earned(record)
    for row in range(len(labels)):
        rewards = earned[row] if row < len(earned) else np.zeros(0)
        if rewards.size:
            error = 2.0 * rewards.std() / np.sqrt(rewards.size)
            ax.errorbar(rewards.mean(), row, xerr=error, fmt="o", color=color, capsize=3)
    ax.axvline(0.0, color="gray", linewidth=0.8)
    ax.set_yticks(np.arange(len(labels)), _shown(labels))
    ax.set(xlabel="mean reward, ± two standard errors", ylim=(-0.5, len(labels) - 0.5))
    ax.invert_yaxis()
    return ax


def _earned(record: Record) -> list[np.ndarray]:
    """Return the rewards of each action: that of a decision stands beside the next one."""
    decision = record.decision
    assert decision is not None  # noqa: S101 - the caller has looked
    fields = record.decided, decision.action, decision.reward
    runs = [np.atleast_2d(np.asarray(x)) for x in fields]
    actions, rewards = [], []
    for decided, action, reward in zip(*runs, strict=True):
        actions.append(action[decided][:-1])
        rewards.append(reward[decided][1:])
    every, taken = np.concatenate(rewards), np.concatenate(actions)
    return [every[taken == action] for action in range(np.shape(decision.probabilities)[-1])]


def decisions(
    record: Record,
    labels: Sequence[str],
    features: Sequence[str] | None = None,
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw how sure a policy was at each decision of a run, and what it chose.

    A row is an action, a column lasts from a decision to the next: the darker, the more probable;
    a dot marks the chosen action.

    Args:
        record: stacked rows of a controller with a policy, leading axes [T] for one run or [S, T]
            for several, of which the first is drawn.
        labels: names of the actions, `Controller.action_labels`.
        features: names of what the policy observed, `Controller.features`, to draw below the
            actions, from blue for -1 to red for 1; None to leave them out.
        ax: what to draw on; None for new axes.

    Returns:
        The axes.

    Raises:
        ValueError: the controller has no policy or decided nothing, or the names do not fit.

    Example:
        >>> controller = optax_meta.reinforce(decision_interval=1)
        >>> tx = optax_meta.control_hyperparams(optax.adamw, controller)(1e-3)
        >>> x = jnp.ones(2)
        >>> step = lambda state, _: (tx.update(x, state, x, value=1.0)[1], optax_meta.record(state))
        >>> _, rows = jax.lax.scan(step, tx.init(x), length=20)
        >>> ax = optax_meta.plots.decisions(rows, controller.action_labels)
    """
    taken = _first_run(record)
    _check_names("labels", labels, taken.probabilities)
    ax = axes_or_new(ax)
    _draw_choices(ax, taken)
    names, ticks = _shown(labels), np.arange(len(labels), dtype=float)
    if features is not None:
        _check_names("features", features, taken.observation)
        _draw_observations(ax, taken, top=len(labels))
        names += _shown(features)
        ticks = np.append(ticks, len(labels) + 0.5 + np.arange(len(features)))
    ax.set_yticks(ticks, names)
    ax.set(xlabel="step", xlim=(taken.edges[0], taken.edges[-1]))
    ax.invert_yaxis()
    return ax


class _Taken(NamedTuple):
    """The D decisions of a run.

    Attributes:
        edges: steps where each began to hold, and where the last ceased to, int[D + 1].
        action: the chosen, int[D].
        probabilities: float[D, A].
        observation: float[D, F].
    """

    edges: np.ndarray
    action: np.ndarray
    probabilities: np.ndarray
    observation: np.ndarray


def _first_run(record: Record) -> _Taken:
    if record.decision is None:
        raise ValueError("`record` must hold decisions, got one of a controller without a policy")
    is_batch = np.ndim(record.decided) > 1

    def first(x: object) -> np.ndarray:
        return np.asarray(x)[0] if is_batch else np.asarray(x)

    decided, steps = first(record.decided), first(record.step)
    if not decided.any():
        raise ValueError("`record` must hold decisions, got a run that ended before the first")
    began, decision = steps[decided], record.decision
    return _Taken(
        edges=np.append(began, max(steps[-1], began[-1]) + 1),
        action=first(decision.action)[decided],
        probabilities=first(decision.probabilities)[decided],
        observation=first(decision.observation)[decided],
    )


def _check_names(argument: str, names: Sequence[str], values: np.ndarray) -> None:
    if len(names) != values.shape[1]:
        raise ValueError(f"`{argument}` must hold {values.shape[1]} names, got {len(names)}")


def _draw_choices(ax: "Axes", taken: _Taken) -> None:
    """Draw probabilities as a map, and the chosen actions as dots on it."""
    count, num_actions = taken.probabilities.shape
    rows = np.arange(num_actions + 1) - 0.5
    # Thousands of cells: as a bitmap, even within an SVG.
    mesh = ax.pcolormesh(
        taken.edges, rows, taken.probabilities.T, cmap="Blues", vmin=0.0, vmax=1.0, rasterized=True
    )
    middles = (taken.edges[1:] + taken.edges[:-1]) / 2.0
    # Half of a column in points, so that neighbours stay apart as long as they can be seen.
    room = 72.0 / ax.figure.dpi * ax.bbox.width / count
    size = float(np.clip(0.5 * room, 1.5, 6.0))
    (dots,) = ax.plot(middles, taken.action, "o", color=COLORS[1], label="chosen")
    dots.set(markersize=size, markeredgewidth=0)
    ax.figure.colorbar(mesh, ax=ax, label="probability", fraction=0.05, pad=0.02)


def _draw_observations(ax: "Axes", taken: _Taken, top: int) -> None:
    rows = np.arange(taken.observation.shape[1] + 1) + top
    ax.pcolormesh(
        taken.edges,
        rows,
        taken.observation.T,
        rasterized=True,
        cmap="RdBu_r",
        vmin=-1.0,
        vmax=1.0,
    )


def _shown(labels: Sequence[str]) -> list[str]:
    """Return labels as they are shown: a joint action takes a line for each of its parts."""
    return [label.replace("_", " ").replace(", ", ",\n") for label in labels]
