"""What a task is, and how it is trained for a step and judged."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Task(NamedTuple):
    """A model, its data and its loss, as pure functions.

    Attributes:
        name: short name.
        description: one sentence: model, data, loss.
        init: key → parameters.
        sample: key → a fresh mini-batch.
        loss: (parameters, batch) → float32[], what is minimized.
        evaluate: parameters → what the run is judged by, float32[] by name, on fixed data; must
            have "loss", and may have more, such as "test_loss" and "test_accuracy".
        floor: the irreducible loss, where it is known.
        shift: (batch, step) → the batch as it is at that step, for data that drift or switch while
            a run goes on; None where they do not. If they do, `evaluate` is of the data before any
            shift, and `figures_at` judges a run.

    Example:
        >>> task = optax_meta.tasks.quadratic()
        >>> params = task.init(jax.random.key(0))
        >>> loss = task.loss(params, task.sample(jax.random.key(1)))
        >>> loss.shape
        ()
    """

    name: str
    description: str
    init: Callable[[jax.Array], Any]
    sample: Callable[[jax.Array], Any]
    loss: Callable[[Any, Any], jax.Array]
    evaluate: Callable[[Any], dict[str, jax.Array]]
    floor: float = 0.0
    shift: Callable[[Any, jax.Array], Any] | None = None


class TaskFamily(NamedTuple):
    """A distribution over tasks of the same shapes, to learn a policy from.

    Attributes:
        name: short name.
        description: one sentence.
        sample: key → parameters of one task, a pytree of arrays; `jax.vmap` draws many.
        build: parameters → the `Task`; called while tracing, so that a whole training run of each
            of thousands of tasks is one program.

    Example:
        >>> family = optax_meta.families.quadratics()
        >>> task = family.build(family.sample(jax.random.key(0)))
        >>> task.loss(task.init(jax.random.key(1)), task.sample(jax.random.key(2))).shape
        ()
    """

    name: str
    description: str
    sample: Callable[[jax.Array], Any]
    build: Callable[[Any], Task]


def train_step(
    task: Task,
    tx: optax.GradientTransformationExtraArgs,
    key: jax.Array,
    step: jax.typing.ArrayLike,
    params: Any,
    opt_state: Any,
) -> tuple[Any, Any, jax.Array]:
    """Train a task for one step, with the loss passed on to the optimizer.

    Args:
        task: what is trained.
        tx: what it is trained with.
        key: of the mini-batch.
        step: from 0, int32[]; data may shift with it.
        params: before the step.
        opt_state: before the step.

    Returns:
        Parameters and optimizer state after the step, and the loss before it, float32[].

    Example:
        >>> task = optax_meta.tasks.quadratic(dim=2)
        >>> tx = optax.with_extra_args_support(optax.sgd(0.1))
        >>> params = task.init(jax.random.key(0))
        >>> key, state = jax.random.key(1), tx.init(params)
        >>> params, state, loss = optax_meta.tasks.train_step(task, tx, key, 0, params, state)
    """
    batch = task.sample(key)
    batch = batch if task.shift is None else task.shift(batch, jnp.asarray(step))
    loss, grads = jax.value_and_grad(task.loss)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params, value=loss)
    return optax.apply_updates(params, updates), opt_state, loss


def figures_at(task: Task, params: Any, step: jax.typing.ArrayLike) -> dict[str, jax.Array]:
    """Return what a run is judged by at a step.

    Args:
        task: what is trained.
        params: at that step.
        step: from 0, int32[].

    Returns:
        `task.evaluate(params)`; where data shift, the mean loss over sixteen batches as they are at
        that step, always the same ones, float32[].

    Example:
        >>> task = optax_meta.tasks.quadratic(dim=2)
        >>> optax_meta.tasks.figures_at(task, task.init(jax.random.key(0)), 10)["loss"].shape
        ()
    """
    shift = task.shift
    if shift is None:
        return task.evaluate(params)

    def loss(key: jax.Array) -> jax.Array:
        return task.loss(params, shift(task.sample(key), jnp.asarray(step)))

    # Always the same batches, and none that a run is likely to have been trained on.
    keys = jax.random.split(jax.random.key(99), 16)
    return {"loss": jnp.mean(jax.vmap(loss)(keys))}
