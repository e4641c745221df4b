"""What a policy learns from a batch of runs: values, advantages, and the step along them.

Source: group baselines without a critic, Z. Shao et al., https://arxiv.org/abs/2402.03300; clipped
ratios, J. Schulman et al., https://arxiv.org/abs/1707.06347; evolution with ranks and antithetic
pairs, T. Salimans et al., https://arxiv.org/abs/1703.03864.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from optax_meta import policy_gradient
from optax_meta.meta.episodes import Trajectory
from optax_meta.meta.settings import Setting

_LEAST_RATIO = 1e-6
"""A run that lowers its loss to a millionth is as good as any that lowers it more: where the
optimum is 0 the logarithm would otherwise reward digits that no one needs."""
_LEAST_LOSS = 1e-30
"""So that the logarithm of a training loss of 0 is finite."""
_LEAST_SPREAD = 0.02
"""Added to a group's spread in log-loss: runs that end within 2 % of each other tell nothing about
the policy, and dividing by their spread would make a lesson of noise."""
_LARGEST_ADVANTAGE = 4.0
"""Of one run, in spreads of its group: returns along the way can be far from the mean where the
final losses, which the spread is of, agree."""
_RATIO_RANGE = 0.8, 1.2
"""Of probabilities, new over old; beyond it an action gains no more: 1 ± ε with PPO's ε = 0.2."""
_LARGEST_LOG_RATIO = 5.0
"""Beyond the range anyway, and its exponential is finite."""


class Decisions(NamedTuple):
    """All decisions of a batch, with leading axes [G, R, D] or one of these three in a row.

    Attributes:
        observation: float32[…, features].
        action: int32[…].
        log_prob: log π(action|observation) when it was drawn, float32[…].
        advantage: how much better than the group's mean it turned out, float32[…].
        mask: 1 for a decision, 0 for padding, float32[…].
    """

    observation: jax.Array
    action: jax.Array
    log_prob: jax.Array
    advantage: jax.Array
    mask: jax.Array


def log_values(runs: Trajectory) -> jax.Array:
    """Return log-losses before each decision's effect and after the last, float32[G, R, D + 1].

    They begin at that of the steps up to the second decision; the last one is that plus the
    log-ratio that the loss on fixed data ends at, which may be of another kind; a millionth is as
    good as less. A run that diverged ends one nat above where it began.

    Args:
        runs: with leading axes [G, R].
    """
    begin = jnp.log(jnp.maximum(runs.value[..., 0], _LEAST_LOSS))
    initial, final = runs.initial["loss"], runs.final["loss"]
    # A ratio, since the loss on fixed data may be on another scale than that of training.
    fall = jnp.log(initial) - jnp.log(jnp.maximum(final, _LEAST_RATIO * initial))
    final = begin - jnp.where(jnp.isfinite(final), fall, -jnp.inf)
    during = jnp.log(jnp.maximum(runs.value, _LEAST_LOSS))
    last = runs.mask - jnp.roll(runs.mask, -1, axis=-1).at[..., -1].set(0.0)
    during = jnp.where(last > 0.0, final[..., None], during)
    during = jnp.where(runs.mask > 0.0, during, final[..., None])
    values = jnp.concatenate([begin[..., None], during], axis=-1)
    # How far above its start a run diverged is chance, and one of them would outweigh its group.
    return jnp.minimum(values, begin[..., None] + 1.0)


def decisions_of(
    runs: Trajectory, values: jax.Array, is_shaped: jax.Array, discount: float
) -> Decisions:
    """Return all decisions with their advantages.

    Args:
        runs: with leading axes [G, R].
        values: from `log_values`, float32[G, R, D + 1].
        is_shaped: whether the training loss between decisions counts, bool[].
        discount: γ of the returns, per decision.
    """
    advantage = advantages(values, runs.mask, is_shaped, discount)
    return Decisions(runs.observation, runs.action, runs.log_prob, advantage, runs.mask)


def advantages(
    values: jax.Array, mask: jax.Array, is_shaped: jax.Array, discount: float
) -> jax.Array:
    """Return returns less their mean over the group, over its spread, float32[G, R, D].

    Args:
        values: from `log_values`, float32[G, R, D + 1]; rewards are their falls.
        mask: 1 for a decision, float32[G, R, D].
        is_shaped: whether all rewards count, discounted, or the final loss alone; bool[].
        discount: γ.
    """
    rewards = (values[..., :-1] - values[..., 1:]) * mask
    discounted = jax.vmap(jax.vmap(policy_gradient.discounted_returns, (0, None)), (0, None))
    shaped = discounted(rewards, discount)
    # Unshaped, every decision of a run gets the same return: all of them led to its end.
    returns = jnp.where(is_shaped, shaped, values[..., :1] - values[..., -1:])
    centred = returns - jnp.mean(returns, axis=1, keepdims=True)
    spread = jnp.std(values[..., -1], axis=1)[:, None, None]
    scaled = centred / (spread + _LEAST_SPREAD)
    return jnp.clip(scaled, -_LARGEST_ADVANTAGE, _LARGEST_ADVANTAGE) * mask


