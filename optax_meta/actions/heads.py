"""Heads: how a network's outputs become the probabilities of actions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from optax_meta.actions.moves import positions
from optax_meta.actions.spaces import ActionSpace, hold


def log_probs(space: ActionSpace, logits: jax.Array) -> jax.Array:
    """Return log π(a) of every action, normalized.

    For a factored space log π(a) = Σₖ log πₖ(aₖ), one softmax for each move.

    Args:
        space: the action space.
        logits: float32[num_logits]; of an ordered space where it stands, in nats.

    Returns:
        float32[num_actions].

    Example:
        >>> space = optax_meta.actions.learning_rate()
        >>> print(np.exp(optax_meta.actions.log_probs(space, jnp.zeros(3))).round(2))
        [0.33 0.33 0.33]
    """
    if not space.factored:
        return jax.nn.log_softmax(logits)
    if space.spread:
        heads = [
            -0.5 * ((jnp.asarray(positions(move), logits.dtype) - mean) / space.spread) ** 2
            for move, mean in zip(space.moves, logits, strict=True)
        ]
    else:
        heads = jnp.split(logits, list(itertools.accumulate(space.shape))[:-1])
    total = jnp.zeros((), logits.dtype)
    for head in heads:
        total = total[..., None] + jnp.expand_dims(jax.nn.log_softmax(head), range(total.ndim))
    return total.ravel()


def hold_logits(space: ActionSpace, probability: float) -> np.ndarray:
    """Return logits that give `probability` to holding and share the rest evenly.

    Args:
        space: an action space that has a hold action.
        probability: in (0, 1); of holding everything, also in a factored space. In an ordered one
            the spread says what it is.

    Returns:
        float32[num_logits].

    Raises:
        ValueError: the space has no hold action, or the probability is out of range.

    Example:
        >>> space = optax_meta.actions.learning_rate()
        >>> logits = optax_meta.actions.hold_logits(space, 0.9)
        >>> print(np.exp(optax_meta.actions.log_probs(space, logits)).round(2))
        [0.05 0.9  0.05]
    """
    action = hold(space)
    if action is None:
        raise ValueError(
            "the action space has no hold action: give each move a factor of 1 or a step of 0, "
            'or start with `start="uniform"`'
        )
    if not 0.0 < probability < 1.0:
        raise ValueError(f"`hold_probability` must lie in (0, 1), got {probability}")
    if space.spread:
        return np.zeros(space.num_logits, np.float32)
    if not space.factored:
        return _peak(space.num_actions, action, probability)
    each = probability ** (1.0 / len(space.moves))
    choices = np.unravel_index(action, space.shape)
    heads = [_peak(n, int(choice), each) for n, choice in zip(space.shape, choices, strict=True)]
    return np.concatenate(heads)


def _peak(size: int, position: int, probability: float) -> np.ndarray:
    logits = np.zeros(size, np.float32)
    if size > 1:
        logits[position] = np.log(probability * (size - 1) / (1.0 - probability))
    return logits
