"""What is measured at a step: norms, and cosines from strided samples of the parameters.

Nothing here needs a buffer of the parameters' size. The norm of the gradients is exact; whatever
asks for parameters or moves is estimated from some four thousand coordinates.
"""

import math
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from optax_meta.base import Tree
from optax_meta.geometry import SIZE_OF_ZEROS, Geometry, Samples, compare
from optax_meta.guards import shrinkage
from optax_meta.metrics import LARGEST
from optax_meta.sampling import inexact, roots, sample, sizes
from optax_meta.tracking import Distance, Measured, Statistics

NUM_SAMPLES = len(Samples._fields)
_SMALL = 1024
"""Leaves below this size are read again for less than it costs to keep them apart."""


def measure(
    known: Statistics,
    step: jax.Array,
    gradients: Tree,
    params: Tree | None,
    last_samples: Tree,
    passed: Mapping[str, object],
    axis_name: str | None,
    largest: jax.Array | None = None,
) -> tuple[Measured, Tree, Distance]:
    """Return what there is to see at a step, and what the next one compares with.

    Args:
        known: what is remembered.
        step: from 0, int32[].
        gradients: as they come.
        params: before the step; None where no sample is asked for.
        last_samples: float32[4, k], or an empty tuple where no sample is asked for.
        passed: of which "value" and "cost" are read; either may be missing or None.
        axis_name: axis to average over; None for none.
        largest: norm that gradients are held to, as for `guards.clip_growth`; one that leaps would
            outweigh all others in the distance. None for any.

    Returns:
        What is measured, the new samples, and the distance that is known now.

    Raises:
        ValueError: value or cost is no real scalar, or the trees do not belong together.
    """

    def averaged(x: jax.Array) -> jax.Array:
        return x if axis_name is None else jax.lax.pmean(x, axis_name)

    scalars = [scalar(name, passed.get(name)) for name in ("value", "cost")]
    squares = squared_norms(gradients)
    norm = jnp.sqrt(sum(squares, jnp.float32(0.0)))
    counts = tuple(sizes(gradients))
    # Trees that do not belong together are refused where their samples meet.
    if isinstance(last_samples, jax.Array) and squares and sum(counts) == last_samples.shape[1]:
        norm = _used_norm(norm, jnp.stack(squares), counts, last_samples)
    value, cost, grad_norm = averaged(jnp.stack([*scalars, norm]))
    seen, samples, distance = Geometry(*jnp.zeros(7, jnp.float32)), last_samples, known.distance
    if isinstance(last_samples, jax.Array):
        slope, is_finite = averaged(sample(gradients)), jnp.isfinite(grad_norm)
        slope = slope if largest is None else slope * shrinkage(grad_norm, largest)
        # Where the loss is not finite the optimizer makes nothing of the gradient, nor does this.
        is_used = is_finite & jnp.isfinite(value)
        seen, samples, distance = _look(
            slope, inexact(params), last_samples, known, is_finite, is_used
        )
        seen, distance = (
            Geometry(*averaged(jnp.stack(seen))),
            Distance(*averaged(jnp.stack(distance))),
        )
    # Before the first finite step there is no loss to compare with.
    has_last = step.astype(jnp.float32) > known.total_nonfinite
    change = jnp.minimum(jnp.abs(value - known.last.value), LARGEST)
    change = jnp.where(has_last, change, 0.0)
    measured = Measured(value, cost, grad_norm, *seen, value_change=change)
    # No gradient flows through what is measured: that of a norm at zero is nan.
    return jax.lax.stop_gradient((measured, samples, distance))


