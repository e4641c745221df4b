"""One row a method, with intervals over seeds."""

from typing import NamedTuple

import numpy as np

from optax_meta.meta.evaluation.results import Comparison, MethodResult


class Interval(NamedTuple):
    """A mean and the half-width of its 95 % interval (Student's t over seeds).

    Attributes:
        mean: over the seeds.
        half_width: of the interval, in the same unit.
    """

    mean: float
    half_width: float


class Summary(NamedTuple):
    """One method in a table.

    Attributes:
        method: its name.
        final_loss: on the task's fixed data; a diverged run counts with its initial loss.
        loss_reduction: (initial - final)/initial, in percent.
        versus_best: 2(f - b)/(|f| + |b|) in percent for final losses f and, of the best method with
            the same seed, b: a relative difference that no single bad run can dominate.
        test_accuracy: None where the task has none.
        num_rates: distinct learning rates in a run, mean over seeds.
        lowest_rate: smallest learning rate in any run.
        highest_rate: largest learning rate in any run.
        num_diverged: runs that ended non-finite or above their initial loss.
        seconds: wall-clock of a run.
        overhead: time relative to the bare optimizer, median over seeds.
    """

    method: str
    final_loss: Interval
    loss_reduction: Interval
    versus_best: Interval
    test_accuracy: Interval | None
    num_rates: float
    lowest_rate: float
    highest_rate: float
    num_diverged: int
    seconds: Interval
    overhead: float

    @property
    def is_tied(self) -> bool:
        """Whether the interval of the difference to the best holds 0, or this is the best."""
        return self.versus_best.mean <= self.versus_best.half_width


def summarize(comparison: Comparison) -> list[Summary]:
    """Return one row a method, the lowest mean final loss first.

    Args:
        comparison: from `compare`.

    Returns:
        Rows in the order of the ranking, losers included.

    Example:
        >>> comparison = optax_meta.compare("quadratic", ["constant"], steps=3, seeds=2)
        >>> [row.method for row in optax_meta.meta.evaluation.summarize(comparison)]
        ['constant']
    """
    finals = {name: _capped(result) for name, result in comparison.methods.items()}
    best = finals[min(finals, key=lambda name: finals[name].mean())]
    rows = [
        _summary(name, result, finals[name], best, comparison.bare_seconds)
        for name, result in comparison.methods.items()
    ]
    return sorted(rows, key=lambda row: row.final_loss.mean)


def interval(values: np.ndarray) -> Interval:
    """Return a mean over seeds with its 95 % interval, mean ± t·s/√S.

    Args:
        values: one a seed, float[S], S ≥ 2.

    Returns:
        An `Interval`.

    Example:
        >>> optax_meta.meta.evaluation.interval(np.array([1.0, 3.0])).mean
        2.0
    """
    from scipy import stats

    half = stats.t.ppf(0.975, values.size - 1) * stats.sem(values)
    return Interval(float(values.mean()), float(half))


def _capped(result: MethodResult) -> np.ndarray:
    # At its start: how far it diverged is chance, and not always a number.
    return np.where(_has_diverged(result), result.initial["loss"], result.final["loss"])


def _relative_difference(final: np.ndarray, best: np.ndarray) -> np.ndarray:
    total = np.abs(final) + np.abs(best)  # losses may be below 0; where both are 0 so is this
    return 200.0 * (final - best) / np.where(total > 0.0, total, 1.0)


def _has_diverged(result: MethodResult) -> np.ndarray:
    final = result.final["loss"]
    return ~np.isfinite(final) | (final > result.initial["loss"])


def _summary(
    name: str,
    result: MethodResult,
    final: np.ndarray,
    best: np.ndarray,
    bare_seconds: np.ndarray,
) -> Summary:
    initial = result.initial["loss"]
    rates = result.records.hyperparams.get("learning_rate", np.zeros((len(final), 1)))
    accuracy = result.final.get("test_accuracy")
    return Summary(
        method=name,
        final_loss=interval(final),
        loss_reduction=interval(100.0 * (initial - final) / np.abs(initial)),
        versus_best=interval(_relative_difference(final, best)),
        test_accuracy=None if accuracy is None else interval(accuracy),
        num_rates=float(np.mean([np.unique(run).size for run in np.asarray(rates)])),
        lowest_rate=float(np.min(rates)),
        highest_rate=float(np.max(rates)),
        num_diverged=int(_has_diverged(result).sum()),
        seconds=interval(result.seconds),
        # Pairs of neighbouring runs; of these the median, since a stall hits single ones.
        overhead=float(np.median(result.seconds / bare_seconds)),
    )
