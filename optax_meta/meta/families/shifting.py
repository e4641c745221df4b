"""Data that change while a run goes on."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_meta.meta.families.layers import Layer, init_network, network
from optax_meta.meta.families.scales import EVALUATION_SIZE, Scales, draw_scales, scaled_task
from optax_meta.meta.families.teachers import HIDDEN
from optax_meta.meta.tasks import Task, TaskFamily

Batch = tuple[jax.Array, jax.Array, jax.Array]
"""Inputs, float32[B, I]; two sets of targets, float32[B, 2, O]; the angle between what is asked
for and the first of them, float32[]."""


def drifting(*, sizes: Sequence[int] = (10, 32, 1), batch_size: int = 16) -> TaskFamily:
    """Follow a network whose last layer turns while the student learns.

    Two tasks out of three also jump once, by an eighth of a turn up to a half.

    Args:
        sizes: widths of the student, inputs and outputs included.
        batch_size: fresh samples a step.

    Returns:
        A `TaskFamily`; a full turn takes between 200 and 60 000 steps, and the jump comes at one of
        the first 30 to 1600.

    Example:
        >>> family = optax_meta.families.drifting()
        >>> family.build(family.sample(jax.random.key(0))).shift is None
        False
    """

    def build(drawn: _Turning) -> Task:
        task = scaled_task(
            "drifting",
            drawn.scales,
            init=partial(init_network, sizes),
            draw=drawn.draw,
            loss=_loss,
            batch_size=batch_size,
            judged_on=drawn.draw(EVALUATION_SIZE, jax.random.key(drawn.evaluation)),
        )
        return task._replace(shift=drawn.shift)

    sample = partial(_draw_turning, sizes[0], sizes[-1])
    return TaskFamily("drifting", "regression on targets that turn", sample, build)


class _Turning(NamedTuple):
    """One task; I inputs, O outputs.

    Attributes:
        jump: angle that the targets jump by, ¼π … π, or 0; float32[].
        jump_step: when, float32[].
        radians_per_step: how fast they turn, float32[].
        hidden: of the teacher, float32[I, `HIDDEN`].
        heads: its last layer before and after a quarter of a turn, float32[`HIDDEN`, 2·O].
        noise: deviation of the noise, float32[].
        scales: units of loss and parameters.
        evaluation: seed of what `Task.evaluate` takes, uint32[].
    """

    jump: jax.Array
    jump_step: jax.Array
    radians_per_step: jax.Array
    hidden: jax.Array
    heads: jax.Array
    noise: jax.Array
    scales: Scales
    evaluation: jax.Array

    def draw(self, count: int, key: jax.Array) -> Batch:
        x_key, noise_key = jax.random.split(key)
        x = jax.random.normal(x_key, (count, self.hidden.shape[0]))
        targets = (jnp.tanh(x @ self.hidden) @ self.heads).reshape(count, 2, -1)
        noise = jax.random.normal(noise_key, (count, 1, targets.shape[-1]))
        return x, targets + self.noise * noise, jnp.zeros(())

    def shift(self, batch: Batch, step: jax.Array) -> Batch:
        jump = jnp.where(step >= self.jump_step, self.jump, 0.0)
        return *batch[:2], self.radians_per_step * step + jump


def _draw_turning(inputs: int, outputs: int, key: jax.Array) -> _Turning:
    keys = iter(jax.random.split(key, 9))
    jump = jnp.pi * jax.random.uniform(next(keys), minval=0.25)  # an eighth of a turn at least
    return _Turning(
        jump=jnp.where(jax.random.bernoulli(next(keys), 2.0 / 3.0), jump, 0.0),
        jump_step=10.0 ** jax.random.uniform(next(keys), minval=1.5, maxval=3.2),
        radians_per_step=10.0 ** jax.random.uniform(next(keys), minval=-4.0, maxval=-1.5),
        hidden=1.5 * jax.random.normal(next(keys), (inputs, HIDDEN)) / jnp.sqrt(inputs),
        heads=jax.random.normal(next(keys), (HIDDEN, 2 * outputs)) / 2.0,
        noise=jax.random.uniform(next(keys), minval=0.05, maxval=0.5),
        scales=draw_scales(next(keys)),
        evaluation=jax.random.bits(next(keys)),
    )


def _loss(params: list[Layer], batch: Batch) -> jax.Array:
    x, targets, angle = batch
    y = jnp.cos(angle) * targets[:, 0] + jnp.sin(angle) * targets[:, 1]
    return jnp.mean(jnp.square(network(params, x, jnp.tanh) - y))
