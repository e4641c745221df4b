"""Is a controller as good as a sweep on real networks? Methods judged by the loss on data held out.

Cells of two halves: "validation" may choose, "reported" chooses nothing. Each is swept over rates
by half decades, until the best is inside, × {linear, cosine} with 5 % warm-up, on a seed of its
own; the best schedule and all methods then run on the same other seeds. Every run is kept in the
folder as soon as it is finished, and made again where cell or method has changed. With `--write`,
`real-validation.json` or `real-reported.json` beside this script, and the pages from it.

`pip install -e '.[real]'` brings the data, but for 20 Newsgroups, see `real_data.py`.

    python benchmarks/real.py --fast            # minutes: one seed, schedules that are known best
    python benchmarks/real.py --half validation --policies mine.policy --methods none
    python benchmarks/real.py --controllers 'mine=optax_meta.learned("any-lr-v1")' --methods none
    python benchmarks/real.py --half reported --write       # all methods, three seeds: hours
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

# One core a run: several commands share a folder, and the last bits do not depend on the machine.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import readme
from frozen import contender
from real_cells import CELLS, Cell
from real_data import HALVES, MissingDataError
from real_rivals import METHODS, SHARE_KINDS, SHARES, moves, rivals
from real_running import Figures, Runs, final_loss, has_diverged, num_parameters
from real_sweep import SWEEP_SEED, Sweep, best, best_single, swept
from real_tables import scores

import optax_meta
from optax_meta.meta.protocol import Contender
from optax_meta.meta.versions import library_versions

HERE = Path(__file__).parent
LONGER = 4
"""So many times its steps the best schedule of a cell runs, to see what could be had."""
SINGLE = "best single schedule"
MOVES = "moves"
"""Name of all methods that move by a share of the norm."""
FAST_METHODS = ("prodigy + linear",)


def policies(names: Iterable[str]) -> dict[str, Contender]:
    """Return contenders for policies by name or path."""
    return {Path(name).stem: contender(optax_meta.load_policy(name)) for name in names}


def controllers(named: Iterable[str]) -> dict[str, Contender]:
    """Return contenders for controllers from NAME=EXPRESSION."""
    pairs = [text.partition("=")[::2] for text in named]
    return {name: Contender.from_controller(partial(_evaluated, code)) for name, code in pairs}


def _evaluated(code: str, run: Any) -> optax_meta.Controller:
    return eval(code, {"optax_meta": optax_meta, "run": run})  # noqa: S307, the user's own


def seeds_of(runs: Runs, method: str, made: Contender, options: Any, **rate: Any) -> list[Figures]:
    """Return a method's runs on the seeds that are scored."""
    return [runs(method, made, seed, **rate) for seed in range(options.seeds)]


def first_part(runs: Runs, options: Any, ours: Mapping[str, Contender]) -> dict[str, Any]:
    """Return what one cell gives by itself: its sweep, and methods that need no other cell."""
    known = {} if not options.fast else known_best(runs.cell)
    sweep = {} if known else swept(runs)
    kind, rate = known.get("best") or best(sweep)
    schedule = Contender.from_schedule(kind)
    found = {"sweep": seeds_of(runs, kind, schedule, options, rate=rate)}
    every = rivals(runs.cell, runs.steps)
    chosen = {
        n: m for n, m in every.items() if n.partition(" ")[0] == MOVES and wants(options, MOVES)
    }
    chosen |= {n: m for n, m in every.items() if n in METHODS and wants(options, n)}
    for name, method in {**ours, **chosen}.items():
        found[name] = seeds_of(runs, name, method, options)
    part: dict[str, Any] = {"sweep": sweep, "best": (kind, rate), "runs": found}
    if not options.fast:
        longer = runs._replace(steps=LONGER * runs.steps)
        part["longer"] = final_loss(longer(kind, schedule, SWEEP_SEED, rate))
    if wants(options, MOVES):
        part["shares"] = {kind: swept_shares(runs, kind) for kind in SHARE_KINDS}
    return part


def swept_shares(runs: Runs, kind: str) -> dict[float, float]:
    """Return the losses of moves by each share, on the seed of the sweep."""
    return {
        share: final_loss(runs(f"moves {share:g} {kind}", moves(share, kind), SWEEP_SEED))
        for share in SHARES
    }


def known_best(cell: Cell) -> dict[str, Any]:
    """Return the best schedule that was written for a cell, if any."""
    path = HERE / f"real-{cell.half}.json"
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    return next(({"best": tuple(c["best"])} for c in cells if c["name"] == cell.name), {})


def wants(options: Any, method: str) -> bool:
    """Return whether a method was asked for."""
    return method in options.methods


