"""Networks that learn from a random network."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from optax_meta.meta.families.layers import (
    Activation,
    Layer,
    cross_entropy,
    init_network,
    network,
)
from optax_meta.meta.families.scales import EVALUATION_SIZE, Scales, draw_scales, scaled_task
from optax_meta.meta.tasks import Task, TaskFamily

HIDDEN = 16
"""Width of the teacher."""

Batch = tuple[jax.Array, jax.Array]


class Noise(Protocol):
    """A distribution around zero."""

    def __call__(self, key: jax.Array, *, shape: Sequence[int]) -> jax.Array:
        """Draw float32[shape]."""
        ...


def networks(
    *,
    sizes: Sequence[int] = (12, 32, 32, 6),
    activation: Activation = jax.nn.relu,
    batch_size: int = 32,
    classify: bool = True,
    normalize: bool = False,
    heavy_tailed: bool = False,
    rows: int | None = None,
    name: str = "network",
) -> TaskFamily:
    """Fit a random two-layer network with a deeper one, from an endless noisy stream.

    Args:
        sizes: widths of the student, inputs and outputs included.
        activation: of the student; the teacher's is tanh.
        batch_size: fresh samples a step.
        classify: cross-entropy on classes drawn from the teacher's softmax, else squared error
            with additive noise, 3 to 100 % of the targets' own deviation.
        normalize: normalize every hidden layer and add it to the last one of the same width.
        heavy_tailed: inputs and noise follow Student's t with 3 degrees of freedom, so that single
            gradients are a hundred times larger than most.
        rows: for tasks to overfit: batches are drawn with replacement from a table whose length is
            drawn log-uniformly, an eighth of `rows` to `rows`, and the final loss is taken on fresh
            data; None for an endless stream.
        name: of the family.

    Returns:
        A `TaskFamily`.

    Example:
        >>> optax_meta.families.networks(sizes=(4, 8, 2), classify=False).name
        'network'
    """
    noise = partial(jax.random.t, df=3.0) if heavy_tailed else jax.random.normal
    # Runs on few rows are judged by how they generalize, on four times as many fresh samples.
    judged = EVALUATION_SIZE if rows is None else 4 * EVALUATION_SIZE

    def loss(params: list[Layer], batch: Batch) -> jax.Array:
        x, y = batch
        out = network(params, x, activation, normalize=normalize)
        return jnp.mean(cross_entropy(out, y) if classify else jnp.square(out - y))

    def build(teacher: _Teacher) -> Task:
        lessons = _Lessons(teacher, noise, classify)
        return scaled_task(
            name,
            teacher.scales,
            init=partial(init_network, sizes),
            draw=lessons.noisy if rows is None else lessons.repeated(rows),
            loss=loss,
            batch_size=batch_size,
            judged_on=lessons.exact(judged, jax.random.key(teacher.evaluation)),
        )

    kind = "classification" if classify else "regression"
    description = f"{kind} by a network {'-'.join(map(str, sizes))}"
    return TaskFamily(name, description, partial(_draw_teacher, sizes[0], sizes[-1]), build)


class _Teacher(NamedTuple):
    """What is drawn for a task; I inputs, O outputs.

    Attributes:
        spectrum: deviation of each input, float32[I]; their mean square is 1.
        hidden: float32[I, `HIDDEN`].
        head: float32[`HIDDEN`, O].
        noise: of the targets over their own deviation, 0.03 … 1, float32[].
        target_scale: targets of a regression are multiplied by it, float32[].
        target_shift: and shifted by it, float32[O].
        input_shift: mean of the inputs that the student gets, float32[I].
        rows: share of a table that is there, ⅛ … 1, float32[].
        scales: units of loss and parameters.
        evaluation: seed of what the run is judged on, uint32[].
        table: seed of the table, uint32[].
    """

    spectrum: jax.Array
    hidden: jax.Array
    head: jax.Array
    noise: jax.Array
    target_scale: jax.Array
    target_shift: jax.Array
    input_shift: jax.Array
    rows: jax.Array
    scales: Scales
    evaluation: jax.Array
    table: jax.Array


def _draw_teacher(inputs: int, outputs: int, key: jax.Array) -> _Teacher:
    keys = iter(jax.random.split(key, 13))
    spectrum = jnp.arange(1.0, inputs + 1.0) ** -jax.random.uniform(next(keys), maxval=1.5)
    sharpness = 10.0 ** jax.random.uniform(next(keys), minval=0.0, maxval=1.0)
    is_shifted = jax.random.bernoulli(next(keys))  # half of the tasks have uncentred inputs
    return _Teacher(
        spectrum=spectrum / jnp.sqrt(jnp.mean(spectrum**2)),
        # What goes into tanh deviates by 1.5: enough to bend it, so that no teacher is linear.
        hidden=1.5 * jax.random.normal(next(keys), (inputs, HIDDEN)) / jnp.sqrt(inputs),
        head=sharpness * jax.random.normal(next(keys), (HIDDEN, outputs)) / HIDDEN**0.5,
        noise=10.0 ** jax.random.uniform(next(keys), minval=-1.5, maxval=0.0),
        target_scale=10.0 ** jax.random.uniform(next(keys), minval=-0.5, maxval=1.0),
        target_shift=_draw_shift(next(keys), outputs),
        input_shift=is_shifted * _draw_shift(next(keys), inputs),
        rows=2.0 ** -jax.random.uniform(next(keys), maxval=3.0),
        scales=draw_scales(next(keys)),
        evaluation=jax.random.bits(next(keys)),
        table=jax.random.bits(next(keys)),
    )


def _draw_shift(key: jax.Array, size: int) -> jax.Array:
    width_key, value_key = jax.random.split(key)
    width = 10.0 ** jax.random.uniform(width_key, minval=-0.5, maxval=0.6)
    return width * jax.random.normal(value_key, (size,))


class _Lessons(NamedTuple):
    """The batches of one teacher: inputs, float32[B, I], and classes or targets."""

    teacher: _Teacher
    noise: Noise
    classify: bool

    def exact(self, count: int, key: jax.Array) -> Batch:
        """Return inputs and probabilities or targets without noise, float32[B, O]."""
        x, target = self._teach(count, key)
        return x, jax.nn.softmax(target) if self.classify else self._scaled(target)

    def noisy(self, count: int, key: jax.Array) -> Batch:
        """Return inputs and classes, int32[B], or noisy targets, float32[B, O]."""
        x_key, y_key = jax.random.split(key)
        x, target = self._teach(count, x_key)
        if self.classify:
            return x, jax.random.categorical(y_key, target)
        # Over teachers the median deviation of an output is 0.65 of its head's norm.
        deviation = 0.65 * jnp.linalg.norm(self.teacher.head, axis=0)
        added = self.teacher.noise * deviation[None] * self.noise(y_key, shape=target.shape)
        return x, self._scaled(target + added)

    def repeated(self, rows: int) -> "_Table":
        """Return batches of a few noisy rows, drawn with replacement."""
        # All are drawn, since shapes are static; those beyond the drawn count are never picked.
        table = self.noisy(rows, jax.random.key(self.teacher.table))
        return _Table(*table, jnp.ceil(rows * self.teacher.rows).astype(jnp.int32))

    def _teach(self, count: int, key: jax.Array) -> Batch:
        """Return shifted inputs and what the teacher makes of unshifted ones, float32[B, O]."""
        teacher = self.teacher
        x = teacher.spectrum[None] * self.noise(key, shape=(count, teacher.spectrum.size))
        target = jnp.tanh(x @ teacher.hidden) @ teacher.head
        # Classes are the noisier the flatter the softmax; 0.1 keeps the sharpest from one-hot.
        target = target / (0.1 + teacher.noise) if self.classify else target
        return x + teacher.input_shift[None], target

    def _scaled(self, target: jax.Array) -> jax.Array:
        return self.teacher.target_scale * (target + self.teacher.target_shift[None])


class _Table(NamedTuple):
    """Rows to draw from: inputs, classes or targets, and how many of them count, int32[]."""

    x: jax.Array
    y: jax.Array
    num_rows: jax.Array

    def __call__(self, size: int, key: jax.Array) -> Batch:
        row = jax.random.randint(key, (size,), 0, self.num_rows)
        return self.x[row], self.y[row]
