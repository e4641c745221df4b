"""Policies learned over thousands of training runs at once.

Every run is one `rollout`: the same transformation that users run, under a scan, vectorized over
tasks and over several rollouts of each task. Runs of a group share the task, initial parameters,
batches, optimizer and starting rate, and differ in the policy's random choices alone, so that
their mean is a baseline without bias and most noise cancels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from optax_meta.checks import check_seed
from optax_meta.controllers.learned import learned
from optax_meta.meta import learning
from optax_meta.meta.batches import Batch, run_batch
from optax_meta.meta.inner_optimizers import OPTIMIZERS
from optax_meta.meta.settings import Learner, Setting
from optax_meta.meta.tasks import TaskFamily
from optax_meta.policies import Policy

_AVERAGED_UPDATES = 50.0
_FIGURES = ("fall", "spread")
"""What is reported of each batch."""
_Arrays = TypeVar("_Arrays")


class MetaState(NamedTuple):
    """State of a meta-trainer; arrays only.

    Attributes:
        step: updates of the policy so far, int32[].
        seed: of everything that is drawn, uint32[].
        policy_params: flat, float32[P].
        mean_params: their average over about the last fifty updates, float32[P].
        learner_state: of the policy's own optimizer.
        num_inner_steps: inner training steps taken so far, float32[].
    """

    step: jax.Array
    seed: jax.Array
    policy_params: jax.Array
    mean_params: jax.Array
    learner_state: optax.OptState
    num_inner_steps: jax.Array


class MetaTrainer(NamedTuple):
    """A pair of functions that learn a policy.

    Attributes:
        init: (seed) → `MetaState`.
        update: (state) → (state, info): runs one batch of every chosen family and improves the
            policy once; `info` is a dict of floats. The state alone decides what is drawn, so a
            restored run is the same run.
        policy: (state) → `Policy` with the average of the parameters learned so far, whose score
            is steadier than that of any one update's.
        description: what it learns from and how, JSON values, for the policy's card.
    """

    init: Callable[[int], MetaState]
    update: Callable[[MetaState], tuple[MetaState, dict[str, float]]]
    policy: Callable[[MetaState], Policy]
    description: Mapping[str, Any]


def meta_trainer(
    families: Sequence[TaskFamily],
    policy: Policy,
    *,
    optimizers: Sequence[str] = tuple(OPTIMIZERS),
    learning_rates: tuple[float, float] = (1e-6, 10.0),
    horizons: tuple[int, int] = (100, 2000),
    unknown_horizons: float = 0.25,
    groups: int = 16,
    rollouts: int = 8,
    families_per_update: int = 4,
    weight_decays: tuple[float, float] = (1e-5, 1.0),
    discount: float = 0.98,
    shaped_updates: int | None = None,
    entropy_bonus: float = 3e-3,
    epochs: int = 1,
    learner: Learner = "reinforce",
    sigma: float = 0.05,
    policy_learning_rate: float = 2e-3,
    vectorized: bool = True,
    mesh: jax.sharding.Mesh | None = None,
) -> MetaTrainer:
    """Build a meta-trainer.

    Each update draws, for every chosen family, one horizon and `groups` tasks, each with its own
    inner optimizer, decay rates and starting rate; every task is run `rollouts` times. "reinforce"
    samples actions and follows -Σ log π(aₜ|sₜ)·Aₜ, where Aₜ is the return less that of the group,
    over the group's spread; the rewards are falls of the log-loss that add up to that between the
    first and the last. "evolution" perturbs the policy's parameters in antithetic pairs instead,
    others for each task, draws actions with the same random numbers in all runs of a group, and
    follows the ranks of their final log-losses.

    Args:
        families: what to learn from.
        policy: what to start from.
        optimizers: names out of `OPTIMIZERS`; drawn evenly. AdamW takes their place under a policy
            that steers its weight decay.
        learning_rates: range of the starting rate, drawn log-uniformly.
        horizons: range of the run's length, drawn log-uniformly.
        unknown_horizons: share of batches in which the policy does not know the length.
        groups: tasks of each family in an update; a multiple of the mesh's size.
        rollouts: runs of each task, ≥ 2, even for "evolution".
        families_per_update: how many families take part in an update.
        weight_decays: range of the starting weight decay, drawn log-uniformly; for a policy that
            steers it.
        discount: γ of the returns, per decision.
        shaped_updates: in this many first updates the training loss between decisions counts, which
            teaches fast but favours rates that fall too early; after them, only the final loss
            does. None for all updates; 0 where the final loss is taken on held-out data, which
            training loss does not foretell.
        entropy_bonus: as in `reinforce`.
        epochs: gradient steps on each batch; with more than one, ratios are clipped as in PPO.
        learner: "reinforce" or "evolution".
        sigma: standard deviation of the parameters' perturbation, for "evolution".
        policy_learning_rate: of the policy's Adam.
        vectorized: whether the runs of a batch go on at once, as small ones should; False for one
            after another, where each fills the device by itself.
        mesh: `jax.sharding.Mesh` with one axis over which tasks are spread; None for one device.

    Returns:
        A `MetaTrainer`.

    Raises:
        ValueError: an argument is out of range.

    Source: averaged parameters, B. Polyak and A. Juditsky, "Acceleration of Stochastic
    Approximation by Averaging", https://doi.org/10.1137/0330046; group baselines without a critic,
    Z. Shao et al., https://arxiv.org/abs/2402.03300; clipped ratios,
    J. Schulman et al., https://arxiv.org/abs/1707.06347; evolution with ranks and antithetic pairs,
    T. Salimans et al., https://arxiv.org/abs/1703.03864.

    Example:
        >>> space = optax_meta.actions.learning_rate()
        >>> policy = optax_meta.init_policy(jax.random.key(0), action_space=space)
        >>> sizes = {"groups": 2, "rollouts": 2, "families_per_update": 1, "horizons": (10, 20)}
        >>> trainer = optax_meta.meta_trainer(
        ...     [optax_meta.families.quadratics(dim=4)], policy, optimizers=["sgd"], **sizes
        ... )
        >>> state, info = trainer.update(trainer.init(0))
        >>> int(state.step)
        1
    """
    setting = Setting(**locals()).checked()  # every argument, under its own name
    _, unravel = ravel_pytree(setting.policy.params)
    return MetaTrainer(
        init=partial(_init, setting),
        update=partial(_update, setting, _compiled(setting)),
        policy=lambda state: policy._replace(params=unravel(state.mean_params)),
        description=_description(setting, policy),
    )


def _description(setting: Setting, policy: Policy) -> dict[str, Any]:
    wrappers = {name: dict(options) for name, options in policy.wrappers.items()}
    return {**setting.described(), "wrappers": wrappers}


def _max_decisions(setting: Setting) -> int:
    """Return how many decisions the longest run takes, whether its length is known or not."""
    (_, longest), unknown = setting.horizons, learned(setting.policy)
    spaced = max(-(-longest // unknown.decision_interval), setting.policy.num_decisions)
    return unknown.dense_steps + spaced + 1


class _Compiled(NamedTuple):
    """The jitted functions: one for each family by name, and the learner's."""

    runs: Mapping[str, Callable[..., Batch]]
    learn: Callable[..., tuple[Any, ...]]
    average: Callable[..., jax.Array]


