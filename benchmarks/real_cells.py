"""Cells of real networks: a network, its data, an optimizer and a number of steps.

Two halves that share neither data nor networks: "validation" may choose, "reported" is only shown.
All are judged by the loss on data held out; figures on a part of the training data stand beside it.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib
from real_data import Half, Rows, mnist, newsgroups, shuttle
from real_models import CNN, GPT, LSTM, ResidualMLP, ViT

from optax_meta.meta.protocol import Factory
from optax_meta.meta.tasks import MLP, Task

OPTIMIZERS: dict[str, Factory] = {
    "adamw": partial(optax.adamw, weight_decay=0.1),
    "momentum": partial(optax.sgd, momentum=0.9),
    "lion": partial(optax.lion, weight_decay=0.1),
    # The moves of matrices are scaled like Adam's, so that one rate serves all leaves.
    "muon": partial(contrib.muon, consistent_rms=0.2),
    "rmsprop": partial(optax.rmsprop, decay=0.99),
}
STARTS = {"adamw": 1e-3, "momentum": 1e-2, "lion": 1e-4, "muon": 1e-3, "rmsprop": 1e-3}
"""Customary rates, for methods that are given one, and where sweeps begin."""


class Cell(NamedTuple):
    """What is trained, how, and for how long.

    Attributes:
        name: short name.
        half: which half it is in.
        make: () → the task; loads its data.
        optimizer: name out of `OPTIMIZERS`.
        steps: length of the run.
        batch: examples or sequences of a step.
        length: tokens of a sequence; 1 for examples.
        width: of the network's layers.
    """

    name: str
    half: Half
    make: Callable[[], Task]
    optimizer: str
    steps: int
    batch: int
    length: int
    width: int


def mean_loss(logits: Any, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of integer labels, float32[]."""
    losses = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), labels)
    return jnp.mean(losses)


def accuracy(logits: Any, labels: jax.Array) -> jax.Array:
    """Return the share of labels that are the likeliest, float32[]."""
    return jnp.mean(jnp.argmax(jnp.asarray(logits), axis=-1) == labels)


def classified(
    name: str,
    model: Any,
    train: Rows,
    test: Rows,
    batch: int,
    change: Callable[[jax.Array, Any], Any],
) -> Task:
    """Return a task of classification.

    Args:
        name: of the task.
        model: a Flax module.
        train: rows to draw batches from.
        test: rows held out.
        batch: rows of a step.
        change: (key, rows) → inputs and classes as the network sees them, at random; rows held out
            are always changed in the same way.
    """
    rows, held_out = (jax.tree.map(jnp.asarray, tuple(part)) for part in (train, test))

    def drawn(key: jax.Array, count: int) -> Any:
        row_key, change_key = jax.random.split(key)
        row = jax.random.randint(row_key, (count,), 0, len(train.x))
        return change(change_key, (rows[0][row], rows[1][row]))

    def loss(params: Any, xy: Any) -> jax.Array:
        return mean_loss(model.apply(params, xy[0]), xy[1])

    def evaluate(params: Any) -> dict[str, jax.Array]:
        x, y = change(jax.random.key(1), held_out)
        seen, logits = drawn(jax.random.key(2), min(len(test.x), 2000)), model.apply(params, x)
        figures = {"loss": mean_loss(logits, y), "test_accuracy": accuracy(logits, y)}
        return figures | {"train_loss": loss(params, seen)}

    return Task(
        name,
        f"{name}: {model}",
        lambda key: model.init(key, drawn(key, 1)[0]),
        lambda key: drawn(key, batch),
        loss,
        evaluate,
    )


def moved(key: jax.Array, rows: Any, most: int = 3, hole: int = 10) -> Any:
    """Return images, float32[B, H, W], each moved at random and with a square cut out.

    Without that, 1,500 images are soon known by heart, and the highest rate wins since it forgets.

    Args:
        key: of the moves.
        rows: images and classes.
        most: pixels that an image moves either way.
        hole: side of the square in pixels.
    """
    images, classes = rows
    shape = images.shape[1:]
    move_key, hole_key = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most)))
    corners = jax.random.randint(move_key, (len(images), 2), 0, 2 * most + 1)
    cut = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, at, shape))
    start = jax.random.randint(hole_key, (2, len(images), 1), 0, shape[0] - hole + 1)
    inside = (jnp.arange(shape[0]) >= start) & (jnp.arange(shape[0]) < start + hole)
    return jnp.where(inside[0][:, :, None] & inside[1][:, None], 0.0, cut(padded, corners)), classes


