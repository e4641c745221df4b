"""One row a method, from all cells."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from optax_meta.meta.protocol.cells import Cell, has_diverged, oracle_loss
from optax_meta.meta.protocol.schedules import SCHEDULES, SWEEP_RATES

CAP = 10.0
"""The largest ratio, and 1 over the smallest: beyond it a run has failed or succeeded, and one of
them must not decide a mean. Diverged runs count as much."""
_LEAST_EXCESS = 1e-12
"""Of the oracle above the floor, so that nothing is divided by 0."""
_DRAWS = 1000


class Score(NamedTuple):
    """One method over many cells; an interval is that of a bootstrap over seeds, 95 %.

    Attributes:
        method: its name.
        geometric_mean: of all capped ratios; 1 is the oracle, lower is better.
        geometric_interval: its interval.
        interquartile_mean: of the cells' mean ratios.
        interquartile_interval: its interval.
        within_tenth: share of cells whose geometric mean is at most 1.1.
        diverged: share of runs that ended non-finite or above their initial loss.
        reached: share of runs that have the loss that the oracle ends with, then or earlier.
        time_to_oracle: share of its steps after which the median run first has it; inf where most
            runs never do.
        cells: how many cells.

    Example:
        >>> cell = {"floor": 0.0, "initial": [9.0, 9.0], "oracle": {"losses": [1.0, 1.0]}}
        >>> cell |= {"losses": {"mine": [[2.0, 2.0]]}, "times": {"mine": [[np.inf, np.inf]]}}
        >>> [row] = optax_meta.protocol.score([cell])
        >>> round(row.geometric_mean, 3), row.time_to_oracle
        (2.0, inf)
    """

    method: str
    geometric_mean: float
    geometric_interval: tuple[float, float]
    interquartile_mean: float
    interquartile_interval: tuple[float, float]
    within_tenth: float
    diverged: float
    reached: float
    time_to_oracle: float
    cells: int


def score(cells: Sequence[Cell], *, rates: Sequence[int] | None = None) -> list[Score]:
    """Summarize the cells: one row a method, the lowest geometric mean first.

    Args:
        cells: from `judge`.
        rates: indices of the starting rates to look at; None for all.

    Returns:
        Rows, losers included. A method is scored on the cells that it ran in. Cells whose oracle
        itself diverges on a seed that it is scored on are excluded for all.

    Source: interquartile mean and stratified bootstrap as in R. Agarwal et al., "Deep Reinforcement
    Learning at the Edge of the Statistical Precipice", https://arxiv.org/abs/2108.13264.

    Example:
        >>> cell = {"floor": 0.0, "initial": [9.0, 9.0], "oracle": {"losses": [1.0, 1.0]}}
        >>> cell["losses"] = {"mine": [[2.0, 2.0]], "other": [[1.0, 1.0]]}
        >>> cell["times"] = {"mine": [[np.inf, np.inf]], "other": [[0.9, 1.0]]}
        >>> [row.method for row in optax_meta.protocol.score([cell])]
        ['other', 'mine']
    """
    cells = comparable(cells)
    methods = dict.fromkeys(name for cell in cells for name in cell["losses"])
    rows = [_score(name, cells, rates) for name in methods]
    return sorted(rows, key=lambda row: row.geometric_mean)


def comparable(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells whose oracle diverges on no seed: to the others nothing can be compared.

    Args:
        cells: from `judge`.

    Example:
        >>> cells = [{"oracle": {"losses": [1.0, end]}, "initial": [4.0, 4.0]}
        ...     for end in (2.0, 5.0, np.inf)]
        >>> len(optax_meta.protocol.comparable(cells))
        1
    """
    return [cell for cell in cells if not has_diverged(cell, cell["oracle"]["losses"]).any()]