def _compiled(setting: Setting) -> _Compiled:
    everywhere = None  # what the learner returns is on every host
    if setting.mesh is not None:
        everywhere = jax.sharding.NamedSharding(setting.mesh, jax.sharding.PartitionSpec())
    run = partial(run_batch, setting, _max_decisions(setting))
    return _Compiled(
        runs={family.name: jax.jit(partial(run, family)) for family in setting.families},
        learn=jax.jit(partial(_learn, setting), out_shardings=everywhere),
        average=jax.jit(lambda new, old, share: share * new + (1.0 - share) * old),
    )


def _init(setting: Setting, seed: int) -> MetaState:
    check_seed(seed)
    flat, _ = ravel_pytree(setting.policy.params)
    state = MetaState(
        step=jnp.int32(0),
        seed=jnp.uint32(seed),
        policy_params=jnp.array(flat, jnp.float32, copy=True),
        mean_params=jnp.array(flat, jnp.float32, copy=True),
        learner_state=setting.policy_optimizer.init(flat),
        num_inner_steps=jnp.float32(0.0),
    )
    return _place(setting, state)


def _update(
    setting: Setting, compiled: _Compiled, state: MetaState
) -> tuple[MetaState, dict[str, float]]:
    step = int(state.step)
    draws = _draw(setting, state)
    batches = [_run(setting, compiled, state, draw) for draw in draws]
    figures = [getattr(batch, figure) for batch in batches for figure in _FIGURES]
    params, learner_state, learned, figures = compiled.learn(
        *_place(setting, (state.policy_params, state.learner_state)),
        [batch.lesson for batch in batches],
        figures,
    )
    drawn = [draw.family.name for draw in draws]
    _check_finite(step, drawn, learned["grad_norm"], figures)
    # A gradient of the policy is noisy, and its average over updates better than the last one.
    # Early on it spans the latter part of the updates so far.
    share = max(1.0 / _AVERAGED_UPDATES, 2.0 / (step + 2.0))
    num_steps = sum(draw.total_steps for draw in draws) * setting.groups * setting.rollouts
    names = [f"{figure}/{name}" for name in drawn for figure in _FIGURES]
    named = [*learned.items(), *zip(names, figures, strict=True)]
    return MetaState(
        *_place(setting, (state.step + 1, state.seed)),
        policy_params=params,
        mean_params=compiled.average(params, _place(setting, state.mean_params), share),
        learner_state=learner_state,
        num_inner_steps=_place(setting, state.num_inner_steps + num_steps),
    ), {name: float(value) for name, value in sorted(named)}


