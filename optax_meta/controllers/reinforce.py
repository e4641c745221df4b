"""The RL meta-optimizer: REINFORCE while a model trains."""

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from optax_meta import actions, observations, rewards
from optax_meta.actions import ActionSpace
from optax_meta.base import Controller, Encoder, Hyperparams, Tree
from optax_meta.checkpoints import as_policy
from optax_meta.checks import Number, check_seed, check_whole
from optax_meta.controllers import online
from optax_meta.controllers.online import Learner, check
from optax_meta.controllers.wrapping import EVERY_GOOD_RUN, OPTIONS, wrapped
from optax_meta.origins import keep_origin
from optax_meta.policies import Policy, Start, Wrappers, init_policy
from optax_meta.rewards import Reward

_RATE = "learning_rate"
LEVELS = tuple(2.0 ** (k / 4) for k in range(-8, 9))
"""Levels of a rate, relative to the distance rule: within a factor of four, in steps of a fifth."""
_CLASSIC: dict[str, Any] = {
    "wrappers": {},
    "reward": rewards.improvement(),
    "discount": 0.99,
    "entropy_bonus": 0.01,
    "policy_learning_rate": 1e-2,
    "anchor": 0.0,
    "explore_from": 0.0,
    "explore_until": math.inf,
}


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
    discount: float = 0.0,
    baseline_decay: float = 0.9,
    entropy_bonus: float = 0.0,
    max_grad_norm: float = 1.0,
    policy_learning_rate: float = 1.5e-2,
    anchor: float = 0.1,
    explore_from: float = 0.1,
    explore_until: float = 0.5,
    full_steps: float = 5000.0,
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
    which forgets the start, a fall to the end where its length is known, and a trust region. What
    it chooses is the level of the rate relative to that, at first within a factor of 1.3 up or
    down. Between a tenth and half of a run of known length it explores, while it learns less and
    less; then it does what it found to be best. `classic_reinforce` is the agent without any of
    this.

    Args:
        policy: what to start from: a `Policy`, the name of a shipped one or the path of a file;
            None for a fresh one, made from the seed with the next five arguments but one, which
            mean what they do in `optax_meta.init_policy`.
        wrappers: what the policy lives inside, by name, the innermost first, each with its
            arguments: `{"annealed": {"power": 2.0}, "trust_region": {}}`; None for a policy's own,
            and as above for a fresh one, if it steers the learning rate.
        action_space: None for seventeen levels of the learning rate from ¼ to 4, ordered.
        encoder: None for `observations.scale_free()`.
        hidden_sizes: None for (), no hidden layers: few parameters for few decisions.
        start: None for "hold".
        hold_probability: None for 0.9; an ordered action space has its spread for it.
        reward: None for `rewards.trend()`.
        reward_scale: multiplies every reward, > 0.
        discount: γ in [0, 1]. By default 0: later rewards drown what one decision did.
        baseline_decay: β of the moving-average baseline, in [0, 1).
        entropy_bonus: c, ≥ 0.
        anchor: adds this times the mean divergence KL(π‖π₀) from the policy that it began with to
            the loss, ≥ 0: without evidence it stays there.
        explore_from: share of a run of known length, in [0, 1], before which it takes the most
            probable action; where the length is not known, of 1000 steps. What is done while the
            distance is still being found says nothing about later.
        explore_until: share of a run of known length, in [0, 1], after which it takes the most
            probable action and learns no more; until then the policy's learning rate falls to 0.
            `math.inf` for no end, and a rate that stays.
        full_steps: in a run of fewer steps, ≥ 0, where exploring ends, it explores for a time that
            is shorter in proportion, and learns at a rate that is lower, since short runs hold too
            little evidence; 0 for as in a long run.
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
        >>> tx = optax_meta.control_hyperparams(optax.adamw, controller)(weight_decay=0.1)
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
    given = None if policy is None else as_policy(policy)
    # The shapes do not depend on the seed; the parameters of a fresh policy are made in `init`.
    template = fresh_policy(jax.random.key(0), **fresh) if given is None else given
    inside = _wrappers(given, template) if wrappers is None else wrappers
    learner = Learner(
        reward=rewards.trend() if reward is None else reward,
        reward_scale=reward_scale,
        discount=discount,
        baseline_decay=baseline_decay,
        entropy_bonus=entropy_bonus,
        max_grad_norm=max_grad_norm,
        policy_learning_rate=policy_learning_rate,
        train_every=check_whole("train_every", train_every),
        anchor=anchor,
        explore_from=explore_from,
        explore_until=explore_until,
        full_steps=full_steps,
        max_share=_max_share(inside),
    )
    check(learner)

    def init(hyperparams: Hyperparams) -> online.ReinforceState:
        del hyperparams
        first = fresh_policy(jax.random.key(seed), **fresh) if given is None else given
        return online.init(first, learner, seed)

    # Where nobody jits, a branch of the same identity at every decision is compiled once.
    learn = jax.jit(partial(online.learn_if_due, template, learner), inline=True)
    own = template.as_controller(
        init,
        partial(online.update, template, learner, learn),
        total_steps=total_steps,
        decision_interval=decision_interval,
    )
    return wrapped(own, inside)


def _wrappers(given: Policy | None, fresh: Policy) -> Wrappers:
    if given is not None:
        return given.wrappers
    return EVERY_GOOD_RUN if _RATE in fresh.action_space.hyperparams else {}


def _max_share(wrappers: Wrappers) -> Number:
    """Return the longest move that a trust region among the wrappers allows, else infinity."""
    given = wrappers.get("trust_region") if isinstance(wrappers, Mapping) else None
    if not isinstance(given, Mapping):
        return math.inf  # none, or something that is refused where the wrappers are put on
    options = {**OPTIONS["trust_region"], **given}
    return options["max_share"] if options["hyperparam"] == _RATE else math.inf


def classic_reinforce(**options: Any) -> Controller:
    """Build the agent as it is described in the literature: nine actions, and nothing around it.

    Eight bounded features, learning-rate factors × weight-decay increments, an MLP of two hidden
    layers of 32 with a uniform start, the improvement of loss and cost as reward, and no end of
    exploring and learning. In a single run it does not pay.

    Args:
        **options: arguments of `reinforce`, which replace what this one passes.

    Returns:
        A `Controller`.

    Raises:
        ValueError: as `reinforce`.

    Example:
        >>> controller = optax_meta.classic_reinforce(seed=0, train_every=10)
        >>> len(controller.action_labels)
        9
    """
    described = {
        "action_space": actions.classic(),
        "encoder": observations.classic(),
        "hidden_sizes": (32, 32),
        "start": "uniform",
    }
    # A policy brings these with it.
    fresh = {} if options.get("policy") is not None else described
    return reinforce(**{**fresh, **_CLASSIC, **options})


def fresh_policy(key: jax.Array, **given: Any) -> Policy:
    """Make the policy that `reinforce` starts from where it is given none.

    Args:
        key: PRNG key for hidden layers, if any.
        **given: arguments of `optax_meta.init_policy`, which replace the defaults.

    Example:
        >>> from optax_meta.controllers.reinforce import fresh_policy
        >>> fresh_policy(jax.random.key(0)).action_space.num_actions
        17
    """
    space = given.get("action_space") or actions.ordered(actions.level(_RATE, LEVELS))
    sees_rate = isinstance(space, ActionSpace) and _RATE in space.hyperparams
    encoder = observations.scale_free() if sees_rate else observations.classic()
    return init_policy(
        key, **{"hidden_sizes": (), "encoder": encoder, **given, "action_space": space}
    )


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
