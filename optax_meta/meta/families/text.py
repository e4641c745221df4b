"""Random languages: a Markov chain, and sequences whose tokens look at each other."""

from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp

from optax_meta.meta.families.layers import (
    Layer,
    affine,
    cross_entropy,
    draw_classes,
    init_affine,
    standardize,
)
from optax_meta.meta.families.scales import EVALUATION_SIZE, Scales, draw_scales, scaled_task
from optax_meta.meta.tasks import Task, TaskFamily

Batch = tuple[jax.Array, jax.Array]
"""Tokens, int32[B, …], and classes of that shape, or their probabilities, float32[B, …, C]."""


def bigrams(
    *, tokens: int = 24, width: int = 12, batch_size: int = 64, name: str = "bigram"
) -> TaskFamily:
    """Learn the transitions of a random Markov chain with an embedding and a linear head.

    Args:
        tokens: size of the vocabulary.
        width: of the embedding.
        batch_size: fresh transitions a step.
        name: of the family.

    Returns:
        A `TaskFamily`.

    Example:
        >>> optax_meta.families.bigrams().name
        'bigram'
    """

    def sample(key: jax.Array) -> _Chain:
        keys = jax.random.split(key, 5)
        # From nearly even transitions to nearly certain ones.
        sharpness = jax.random.uniform(keys[0], minval=0.5, maxval=3.0)
        frequency = _draw_frequency(keys[1], tokens)
        transition = sharpness * jax.random.normal(keys[2], (tokens, tokens)) + frequency[None]
        return _Chain(frequency, transition, draw_scales(keys[3]), jax.random.bits(keys[4]))

    def init(key: jax.Array) -> _Bigram:
        embed_key, head_key = jax.random.split(key)
        embedding = jax.random.normal(embed_key, (tokens, width))
        return {"embedding": embedding, "head": init_affine(head_key, width, tokens)}

    def build(drawn: _Chain) -> Task:
        first, logits = drawn.observe(EVALUATION_SIZE, jax.random.key(drawn.evaluation))
        return scaled_task(
            name,
            drawn.scales,
            init=init,
            draw=drawn.draw,
            loss=_bigram_loss,
            batch_size=batch_size,
            judged_on=(first, jax.nn.softmax(logits)),
        )

    return TaskFamily(name, f"bigrams of {tokens} tokens", sample, build)


class _Bigram(TypedDict):
    """An embedding, float32[tokens, width], and a head."""

    embedding: jax.Array
    head: Layer


class _Chain(NamedTuple):
    """One task; V tokens.

    Attributes:
        frequency: logits of the first token, float32[V].
        transition: logits of the token after each, float32[V, V].
        scales: units of loss and parameters.
        evaluation: seed of what the run is judged on, uint32[].
    """

    frequency: jax.Array
    transition: jax.Array
    scales: Scales
    evaluation: jax.Array

    def observe(self, count: int, key: jax.Array) -> Batch:
        """Return first tokens and logits of the next."""
        first = draw_classes(key, jnp.tile(self.frequency, (count, 1)))
        return first, self.transition[first]

    def draw(self, count: int, key: jax.Array) -> Batch:
        first_key, next_key = jax.random.split(key)
        first, logits = self.observe(count, first_key)
        return first, draw_classes(next_key, logits)


def _draw_frequency(key: jax.Array, tokens: int) -> jax.Array:
    """Return logits of a power law with an exponent up to 1.5: some tokens are rare, as in text."""
    return -jax.random.uniform(key, maxval=1.5) * jnp.log(jnp.arange(1.0, tokens + 1))


def _bigram_loss(params: _Bigram, batch: Batch) -> jax.Array:
    first, after = batch
    # A product in place of a look-up: under `vmap` its gradient is a product as well.
    hidden = jax.nn.one_hot(first, len(params["embedding"])) @ params["embedding"]
    return jnp.mean(cross_entropy(affine(params["head"], hidden), after))