def add_best_of_all(
    all_runs: Mapping[str, Runs], parts: Mapping[str, dict[str, Any]], options: Any
) -> None:
    """Add to the cells' runs those methods that have one number for many cells, in hindsight."""
    if wants(options, MOVES):
        for kind in SHARE_KINDS:
            sweeps: dict[str, Sweep] = {n: {kind: p["shares"][kind]} for n, p in parts.items()}
            _, share = best_single(sweeps, lambda *_: 0.0)
            for name, runs in all_runs.items():
                method = f"moves {share:g} {kind}"
                runs_of = seeds_of(runs, method, moves(share, kind), options)
                parts[name]["runs"][f"moves {kind}, best constant"] = runs_of
                parts[name].setdefault("constants", {})[kind] = share
    if not wants(options, SINGLE):
        return
    for optimizer in {runs.cell.optimizer for runs in all_runs.values()}:
        mine = {n: r for n, r in all_runs.items() if r.cell.optimizer == optimizer}
        if len(mine) < 2:
            continue  # its own sweep
        kind, rate = best_single(
            {name: parts[name]["sweep"] for name in mine}, partial(_lost, all_runs)
        )
        for name, runs in mine.items():
            made = Contender.from_schedule(kind)
            parts[name]["runs"][SINGLE] = seeds_of(runs, kind, made, options, rate=rate)
            parts[name]["single"] = (kind, rate)


def _lost(all_runs: Mapping[str, Runs], name: str, kind: str, rate: float) -> float:
    return final_loss(all_runs[name](kind, Contender.from_schedule(kind), SWEEP_SEED, rate))


def written(results: Any) -> str:
    """Return JSON with a line for each list of numbers."""
    text = json.dumps(results, indent=1)
    return re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n"


def as_json(runs: Runs, part: dict[str, Any]) -> dict[str, Any]:
    """Return a cell with all that was found in it."""
    cell, task = runs.cell, runs.cell.make()
    about = {"name": cell.name, "description": task.description, "optimizer": cell.optimizer}
    about |= {"steps": runs.steps, "batch": cell.batch, "parameters": num_parameters(task)}
    made = part.pop("runs")
    names = sorted({name for figures in made["sweep"] for name in figures})
    methods = {
        method: {name: [figures.get(name) for figures in found] for name in names}
        | {"diverged": [has_diverged(figures) for figures in found]}
        for method, found in made.items()
    }
    return about | part | {"methods": methods}


@contextmanager
def progress(parts: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """Show a bar of cells, and the run under way; lines where there is no terminal.

    Yields:
        What to call before each run with its name, and after each cell.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=sys.stderr)
    with Progress(console=console) as bar:
        task = bar.add_task("", total=parts)

        def announce(label: str) -> None:
            bar.update(task, description=label)
            if not console.is_terminal:
                print(label, file=sys.stderr, flush=True)

        yield announce, lambda: bar.advance(task)


def parsed() -> argparse.Namespace:
    """Read the command line."""
    every = (*METHODS, MOVES, SINGLE)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--half", choices=HALVES, default="validation")
    parser.add_argument("--cells", nargs="*", choices=CELLS, help="some of the half's")
    parser.add_argument("--methods", nargs="*", choices=(*every, "none"), help="all by default")
    parser.add_argument("--policies", nargs="*", default=["any-lr-v1"], help="names or paths")
    parser.add_argument("--controllers", nargs="*", default=[], help="NAME=EXPRESSION")
    parser.add_argument("--seeds", type=int, help="3 by default, 1 with --fast")
    parser.add_argument("--steps", type=int, help="of every run, in place of the cells'")
    parser.add_argument("--fast", action="store_true", help="one seed, few methods, no sweep")
    parser.add_argument("--folder", type=Path, default=HERE / "real", help="finished runs")
    parser.add_argument("--write", action="store_true", help="JSON and pages")
    options = parser.parse_args()
    if options.write and (options.cells or options.methods or options.steps or options.fast):
        parser.error("--write is for all cells, methods and steps of a half")
    if options.methods is None:
        options.methods = list(FAST_METHODS if options.fast else every)
    options.seeds = options.seeds or (1 if options.fast else 3)
    return options


def judged(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is missing, and return the cells."""
    ours = policies(options.policies) | controllers(options.controllers)
    names = options.cells or [name for name, cell in CELLS.items() if cell.half == options.half]
    all_runs, parts = {}, {}
    with progress(len(names)) as (announce, advance):
        for name in names:
            cell = CELLS[name]
            runs = Runs(cell, options.folder, options.steps or cell.steps, {}, announce)
            try:
                parts[name] = first_part(runs, options, ours)
            except MissingDataError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
            else:
                all_runs[name] = runs._replace(compiled={})  # programs of one cell at a time
            advance()
        add_best_of_all(all_runs, parts, options)
    return [as_json(all_runs[name], part) for name, part in parts.items()]


def main() -> None:
    """Run, print and write."""
    options = parsed()
    cells = judged(options)
    print(scores(cells))
    if options.write:
        results = {"half": options.half, "seeds": options.seeds, "versions": library_versions()}
        path = HERE / f"real-{options.half}.json"
        path.write_text(written(results | {"cells": cells}))
        readme.write()


if __name__ == "__main__":
    main()
