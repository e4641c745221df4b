"""One training run under a policy, and what there is to learn from it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from optax_meta.checks import check_whole
from optax_meta.controllers.learned import learned
from optax_meta.meta.tasks import Task, figures_at, train_step
from optax_meta.policies import Policy
from optax_meta.recording import record
from optax_meta.tracking import Statistics
from optax_meta.transform import control_hyperparams


class Trajectory(NamedTuple):
    """The decisions of one run, D at most.

    Attributes:
        step: at which the decision was taken, int32[D].
        observation: what the policy saw, float32[D, features].
        action: what it chose, int32[D].
        log_prob: log π(action|observation), float32[D].
        value: mean training loss of the steps until the next decision, float32[D]; finite. Where
            the next one is a step away, that is the loss before this one acts.
        learning_rate: used until the next decision, float32[D].
        mask: 1 for a decision, 0 for padding behind the last one, float32[D].
        initial: what `Task.evaluate` gives before the first step, float32[] by name.
        final: the same after the last step; may not be finite.

    Example:
        >>> policy = optax_meta.init_policy(jax.random.key(0))
        >>> task = optax_meta.tasks.quadratic(dim=3)
        >>> trajectory = optax_meta.rollout(policy, task, jax.random.key(1), total_steps=50)
        >>> trajectory.action.shape
        (5,)
    """

    step: jax.Array
    observation: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    learning_rate: jax.Array
    mask: jax.Array
    initial: dict[str, jax.Array]
    final: dict[str, jax.Array]


def rollout(
    policy: Policy,
    task: Task,
    key: jax.Array,
    *,
    total_steps: Any,
    optimizer: Callable[..., optax.GradientTransformation] = optax.adamw,
    learning_rate: jax.typing.ArrayLike = 1e-3,
    seed: jax.typing.ArrayLike | None = None,
    horizon_is_known: Any = True,
    max_decisions: int | None = None,
) -> Trajectory:
    """Train a task once under a policy.

    Runs the transformation that users run, `control_hyperparams(optimizer, learned(policy))`, and
    reads the decisions from its state. A pure function: `jax.vmap` it over keys and seeds.

    Args:
        policy: what decides; `_replace(params=…)` to differentiate or to search.
        task: what is trained.
        key: of initial parameters and batches.
        total_steps: length of the run, ≥ 1; may be traced if `max_decisions` is given, so that one
            compilation serves every length.
        optimizer: the inner factory.
        learning_rate: the starting rate, float32[].
        seed: of the actions, uint32[]; None for the most probable one.
        horizon_is_known: whether the policy knows the length of the run; bool[].
        max_decisions: D; None to count the decisions of `total_steps`. Of a run with more of them
            these are the first.

    Returns:
        A `Trajectory`.

    Raises:
        ValueError: `total_steps` is no whole number ≥ 1, or it or `horizon_is_known` is traced
            without `max_decisions`.

    Example:
        >>> policy = optax_meta.init_policy(jax.random.key(0))
        >>> task = optax_meta.tasks.quadratic(dim=3)
        >>> trajectory = optax_meta.rollout(policy, task, jax.random.key(1), total_steps=50)
        >>> bool(trajectory.final["loss"] < trajectory.initial["loss"])
        True
    """
    total_steps = check_whole("total_steps", total_steps)
    is_traced = any(isinstance(x, Tracer) for x in (total_steps, horizon_is_known))
    if not is_traced:
        total_steps, horizon_is_known = int(total_steps), bool(horizon_is_known)
    elif max_decisions is None:
        raise ValueError(
            "a traced `total_steps` or `horizon_is_known` needs `max_decisions`, the length of the "
            "arrays"
        )
    known: Any = jnp.where(horizon_is_known, total_steps, 0)
    if not is_traced:
        known = total_steps if horizon_is_known else None
    controller = learned(policy, total_steps=known, seed=seed)
    if max_decisions is None:
        max_decisions = controller.num_decisions(total_steps)
    tx = control_hyperparams(optimizer, controller)(learning_rate=learning_rate)
    init_key, data_key = jax.random.split(key)
    params = task.init(init_key)
    initial = figures_at(task, params, 0)

    def step(t: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        return train_step(task, tx, jax.random.fold_in(data_key, t), t, *carry)[:2]

    def decide(carry: tuple[jax.Array, ...]) -> tuple[Any, ...]:
        position, t, run, rows = carry
        end = jnp.minimum(controller.next_due(t), total_steps)
        run = jax.lax.fori_loop(t, end, step, run)
        rows = jax.tree.map(
            lambda xs, x: xs.at[position].set(x, mode="drop"), rows, _row(t, run[1])
        )
        return position + 1, end, run, rows

    start = (params, tx.init(params))
    shapes = jax.eval_shape(_row, jnp.int32(0), start[1])
    rows = jax.tree.map(lambda x: jnp.zeros((max_decisions, *x.shape), x.dtype), shapes)
    count, _, (params, _), rows = jax.lax.while_loop(
        lambda carry: carry[1] < total_steps,
        decide,
        (jnp.int32(0), jnp.int32(0), start, rows),
    )
    mask = (jnp.arange(max_decisions) < count).astype(jnp.float32)
    final = figures_at(task, params, total_steps)
    return Trajectory(**rows, mask=mask, initial=initial, final=final)


def _row(step: jax.Array, opt_state: Any) -> dict[str, jax.Array]:
    row = record(opt_state)
    assert row.decision is not None  # noqa: S101 - `learned` keeps one
    return {
        "step": step,
        "observation": row.decision.observation,
        "action": row.decision.action,
        "log_prob": row.decision.log_prob,
        "value": Statistics.unpack(opt_state.statistics).means.value,
        "learning_rate": row.hyperparams["learning_rate"].astype(jnp.float32),
    }
