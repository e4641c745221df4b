"""What real cells train: digits, a table of sensors, text, each with a network of one's choice.

All are judged by the loss on data held out; the loss on a part of the training data stands beside.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from real_data import Half, Rows, Text, mnist, newsgroups, shuttle

from optax_meta.meta.tasks import Task


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
    return next_byte(name, newsgroups(half), model, batch, length)


def next_byte(name: str, source: Text, model: Any, batch: int, length: int) -> Task:
    """Return the task of predicting the next byte of a text; losses in nats a byte.

    Args:
        name: of the task.
        source: bytes to draw from, and bytes held out, some 16,384 of which are judged.
        model: a Flax module, from int32[batch, length] to float32[batch, length, symbols].
        batch: sequences of a step.
        length: bytes of a sequence.
    """
    train, test = (jnp.asarray(part) for part in source)

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
