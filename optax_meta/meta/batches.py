"""A batch of runs of one family under a policy, and what there is to learn from it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from optax_meta.meta.episodes import Trajectory, rollout
from optax_meta.meta.inner_optimizers import draw_adamw, draw_optimizer, log_uniform
from optax_meta.meta.learning import Decisions, decisions_of, evolution_gradient, log_values
from optax_meta.meta.settings import Setting
from optax_meta.meta.tasks import TaskFamily

Run = Callable[[jax.Array, jax.Array, jax.Array], Trajectory]
"""(key of the task, seed of the actions, flat parameters of the policy) → one run."""


class Batch(NamedTuple):
    """What a batch came to.

    Attributes:
        lesson: the decisions of all runs, or what evolution estimates for the gradient, float32[P].
        fall: of the log-loss from the start to the end, mean over runs, float32[].
        spread: standard deviation of the final log-loss within a group, mean over groups,
            float32[].
    """

    lesson: Decisions | jax.Array
    fall: jax.Array
    spread: jax.Array


def run_batch(
    setting: Setting,
    max_decisions: int,
    family: TaskFamily,
    flat: jax.Array,
    task_keys: jax.Array,
    total_steps: jax.Array,
    horizon_is_known: jax.Array,
    is_shaped: jax.Array,
) -> Batch:
    """Run G tasks of one family, each R times.

    Args:
        setting: of the meta-trainer, which says R.
        max_decisions: of a run.
        family: what the tasks are drawn from.
        flat: parameters of the policy, float32[P].
        task_keys: data of one key a task, uint32[G, 2].
        total_steps: length of the runs, int32[].
        horizon_is_known: whether the policy knows it, bool[].
        is_shaped: whether the training loss between decisions counts as reward, bool[].
    """
    keys = jax.random.wrap_key_data(task_keys)
    # Written for one task and one run; the axes G and R are added by `_mapped`.
    run = partial(_run, setting, max_decisions, family, total_steps, horizon_is_known)
    if setting.learner == "reinforce":
        runs = _mapped(setting, partial(_sampled, setting, run, flat), keys)
        values = log_values(runs)
        lesson = decisions_of(runs, values, is_shaped, setting.discount)
    else:
        runs, moves = _mapped(setting, partial(_perturbed, setting, run, flat), keys)
        values = log_values(runs)
        lesson = evolution_gradient(values[..., -1], moves, setting.sigma)
    return Batch(
        lesson=lesson,
        fall=jnp.mean(values[..., 0] - values[..., -1]),
        spread=jnp.mean(jnp.std(values[..., -1], axis=1)),
    )


def _mapped(setting: Setting, run: Callable[[jax.Array], Any], xs: jax.Array) -> Any:
    """Apply along the first axis, all at once or one after another."""
    return jax.vmap(run)(xs) if setting.vectorized else jax.lax.map(run, xs)


def _run(
    setting: Setting,
    max_decisions: int,
    family: TaskFamily,
    total_steps: jax.Array,
    horizon_is_known: jax.Array,
    key: jax.Array,
    seed: jax.Array,
    flat: jax.Array,
) -> Trajectory:
    """Run one task once; all that is drawn but the actions comes from `key`."""
    task_key, optimizer_key, rate_key, run_key = jax.random.split(key, 4)
    _, unravel = ravel_pytree(setting.policy.params)
    if setting.steers_decay:
        optimizer = draw_adamw(setting.weight_decays, optimizer_key)
    else:
        optimizer = draw_optimizer(setting.optimizers, optimizer_key)
    return rollout(
        setting.policy._replace(params=unravel(flat)),
        family.build(family.sample(task_key)),
        run_key,
        total_steps=total_steps,
        optimizer=optimizer,
        learning_rate=log_uniform(rate_key, *setting.learning_rates),
        seed=seed,
        horizon_is_known=horizon_is_known,
        max_decisions=max_decisions,
    )


def _sampled(setting: Setting, run: Run, flat: jax.Array, key: jax.Array) -> Trajectory:
    """Run a task with several seeds of the actions; leading axis [R]."""
    run_key, seed_key = jax.random.split(key)
    seeds = jax.random.bits(seed_key, (setting.rollouts,))
    # All but the seed is shared, so that the mean over the group is a baseline without bias.
    return _mapped(setting, lambda seed: run(run_key, seed, flat), seeds)


def _perturbed(
    setting: Setting, run: Run, flat: jax.Array, key: jax.Array
) -> tuple[Trajectory, jax.Array]:
    """Run a task with several policies and one seed; also return how they moved, [R, P]."""
    run_key, seed_key, move_key = jax.random.split(key, 3)
    half = setting.sigma * jax.random.normal(move_key, (setting.rollouts // 2, flat.size))
    # Antithetic: what is even in the move cancels out of the estimate.
    moves = jnp.concatenate([half, -half])
    seed = jax.random.bits(seed_key)  # shared: runs differ by their policies alone
    return _mapped(setting, lambda move: run(run_key, seed, flat + move), moves), moves
