"""What the RL meta-optimizer does at a decision: reward, learn if it is due, sample."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from optax_meta import actions, policy_gradient
from optax_meta.base import Hyperparams, State
from optax_meta.checks import Number, is_set
from optax_meta.metrics import USUAL_STEPS, Metrics
from optax_meta.policies import Policy, draw
from optax_meta.recording import Decision, DecisionState
from optax_meta.rewards import Reward

_NEVER = -1e4
"""Log-probability of what is not to be drawn: finite, for those who hunt infinities."""


class ReinforceState(NamedTuple):
    """State of `reinforce`, inside those of its wrappers: few leaves, all arrays.

    Attributes:
        stream: seed and number of decisions so far, uint32[2]; together the key of the next draw,
            so that a resumed run draws what it would have drawn.
        policy_params: parameters of the policy, flat, float32[P].
        policy_moments: first and second moments of the policy's Adam, float32[2, P].
        episode: one row a decision: observation, action, log-probability, reward;
            float32[train_every, features + 3]; zeros once learned from.
        before: the `Metrics` of the last decision, then the moving-average baseline; float32[20].
        encoder_state: what the encoder carries.
        decision: the latest decision, for the record.
    """

    stream: jax.Array
    policy_params: jax.Array
    policy_moments: jax.Array
    episode: jax.Array
    before: jax.Array
    encoder_state: State
    decision: DecisionState


class Learner(NamedTuple):
    """How the policy learns: the static part of `reinforce`."""

    reward: Reward
    reward_scale: float
    discount: float
    baseline_decay: float
    entropy_bonus: float
    max_grad_norm: float
    policy_learning_rate: float
    train_every: int
    anchor: float
    explore_from: float
    explore_until: float
    full_steps: float
    max_share: Number


def init(policy: Policy, learner: Learner, seed: jax.Array) -> ReinforceState:
    """Return the state before the first decision.

    Args:
        policy: what is learned from there.
        learner: how.
        seed: of every sample, uint32[].
    """
    params = jnp.array(ravel_pytree(policy.params)[0], jnp.float32, copy=True)
    num_features, num_actions = len(policy.encoder.features), policy.action_space.num_actions
    return ReinforceState(
        stream=jnp.stack([seed, jnp.uint32(0)]),
        policy_params=params,
        policy_moments=jnp.zeros((2, params.size), jnp.float32),
        episode=jnp.zeros((learner.train_every, num_features + 3), jnp.float32),
        before=jnp.zeros(len(Metrics._fields) - 1, jnp.float32),
        encoder_state=policy.encoder.init(),
        decision=DecisionState.empty(num_features, num_actions),
    )


def update(
    policy: Policy,
    learner: Learner,
    learn: Callable[..., ReinforceState],
    metrics: Metrics,
    state: ReinforceState,
    hyperparams: Hyperparams,
) -> tuple[Hyperparams, ReinforceState]:
    """Reward the last action, learn where an episode is full, and choose the next one.

    Args:
        policy: the one that learning began with; its parameters now are those of the state.
        learner: how it learns.
        learn: `learn_if_due` of these two.
        metrics: the run since the last decision.
        state: of the agent.
        hyperparams: the policy's own so far.
    """
    observation, encoder_state = policy.encoder.update(metrics, state.encoder_state, hyperparams)
    state, reward = _collect_reward(learner, metrics, state)
    left = _left(learner, metrics)
    state = learn(state, left * _caution(learner, metrics))
    last_action = state.decision.unpack().action
    room = _room(policy, learner, metrics, last_action)
    decision = _sample(policy, state, observation, left > 0.0, room)
    decision = decision._replace(reward=reward, baseline=state.before[-1])
    hyperparams = policy.apply(decision.action, last_action, metrics, hyperparams)
    row = jnp.stack([decision.action.astype(jnp.float32), decision.log_prob, jnp.float32(0.0)])
    position = _position(state, 0)
    return hyperparams, state._replace(
        stream=state.stream + jnp.array([0, 1], jnp.uint32),
        episode=state.episode.at[position].set(jnp.concatenate([observation, row])),
        before=jnp.concatenate([metrics.pack(), state.before[-1:]]),
        encoder_state=encoder_state,
        decision=DecisionState.pack(decision),
    )


def _left(learner: Learner, metrics: Metrics) -> jax.Array:
    """Return what is left of the time to explore and learn in, float32[]; 0 outside of it."""
    steps = metrics.step.astype(jnp.float32) / USUAL_STEPS
    share = jnp.where(metrics.progress < 0.0, steps, metrics.progress)
    has_begun = share >= learner.explore_from
    if math.isinf(learner.explore_until):
        return (has_begun & ~metrics.is_over).astype(jnp.float32)
    # Where the length is not known it is all to come.
    time = max(learner.explore_until - learner.explore_from, 0.0) * _caution(learner, metrics)
    until = learner.explore_from + time
    left = 1.0 - jnp.maximum(metrics.progress, 0.0) / jnp.maximum(until, 1e-9)
    return jnp.where(has_begun & (metrics.progress < until), left, 0.0)


def _caution(learner: Learner, metrics: Metrics) -> jax.Array:
    """Return what a short run leaves of the time to explore and of the learning rate, float32[].

    It holds too little evidence to learn from, and Adam's first steps are as long as its later
    ones, however little there is to go by.
    """
    if math.isinf(learner.explore_until) or learner.full_steps == 0.0:
        return jnp.float32(1.0)
    known = 1.0 / (learner.full_steps * jnp.maximum(metrics.per_step, 1e-9))
    so_far = metrics.step.astype(jnp.float32) / (learner.explore_until * learner.full_steps + 1e-9)
    return jnp.minimum(jnp.where(metrics.progress < 0.0, so_far, known), 1.0)


def _position(state: ReinforceState, offset: int) -> jax.Array:
    """Return the row of the decision that is so many ahead in the episode, int32[]."""
    return (state.stream[1].astype(jnp.int32) + offset) % state.episode.shape[0]


def _collect_reward(
    learner: Learner, metrics: Metrics, state: ReinforceState
) -> tuple[ReinforceState, jax.Array]:
    """Reward the last action and note it in its row; the first decision has nothing to reward."""
    before = Metrics.unpack(state.before[:-1])
    earned = learner.reward_scale * learner.reward(before, metrics)
    # Nor has one that came before any loss was known.
    has_before = (state.stream[1] > 0) & ~before.is_empty
    reward = jnp.where(has_before, earned, 0.0).astype(jnp.float32)
    episode = state.episode.at[_position(state, -1), -1].set(reward)
    is_first = state.stream[1] == 0
    return state._replace(episode=jnp.where(is_first, state.episode, episode)), reward


def learn_if_due(
    policy: Policy, learner: Learner, state: ReinforceState, left: jax.Array
) -> ReinforceState:
    """Learn from a full episode and clear it.

    Args:
        policy: as for `update`.
        learner: likewise.
        state: of the agent.
        left: of the time to learn in, float32[] in [0, 1].
    """
    num_decisions, length = state.stream[1].astype(jnp.int32), state.episode.shape[0]
    is_due = (left > 0.0) & (num_decisions > 0) & (num_decisions % length == 0)
    num_updates = num_decisions // length
    learned = (state.policy_params, state.policy_moments, state.before[-1])
    params, moments, baseline = jax.lax.cond(
        is_due,
        partial(_learn, policy, learner),
        lambda _episode, _num_updates, _left, *same: same,
        state.episode,
        num_updates,
        left,
        *learned,
    )
    return state._replace(
        policy_params=params,
        policy_moments=moments,
        before=state.before.at[-1].set(baseline),
        episode=jnp.where(is_due, 0.0, state.episode),
    )


def _learn(
    policy: Policy,
    learner: Learner,
    episode: jax.Array,
    num_updates: jax.Array,
    left: jax.Array,
    params: jax.Array,
    moments: jax.Array,
    baseline: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Take one Adam step on the policy loss of a full episode."""
    observations, (action, _, reward) = episode[:, :-3], episode[:, -3:].T
    returns = policy_gradient.discounted_returns(reward, learner.discount)
    adv = policy_gradient.advantages(returns, baseline)
    _, unravel = ravel_pytree(policy.params)

    def loss(flat: jax.Array) -> jax.Array:
        log_probs = jax.vmap(partial(policy.log_probs, unravel(flat)))(observations)
        value = policy_gradient.policy_loss(
            log_probs, action.astype(jnp.int32), adv, learner.entropy_bonus
        )
        if learner.anchor == 0.0:
            return value
        first = jax.vmap(partial(policy.log_probs, policy.params))(observations)
        away = policy_gradient.divergence(log_probs, jax.lax.stop_gradient(first))
        return value + learner.anchor * jnp.mean(away)

    gradient = policy_gradient.clip_by_norm(jax.grad(loss)(params), learner.max_grad_norm)
    # Kept packed and under a name of their own, so that `optax.tree.get` finds the model's moments.
    packed = optax.ScaleByAdamState(num_updates - 1, *moments)
    adam: Any = optax.scale_by_adam()
    with jax.numpy_dtype_promotion("standard"):  # whatever the user's: Optax's Adam asks for it
        direction, (_, *new_moments) = adam.update(gradient, packed)
    rate = learner.policy_learning_rate
    if math.isfinite(learner.explore_until):
        rate *= left
    params = params - rate * direction
    baseline = policy_gradient.moving_average_baseline(baseline, returns, learner.baseline_decay)
    return params, jnp.stack(new_moments), baseline


