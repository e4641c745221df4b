"""State encoders: what a policy sees of the run.

`classic` is the state of eight features. Every feature is finite and in [-1, 1] for any input.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_meta.base import Encoder, Hyperparams, check_whole
from optax_meta.metrics import Metrics

_LARGEST = 1e30
_SMALLEST = 1e-30


def squash(x: jax.Array) -> jax.Array:
    """Return s/(1 + |s|) with s = sign(x)·log(1 + |x|): odd, monotone, in (-1, 1).

    Args:
        x: float32[…]; nan counts as 0.

    Returns:
        float32[…], of the same shape.

    >>> print(np.asarray(squash(jnp.array([0.0, 1.0, -1.0, jnp.inf, jnp.nan]))).round(2))
    [ 0.    0.41 -0.41  0.99  0.  ]
    """
    x = _finite(x)
    symlog = jnp.sign(x) * jnp.log1p(jnp.abs(x))
    return symlog / (1.0 + jnp.abs(symlog))


def squash_log(x: jax.Array, center: jax.typing.ArrayLike) -> jax.Array:
    """Return tanh((log₁₀ x - log₁₀ center)/3): 0 at `center`, ±0.76 three decades away.

    Args:
        x: float32[…], meant to be ≥ 0; anything below 1e-30 counts as 1e-30.
        center: the value that maps to 0, > 0; a number or an array of the same shape.

    Returns:
        float32[…], of the same shape, in [-1, 1].

    >>> print(np.asarray(squash_log(jnp.array([1e-3, 1.0, 0.0]), 1e-3)).round(2))
    [ 0.    0.76 -1.  ]
    """
    decades = jnp.log10(jnp.clip(_finite(x), _SMALLEST, _LARGEST)) - jnp.log10(center)
    return jnp.tanh(decades / 3.0)


def trend(history: jax.Array, size: jax.Array) -> jax.Array:
    """Return (n - o)/(|n| + |o|) for the means o, n of the older and the newer half.

    Negative while the series falls; does not depend on its scale; 0 for a constant one.

    Args:
        history: float32[H], newest first; only the first `size` entries are looked at.
        size: how many entries are filled, in [0, H]; below 2 there is no trend and 0 is returned.

    Returns:
        float32[], in [-1, 1].

    >>> print(trend(jnp.array([1.0, 1.0, 4.0, 2.0]), jnp.array(4.0)).round(4))
    -0.5
    """
    age = jnp.arange(history.size, dtype=jnp.float32)
    half = jnp.floor(size / 2.0)
    scale = jnp.max(jnp.abs(history))
    history = history / jnp.where(scale > 0.0, scale, 1.0)
    new = jnp.sum(jnp.where(age < half, history, 0.0)) / jnp.maximum(half, 1.0)
    is_old = (age >= size - half) & (age < size)
    old = jnp.sum(jnp.where(is_old, history, 0.0)) / jnp.maximum(half, 1.0)
    total = jnp.abs(new) + jnp.abs(old)
    return jnp.clip((new - old) / jnp.where(total > 0.0, total, 1.0), -1.0, 1.0)


def progress(metrics: Metrics) -> jax.Array:
    """Return 2p - 1 for the share p of the run that is over.

    Without a horizon p = t/(t + 1000), t the step: it still grows, ever slower.

    Args:
        metrics: of which `progress` and `step` are read.

    Returns:
        float32[], in [-1, 1].

    >>> zeros = optax_meta.Metrics(*jnp.zeros(13))
    >>> print(progress(zeros._replace(step=jnp.array(1000), progress=jnp.array(-1.0))))
    0.0
    """
    step = metrics.step.astype(jnp.float32)
    share = jnp.where(metrics.progress < 0.0, step / (step + 1000.0), metrics.progress)
    return 2.0 * jnp.clip(_finite(share), 0.0, 1.0) - 1.0


class ClassicState(NamedTuple):
    """History of the classic encoder.

    Attributes:
        history: losses in row 0, gradient norms in row 1, newest first; the first entry of row 2
            is how many are filled; float32[3, H].

    Example:
        >>> optax_meta.observations.classic(history=10).init().history.shape
        (3, 10)
    """

    history: jax.Array


def classic(*, history: int = 10) -> Encoder:
    """Build the encoder of the eight classic features.

    ==================  ====================================================================
    `loss`              squash(loss), see `squash`
    `learning_rate`     squash_log(learning rate, center=1e-3), see `squash_log`
    `grad_norm`         squash_log(gradient norm, center=1)
    `weight_decay`      squash_log(weight decay, center=1e-4)
    `cost`              squash(cost)
    `loss_trend`        trend of the last `history` losses, see `trend`
    `grad_norm_trend`   trend of the last `history` gradient norms
    `progress`          2p - 1, see `progress`
    ==================  ====================================================================

    A hyperparameter that is not steered counts as 0, so its feature is the constant -1.

    Args:
        history: how many decisions the trends look back, ≥ 2.

    Returns:
        An `Encoder` with eight features.

    Raises:
        ValueError: `history` is below 2.

    Example:
        >>> encoder = optax_meta.observations.classic(history=20)
        >>> encoder.features[:3]
        ('loss', 'learning_rate', 'grad_norm')
    """
    history = check_whole("history", history, 2)
    features = (
        "loss",
        "learning_rate",
        "grad_norm",
        "weight_decay",
        "cost",
        "loss_trend",
        "grad_norm_trend",
        "progress",
    )
    init = partial(_classic_init, history)
    return Encoder(init, _classic_update, features, "classic", {"history": history})


class ScaleFreeState(NamedTuple):
    """What the scale-free encoder remembers.

    Attributes:
        memory: entries of `_Memory`, packed, float32[15].

    Example:
        >>> optax_meta.observations.scale_free().init().memory.shape
        (15,)
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
    param_norm_base: jax.Array  # at the end of the reference period
    slow_grad_norm: jax.Array
    slow_alignment: jax.Array
    last_log_rate: jax.Array
    log_rate_base: jax.Array  # at the end of the reference period
    highest_log_rate: jax.Array


