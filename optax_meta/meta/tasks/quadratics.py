"""A quadratic bowl."""

import jax
import jax.numpy as jnp

from optax_meta.meta.tasks.task import Task


def quadratic(*, dim: int = 50, condition: float = 100.0, noise: float = 0.1) -> Task:
    """Minimize ½ Σ hᵢ(xᵢ - ξᵢ)², hᵢ from 1/condition to 1, ξ fresh noise at every step.

    Args:
        dim: number of parameters.
        condition: ratio of the largest to the smallest curvature.
        noise: standard deviation of ξ.

    Returns:
        A `Task` whose "loss" is the noise-free one; its minimum is 0.

    Example:
        >>> task = optax_meta.tasks.quadratic(dim=3)
        >>> task.init(jax.random.key(0)).shape
        (3,)
    """
    # Evenly spaced in the logarithm: as many directions are flat as are steep.
    curvature = jnp.logspace(-jnp.log10(condition), 0.0, dim)

    def loss(params: jax.Array, batch: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(curvature * jnp.square(params - batch))

    return Task(
        name="quadratic",
        description=f"noisy quadratic in {dim} dimensions, condition number {condition:g}",
        init=lambda key: jax.random.normal(key, (dim,)),
        sample=lambda key: noise * jax.random.normal(key, (dim,)),
        loss=loss,
        evaluate=lambda params: {"loss": loss(params, jnp.zeros(dim))},
    )
