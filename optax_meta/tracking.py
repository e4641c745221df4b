"""What is remembered of a run between steps: the window since the last decision, and how far it is.

Averages run over the finite steps of the window; packed into one vector where state is stored.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_meta.horizon import Horizon
from optax_meta.spikes import Spikes


class Measured(NamedTuple):
    """What is measured at one step, float32[] each, as in `Metrics`; may hold inf and nan."""

    value: jax.Array
    cost: jax.Array
    grad_norm: jax.Array
    alignment: jax.Array
    persistence: jax.Array
    update_norm: jax.Array
    param_norm: jax.Array
    start_alignment: jax.Array
    update_rms: jax.Array
    displacement: jax.Array
    value_change: jax.Array


_OF_MOVES = np.isin(
    Measured._fields, ("alignment", "persistence", "update_norm", "start_alignment", "update_rms")
)


class Distance(NamedTuple):
    """How far each parameter has to go, and what is remembered to tell, float32[] each.

    Attributes:
        estimate: d, in the unit of the parameters; 0 before the first gradient.
        gained: Σ dₖ⟨gₖ, x₀ - xₖ⟩/(G d) over the steps k so far.
        scale: G, the norm of the first gradient, which keeps such sums from overflowing.
    """

    estimate: jax.Array
    gained: jax.Array
    scale: jax.Array

    @classmethod
    def unknown(cls) -> "Distance":
        """Return what is known before the first gradient."""
        return cls(*[jnp.float32(0.0)] * 3)


class Window(NamedTuple):
    """The steps since the last decision, float32[] each.

    Attributes:
        num_steps: as in `Metrics`, likewise the next three; 0 right after a decision.
        num_nonfinite: likewise.
        num_judged: likewise.
        num_moves: likewise.
        is_own: 1 where the next step sees an update made under the present hyperparameters.
    """

    num_steps: jax.Array
    num_nonfinite: jax.Array
    num_judged: jax.Array
    num_moves: jax.Array
    is_own: jax.Array

    @classmethod
    def fresh(cls, *, is_own: bool) -> "Window":
        """Return an empty window.

        Args:
            is_own: whether the next step sees an update made under the present hyperparameters.
        """
        zero = jnp.float32(0.0)
        return cls(zero, zero, zero, zero, jnp.float32(is_own))


class Statistics(NamedTuple):
    """All that is remembered between steps; stored as one packed vector.

    Attributes:
        means: averages over the finite steps of the window.
        last: what was measured at the latest finite step.
        window: how many steps, and of what kind.
        distance: how far each parameter has to go.
        horizon: how far the run has come.
        total_nonfinite: non-finite steps since `init`, float32[] (exact up to 2²⁴).
        least_param_norm: what `param_norm` is at least, float32[]: 0, but for parameters that all
            start at zero, whose norm tells nothing about their scale.
        usual_grad_norm: mean gradient norm of the window that the last decision looked at,
            float32[]; 0 before the first.
        spikes: what is usual of loss and gradient norm, and what leapt.
    """

    means: Measured
    last: Measured
    window: Window
    distance: Distance
    horizon: Horizon
    total_nonfinite: jax.Array
    least_param_norm: jax.Array
    usual_grad_norm: jax.Array
    spikes: Spikes

    @classmethod
    def empty(cls, least_param_norm: jax.typing.ArrayLike = 0.0) -> "Statistics":
        """Return what is known before the first step."""
        zero = jnp.float32(0.0)
        nothing = Measured(*[zero] * len(Measured._fields))
        least = jnp.asarray(least_param_norm, jnp.float32)
        blank = nothing, nothing, Window.fresh(is_own=False), Distance.unknown(), Horizon.unknown()
        return cls(*blank, zero, least, zero, Spikes.none())

    def pack(self) -> jax.Array:
        """Return the statistics as float32[53]."""
        return jnp.stack(jax.tree.leaves(self))

    @classmethod
    def unpack(cls, packed: jax.Array) -> "Statistics":
        """Read float32[…, 53]; leading axes are batches.

        >>> print(Statistics.unpack(Statistics.empty(2.0).pack()).least_param_norm)
        2.0
        """
        numbers = iter(jnp.moveaxis(packed, -1, 0))
        means, last = (Measured(*(next(numbers) for _ in Measured._fields)) for _ in range(2))
        window = Window(*(next(numbers) for _ in Window._fields))
        distance = Distance(*(next(numbers) for _ in Distance._fields))
        horizon = Horizon(*(next(numbers) for _ in Horizon._fields))
        total, least, usual = (next(numbers) for _ in range(3))
        spikes = Spikes(*numbers)
        return cls(means, last, window, distance, horizon, total, least, usual, spikes)


_PARTS = Measured, Measured, Window, Distance, Horizon, Spikes
NUM_STATISTICS = sum(len(part._fields) for part in _PARTS) + 3
"""Length of the packed vector."""


def decided(statistics: Statistics, *, is_own: bool) -> Statistics:
    """Return the statistics after a decision: an empty window, and what was usual before it.

    Args:
        statistics: those that the decision was made on.
        is_own: as for `Window.fresh`.

    >>> known = Statistics.empty()
    >>> known = known._replace(means=known.means._replace(grad_norm=jnp.float32(2.0)))
    >>> print(decided(known, is_own=True).usual_grad_norm)
    2.0
    """
    window = Window.fresh(is_own=is_own)
    return statistics._replace(window=window, usual_grad_norm=statistics.means.grad_norm)


def unjudged(statistics: Statistics) -> Statistics:
    """Return the statistics after hyperparameters were set by hand: no step was made under them.

    Args:
        statistics: of a window, under whatever was used so far.

    >>> window = unjudged(Statistics.empty()._replace(window=Window.fresh(is_own=True))).window
    >>> print(window.is_own, window.num_judged)
    0.0 0.0
    """
    zero = jnp.zeros_like(statistics.window.is_own)
    window = statistics.window._replace(num_judged=zero, num_moves=zero, is_own=zero)
    return statistics._replace(window=window)


def accumulate(
    statistics: Statistics,
    measured: Measured,
    distance: Distance,
    *,
    left_out: jax.typing.ArrayLike = False,
) -> Statistics:
    """Add one step to the window; one that is not finite, or left out, is only counted.

    The running mean mₙ = mₙ₋₁·(n-1)/n + x/n cannot overflow, unlike a sum.

    Args:
        statistics: what is remembered.
        measured: what was measured at this step.
        distance: as it is after this step.
        left_out: whether this step enters no average though it is finite, bool[].

    Returns:
        The new statistics.
    """
    now, means, last = (jnp.stack(x) for x in (measured, statistics.means, statistics.last))
    is_finite, window = jnp.all(jnp.isfinite(now)), statistics.window
    # What the first step after a decision from outside sees was done under other hyperparameters.
    enters = is_finite & ~jnp.asarray(left_out)
    is_judged = enters & (window.is_own > 0.0)
    has_moved = is_judged & (measured.update_norm > 0.0)
    window = Window(
        num_steps=window.num_steps + 1.0,
        num_nonfinite=window.num_nonfinite + _count(~is_finite),
        num_judged=window.num_judged + _count(is_judged),
        num_moves=window.num_moves + _count(has_moved),
        is_own=jnp.where(is_finite, 1.0, window.is_own),
    )
    # Selected one by one, since these two kinds of entries are averaged over different steps.
    num_finite = window.num_steps - window.num_nonfinite
    counts = jnp.maximum(jnp.where(_OF_MOVES, window.num_moves, num_finite), 1.0)
    is_new = jnp.where(_OF_MOVES, has_moved, enters)
    means = jnp.where(is_new, means * ((counts - 1.0) / counts) + now / counts, means)
    return statistics._replace(
        means=Measured(*means),
        last=Measured(*jnp.where(is_finite, now, last)),
        window=window,
        distance=distance,
        total_nonfinite=statistics.total_nonfinite + _count(~is_finite),
    )


def _count(is_counted: jax.Array) -> jax.Array:
    return is_counted.astype(jnp.float32)
