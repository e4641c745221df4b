"""A policy tuned to one task: many short runs of it, and what they tell, kept as they end."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from optax_meta import checkpoints, writers
from optax_meta.checkpoints import as_policy
from optax_meta.checks import check_seed, check_whole
from optax_meta.meta.across import SPAN, AcrossRuns, AcrossState, across_runs
from optax_meta.meta.episodes import rollout
from optax_meta.meta.evaluation.methods import Optimizer, name_of, steered_by
from optax_meta.meta.folder import claim
from optax_meta.meta.tasks import Task
from optax_meta.meta.versions import library_versions
from optax_meta.metrics import USUAL_RATE
from optax_meta.policies import Policy

AT_ONCE = 4
"""Runs of a group: two draws and their mirror images, on one seed."""
Progress = Callable[[str, int, int], None]


class Tuned(NamedTuple):
    """What tuning came to.

    Attributes:
        policy: the tuned one.
        before: held-out losses of the policy that it began with, on seeds of their own, float[S].
        after: those of the tuned one on the same seeds.
        path: the file that it was written to.
    """

    policy: Policy
    before: np.ndarray
    after: np.ndarray
    path: Path


def fine_tune(
    task: Task,
    folder: Path,
    policy: Policy | str = "any-lr-v2",
    *,
    optimizer: Optimizer = optax.adamw,
    steps: int = 500,
    groups: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tuned:
    """Tune a policy to a task by training the task again and again.

    Each group is `AT_ONCE` runs on one seed, each under a policy that is shifted by a little; how
    they end teaches `across_runs`. A last group or two tells what it brought, on other seeds.

    Args:
        task: what is trained; judged by `task.evaluate(params)["loss"]`, which should be held out.
        folder: holds `settings.json`, `log.jsonl` with a row a group, and at the end
            `TASK.policy`. What was run before is not run again.
        policy: what to start from, as for `across_runs`.
        optimizer: the inner factory; takes a `learning_rate`.
        steps: length of each run, ≥ 1.
        groups: of runs, ≥ 1.
        seed: of everything that is drawn.
        progress: called with (what is done next, groups done, groups in all).

    Returns:
        A `Tuned`.

    Raises:
        ValueError: an argument is out of range, the policy cannot be tuned, or the folder holds
            another run or cannot be written to.

    Example:
        >>> from pathlib import Path
        >>> from optax_meta.meta.tuning import fine_tune
        >>> task = optax_meta.tasks.quadratic(dim=2)
        >>> with tempfile.TemporaryDirectory() as name:
        ...     tuned = fine_tune(task, Path(name), steps=20, groups=1)
        >>> tuned.path.name
        'quadratic.policy'
    """
    check_seed(seed)
    given, policy = policy, as_policy(policy)
    steps, groups = int(check_whole("steps", steps)), int(check_whole("groups", groups))
    steered_by(optimizer)
    if not task.name or Path(task.name).name != task.name:
        raise ValueError(f"the name of the task must be that of a file, got {task.name!r}")
    runs = across_runs(policy)
    settings = {"task": task.name, "optimizer": name_of(optimizer), "steps": steps, "seed": seed}
    name = "given" if isinstance(given, Policy) else str(given)
    settings |= {"policy": f"{name} ({checkpoints.digest(policy)[:12]})", "span": SPAN}
    claim(folder, settings, write=True)
    # What is asked for differs from this one by its parameters alone.
    policy = runs.policy(runs.init(0))
    trained = jax.jit(partial(_trained, policy, task, optimizer, steps, seed))
    show = progress or (lambda *_: None)
    state = _learned(runs, folder, groups, trained, show)
    show("checking it on other seeds", groups, groups)
    tuned = runs.policy(state)
    # Seeds from the top, which no group has.
    losses = [trained(_flat([policy, tuned]), jnp.uint32(2**32 - 1 - i)) for i in range(AT_ONCE)]
    before, after = np.asarray(losses).T
    path = folder / f"{task.name}.policy"
    notes = {**settings, "runs": int(state.num_runs), **runs.row(state)}
    notes |= {"held-out loss before": before.tolist(), "held-out loss after": after.tolist()}
    notes |= {"description": task.description, "versions": library_versions()}
    checkpoints.save_policy(tuned, path, notes=notes)
    return Tuned(tuned, before, after, path)


def _learned(
    runs: AcrossRuns,
    folder: Path,
    groups: int,
    trained: Callable[[jax.Array, jax.Array], jax.Array],
    show: Progress,
) -> AcrossState:
    """Return what all groups told; those of an earlier call are read from the log."""
    path = folder / "log.jsonl"
    # A first row that was cut off is none, and is written again.
    rows = writers.Follower(path).read() if path.exists() else []
    logged = {row["update"]: row["losses"] for row in rows}
    state = runs.init(0)
    with writers.jsonl(path, counter="update") as log:
        for group in range(groups):
            asked = [runs.ask(state, index) for index in range(AT_ONCE)]
            show(f"group {group + 1}", group, groups)
            known = logged.get((group + 1) * AT_ONCE)
            if known is None:
                losses = np.asarray(trained(_flat(asked), jnp.uint32(group)))
            else:
                losses = np.array([np.nan if loss is None else loss for loss in known])
            state = runs.tell_group(state, asked, losses)
            if known is None:
                log.put([_row(runs, state, losses)])
    return state


def _row(runs: AcrossRuns, state: AcrossState, losses: np.ndarray) -> dict[str, Any]:
    # JSON has no infinity, and a run that diverged tells no more by how far.
    finite = [float(loss) if np.isfinite(loss) else None for loss in losses]
    known = [loss for loss in finite if loss is not None]
    means = {"loss": float(np.mean(known))} if known else {}
    return {**runs.row(state), **means, "losses": finite}


def _flat(policies: Sequence[Policy]) -> jax.Array:
    return jnp.stack([ravel_pytree(policy.params)[0] for policy in policies])


def _trained(
    policy: Policy,
    task: Task,
    optimizer: Optimizer,
    steps: int,
    seed: int,
    flat: jax.Array,
    number: jax.Array,
) -> jax.Array:
    """Return how the runs of a group end, float32[K]; all but the policy is theirs in common."""
    _, unravel = ravel_pytree(policy.params)
    key = jax.random.fold_in(jax.random.key(seed), number)

    def loss(params: jax.Array) -> jax.Array:
        made = policy._replace(params=unravel(params))
        run = rollout(
            made, task, key, total_steps=steps, optimizer=optimizer, learning_rate=USUAL_RATE
        )
        return run.final["loss"]

    return jax.vmap(loss)(flat)