def best_single(cells: Sequence[Cell]) -> tuple[str, float]:
    """Return the one schedule of the sweep that serves all cells best, in hindsight.

    Args:
        cells: from `judge`, of one inner optimizer.

    Returns:
        Kind and highest rate, for `Contender.from_schedule`: those of the lowest geometric mean of
        capped ratios to each cell's best, on the seeds that the oracle is chosen on.

    Example:
        >>> sweep = np.ones((3, 13))
        >>> sweep[2, 4] = 0.5
        >>> kind, rate = optax_meta.protocol.best_single([{"floor": 0.0, "sweep": sweep}])
        >>> print(kind, round(rate, 6))
        cosine 0.001
    """
    # Seeds of the sweep, not those that are scored: hindsight, but not of the very runs.
    excess = [np.array(cell["sweep"], float) - cell["floor"] for cell in cells]
    logs = [np.log(np.clip(x / max(x.min(), _LEAST_EXCESS), 1.0, CAP)) for x in excess]
    kind, index = np.unravel_index(np.argmin(np.mean(logs, axis=0)), np.shape(logs[0]))
    return SCHEDULES[kind], SWEEP_RATES[index]


def ratios(cell: Cell, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the capped ratios and which runs diverged.

    Args:
        cell: one dict of those that `judge` returns.
        method: one of its methods.

    Returns:
        float64[K, S], final loss over that of the oracle, clipped to [1/`CAP`, `CAP`], and
        bool[K, S] for K starting rates and S seeds; a diverged run counts `CAP`.

    Example:
        >>> cell = {"floor": 0.0, "initial": [9.0, 9.0], "oracle": {"losses": [1.0, 1.0]}}
        >>> cell["losses"] = {"mine": [[2.0, 99.0]]}
        >>> print(*optax_meta.protocol.ratios(cell, "mine"))
        [[ 2. 10.]] [[False  True]]
    """
    losses = np.array(cell["losses"][method], float)
    diverged = has_diverged(cell, losses)
    best = oracle_loss(cell)
    excess = np.maximum(losses - cell["floor"], 0.0) / max(best - cell["floor"], _LEAST_EXCESS)
    return np.where(diverged, CAP, np.clip(excess, 1.0 / CAP, CAP)), diverged


def resampled(parts: Sequence[np.ndarray], draws: int = 1000) -> Iterator[np.ndarray]:
    """Yield bootstrap samples of runs: seeds are drawn anew for each task, optimizer and horizon.

    Args:
        parts: float[K, S] for each of these, K starting rates, whose runs share their seeds.
        draws: how many samples.

    Yields:
        float[ΣK, S].

    Example:
        >>> parts = [np.array([[1.0, 2.0], [3.0, 4.0]])]
        >>> {x.shape for x in optax_meta.protocol.resampled(parts, draws=3)}
        {(2, 2)}
    """
    generator = np.random.default_rng(0)  # the same cells give the same interval
    for _ in range(draws):
        yield np.concatenate([x[:, generator.integers(0, x.shape[1], x.shape[1])] for x in parts])


def _score(method: str, cells: Sequence[Cell], rates: Sequence[int] | None) -> Score:
    cells = [cell for cell in cells if method in cell["losses"]]
    chosen = slice(None) if rates is None else list(rates)
    pairs = [ratios(cell, method) for cell in cells]
    parts = [np.log(ratio[chosen]) for ratio, _ in pairs]
    diverged = np.concatenate([diverged[chosen] for _, diverged in pairs])
    times = np.concatenate([np.array(cell["times"][method], float)[chosen] for cell in cells])
    logs = np.concatenate(parts)
    boot = np.array([_means(part) for part in resampled(parts, _DRAWS)])
    low, high = np.percentile(boot, [2.5, 97.5], axis=0)
    geometric, interquartile = _means(logs)
    return Score(
        method=method,
        geometric_mean=geometric,
        geometric_interval=(float(low[0]), float(high[0])),
        interquartile_mean=interquartile,
        interquartile_interval=(float(low[1]), float(high[1])),
        within_tenth=float(np.mean(np.exp(logs.mean(axis=1)) <= 1.1)),
        diverged=float(diverged.mean()),
        reached=float(np.mean(times <= 1.0)),
        # The time of a run: between a finite one and inf there is no mean.
        time_to_oracle=float(np.quantile(times, 0.5, method="higher")),
        cells=len(logs),
    )


def _means(logs: np.ndarray) -> tuple[float, float]:
    """Return geometric mean of all runs, and interquartile mean of cells, float64[K, S] given."""
    from scipy import stats

    # Of logarithms over seeds first: in a mean of ratios one of 10 would outweigh nine of 1.
    means = logs.mean(axis=1)
    return float(np.exp(means.mean())), float(stats.trim_mean(np.exp(means), 0.25))