class _Draw(NamedTuple):
    """What is drawn for one batch.

    Attributes:
        family: what its tasks are drawn from.
        total_steps: length of all of its runs, so that none waits for another.
        horizon_is_known: whether the policy knows it, bool[].
        task_keys: data of one key a task, uint32[G, 2].
    """

    family: TaskFamily
    total_steps: int
    horizon_is_known: jax.Array
    task_keys: jax.Array


def _draw(setting: Setting, state: MetaState) -> list[_Draw]:
    key = jax.random.fold_in(jax.random.key(state.seed), state.step)
    choice_key, *keys = jax.random.split(key, 1 + setting.families_per_update)
    shape = (setting.families_per_update,)
    chosen = jax.random.choice(choice_key, len(setting.families), shape, replace=False)
    pairs = zip(chosen.tolist(), keys, strict=True)
    return [_draw_batch(setting, setting.families[index], key) for index, key in pairs]


def _draw_batch(setting: Setting, family: TaskFamily, key: jax.Array) -> _Draw:
    horizon_key, known_key, run_key = jax.random.split(key, 3)
    low, high = (math.log(horizon) for horizon in setting.horizons)
    # On the host, where steps are counted; runs get it traced, and one program serves all.
    steps = round(math.exp(float(jax.random.uniform(horizon_key, minval=low, maxval=high))))
    is_known = jax.random.uniform(known_key) >= setting.unknown_horizons
    # Data of keys, since `_place` goes through NumPy, which knows no typed keys.
    task_keys = jax.random.key_data(jax.random.split(run_key, setting.groups))
    return _Draw(family, steps, is_known, task_keys)


def _run(setting: Setting, compiled: _Compiled, state: MetaState, draw: _Draw) -> Batch:
    shaped = setting.shaped_updates
    is_shaped = jnp.bool_(shaped is None or int(state.step) < shaped)
    scalars = jnp.int32(draw.total_steps), draw.horizon_is_known, is_shaped
    return compiled.runs[draw.family.name](
        _place(setting, state.policy_params),
        _place(setting, draw.task_keys, sharded=True),
        *_place(setting, scalars),
    )


def _learn(
    setting: Setting,
    flat: jax.Array,
    learner_state: optax.OptState,
    lessons: list[Any],
    figures: list[jax.Array],
) -> tuple[jax.Array, optax.OptState, dict[str, jax.Array], list[jax.Array]]:
    """Improve the policy's parameters; return the learner's own figures, and pass on the others.

    These have no names here: another set of families must not be another program.
    """
    learn = learning.reinforce if setting.learner == "reinforce" else learning.follow
    return *learn(setting, flat, learner_state, lessons), figures


def _check_finite(
    step: int, drawn: Sequence[str], grad_norm: jax.Array, figures: Sequence[jax.Array]
) -> None:
    # The figures, too: evolution ranks what it is given, be it finite or not.
    if not np.all(np.isfinite([grad_norm, *figures])):
        raise ValueError(
            f"nothing finite to learn from at update {step}, on {', '.join(drawn)}: the loss of a "
            "family must be finite and positive before the first step, since its logarithm is what "
            "the policy is to lower"
        )


def _place(setting: Setting, arrays: _Arrays, *, sharded: bool = False) -> _Arrays:
    """Put arrays on the mesh: spread along the first axis, or a copy on each device."""
    if setting.mesh is None:
        return arrays
    spec = jax.sharding.PartitionSpec(*setting.mesh.axis_names[:1] if sharded else ())
    sharding = jax.sharding.NamedSharding(setting.mesh, spec)
    # From the host, where each process has the same values.
    return jax.device_put(jax.tree.map(np.asarray, arrays), sharding)
