"""Runs of one task and inner optimizer, vectorized over starting rates and seeds."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_meta.meta.protocol.cells import FIGURES
from optax_meta.meta.protocol.contenders import Contender, Factory, Run
from optax_meta.meta.protocol.schedules import SCHEDULES, SWEEP_RATES
from optax_meta.meta.tasks import Task, figures_at, train_step

CHECKPOINTS = 20
"""At how many evenly spaced steps a run is evaluated, to see when it has the oracle's loss."""
_ORACLE_SEED = 10_000
"""The first of the oracle's own seeds, far from those that are scored."""


class Losses(NamedTuple):
    """Of K starting rates and S seeds.

    Attributes:
        initial: before the run, float64[K, S].
        curve: at the `CHECKPOINTS`, C of them, float64[K, S, C]; nan where none was asked for, but
            at the end.
        test: on held-out data at the end, float64[K, S]; nan without such data.
    """

    initial: np.ndarray
    curve: np.ndarray
    test: np.ndarray


class Runs(NamedTuple):
    """The runs of one task and inner optimizer; every program is compiled once for all horizons.

    Attributes:
        task: what is trained.
        factory: of the inner optimizer.
        compiled: programs by what contenders that share one have in common; filled in as they run.
        compiler_options: of XLA.
    """

    task: Task
    factory: Factory
    compiled: dict[Hashable, Callable[..., tuple[jax.Array, ...]]]
    compiler_options: dict[str, Any] | None

    def __call__(
        self,
        contender: Contender,
        rates: Sequence[float],
        seeds: np.ndarray,
        steps: int,
        *,
        watch: bool = False,
    ) -> Losses:
        """Run a contender from every rate with every seed; evaluate along the way if `watch`."""
        if contender.program not in self.compiled:
            run = partial(_train, self.task, self.factory, contender._replace(settings=None))
            over_seeds = jax.vmap(run, (None, None, 0, None, None))
            self.compiled[contender.program] = jax.jit(
                jax.vmap(over_seeds, (None, 0, None, None, None)),
                compiler_options=self.compiler_options,
            )
        # As arrays: a Python number would be compiled in, and another one compile again.
        settings = jax.tree.map(np.asarray, contender.settings)
        rate, seed = np.asarray(rates, np.float32), np.asarray(seeds, np.uint32)
        program = self.compiled[contender.program]
        out = program(settings, rate, seed, np.int32(steps), np.bool_(watch))
        return Losses(*(np.asarray(x, float) for x in out))

    def oracle(self, steps: int, oracle_seeds: int, scored: np.ndarray) -> dict[str, Any]:
        """Choose the best schedule of the sweep and run it on the seeds that are scored."""
        chosen_on = _ORACLE_SEED + np.arange(oracle_seeds)
        tuned = []
        for kind in SCHEDULES:
            found = self(Contender.from_schedule(kind), SWEEP_RATES, chosen_on, steps)
            final = found.curve[..., -1]
            # However far a run diverged, it counts as one that did nothing.
            capped = np.where(np.isfinite(final), np.minimum(final, found.initial), found.initial)
            tuned.append(capped.mean(axis=1))
        kind, index = np.unravel_index(np.argmin(tuned), np.shape(tuned))
        chosen = Contender.from_schedule(SCHEDULES[kind])
        best = self(chosen, SWEEP_RATES[index : index + 1], scored, steps)
        return {
            "initial": best.initial[0].tolist(),
            "sweep": np.stack(tuned).tolist(),
            "oracle": {
                "schedule": SCHEDULES[kind],
                "rate": SWEEP_RATES[index],
                "losses": best.curve[0, :, -1].tolist(),
                "test_losses": self._reported(best.test[0]),
            },
        }

    def judge(
        self,
        contender: Contender,
        rates: Sequence[float],
        seeds: np.ndarray,
        steps: int,
        goal: float,
    ) -> dict[str, list[list[float]]]:
        """Return the `FIGURES` of one contender, float[K][S] each."""
        few = rates[:1] if contender.any_start else rates
        # A schedule runs one rate at a time, as that of the oracle does: the same program.
        parts = [[rate] for rate in few] if contender.is_schedule else [few]
        found = [self(contender, part, seeds, steps, watch=True) for part in parts]
        curve = np.concatenate([losses.curve for losses in found])
        test = np.concatenate([losses.test for losses in found])
        shape = len(rates), len(seeds)
        final, times, test = (
            np.broadcast_to(x, shape) for x in (curve[..., -1], _times(curve, goal), test)
        )
        figures = final.tolist(), times.tolist(), self._reported(test)
        return dict(zip(FIGURES, figures, strict=True))

    def _reported(self, test_losses: np.ndarray) -> list[Any]:
        """Return losses on held-out data for a cell, None where there are no such data."""
        if "test_loss" in jax.eval_shape(self._figures):
            return np.where(np.isnan(test_losses), np.inf, test_losses).tolist()
        return np.full(test_losses.shape, None).tolist()

    def _figures(self) -> dict[str, jax.Array]:
        return figures_at(self.task, self.task.init(jax.random.key(0)), 0)


def _times(curve: np.ndarray, goal: float) -> np.ndarray:
    """Return the share of the steps after which a run first has the goal; inf for never."""
    reached = curve <= goal  # nan, where a run diverged, is never below it
    return np.where(reached.any(axis=-1), (1.0 + reached.argmax(axis=-1)) / CHECKPOINTS, np.inf)


def _train(
    task: Task,
    factory: Factory,
    contender: Contender,
    settings: Any,
    rate: jax.Array,
    seed: jax.Array,
    steps: jax.Array,
    watch: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return losses before a run of any length, at its `CHECKPOINTS`, float[C], and held-out."""
    init_key, data_key = jax.random.split(jax.random.key(seed))
    params = task.init(init_key)
    run = Run(rate, steps, seed)
    tx = contender._replace(settings=settings).transformation(factory, run)

    def step(t: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        return train_step(task, tx, jax.random.fold_in(data_key, t), t, *carry)[:2]

    def stretch(run: tuple[Any, Any], index: jax.Array) -> tuple[Any, jax.Array]:
        start, end = (steps * i // CHECKPOINTS for i in (index, index + 1))
        run = jax.lax.fori_loop(start, end, step, run)
        # The sweep is judged by its end alone: of a short run, evaluating is the larger part.
        is_wanted = watch | (index == CHECKPOINTS - 1)
        return run, jax.lax.cond(is_wanted, partial(_evaluate, task, contender), _skip, run, end)

    _, curve = jax.lax.scan(stretch, (params, tx.init(params)), jnp.arange(CHECKPOINTS))
    return figures_at(task, params, 0)["loss"], curve[:, 0], curve[-1, 1]


def _evaluate(task: Task, contender: Contender, run: tuple[Any, Any], step: jax.Array) -> jax.Array:
    """Return loss and loss on held-out data at a step, float32[2]."""
    params, opt_state = run
    if contender.params is not None:
        params = contender.params(opt_state, params)
    figures = figures_at(task, params, step)
    pair = figures["loss"], figures.get("test_loss", jnp.nan)
    return jnp.stack([jnp.asarray(x, jnp.float32) for x in pair])


def _skip(run: tuple[Any, Any], step: jax.Array) -> jax.Array:
    del run, step
    return jnp.full(2, jnp.nan, jnp.float32)