def scale_free(*, reference: int = 8, weight_decay: bool = False) -> Encoder:
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
    `update_ratio`      log of the update's norm over the parameters'
    `param_growth`      log of the parameters' norm over that of the first `reference` decisions
    `gain_ratio`        fall of v over what gradient norm · update norm would give: realised over
                        predicted decrease
    `last_move`         log of the rate over that before: the last action, annealing included
    `travel`            log of the rate over that of the first `reference` decisions
    `below_peak`        log of the rate over the highest so far
    `nonfinite`         share of steps since the last decision that were not finite
    `decay`             with `weight_decay`: log of rate · weight decay · length of the run, 1000
                        steps where it is not known: how far the run shrinks the parameters
    `fit`               with `weight_decay`: log of v̄ over v₀, 0 where one is not positive; the
                        only feature that depends on where the loss has its zero
    ==================  ===========================================================================

    Args:
        reference: number of first decisions in which the bases of `travel`, `below_peak` and
            `param_growth` still follow what they are the base of, ≥ 1.
        weight_decay: whether the controller steers the weight decay too and needs to see it.

    Returns:
        An `Encoder` with 23 features, 25 with `weight_decay`.

    Raises:
        ValueError: `reference` is below 1.

    Source: L. Metz et al., "Tasks, stability, architecture, and compute: training more effective
    learned optimizers, and using them to train themselves", https://arxiv.org/abs/2009.11243, for
    features that carry no units; A. G. Baydin et al., https://arxiv.org/abs/1703.04782, for the
    alignment.

    Example:
        >>> len(optax_meta.observations.scale_free().features)
        23
    """
    reference = check_whole("reference", reference)
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
        "update_ratio",
        "param_growth",
        "gain_ratio",
        "last_move",
        "travel",
        "below_peak",
        "nonfinite",
        *(("decay", "fit") if weight_decay else ()),
    )
    return Encoder(
        init=_scale_free_init,
        update=partial(_scale_free_update, reference, weight_decay),
        features=features,
        name="scale_free",
        config={"reference": reference, **({"weight_decay": True} if weight_decay else {})},
        needs_alignment=True,
    )


ENCODERS: dict[str, Callable[..., Encoder]] = {"classic": classic, "scale_free": scale_free}
"""Encoders that a saved policy can name; each is built again from its `config`."""


def _classic_init(history: int) -> ClassicState:
    return ClassicState(jnp.zeros((3, history), jnp.float32))


def _classic_update(
    metrics: Metrics, state: ClassicState, hyperparams: Hyperparams
) -> tuple[jax.Array, ClassicState]:
    def steered(name: str) -> jax.Array:
        return jnp.asarray(hyperparams.get(name, 0.0), jnp.float32)

    size = jnp.minimum(state.history[2, 0] + 1.0, state.history.shape[1])
    newest = jnp.stack([_finite(metrics.value), _finite(metrics.grad_norm), size])
    history = jnp.concatenate([newest[:, None], state.history[:, :-1]], axis=1)
    values = squash(jnp.stack([metrics.value, metrics.cost]))
    scales = jnp.stack([steered("learning_rate"), metrics.grad_norm, steered("weight_decay")])
    logs = squash_log(scales, jnp.array([1e-3, 1.0, 1e-4], jnp.float32))
    trends = jax.vmap(trend, (0, None))(history[:2], size)
    parts = [values[:1], logs, values[1:], trends, progress(metrics)[None]]
    return jnp.concatenate(parts), ClassicState(history)


def _scale_free_init() -> ScaleFreeState:
    return ScaleFreeState(jnp.zeros(len(_Memory._fields), jnp.float32))


def _scale_free_update(
    reference: int,
    weight_decay: bool,  # noqa: FBT001
    metrics: Metrics,
    state: ScaleFreeState,
    hyperparams: Hyperparams,
) -> tuple[jax.Array, ScaleFreeState]:
    needed = ("learning_rate", "weight_decay") if weight_decay else ("learning_rate",)
    missing = [name for name in needed if name not in hyperparams]
    if missing:
        raise ValueError(
            f"the scale-free encoder watches `{missing[0]}`, which is not steered: add it to the "
            "action space, or use `observations.classic()`"
        )
    old = _Memory(*state.memory)
    value, grad_norm = _finite(metrics.value), _finite(metrics.grad_norm)
    param_norm = _finite(metrics.param_norm)
    log_rate = _log(jnp.asarray(hyperparams["learning_rate"]))
    is_first = old.num_decisions == 0

    def average(decay: float, before: jax.Array, now: jax.Array) -> jax.Array:
        return jnp.where(is_first, now, decay * before + (1.0 - decay) * now)

    fast = average(0.5, old.fast_value, value)
    is_reference = old.num_decisions < reference
    new = _Memory(
        num_decisions=old.num_decisions + 1.0,
        first_value=jnp.where(is_first, value, old.first_value),
        lowest_value=jnp.where(is_first, fast, jnp.minimum(old.lowest_value, fast)),
        last_value=value,
        fast_value=fast,
        slow_value=average(0.9, old.slow_value, value),
        slowest_value=average(0.97, old.slowest_value, value),
        change=average(0.8, old.change, _finite(metrics.value_change)),
        first_grad_norm=jnp.where(is_first, grad_norm, old.first_grad_norm),
        param_norm_base=jnp.where(is_reference, param_norm, old.param_norm_base),
        slow_grad_norm=average(0.9, old.slow_grad_norm, grad_norm),
        slow_alignment=average(0.9, old.slow_alignment, metrics.alignment),
        last_log_rate=log_rate,
        log_rate_base=jnp.where(is_reference, log_rate, old.log_rate_base),
        highest_log_rate=jnp.where(
            is_reference, log_rate, jnp.maximum(old.highest_log_rate, log_rate)
        ),
    )
    last_value = jnp.where(is_first, value, old.last_value)
    last_log_rate = jnp.where(is_first, log_rate, old.last_log_rate)
    fall, slow_fall = last_value - value, new.slow_value - new.fast_value
    long_fall, rise = new.slowest_value - new.slow_value, new.fast_value - new.lowest_value
    span = new.first_value - new.lowest_value + new.change
    steps = jnp.maximum(metrics.num_steps, 1.0)
    error = new.change * jnp.sqrt(2.0 / steps)
    step = metrics.step.astype(jnp.float32)
    predicted = grad_norm * _finite(metrics.update_norm) * steps
    share = metrics.num_nonfinite / steps
    observation = jnp.stack(
        [
            progress(metrics),
            jnp.where(metrics.progress < 0.0, -1.0, 1.0),
            2.0 * step / (step + 30.0) - 1.0,
            _over(rise, span),
            squash(_over(fall, error)),
            squash(_over(slow_fall, new.change)),
            squash(_over(slow_fall, error)),
            squash(_over(long_fall, error)),
            _over(long_fall - slow_fall, jnp.abs(long_fall) + jnp.abs(slow_fall) + error),
            squash(_over(rise, error)),
            squash(_over(10.0 * slow_fall, span)),
            jnp.tanh(0.5 * (_log(new.change) - _log(span - new.change)) + 1.0),
            jnp.tanh(_log(grad_norm) - _log(new.slow_grad_norm)),
            jnp.tanh((_log(grad_norm) - _log(new.first_grad_norm)) / 3.0),
            metrics.alignment,
            new.slow_alignment,
            jnp.tanh((_log(metrics.update_ratio) + 7.0) / 3.0),
            jnp.tanh((_log(param_norm) - _log(new.param_norm_base)) / 3.0),
            squash(3.0 * _over(fall, predicted)),
            jnp.tanh(log_rate - last_log_rate),
            jnp.tanh((log_rate - new.log_rate_base) / 5.0),
            jnp.tanh((log_rate - new.highest_log_rate) / 3.0),
            2.0 * share - 1.0,
            *(_decay_features(metrics, hyperparams, new) if weight_decay else ()),
        ]
    )
    return jnp.clip(_finite(observation), -1.0, 1.0), ScaleFreeState(jnp.stack(new))


def _decay_features(
    metrics: Metrics, hyperparams: Hyperparams, memory: _Memory
) -> tuple[jax.Array, jax.Array]:
    step = metrics.step.astype(jnp.float32)
    total = jnp.where(metrics.progress > 0.0, step / jnp.maximum(metrics.progress, 1e-9), 1e3)
    shrinkage = hyperparams["learning_rate"] * hyperparams["weight_decay"] * total
    is_positive = (memory.fast_value > 0.0) & (memory.first_value > 0.0)
    fit = jnp.where(is_positive, _log(memory.fast_value) - _log(memory.first_value), 0.0)
    return jnp.tanh(_log(shrinkage) / 4.0), jnp.tanh(fit / 3.0)


def _log(x: jax.Array) -> jax.Array:
    """Return the natural logarithm of x ≥ 0, at least log 1e-30."""
    return jnp.log(jnp.clip(_finite(x), _SMALLEST, _LARGEST))


def _over(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return x/y for y ≥ 0, where 0/0 is 0."""
    return jnp.where(x == 0.0, 0.0, x / jnp.maximum(y, _SMALLEST))


def _finite(x: jax.Array) -> jax.Array:
    x = jnp.asarray(x, jnp.float32)
    return jnp.clip(jnp.nan_to_num(x, nan=0.0), -_LARGEST, _LARGEST)