def _room(
    policy: Policy, learner: Learner, metrics: Metrics, last_action: jax.Array
) -> jax.Array | None:
    """Return which actions the trust region would not clip, bool[num_actions]; None for all."""
    factors = actions.factors(policy.action_space, "learning_rate", last_action)
    if factors is None or not is_set(learner.max_share, math.inf):
        return None
    longest = learner.max_share * metrics.distance
    # The shortest always is one, or there would be none to choose from.
    is_short = metrics.update_rms * factors <= longest
    return is_short | (factors <= jnp.min(factors)) | (metrics.num_moves == 0.0)


def _sample(
    policy: Policy,
    state: ReinforceState,
    observation: jax.Array,
    explores: jax.Array,
    room: jax.Array | None,
) -> Decision:
    _, unravel = ravel_pytree(policy.params)
    log_probs = policy.log_probs(unravel(state.policy_params), observation)
    if room is not None:
        # What would be clipped would be credited with what it did not do. Learning takes the
        # probabilities without this, which is no matter where it is as rare as in good runs.
        log_probs = jax.nn.log_softmax(jnp.where(room, log_probs, _NEVER))
    action = draw(state.stream, log_probs)
    best = jnp.argmax(log_probs).astype(action.dtype)
    if (hold := actions.hold(policy.action_space)) is not None:
        # Where nothing is better than to hold, as under a uniform start.
        best = jnp.where(log_probs[hold] >= log_probs[best], hold, best)
    return Decision.choose(jnp.where(explores, action, best), log_probs, observation)


