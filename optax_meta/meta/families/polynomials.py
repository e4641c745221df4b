"""Losses that are polynomials of the parameters: bowls, and products with saddles."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_meta.meta.families.scales import EVALUATION_SIZE, Scales, draw_scales, scaled_task
from optax_meta.meta.tasks import Task, TaskFamily

_FLOOR = 1e-4
"""Added to the loss: its logarithm is what a policy lowers, and an optimum at 0 would be worth
infinitely much."""


def quadratics(*, dim: int = 40) -> TaskFamily:
    """Minimize ill-conditioned, rotated, noisy quadratics.

    Args:
        dim: number of parameters.

    Returns:
        A `TaskFamily`; the loss has a floor of 1e-4 of its first value.

    Example:
        >>> optax_meta.families.quadratics(dim=5).sample(jax.random.key(0)).curvature.shape
        (5,)
    """

    def sample(key: jax.Array) -> _Quadratic:
        keys = iter(jax.random.split(key, 7))
        # Condition numbers up to 3000.
        decades = jax.random.uniform(next(keys), minval=0.0, maxval=3.5)
        axis = jax.random.normal(next(keys), (dim,))
        is_rotated = jax.random.bernoulli(next(keys))
        return _Quadratic(
            curvature=10.0 ** jnp.linspace(-decades, 0.0, dim),
            axis=is_rotated * axis / jnp.linalg.norm(axis),
            noise=10.0 ** jax.random.uniform(next(keys), minval=-2.0, maxval=0.3),
            optimum=jax.random.normal(next(keys), (dim,)),
            scales=draw_scales(next(keys)),
        )

    def build(drawn: _Quadratic) -> Task:
        return scaled_task(
            "quadratic",
            drawn.scales,
            init=lambda key: jax.random.normal(key, (dim,)),
            draw=drawn.draw,
            loss=drawn.loss,
            batch_size=8,
            judged_on=jnp.zeros((1, dim)),
        )

    return TaskFamily("quadratic", f"noisy quadratics in {dim} dimensions", sample, build)


class _Quadratic(NamedTuple):
    """One task; D dimensions.

    Attributes:
        curvature: along the axes, 1 at most, float32[D].
        axis: the space is reflected along this unit vector, which mixes all axes; not at all where
            it is 0, so that each parameter has a curvature of its own; float32[D].
        noise: of the samples' optima, float32[].
        optimum: float32[D].
        scales: units of loss and parameters.
    """

    curvature: jax.Array
    axis: jax.Array
    noise: jax.Array
    optimum: jax.Array
    scales: Scales

    def draw(self, count: int, key: jax.Array) -> jax.Array:
        noise = jax.random.normal(key, (count, self.optimum.size))
        return self.noise * noise / jnp.sqrt(8.0)

    def loss(self, params: jax.Array, batch: jax.Array) -> jax.Array:
        shifted = params - self.optimum
        turned = shifted - 2.0 * self.axis * jnp.dot(self.axis, shifted)
        noisy = turned - jnp.mean(batch, axis=0)  # the mean of samples' losses, up to a constant
        return 0.5 * jnp.mean(self.curvature * noisy**2) + _FLOOR


def products(*, dim: int = 12, depth: int = 4, batch_size: int = 16) -> TaskFamily:
    """Fit a linear map whose every coefficient is a product of several parameters.

    Curvature grows with a power of the parameters, so that a rate that was harmless at first throws
    a run far away later; between signs lie saddles.

    Args:
        dim: number of coefficients.
        depth: parameters of each.
        batch_size: fresh samples a step.

    Returns:
        A `TaskFamily` of `depth`·`dim` parameters.

    Example:
        >>> optax_meta.families.products().name
        'product'
    """

    def sample(key: jax.Array) -> _Product:
        keys = jax.random.split(key, 5)
        # From a third of what the products start from up to thirty times that.
        size = 10.0 ** jax.random.uniform(keys[0], minval=-0.5, maxval=1.5)
        return _Product(
            target=size * jax.random.normal(keys[1], (dim,)),
            noise=0.3 * size * jax.random.uniform(keys[2]),
            scales=draw_scales(keys[3]),
            evaluation=jax.random.bits(keys[4]),
        )

    def build(drawn: _Product) -> Task:
        # Coefficients start around 1, all of one sign, and half of the targets have the other.
        return scaled_task(
            "product",
            drawn.scales,
            init=lambda key: 1.0 + 0.3 * jax.random.normal(key, (depth, dim)),
            draw=drawn.draw,
            loss=_product_loss,
            batch_size=batch_size,
            judged_on=drawn.exact(EVALUATION_SIZE, jax.random.key(drawn.evaluation)),
        )

    return TaskFamily("product", f"{dim} products of {depth} parameters", sample, build)


class _Product(NamedTuple):
    """One task; D coefficients.

    Attributes:
        target: the coefficients, float32[D].
        noise: deviation of the noise, float32[].
        scales: units of loss and parameters.
        evaluation: seed of what the run is judged on, uint32[].
    """

    target: jax.Array
    noise: jax.Array
    scales: Scales
    evaluation: jax.Array

    def exact(self, count: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jax.random.normal(key, (count, self.target.size))
        return x, x @ self.target

    def draw(self, count: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_key, noise_key = jax.random.split(key)
        x, y = self.exact(count, x_key)
        return x, y + self.noise * jax.random.normal(noise_key, (count,))


def _product_loss(params: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    x, y = batch
    return jnp.mean(jnp.square(x @ jnp.prod(params, axis=0) - y)) + _FLOOR
