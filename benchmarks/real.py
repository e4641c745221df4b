"""Is a controller as good as a sweep on real networks? Methods judged by the loss on data held out.

Cells of two halves: "validation" may choose, "reported" chooses nothing. Each is swept over rates
by half decades, until the best is inside, × {linear, cosine} with 5 % warm-up, on a seed of its
own; the best schedule and all methods then run on the same other seeds. Every run is kept in the
folder as soon as it is finished, and made again where cell or method has changed. With `--write`,
`real-validation.json` or `real-reported.json` beside this script, and the pages from it.

`pip install -e '.[real]'` brings the data, but for 20 Newsgroups, see `real_data.py`.

    python benchmarks/real.py --fast            # minutes: one seed, schedules that are known best
    python benchmarks/real.py --half validation --policies mine.policy --methods none
    python benchmarks/real.py --controllers 'mine=optax_meta.learned("any-lr-v2")' --methods none
    python benchmarks/real.py --half reported --write       # all methods, three seeds: hours
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
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
from real_cells import CELLS
from real_data import HALVES, MissingDataError
from real_judging import (
    BEST_MOVES,
    MOVES,
    SINGLE,
    Found,
    add_best_moves,
    add_best_single,
    as_json,
    judged,
)
from real_rivals import METHODS
from real_running import Runs
from real_tables import scores

import optax_meta
from optax_meta.meta.protocol import Contender
from optax_meta.meta.versions import library_versions

HERE = Path(__file__).parent
FAST_METHODS = ("prodigy + linear",)
SHIPPED = "any-lr-v2", "adamw-lr-wd-v2"


def policies(names: Iterable[str]) -> dict[str, Contender]:
    """Return contenders for policies by name or path; one that steers a decay has AdamW's cells."""
    found = {}
    for name in names:
        policy = optax_meta.load_policy(name)
        steers_decay = "weight_decay" in policy.action_space.hyperparams
        only = ("adamw",) if steers_decay else None
        found[Path(name).stem] = contender(policy)._replace(optimizers=only)
    return found


def controllers(named: Iterable[str]) -> dict[str, Contender]:
    """Return contenders for controllers from NAME=EXPRESSION."""
    pairs = [text.partition("=")[::2] for text in named]
    return {name: Contender.from_controller(partial(_evaluated, code)) for name, code in pairs}


def _evaluated(code: str, run: Any) -> optax_meta.Controller:
    return eval(code, {"optax_meta": optax_meta, "run": run})  # noqa: S307, the user's own


def known_best(half: str) -> dict[str, tuple[str, float]]:
    """Return the best schedules that were written for the cells of a half, by name."""
    path = HERE / f"real-{half}.json"
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    return {cell["name"]: tuple(cell["best"]) for cell in cells}


def written(results: Any) -> str:
    """Return JSON with a line for each list of numbers."""
    text = json.dumps(results, indent=1)
    return re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n"


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
    every = (*METHODS, MOVES, BEST_MOVES, SINGLE)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--half", choices=HALVES, default="validation")
    parser.add_argument("--cells", nargs="*", choices=CELLS, help="some of the half's")
    parser.add_argument("--methods", nargs="*", choices=(*every, "none"), help="all by default")
    parser.add_argument("--policies", nargs="*", default=list(SHIPPED), help="names or paths")
    parser.add_argument("--controllers", nargs="*", default=[], help="NAME=EXPRESSION")
    parser.add_argument("--seeds", type=int, help="3 by default, 1 with --fast")
    parser.add_argument("--steps", type=int, help="of every run, in place of the cells'")
    parser.add_argument("--fast", action="store_true", help="one seed, few methods, no sweep")
    parser.add_argument("--folder", type=Path, default=HERE / "real", help="finished runs")
    parser.add_argument("--write", action="store_true", help="JSON and pages")
    options = parser.parse_args()
    if options.write and (options.cells or options.steps or options.fast):
        parser.error("--write is for all cells and steps of a half")
    if options.fast and {BEST_MOVES, SINGLE} & set(options.methods or ()):
        parser.error(
            f"`{BEST_MOVES}` and `{SINGLE}` are chosen by a sweep, which --fast leaves out"
        )
    if options.methods is None:
        options.methods = list(FAST_METHODS if options.fast else every)
    options.seeds = options.seeds or (1 if options.fast else 3)
    return options


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is missing, and return the cells."""
    ours = policies(options.policies) | controllers(options.controllers)
    names = options.cells or [name for name, cell in CELLS.items() if cell.half == options.half]
    known = known_best(options.half) if options.fast else {}
    found: dict[str, Found] = {}
    with progress(len(names)) as (announce, advance):
        for name in names:
            cell = CELLS[name]
            runs = Runs(cell, options.folder, options.steps or cell.steps, {}, announce)
            wanted = options.methods, options.seeds, known.get(name)
            try:
                found[name] = judged(runs, ours, *wanted)
            except MissingDataError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
            advance()
        if BEST_MOVES in options.methods:
            add_best_moves(found, options.seeds)
        if SINGLE in options.methods:
            add_best_single(found, options.seeds)
    return [as_json(cell) for cell in found.values()]


def main() -> None:
    """Run, print and write."""
    options = parsed()
    cells = run_all(options)
    print(scores(cells))
    if options.write:
        assert len(cells) == sum(cell.half == options.half for cell in CELLS.values())
        results = {"half": options.half, "seeds": options.seeds, "versions": library_versions()}
        path = HERE / f"real-{options.half}.json"
        path.write_text(written(results | {"cells": cells}))
        readme.write()


if __name__ == "__main__":
    main()
