"""The classic state of eight features."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_meta.base import Encoder, Hyperparams
from optax_meta.checks import check_whole
from optax_meta.metrics import USUAL_RATE, Metrics
from optax_meta.observations.features import finite, progress, squash, squash_log, trend


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


def _classic_init(history: int) -> ClassicState:
    return ClassicState(jnp.zeros((3, history), jnp.float32))


def _classic_update(
    metrics: Metrics, state: ClassicState, hyperparams: Hyperparams
) -> tuple[jax.Array, ClassicState]:
    def steered(name: str) -> jax.Array:
        # What the optimizer used, annealing and clipping included.
        used = metrics.hyperparams.get(name, hyperparams[name]) if name in hyperparams else 0.0
        return jnp.asarray(used).astype(jnp.float32)

    # Before anything finite was measured there is no history.
    is_known = (~metrics.is_empty).astype(jnp.float32)
    size = jnp.minimum(state.history[2, 0] + is_known, float(state.history.shape[1]))
    newest = jnp.stack([finite(metrics.value), finite(metrics.grad_norm), size])
    history = jnp.concatenate([newest[:, None], state.history[:, :-1]], axis=1)
    values = squash(jnp.stack([metrics.value, metrics.cost]))
    scales = jnp.stack([steered("learning_rate"), metrics.grad_norm, steered("weight_decay")])
    logs = squash_log(scales, jnp.array([USUAL_RATE, 1.0, 1e-4], jnp.float32))
    trends = jax.vmap(trend, (0, None))(history[:2], size)
    parts = [values[:1], logs, values[1:], trends, progress(metrics)[None]]
    remembered = jnp.where(is_known > 0.0, history, state.history)
    return jnp.concatenate(parts), ClassicState(remembered)
