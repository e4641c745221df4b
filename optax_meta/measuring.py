"""What is measured at a step: norms, and cosines from strided samples of the parameters.

Nothing here needs a buffer of the parameters' size. The norm of the gradients is exact; whatever
asks for parameters or moves is estimated from some four thousand coordinates.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from optax_meta.base import Tree
from optax_meta.metrics import Measured, Statistics

SAMPLE_SIZE = 4096
SIZE_OF_ZEROS = 0.1
"""Root mean square that parameters count as having at least, where all of them start at zero."""
_LARGEST = float(np.finfo(np.float32).max)
_SMALL = 1024
"""Leaves below this size are read again for less than it costs to keep them apart."""


class _Moves(NamedTuple):
    """What the last move of the parameters looks like from a sample, float32[] each."""

    alignment: jax.Array
    persistence: jax.Array
    update_norm: jax.Array
    param_norm: jax.Array


def measure(
    known: Statistics,
    step: jax.Array,
    gradients: Tree,
    params: Tree | None,
    last_samples: Tree,
    passed: Mapping[str, object],
    axis_name: str | None,
) -> tuple[Measured, Tree]:
    """Return what there is to see at a step, and the samples that the next one compares with.

    Args:
        known: what is remembered.
        step: from 0, int32[].
        gradients: as they come.
        params: before the step; None where no sample is asked for.
        last_samples: float32[2, k], or an empty tuple where no sample is asked for.
        passed: of which "value" and "cost" are read; either may be missing or None.
        axis_name: axis to average over; None for none.

    Raises:
        ValueError: value or cost is no real scalar, or the trees do not belong together.
    """

    def averaged(x: jax.Array) -> jax.Array:
        return x if axis_name is None else jax.lax.pmean(x, axis_name)

    scalars = [scalar(name, passed.get(name)) for name in ("value", "cost")]
    value, cost, grad_norm = averaged(jnp.stack([*scalars, global_norm(gradients)]))
    moves, samples = _Moves(*jnp.zeros(4, jnp.float32)), last_samples
    if isinstance(last_samples, jax.Array):
        slope, is_finite = averaged(sample(gradients)), jnp.isfinite(grad_norm)
        found, samples = _compare(slope, inexact(params), last_samples, is_finite)
        moves = _Moves(*averaged(found))
        moves = moves._replace(param_norm=jnp.maximum(moves.param_norm, known.least_param_norm))
    # Before the first finite step there is no loss to compare with.
    has_last = step.astype(jnp.float32) > known.total_nonfinite
    change = jnp.minimum(jnp.abs(value - known.last.value), _LARGEST)
    change = jnp.where(has_last, change, 0.0)
    measured = Measured(value, cost, grad_norm, *moves, value_change=change)
    # No gradient flows through what is measured: that of a norm at zero is nan.
    return jax.lax.stop_gradient(measured), samples


@partial(jax.jit, inline=True)
def _compare(
    slope: jax.Array, params: list[jax.Array], last_samples: jax.Array, is_finite: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the `_Moves` of a step, float32[4], and the new samples.

    The sample is taken under `lax.cond`, which XLA cannot reorder: else it copies all donated
    parameters, since the sample could be read after they were overwritten. What is computed from
    samples stays outside: a branch that returns more writes more.
    """
    # Nothing here is differentiated, and a reduction of several operands cannot be.
    slope, params, last_samples = jax.lax.stop_gradient((slope, params, last_samples))

    def remember() -> jax.Array:
        position = sample(params)
        if not slope.shape == position.shape == last_samples.shape[1:]:
            raise ValueError(
                "gradients, parameters and state must belong together: pass the gradients of "
                "those parameters that `init` saw; integer parameters with gradients belong under "
                "an optimizer of their own (`optax.partition`)"
            )
        return jnp.stack([position, last_samples[0]])

    samples = jax.lax.cond(is_finite, remember, lambda: last_samples)
    now, before = samples
    moves = geometry(slope, now, before, last_samples[1])
    return jnp.where(is_finite, moves, 0.0), samples


def first_samples(params: Tree) -> tuple[jax.Array, jax.Array]:
    """Return the samples before the first step, float32[2, k], and the least norm, float32[].

    Args:
        params: at the start of the run.
    """
    sampled = sample(params)
    return jnp.stack([sampled, sampled]), least_norm(params, sampled)


