"""How far a run has come: by its steps, or as it is told; continuous where the horizon changes.

A run of known length is over where its steps are, or where the progress that is passed is one. A
horizon that becomes known late, is extended or cut must not make a rate jump: what is left of the
run, as controllers see it, is then what is said to be left times a factor, so that progress goes on
from where it was and still ends at one.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_meta.metrics import UNKNOWN_STEPS

_RISE = 0.1
"""After an extension progress goes back to what the new length says while this share of what is
left goes by: as long as a warm-up."""
_RELENGTH = 2.0 / _RISE
"""The logarithm of the length that rates are made for changes by no more than this times that."""
_BACK = 1e-3
"""A progress that falls by more than this is that of a longer run."""
_LEAP, _LEAST_LEAP = 8.0, 0.02
"""One that rises by more than the second, and so many times as much as ever, is of a shorter one:
batches that grow and epochs that end are no such leap."""
_NONE = 1e-9


class Horizon(NamedTuple):
    """How far a run has come and how long it is, float32[] each.

    Attributes:
        total: length in steps as `set_horizon` and `cooldown` set it, 0 where that of the
            controller counts. As all counts of steps here exact up to 2²⁴, 16 million.
        share: share of the run that is over, as steps or what was passed say it; -1 where unknown.
        progress: the same as controllers see it, see `Metrics`.
        per_step: likewise.
        left: what `progress` leaves over what `share` leaves; 1 unless the horizon has changed.
        first_step: step of the first progress passed, or of the first after a leap of it.
        first_share: that progress.
        rate: progress in a step since, as it was passed.
        largest: largest rise of `share` from one step to the next.
        is_passed: 1 where `share` goes by what was passed, at this step or before.
        is_changed: 1 where `total` was set after the last step.
        is_cooldown: 1 where nothing but an even fall is wanted from now on.
        num_misread: how often a progress passed was not in [0, 1].
    """

    total: jax.Array
    share: jax.Array
    progress: jax.Array
    per_step: jax.Array
    left: jax.Array
    first_step: jax.Array
    first_share: jax.Array
    rate: jax.Array
    largest: jax.Array
    is_passed: jax.Array
    is_changed: jax.Array
    is_cooldown: jax.Array
    num_misread: jax.Array

    @classmethod
    def unknown(cls) -> "Horizon":
        """Return what is known before the first step."""
        zero = jnp.float32(0.0)
        blank = cls(*[zero] * len(cls._fields))
        return blank._replace(share=zero - 1.0, progress=zero - 1.0, left=zero + 1.0)

    @property
    def is_replanned(self) -> jax.Array:
        """Whether the length is other than the controller was made for, or may be, bool[]."""
        return (self.total > 0.0) | (self.is_passed > 0.0)

    @property
    def length(self) -> jax.Array:
        """Steps in a run that falls as this one does, float32[]; of no meaning where unknown."""
        is_set = (self.total > 0.0) & (self.is_passed == 0.0)
        known = jnp.where(is_set, self.total, 1.0 / jnp.maximum(self.per_step, _NONE))
        # To a whole number, which the quotient is but for rounding.
        return jnp.round(known) / jnp.maximum(self.left, 1.0)


def planned(horizon: Horizon, total: jax.Array, *, is_cooldown: bool) -> Horizon:
    """Return the horizon of a run whose length was set by hand.

    Args:
        horizon: as it was.
        total: length in steps, float32[].
        is_cooldown: whether what was given up of the peak, or taken too much, stays as it is.
    """
    one = jnp.ones_like(total)
    return horizon._replace(
        total=total, is_passed=0.0 * one, is_changed=one, is_cooldown=one * float(is_cooldown)
    )


@partial(jax.jit, inline=True)  # compiled once, where nobody jits the step
def advanced(
    known: Horizon,
    step: jax.Array,
    total_steps: jax.Array | None,
    passed: jax.Array | None,
) -> Horizon:
    """Return the horizon as it is at a step; asking twice changes nothing twice.

    Args:
        known: as it was.
        step: index of the step, int32[].
        total_steps: what the controller was made for, int32[], below 1 where it is not known.
        passed: progress as the user has it, float32[]; None where none is passed. Without one
            progress goes on at the rate that it had.
    """
    now = step.astype(jnp.float32)
    share, is_read, is_misread = _share(known, now, total_steps, passed)
    was_known, is_known = known.share >= 0.0, share >= 0.0
    rise = share - known.share
    is_leap = (rise < -_BACK) | (
        (rise > jnp.maximum(_LEAP * known.largest, _LEAST_LEAP)) & (known.largest > 0.0)
    )
    is_leap &= is_read & was_known
    is_first = ~was_known & is_known
    # Before the first step there is nothing to go on from.
    is_changed = ((known.is_changed > 0.0) | is_leap | is_first) & is_known & (step > 0)
    is_usual = was_known & ~is_changed
    used = jnp.where(is_usual, jnp.maximum(rise, 0.0) / _above_zero(1.0 - known.share), 0.0)
    left = jnp.where(known.left < 1.0, jnp.minimum(known.left + used / _RISE, 1.0), known.left)
    left = jnp.where(known.is_cooldown > 0.0, known.left, left)
    before = jnp.maximum(known.progress, 0.0)
    left = jnp.where(is_changed, (1.0 - before) / _above_zero(1.0 - share), left)
    # Where nothing ever changed no bit does.
    gone_on = jnp.clip(1.0 - left * (1.0 - share), 0.0, 1.0)
    progress = jnp.where((left == 1.0) | (share >= 1.0), share, gone_on)
    known = _with_rate(known, now, share, is_read, is_first | is_leap)
    return known._replace(
        share=share,
        progress=jnp.where(is_known, progress, -1.0),
        per_step=jnp.where(is_known, _per_step(known, now, share, used, is_changed), 0.0),
        left=left,
        largest=jnp.where(is_usual, jnp.maximum(known.largest, rise), known.largest),
        is_changed=jnp.zeros_like(left),
        num_misread=known.num_misread + is_misread,
    )


def _share(
    known: Horizon, now: jax.Array, total_steps: jax.Array | None, passed: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the share that is over, whether it was passed now, and whether that was no share."""
    total = jnp.float32(0.0) if total_steps is None else total_steps.astype(jnp.float32)
    total = jnp.where(known.total > 0.0, known.total, total)
    by_steps = jnp.where(total > 0.0, jnp.minimum(now / jnp.maximum(total, 1.0), 1.0), -1.0)
    gone_on = jnp.minimum(known.first_share + known.rate * (now - known.first_step), 1.0)
    expected = jnp.where(known.is_passed > 0.0, gone_on, by_steps)
    if passed is None:
        return expected, jnp.bool_(False), jnp.float32(0.0)
    is_read, clipped = jnp.isfinite(passed), jnp.clip(passed, 0.0, 1.0)
    is_misread = ~(clipped == passed)
    return jnp.where(is_read, clipped, expected), is_read, is_misread.astype(jnp.float32)


