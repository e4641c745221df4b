"""Does tuning reach what a good constant rate reaches, and is what the network knew kept?

The two cells of fine-tuning, the first of them once more with fifty images, and a network that goes
on with what it was trained on. For each method, over seeds: held-out loss and accuracy on the new
classes, accuracy on the old ones, the highest held-out loss on the way, and how far the weights
moved. Nothing is chosen here. Writes `tuning.json` beside this script.

    python benchmarks/tuning.py                          # some ten minutes
    python benchmarks/tuning.py --cells lora-adamw --methods distance "constant 0.001"
"""

import argparse
import os
from collections.abc import Callable
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
from real import known_best, policies, progress, written
from real_cells import CELLS, OPTIMIZERS, STARTS, Cell, cell
from real_models import CNN
from real_rivals import rivals
from real_running import num_parameters
from real_tuning import gone_on, tuned_whole

from optax_meta.meta.protocol import Contender, Run
from optax_meta.meta.tasks import train_step
from optax_meta.meta.versions import library_versions

HERE = Path(__file__).parent
CONSTANTS = (1e-4, 1e-3, 1e-2)
EVERY = 25
"""Steps between two looks at the data held out."""
NETWORK = CNN((16, 32), 96)

TUNED = {
    found.name: found
    for found in (
        CELLS["tune-adamw"],
        CELLS["lora-adamw"],
        cell(
            "validation",
            "fifty images",
            partial(tuned_whole, images=50),
            NETWORK,
            "adamw",
            500,
            32,
            96,
        ),
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
    start = task.init(init_key)

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


def measured(
    program: Callable[..., Any], contender: Contender, rate: float, seeds: int
) -> dict[str, list[float]]:
    """Return what each seed ends with, and the highest loss on the way."""
    settings = jax.tree.map(np.asarray, contender.settings)
    found = [
        jax.device_get(program(settings, np.float32(rate), np.uint32(seed)))
        for seed in range(seeds)
    ]
    ends = {name: [float(curve[name][-1]) for curve in found] for name in found[0]}
    ends["highest_loss"] = [float(np.max(curve["loss"])) for curve in found]
    for name in found[0].keys() & {"loss", "source_accuracy"}:
        ends[f"{name}_at_start"] = [float(curve[name][0]) for curve in found]
    return {name: [float(f"{x:.6g}") for x in values] for name, values in sorted(ends.items())}


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cells", nargs="*", choices=TUNED, default=list(TUNED))
    parser.add_argument(
        "--methods", nargs="*", help="some of those of a cell; then nothing is written"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="in place of the cells'; a multiple of 25")
    return parser.parse_args()


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run and return the cells."""
    cells = [TUNED[name] for name in options.cells]
    found = []
    with progress(len(cells)) as (announce, advance):
        for one in cells:
            mine = one._replace(steps=options.steps or one.steps)
            about = {"name": one.name, "steps": mine.steps, "optimizer": one.optimizer}
            about["parameters"] = num_parameters(one.make())
            results, programs = {}, {}
            for name, (contender, rate) in methods(one).items():
                if not options.methods or name in options.methods:
                    announce(f"{one.name}: {name}")
                    made = partial(tuned, mine, contender._replace(settings=None))
                    program = programs.setdefault(contender.program, jax.jit(made))
                    results[name] = measured(program, contender, rate, options.seeds)
            found.append(about | {"methods": results})
            advance()
    return found


def main() -> None:
    """Run, print and write."""
    options = parsed()
    cells = run_all(options)
    results = {"seeds": options.seeds, "versions": library_versions(), "cells": cells}
    print(written(results))
    if not (options.methods or options.steps or len(cells) < len(TUNED)):
        (HERE / "tuning.json").write_text(written(results))


if __name__ == "__main__":
    main()