def hidden(key: jax.Array, rows: Any) -> Any:
    """Return rows with one column hidden and marked, float32[B, 2 · C], and its class, int32[B].

    Args:
        key: of the columns.
        rows: float32[B, C], and the class of each value, int32[B, C].
    """
    x, classes = rows
    column = jax.random.randint(key, (len(x),), 0, x.shape[1])
    mark = jax.nn.one_hot(column, x.shape[1])
    x = jnp.concatenate([x * (1.0 - mark), mark], axis=1)
    return x, jnp.take_along_axis(classes, column[:, None], axis=1)[:, 0]


def digits(name: str, half: Half, model: Any, batch: int) -> Task:
    """Return the task of classifying MNIST's digits, moved at random."""
    return classified(name, model, *mnist(half), batch, moved)


def sensors(name: str, half: Half, model: Any, batch: int) -> Task:
    """Return the task of classifying a hidden column of the shuttle's table by the other nine.

    Which is "all is well" in a tenth of the cases, and else the tenth of the column's values that
    the reading lies in. That alone would be learned perfectly under any rate.
    """
    return classified(name, model, *shuttle(half), batch, hidden)


def text(name: str, half: Half, model: Any, batch: int, length: int) -> Task:
    """Return the task of predicting the next byte of 20 Newsgroups; losses in nats a byte."""
    train, test = (jnp.asarray(part) for part in newsgroups(half))

    def windows(source: jax.Array, starts: jax.Array) -> jax.Array:
        return source[starts[:, None] + jnp.arange(length + 1)].astype(jnp.int32)

    def sample(key: jax.Array) -> jax.Array:
        return windows(train, jax.random.randint(key, (batch,), 0, train.size - length - 1))

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        return mean_loss(model.apply(params, tokens[:, :-1]), tokens[:, 1:])

    count = 16_384 // length

    def evenly(source: jax.Array) -> jax.Array:
        return windows(source, jnp.arange(count) * ((source.size - length - 1) // count))

    def evaluate(params: Any) -> dict[str, jax.Array]:
        held_out = evenly(test)
        logits = model.apply(params, held_out[:, :-1])
        figures = {"loss": mean_loss(logits, held_out[:, 1:])}
        figures["test_accuracy"] = accuracy(logits, held_out[:, 1:])
        return figures | {"train_loss": loss(params, evenly(train))}

    first = jnp.zeros((1, length), jnp.int32)
    return Task(
        name, f"{name}: {model}", lambda key: model.init(key, first), sample, loss, evaluate
    )


def cell(
    half: Half,
    name: str,
    make: Callable[..., Task],
    model: Any,
    optimizer: str,
    steps: int,
    batch: int,
    width: int,
    length: int = 1,
) -> Cell:
    """Return a cell; `make` gets name, half, model, batch and, where it is not 1, the length."""
    given = (batch,) if length == 1 else (batch, length)
    made = functools.cache(partial(make, name, half, model, *given))
    return Cell(name, half, made, optimizer, steps, batch, length, width)


_chosen_on = partial(cell, "validation")

CELLS = {
    found.name: found
    for found in (
        _chosen_on("mlp-adamw", digits, MLP((256, 256, 256, 10)), "adamw", 2500, 64, 256),
        _chosen_on("cnn-momentum", digits, CNN((16, 32, 32), 64), "momentum", 1500, 32, 64),
        _chosen_on("vit-adamw", digits, ViT(7, 64, 3), "adamw", 1000, 24, 64),
        _chosen_on("gpt-adamw", text, GPT(64, 2), "adamw", 1200, 8, 64, 64),
        _chosen_on("gpt-lion", text, GPT(48, 3), "lion", 1200, 8, 48, 48),
        _chosen_on("lstm-rmsprop", text, LSTM(128), "rmsprop", 1000, 16, 128, 32),
        _chosen_on("shuttle-muon", sensors, ResidualMLP(96, 3, 10), "muon", 2000, 64, 96),
    )
}
