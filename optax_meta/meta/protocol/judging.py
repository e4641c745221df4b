"""Every method on every cell."""

import itertools
import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from optax_meta.checks import check_whole
from optax_meta.meta.protocol import cells as cell_files
from optax_meta.meta.protocol.cells import FIGURES, oracle_loss
from optax_meta.meta.protocol.contenders import Contender, Factory
from optax_meta.meta.protocol.running import Runs
from optax_meta.meta.tasks import Task
from optax_meta.meta.versions import library_versions

Figures = dict[str, list[list[float]]]
"""Of one method in a cell: the `FIGURES` by name."""


def judge(
    tasks: Sequence[Task],
    contenders: Mapping[str, Contender],
    optimizers: Mapping[str, Factory],
    *,
    learning_rates: Sequence[float],
    horizons: Sequence[int],
    seeds: int = 10,
    oracle_seeds: int = 3,
    folder: Path | None = None,
    compiler_options: dict[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Run every method on every cell.

    Args:
        tasks: what is trained; their names tell them apart.
        contenders: methods by name.
        optimizers: factories of inner optimizers by name.
        learning_rates: starting rates.
        horizons: lengths of the runs in steps.
        seeds: runs of a method in a cell, ≥ 2.
        oracle_seeds: runs of each schedule of the sweep that it is chosen on, ≥ 1.
        folder: where finished parts are kept; a second call there runs what is missing, and what
            has other `settings` than it had. Where more of a contender changes than these, its
            name must.
        compiler_options: of XLA, for all methods alike: a cut of many short runs spends its time
            compiling.
        progress: called with what is done next, from several threads.

    Returns:
        One dict for each task, optimizer and horizon: their names; "initial" float[S]; "sweep"
        float[3][13], the mean losses that the oracle is chosen by; "oracle": kind, rate and
        float[S] of its losses and test losses; "floor"; and by method float[K][S] for K starting
        rates and S seeds: "losses"; "times", the shares of the steps, in twentieths, after which
        the run first has the oracle's mean loss, inf where it never does; "test_losses", what the
        task gives as "test_loss" after the last step, None where it holds no data out and inf where
        it is not a number. "versions": of the libraries that the schedules were run with.

    Raises:
        ValueError: fewer than two seeds, a rate or a horizon out of range, two tasks of one name,
            or a folder with results for other rates or seeds, of another version, or damaged.

    Example:
        >>> task = optax_meta.tasks.quadratic(dim=2)
        >>> hold = optax_meta.protocol.Contender.from_controller(
        ...     lambda run: optax_meta.constant()
        ... )
        >>> cells = optax_meta.protocol.judge([task], {"hold": hold}, {"sgd": optax.sgd},
        ...     learning_rates=[0.1], horizons=[5], seeds=2, oracle_seeds=1)
        >>> len(cells[0]["losses"]["hold"][0])
        2
    """
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ValueError(f"tasks need different names, got {names}")
    horizons = [int(check_whole("horizons", steps)) for steps in horizons]
    setting = {
        "learning_rates": _checked_rates(learning_rates),
        "seeds": int(check_whole("seeds", seeds, 2)),
        "oracle_seeds": int(check_whole("oracle_seeds", oracle_seeds)),
    }
    cells = []
    for task, (optimizer, factory) in itertools.product(tasks, optimizers.items()):
        runs = Runs(task, factory, {}, compiler_options)  # for all horizons, which are traced
        fitting = {
            name: contender
            for name, contender in contenders.items()
            if contender.optimizers is None or optimizer in contender.optimizers
        }
        for steps in horizons:
            header = {"task": task.name, "optimizer": optimizer, "steps": steps, **setting}
            header["floor"] = task.floor
            run = partial(_judge_cell, runs, fitting, header, progress)
            if folder is None:
                cells.append(run({}))
            else:
                cells.append(_kept(folder / f"{task.name}-{optimizer}-{steps}.json", header, run))
    return cells


def _checked_rates(learning_rates: Sequence[float]) -> list[float]:
    rates = [float(rate) for rate in learning_rates]
    if not rates or not all(0.0 < rate < math.inf for rate in rates):
        raise ValueError(f"`learning_rates` must be positive and finite, got {rates}")
    return rates


def _kept(
    path: Path, header: Mapping[str, Any], run: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Return a cell from its file, completed and written where something was missing."""
    done = cell_files.read(path, header)
    cell = run(done)
    if cell != done:
        cell_files.write(path, cell)
    return cell


def _judge_cell(
    runs: Runs,
    contenders: Mapping[str, Contender],
    header: Mapping[str, Any],
    progress: Callable[[str], None] | None,
    done: dict[str, Any],
) -> dict[str, Any]:
    """Run what is missing in a cell; programs that differ are compiled and run side by side."""
    steps, rates, scored = header["steps"], header["learning_rates"], np.arange(header["seeds"])

    def announce(name: str) -> None:
        if progress is not None:
            progress(f"{header['task']}, {header['optimizer']}, {steps} steps: {name}")

    cell = {**done}
    if "oracle" not in cell:
        announce("sweep")
        oracle = runs.oracle(steps, header["oracle_seeds"], scored)
        empty = {**{field: {} for field in FIGURES}, "fingerprints": {}}
        cell = {**header, **oracle, **empty, "versions": library_versions()}
    goal = oracle_loss(cell)

    def judge_some(names: Sequence[str]) -> dict[str, Figures]:
        found = {}
        for name in names:
            announce(name)
            found[name] = runs.judge(contenders[name], rates, scored, steps, goal)
        return found

    # Those of one program in a row: it is compiled by the first of them.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = pool.map(judge_some, _missing(cell, contenders))
        found = {name: figures for part in parts for name, figures in part.items()}
    return _with_figures(cell, contenders, found)


def _missing(cell: Mapping[str, Any], contenders: Mapping[str, Contender]) -> list[list[str]]:
    """Return the contenders to run, grouped by their programs."""
    groups: dict[Hashable, list[str]] = {}
    for name, contender in contenders.items():
        is_known = name in cell["losses"]
        if not is_known or cell["fingerprints"].get(name) != contender.fingerprint:
            groups.setdefault(contender.program, []).append(name)
    return list(groups.values())


def _with_figures(
    cell: dict[str, Any], contenders: Mapping[str, Contender], found: Mapping[str, Figures]
) -> dict[str, Any]:
    """Fill in what was found, in the order in which the contenders are asked for."""
    names = dict.fromkeys([*contenders, *cell["losses"]])
    prints = {name: contender.fingerprint for name, contender in contenders.items()}
    filled = {**cell, "fingerprints": {**cell["fingerprints"], **prints}}
    for field in FIGURES:
        whole = {**cell[field], **{name: figures[field] for name, figures in found.items()}}
        filled[field] = {name: whole[name] for name in names}
    return filled
