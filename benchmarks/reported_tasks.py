"""The test tier: tasks that choose nothing, near and far from what policies are trained on."""

import functools
import textwrap
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_meta.meta.tasks import MLP, ConvNet, Task


def _cross_entropy(logits: Any, labels: jax.Array) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), labels)
    return jnp.mean(losses)


@functools.cache
def _digits() -> tuple[jax.Array, jax.Array]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return jnp.asarray(x.reshape(-1, 8, 8) / 16.0, jnp.float32), jnp.asarray(y, jnp.int32)


def _noisy_digits(name: str, model: nn.Module, batch_size: int) -> Task:
    """Classify digits whose labels are replaced by random ones at 10 % of the draws."""
    images, classes = _digits()

    def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        row_key, flip_key, label_key = jax.random.split(key, 3)
        row = jax.random.randint(row_key, (count,), 0, classes.size)
        is_flipped = jax.random.bernoulli(flip_key, 0.1, (count,))
        other = jax.random.randint(label_key, (count,), 0, 10)
        return images[row], jnp.where(is_flipped, other, classes[row])

    def loss(params: Any, batch: Any) -> jax.Array:
        return _cross_entropy(model.apply(params, batch[0]), batch[1])

    fixed = draw(jax.random.key(99), 2048)
    return Task(
        name,
        f"{name} with 10 % label noise",
        lambda key: model.init(key, images[:1]),
        lambda key: draw(key, batch_size),
        loss,
        lambda params: {"loss": loss(params, fixed)},
    )


def digits() -> Task:
    """MLP 64-64-64-10 on digits with label noise."""
    return _noisy_digits("digits", MLP((64, 64, 10)), 64)


def convolution() -> Task:
    """Two convolutions on digits with label noise."""
    return _noisy_digits("convolution", ConvNet(10, 8), 32)


def switched(task: Task, at: int, classes: int = 10) -> Task:
    """Return a task of classification whose labels are permuted from step `at` on."""

    def shift(batch: Any, step: jax.Array) -> Any:
        x, y = batch
        return x, jnp.where(step >= at, (3 * y + 1) % classes, y)

    return task._replace(shift=shift)


def switch() -> Task:
    """Digits whose labels are permuted from step 300 on."""
    return switched(digits(), 300)._replace(name="switch", description=switch.__doc__ or "")


class _Attention(nn.Module):
    """One pre-norm block of causal attention."""

    tokens: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        length = x.shape[1]
        h = nn.Embed(self.tokens, 32)(x) + nn.Embed(length, 32)(jnp.arange(length))
        mask = nn.make_causal_mask(x)
        h += nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(h), mask=mask)
        h += nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(h))))
        return nn.Dense(self.tokens)(nn.LayerNorm()(h))


def attention(*, length: int = 24, batch_size: int = 8) -> Task:
    """Next character of a file of Python's standard library, one block of attention."""
    text = Path(textwrap.__file__).read_text()
    symbols, codes = np.unique(list(text), return_inverse=True)
    data = jnp.asarray(codes, jnp.int32)
    model = _Attention(len(symbols))

    def draw(key: jax.Array, count: int) -> jax.Array:
        start = jax.random.randint(key, (count,), 0, data.size - length - 1)
        return data[start[:, None] + jnp.arange(length + 1)]

    def loss(params: Any, batch: jax.Array) -> jax.Array:
        return _cross_entropy(model.apply(params, batch[:, :-1]), batch[:, 1:])

    fixed = draw(jax.random.key(99), 256)
    return Task(
        "attention",
        attention.__doc__ or "",
        lambda key: model.init(key, fixed[:1, :-1]),
        lambda key: draw(key, batch_size),
        loss,
        lambda params: {"loss": loss(params, fixed)},
    )


def recurrence(*, length: int = 12, batch_size: int = 32) -> Task:
    """The adding problem over twelve steps, with noise of 0.1, GRU of 16 units."""
    cell: Any = nn.RNN(nn.GRUCell(16))
    head = nn.Dense(1)

    def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        x_key, mark_key, noise_key = jax.random.split(key, 3)
        x = jax.random.uniform(x_key, (count, length))
        marks = jax.random.uniform(mark_key, (count, length))
        marked = (marks >= jnp.sort(marks, axis=1)[:, -2:-1]).astype(jnp.float32)
        noise = 0.1 * jax.random.normal(noise_key, (count,))
        return jnp.stack([x, marked], axis=-1), jnp.sum(x * marked, axis=1) + noise

    def init(key: jax.Array) -> Any:
        cell_key, head_key = jax.random.split(key)
        x = jnp.zeros((1, length, 2))
        return {"cell": cell.init(cell_key, x), "head": head.init(head_key, jnp.zeros((1, 16)))}

    def loss(params: Any, batch: Any) -> jax.Array:
        states = cell.apply(params["cell"], batch[0])
        out = jnp.asarray(head.apply(params["head"], states[:, -1]))
        return jnp.mean((out[:, 0] - batch[1]) ** 2)

    fixed = draw(jax.random.key(99), 1024)
    x, marked = jnp.moveaxis(fixed[0], -1, 0)
    noise = fixed[1] - jnp.sum(x * marked, axis=1)
    return Task(
        "recurrence",
        recurrence.__doc__ or "",
        init,
        lambda key: draw(key, batch_size),
        loss,
        lambda params: {"loss": loss(params, fixed)},
        float(jnp.mean(noise**2)),
    )