def check(learner: Learner) -> None:
    """Refuse numbers that are out of range.

    Raises:
        ValueError: one is.
    """
    for name, holds, demand in (
        ("discount", 0.0 <= learner.discount <= 1.0, "lie in [0, 1]"),
        ("baseline_decay", 0.0 <= learner.baseline_decay < 1.0, "lie in [0, 1)"),
        ("entropy_bonus", learner.entropy_bonus >= 0.0, "not be negative"),
        ("anchor", learner.anchor >= 0.0, "not be negative"),
        ("explore_from", 0.0 <= learner.explore_from <= 1.0, "lie in [0, 1]"),
        (
            "explore_until",
            0.0 <= learner.explore_until <= 1.0 or learner.explore_until == math.inf,
            "lie in [0, 1], or be `math.inf`",
        ),
        ("full_steps", 0.0 <= learner.full_steps < math.inf, "not be negative, nor infinite"),
        ("max_grad_norm", learner.max_grad_norm > 0.0, "be positive"),
        ("reward_scale", learner.reward_scale > 0.0, "be positive"),
        ("policy_learning_rate", learner.policy_learning_rate >= 0.0, "not be negative"),
    ):
        if not holds:
            raise ValueError(f"`{name}` must {demand}, got {getattr(learner, name)}")
