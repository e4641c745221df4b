"""The best of rates × {linear, cosine} for a cell, chosen on a seed that scores nothing."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from real_cells import STARTS
from real_running import Runs, final_loss

from optax_meta.meta.protocol import Contender

KINDS = ("linear", "cosine")
"""Both warm up over 5 % of the run and fall to 0."""
SWEEP_SEED = 100
_WORST = 10.0
"""A ratio beyond which a schedule is no worse for a cell."""

Sweep = dict[str, dict[float, float]]
"""Final held-out losses by kind and rate."""


def half_decade(place: int) -> float:
    """Return 10 to the power of half of a whole number."""
    return float(f"{10.0 ** (place / 2.0):.6g}")


def loss_of(runs: Runs, kind: str, rate: float) -> float:
    """Return the loss of one schedule on the seed of the sweep."""
    return final_loss(runs(kind, Contender.from_schedule(kind), SWEEP_SEED, rate))


def swept(runs: Runs) -> Sweep:
    """Sweep rates by half decades until the best of all has neighbours on both sides."""
    middle = round(2.0 * np.log10(STARTS[runs.cell.optimizer]))
    found: Sweep = {kind: {} for kind in KINDS}
    wanted = [middle - 1, middle, middle + 1]
    while wanted:
        for place in wanted:
            for kind in KINDS:
                rate = half_decade(place)
                found[kind][rate] = loss_of(runs, kind, rate)
        _, rate = best(found)
        place = round(2.0 * np.log10(rate))
        around = (place - 1, place + 1)
        wanted = [p for p in around if half_decade(p) not in found[KINDS[0]] and -16 <= p <= 6]
    return found


def best(sweep: Sweep) -> tuple[str, float]:
    """Return kind and rate of the lowest loss."""
    pairs = [(kind, rate) for kind, losses in sweep.items() for rate in losses]
    return min(pairs, key=lambda pair: sweep[pair[0]][pair[1]])


def best_single(
    sweeps: Mapping[str, Sweep], loss: Callable[[str, str, float], float]
) -> tuple[str, float]:
    """Return the one kind and rate that serves cells of one optimizer best, in hindsight.

    Args:
        sweeps: of the cells, by name.
        loss: (name, kind, rate) → the loss where a cell's own sweep did not come.
    """
    every = [losses for sweep in sweeps.values() for losses in sweep.values()]
    rates = sorted({rate for losses in every for rate in losses})
    kinds = next(iter(sweeps.values())).keys()

    def ratios(kind: str, rate: float) -> Sequence[float]:
        found = []
        for name, sweep in sweeps.items():
            least = min(min(losses.values()) for losses in sweep.values())
            mine = sweep[kind].get(rate)
            found.append((loss(name, kind, rate) if mine is None else mine) / least)
        return np.log(np.clip(found, 1.0, _WORST)).tolist()

    return min(
        ((kind, rate) for kind in kinds for rate in rates), key=lambda pair: sum(ratios(*pair))
    )
