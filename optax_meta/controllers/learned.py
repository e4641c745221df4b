"""A frozen policy."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_meta.base import Controller, Hyperparams, check_interval, check_seed, check_whole
from optax_meta.controllers.reinforce import with_progress
from optax_meta.metrics import Metrics
from optax_meta.policies import Policy, check_policy, draw
from optax_meta.recording import Decision, DecisionState


class LearnedState(NamedTuple):
    """State of `learned`.

    Attributes:
        encoder_state: what the encoder carries.
        decision: the latest decision, for the record.
    """

    encoder_state: Any
    decision: DecisionState


def learned(
    policy: Policy,
    *,
    total_steps: Any = None,
    decision_interval: float | None = None,
    seed: jax.typing.ArrayLike | None = None,
) -> Controller:
    """Follow a frozen policy.

    Args:
        policy: for instance from `optax_meta.load_policy`.
        total_steps: length of the run if known, counted in calls of `update`; after it nothing
            changes any more. A traced int32[] may be below 1 where it is not known.
        decision_interval: steps between decisions, ≥ 1; None for the policy's guide, 10 without;
            `math.inf` as in `control_hyperparams`. A policy that is asked by `decide` alone, and
            not at each of the first steps, calibrates nothing: it begins at the rate it is given.
        seed: None for the most probable action at every decision, nothing random; an integer, may
            be traced, to sample the actions: what meta-training learns from.

    Returns:
        A `Controller`.

    Raises:
        ValueError: `policy` is something else, `total_steps` or `decision_interval` no whole number
            ≥ 1, or `seed` no integer in [0, 2³²).

    Example:
        >>> policy = optax_meta.init_policy(jax.random.key(0))
        >>> controller = optax_meta.learned(policy, total_steps=1000)
    """
    check_policy(policy)
    if total_steps is not None:
        total_steps = check_whole("total_steps", total_steps)
    if seed is not None:
        check_seed(seed)
    interval = policy.guide.decision_interval(total_steps)
    interval = interval if decision_interval is None else check_interval(decision_interval)

    def init(hyperparams: Hyperparams) -> LearnedState:
        del hyperparams
        empty = DecisionState.empty(len(policy.encoder.features), policy.action_space.num_actions)
        return LearnedState(policy.encoder.init(), empty)

    update = partial(_update, policy, total_steps, seed)
    return policy.as_controller(init, update, interval)


def _update(
    policy: Policy,
    total_steps: Any,
    seed: jax.typing.ArrayLike | None,
    metrics: Metrics,
    state: LearnedState,
    hyperparams: Hyperparams,
) -> tuple[Hyperparams, LearnedState]:
    metrics = with_progress(metrics, total_steps)
    observation, encoder_state = policy.observe(metrics, state.encoder_state, hyperparams)
    log_probs = policy.log_probs(policy.params, observation)
    if seed is None:
        action = jnp.argmax(log_probs)
    else:
        action = draw(jnp.stack([jnp.uint32(seed), metrics.step.astype(jnp.uint32)]), log_probs)
    decision = Decision.choose(action, log_probs, observation)
    hyperparams = policy.apply(action, metrics, hyperparams)
    return hyperparams, LearnedState(encoder_state, DecisionState.pack(decision))
