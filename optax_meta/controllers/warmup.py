"""Warm-up, alone and before a plateau rule."""

from typing import Any

import jax
import jax.numpy as jnp

from optax_meta.base import Controller, Hyperparams
from optax_meta.checks import check_whole
from optax_meta.controllers.join import join
from optax_meta.controllers.plateau import plateau
from optax_meta.metrics import Metrics
from optax_meta.origins import keep_origin


@keep_origin
def warmup(steps: int, *, init_scale: float = 0.0, hyperparam: str = "learning_rate") -> Controller:
    """Raise the learning rate linearly to its starting value over the first steps.

    At step t = 0, 1, … it is peak·(s + (1 - s)·min((t + 1)/steps, 1)), s the `init_scale` and the
    peak the value passed to the optimizer: the first step is not wasted, and step `steps - 1` is
    the first at the peak.

    Args:
        steps: length of the warm-up in steps, ≥ 1.
        init_scale: share of the peak to rise from, in [0, 1].
        hyperparam: name of the hyperparameter to warm up.

    Returns:
        A `Controller` that holds the peak afterwards. Needs no loss.

    Raises:
        ValueError: an argument is out of range.

    Source: P. Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017,
    https://arxiv.org/abs/1706.02677.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.warmup(4))(learning_rate=1.0)
        >>> x = jnp.array(0.0)
        >>> _, state = tx.update(x, tx.init(x))
        >>> print(optax_meta.hyperparams(state)["learning_rate"])
        0.25
    """
    steps = check_whole("steps", steps)
    if not 0.0 <= init_scale <= 1.0:
        raise ValueError(f"`init_scale` must lie in [0, 1], got {init_scale}")

    def update(
        metrics: Metrics, state: jax.Array, hyperparams: Hyperparams
    ) -> tuple[Hyperparams, jax.Array]:
        taken = jnp.minimum(metrics.step, steps) + 1  # so that it cannot overflow
        share = jnp.clip(taken.astype(state.dtype) / steps, 0.0, 1.0)
        scale = init_scale + (1.0 - init_scale) * share
        return {**hyperparams, hyperparam: state * scale}, state

    return Controller(
        init=lambda hyperparams: jnp.array(hyperparams[hyperparam], copy=True),
        update=update,
        hyperparams=(hyperparam,),
        needs_value=False,
    )


@keep_origin
def warmup_plateau(
    warmup_steps: int, *, init_scale: float = 0.0, **plateau_options: Any
) -> Controller:
    """Warm up, then reduce on plateau: the two that users ask for together.

    Args:
        warmup_steps: length of the warm-up in steps, ≥ 1; losses are not judged meanwhile.
        init_scale: as for `optax_meta.warmup`.
        **plateau_options: as for `optax_meta.plateau`.

    Returns:
        A `Controller`.

    Raises:
        ValueError: as `warmup` and `plateau`.

    Example:
        >>> controller = optax_meta.warmup_plateau(100, factor=0.5, patience=20)
    """
    name = plateau_options.get("hyperparam", "learning_rate")
    first = warmup(warmup_steps, init_scale=init_scale, hyperparam=name)
    return join([first, plateau(**plateau_options)], [warmup_steps])
