"""Pictures to classify: the handwritten digits that come with scikit-learn."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from optax_meta.meta.tasks.task import Task


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


def _digits(name: str, description: str, model: nn.Module, batch_size: int) -> Task:
    train, test = _load()

    def logits(params: Any, x: jax.Array) -> jax.Array:
        return jnp.asarray(model.apply(params, x))

    def loss(params: Any, batch: Images) -> jax.Array:
        x, y = batch
        losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)
        return jnp.mean(losses)

    def sample(key: jax.Array) -> Images:
        chosen = jax.random.randint(key, (batch_size,), 0, train.classes.size)
        return Images(*(values[chosen] for values in train))

    def evaluate(params: Any) -> dict[str, jax.Array]:
        is_right = jnp.argmax(logits(params, test.pixels), axis=-1) == test.classes
        return {
            "loss": loss(params, train),
            "test_loss": loss(params, test),
            "test_accuracy": jnp.mean(is_right),
        }

    def init(key: jax.Array) -> Any:
        return model.init(key, train.pixels[:1])

    return Task(name, description, init, sample, loss, evaluate)


class Images(NamedTuple):
    """Pixels in [0, 1], float32[N, 8, 8], and classes, int32[N]."""

    pixels: jax.Array
    classes: jax.Array


def _load() -> tuple[Images, Images]:
    """Return four fifths to train on and one to test on, always the same ones."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, classes = load_digits(return_X_y=True)
    split = train_test_split(
        pixels.reshape(-1, 8, 8).astype("float32") / 16.0,
        classes.astype("int32"),
        test_size=0.2,
        random_state=0,  # the seed of a run must not change what it is judged by
        stratify=classes,
    )
    train_x, test_x, train_y, test_y = map(jnp.asarray, split)
    return Images(train_x, train_y), Images(test_x, test_y)