def transformers(
    *,
    tokens: int = 16,
    length: int = 8,
    width: int = 16,
    batch_size: int = 4,
    name: str = "transformer",
) -> TaskFamily:
    """Predict classes that depend on a token and on another one some places before it.

    One block of attention and a hidden layer, both behind layer normalization, with embeddings of
    tokens, some of them rare, and of positions. Attention looks both ways, and the places form a
    ring.

    Args:
        tokens: size of the vocabulary, and number of classes.
        length: tokens of a sequence, ≥ 2.
        width: of the embeddings.
        batch_size: fresh sequences a step.
        name: of the family.

    Returns:
        A `TaskFamily`.

    Example:
        >>> optax_meta.families.transformers().name
        'transformer'
    """

    def sample(key: jax.Array) -> _Language:
        keys = iter(jax.random.split(key, 7))
        sharpness = jax.random.uniform(next(keys), minval=1.0, maxval=4.0)
        return _Language(
            frequency=_draw_frequency(next(keys), tokens),
            lag=jax.random.randint(next(keys), (), 1, length),
            own=sharpness * jax.random.normal(next(keys), (tokens, tokens)),
            other=sharpness * jax.random.normal(next(keys), (tokens, tokens)),
            scales=draw_scales(next(keys)),
            evaluation=jax.random.bits(next(keys)),
        )

    def draw(drawn: _Language, count: int, key: jax.Array) -> Batch:
        x_key, y_key = jax.random.split(key)
        x, logits = drawn.observe(count, length, x_key)
        return x, draw_classes(y_key, logits)

    def build(drawn: _Language) -> Task:
        x, logits = drawn.observe(EVALUATION_SIZE, length, jax.random.key(drawn.evaluation))
        return scaled_task(
            name,
            drawn.scales,
            init=lambda key: _init_transformer(tokens, length, width, key),
            draw=lambda count, key: draw(drawn, count, key),
            loss=_transformer_loss,
            batch_size=batch_size,
            judged_on=(x, jax.nn.softmax(logits)),
        )

    return TaskFamily(name, f"attention over {length} of {tokens} tokens", sample, build)


class _Language(NamedTuple):
    """One task; V tokens.

    Attributes:
        frequency: logits of every token, float32[V].
        lag: how many places before it the other token stands, int32[].
        own: logits of the class by the token itself, float32[V, V].
        other: and by the other one, float32[V, V].
        scales: units of loss and parameters.
        evaluation: seed of what the run is judged on, uint32[].
    """

    frequency: jax.Array
    lag: jax.Array
    own: jax.Array
    other: jax.Array
    scales: Scales
    evaluation: jax.Array

    def observe(self, count: int, length: int, key: jax.Array) -> Batch:
        """Return tokens and logits of their classes."""
        x = draw_classes(key, jnp.tile(self.frequency, (count, length, 1)))
        # A ring, so that every place has a token before it and none is a special case.
        other = x[:, (jnp.arange(length) - self.lag) % length]
        return x, self.own[x] + self.other[other]


class _Transformer(TypedDict):
    """Parameters; the three norms stand before attention, hidden layer and head.

    `gain` and `shift`: float32[3, 1, 1, width]; `tokens`, `positions`: embeddings.
    """

    tokens: jax.Array
    positions: jax.Array
    norms: Layer
    layers: dict[str, Layer]


def _init_transformer(tokens: int, length: int, width: int, key: jax.Array) -> _Transformer:
    shapes = dict.fromkeys(("query", "key", "value", "out"), (width, width))
    shapes |= {"up": (width, 2 * width), "down": (2 * width, width), "head": (width, tokens)}
    token_key, position_key, *keys = jax.random.split(key, 2 + len(shapes))
    layers = zip(shapes.items(), keys, strict=True)
    return {
        "tokens": jax.random.normal(token_key, (tokens, width)) / jnp.sqrt(width),
        "positions": jax.random.normal(position_key, (length, width)) / jnp.sqrt(width),
        "norms": {"gain": jnp.ones((3, 1, 1, width)), "shift": jnp.zeros((3, 1, 1, width))},
        "layers": {name: init_affine(key, *shape) for (name, shape), key in layers},
    }


def _transformer_loss(params: _Transformer, batch: Batch) -> jax.Array:
    x, y = batch
    hidden = jax.nn.one_hot(x, len(params["tokens"])) @ params["tokens"]
    return jnp.mean(cross_entropy(_transformer(params, hidden + params["positions"][None]), y))


def _transformer(params: _Transformer, x: jax.Array) -> jax.Array:
    layers, norms = params["layers"], params["norms"]

    def norm(index: int, x: jax.Array) -> jax.Array:
        return norms["gain"][index] * standardize(x) + norms["shift"][index]

    normed = norm(0, x)
    query, key, value = (affine(layers[name], normed) for name in ("query", "key", "value"))
    weights = jax.nn.softmax(query @ key.mT / query.shape[-1] ** 0.5)
    x = x + affine(layers["out"], weights @ value)
    x = x + affine(layers["down"], jax.nn.gelu(affine(layers["up"], norm(1, x))))
    return affine(layers["head"], norm(2, x))
