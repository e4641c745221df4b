"""Cells of real networks: a network, its data, an optimizer and a number of steps.

Two halves that share neither data nor networks: "validation" may choose, "reported" is only shown.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import optax
from optax import contrib
from real_actor import ActorCritic, games
from real_data import Half
from real_models import CNN, GPT, LSTM, ResidualMLP, ViT
from real_tasks import digits, sensors, text
from real_tuning import tuned_adapters, tuned_whole

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


_choosing = partial(cell, "validation")
_reported = partial(cell, "reported")

CELLS = {
    found.name: found
    for found in (
        _choosing("mlp-adamw", digits, MLP((256, 256, 256, 10)), "adamw", 2500, 64, 256),
        _choosing("cnn-momentum", digits, CNN((16, 32, 32), 64), "momentum", 1500, 32, 64),
        _choosing("vit-adamw", digits, ViT(7, 64, 3), "adamw", 1000, 24, 64),
        _choosing("gpt-adamw", text, GPT(64, 2), "adamw", 1200, 8, 64, 64),
        _choosing("gpt-lion", text, GPT(48, 3), "lion", 1200, 8, 48, 48),
        _choosing("lstm-rmsprop", text, LSTM(128), "rmsprop", 1000, 16, 128, 32),
        _choosing("shuttle-muon", sensors, ResidualMLP(96, 3, 10), "muon", 2000, 64, 96),
        _choosing("tune-adamw", tuned_whole, CNN((16, 32), 96), "adamw", 1500, 32, 96),
        _choosing("invaders-adamw", games, ActorCritic(12, 96, 4), "adamw", 600, 8, 96),
        _reported("mlp-momentum", digits, ResidualMLP(128, 4, 10), "momentum", 3000, 48, 128),
        _reported("cnn-adamw", digits, CNN((24, 48), 96, normalize=True), "adamw", 1500, 32, 96),
        _reported("vit-lion", digits, ViT(7, 48, 3, 6), "lion", 1200, 24, 48),
        _reported("gpt-muon", text, GPT(64, 3), "muon", 1000, 4, 64, 48),
        _reported("gpt-large-adamw", text, GPT(128, 3), "adamw", 800, 4, 128, 48),
        _reported("lstm-adamw", text, LSTM(96, 2), "adamw", 1000, 12, 96, 32),
        _reported("shuttle-rmsprop", sensors, MLP((224, 224, 224, 10)), "rmsprop", 5000, 64, 224),
        _reported("lora-adamw", tuned_adapters, MLP((320, 160, 10)), "adamw", 2000, 32, 320),
        _reported("actor-rmsprop", games, ActorCritic(16, 64), "rmsprop", 600, 8, 64),
    )
}