def _with_rate(
    known: Horizon, now: jax.Array, share: jax.Array, is_read: jax.Array, is_new: jax.Array
) -> Horizon:
    """Return the horizon with the rate of the progress that was passed, if one was."""
    first_step = jnp.where(is_new, now, known.first_step)
    first_share = jnp.where(is_new, share, known.first_share)
    rate = jnp.maximum(share - first_share, 0.0) / jnp.maximum(now - first_step, 1.0)
    new = known._replace(
        first_step=first_step, first_share=first_share, rate=rate, is_passed=jnp.float32(1.0)
    )
    return Horizon(*(jnp.where(is_read, n, old) for n, old in zip(new, known, strict=True)))


def _per_step(
    known: Horizon, now: jax.Array, share: jax.Array, used: jax.Array, is_changed: jax.Array
) -> jax.Array:
    """Return one over the length that rates are made for, which moves gradually, float32[]."""
    # What is left takes as long at the rate so far, if not all of it went by since step 0.
    ahead = known.rate / _above_zero(known.rate * now + (1.0 - share))
    is_from_start = (known.is_passed == 0.0) | ((known.first_step + known.first_share) == 0.0)
    said = jnp.where(is_from_start, share / jnp.maximum(now, 1.0), ahead)
    is_late = is_changed & (known.per_step == 0.0)
    before = jnp.where(is_late, 1.0 / UNKNOWN_STEPS, known.per_step)
    most = jnp.exp(_RELENGTH * used)
    moved = jnp.clip(said, before / most, before * most)
    is_kept = (known.is_cooldown > 0.0) | (said == 0.0)
    return jnp.where(before > 0.0, jnp.where(is_kept, before, moved), said)


def _above_zero(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, _NONE)
