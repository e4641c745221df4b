"""The RL meta-optimizer: REINFORCE while a model trains."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from optax_meta import policy_gradient, rewards
from optax_meta.actions import ActionSpace
from optax_meta.base import Controller, Encoder, Hyperparams, State, Tree
from optax_meta.checkpoints import as_policy
from optax_meta.checks import Number, check_seed, check_whole
from optax_meta.controllers.wrapping import EVERY_GOOD_RUN, wrapped
from optax_meta.metrics import Metrics
from optax_meta.origins import keep_origin
from optax_meta.policies import Policy, Start, Wrappers, draw, init_policy
from optax_meta.recording import Decision, DecisionState
from optax_meta.rewards import Reward


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


class _Learner(NamedTuple):
    """How the policy learns: the static part of `reinforce`."""

    reward: Reward
    reward_scale: float
    discount: float
    baseline_decay: float
    entropy_bonus: float
    max_grad_norm: float
    policy_learning_rate: float
    train_every: int


@keep_origin
def reinforce(
    policy: Policy | str | os.PathLike[str] | None = None,
    *,
    wrappers: Wrappers | None = None,
    action_space: ActionSpace | None = None,
    encoder: Encoder | None = None,
    hidden_sizes: Sequence[int] | None = None,
    start: Start | None = None,
    hold_probability: float | None = None,
    reward: Reward | None = None,
    reward_scale: float = 1.0,
    discount: float = 0.99,
    baseline_decay: float = 0.9,
    entropy_bonus: float = 0.01,
    max_grad_norm: float = 1.0,
    policy_learning_rate: float = 1e-2,
    train_every: int = 5,
    decision_interval: float | None = None,
    total_steps: Number | None = None,
    seed: jax.typing.ArrayLike = 0,
) -> Controller:
    """Learn by REINFORCE, while the model trains, how to change its hyperparameters.

    At each decision the run is encoded into an observation, the last action is rewarded, and a new
    one is sampled from the policy. Every `train_every` decisions the policy takes one Adam step on
    -mean(log π(aₜ|sₜ)·(Gₜ - b)) - c·mean H, with discounted returns Gₜ and a moving-average
    baseline b, inside the jitted update; then the episode is cleared.

    A fresh policy knows nothing, and so lives inside what every good run has: a calibrated rate,
    which forgets the start, a fall to the end where its length is known, and a trust region.
    `wrappers={}` takes these off: the classic agent, which starts from the rate it is given.

    Args:
        policy: what to start from: a `Policy`, the name of a shipped one or the path of a file;
            None for a fresh one, made from the seed with the next five arguments but one, which
            mean what they do in `optax_meta.init_policy`.
        wrappers: what the policy lives inside, by name, the innermost first, each with its
            arguments: `{"annealed": {"power": 2.0}, "trust_region": {}}`; None for a policy's own,
            and as above for a fresh one, if it steers the learning rate.
        action_space: None for the nine actions of `actions.classic`.
        encoder: None for the eight features of `observations.classic`.
        hidden_sizes: None for (32, 32).
        start: None for "hold".
        hold_probability: None for 0.9.
        reward: None for `rewards.improvement()`.
        reward_scale: multiplies every reward, > 0.
        discount: γ in [0, 1].
        baseline_decay: β of the moving-average baseline, in [0, 1).
        entropy_bonus: c, ≥ 0.
        max_grad_norm: the policy gradient is clipped to this L2 norm, > 0.
        policy_learning_rate: of the policy's own Adam, ≥ 0.
        train_every: decisions in an episode, ≥ 1.
        decision_interval: steps between decisions, ≥ 1; None for the policy's own, 10 for a fresh
            one; `math.inf` as in `control_hyperparams`.
        total_steps: length of the run if known, counted in calls of `update`; after it nothing
            changes any more, and nothing is learned.
        seed: of the fresh policy and of every sample; an integer, may be traced.

    Returns:
        A `Controller`. The same seed gives the same run, bit for bit.

    Raises:
        ValueError: an argument is out of range, `policy` is something else, cannot be read, or
            comes with arguments that describe a fresh one.

    Source: R. J. Williams, "Simple statistical gradient-following algorithms for connectionist
    reinforcement learning", 1992, https://doi.org/10.1007/BF00992696.

    Example:
        >>> controller = optax_meta.reinforce(seed=0, total_steps=1000)
        >>> tx = optax_meta.control_hyperparams(optax.adamw, controller)(weight_decay=1e-4)
    """
    fresh = {
        "action_space": action_space,
        "encoder": encoder,
        "hidden_sizes": hidden_sizes,
        "start": start,
        "hold_probability": hold_probability,
    }
    fresh = {name: value for name, value in fresh.items() if value is not None}
    if policy is not None and fresh:
        raise ValueError(f"a `policy` brings its own {', '.join(fresh)}: pass one or the other")
    check_seed(seed)
    seed = jnp.asarray(seed, jnp.uint32)
    learner = _Learner(
        reward=rewards.improvement() if reward is None else reward,
        reward_scale=reward_scale,
        discount=discount,
        baseline_decay=baseline_decay,
        entropy_bonus=entropy_bonus,
        max_grad_norm=max_grad_norm,
        policy_learning_rate=policy_learning_rate,
        train_every=check_whole("train_every", train_every),
    )
    _check_learner(learner)
    given = None if policy is None else as_policy(policy)
    # The shapes do not depend on the seed; the parameters of a fresh policy are made in `init`.
    template = init_policy(jax.random.key(0), **fresh) if given is None else given

    def init(hyperparams: Hyperparams) -> ReinforceState:
        del hyperparams
        first = init_policy(jax.random.key(seed), **fresh) if given is None else given
        return _init(first, learner, seed)

    # Where nobody jits, a branch of the same identity at every decision is compiled once.
    learn = jax.jit(partial(_learn_if_due, template, learner), inline=True)
    own = template.as_controller(
        init,
        partial(_update, template, learner, learn),
        total_steps=total_steps,
        decision_interval=decision_interval,
    )
    return wrapped(own, _wrappers(given, own) if wrappers is None else wrappers)


def _wrappers(given: Policy | None, own: Controller) -> Wrappers:
    if given is not None:
        return given.wrappers
    return EVERY_GOOD_RUN if "learning_rate" in own.hyperparams else {}


def _check_learner(learner: _Learner) -> None:
    for name, holds, demand in (
        ("discount", 0.0 <= learner.discount <= 1.0, "lie in [0, 1]"),
        ("baseline_decay", 0.0 <= learner.baseline_decay < 1.0, "lie in [0, 1)"),
        ("entropy_bonus", learner.entropy_bonus >= 0.0, "not be negative"),
        ("max_grad_norm", learner.max_grad_norm > 0.0, "be positive"),
        ("reward_scale", learner.reward_scale > 0.0, "be positive"),
        ("policy_learning_rate", learner.policy_learning_rate >= 0.0, "not be negative"),
    ):
        if not holds:
            raise ValueError(f"`{name}` must {demand}, got {getattr(learner, name)}")


def extract_policy(policy: Policy | str | os.PathLike[str], controller_state: Tree) -> Policy:
    """Return `policy` with the parameters that `reinforce` has learned so far.

    Args:
        policy: the one given to `reinforce`, also by name or path.
        controller_state: any pytree that holds exactly one `ReinforceState`, such as the optimizer
            state.

    Returns:
        A `Policy`, to save or to use in `learned`. Its wrappers are those of `policy`: where
        `reinforce` was given others, `_replace(wrappers=…)` keeps them.

    Raises:
        ValueError: the state holds no policy, or one of another size.

    Example:
        >>> policy = optax_meta.init_policy(jax.random.key(0))
        >>> tx = optax_meta.control_hyperparams(optax.adamw, optax_meta.reinforce(policy))(1e-3)
        >>> policy = optax_meta.extract_policy(policy, tx.init(jnp.zeros(3)))
    """
    policy = as_policy(policy)
    flat, unravel = ravel_pytree(policy.params)
    learned = [
        found for _, found in optax.tree.get_all_with_path(controller_state, "policy_params")
    ]
    if [jnp.shape(found) for found in learned] != [flat.shape]:
        sizes = ", ".join(str(jnp.size(found)) for found in learned) or "none"
        raise ValueError(
            f"expected one policy in this state, of {flat.size} parameters, got {sizes}: pass the "
            "state of one controller"
        )
    return policy._replace(params=unravel(learned[0]))


def _init(policy: Policy, learner: _Learner, seed: jax.Array) -> ReinforceState:
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


def _update(
    policy: Policy,
    learner: _Learner,
    learn: Callable[..., ReinforceState],
    metrics: Metrics,
    state: ReinforceState,
    hyperparams: Hyperparams,
) -> tuple[Hyperparams, ReinforceState]:
    observation, encoder_state = policy.encoder.update(metrics, state.encoder_state, hyperparams)
    state, reward = _collect_reward(learner, metrics, state)
    state = learn(state, ~metrics.is_over)
    decision = _sample(policy, state, observation)._replace(reward=reward)
    hyperparams = policy.apply(decision.action, metrics, hyperparams)
    row = jnp.stack([decision.action.astype(jnp.float32), decision.log_prob, jnp.float32(0.0)])
    position = _position(state, 0)
    return hyperparams, state._replace(
        stream=state.stream + jnp.array([0, 1], jnp.uint32),
        episode=state.episode.at[position].set(jnp.concatenate([observation, row])),
        before=jnp.concatenate([metrics.pack(), state.before[-1:]]),
        encoder_state=encoder_state,
        decision=DecisionState.pack(decision),
    )


def _position(state: ReinforceState, offset: int) -> jax.Array:
    """Return the row of the decision that is so many ahead in the episode, int32[]."""
    return (state.stream[1].astype(jnp.int32) + offset) % state.episode.shape[0]


def _collect_reward(
    learner: _Learner, metrics: Metrics, state: ReinforceState
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


def _learn_if_due(
    policy: Policy, learner: _Learner, state: ReinforceState, goes_on: jax.Array
) -> ReinforceState:
    num_decisions, length = state.stream[1].astype(jnp.int32), state.episode.shape[0]
    is_due = goes_on & (num_decisions > 0) & (num_decisions % length == 0)
    num_updates = num_decisions // length
    learned = (state.policy_params, state.policy_moments, state.before[-1])
    params, moments, baseline = jax.lax.cond(
        is_due,
        partial(_learn, policy, learner),
        lambda _episode, _num_updates, *same: same,
        state.episode,
        num_updates,
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
    learner: _Learner,
    episode: jax.Array,
    num_updates: jax.Array,
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
        return policy_gradient.policy_loss(
            log_probs, action.astype(jnp.int32), adv, learner.entropy_bonus
        )

    gradient = policy_gradient.clip_by_norm(jax.grad(loss)(params), learner.max_grad_norm)
    # Kept packed and under a name of their own, so that `optax.tree.get` finds the model's moments.
    packed = optax.ScaleByAdamState(num_updates - 1, *moments)
    adam: Any = optax.scale_by_adam()
    with jax.numpy_dtype_promotion("standard"):  # whatever the user's: Optax's Adam asks for it
        direction, (_, *new_moments) = adam.update(gradient, packed)
    params = params - learner.policy_learning_rate * direction
    baseline = policy_gradient.moving_average_baseline(baseline, returns, learner.baseline_decay)
    return params, jnp.stack(new_moments), baseline


def _sample(policy: Policy, state: ReinforceState, observation: jax.Array) -> Decision:
    _, unravel = ravel_pytree(policy.params)
    log_probs = policy.log_probs(unravel(state.policy_params), observation)
    return Decision.choose(draw(state.stream, log_probs), log_probs, observation)
