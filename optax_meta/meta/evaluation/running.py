"""One training run under a method, timed."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_meta.meta.evaluation.methods import Method, Optimizer
from optax_meta.meta.tasks import Task, figures_at, train_step
from optax_meta.recording import Record, record
from optax_meta.transform import control_hyperparams


class Training(NamedTuple):
    """One run; T steps.

    Attributes:
        initial: what `figures_at` gives before the first step, float32[] by name.
        final: the same after the last step.
        losses: training loss of each step on its batch, float32[T].
        records: a `Record` with leading axis [T]; None without a controller.
    """

    initial: dict[str, jax.Array]
    final: dict[str, jax.Array]
    losses: jax.Array
    records: Record | None


class Outcome(NamedTuple):
    """A run and its wall-clock time."""

    training: Training
    seconds: float

    @property
    def figures(self) -> str:
        """What it came to, for those who wait."""
        loss, speed = float(self.training.final["loss"]), self.training.losses.size / self.seconds
        return f"loss {loss:.3g}, {speed:,.0f} steps/s"


def train(
    task: Task,
    optimizer: Optimizer,
    learning_rate: float,
    steps: int,
    method: Method | None,
    seed: jax.Array,
) -> Training:
    """Run one training as a single scan.

    Args:
        task: what is trained.
        optimizer: the inner factory.
        learning_rate: the starting rate.
        steps: length of the run.
        method: what steers it; None for the optimizer as it is.
        seed: of the run, uint32[].
    """
    init_key, data_key = jax.random.split(jax.random.key(seed))
    params = task.init(init_key)
    if method is None:
        tx = optax.with_extra_args_support(optimizer(learning_rate=learning_rate))
    else:
        controller = method(steps, seed)
        tx = control_hyperparams(optimizer, controller)(learning_rate=learning_rate)

    # One scan, as fast training loops are: a Python loop would time its own dispatch.
    def step(carry: tuple[Any, Any], at: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
        params, opt_state, loss = train_step(task, tx, *at, *carry)
        row = None if method is None else record(opt_state)
        return (params, opt_state), (loss, row)

    at = (jax.random.split(data_key, steps), jnp.arange(steps))
    (final, _), (losses, rows) = jax.lax.scan(step, (params, tx.init(params)), at)
    return Training(figures_at(task, params, 0), figures_at(task, final, steps), losses, rows)


def timed(runner: Callable[[jax.Array], Training], seed: jax.Array) -> Outcome:
    """Run what is compiled already, and wait for it.

    Args:
        runner: `train` of one method.
        seed: of the run, uint32[].
    """
    start = time.perf_counter()
    training = jax.block_until_ready(runner(seed))  # JAX returns before it has computed
    return Outcome(training, time.perf_counter() - start)
