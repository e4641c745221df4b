"""What samples of gradient and parameters tell: cosines, lengths, and how far there is to go.

All from a few thousand coordinates; nothing has the size of the parameters.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_meta.metrics import LARGEST
from optax_meta.tracking import Distance

SIZE_OF_ZEROS = 0.1
"""Root mean square that parameters count as having at least, where all of them start at zero."""
FIRST_DISTANCE = 1e-2
"""The first distance is this share of the parameters' size: grown from less it takes longer than
short runs have, and much more would move what is good already."""
MAX_GROWTH = 1.3
"""Of the distance in a step. Where gradients grow along the way down, as they do on leaving a
saddle, the bound does not hold, and the estimate would run away within three steps."""
_LEAST_SHARE = 1e-2
"""The size that the first distance is a share of is at least this share of the root mean square,
where all gradients are those of parameters near zero, such as biases."""
_REACH = 1e30
"""No sum over a run is larger than this."""


class Samples(NamedTuple):
    """What is remembered of a run, float32[k] each, as `sampling.sample` scales it.

    Attributes:
        now: the position at which the last finite gradient was taken.
        before: that of one finite step before.
        start: that before the first step.
        slopes: Σ dₖ gₖ/(G d), see `tracking.Distance`.
    """

    now: jax.Array
    before: jax.Array
    start: jax.Array
    slopes: jax.Array


class Geometry(NamedTuple):
    """What the last move looks like, float32[] each, as in `metrics.Metrics`."""

    alignment: jax.Array
    persistence: jax.Array
    update_norm: jax.Array
    param_norm: jax.Array
    start_alignment: jax.Array
    update_rms: jax.Array
    displacement: jax.Array


class _Sums(NamedTuple):
    """Sums over the sample, in units of the largest slope and position, float32[] each."""

    slope: jax.Array
    moved_slope: jax.Array
    move: jax.Array
    last_move: jax.Array
    way: jax.Array
    slope_move: jax.Array
    move_last: jax.Array
    slope_way: jax.Array
    position: jax.Array
    moved_position: jax.Array
    moved_move: jax.Array
    num_sloped: jax.Array
    num_moved: jax.Array
    steepest_position: jax.Array
    slopes: jax.Array


def compare(
    slope: jax.Array,
    samples: Samples,
    earlier: jax.Array,
    roots: np.ndarray,
    distance: Distance,
    least_norm: jax.Array,
) -> tuple[Geometry, jax.Array, Distance]:
    """Return what a move looks like, the new sum of slopes, and the distance.

    The distance is d ← max(d, Σₖ dₖ⟨gₖ, x₀ - xₖ⟩ / ‖Σₖ dₖ gₖ‖₁): by convexity no more than the
    distance of the optimum, in the norm of the largest coordinate; no more than `MAX_GROWTH` times
    what it was, nor than a parameter is away from its start. It begins at a hundredth of what
    parameters with large gradients measure, so that in a tree of unlike scales the steepest counts.

    Args:
        slope: the gradient, float32[k].
        samples: of which `now` is where it was taken.
        earlier: the position two steps ago, float32[k].
        roots: what the sample is scaled by, float32[k].
        distance: as known so far.
        least_norm: of the parameters, float32[].

    Returns:
        No scale overflows or vanishes, but for moves below 1e-19 of the position, which count as
        none. Cosines of zero vectors are 0.

    Source: K. Mishchenko and A. Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free
    Learner", https://arxiv.org/abs/2306.06101.
    """
    now, before, start, slopes = samples
    # Each reduction of its own would write its operands out first: two passes, for all of them.
    (steepness, scale, furthest), sums = _sums(slope, now, before, earlier, start, slopes, roots)
    has_moved = sums.num_moved > 0.0
    # What never moves, such as a frozen backbone or rows that no batch uses, is no measure.
    count = jnp.where(has_moved, sums.num_moved, jnp.maximum(sums.num_sloped, 1.0))
    position = jnp.where(has_moved, sums.moved_position, sums.position)
    param_norm = jnp.maximum(scale * jnp.sqrt(position), least_norm)
    moved = Geometry(
        alignment=_cosine(sums.slope_move, sums.moved_slope, sums.move),
        persistence=_cosine(sums.move_last, sums.move, sums.last_move),
        update_norm=jnp.minimum(scale * jnp.sqrt(sums.move), LARGEST),
        param_norm=jnp.minimum(param_norm, LARGEST),
        start_alignment=_cosine(sums.slope_way, sums.moved_slope, sums.way),
        update_rms=scale * jnp.sqrt(sums.moved_move / count),
        displacement=scale * jnp.sqrt(sums.way / count),
    )
    size = scale * jnp.sqrt(sums.steepest_position / jnp.maximum(sums.slope, 1e-30))
    size = jnp.maximum(size, _LEAST_SHARE * scale * jnp.sqrt(sums.position / count))
    size = jnp.where(least_norm > 0.0, SIZE_OF_ZEROS, size)
    first = Distance(FIRST_DISTANCE * size, jnp.float32(0.0), steepness * jnp.sqrt(sums.slope))
    is_known = distance.estimate > 0.0
    steepness /= jnp.where(is_known, distance.scale, 1.0)
    gained = _within_reach(distance.gained + _within_reach(steepness) * (scale * sums.slope_way))
    # A mean of ways that were come, unless slopes cancel, which tells nothing.
    reach = jnp.minimum(furthest, MAX_GROWTH * distance.estimate)
    estimate = _within_reach(jnp.minimum(gained / jnp.maximum(sums.slopes, 1e-30), reach))
    known = distance._replace(estimate=jnp.maximum(distance.estimate, estimate), gained=gained)
    has_slope = sums.slope > 0.0
    new = Distance(
        *(
            jnp.where(is_known, k, jnp.where(has_slope, f, old))
            for k, f, old in zip(known, first, distance, strict=True)
        )
    )
    # In units of the distance, so that no scale of the parameters vanishes when squared.
    shrink = distance.estimate / jnp.where(is_known, new.estimate, 1.0)
    relative = _within_reach(slope / jnp.where(new.scale > 0.0, new.scale, 1.0))
    new = new._replace(gained=shrink * new.gained)
    return moved, _within_reach(shrink * slopes + relative), new


def _sums(
    slope: jax.Array,
    now: jax.Array,
    before: jax.Array,
    earlier: jax.Array,
    start: jax.Array,
    slopes: jax.Array,
    roots: np.ndarray,
) -> tuple[list[jax.Array], _Sums]:
    """Return the largest slope, position and way of a coordinate, and sums in units of the two."""
    largest = [abs(slope), jnp.maximum(abs(now), abs(start)), abs(now - start) / roots]
    *largest, furthest = _reduce(jnp.maximum, largest)
    steepness, scale = (jnp.where(x > 0.0, x, 1.0) for x in largest)
    downhill, position, way = slope / -steepness, now / scale, (now - start) / scale
    move, last_move = (now - before) / scale, (before - earlier) / scale
    is_sloped = (slopes != 0.0) | (slope != 0.0)
    has_moved = is_sloped & (way != 0.0)
    weights = np.square(roots)

    def where(mask: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.where(mask, x, 0.0)

    squares = jnp.square(downhill), jnp.square(position), jnp.square(move)
    terms = _Sums(
        slope=squares[0],
        moved_slope=where(has_moved, squares[0]),
        move=squares[2],
        last_move=jnp.square(last_move),
        way=where(has_moved, jnp.square(way)),
        slope_move=downhill * move,
        move_last=move * last_move,
        slope_way=downhill * way,
        position=where(is_sloped, squares[1]),
        moved_position=where(has_moved, squares[1]),
        moved_move=where(has_moved, squares[2]),
        num_sloped=where(is_sloped, jnp.asarray(weights)),
        num_moved=where(has_moved, jnp.asarray(weights)),
        steepest_position=squares[0] * squares[1] / weights,
        slopes=where(has_moved, abs(slopes) * roots),
    )
    return [steepness, scale, furthest], _Sums(*_reduce(jnp.add, terms))


def _cosine(product: jax.Array, square: jax.Array, other: jax.Array) -> jax.Array:
    lengths = jnp.sqrt(jnp.where(square > 0.0, square, 1.0)) * jnp.sqrt(
        jnp.where(other > 0.0, other, 1.0)
    )
    return jnp.clip(product / lengths, -1.0, 1.0)


def _within_reach(x: jax.Array) -> jax.Array:
    """Clip what is summed over a run, so that neither it nor a product with it is ever nan."""
    return jnp.clip(x, -_REACH, _REACH)


def _reduce(combine: Callable[..., jax.Array], vectors: Sequence[jax.Array]) -> list[jax.Array]:
    """Reduce vectors of numbers ≥ 0, or to be added, each to a scalar, in one pass over all."""
    zeros = [jnp.zeros((), v.dtype) for v in vectors]
    return jax.lax.reduce([*vectors], zeros, lambda x, y: [*map(combine, x, y)], (0,))
