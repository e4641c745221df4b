"""Measured data: tables that come with scikit-learn."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_meta.meta.families.layers import Layer, cross_entropy, init_network, network
from optax_meta.meta.families.scales import Scales, draw_scales, scaled_task
from optax_meta.meta.tasks import Task, TaskFamily

_COLUMNS, _CLASSES, _ROWS = 30, 3, 150
"""The largest of the three, twice, and the length of the shortest: one program serves all."""

Batch = tuple[jax.Array, jax.Array]


def tables(*, hidden_size: int = 24, batch_size: int = 32) -> TaskFamily:
    """Classify scikit-learn's breast cancer, wine and iris tables with fresh label noise.

    The three tables share one shape: columns beyond a table's own are zero. Needs scikit-learn.

    Args:
        hidden_size: of the two hidden layers.
        batch_size: rows a step, drawn with replacement.

    Returns:
        A `TaskFamily`.

    Example:
        >>> optax_meta.families.tables().name
        'table'
    """
    all_x, all_y = _load()
    sizes = (_COLUMNS, hidden_size, hidden_size, _CLASSES)

    def sample(key: jax.Array) -> _Table:
        keys = jax.random.split(key, 4)
        return _Table(
            table=jax.random.randint(keys[0], (), 0, len(all_x)),
            noise=jax.random.uniform(keys[1], minval=0.05, maxval=0.3),
            columns=10.0 ** jax.random.uniform(keys[2], (_COLUMNS,), minval=-0.7, maxval=0.7),
            scales=draw_scales(keys[3]),
        )

    def build(drawn: _Table) -> Task:
        x, y = all_x[drawn.table] * drawn.columns[None], all_y[drawn.table]
        # What the noisy labels' probabilities are: judged by them, noise is no loss.
        shares = (1.0 - drawn.noise) * jax.nn.one_hot(y, _CLASSES) + drawn.noise / _CLASSES
        return scaled_task(
            "table",
            drawn.scales,
            init=partial(init_network, sizes),
            draw=partial(_draw, x, y, drawn.noise),
            loss=_loss,
            batch_size=batch_size,
            judged_on=(x, shares),
        )

    return TaskFamily("table", "small tables with label noise", sample, build)


class _Table(NamedTuple):
    """What is drawn for a task.

    Attributes:
        table: which one, int32[].
        noise: share of rows whose class is drawn anew, float32[].
        columns: units of the columns, float32[`_COLUMNS`].
        scales: units of loss and parameters.
    """

    table: jax.Array
    noise: jax.Array
    columns: jax.Array
    scales: Scales


def _load() -> tuple[jax.Array, jax.Array]:
    """Return the rows of all tables, float32[3, `_ROWS`, `_COLUMNS`], and their classes."""
    from sklearn import datasets

    loaded = [f(return_X_y=True) for f in (datasets.load_breast_cancer, datasets.load_wine)]
    loaded.append(datasets.load_iris(return_X_y=True))
    xs, ys = [], []
    for key, (table, y) in zip(jax.random.split(jax.random.key(0), 3), loaded, strict=True):
        x = np.asarray(table)
        x = (x - x.mean(0)) / x.std(0)  # `columns` gives each task units of its own instead
        x = np.pad(x, ((0, 0), (0, _COLUMNS - x.shape[1])))
        picked = jax.random.permutation(key, len(x))[:_ROWS]
        xs.append(jnp.asarray(x, jnp.float32)[picked])
        ys.append(jnp.asarray(y, jnp.int32)[picked])
    return jnp.stack(xs), jnp.stack(ys)


def _draw(x: jax.Array, y: jax.Array, noise: jax.Array, count: int, key: jax.Array) -> Batch:
    row_key, flip_key, label_key = jax.random.split(key, 3)
    row = jax.random.randint(row_key, (count,), 0, _ROWS)
    is_flipped = jax.random.bernoulli(flip_key, noise, (count,))
    other = jax.random.randint(label_key, (count,), 0, _CLASSES)
    return x[row], jnp.where(is_flipped, other, y[row])


def _loss(params: list[Layer], batch: Batch) -> jax.Array:
    x, y = batch
    return jnp.mean(cross_entropy(network(params, x, jnp.tanh), y))
