"""An actor-critic that learns a game of MinAtar, one batch of fresh games a step.

A batch is a key, and the loss plays the games: what is learned from depends on the policy, though
`Task.sample` does not. Controllers see what any user of an actor-critic would pass on, a loss that
says little about the score. Judged by 1 / (1 + score), the score being what a game of at most 250
steps hits: about half of the loss is twice the score.
"""

import functools
import importlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from real_data import Half, MissingDataError
from real_models import patches

from optax_meta.meta.tasks import Task

_GAMES: dict[Half, str] = {"validation": "SpaceInvaders", "reported": "Breakout"}
_LENGTH = 64
"""Steps of a game that is learned from; most are lost long before."""
_JUDGED_LENGTH = 250
_JUDGED_GAMES = 64
_DISCOUNT = 0.97
_ENTROPY = 0.01


class ActorCritic(nn.Module):
    """A convolution and a hidden layer, with logits of moves and a value.

    Attributes:
        channels: of the convolution.
        hidden: units.
        moves: that the game knows.
    """

    channels: int
    hidden: int
    moves: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return float32[batch, moves] and float32[batch] for float32[batch, 10, 10, C]."""
        x = nn.relu(nn.Dense(self.channels)(patches(x, 3, 1)))
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.moves)(x), nn.Dense(1)(x)[:, 0]


class Games(NamedTuple):
    """Steps of B games of length L.

    Attributes:
        seen: float32[L, B, 10, 10, C].
        moves: int32[L, B].
        rewards: float32[L, B], 0 after a game is over.
        is_on: whether a game was not over before the step, bool[L, B].
    """

    seen: jax.Array
    moves: jax.Array
    rewards: jax.Array
    is_on: jax.Array


def games(name: str, half: Half, model: ActorCritic, batch: int) -> Task:
    """Return the task of playing the game of a half, `batch` games a step.

    Raises:
        MissingDataError: `gymnax` is not installed.
    """
    env = _environment(_GAMES[half])

    def played(params: Any, key: jax.Array, games: int, length: int) -> Games:
        reset_key, play_key = jax.random.split(key)
        seen, state = jax.vmap(env.reset)(jax.random.split(reset_key, games))
        is_on = jnp.ones(games, bool)

        def step(carry: Any, key: jax.Array) -> tuple[Any, Games]:
            seen, state, is_on = carry
            move_key, step_key = jax.random.split(key)
            moves = jax.random.categorical(move_key, model.apply(params, seen)[0])
            keys = jax.random.split(step_key, games)
            # One flag of an end in older versions, two in newer ones: lost, and out of time.
            after, state, rewards, *ends, _ = jax.vmap(env.step)(keys, state, moves)
            games_now = Games(seen, moves, rewards * is_on, is_on)
            return (after, state, is_on & ~functools.reduce(jnp.logical_or, ends)), games_now

        return jax.lax.scan(step, (seen, state, is_on), jax.random.split(play_key, length))[1]

    def loss(params: Any, key: jax.Array) -> jax.Array:
        games = played(jax.lax.stop_gradient(params), key, batch, _LENGTH)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), games)
        logits, values = map(jnp.asarray, model.apply(params, flat.seen))
        returns = _returns(games.rewards).reshape(-1)
        advantages = jax.lax.stop_gradient(returns - values)
        logs = nn.log_softmax(logits)
        chosen = jnp.take_along_axis(logs, flat.moves[:, None], axis=1)[:, 0]
        entropy = -jnp.sum(jnp.exp(logs) * logs, axis=1)
        each = -advantages * chosen + 0.5 * (returns - values) ** 2 - _ENTROPY * entropy
        return jnp.sum(each * flat.is_on) / jnp.sum(flat.is_on)

    def evaluate(params: Any) -> dict[str, jax.Array]:
        games = played(params, jax.random.key(1), _JUDGED_GAMES, _JUDGED_LENGTH)
        score = jnp.mean(jnp.sum(games.rewards, axis=0))
        return {"loss": 1.0 / (1.0 + score), "score": score}

    seen = jnp.zeros((1, *env.obs_shape))
    description = f"{name}: {model}"
    return Task(
        name, description, lambda key: model.init(key, seen), lambda key: key, loss, evaluate
    )


def _returns(rewards: jax.Array) -> jax.Array:
    """Return Gₜ = rₜ + γ Gₜ₊₁, float32[L, B]."""

    def step(later: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
        later = now + _DISCOUNT * later
        return later, later

    return jax.lax.scan(step, jnp.zeros(rewards.shape[1:]), rewards, reverse=True)[1]


def _environment(game: str) -> Any:
    try:
        gymnax = importlib.import_module("gymnax")
    except ImportError as error:
        raise MissingDataError(
            "MinAtar lies in `gymnax`, which asks for jax < 0.12 and needs `six`: "
            f"`pip install gymnax six` ({error})"
        ) from error
    return gymnax.make(f"{game}-MinAtar")[0]
