"""Reduce on plateau."""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_meta.base import Controller, Hyperparams
from optax_meta.checks import check_whole
from optax_meta.metrics import Metrics
from optax_meta.origins import keep_origin

# Finite, since an infinity in the state would trip `jax_debug_infs`.
_NO_VALUE = float(np.finfo(np.float32).max)


class PlateauState(NamedTuple):
    """State of `plateau`.

    Attributes:
        best_value: best loss so far, float32[]; the largest number, or in "max" mode the smallest,
            before the first one.
        num_bad: decisions without improvement in a row, and of cooldown left; int32[2].
    """

    best_value: jax.Array
    num_bad: jax.Array


@keep_origin
def plateau(
    *,
    factor: float = 0.1,
    patience: int = 10,
    cooldown: int = 0,
    threshold: float = 1e-4,
    threshold_mode: Literal["rel", "abs"] = "rel",
    mode: Literal["min", "max"] = "min",
    min_value: float = 0.0,
    eps: float = 1e-8,
    hyperparam: str = "learning_rate",
) -> Controller:
    """Multiply the learning rate by `factor` when the loss has stopped improving.

    Decides as PyTorch's `ReduceLROnPlateau` with the same arguments, sequence for sequence, with
    two differences: negative losses are compared correctly (below zero PyTorch's relative threshold
    moves the wrong way, so that a loss that stands still counts as improving), and a value that is
    not finite counts as nothing at all: a step that did not happen is no evidence. Counts
    one more decision than `optax.contrib`'s `reduce_on_plateau` and Keras before it reduces: their
    `patience` less one is the same.

    Args:
        factor: what to multiply by, in (0, 1).
        patience: decisions without improvement that are tolerated, ≥ 0: the next one reduces.
        cooldown: decisions after a reduction in which none is counted, ≥ 0.
        threshold: how much better counts as improvement, ≥ 0.
        threshold_mode: "rel": better than best ∓ threshold·|best|; "abs": than best ∓ threshold.
        mode: "min" where lower values are better, "max" where higher ones are.
        min_value: never reduce below it, ≥ 0.
        eps: a reduction by no more than this is skipped, ≥ 0.
        hyperparam: name of the hyperparameter to reduce.

    Returns:
        A `Controller` that decides at every step; pass `decision_interval=` to
        `control_hyperparams` for one decision an epoch, on the mean loss.

    Raises:
        ValueError: an argument is out of range.

    Source: `torch.optim.lr_scheduler.ReduceLROnPlateau`, https://pytorch.org/docs.

    Example:
        >>> controller = optax_meta.plateau(factor=0.5, patience=5, cooldown=2)
        >>> tx = optax_meta.control_hyperparams(optax.adamw, controller)(learning_rate=1e-3)
    """
    if not 0.0 < factor < 1.0:
        raise ValueError(f"`factor` must lie in (0, 1), got {factor}")
    patience, cooldown = check_whole("patience", patience, 0), check_whole("cooldown", cooldown, 0)
    if not (threshold >= 0.0 and min_value >= 0.0 and eps >= 0.0):
        raise ValueError(
            "`threshold`, `min_value` and `eps` must not be negative, got "
            f"{threshold}, {min_value} and {eps}"
        )
    if threshold_mode not in ("rel", "abs"):
        raise ValueError(f'`threshold_mode` must be "rel" or "abs", got {threshold_mode!r}')
    if mode not in ("min", "max"):
        raise ValueError(f'`mode` must be "min" or "max", got {mode!r}')
    sign = 1.0 if mode == "min" else -1.0
    is_better = partial(_is_better, threshold, threshold_mode, sign)
    reduce = partial(_reduce, factor, min_value, eps)
    return Controller(
        init=lambda hyperparams: PlateauState(  # noqa: ARG005
            jnp.float32(sign * _NO_VALUE), jnp.zeros(2, jnp.int32)
        ),
        update=partial(_update, is_better, reduce, patience, cooldown, hyperparam),
        hyperparams=(hyperparam,),
        bounds={hyperparam: (min_value, float("inf"))},
    )


def _is_better(
    threshold: float, threshold_mode: str, sign: float, value: jax.Array, best: jax.Array
) -> jax.Array:
    value, best = sign * value, sign * best
    margin = threshold * jnp.abs(best) if threshold_mode == "rel" else threshold
    return (value < best - margin) | (best >= _NO_VALUE)


def _reduce(factor: float, min_value: float, eps: float, old: jax.Array) -> jax.Array:
    new = jnp.maximum(old * factor, min_value)
    return jnp.where(old - new > eps, new, old)


def _update(
    is_better: "partial[jax.Array]",
    reduce: "partial[jax.Array]",
    patience: int,
    cooldown: int,
    hyperparam: str,
    metrics: Metrics,
    state: PlateauState,
    hyperparams: Hyperparams,
) -> tuple[Hyperparams, PlateauState]:
    better = is_better(metrics.value, state.best_value)
    best = jnp.where(better, metrics.value, state.best_value)
    num_bad, cooling = state.num_bad
    num_bad = jnp.where(better | (cooling > 0), 0, num_bad + 1)
    is_due = num_bad > patience
    cooling = jnp.where(is_due, cooldown, jnp.maximum(cooling - 1, 0))
    num_bad = jnp.where(is_due, 0, num_bad)
    old = hyperparams[hyperparam]
    new = {**hyperparams, hyperparam: jnp.where(is_due, reduce(old), old)}
    after = (new, PlateauState(best, jnp.stack([num_bad, cooling])))
    return jax.tree.map(partial(jnp.where, metrics.saw_finite), after, (hyperparams, state))
