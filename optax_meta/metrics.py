"""What a controller sees of a training run, and how it is measured.

Everything here is float32, whatever the dtype of the parameters, and finite, whatever the run
does: a step whose loss, cost or gradient is not finite is counted and otherwise left out.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

SAMPLE_SIZE = 4096


class Metrics(NamedTuple):
    """The run since the last decision, as a controller sees it.

    Averages run over the finite steps of the window; a window without any repeats the last ones.

    Attributes:
        value: mean loss, float32[].
        cost: mean cost in the user's unit, float32[]; 0 where none is passed.
        grad_norm: mean global L2 norm of the gradients, float32[].
        alignment: mean cosine of the negative gradient and the last update, float32[] in [-1, 1];
            positive while the last update still points downhill. 0 unless the controller asks.
        num_steps: length of the window in steps, this one included, float32[].
        num_nonfinite: how many of these steps were not finite, float32[].
        step: index of this step, from 0, int32[].
        progress: share of the run that is over, float32[] in [0, 1]; -1 where no horizon is known.
    """

    value: jax.Array
    cost: jax.Array
    grad_norm: jax.Array
    alignment: jax.Array
    num_steps: jax.Array
    num_nonfinite: jax.Array
    step: jax.Array
    progress: jax.Array


class Statistics(NamedTuple):
    """All that is remembered between steps, each float32[]; stored as one packed vector.

    Attributes:
        value: mean over the finite steps of the window, as in `Metrics`; likewise the next three.
        cost: mean cost.
        grad_norm: mean gradient norm.
        alignment: mean alignment.
        num_steps: steps in the window; 0 right after a decision.
        num_nonfinite: steps of the window that were not finite.
        last_value: the latest finite loss; likewise the next three.
        last_cost: the latest finite cost.
        last_grad_norm: the latest finite gradient norm.
        last_alignment: the latest alignment.
        total_nonfinite: non-finite steps since `init` (exact up to 2²⁴).
    """

    value: Any = 0.0
    cost: Any = 0.0
    grad_norm: Any = 0.0
    alignment: Any = 0.0
    num_steps: Any = 0.0
    num_nonfinite: Any = 0.0
    last_value: Any = 0.0
    last_cost: Any = 0.0
    last_grad_norm: Any = 0.0
    last_alignment: Any = 0.0
    total_nonfinite: Any = 0.0

    def pack(self) -> jax.Array:
        """Return the statistics as float32[11]."""
        return jnp.stack([jnp.asarray(x, jnp.float32) for x in self])

    @classmethod
    def unpack(cls, packed: jax.Array) -> "Statistics":
        """Read float32[…, 11]; leading axes are batches."""
        return cls(*jnp.moveaxis(packed, -1, 0))


class Measurement(NamedTuple):
    """One step as measured, each float32[]; may be inf or nan."""

    value: jax.Array
    cost: jax.Array
    grad_norm: jax.Array
    alignment: jax.Array


def global_norm(tree: Any) -> jax.Array:
    """Return the L2 norm over all inexact leaves, accumulated in float32.

    Norms above 1.8e19 overflow to inf and so count as not finite.

    >>> print(global_norm({"a": jnp.array([3.0]), "b": jnp.array([4.0], jnp.bfloat16)}))
    5.0
    """
    return jnp.sqrt(sum((_squared_norm(leaf) for leaf in _inexact(tree)), jnp.float32(0.0)))


def sample(tree: Any, size: int = SAMPLE_SIZE) -> jax.Array:
    """Return a strided sample of about `size` coordinates, each leaf in proportion.

    Args:
        tree: arrays of any shape and inexact dtype; complex leaves give their real part.
        size: how many coordinates to aim for; a tree with fewer is taken whole.

    Returns:
        float32[k]; k depends on the shapes alone. At least one element: 0 for an empty tree.
    """
    leaves = _inexact(tree)
    stride = -(-sum(leaf.size for leaf in leaves) // size) or 1
    parts = [jnp.real(leaf).ravel()[::stride].astype(jnp.float32) for leaf in leaves]
    return jnp.concatenate(parts) if parts else jnp.zeros(1, jnp.float32)


def cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the cosine of the angle between float32[k] and float32[k]; 0 where one is zero.

    >>> print(cosine(jnp.array([1.0, 0.0]), jnp.array([1e30, 0.0])))
    1.0
    """
    x, y = _unit(x), _unit(y)
    return jnp.clip(jnp.dot(x, y), -1.0, 1.0)


def accumulate(statistics: Statistics, measured: Measurement) -> tuple[Statistics, jax.Array]:
    """Add one step to the window.

    The running mean mₙ = mₙ₋₁·(n-1)/n + x/n cannot overflow, unlike a sum.

    Args:
        statistics: what is remembered.
        measured: this step.

    Returns:
        The new statistics and whether every part of the measurement was finite, bool[].
    """
    finite = jnp.all(jnp.isfinite(jnp.stack(measured)))
    count = statistics.num_steps - statistics.num_nonfinite + 1.0

    def mean(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(finite, old * ((count - 1.0) / count) + new / count, old)

    means = [mean(old, new) for old, new in zip(statistics[:4], measured, strict=True)]
    last = [
        jnp.where(finite, new, old) for old, new in zip(statistics[6:10], measured, strict=True)
    ]
    bad = jnp.where(finite, 0.0, 1.0)
    counts = [statistics.num_steps + 1.0, statistics.num_nonfinite + bad]
    total = statistics.total_nonfinite + bad
    return Statistics._make([*means, *counts, *last, total]), finite


def _inexact(tree: Any) -> list[jax.Array]:
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def _squared_norm(leaf: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(leaf):
        return _squared_norm(leaf.real) + _squared_norm(leaf.imag)
    return jnp.sum(jnp.square(leaf.astype(jnp.float32)))


def _unit(x: jax.Array) -> jax.Array:
    scale = jnp.max(jnp.abs(x))
    x = x / jnp.where(scale > 0.0, scale, 1.0)
    return x / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(x))), 1.0)
