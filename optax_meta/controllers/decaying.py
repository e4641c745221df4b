"""How much of the parameters decays in a step, whatever the learning rate becomes."""

import jax
import jax.numpy as jnp

from optax_meta.checks import Number, is_set
from optax_meta.metrics import Metrics

DECAY_OF_MOVE = 0.1
"""No more of a move than this is decay, unless examples are learned by heart."""
_BY_HEART, _STEEPNESS, _MOST = 0.1, 3.0, 1e3
"""Below this share of the highest loss decay grows with the third power of what is missing, up to
so many times: in small tables that a network overfits, that settles between a tenth and a
hundredth."""
_FIRST_DECAY = 1e-2
"""Before anything moved no more than this share of the parameters decays."""


def decaying(
    metrics: Metrics, wanted: jax.Array, highest: jax.Array, total: Number, largest: Number
) -> jax.Array:
    """Return what share of the parameters decays in a step, float32[]; 0 where that is left alone.

    A move that is mostly decay would seem to be what the rate does: the lower that became, the
    more, and nothing would be learned.

    Args:
        metrics: of the steps since the last decision.
        wanted: root mean square of the next moves.
        highest: loss so far.
        total: share that decays over the run; 0 for leaving it alone.
        largest: share of a move that decay may become.
    """
    if not is_set(total, 0.0):
        return jnp.float32(0.0)
    scale = metrics.param_norm * metrics.update_rms / jnp.maximum(metrics.update_norm, 1e-30)
    share, more = jnp.float32(DECAY_OF_MOVE), jnp.float32(1.0)
    if is_set(largest, DECAY_OF_MOVE):
        may_grow = jnp.asarray(largest) > DECAY_OF_MOVE
        more = jnp.where(may_grow, _by_heart(metrics.value, highest), 1.0)
        share = jnp.minimum(share * more, largest)
    most = jnp.where(scale > 0.0, share * wanted / jnp.maximum(scale, 1e-30), jnp.inf)
    return jnp.minimum(more * total * metrics.per_step, most)


def decay_at(
    rate: jax.Array,
    wanted: jax.Array,
    decay: jax.Array,
    before: jax.Array,
    metrics: Metrics,
    *,
    is_first: jax.Array,
) -> jax.Array:
    """Return the weight decay at a learning rate, float[]; after the end of the run, the same.

    Args:
        rate: that comes next.
        wanted: share of the parameters that decays in a step.
        decay: that there is.
        before: the rate that it was for.
        metrics: of the steps since the last decision.
        is_first: whether decay is still found rather than kept, bool[].
    """
    before, rate = (jnp.maximum(abs(x).astype(jnp.float32), 1e-30) for x in (before, rate))
    # The length of the run, if there is one, shows at the next step.
    is_near = (metrics.step == 0) & (metrics.progress >= 0.0)
    harmless = jnp.minimum(decay.astype(jnp.float32), _FIRST_DECAY / rate)
    # What decays in a step stays, but for what the controller changes, while rates still rise.
    kept = decay.astype(jnp.float32) * before / rate
    later = jnp.where(metrics.progress > 0.0, kept, jnp.where(is_near, harmless, decay))
    new = jnp.where(is_first & (metrics.progress > 0.0), wanted / rate, later).astype(decay.dtype)
    return jnp.where(metrics.is_over, decay, new)


def _by_heart(value: jax.Array, highest: jax.Array) -> jax.Array:
    """Return how many times as much may decay as where examples are not learned by heart yet."""
    # A loss that is no longer above zero, such as a likelihood, says nothing of what is left.
    left = jnp.where(value > 0.0, value / jnp.maximum(highest, 1e-30), 1.0)
    return jnp.clip((_BY_HEART / jnp.maximum(left, 1e-10)) ** _STEEPNESS, 1.0, _MOST)
