"""The cosine rule."""

import math

import jax.numpy as jnp

from optax_meta.actions import check_bounds
from optax_meta.base import Bounds, Controller, Hyperparams, State
from optax_meta.metrics import Metrics
from optax_meta.origins import keep_origin


@keep_origin
def hypergradient(
    *,
    step_size: float = 0.1,
    bounds: Bounds = (1e-8, 10.0),
    hyperparam: str = "learning_rate",
) -> Controller:
    """Move the log learning rate with the cosine of the gradient and the last move.

    log η ← log η + step_size·cos(-gₜ, θₜ - θₜ₋₁): while the last move of the parameters still
    points downhill the step was too short; once the gradient has turned against it, too long. The
    cosine in place of the product makes the rule independent of the scales of loss and parameters.
    It is measured on a strided sample of coordinates, of the move as applied: a rate so low that no
    parameter changes in its precision gives 0 and stays.

    Args:
        step_size: largest change of log η in one decision, in nats, > 0.
        bounds: smallest and largest value allowed, > 0.
        hyperparam: name of the hyperparameter to steer.

    Returns:
        A `Controller` that decides at every step. Needs `params=`, but no loss.

    Raises:
        ValueError: `step_size` is not positive or the bounds are crossed or not positive.

    Source: A. G. Baydin et al., "Online Learning Rate Adaptation with Hypergradient Descent",
    2018, https://arxiv.org/abs/1703.04782; the multiplicative form is its section 4, normalized.

    Example:
        >>> controller = optax_meta.hypergradient(step_size=0.05)
        >>> tx = optax_meta.control_hyperparams(optax.sgd, controller)(learning_rate=1e-4)
    """
    if not 0.0 < step_size < math.inf:
        raise ValueError(f"`step_size` must be positive and finite, got {step_size}")
    low, high = check_bounds(bounds)
    if not low > 0.0:
        raise ValueError(f"`bounds` must be positive, got {bounds}")

    def update(
        metrics: Metrics, state: State, hyperparams: Hyperparams
    ) -> tuple[Hyperparams, State]:
        old = hyperparams[hyperparam]
        alignment = jnp.where(metrics.num_moves > 0.0, metrics.alignment, 0.0)
        factor = jnp.exp(step_size * alignment).astype(old.dtype)
        return {**hyperparams, hyperparam: old * factor}, state

    return Controller(
        init=lambda hyperparams: (),  # noqa: ARG005
        update=update,
        hyperparams=(hyperparam,),
        bounds={hyperparam: (low, high)},
        needs_value=False,
        needs_alignment=True,
        incremental=(hyperparam,),
    )