def global_norm(tree: Tree) -> jax.Array:
    """Return the L2 norm over all inexact leaves, accumulated in float32.

    Norms above 1.8e19 overflow to inf and so count as not finite.

    >>> print(global_norm({"a": jnp.array([3.0]), "b": jnp.array([4.0], jnp.bfloat16)}))
    5.0
    """
    return jnp.sqrt(sum((_squared_norm(leaf) for leaf in inexact(tree)), jnp.float32(0.0)))


def sample(tree: Tree, size: int = SAMPLE_SIZE) -> jax.Array:
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


def least_norm(tree: Tree, sampled: jax.Array) -> jax.Array:
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


def inexact(tree: Tree | None) -> list[jax.Array]:
    """Return what counts in a tree: its real and complex arrays and Python numbers, as arrays.

    >>> [leaf.dtype.name for leaf in inexact({"w": jnp.ones(3), "step": jnp.array(1), "b": 0.5})]
    ['float32', 'float32']
    """
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]


def is_inexact(leaf: object) -> bool:
    """Whether a leaf is real or complex: not an integer, a PRNG key, a mask or anything else.

    >>> is_inexact(0.5), is_inexact(jnp.array(1)), is_inexact(jax.random.key(0))
    (True, False, False)
    """
    dtype = getattr(leaf, "dtype", None)
    is_number = isinstance(leaf, (float, complex))
    return is_number if dtype is None else jnp.issubdtype(dtype, jnp.inexact)


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

    >>> found = geometry(jnp.array([-3e30, 4e30]), jnp.array([3e-30, 0.0]), *jnp.zeros((2, 2)))
    >>> print(np.asarray(found)[:2].round(2), found[2:])
    [0.6 0. ] [3.e-30 3.e-30]
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
    return jnp.concatenate([cosines, jnp.minimum(scale * lengths[1::2], _LARGEST)])


def _reduce(combine: Callable[..., jax.Array], vectors: Sequence[jax.Array]) -> list[jax.Array]:
    """Reduce vectors of numbers ≥ 0, or to be added, each to a scalar, in one pass over all."""
    zeros = [jnp.zeros((), v.dtype) for v in vectors]
    return jax.lax.reduce([*vectors], zeros, lambda x, y: [*map(combine, x, y)], (0,))


def scalar(name: str, value: object) -> jax.Array:
    """Return a loss or a cost as float32[], 0 for None.

    Args:
        name: of the argument, for the message.
        value: what was passed.

    Raises:
        ValueError: it is no real scalar.

    >>> scalar("value", (1.0, {}))
    Traceback (most recent call last):
    ValueError: `value` must be a real scalar, got a tuple: pass the loss alone, ...
    """
    if value is None:
        return jnp.float32(0.0)
    if isinstance(value, (tuple, list, Mapping, str)):
        raise ValueError(
            f"`{name}` must be a real scalar, got a {type(value).__name__}: pass the loss alone, "
            "with `has_aux=True` the first of what `value_and_grad` returns"
        )
    array = jnp.asarray(value)
    if array.shape != () or jnp.iscomplexobj(array):
        raise ValueError(
            f"`{name}` must be a real scalar, got {array.dtype}{list(array.shape)}: pass a mean, "
            f"such as `{name}=losses.mean()`"
        )
    return array.astype(jnp.float32)


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

    The barrier keeps XLA from sharing the squares with those of an optimizer's second moment, which
    it would then write out and read again: 8 bytes a parameter. No constant may stand there in its
    place, such as a factor: XLA on CPUs writes it out at the size of the leaf.
    """
    if jnp.iscomplexobj(leaf):
        return _squared_norm(leaf.real) + _squared_norm(leaf.imag)
    if leaf.size < _SMALL:
        # A bias is reduced from its layer's gradients, and behind a barrier in another order, which
        # would move the last bit of `constant`; a factor does not, and costs nothing at this size.
        return 4.0 * jnp.sum(jnp.square(0.5 * leaf.astype(jnp.float32)))
    leaf = jax.lax.optimization_barrier(jax.lax.stop_gradient(leaf))
    return jnp.sum(jnp.square(leaf.astype(jnp.float32)))
