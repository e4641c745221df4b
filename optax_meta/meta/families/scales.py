"""The units that every family draws anew for each task."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_meta.meta.tasks import Task

EVALUATION_SIZE = 256
"""Samples that a run is judged on."""


class Scales(NamedTuple):
    """What is drawn alike for every family, float32[] each.

    Attributes:
        loss: the loss is multiplied by it, 1e-2 … 1e2.
        params: parameters are stored divided by it, 1e-3 … 1e3; 1 for half of the tasks.
        init: initial parameters are multiplied by it, 0.4 … 2.5; 0.03 … 2.5 for one task in eight.
        unlike: arrays are stored divided by it and multiplied by it in turn, 1 … 10 for one task
            in four, else 1: parameters of unlike scale.

    Example:
        >>> family = optax_meta.families.quadratics(dim=4)
        >>> family.sample(jax.random.key(0)).scales.loss.shape
        ()
    """

    loss: jax.Array
    params: jax.Array
    init: jax.Array
    unlike: jax.Array


def draw_scales(key: jax.Array) -> Scales:
    """Draw the units of one task."""
    keys = iter(jax.random.split(key, 7))
    units = 10.0 ** jax.random.uniform(next(keys), minval=-3.0, maxval=3.0)
    # One task in eight may start near zero, where the parameters' norm tells little of their scale.
    smallest = jnp.where(jax.random.bernoulli(next(keys), 0.125), -1.5, -0.4)
    return Scales(
        loss=10.0 ** jax.random.uniform(next(keys), minval=-2.0, maxval=2.0),
        params=jnp.where(jax.random.bernoulli(next(keys)), units, 1.0),
        init=10.0 ** jax.random.uniform(next(keys), minval=smallest, maxval=0.4),
        unlike=jnp.where(
            jax.random.bernoulli(next(keys), 0.25), 10.0 ** jax.random.uniform(next(keys)), 1.0
        ),
    )


def scaled_task(
    name: str,
    scales: Scales,
    *,
    init: Callable[[jax.Array], Any],
    draw: Callable[[int, jax.Array], Any],
    loss: Callable[[Any, Any], jax.Array],
    batch_size: int,
    judged_on: Any,
) -> Task:
    """Return the task in the drawn units of parameters and loss.

    Args:
        name: of the family.
        scales: the drawn units.
        init: key → parameters in units of one.
        draw: (number of samples, key) → a batch.
        loss: (parameters in units of one, batch) → float32[].
        batch_size: samples a step.
        judged_on: the batch that the run is judged on, without noise where that is known.
    """

    def in_units(params: Any, factor: jax.Array, *, inverted: bool) -> Any:
        """Multiply by a factor and, in turn, by `unlike` and by one over it."""
        leaves, tree = jax.tree.flatten(params)
        unlike = (scales.unlike, 1.0 / scales.unlike)
        scaled = [p * (factor * unlike[(i + inverted) % 2]) for i, p in enumerate(leaves)]
        return jax.tree.unflatten(tree, scaled)

    def scaled_loss(params: Any, batch: Any) -> jax.Array:
        return scales.loss * loss(in_units(params, scales.params, inverted=False), batch)

    def scaled_init(key: jax.Array) -> Any:
        return in_units(init(key), scales.init / scales.params, inverted=True)

    return Task(
        name=name,
        description=name,
        init=scaled_init,
        sample=partial(draw, batch_size),
        loss=scaled_loss,
        evaluate=lambda params: {"loss": scaled_loss(params, judged_on)},
    )
