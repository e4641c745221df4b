"""A snapshot of a run that was well, to go back to where one is lost."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_meta.base import Tree
from optax_meta.sampling import is_inexact

EVERY = 50
"""Steps between snapshots."""
RETURN_AFTER = 3
"""One step that leaps may be its batch; where so many in a row do it is the parameters."""


class Snapshot(NamedTuple):
    """What a run goes back to.

    Attributes:
        taken_at: step at which it was taken, int32[].
        params: before that step, whose loss had not leapt.
        inner_state: of the optimizer, likewise.
    """

    taken_at: jax.Array
    params: Tree
    inner_state: Tree

    @classmethod
    def first(cls, params: Tree, inner_state: Tree) -> "Snapshot":
        """Return that of the start, in arrays of its own, since others may be donated.

        Args:
            params: before the first step.
            inner_state: likewise.
        """
        params, inner_state = (
            jax.tree.map(lambda x: jnp.array(x, copy=True), tree) for tree in (params, inner_state)
        )
        return cls(jnp.int32(0), params, inner_state)


def renewed(
    snapshot: Snapshot, step: jax.Array, params: Tree, inner_state: Tree, streak: jax.Array
) -> Snapshot:
    """Return a snapshot of this step where one is due and the run is well, else the old one.

    Args:
        snapshot: the old one.
        step: from 0, int32[].
        params: before the step.
        inner_state: likewise.
        streak: steps in a row, this one included, that leapt or were not finite, float32[].
    """
    is_due = (streak == 0.0) & (step - snapshot.taken_at >= EVERY)
    now = Snapshot(step, params, inner_state)
    return jax.lax.cond(is_due, lambda _, now: now, lambda old, _: old, snapshot, now)


def gone_back(
    snapshot: Snapshot, streak: jax.Array, params: Tree, updates: Tree, inner_state: Tree
) -> tuple[Tree, Tree, jax.Array]:
    """Return updates that lead back to the snapshot, and its optimizer state, where it is time.

    Args:
        snapshot: of a step at which the run was well.
        streak: as for `renewed`.
        params: as they are.
        updates: what the optimizer made of this step.
        inner_state: the optimizer's after it.

    Returns:
        Updates, the optimizer's state, and whether they lead back, bool[]: to the last bit but one,
        since x + (y - x) is rounded, and nowhere from parameters that are not finite themselves,
        which `zero_nonfinite` sees to that finite ones do not become.
    """
    is_time = streak == RETURN_AFTER

    def back(saved: jax.Array, param: jax.Array, update: jax.Array) -> jax.Array:
        return (saved - param).astype(update.dtype) if is_inexact(param) else update

    returning = jax.lax.cond(
        is_time,
        lambda: (jax.tree.map(back, snapshot.params, params, updates), snapshot.inner_state),
        lambda: (updates, inner_state),
    )
    return *returning, is_time
