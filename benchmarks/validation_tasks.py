"""The validation tier: tasks that choose among policies, so that test tasks choose nothing.

Unlike the families that policies are trained on, and unlike the test tasks.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_breast_cancer

from optax_meta.meta.tasks import MLP, Task


def spirals(*, batch_size: int = 32) -> Task:
    """Three noisy spirals in the plane with 5 % label noise, MLP 2-48-48-3."""
    model = MLP((48, 48, 3))

    def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(key, 4)
        radius = jnp.sqrt(jax.random.uniform(keys[0], (count,)))
        arm = jax.random.randint(keys[1], (count,), 0, 3)
        angle = 6.0 * radius + 2.0 * jnp.pi / 3.0 * arm
        x = jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)], axis=-1)
        x += 0.04 * jax.random.normal(keys[2], x.shape)
        flip = jax.random.uniform(keys[3], (count,))
        return 2.0 * x, jnp.where(flip < 0.05, (arm + 1) % 3, arm)

    def loss(params: Any, batch: Any) -> jax.Array:
        x, y = batch
        logits = jnp.asarray(model.apply(params, x))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

    return _streamed("spirals", model, jnp.zeros((1, 2)), draw, loss, batch_size)


def friedman(*, batch_size: int = 16) -> Task:
    """Friedman's regression of ten inputs with noise, MLP 10-64-1."""
    model = MLP((64, 1))

    def truth(x: jax.Array) -> jax.Array:
        y = 10.0 * jnp.sin(jnp.pi * x[:, 0] * x[:, 1]) + 20.0 * (x[:, 2] - 0.5) ** 2
        return y + 10.0 * x[:, 3] + 5.0 * x[:, 4]

    def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        x_key, noise_key = jax.random.split(key)
        x = jax.random.uniform(x_key, (count, 10))
        return x, truth(x) + jax.random.normal(noise_key, (count,))

    def least(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean((truth(x) - y) ** 2)

    def loss(params: Any, batch: Any) -> jax.Array:
        x, y = batch
        return jnp.mean((jnp.asarray(model.apply(params, x))[:, 0] - y) ** 2)

    return _streamed("friedman", model, jnp.zeros((1, 10)), draw, loss, batch_size, least=least)


def parity(*, batch_size: int = 64) -> Task:
    """Parity of three out of twelve bits, with 10 % label noise, MLP 12-64-64-2."""
    model = MLP((64, 64, 2))

    def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        x_key, flip_key = jax.random.split(key)
        bits = jax.random.bernoulli(x_key, shape=(count, 12)).astype(jnp.int32)
        flips = jax.random.bernoulli(flip_key, 0.1, (count,))
        return 2.0 * bits - 1.0, (jnp.sum(bits[:, :3], axis=1) + flips) % 2

    def loss(params: Any, batch: Any) -> jax.Array:
        x, y = batch
        logits = jnp.asarray(model.apply(params, x))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

    def least(x: jax.Array, y: jax.Array) -> jax.Array:
        is_odd = jnp.sum(x[:, :3] > 0.0, axis=1) % 2
        return -jnp.mean(jnp.log(jnp.where(y == is_odd, 0.9, 0.1)))

    return _streamed("parity", model, jnp.zeros((1, 12)), draw, loss, batch_size, least=least)


def poisson(*, batch_size: int = 32) -> Task:
    """Poisson regression of counts with a log link in forty dimensions: a convex problem."""
    weights = jax.random.normal(jax.random.key(7), (40,)) / jnp.arange(1.0, 41.0)

    def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        x_key, y_key = jax.random.split(key)
        x = jax.random.normal(x_key, (count, 40))
        return x, jax.random.poisson(y_key, jnp.exp(x @ weights)).astype(jnp.float32)

    def loss(params: jax.Array, batch: Any) -> jax.Array:
        x, y = batch
        log_rate = jnp.clip(x @ params, -20.0, 20.0)
        return jnp.mean(jnp.exp(log_rate) - y * log_rate + jax.lax.lgamma(y + 1.0))

    fixed = draw(jax.random.key(99), 2048)
    return Task(
        "poisson",
        poisson.__doc__ or "",
        lambda key: 0.1 * jax.random.normal(key, (40,)),
        lambda key: draw(key, batch_size),
        loss,
        lambda params: {"loss": loss(params, fixed)},
        float(loss(weights, fixed)),
    )


class _Encoder(nn.Module):
    """One block of attention, normalized after each addition."""

    tokens: int
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        length = x.shape[1]
        h = nn.Embed(self.tokens, self.width)(x)
        h += nn.Embed(length, self.width)(jnp.arange(length))[None]
        h = nn.LayerNorm()(h + nn.MultiHeadDotProductAttention(2)(h))
        h = nn.LayerNorm()(h + nn.Dense(self.width)(nn.relu(nn.Dense(2 * self.width)(h))))
        return nn.Dense(self.tokens)(h)


def sorting(*, tokens: int = 10, length: int = 8, batch_size: int = 8) -> Task:
    """Sort eight of ten symbols, 5 % of them replaced in the answer, by a block of attention."""
    model = _Encoder(tokens, 16)

    def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        x_key, flip_key, other_key = jax.random.split(key, 3)
        x = jax.random.randint(x_key, (count, length), 0, tokens)
        flip = jax.random.bernoulli(flip_key, 0.05, x.shape)
        other = jax.random.randint(other_key, x.shape, 0, tokens)
        return x, jnp.where(flip, other, jnp.sort(x, axis=1))

    def loss(params: Any, batch: Any) -> jax.Array:
        x, y = batch
        logits = jnp.asarray(model.apply(params, x))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

    def least(x: jax.Array, y: jax.Array) -> jax.Array:
        other = 0.05 / tokens
        return -jnp.mean(jnp.log(jnp.where(y == jnp.sort(x, axis=1), 0.95 + other, other)))

    x = jnp.zeros((1, length), jnp.int32)
    return _streamed("sorting", model, x, draw, loss, batch_size, held_out=512, least=least)


def powell(*, dim: int = 12) -> Task:
    """Powell's singular function, a flat valley without noise; below 1e-3 it counts as reached."""

    def loss(params: jax.Array) -> jax.Array:
        a, b, c, d = params.reshape(-1, 4).T
        sides = (a + 10.0 * b) ** 2 + 5.0 * (c - d) ** 2
        return jnp.mean(sides + (b - 2.0 * c) ** 4 + 10.0 * (a - d) ** 4) + 1e-3

    return _certain("powell", lambda key: 1.5 * jax.random.normal(key, (dim,)), loss)


def uneven(*, dim: int = 15, batch_size: int = 32) -> Task:
    """Linear regression by its likelihood, with noise whose logarithm is linear as well."""
    keys = jax.random.split(jax.random.key(5))
    mean, log_noise = (jax.random.normal(key, (dim,)) / dim**0.5 for key in keys)
    truth = {"mean": mean, "log_noise": 1.5 * log_noise, "bias": jnp.float32(-2.0)}

    def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        x_key, y_key = jax.random.split(key)
        x = jax.random.normal(x_key, (count, dim))
        deviation = jnp.exp(x @ truth["log_noise"] + truth["bias"])
        return x, x @ mean + deviation * jax.random.normal(y_key, (count,))

    def loss(params: Any, batch: Any) -> jax.Array:
        x, y = batch
        log_deviation = x @ params["log_noise"] + params["bias"]
        scaled = (y - x @ params["mean"]) * jnp.exp(-log_deviation)
        return jnp.mean(0.5 * scaled**2 + log_deviation)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        start = 0.3 * jax.random.normal(key, (dim,))
        return {"mean": start, "log_noise": jnp.zeros(dim), "bias": jnp.zeros(())}

    fixed = draw(jax.random.key(99), 4096)
    # An excess of 0.01 nats counts as much as the floor's own width.
    return Task(
        "uneven",
        uneven.__doc__ or "",
        init,
        lambda key: draw(key, batch_size),
        loss,
        lambda params: {"loss": loss(params, fixed)},
        float(loss(truth, fixed)) - 0.01,
    )


def _tumors() -> jax.Array:
    """Return scikit-learn's table of tumors, standardized, float32[569, 30]."""
    x = jnp.asarray(load_breast_cancer(return_X_y=True)[0], jnp.float32)
    return (x - jnp.mean(x, axis=0)) / jnp.std(x, axis=0)


class _Bottleneck(nn.Module):
    """Thirty columns through four."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (24, 4, 24):
            x = nn.tanh(nn.Dense(width)(x))
        return nn.Dense(30)(x)


def bottleneck(*, batch_size: int = 32) -> Task:
    """Reconstruct tumors of scikit-learn's table from rows with noise, 30-24-4-24-30."""
    model, x = _Bottleneck(), _tumors()
    seen, fixed = x[:400], x[400:]

    def loss(params: Any, batch: Any) -> jax.Array:
        noisy, clean = batch
        return jnp.mean((jnp.asarray(model.apply(params, noisy)) - clean) ** 2)

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        row_key, noise_key = jax.random.split(key)
        clean = seen[jax.random.randint(row_key, (batch_size,), 0, len(seen))]
        return clean + 0.3 * jax.random.normal(noise_key, clean.shape), clean

    return Task(
        "bottleneck",
        bottleneck.__doc__ or "",
        lambda key: model.init(key, x[:1]),
        draw,
        loss,
        lambda params: {"loss": loss(params, (fixed, fixed))},
    )


def whole() -> Task:
    """Reconstruct all tumors of scikit-learn's table at once, 30-24-4-24-30: no noise at all."""
    model, x = _Bottleneck(), _tumors()

    def loss(params: Any) -> jax.Array:
        return jnp.mean((jnp.asarray(model.apply(params, x)) - x) ** 2)

    return _certain("whole", lambda key: model.init(key, x[:1]), loss)


class _Gated(nn.Module):
    """Sixteen gated units over time, and what they end at."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1)(jnp.asarray(nn.RNN(nn.GRUCell(16))(x[..., None]))[:, -1])


def largest(*, length: int = 10, batch_size: int = 32) -> Task:
    """The largest of ten numbers in a row, with noise of 0.1, GRU of 16 units."""
    model = _Gated()

    def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        x_key, noise_key = jax.random.split(key)
        x = jax.random.normal(x_key, (count, length))
        return x, jnp.max(x, axis=1) + 0.1 * jax.random.normal(noise_key, (count,))

    def least(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean((jnp.max(x, axis=1) - y) ** 2)

    def loss(params: Any, batch: Any) -> jax.Array:
        x, y = batch
        return jnp.mean((jnp.asarray(model.apply(params, x))[:, 0] - y) ** 2)

    return _streamed("largest", model, jnp.zeros((1, length)), draw, loss, batch_size, least=least)


def _certain(name: str, init: Callable[[jax.Array], Any], loss: Callable[[Any], jax.Array]) -> Task:
    """Return the task of a loss without batches, which is what it is judged by as well."""
    return Task(
        name,
        name,
        init,
        lambda key: key,
        lambda params, batch: loss(params),  # noqa: ARG005
        lambda params: {"loss": loss(params)},
    )


def _streamed(
    name: str,
    model: Any,
    x: jax.Array,
    draw: Callable[[jax.Array, int], Any],
    loss: Callable[[Any, Any], jax.Array],
    batch_size: int,
    held_out: int = 2048,
    least: Callable[..., jax.Array] | None = None,
) -> Task:
    """Return the task; `least` gives the loss that what made the data would have on a batch."""
    fixed = draw(jax.random.key(99), held_out)
    return Task(
        name,
        name,
        lambda key: model.init(key, x),
        lambda key: draw(key, batch_size),
        loss,
        lambda params: {"loss": loss(params, fixed)},
        0.0 if least is None else float(least(*fixed)),
    )


VALIDATION = {
    "spirals": spirals,
    "friedman": friedman,
    "parity": parity,
    "poisson": poisson,
    "sorting": sorting,
    "powell": powell,
    "uneven": uneven,
    "bottleneck": bottleneck,
    "whole": whole,
    "largest": largest,
}
