"""Layers of the students, as pure functions of a few arrays."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

Activation = Callable[[jax.Array], jax.Array]
Layer = dict[str, jax.Array]
"""Kernel, float32[inputs, outputs], and bias, float32[outputs]."""


def init_affine(key: jax.Array, inputs: int, outputs: int) -> Layer:
    """Return a layer that keeps the variance of its inputs."""
    kernel = jax.random.normal(key, (inputs, outputs)) / jnp.sqrt(inputs)
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def affine(layer: Layer, x: jax.Array) -> jax.Array:
    """Return x·W + b for float32[…, inputs]."""
    bias = layer["bias"].reshape(*[1] * (x.ndim - 1), -1)
    return x @ layer["kernel"] + bias


def init_network(sizes: Sequence[int], key: jax.Array) -> list[Layer]:
    """Return the layers between these widths."""
    keys = jax.random.split(key, len(sizes) - 1)
    pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [init_affine(key, inputs, outputs) for key, inputs, outputs in pairs]


def network(
    layers: Sequence[Layer], x: jax.Array, activation: Activation, *, normalize: bool = False
) -> jax.Array:
    """Return float32[batch, outputs]; the last layer is linear.

    Args:
        layers: from `init_network`.
        x: float32[batch, inputs].
        activation: behind every layer but the last.
        normalize: normalize every hidden layer and add it to the last one of the same width.
    """
    *hidden, head = layers
    for layer in hidden:
        y = activation(affine(layer, x))
        if normalize:
            y = standardize(y)
            y = x + y if x.shape == y.shape else y
        x = y
    return affine(head, x)


def standardize(x: jax.Array) -> jax.Array:
    """Shift and scale the last axis to mean 0 and mean square 1."""
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-3)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return that of integer labels; of probabilities, what is above their own entropy."""
    if jnp.issubdtype(labels.dtype, jnp.integer):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.kl_divergence(jax.nn.log_softmax(logits), labels)


def draw_classes(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Draw classes by one uniform number each, far cheaper than one for each class."""
    cumulative = jnp.cumsum(jax.nn.softmax(logits), axis=-1)
    uniform = jax.random.uniform(key, (*logits.shape[:-1], 1))
    # The last sum may round to less than 1: left out, it is the class of all that is above.
    return jnp.sum(uniform > cumulative[..., :-1], axis=-1)
