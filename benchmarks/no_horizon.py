"""Does a run of unknown length, with averaged parameters, end where the best schedule does?

The real validation cells, which may choose: without a horizon, raw and with `averaged` of several
shares, all from the same run, over the best swept schedule with a horizon on the same seeds, as
`real-validation.json` has it. A constant rate is warmed up over 5 % of the run, and swept from the
schedule's best down by half decades, each share for itself: the best of it in hindsight. Every run
is kept in the folder as soon as it is finished. Writes `no_horizon.json`.

    python benchmarks/no_horizon.py --runs runs
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# One core a run, as in `real.py`.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import jax
import jax.numpy as jnp
import numpy as np
import optax
from real_cells import CELLS, OPTIMIZERS, Cell
from real_rivals import warmed_up

import optax_meta
from optax_meta.meta.protocol import Run
from optax_meta.meta.tasks import train_step
from optax_meta.meta.versions import library_versions

HERE = Path(__file__).parent
NAMES = ("mlp-adamw", "gpt-adamw", "vit-adamw", "lstm-rmsprop", "cnn-momentum")
SHARES = (0.05, 0.1, 0.2, 0.4)
CONSTANT = "constant rate"
RATES = (1.0, 10**-0.5)
"""Of the best schedule's rate, for a constant one."""


def _ours(controller: optax_meta.Controller) -> Callable[[Any, Run], Any]:
    return lambda factory, run: optax_meta.control_hyperparams(factory, controller)(run.rate)


METHODS: dict[str, Callable[[Any, Run], Any]] = {
    "distance": _ours(optax_meta.distance()),
    "distance, c = 0.3": _ours(optax_meta.distance(share=0.3, length_power=0.0)),
    "distance, c = 0.15": _ours(optax_meta.distance(share=0.15, length_power=0.0)),
    "any-lr-v2": _ours(optax_meta.learned("any-lr-v2")),
    CONSTANT: lambda factory, run: factory(warmed_up(run, run.rate)),
}


class Key(NamedTuple):
    """What a run is kept by."""

    cell: str
    method: str
    rate: float
    seed: int
    steps: int


def program(cell: Cell, method: str) -> Callable[..., jax.Array]:
    """Return (rate, seed, steps) → held-out losses, raw and averaged by each share, float32[5]."""
    task, factory = cell.make(), OPTIMIZERS[cell.optimizer]

    def run(rate: jax.Array, seed: jax.Array, steps: jax.Array) -> jax.Array:
        init_key, data_key = jax.random.split(jax.random.key(seed))
        inner = METHODS[method](factory, Run(rate, steps, seed))
        tx = optax.chain(inner, *map(optax_meta.averaged, SHARES))

        def step(t: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            return train_step(task, tx, jax.random.fold_in(data_key, t), t, *carry)[:2]

        params = task.init(init_key)
        params, state = jax.lax.fori_loop(0, steps, step, (params, tx.init(params)))
        found = [params, *map(optax_meta.averaged_params, state[1:])]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
        return jax.lax.map(lambda params: task.evaluate(params)["loss"], stacked)

    return jax.jit(run)


class Runs(NamedTuple):
    """Runs that are kept.

    Attributes:
        path: of a file, a line of JSON each.
        known: losses of those that were made before.
    """

    path: Path
    known: dict[Key, list[float]]

    @classmethod
    def read(cls, folder: Path) -> "Runs":
        """Return what a folder holds."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "no_horizon.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return cls(path, {Key(*line["key"]): line["losses"] for line in found})

    def make(self, cell: Cell, method: str, rates: Sequence[float], seeds: Sequence[int]) -> None:
        """Make those that are missing; all of a method share a compiled program."""
        keys = [Key(cell.name, method, r, s, cell.steps) for r in rates for s in seeds]
        missing = [key for key in keys if key not in self.known]
        run = program(cell, method) if missing else None
        for key in missing:
            assert run is not None
            started = time.monotonic()
            losses = run(np.float32(key.rate), np.uint32(key.seed), np.int32(key.steps))
            self.known[key] = [float(f"{x:.7g}") for x in losses]
            print(*key, self.known[key], f"{time.monotonic() - started:.0f} s", flush=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"key": key, "losses": self.known[key]}) + "\n")

    def of(self, cell: str, method: str, rate: float, seeds: Sequence[int]) -> np.ndarray:
        """Return losses, float[S, 5]."""
        steps = CELLS[cell].steps
        return np.array([self.known[Key(cell, method, rate, seed, steps)] for seed in seeds])


def rates_of(method: str, best: float) -> list[float]:
    """Return the rates that a method is tried at."""
    return [float(f"{best * r:.6g}") for r in RATES] if method == CONSTANT else [1e-3]


def row(runs: Runs, cell: Mapping[str, Any], method: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Return a method's losses over the sweep's in a cell, by share; of a rate, the best one."""
    swept = np.array(cell["methods"]["sweep"]["loss"])[list(seeds)]
    rates = rates_of(method, cell["best"][1])
    ratios = np.array([(runs.of(cell["name"], method, r, seeds).T / swept).mean(1) for r in rates])
    best = ratios.argmin(axis=0)
    shares = ("raw", *map(str, SHARES))
    return {
        "cell": cell["name"],
        "method": method,
        "ratios": dict(zip(shares, ratios.min(axis=0).round(4).tolist(), strict=True)),
        "rates": dict(zip(shares, [rates[i] for i in best], strict=True)),
    }


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return geometric means over cells, by method and share."""
    found = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row["ratios"] for row in rows if row["method"] == method]
        logs = {share: np.mean([np.log(ratios[share]) for ratios in mine]) for share in mine[0]}
        found[method] = {share: round(float(np.exp(x)), 4) for share, x in logs.items()}
    return found


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of finished runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", nargs="*", default=list(NAMES))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--out", type=Path, default=HERE / "no_horizon.json")
    options = parser.parse_args()
    known = json.loads((HERE / "real-validation.json").read_text())["cells"]
    cells = {cell["name"]: cell for cell in known}
    runs, seeds, rows = Runs.read(options.runs), range(options.seeds), []
    for method in options.methods:
        for name in options.cells:
            runs.make(CELLS[name], method, rates_of(method, cells[name]["best"][1]), seeds)
            rows.append(row(runs, cells[name], method, seeds))
    print(json.dumps(means(rows), indent=1))
    about = {"seeds": options.seeds, "versions": library_versions()}
    options.out.write_text(
        json.dumps({**about, "means": means(rows), "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
