"""What is found in the cells: the best of a sweep, and each method on the same seeds.

Most methods need one cell alone. Some have one number for many cells, the best in hindsight: these
come last.
"""

import math
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

from real_rivals import METHODS, SHARE_KINDS, SHARES, moves, rivals
from real_running import Figures, Runs, final_loss, has_diverged, num_parameters
from real_sweep import SWEEP_SEED, Sweep, best, best_single, loss_of, swept

from optax_meta.meta.protocol import Contender

LONGER = 4
"""So many times its steps the best schedule of a cell runs, to see what could be had."""
SINGLE = "best single schedule"
MOVES, BEST_MOVES = "moves", "best moves"
"""Name of all methods that move by a share of the norm."""


class Found(NamedTuple):
    """What is known of a cell.

    Attributes:
        runs: its runs.
        sweep: losses of schedules; empty where the best was known before.
        best: kind and rate of the best one.
        shares: losses of moves by a share of the norm, by kind and share; empty where not asked.
        methods: figures by method and seed.
        about: more numbers for the file.
    """

    runs: Runs
    sweep: Sweep
    best: tuple[str, float]
    shares: Sweep
    methods: dict[str, list[Figures]]
    about: dict[str, Any]


def judged(
    runs: Runs,
    ours: Mapping[str, Contender],
    wanted: Collection[str],
    seeds: int,
    known: tuple[str, float] | None = None,
) -> Found:
    """Run all that a cell gives by itself.

    Args:
        runs: of the cell.
        ours: methods by name.
        wanted: names of rivals; `MOVES` for those that move by a share of the norm, as a law
            has it, `BEST_MOVES` for the shares that `add_best_moves` chooses from.
        seeds: how many are scored, from 0 on.
        known: the best schedule, where that is known; nothing is swept then.
    """
    sweep = {} if known else swept(runs)
    kind, rate = known or best(sweep)
    schedule = Contender.from_schedule(kind)
    methods = {"sweep": _on_seeds(runs, kind, schedule, seeds, rate)}
    fitting = {
        name: method
        for name, method in ours.items()
        if method.optimizers is None or runs.cell.optimizer in method.optimizers
    }
    for name, method in {**fitting, **_asked(runs, wanted)}.items():
        methods[name] = _on_seeds(runs, name, method, seeds)
    about = {}
    if not known:
        longer = runs._replace(steps=LONGER * runs.steps)
        about["longer"] = loss_of(longer, kind, rate)
    shares = {k: _swept_shares(runs, k) for k in SHARE_KINDS} if BEST_MOVES in wanted else {}
    _forget_all_but(runs, schedule, *(moves(1.0, kind) for kind in SHARE_KINDS))
    return Found(runs, sweep, (kind, rate), shares, methods, about)


def _on_seeds(
    runs: Runs, method: str, made: Contender, seeds: int, rate: float | None = None
) -> list[Figures]:
    return [runs(method, made, seed, rate) for seed in range(seeds)]


def _asked(runs: Runs, wanted: Collection[str]) -> dict[str, Contender]:
    every = rivals(runs.cell, runs.steps)
    return {
        name: method
        for name, method in every.items()
        if name in wanted or (name not in METHODS and MOVES in wanted)
    }


def _swept_shares(runs: Runs, kind: str) -> dict[float, float]:
    """Return the losses of moves by each share, on the seed of the sweep."""
    named = {share: f"moves {share:g} {kind}" for share in SHARES}
    return {
        share: final_loss(runs(name, moves(share, kind), SWEEP_SEED))
        for share, name in named.items()
    }


def _forget_all_but(runs: Runs, *kept: Contender) -> None:
    """Drop programs that no later run of a cell needs: those of many cells fill the memory."""
    programs = {contender.program for contender in kept}
    for program in set(runs.compiled) - programs:
        del runs.compiled[program]


def add_best_moves(found: Mapping[str, Found], seeds: int) -> None:
    """Add moves by the one share that serves all cells best, to each cell."""
    for kind in SHARE_KINDS:
        share = _best_share(found, kind)
        method = f"moves {share:g} {kind}"
        for cell in found.values():
            runs = _on_seeds(cell.runs, method, moves(share, kind), seeds)
            cell.methods[f"moves {kind}, best constant"] = runs
            cell.about[f"share {kind}"] = share


def _best_share(found: Mapping[str, Found], kind: str) -> float:
    sweeps = {name: {kind: cell.shares[kind]} for name, cell in found.items()}
    return best_single(sweeps, lambda name, kind, share: sweeps[name][kind][share])[1]


def add_best_single(found: Mapping[str, Found], seeds: int) -> None:
    """Add the one schedule that serves all cells of an optimizer best, where there are several."""
    for optimizer in sorted({cell.runs.cell.optimizer for cell in found.values()}):
        mine = {n: cell for n, cell in found.items() if cell.runs.cell.optimizer == optimizer}
        if len(mine) < 2:
            continue
        kind, rate = best_single({n: cell.sweep for n, cell in mine.items()}, partial(_lost, mine))
        for cell in mine.values():
            schedule = Contender.from_schedule(kind)
            cell.methods[SINGLE] = _on_seeds(cell.runs, kind, schedule, seeds, rate)
            cell.about["best single"] = (kind, rate)


def _lost(found: Mapping[str, Found], name: str, kind: str, rate: float) -> float:
    return loss_of(found[name].runs, kind, rate)


def as_json(found: Found) -> dict[str, Any]:
    """Return a cell with all that was found in it."""
    cell, task = found.runs.cell, found.runs.cell.make()
    about = {"name": cell.name, "description": task.description, "optimizer": cell.optimizer}
    about |= {"steps": found.runs.steps, "batch": cell.batch, "parameters": num_parameters(task)}
    about |= {"sweep": found.sweep, "best": found.best, "shares": found.shares, **found.about}
    names = sorted({name for figures in found.methods["sweep"] for name in figures})
    methods = {
        method: {name: [_finite(figures[name]) for figures in runs] for name in names}
        | {"diverged": [has_diverged(figures) for figures in runs]}
        for method, runs in found.methods.items()
    }
    return about | {"methods": methods}


def _finite(value: float) -> float | None:
    """Return a number as JSON can hold it."""
    return value if math.isfinite(value) else None
