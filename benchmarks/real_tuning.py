"""Fine-tuning: networks that know the digits 0 to 4 learn 5 to 9, and moved further.

All weights are tuned, or low-rank adapters of them alone. Either five have outputs of their own;
how well the first are still known by theirs stands beside the loss as "source_accuracy".
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from real_data import Half, Rows, Split, mnist
from real_models import adapted, adapters
from real_tasks import accuracy, classified, moved

from optax_meta.meta.tasks import Task, train_step

_STEPS = 1500
_RANK = 8
_further = partial(moved, most=6)


class Outputs(NamedTuple):
    """Five outputs of a network.

    Attributes:
        model: a Flax module.
        low: the first of them.
    """

    model: Any
    low: int

    def init(self, key: jax.Array, x: jax.Array) -> Any:
        """Return the network's parameters."""
        return self.model.init(key, x)

    def apply(self, params: Any, x: jax.Array) -> jax.Array:
        """Return float32[batch, 5]."""
        return self.model.apply(params, x)[:, self.low : self.low + 5]


def tuned_whole(name: str, half: Half, model: Any, batch: int, images: int | None = None) -> Task:
    """Return the task of tuning all weights, on so many of the images or on all."""
    before = _trained_before(half, model)
    return _tuned(name, half, model, batch, lambda key: before, lambda params: params, images)  # noqa: ARG005


def tuned_adapters(name: str, half: Half, model: Any, batch: int) -> Task:
    """Return the task of tuning low-rank adapters of all matrices; no other weight moves."""
    before = _trained_before(half, model)

    def init(key: jax.Array) -> Any:
        return adapters(key, before, _RANK)

    return _tuned(name, half, model, batch, init, lambda changes: adapted(before, changes))


def gone_on(name: str, half: Half, model: Any, batch: int) -> Task:
    """Return the task of training a network on what it knows already."""
    before = _trained_before(half, model)
    split = _digits(mnist(half), 0)
    task = classified(name, Outputs(model, 0), *split, batch, moved)
    return task._replace(init=lambda key: before)  # noqa: ARG005


def _tuned(
    name: str,
    half: Half,
    model: Any,
    batch: int,
    init: Callable[[jax.Array], Any],
    whole: Callable[[Any], Any],
    images: int | None = None,
) -> Task:
    """Return the task; `whole` makes the network's parameters of those that are tuned."""
    before, after = Outputs(model, 0), Outputs(model, 5)
    old, new = _digits(mnist(half), 0).test, _digits(mnist(half), 5)
    # The file has one class after the other: every so many rows are of all of them.
    every = 1 if images is None else len(new.train.x) // images
    few = Rows(*(part[::every] for part in new.train))
    task = classified(name, after, few, new.test, batch, _further)
    x, y = moved(jax.random.key(1), (jnp.asarray(old.x), jnp.asarray(old.y)))

    def evaluate(params: Any) -> dict[str, jax.Array]:
        params = whole(params)
        kept = accuracy(before.apply(params, x), y)
        return {**task.evaluate(params), "source_accuracy": kept}

    def loss(params: Any, rows: Any) -> jax.Array:
        return task.loss(whole(params), rows)

    return task._replace(init=init, loss=loss, evaluate=evaluate)


def _digits(split: Split, low: int) -> Split:
    """Return the rows of five classes, counted from 0."""
    found = []
    for rows in split:
        chosen = (rows.y >= low) & (rows.y < low + 5)
        found.append(Rows(rows.x[chosen], rows.y[chosen] - low))
    return Split(*found)


def _trained_before(half: Half, model: Any) -> Any:
    """Return the parameters of a network that was trained on 0 to 4, always the same."""
    task = classified("before", Outputs(model, 0), *_digits(mnist(half), 0), 64, moved)
    tx = optax.adamw(optax.cosine_decay_schedule(1e-3, _STEPS), weight_decay=0.1)
    tx = optax.with_extra_args_support(tx)
    init_key, data_key = jax.random.split(jax.random.key(0))

    def step(t: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        return train_step(task, tx, jax.random.fold_in(data_key, t), t, *carry)[:2]

    params = task.init(init_key)
    return jax.jit(partial(jax.lax.fori_loop, 0, _STEPS, step))((params, tx.init(params)))[0]
