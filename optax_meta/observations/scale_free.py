"""The scale-free state: features that carry no unit of the loss or of the parameters."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_meta.base import Encoder, Hyperparams
from optax_meta.metrics import USUAL_STEPS, Metrics
from optax_meta.observations.features import finite, log, over, progress, squash


class ScaleFreeState(NamedTuple):
    """What the scale-free encoder remembers.

    Attributes:
        memory: entries of `_Memory`, packed, float32[19].

    Example:
        >>> optax_meta.observations.scale_free().init().memory.shape
        (19,)
    """

    memory: jax.Array


class _Memory(NamedTuple):
    """Running quantities, float32[] each; updated at every decision."""

    num_decisions: jax.Array
    first_value: jax.Array
    lowest_value: jax.Array  # of the fast average
    last_value: jax.Array
    fast_value: jax.Array  # average with decay 0.5
    slow_value: jax.Array  # average with decay 0.9
    slowest_value: jax.Array  # average with decay 0.97
    change: jax.Array  # average of the loss's change from step to step, decay 0.8
    first_grad_norm: jax.Array
    slow_grad_norm: jax.Array
    slow_alignment: jax.Array  # averages with decay 0.9, and of squares, for their errors
    slow_square: jax.Array
    slow_start_alignment: jax.Array
    slow_start_square: jax.Array
    last_log_distance: jax.Array
    last_log_rate: jax.Array
    first_log_rate: jax.Array
    highest_log_rate: jax.Array
    last_used_log_rate: jax.Array


def scale_free(*, weight_decay: bool = False) -> Encoder:
    """Build the encoder of features that do not depend on the scale of loss or parameters.

    Adding a constant to the loss or multiplying it, or storing the parameters in other units (with
    the learning rate to match), changes no feature. v is the mean loss since the last decision,
    v̄, v̿ and ṽ its averages over decisions with decays ½, 0.9 and 0.97, v₀ the first, v₋ the lowest
    v̄, δ the average change of the loss from one step to the next: its noise, and σ the standard
    error of a difference of two v that follows from δ.

    ==================  ===========================================================================
    `progress`          2p - 1, see `progress`
    `has_horizon`       1 where the length of the run is known, else -1
    `early`             2t/(t + 30) - 1 for step t
    `level`             (v̄ - v₋)/(v₀ - v₋ + δ)
    `drop`              fall of v since the last decision over σ
    `slow_drop`         (v̿ - v̄)/δ
    `steady_drop`       (v̿ - v̄)/σ: whether the fall of the last ten decisions is significant
    `long_drop`         (ṽ - v̿)/σ: likewise of the last thirty
    `slowing`           how much slower v falls than it did: (ṽ - 2v̿ + v̄)/(|ṽ - v̿| + |v̿ - v̄| + σ)
    `rise`              (v̄ - v₋)/σ
    `relative_drop`     10(v̿ - v̄)/(v₀ - v₋ + δ)
    `noise`             log of δ/(v₀ - v₋)
    `grad_norm_trend`   log of the gradient norm over its slow average
    `grad_norm_level`   log of the gradient norm over the first
    `alignment`         cosine of the negative gradient and the last move, mean since the decision
    `slow_alignment`    the same, averaged over decisions
    `significance`      that average over its standard error: in large networks cosines are near
                        zero, and tell something all the same
    `start_alignment`   as `significance`, for the way from the start in place of the last move
    `persistence`       cosine of successive moves, mean since the decision
    `update_ratio`      log of the root mean square of a move over the distance
    `growth`            log of the distance over that at the last decision
    `displacement`      log of the way from the start over the distance
    `gain_ratio`        fall of v over what gradient norm · update norm would give: realised over
                        predicted decrease
    `last_change`       log of the used rate over that before, annealing included
    `last_move`         log of the policy's own rate over that before: the last action
    `travel`            log of its own rate over the first
    `below_peak`        log of its own rate over the highest so far
    `nonfinite`         share of steps since the last decision that were not finite
    `decay`             with `weight_decay`: log of rate · weight decay · length of the run, 1000
                        steps where it is not known: how far the run shrinks the parameters
    `fit`               with `weight_decay`: log of v̄ over v₀, 0 where one is not positive; the
                        only feature that depends on where the loss has its zero
    ==================  ===========================================================================

    Args:
        weight_decay: whether the controller steers the weight decay too and needs to see it.

    Returns:
        An `Encoder` with 28 features, 30 with `weight_decay`.

    Source: L. Metz et al., "Tasks, stability, architecture, and compute: training more effective
    learned optimizers, and using them to train themselves", https://arxiv.org/abs/2009.11243, for
    features that carry no units; A. G. Baydin et al., https://arxiv.org/abs/1703.04782, for the
    alignment.

    Example:
        >>> len(optax_meta.observations.scale_free().features)
        28
    """
    features = (
        "progress",
        "has_horizon",
        "early",
        "level",
        "drop",
        "slow_drop",
        "steady_drop",
        "long_drop",
        "slowing",
        "rise",
        "relative_drop",
        "noise",
        "grad_norm_trend",
        "grad_norm_level",
        "alignment",
        "slow_alignment",
        "significance",
        "start_alignment",
        "persistence",
        "update_ratio",
        "growth",
        "displacement",
        "gain_ratio",
        "last_change",
        "last_move",
        "travel",
        "below_peak",
        "nonfinite",
        *(("decay", "fit") if weight_decay else ()),
    )
    return Encoder(
        init=_scale_free_init,
        update=partial(_scale_free_update, weight_decay),
        features=features,
        name="scale_free",
        config={"weight_decay": True} if weight_decay else {},
        needs_alignment=True,
    )


def _scale_free_init() -> ScaleFreeState:
    return ScaleFreeState(jnp.zeros(len(_Memory._fields), jnp.float32))


def _scale_free_update(
    weight_decay: bool,  # noqa: FBT001 - bound by name
    metrics: Metrics,
    state: ScaleFreeState,
    hyperparams: Hyperparams,
) -> tuple[jax.Array, ScaleFreeState]:
    needed = ("learning_rate", "weight_decay") if weight_decay else ("learning_rate",)
    if missing := [name for name in needed if name not in hyperparams]:
        raise ValueError(
            f"the scale-free encoder watches `{missing[0]}`, which is not steered: add it to the "
            "action space, or use `observations.classic()`"
        )
    # What the optimizer used, annealing and clipping included: that is what the losses answer to.
    used = {name: finite(metrics.hyperparams.get(name, hyperparams[name])) for name in needed}
    old = _Memory(*state.memory)
    own = log(finite(hyperparams["learning_rate"]))
    new = _remember(metrics, old, own, log(used["learning_rate"]))
    features = [
        *_time_features(metrics),
        *_loss_features(metrics, old, new),
        *_gradient_features(metrics, new),
        *_move_features(metrics, old),
        *_rate_features(old, new),
        2.0 * metrics.num_nonfinite / _num_steps(metrics) - 1.0,
        *(_decay_features(metrics, used, new) if weight_decay else ()),
    ]
    observation = jnp.clip(finite(jnp.stack(features)), -1.0, 1.0)
    return observation, ScaleFreeState(jnp.stack(new))


def _remember(metrics: Metrics, old: _Memory, own: jax.Array, used: jax.Array) -> _Memory:
    """Return the running quantities after one more decision, given log-rates own and used."""
    value, grad_norm = finite(metrics.value), finite(metrics.grad_norm)
    is_first = _is_first(old)

    def average(decay: float, before: jax.Array, now: jax.Array) -> jax.Array:
        return jnp.where(is_first, now, decay * before + (1.0 - decay) * now)

    fast = average(0.5, old.fast_value, value)
    alignment, start_alignment = metrics.alignment, metrics.start_alignment
    return _Memory(
        # Until something finite was measured the first decision is still to come.
        num_decisions=jnp.where(is_first & metrics.is_empty, 0.0, old.num_decisions + 1.0),
        first_value=jnp.where(is_first, value, old.first_value),
        lowest_value=jnp.where(is_first, fast, jnp.minimum(old.lowest_value, fast)),
        last_value=value,
        fast_value=fast,
        slow_value=average(0.9, old.slow_value, value),
        slowest_value=average(0.97, old.slowest_value, value),
        change=average(0.8, old.change, finite(metrics.value_change)),
        first_grad_norm=jnp.where(is_first, grad_norm, old.first_grad_norm),
        slow_grad_norm=average(0.9, old.slow_grad_norm, grad_norm),
        slow_alignment=average(0.9, old.slow_alignment, alignment),
        slow_square=average(0.9, old.slow_square, alignment**2),
        slow_start_alignment=average(0.9, old.slow_start_alignment, start_alignment),
        slow_start_square=average(0.9, old.slow_start_square, start_alignment**2),
        last_log_distance=log(metrics.distance),
        last_log_rate=own,
        first_log_rate=jnp.where(is_first, own, old.first_log_rate),
        highest_log_rate=jnp.where(is_first, own, jnp.maximum(old.highest_log_rate, own)),
        last_used_log_rate=used,
    )


def _is_first(old: _Memory) -> jax.Array:
    return old.num_decisions == 0.0


def _num_steps(metrics: Metrics) -> jax.Array:
    return jnp.maximum(metrics.num_steps, 1.0)


def _fall(metrics: Metrics, old: _Memory) -> jax.Array:
    """Return how far the loss fell since the last decision, 0 at the first."""
    value = finite(metrics.value)
    return jnp.where(_is_first(old), value, old.last_value) - value


def _time_features(metrics: Metrics) -> tuple[jax.Array, ...]:
    step = metrics.step.astype(jnp.float32)
    # 0 after thirty steps, by when calibration is over and the loss has made its first fall.
    early = 2.0 * step / (step + 30.0) - 1.0
    return progress(metrics), jnp.where(metrics.progress < 0.0, -1.0, 1.0), early


def _loss_features(metrics: Metrics, old: _Memory, new: _Memory) -> tuple[jax.Array, ...]:
    fall, slow_fall = _fall(metrics, old), new.slow_value - new.fast_value
    long_fall, rise = new.slowest_value - new.slow_value, new.fast_value - new.lowest_value
    span = new.first_value - new.lowest_value + new.change
    # Standard error of the difference of two means over the window, by the noise of one step.
    error = new.change * jnp.sqrt(2.0 / _num_steps(metrics))
    return (
        over(rise, span),
        squash(over(fall, error)),
        squash(over(slow_fall, new.change)),
        squash(over(slow_fall, error)),
        squash(over(long_fall, error)),
        over(long_fall - slow_fall, jnp.abs(long_fall) + jnp.abs(slow_fall) + error),
        squash(over(rise, error)),
        squash(over(10.0 * slow_fall, span)),
        jnp.tanh(0.5 * (log(new.change) - log(span - new.change)) + 1.0),
    )


def _gradient_features(metrics: Metrics, new: _Memory) -> tuple[jax.Array, ...]:
    grad_norm = log(metrics.grad_norm)
    return (
        jnp.tanh(grad_norm - log(new.slow_grad_norm)),
        jnp.tanh((grad_norm - log(new.first_grad_norm)) / 3.0),
        metrics.alignment,
        new.slow_alignment,
        _significance(new.slow_alignment, new.slow_square, new.num_decisions),
        _significance(new.slow_start_alignment, new.slow_start_square, new.num_decisions),
        metrics.persistence,
    )


def _significance(mean: jax.Array, square: jax.Array, count: jax.Array) -> jax.Array:
    """Return tanh of a quarter of an average over its standard error; 0 of fewer than three."""
    # An average with decay 0.9 has the variance of one over nineteen; of few it is over these.
    deviation = jnp.sqrt(jnp.maximum(square - mean**2, 1e-6))
    error = deviation / jnp.sqrt(jnp.clip(count, 1.0, 19.0))
    return jnp.where(count < 3.0, 0.0, jnp.tanh(mean / error / 4.0))


def _move_features(metrics: Metrics, old: _Memory) -> tuple[jax.Array, ...]:
    predicted = finite(metrics.grad_norm) * finite(metrics.update_norm) * _num_steps(metrics)
    distance = log(metrics.distance)
    growth = jnp.where(_is_first(old), 0.0, distance - old.last_log_distance)
    return (
        # Centred on what good runs have: moves of a fifth of the distance, ways of eight times it.
        jnp.tanh((log(metrics.update_rms) - distance + 1.6) / 2.0),
        jnp.tanh(3.0 * growth),
        jnp.tanh((log(metrics.displacement) - distance - 2.0) / 1.5),
        squash(3.0 * over(_fall(metrics, old), predicted)),
    )


def _rate_features(old: _Memory, new: _Memory) -> tuple[jax.Array, ...]:
    own, used = new.last_log_rate, new.last_used_log_rate
    is_first = _is_first(old)
    return (
        jnp.tanh(used - jnp.where(is_first, used, old.last_used_log_rate)),
        jnp.tanh(own - jnp.where(is_first, own, old.last_log_rate)),
        jnp.tanh((own - new.first_log_rate) / 2.0),
        jnp.tanh((own - new.highest_log_rate) / 2.0),
    )


def _decay_features(
    metrics: Metrics, used: Hyperparams, memory: _Memory
) -> tuple[jax.Array, jax.Array]:
    known = 1.0 / jnp.maximum(metrics.per_step, 1e-9)
    total = jnp.where(metrics.per_step > 0.0, known, USUAL_STEPS)
    shrinkage = used["learning_rate"] * used["weight_decay"] * total
    is_positive = (memory.fast_value > 0.0) & (memory.first_value > 0.0)
    fit = jnp.where(is_positive, log(memory.fast_value) - log(memory.first_value), 0.0)
    return jnp.tanh(log(shrinkage) / 4.0), jnp.tanh(fit / 3.0)