def evolution_gradient(final: jax.Array, moves: jax.Array, sigma: float) -> jax.Array:
    """Estimate the gradient of the final loss by the ranks within each group, float32[P].

    Args:
        final: log-losses at the end, float32[G, R].
        moves: of the policy's parameters, float32[G, R, P].
        sigma: their standard deviation.
    """
    # Ranks, so that one run that diverged counts as little as one that is merely the worst.
    ranks = jnp.argsort(jnp.argsort(final, axis=1), axis=1)
    score = ranks / (final.shape[1] - 1) - 0.5  # -½ for the best of a group, ½ for the worst
    gradient = jnp.einsum("gr,grp->p", score, moves, precision="highest")
    return gradient / (sigma**2 * score.size)


def follow(
    setting: Setting,
    flat: jax.Array,
    learner_state: optax.OptState,
    gradients: Sequence[jax.Array],
) -> tuple[jax.Array, optax.OptState, dict[str, jax.Array]]:
    """Take one step against the mean of evolution's gradients, float32[P] each."""
    gradient = sum(gradients[1:], gradients[0]) / len(gradients)
    return *_step(setting, flat, learner_state, gradient), {"grad_norm": optax.tree.norm(gradient)}


def reinforce(
    setting: Setting,
    flat: jax.Array,
    learner_state: optax.OptState,
    batches: Sequence[Decisions],
) -> tuple[jax.Array, optax.OptState, dict[str, jax.Array]]:
    """Take `epochs` steps along the policy gradient of all decisions."""
    rows = Decisions(*map(_in_a_row, zip(*batches, strict=True)))
    loss = jax.value_and_grad(partial(_loss, setting, rows), has_aux=True)

    def epoch(_: int, carry: _Epoch) -> _Epoch:
        (_value, entropy), gradient = loss(carry.flat)
        moved = _step(setting, carry.flat, carry.learner_state, gradient)
        return _Epoch(*moved, entropy, optax.tree.norm(gradient))

    zero = jnp.float32(0.0)
    start = _Epoch(flat, learner_state, zero, zero)
    last = jax.lax.fori_loop(0, setting.epochs, epoch, start)
    return last.flat, last.learner_state, {"entropy": last.entropy, "grad_norm": last.grad_norm}


class _Epoch(NamedTuple):
    """What is carried from step to step on one batch."""

    flat: jax.Array
    learner_state: optax.OptState
    entropy: jax.Array
    grad_norm: jax.Array


def _in_a_row(arrays: Sequence[jax.Array]) -> jax.Array:
    """Join arrays of leading axes [G, R, D] along one."""
    return jnp.concatenate([x.reshape(-1, *x.shape[3:]) for x in arrays])


def _loss(setting: Setting, rows: Decisions, flat: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return -mean gain - c·H with ratios clipped as in PPO, and the mean entropy H."""
    _, unravel = ravel_pytree(setting.policy.params)
    log_probs = jax.vmap(partial(setting.policy.log_probs, unravel(flat)))(rows.observation)
    taken = jnp.take_along_axis(log_probs, rows.action[:, None], axis=1)[:, 0]
    change = jnp.clip(taken - rows.log_prob, -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    ratio = jnp.exp(change)
    gain = jnp.minimum(ratio * rows.advantage, jnp.clip(ratio, *_RATIO_RANGE) * rows.advantage)

    def mean(x: jax.Array) -> jax.Array:
        return jnp.sum(x * rows.mask) / jnp.sum(rows.mask)

    entropy = mean(policy_gradient.entropy(log_probs))
    return -mean(gain) - setting.entropy_bonus * entropy, entropy


def _step(
    setting: Setting, flat: jax.Array, learner_state: optax.OptState, gradient: jax.Array
) -> tuple[jax.Array, optax.OptState]:
    updates, learner_state = setting.policy_optimizer.update(gradient, learner_state, flat)
    return jnp.asarray(optax.apply_updates(flat, updates)), learner_state