def autoencoder(*, batch_size: int = 32) -> Task:
    """Reconstruct digits from inputs with noise, 64-32-8-32-64."""
    images, _ = _digits()
    model = MLP((32, 8, 32, 64))

    def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        row_key, noise_key = jax.random.split(key)
        x = images[jax.random.randint(row_key, (count,), 0, len(images))].reshape(count, 64)
        return x + 0.3 * jax.random.normal(noise_key, x.shape), x

    def loss(params: Any, batch: Any) -> jax.Array:
        return jnp.mean((jnp.asarray(model.apply(params, batch[0])) - batch[1]) ** 2)

    fixed = draw(jax.random.key(99), 1024)
    return Task(
        "autoencoder",
        autoencoder.__doc__ or "",
        lambda key: model.init(key, fixed[0][:1]),
        lambda key: draw(key, batch_size),
        loss,
        lambda params: {"loss": loss(params, fixed)},
    )


def rosenbrock(*, dim: int = 10) -> Task:
    """Rosenbrock's valley in ten dimensions, without noise; below 1e-3 it counts as reached."""

    def loss(params: jax.Array, batch: Any) -> jax.Array:
        del batch
        x, y = params[:-1], params[1:]
        return jnp.mean(100.0 * (y - x**2) ** 2 + (1.0 - x) ** 2) + 1e-3

    return Task(
        "rosenbrock",
        rosenbrock.__doc__ or "",
        lambda key: 0.5 * jax.random.normal(key, (dim,)),
        lambda key: key,
        loss,
        lambda params: {"loss": loss(params, None)},
    )


def factorization(*, size: int = 30, rank: int = 4, batch_size: int = 64) -> Task:
    """Factor a noisy matrix of rank four from single entries."""
    left_key, right_key = jax.random.split(jax.random.key(3))
    left = jax.random.normal(left_key, (size, rank))
    matrix = left @ jax.random.normal(right_key, (rank, size)) / rank**0.5

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        row_key, column_key, noise_key = jax.random.split(key, 3)
        row = jax.random.randint(row_key, (batch_size,), 0, size)
        column = jax.random.randint(column_key, (batch_size,), 0, size)
        noise = 0.3 * jax.random.normal(noise_key, (batch_size,))
        return row, column, matrix[row, column] + noise

    def init(key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key)
        shape = (size, rank)
        return {n: 0.3 * jax.random.normal(k, shape) for n, k in zip("uv", keys, strict=True)}

    def loss(params: Any, batch: Any) -> jax.Array:
        row, column, target = batch
        predicted = jnp.sum(params["u"][row] * params["v"][column], axis=-1)
        return jnp.mean((predicted - target) ** 2)

    def evaluate(params: Any) -> dict[str, jax.Array]:
        return {"loss": jnp.mean((params["u"] @ params["v"].T - matrix) ** 2) + 0.09}

    return Task("factorization", factorization.__doc__ or "", init, draw, loss, evaluate, 0.09)


def density(*, dim: int = 20, batch_size: int = 16) -> Task:
    """Fit a Gaussian with unequal variances by its likelihood: a loss that ends below zero."""
    deviation = jnp.logspace(-1.5, 0.0, dim)
    mean = jnp.linspace(-1.0, 1.0, dim)
    entropy = float(jnp.mean(jnp.log(deviation)) + 0.5)

    def draw(key: jax.Array, count: int) -> jax.Array:
        return mean + deviation * jax.random.normal(key, (count, dim))

    def loss(params: Any, batch: jax.Array) -> jax.Array:
        scaled = (batch - params["mean"]) * jnp.exp(-params["log_deviation"])
        return jnp.mean(0.5 * scaled**2 + params["log_deviation"])

    def exact(params: Any) -> dict[str, jax.Array]:
        second = (mean - params["mean"]) ** 2 + deviation**2
        half = 0.5 * second * jnp.exp(-2.0 * params["log_deviation"])
        return {"loss": jnp.mean(half + params["log_deviation"])}

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {"mean": 0.5 * jax.random.normal(key, (dim,)), "log_deviation": jnp.zeros(dim)}

    # An excess of 0.01 nats per dimension counts as much as the floor's own width.
    floor = entropy - 0.01
    return Task(
        "density",
        density.__doc__ or "",
        init,
        lambda key: draw(key, batch_size),
        loss,
        exact,
        floor,
    )


TEST = {
    "digits": digits,
    "convolution": convolution,
    "attention": attention,
    "recurrence": recurrence,
    "autoencoder": autoencoder,
    "rosenbrock": rosenbrock,
    "factorization": factorization,
    "density": density,
    "switch": switch,
}
