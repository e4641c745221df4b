"""Strided samples of a tree: some four thousand coordinates that stand for all of them."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from optax_meta.base import Tree

SAMPLE_SIZE = 4096
_LEAST = 16
"""About so many coordinates of an array are taken at least: of a bias beside a large frozen part
one alone may happen to be where it belongs already."""


def sample(tree: Tree, size: int = SAMPLE_SIZE) -> jax.Array:
    """Return a strided sample of some `size` coordinates, each leaf in proportion, 16 at least.

    A coordinate is scaled by the root of the number that it stands for in its leaf, so that norms
    and dot products of samples estimate those of the whole; a tree that is taken whole is as it is.

    Args:
        tree: arrays of any shape and inexact dtype; complex leaves give real and imaginary parts.
        size: how many coordinates to aim for; a tree with fewer is taken whole.

    Returns:
        float32[k]; k depends on the shapes alone. At least one element: 0 for an empty tree. What
        is not finite, such as a mask of -inf among the parameters, counts as 0.
    """
    parts = _over_leaves(_thin, tree, size)
    sampled = jnp.concatenate(parts) if parts else jnp.zeros(1, jnp.float32)
    return jnp.where(jnp.isfinite(sampled), sampled, 0.0)


def roots(tree: Tree, size: int = SAMPLE_SIZE) -> np.ndarray:
    """Return what `sample` scales each coordinate by, float32[k]: it stands for so many, squared.

    Args:
        tree: as for `sample`.
        size: likewise.

    >>> roots({"w": jnp.ones((200, 100)), "b": jnp.ones(1)})[[0, -1]]
    array([1., 2.], dtype=float32)
    """
    parts = _over_leaves(_root, tree, size)
    return np.concatenate(parts) if parts else np.ones(1, np.float32)


def sizes(tree: Tree, size: int = SAMPLE_SIZE) -> list[int]:
    """Return how many numbers of the sample are each array's.

    Args:
        tree: as for `sample`.
        size: likewise.

    >>> sizes({"w": jnp.ones((200, 100)), "b": jnp.ones(0)})
    [0, 5000]
    """
    leaves = inexact(tree)
    found = iter(len(part) for part in _over_leaves(_root, tree, size))
    return [next(found) if leaf.size else 0 for leaf in leaves]


def _over_leaves(part: Callable[[int, jax.Array], Any], tree: Tree, size: int) -> list[Any]:
    """Return what a function of the stride makes of every leaf that is not empty."""
    leaves = inexact(tree)
    stride = -(-sum(leaf.size for leaf in leaves) // size) or 1
    return [part(min(stride, leaf.size // _LEAST or 1), leaf) for leaf in leaves if leaf.size]


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
    flat = picked.ravel()
    flat = jnp.concatenate([flat.real, flat.imag]) if jnp.iscomplexobj(flat) else flat
    return flat.astype(jnp.float32) * math.sqrt(leaf.size / picked.size)


def _root(stride: int, leaf: jax.Array) -> np.ndarray:
    strides = _strides(leaf.shape, stride)
    count = math.prod(-(-n // s) for n, s in zip(leaf.shape, strides, strict=True))
    length = 2 * count if jnp.iscomplexobj(leaf) else count
    return np.full(length, math.sqrt(leaf.size / count), np.float32)


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
