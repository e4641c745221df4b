"""A meta-trainer run on disk: checkpoints, logs, and a run that goes on where it was killed.

Needs the extra `meta`: Orbax for checkpoints, tensorboardX for logs that TensorBoard reads.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from optax_meta import actions, observations, writers
from optax_meta.checkpoints import load_policy
from optax_meta.checks import check_whole
from optax_meta.controllers.reinforce import LEVELS
from optax_meta.controllers.wrapping import EVERY_GOOD_RUN
from optax_meta.meta.families import FAMILIES, OVERFITTED
from optax_meta.meta.tasks import TaskFamily
from optax_meta.meta.training import MetaState, MetaTrainer, meta_trainer
from optax_meta.policies import Policy, init_policy
from optax_meta.writers import Writer

_DECISIONS: dict[str, Any] = {"dense_steps": 20, "num_decisions": 100, "hidden_sizes": ()}
DECAY_LEVELS = tuple(2.0 ** (3 * k / 4) for k in range(-8, 9))
"""Levels of a weight decay: the best one differs a hundredfold."""
LIKE_REAL = (
    *("tanh", "deep", "wide", "plain", "narrow", "heavy", "quadratic", "product"),
    *("rare", "transformer", "few-relu", "few-deep"),
)
"""Families that policies learn from, by name; most do not reach the noise of their data early,
where it would pay to let rates fall early, which in real networks costs."""


def any_lr(
    mesh: Mesh | None = None, *, families: Sequence[TaskFamily] = (), **options: Any
) -> MetaTrainer:
    """Build the meta-trainer that `any-lr-v2` comes from: the learning rate of any optimizer.

    The policy is a linear map from what it sees to the level of the rate relative to the distance
    rule, which it follows at first. Few numbers, since a run tells one number: how it ended.

    Args:
        mesh: as for `optax_meta.meta_trainer`.
        families: further ones, such as the real networks that `benchmarks/train_any_lr.py` adds.
        **options: replace what it is built with, such as `learner="reinforce"`.

    Returns:
        A `MetaTrainer`.

    Example:
        >>> trainer = optax_meta.meta.runs.any_lr(groups=2, rollouts=2)
        >>> trainer.policy(trainer.init(0)).action_space.num_actions
        17
    """
    policy = init_policy(
        jax.random.key(0),
        encoder=observations.scale_free(),
        action_space=actions.ordered(actions.level("learning_rate", LEVELS)),
        wrappers=EVERY_GOOD_RUN,
        **_DECISIONS,
    )
    every = [*families, *(make() for name, make in _EVERY.items() if name in LIKE_REAL)]
    # By the final loss alone: training loss as reward would favour rates that rise and fall early.
    defaults = {
        "learner": "evolution",
        "horizons": (150, 1500),
        "shaped_updates": 0,
        "families_per_update": 7,
        "sigma": 0.07,
        "policy_learning_rate": 0.015,
    }
    return meta_trainer(every, policy, mesh=mesh, **{**defaults, **options})


def adamw_lr_wd(mesh: Mesh | None = None, **options: Any) -> MetaTrainer:
    """Build the meta-trainer of `adamw-lr-wd-v2`: learning rate and weight decay of AdamW.

    It starts from the shipped `any-lr-v2`, which chooses the rate already, and learns from the loss
    on held-out data alone. Its decay starts where rate × decay × steps is one.

    Args:
        mesh: as for `optax_meta.meta_trainer`.
        **options: replace what it is built with.

    Returns:
        A `MetaTrainer` over all of `families.OVERFITTED`.

    Example:
        >>> trainer = optax_meta.meta.runs.adamw_lr_wd(groups=2, rollouts=2)
        >>> trainer.policy(trainer.init(0)).action_space.num_actions
        289
    """
    source = load_policy("any-lr-v2")
    decay = actions.level("weight_decay", DECAY_LEVELS)
    fresh = init_policy(
        jax.random.key(0),
        encoder=observations.scale_free(weight_decay=True),
        action_space=actions.ordered(*source.action_space.moves, decay),
        wrappers={**source.wrappers, "calibrated": {"span": 4.0, "total_decay": 1.0}},
        **_DECISIONS,
    )
    policy = fresh._replace(params=_widened(source.params, fresh.params))
    made = [make() for make in OVERFITTED.values()]
    # None of it here: training loss does not foretell the loss on fresh data.
    defaults = {"learner": "evolution", "shaped_updates": 0, "sigma": 0.07}
    defaults |= {"policy_learning_rate": 0.015}
    return meta_trainer(made, policy, mesh=mesh, **{**defaults, **options})


def _widened(source: Any, target: Any) -> Any:
    """Put smaller arrays in the first rows and columns of larger ones, which are zero elsewhere."""

    def widen(small: jax.Array, large: jax.Array) -> jax.Array:
        # Further inputs and outputs must change nothing at first.
        return jnp.zeros_like(large).at[tuple(slice(size) for size in small.shape)].set(small)

    return jax.tree.map(widen, source, target)


_EVERY = {**FAMILIES, **OVERFITTED}

RECIPES: Mapping[str, Callable[..., MetaTrainer]] = {
    "any-lr-v2": any_lr,
    "adamw-lr-wd-v2": adamw_lr_wd,
}
"""How the shipped policies are made, by name: (mesh, **options) → trainer."""


def train(
    trainer: MetaTrainer,
    folder: Path,
    *,
    updates: int,
    seed: int = 0,
    save_seconds: float = 120.0,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> Policy:
    """Run a meta-trainer up to a number of updates, from the folder's latest checkpoint if any.

    A run that was killed at any moment, SIGKILL included, and started again ends at the same bits.

    Args:
        trainer: from `optax_meta.meta_trainer`.
        folder: holds `checkpoints/`, `log.jsonl` with one row an update, and `events…`, the same
            rows for TensorBoard where tensorboardX is installed.
        updates: of the policy, counted from the very first, ≥ 1.
        seed: of everything that is drawn; a run goes on with that of its checkpoint.
        save_seconds: least time between two checkpoints; there is always one at the end.
        progress: called with (updates done, what the last one reported) after each.

    Returns:
        The policy.

    Raises:
        ValueError: `updates` is below 1, or below those of the folder's latest checkpoint.
    """
    import orbax.checkpoint as ocp

    check_whole("updates", updates)
    absolute = folder.absolute()  # as Orbax wants it
    absolute.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(absolute / "checkpoints", options=options) as manager:
        latest = manager.latest_step() or 0
        if latest > updates:
            raise ValueError(
                f"`{folder}` holds {latest} updates, more than the {updates} asked for: "
                "ask for as many, or choose another folder"
            )
        state = begin = trainer.init(seed)
        if latest:
            state = begin = manager.restore(latest, args=ocp.args.StandardRestore(begin))
        saved = time.monotonic()
        with _log(absolute) as log:
            for state, row in _updates(trainer, begin, updates):
                done = int(state.step)
                log.put([{"update": done, **row}])
                if progress is not None:
                    progress(done, row)
                if _agree(time.monotonic() - saved > save_seconds) or done == updates:
                    manager.save(done, args=ocp.args.StandardSave(state))
                    saved = time.monotonic()
    return trainer.policy(state)


def _updates(
    trainer: MetaTrainer, state: MetaState, updates: int
) -> Iterator[tuple[MetaState, dict[str, float]]]:
    """Yield state and what is reported after each update up to a number of them."""
    start, steps_before = time.monotonic(), float(state.num_inner_steps)
    while int(state.step) < updates:
        state, info = trainer.update(state)
        num_steps, seconds = float(state.num_inner_steps), time.monotonic() - start
        info |= {"inner_steps": num_steps}
        info |= {"inner_steps_per_second": (num_steps - steps_before) / seconds}
        yield state, info


def _agree(is_due: bool) -> bool:  # noqa: FBT001
    """Return what the first process says: clocks differ, and all must save together or none."""
    if jax.process_count() == 1:
        return is_due
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.bool_(is_due)))


def _log(folder: Path) -> Writer:
    file = writers.jsonl(folder / "log.jsonl", counter="update")
    try:
        return writers.tee(file, writers.tensorboard(folder, counter="update"))
    except ImportError:
        return file