@partial(jax.jit, inline=True, static_argnums=2)  # compiled once, where nobody jits the step
def _used_norm(
    norm: jax.Array, squares: jax.Array, counts: tuple[int, ...], last_samples: jax.Array
) -> jax.Array:
    """Return the norm of the gradients without those that are not finite and move nothing.

    They may be masked before they reach the parameters, as those of a frozen part are: what never
    moved anything is no reason to skip a step. If no array is finite, the step is not.
    """
    last = Samples(*jax.lax.stop_gradient(last_samples))
    # One reduction for all arrays: a slice for each would read everything as often.
    places = np.repeat(np.arange(len(counts)), counts)

    def without() -> jax.Array:
        changed = (last.now != last.start).astype(jnp.int32)
        has_moved = jax.ops.segment_max(changed, places, len(counts)) > 0
        is_finite = jnp.isfinite(squares)
        total = jnp.sum(jnp.where(is_finite, squares, jnp.where(has_moved, jnp.inf, 0.0)))
        return jnp.where(jnp.any(is_finite & (squares > 0.0)), jnp.sqrt(total), jnp.inf)

    return jax.lax.cond(jnp.isfinite(norm), lambda: norm, without)


@partial(jax.jit, inline=True)
def _look(
    slope: jax.Array,
    params: list[jax.Array],
    last_samples: jax.Array,
    known: Statistics,
    is_finite: jax.Array,
    counts: jax.Array,
) -> tuple[Geometry, jax.Array, Distance]:
    """Return what samples tell, the new samples, and the distance.

    The sample is taken under `lax.cond`, which XLA cannot reorder: else it copies all donated
    parameters, since the sample could be read after they were overwritten. What is computed from
    samples stays outside: a branch that returns more writes more.
    """
    # Nothing here is differentiated, and a reduction of several operands cannot be.
    slope, params, last_samples = jax.lax.stop_gradient((slope, params, last_samples))
    last = Samples(*last_samples)

    def move_on() -> jax.Array:
        position = sample(params)
        if not slope.shape == position.shape == last.now.shape:
            raise ValueError(
                "gradients, parameters and state must belong together: pass the gradients of "
                "those parameters that `init` saw; integer parameters with gradients belong under "
                "an optimizer of their own (`optax.partition`)"
            )
        return jnp.stack([position, last.now])

    now, before = jax.lax.cond(is_finite, move_on, lambda: last_samples[:2])
    samples = last._replace(now=now, before=before)
    seen, slopes, distance = compare(
        slope, samples, last.before, roots(params), known.distance, known.least_param_norm
    )
    kept = jnp.where(counts, slopes, last.slopes)
    samples = jnp.stack(samples._replace(slopes=kept))
    seen = Geometry(*(jnp.where(is_finite, x, 0.0) for x in seen))
    same = zip(distance, known.distance, strict=True)
    return seen, samples, Distance(*(jnp.where(counts, new, old) for new, old in same))


def first_samples(params: Tree) -> tuple[jax.Array, jax.Array]:
    """Return the samples before the first step, float32[4, k], and the least norm, float32[].

    Args:
        params: at the start of the run.

    Raises:
        ValueError: they are shapes without values.
    """
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
        raise ValueError(
            "this controller looks at the parameters that a run starts from, got shapes without "
            "values: pass arrays to `init`, or ask for shapes by `jax.eval_shape(tx.init, params)`"
        )
    sampled = sample(params)
    return jnp.stack([*[sampled] * 3, jnp.zeros_like(sampled)]), least_norm(params, sampled)


def global_norm(tree: Tree) -> jax.Array:
    """Return the L2 norm over all inexact leaves, accumulated in float32.

    Norms above 1.8e19 overflow to inf and so count as not finite.

    >>> print(global_norm({"a": jnp.array([3.0]), "b": jnp.array([4.0], jnp.bfloat16)}))
    5.0
    """
    return jnp.sqrt(sum(squared_norms(tree), jnp.float32(0.0)))


def squared_norms(tree: Tree) -> list[jax.Array]:
    """Return the squared norm of each inexact leaf, float32[] each; see `global_norm`.

    >>> print(*squared_norms({"a": jnp.ones((3, 3)), "step": jnp.array(1)}))
    9.0
    """
    return [_squared_norm(leaf) for leaf in inexact(tree)]


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
