"""Runs of several policies at once in one program, and how their losses are told."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from frozen import Settings, with_settings
from protocol import OPTIMIZERS

import optax_meta
from optax_meta import protocol
from optax_meta.meta.tasks import Task
from optax_meta.policies import Policy

NAMES = ("adamw", "momentum", "lion")


def runs(
    policy: Policy,
    task: Task,
    optimizer: str,
    steps: int,
    seeds: int,
    starts: tuple[float, ...] = (1e-3,),
) -> Callable[[Settings], optax_meta.Trajectory]:
    """Return jitted stacked `Settings` → trajectories, leading axes [K, starts, seeds]."""

    def one(settings: Settings, start: jax.Array, key: jax.Array) -> optax_meta.Trajectory:
        return optax_meta.rollout(
            with_settings(policy, settings),
            task,
            key,
            total_steps=steps,
            optimizer=OPTIMIZERS[optimizer],
            learning_rate=start,
        )

    keys = jax.random.split(jax.random.key(11), seeds)
    over_seeds = jax.vmap(one, (None, None, 0))
    every = jax.vmap(jax.vmap(over_seeds, (None, 0, None)), (0, None, None))
    # Much is compiled for short runs.
    quickly = {"xla_backend_optimization_level": 1}
    return jax.jit(
        lambda settings: every(settings, jnp.float32(starts), keys), compiler_options=quickly
    )


def stacked(*trees: Any) -> Any:
    """Stack what several policies have in the same places."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *trees)


def log_losses(trajectories: optax_meta.Trajectory, floor: float = 0.0) -> np.ndarray:
    """Return logs of final losses above `floor`; a diverged run counts one nat above its start."""
    final, initial = (np.asarray(x["loss"], float) - floor for x in trajectories[-1:-3:-1])
    final = np.where(final < 1e-6 * initial, 1e-6 * initial, final)
    return np.log(np.where(np.isfinite(final), np.minimum(final, np.e * initial), np.e * initial))


def interval(logs: np.ndarray) -> list[float]:
    """Return the bootstrap interval of the geometric mean over seeds, from logs, float[C, S]."""
    means = [np.exp(np.mean(drawn)) for drawn in protocol.resampled([*logs[:, None]])]
    return np.percentile(means, [2.5, 97.5]).tolist()
