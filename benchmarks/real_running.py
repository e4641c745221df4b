"""One run at a time of a real cell, each kept as soon as it is finished.

A run is one program from first to last step. Rate, seed, steps and settings are traced, so that a
whole sweep is compiled once. Runs are not vectorized: convolutions and transformers fill a core.
"""

import functools
import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from real_cells import OPTIMIZERS, STARTS, Cell

from optax_meta.meta.protocol import Contender, Factory, Run
from optax_meta.meta.tasks import Task, train_step

Figures = dict[str, float]
"""What a run ended with: "loss" on data held out, "initial" before the run, "train_loss", …"""


class Runs(NamedTuple):
    """The runs of one cell.

    Attributes:
        cell: what is trained.
        folder: where its runs are kept, a line of JSON each.
        steps: length of a run.
        compiled: programs by what contenders that share one have in common.
        announce: called with the name of a run before it starts.
    """

    cell: Cell
    folder: Path
    steps: int
    compiled: dict[Hashable, Callable[..., Any]]
    announce: Callable[[str], None]

    def __call__(
        self, method: str, contender: Contender, seed: int, rate: float | None = None
    ) -> Figures:
        """Return what one run ends with, from the folder if it was made before.

        Args:
            method: its name; schedules share one by their kind.
            contender: what trains.
            seed: of initial parameters and batches.
            rate: to start from; None for the customary one.
        """
        rate = STARTS[self.cell.optimizer] if rate is None else rate
        key = {"method": method, "rate": float(f"{rate:.6g}"), "seed": seed, "steps": self.steps}
        key["fingerprint"] = _of_both(self.cell, contender)
        known = _kept(self.path)
        if (found := known.get(json.dumps(key))) is not None:
            return found
        self.announce(f"{self.cell.name}: {method}, rate {rate:.2g}, seed {seed}")
        started = time.monotonic()
        figures = self.run(contender, rate, seed)
        line = key | {"seconds": round(time.monotonic() - started, 2), "figures": figures}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:  # one short write: several calls may share the folder
            file.write(json.dumps(line) + "\n")
        return figures

    @property
    def path(self) -> Path:
        """The file of the cell's runs."""
        return self.folder / f"{self.cell.name}.jsonl"

    def run(self, contender: Contender, rate: float, seed: int) -> Figures:
        """Train once."""
        if contender.program not in self.compiled:
            factory = OPTIMIZERS[self.cell.optimizer]
            plain = contender._replace(settings=None)
            self.compiled[contender.program] = jax.jit(
                partial(_trained, self.cell.make(), factory, plain)
            )
        settings = jax.tree.map(np.asarray, contender.settings)
        program = self.compiled[contender.program]
        out = program(settings, np.float32(rate), np.uint32(seed), np.int32(self.steps))
        return {name: _rounded(value) for name, value in out.items()}


def has_diverged(figures: Mapping[str, float]) -> bool:
    """Return whether a run ended not finite, or above where it began."""
    return not figures["loss"] <= figures["initial"]


def final_loss(figures: Mapping[str, float]) -> float:
    """Return a run's loss at its end; one that diverged, however far, counts as nothing done."""
    return figures["initial"] if has_diverged(figures) else figures["loss"]


def num_parameters(task: Task) -> int:
    """Return how many parameters are trained."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def _trained(
    task: Task,
    factory: Factory,
    contender: Contender,
    settings: Any,
    rate: jax.Array,
    seed: jax.Array,
    steps: jax.Array,
) -> dict[str, jax.Array]:
    """Return the task's figures after a run, and its loss before."""
    init_key, data_key = jax.random.split(jax.random.key(seed))
    tx = contender._replace(settings=settings).transformation(factory, Run(rate, steps, seed))
    params = task.init(init_key)

    def step(t: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        return train_step(task, tx, jax.random.fold_in(data_key, t), t, *carry)[:2]

    initial = task.evaluate(params)["loss"]
    params, opt_state = jax.lax.fori_loop(0, steps, step, (params, tx.init(params)))
    if contender.params is not None:
        params = contender.params(opt_state, params)
    return {**task.evaluate(params), "initial": initial}


def _rounded(value: Any) -> float:
    return float(f"{float(value):.7g}")


def _kept(path: Path) -> dict[str, Figures]:
    """Return the runs of a file by their keys; a line that a kill cut short is none."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            run = json.loads(line)
        except ValueError:
            continue
        figures = run.pop("figures")
        run.pop("seconds")
        found[json.dumps(run)] = figures
    return found


def _of_both(cell: Cell, contender: Contender) -> str:
    """Return a hash of all that a run computes: where it changes, the run is made again."""
    method = _of_program(contender._replace(settings=None), cell.optimizer, _shapes(contender))
    parts = _of_task(cell), method, contender.fingerprint
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


class _Shapes(NamedTuple):
    """Shapes of settings, in a form that can be a key."""

    treedef: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]


def _shapes(contender: Contender) -> _Shapes:
    leaves, treedef = jax.tree.flatten(contender.settings)
    arrays = [np.asarray(leaf) for leaf in leaves]
    return _Shapes(treedef, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays))


@functools.cache
def _of_task(cell: Cell) -> str:
    task, key = cell.make(), jax.random.key(0)
    params, batch = jax.eval_shape(task.init, key), jax.eval_shape(task.sample, key)
    traced = (
        jax.make_jaxpr(task.init)(key),
        jax.make_jaxpr(task.sample)(key),
        jax.make_jaxpr(task.loss)(params, batch),
        jax.make_jaxpr(task.evaluate)(params),
    )
    return "".join(_of_jaxpr(jaxpr) for jaxpr in traced)


@functools.cache
def _of_program(contender: Contender, optimizer: str, shapes: _Shapes) -> str:
    """Return a hash of what a method does in its first step, of a toy."""

    def first(settings: Any, rate: Any, steps: Any, seed: Any, params: Any, grads: Any) -> Any:
        run = Run(rate, steps, seed)
        made = contender._replace(settings=settings)
        tx = made.transformation(OPTIMIZERS[optimizer], run)
        state = tx.init(params)
        updates, state = tx.update(grads, state, params, value=jnp.sum(params["w"]))
        params = optax.apply_updates(params, updates)
        return params if contender.params is None else contender.params(state, params)

    settings = jax.tree.unflatten(shapes.treedef, shapes.leaves)
    toy = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}
    rest = jnp.float32(1.0), jnp.int32(1), jnp.uint32(1), toy, toy
    return _of_jaxpr(jax.make_jaxpr(first)(settings, *rest))


def _of_jaxpr(jaxpr: Any) -> str:
    digest = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", str(jaxpr)).encode())
    for const in jaxpr.consts:
        is_key = isinstance(const, jax.Array) and jnp.issubdtype(const.dtype, jax.dtypes.prng_key)
        digest.update(np.asarray(jax.random.key_data(const) if is_key else const).tobytes())
    return digest.hexdigest()
