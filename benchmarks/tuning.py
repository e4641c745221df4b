"""Does tuning reach what a good constant rate reaches, and is what the network knew kept?

The two cells of fine-tuning, the first of them once more with fifty images, and a network that goes
on with what it was trained on. For each method, over seeds: held-out loss and accuracy on the new
classes, accuracy on the old ones, the highest held-out loss on the way, and how far the weights
moved. Nothing is chosen here. Every run is kept in the folder, as by `real.py`, and made again
where cell or method has changed. With `--write`, `tuning.json` beside this script, and the pages.

    python benchmarks/tuning.py --write                  # some ten minutes
    python benchmarks/tuning.py --cells lora-adamw --seeds 1
"""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

# One core a run, as in `real.py`.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import jax
import jax.numpy as jnp
import numpy as np
import optax
import readme
from real import known_best, policies, progress, written
from real_cells import CELLS, OPTIMIZERS, STARTS, Cell, cell
from real_models import CNN
from real_rivals import rivals
from real_running import Figures, Runs, num_parameters
from real_tables import tuning
from real_tuning import gone_on, tuned_whole

from optax_meta.meta.protocol import Contender, Run
from optax_meta.meta.tasks import train_step
from optax_meta.meta.versions import library_versions

HERE = Path(__file__).parent
CONSTANTS = (1e-4, 1e-3, 1e-2)
EVERY = 25
"""Steps between two looks at the data held out."""
NETWORK = CNN((16, 32), 96)
FIFTY = partial(tuned_whole, images=50)

TUNED = {
    found.name: found
    for found in (
        CELLS["tune-adamw"],
        CELLS["lora-adamw"],
        cell("validation", "fifty images", FIFTY, NETWORK, "adamw", 500, 32, 96),
        cell("validation", "going on", gone_on, NETWORK, "adamw", 500, 64, 96),
    )
}


def methods(cell: Cell) -> dict[str, tuple[Contender, float]]:
    """Return what a cell is tuned with, and the rates to start from."""
    found = {
        f"constant {rate:g}": (Contender.from_schedule("constant"), rate) for rate in CONSTANTS
    }
    for known in (known_best(half).get(cell.name) for half in ("validation", "reported")):
        if known is not None:
            kind, rate = known
            found["best of a sweep"] = Contender.from_schedule(kind), rate
    others = rivals(cell, cell.steps)
    ours = {name: others[name] for name in ("prodigy + linear", "distance")}
    ours |= policies(["any-lr-v2"])
    return found | {name: (made, STARTS[cell.optimizer]) for name, made in ours.items()}


def tuned(
    cell: Cell, contender: Contender, settings: Any, rate: jax.Array, seed: jax.Array
) -> dict[str, jax.Array]:
    """Tune as a run of `real.py` does, and look at what is held out on the way.

    Returns:
        What `task.evaluate` gives, float32[1 + steps // EVERY] each, the first before the run, and
        "moved", the distance from the start over the start's norm.
    """
    task, run = cell.make(), Run(rate, jnp.int32(cell.steps), seed)
    init_key, data_key = jax.random.split(jax.random.key(seed))
    made = contender._replace(settings=settings)
    tx = made.transformation(OPTIMIZERS[cell.optimizer], run)
    # Weights that are the same for all seeds are constants, which XLA would fold for minutes.
    start = jax.lax.optimization_barrier(task.init(init_key))

    def seen(params: Any) -> dict[str, jax.Array]:
        moved = optax.tree.norm(optax.tree.sub(params, start)) / optax.tree.norm(start)
        return {**task.evaluate(params), "moved": moved}

    def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
        return train_step(task, tx, jax.random.fold_in(data_key, t), t, *carry)[:2], None

    def some(carry: Any, steps: jax.Array) -> tuple[Any, Any]:
        carry, _ = jax.lax.scan(step, carry, steps)
        return carry, seen(carry[0])

    every = jnp.arange(cell.steps).reshape(-1, EVERY)
    _, after = jax.lax.scan(some, (start, tx.init(start)), every)
    return jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), seen(start), after)


class Looking(Runs):
    """Runs of a cell with figures of what was seen on the way."""

    def run(self, contender: Contender, rate: float, seed: int) -> Figures:
        """Tune once."""
        if contender.program not in self.compiled:
            cell, plain = self.cell._replace(steps=self.steps), contender._replace(settings=None)
            self.compiled[contender.program] = jax.jit(partial(tuned, cell, plain))
        settings = jax.tree.map(np.asarray, contender.settings)
        curves = self.compiled[contender.program](settings, np.float32(rate), np.uint32(seed))
        figures = {name: curve[-1] for name, curve in curves.items()}
        figures["highest_loss"] = jnp.max(curves["loss"])
        for name in curves.keys() & {"loss", "source_accuracy"}:
            figures[f"{name}_at_start"] = curves[name][0]
        return {name: float(f"{float(x):.6g}") for name, x in sorted(figures.items())}


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cells", nargs="*", choices=TUNED, default=list(TUNED))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=HERE / "real" / "tuning", help="runs")
    parser.add_argument("--write", action="store_true", help="JSON and pages")
    options = parser.parse_args()
    if options.write and len(options.cells) < len(TUNED):
        parser.error("--write is for all cells")
    return options


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is missing, and return the cells."""
    found = []
    with progress(len(options.cells)) as (announce, advance):
        for name in options.cells:
            runs = Looking(TUNED[name], options.folder, TUNED[name].steps, {}, announce)
            found.append(judged(runs, options.seeds))
            advance()
    return found


def judged(runs: Runs, seeds: int) -> dict[str, Any]:
    """Return a cell with all that was found in it."""
    about = {"name": runs.cell.name, "steps": runs.steps, "optimizer": runs.cell.optimizer}
    about["parameters"] = num_parameters(runs.cell.make())
    results = {}
    for name, (contender, rate) in methods(runs.cell).items():
        figures = [runs(name, contender, seed, rate) for seed in range(seeds)]
        results[name] = {key: [found[key] for found in figures] for key in figures[0]}
    return about | {"methods": results}


def main() -> None:
    """Run, print and write."""
    options = parsed()
    cells = run_all(options)
    results = {"seeds": options.seeds, "versions": library_versions(), "cells": cells}
    print(tuning(cells))
    if options.write:
        (HERE / "tuning.json").write_text(written(results))
        readme.write()


if __name__ == "__main__":
    main()
