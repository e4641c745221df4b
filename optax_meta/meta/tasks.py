"""Tasks: something to train, small enough to be trained many times."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
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
        >>> task, tx = quadratic(dim=2), optax.with_extra_args_support(optax.sgd(0.1))
        >>> params = task.init(jax.random.key(0))
        >>> key, state = jax.random.key(1), tx.init(params)
        >>> params, state, loss = train_step(task, tx, key, 0, params, state)
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
        >>> task = quadratic(dim=2)
        >>> figures_at(task, task.init(jax.random.key(0)), 10)["loss"].shape
        ()
    """
    shift = task.shift
    if shift is None:
        return task.evaluate(params)

    def loss(key: jax.Array) -> jax.Array:
        return task.loss(params, shift(task.sample(key), jnp.asarray(step)))

    keys = jax.random.split(jax.random.key(99), 16)
    return {"loss": jnp.mean(jax.vmap(loss)(keys))}


class MLP(nn.Module):
    """Dense layers with ReLU.

    Attributes:
        sizes: widths, the last one without ReLU.

    Example:
        >>> model = optax_meta.tasks.MLP((8, 3))
        >>> x = jnp.ones((2, 4))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (2, 3)
    """

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return float32[batch, sizes[-1]] for float32[batch, …]."""
        x = x.reshape(x.shape[0], -1)
        for size in self.sizes[:-1]:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(self.sizes[-1])(x)


class ConvNet(nn.Module):
    """Two convolutions with ReLU, the mean over positions, and a linear head.

    Attributes:
        num_classes: outputs.
        channels: of either convolution.

    Example:
        >>> model, x = optax_meta.tasks.ConvNet(num_classes=3, channels=2), jnp.ones((2, 4, 4))
        >>> jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x)[0]).shape
        (2, 3)
    """

    num_classes: int
    channels: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return float32[batch, num_classes] for images, float32[batch, height, width]."""
        x = x[..., None]
        for stride in (1, 2):
            x = nn.relu(nn.Conv(self.channels, (3, 3), strides=stride)(x))
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


def digits(*, hidden_size: int = 64, batch_size: int = 128) -> Task:
    """Classify scikit-learn's bundled handwritten digits with an MLP.

    1797 images of 8 × 8 pixels, scaled to [0, 1]; a fixed fifth is held out. Needs scikit-learn.

    Args:
        hidden_size: width of the two hidden layers.
        batch_size: drawn with replacement at every step.

    Returns:
        A `Task` with "loss" on all training images, "test_loss" and "test_accuracy".

    Example:
        >>> optax_meta.tasks.digits().name
        'digits'
    """
    return _digits(
        "digits",
        f"MLP 64-{hidden_size}-{hidden_size}-10 on scikit-learn's digits, cross-entropy, "
        f"batches of {batch_size}",
        MLP((hidden_size, hidden_size, 10)),
        batch_size,
    )


def digits_conv(*, channels: int = 16, batch_size: int = 64) -> Task:
    """Classify scikit-learn's digits with a small convolutional network.

    Args:
        channels: of the two 3 × 3 convolutions.
        batch_size: drawn with replacement at every step.

    Returns:
        A `Task` with "loss" on all training images, "test_loss" and "test_accuracy".

    Example:
        >>> optax_meta.tasks.digits_conv().name
        'digits-conv'
    """
    return _digits(
        "digits-conv",
        f"two 3×3 convolutions of {channels} channels on scikit-learn's digits, cross-entropy, "
        f"batches of {batch_size}",
        ConvNet(10, channels),
        batch_size,
    )


def quadratic(*, dim: int = 50, condition: float = 100.0, noise: float = 0.1) -> Task:
    """Minimize ½ Σ hᵢ(xᵢ - ξᵢ)², hᵢ from 1/condition to 1, ξ fresh noise at every step.

    Args:
        dim: number of parameters.
        condition: ratio of the largest to the smallest curvature.
        noise: standard deviation of ξ.

    Returns:
        A `Task` whose "loss" is the noise-free one; its minimum is 0.

    Example:
        >>> task = optax_meta.tasks.quadratic(dim=3)
        >>> task.init(jax.random.key(0)).shape
        (3,)
    """
    curvature = jnp.logspace(-jnp.log10(condition), 0.0, dim)

    def loss(params: jax.Array, batch: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(curvature * jnp.square(params - batch))

    return Task(
        name="quadratic",
        description=f"noisy quadratic in {dim} dimensions, condition number {condition:g}",
        init=lambda key: jax.random.normal(key, (dim,)),
        sample=lambda key: noise * jax.random.normal(key, (dim,)),
        loss=loss,
        evaluate=lambda params: {"loss": loss(params, jnp.zeros(dim))},
    )


TASKS: dict[str, Callable[[], Task]] = {
    "digits": digits,
    "digits-conv": digits_conv,
    "quadratic": quadratic,
}
"""Tasks by the name that the command line takes."""


def _digits(name: str, description: str, model: nn.Module, batch_size: int) -> Task:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, classes = load_digits(return_X_y=True)
    split = train_test_split(
        images.reshape(-1, 8, 8).astype("float32") / 16.0,
        classes.astype("int32"),
        test_size=0.2,
        random_state=0,
        stratify=classes,
    )
    train_x, test_x, train_y, test_y = map(jnp.asarray, split)

    def logits(params: Any, x: jax.Array) -> jax.Array:
        return jnp.asarray(model.apply(params, x))

    def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, y = batch
        losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)
        return jnp.mean(losses)

    def sample(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        chosen = jax.random.randint(key, (batch_size,), 0, train_y.size)
        return train_x[chosen], train_y[chosen]

    def evaluate(params: Any) -> dict[str, jax.Array]:
        correct = jnp.argmax(logits(params, test_x), axis=-1) == test_y
        return {
            "loss": loss(params, (train_x, train_y)),
            "test_loss": loss(params, (test_x, test_y)),
            "test_accuracy": jnp.mean(correct),
        }

    return Task(
        name=name,
        description=description,
        init=lambda key: model.init(key, train_x[:1]),
        sample=sample,
        loss=loss,
        evaluate=evaluate,
    )
