"""The families that the shipped policies were trained on."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from optax_meta.meta.families.polynomials import products, quadratics
from optax_meta.meta.families.real import tables
from optax_meta.meta.families.shifting import drifting
from optax_meta.meta.families.teachers import networks
from optax_meta.meta.families.text import bigrams, transformers
from optax_meta.meta.tasks import TaskFamily

# Widths, activations, batch sizes and losses differ, so that a policy cannot know them by heart.
FAMILIES: dict[str, Callable[[], TaskFamily]] = {
    "relu": partial(networks, name="relu"),
    "tanh": partial(
        networks, sizes=(8, 24, 24, 1), activation=jnp.tanh, classify=False, name="tanh"
    ),
    "deep": partial(
        networks,
        sizes=(16, 16, 16, 16, 16, 8),
        activation=jax.nn.gelu,
        batch_size=16,
        normalize=True,
        name="deep",
    ),
    "linear": partial(networks, sizes=(24, 10), batch_size=8, name="linear"),
    "narrow": partial(networks, sizes=(6, 48, 3), batch_size=64, classify=False, name="narrow"),
    "heavy": partial(
        networks, sizes=(10, 24, 4), batch_size=16, classify=False, heavy_tailed=True, name="heavy"
    ),
    "quadratic": quadratics,
    "product": products,
    "wide": partial(networks, sizes=(32, 128, 128, 10), name="wide"),
    "plain": partial(
        networks, sizes=(16, *[24] * 8, 4), activation=jnp.tanh, classify=False, name="plain"
    ),
    "bigram": bigrams,
    "rare": partial(bigrams, tokens=256, width=16, name="rare"),
    "transformer": transformers,
    "language": partial(transformers, tokens=32, length=16, width=32, name="language"),
    "drifting": drifting,
    "table": tables,
}
"""Families of endless data, by name; with those of `OVERFITTED` what `any-lr-v2` was trained on."""

# Each has more parameters than rows, and so can fit the noise.
OVERFITTED: dict[str, Callable[[], TaskFamily]] = {
    "few-relu": partial(networks, sizes=(12, 48, 48, 4), rows=256, name="few-relu"),
    "few-tanh": partial(
        networks,
        sizes=(8, 64, 1),
        activation=jnp.tanh,
        classify=False,
        batch_size=16,
        rows=128,
        name="few-tanh",
    ),
    "few-deep": partial(
        networks,
        sizes=(16, 24, 24, 24, 6),
        activation=jax.nn.gelu,
        normalize=True,
        rows=512,
        name="few-deep",
    ),
    "few-linear": partial(networks, sizes=(48, 5), batch_size=16, rows=192, name="few-linear"),
    "few-wide": partial(networks, sizes=(24, 96, 1), classify=False, rows=256, name="few-wide"),
}
"""Families of few noisy rows, judged on fresh ones, that `adamw-lr-wd-v2` was trained on."""
