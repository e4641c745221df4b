"""What a controller sees of a training run, and how it is measured.

Everything here is float32, whatever the dtype of the parameters, and finite, whatever the run
does: a step whose loss, cost or gradient is not finite is counted and otherwise left out.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

SAMPLE_SIZE = 4096
SIZE_OF_ZEROS = 0.1
"""Root mean square that parameters count as having at least, where all of them start at zero."""


class Metrics(NamedTuple):
    """The run since the last decision, as a controller sees it.

    Averages run over the finite steps of the window; a window without any repeats the last ones.

    Attributes:
        value: mean loss, float32[].
        cost: mean cost in the user's unit, float32[]; 0 where none is passed.
        grad_norm: mean global L2 norm of the gradients, float32[].
        alignment: mean cosine of the negative gradient and the parameters' last move, float32[] in
            [-1, 1]; positive while that move still points downhill. 0 unless the controller asks;
            likewise the next three, which are estimated from samples, too.
        persistence: mean cosine of the parameters' last two moves, float32[] in [-1, 1]: how much
            further than a random walk they lead. Near the decay of the momentum where there is one.
        update_norm: mean L2 norm of the parameters' moves, float32[].
        param_norm: mean L2 norm of the parameters, float32[].
        value_change: mean absolute change of the loss from one step to the next, float32[].
        num_steps: length of the window in steps, this one included, float32[]; 0 where `decide` is
            called right after another decision.
        num_nonfinite: how many of these steps were not finite, float32[].
        num_moves: how many finite steps saw a move made under these hyperparameters, float32[]:
            those that alignment, persistence and update norm average. Where it is not above 0,
            these three repeat: 0 while an optimizer accumulates gradients, or where moves are too
            small to show; below 0 where there was no step under these hyperparameters yet, as at
            step 0 and soon after `decide`.
        step: index of this step, from 0, int32[].
        progress: share of the run that is over, float32[] in [0, 1]; -1 where no horizon is known.

    Example:
        >>> def halve_where_it_rises(metrics, last_value, hyperparams):
        ...     rises = metrics.value > last_value
        ...     rate = hyperparams["learning_rate"] * jnp.where(rises, 0.5, 1.0)
        ...     return {"learning_rate": rate}, metrics.value
        >>> controller = optax_meta.Controller(lambda hyperparams: jnp.inf, halve_where_it_rises)
    """

    value: jax.Array
    cost: jax.Array
    grad_norm: jax.Array
    alignment: jax.Array
    persistence: jax.Array
    update_norm: jax.Array
    param_norm: jax.Array
    value_change: jax.Array
    num_steps: jax.Array
    num_nonfinite: jax.Array
    num_moves: jax.Array
    step: jax.Array
    progress: jax.Array

    @property
    def saw_finite(self) -> jax.Array:
        """Whether anything in the window was finite, bool[]."""
        return self.num_nonfinite < jnp.maximum(self.num_steps, 1.0)

    @property
    def update_ratio(self) -> jax.Array:
        """Norm of a move over that of the parameters, float32[] in [0, 1e6]; 0 if not measured."""
        floor = jnp.maximum(self.param_norm, 1e-6 * self.update_norm)
        return self.update_norm / jnp.where(floor > 0.0, floor, 1.0)


NUM_MEASURED = 8
"""What is measured at a step: the first entries of `Metrics`, up to `value_change`."""
_OTHERS, _UNSEEN = -2.0, -1.0
_UPDATE_NORM = Metrics._fields.index("update_norm")
_OF_MOVES = np.isin(Metrics._fields[:NUM_MEASURED], ("alignment", "persistence", "update_norm"))


class Statistics(NamedTuple):
    """All that is remembered between steps; stored as one packed vector.

    Attributes:
        means: what is measured, averaged over the finite steps of the window, float32[8].
        window: its length in steps, 0 right after a decision, how many of these were not finite,
            and how many saw a move; float32[3]. The last one starts at 0 after a decision within an
            update and at -2 else: what the next step sees was not done under its hyperparameters,
            and takes it to -1.
        last: the same at the latest finite step, float32[8].
        total_nonfinite: non-finite steps since `init` (exact up to 2²⁴), float32[1].
        least_param_norm: what `param_norm` is at least: 0, but for parameters that all start at
            zero, whose norm tells nothing about their scale; float32[1].
        usual_grad_norm: mean gradient norm of the window that the last decision looked at; 0 before
            the first; float32[1].
    """

    means: jax.Array
    window: jax.Array
    last: jax.Array
    total_nonfinite: jax.Array
    least_param_norm: jax.Array
    usual_grad_norm: jax.Array

    @classmethod
    def empty(cls, least_param_norm: jax.typing.ArrayLike = 0.0) -> "Statistics":
        """Return what is known before the first step."""
        empty = cls.unpack(jnp.zeros(2 * NUM_MEASURED + 6, jnp.float32))
        least = jnp.asarray(least_param_norm, jnp.float32)[None]
        return empty._replace(window=fresh_window(moved=False), least_param_norm=least)

    def pack(self) -> jax.Array:
        """Return the statistics as float32[22]."""
        return jnp.concatenate(self)

    @classmethod
    def unpack(cls, packed: jax.Array) -> "Statistics":
        """Read float32[…, 22]; leading axes are batches."""
        return cls(*jnp.split(packed, np.cumsum([NUM_MEASURED, 3, NUM_MEASURED, 1, 1]), axis=-1))


def decided(statistics: Statistics, *, moved: bool) -> Statistics:
    """Return the statistics after a decision: an empty window, and what was usual before it.

    Args:
        statistics: those that the decision saw.
        moved: as for `fresh_window`.

    >>> known = Statistics.empty()._replace(means=jnp.arange(8.0))
    >>> print(decided(known, moved=True).usual_grad_norm)
    [2.]
    """
    window = fresh_window(moved=moved)
    return statistics._replace(window=window, usual_grad_norm=statistics.means[2:3])


def fresh_window(*, moved: bool) -> jax.Array:
    """Return an empty window, float32[3].

    Args:
        moved: whether the next step will see a move made under the present hyperparameters.
    """
    return jnp.array([0.0, 0.0, 0.0 if moved else _OTHERS], jnp.float32)


def global_norm(tree: Any) -> jax.Array:
    """Return the L2 norm over all inexact leaves, accumulated in float32.

    Norms above 1.8e19 overflow to inf and so count as not finite.

    >>> print(global_norm({"a": jnp.array([3.0]), "b": jnp.array([4.0], jnp.bfloat16)}))
    5.0
    """
    return jnp.sqrt(sum((_squared_norm(leaf) for leaf in inexact(tree)), jnp.float32(0.0)))


def sample(tree: Any, size: int = SAMPLE_SIZE) -> jax.Array:
    """Return a strided sample of about `size` coordinates, each leaf in proportion, at least one.

    A coordinate is scaled by the root of the number that it stands for in its leaf, so that norms
    and dot products of samples estimate those of the whole; a tree that is taken whole is as it is.

    Args:
        tree: arrays of any shape and inexact dtype; complex leaves give real and imaginary parts.
        size: how many coordinates to aim for; a tree with fewer is taken whole.

    Returns:
        float32[k]; k depends on the shapes alone. At least one element: 0 for an empty tree. What
        is not finite, such as a mask of -inf among the parameters, counts as 0.
    """
    leaves = inexact(tree)
    stride = -(-sum(leaf.size for leaf in leaves) // size) or 1
    parts = [_thin(stride, leaf) for leaf in leaves if leaf.size]
    sampled = jnp.concatenate(parts) if parts else jnp.zeros(1, jnp.float32)
    return jnp.where(jnp.isfinite(sampled), sampled, 0.0)


def least_norm(tree: Any, sampled: jax.Array) -> jax.Array:
    """Return the least norm that parameters count as having, float32[].

    Args:
        tree: the parameters at the start of the run.
        sampled: their `sample`.

    Returns:
        0; where the sample is all zeros, the norm of as many coordinates of `SIZE_OF_ZEROS` each.

    >>> zeros = jnp.zeros((20, 20))
    >>> print(least_norm(zeros, sample(zeros)), least_norm(zeros + 1e-6, sample(zeros + 1e-6)))
    2.0 0.0
    """
    count = sum(leaf.size for leaf in inexact(tree))
    return jnp.where(jnp.any(sampled != 0.0), 0.0, SIZE_OF_ZEROS * math.sqrt(count))


def inexact(tree: Any) -> list[jax.Array]:
    """Return what counts in a tree: its real and complex arrays and Python numbers, as arrays.

    >>> [leaf.dtype.name for leaf in inexact({"w": jnp.ones(3), "step": jnp.array(1), "b": 0.5})]
    ['float32', 'float32']
    """
    leaves = jax.tree.leaves(tree)
    numbers = [x for x in leaves if hasattr(x, "dtype") or isinstance(x, (float, complex))]
    leaves = [jnp.asarray(number) for number in numbers]
    return [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def geometry(slope: jax.Array, now: jax.Array, before: jax.Array, earlier: jax.Array) -> jax.Array:
    """Return alignment, persistence, and the norms of the last move and of the position.

    Args:
        slope: the gradient, float32[k].
        now: the position at which it was taken, float32[k].
        before: that of one step ago, float32[k].
        earlier: that of two steps ago, float32[k].

    Returns:
        float32[4]; cosines of zero vectors are 0. No scale overflows or vanishes, but for moves
        below 1e-19 of the position, which count as none.

    >>> print(geometry(jnp.array([-3e30, 4e30]), jnp.array([3e-30, 0.0]), *jnp.zeros((2, 2))))
    [6.e-01 0.e+00 3.e-30 3.e-30]
    """
    # Two passes over the samples: each reduction of its own would write its operand out first.
    largest = _reduce(jnp.maximum, [abs(slope), jnp.maximum(abs(now), abs(before))])
    steepness, scale = (jnp.where(x > 0.0, x, 1.0) for x in largest)
    downhill, position = slope / -steepness, now / scale
    move, last_move = (now - before) / scale, (before - earlier) / scale
    squares = map(jnp.square, (downhill, move, last_move, position))
    sums = jnp.stack(_reduce(jnp.add, [*squares, downhill * move, move * last_move]))
    lengths = jnp.sqrt(sums[:4])
    divisors = jnp.where(lengths > 0.0, lengths, 1.0)
    cosines = jnp.clip(sums[4:] / divisors[:2] / divisors[1:3], -1.0, 1.0)
    return jnp.concatenate(
        [cosines, jnp.minimum(scale * lengths[1::2], jnp.finfo(jnp.float32).max)]
    )


def _reduce(combine: Callable[..., jax.Array], vectors: Sequence[jax.Array]) -> list[jax.Array]:
    """Reduce vectors of numbers ≥ 0, or to be added, each to a scalar, in one pass over all."""
    zeros = [jnp.zeros((), v.dtype) for v in vectors]
    return jax.lax.reduce([*vectors], zeros, lambda x, y: [*map(combine, x, y)], (0,))


def accumulate(statistics: Statistics, measured: jax.Array) -> Statistics:
    """Add one step to the window; one that is not finite is only counted.

    The running mean mₙ = mₙ₋₁·(n-1)/n + x/n cannot overflow, unlike a sum.

    Args:
        statistics: what is remembered.
        measured: what was measured at this step, float32[8]; may hold inf and nan.

    Returns:
        The new statistics.
    """
    is_finite = jnp.all(jnp.isfinite(measured))
    num_steps, num_nonfinite, num_moves = statistics.window
    is_own = num_moves > _OTHERS
    has_moved = is_finite & is_own & (measured[_UPDATE_NORM] > 0.0)
    moved = jnp.maximum(num_moves, 0.0) + has_moved
    moved = jnp.where(is_finite, jnp.where(is_own, moved, _UNSEEN), num_moves)
    num_finite = num_steps - num_nonfinite + 1.0
    counts = jnp.where(_OF_MOVES, jnp.maximum(moved, 1.0), num_finite)
    is_new = jnp.where(_OF_MOVES, has_moved, is_finite)
    means = statistics.means * ((counts - 1.0) / counts) + measured / counts
    window = jnp.stack([num_steps + 1.0, num_nonfinite + ~is_finite, moved])
    return statistics._replace(
        means=jnp.where(is_new, means, statistics.means),
        window=window,
        last=jnp.where(is_finite, measured, statistics.last),
        total_nonfinite=statistics.total_nonfinite + ~is_finite,
    )


def _thin(stride: int, leaf: jax.Array) -> jax.Array:
    """Return about one coordinate in `stride`, scaled, replicated over an explicit mesh.

    Sliced along the axes before it is flattened: so XLA reads no more than the slice, and collects
    no more where the leaf is split over devices.
    """
    strides = _strides(leaf.shape, stride)
    sharding = jax.typeof(leaf).sharding
    if any(axis is not None for axis in sharding.spec):  # such an array cannot be sliced
        places = np.ix_(*(range(0, n, s) for n, s in zip(leaf.shape, strides, strict=True)))
        replicated = NamedSharding(sharding.mesh, PartitionSpec(*[None] * leaf.ndim))
        picked = leaf.at[places].get(mode="promise_in_bounds", out_sharding=replicated)
    else:
        picked = leaf[tuple(slice(None, None, s) for s in strides)]
    scale = math.sqrt(leaf.size / picked.size)
    flat = picked.ravel()
    flat = jnp.concatenate([flat.real, flat.imag]) if jnp.iscomplexobj(flat) else flat
    return flat.astype(jnp.float32) * scale


def _strides(shape: tuple[int, ...], total: int) -> list[int]:
    """Return powers of two whose product is near `total`, evenly over the axes.

    >>> _strides((300, 1000), 60), _strides((7,), 60)
    ([4, 16], [8])
    """
    strides = [1] * len(shape)
    while 1.5 * math.prod(strides) <= total:
        counts = [-(-n // s) for n, s in zip(shape, strides, strict=True)]
        if max(counts, default=1) == 1:
            break
        strides[counts.index(max(counts))] *= 2
    return strides


def _squared_norm(leaf: jax.Array) -> jax.Array:
    """Return the squared norm of a leaf.

    As |g · |g||, which is g² to the last bit, but which XLA does not take for the g² of an
    optimizer's second moment: that it would share, write out and read again, 8 bytes a parameter.
    No constant may stand in it, such as a factor: XLA on CPUs writes it out at the leaf's size.
    """
    if jnp.iscomplexobj(leaf):
        return _squared_norm(leaf.real) + _squared_norm(leaf.imag)
    leaf = leaf.astype(jnp.float32)
    return jnp.sum(abs(leaf * abs(leaf)))
