"""A frozen policy."""

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp

from optax_meta import actions
from optax_meta.base import Controller, Hyperparams
from optax_meta.controllers.online import with_progress
from optax_meta.metrics import Metrics
from optax_meta.policies import Policy
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
    policy: Policy, *, total_steps: int | None = None, decision_interval: int = 10
) -> Controller:
    """Follow a frozen policy: its most probable action at every decision, nothing random.

    Args:
        policy: for instance from `optax_meta.load_policy`.
        total_steps: length of the run in steps if known, for the progress feature.
        decision_interval: steps between decisions, ≥ 1.

    Returns:
        A `Controller`.

    Raises:
        ValueError: `total_steps` is below 1.

    Example:
        >>> policy = optax_meta.init_policy(jax.random.key(0))
        >>> controller = optax_meta.learned(policy, total_steps=1000)
    """
    if total_steps is not None and total_steps < 1:
        raise ValueError(f"`total_steps` must be at least 1, got {total_steps}")

    def init(hyperparams: Hyperparams) -> LearnedState:
        del hyperparams
        empty = DecisionState.empty(len(policy.encoder.features), policy.action_space.num_actions)
        return LearnedState(policy.encoder.init(), empty)

    return policy.as_controller(init, partial(_update, policy, total_steps), decision_interval)


def _update(
    policy: Policy,
    total_steps: int | None,
    metrics: Metrics,
    state: LearnedState,
    hyperparams: Hyperparams,
) -> tuple[Hyperparams, LearnedState]:
    metrics = with_progress(metrics, total_steps)
    observation, encoder_state = policy.encoder.update(metrics, state.encoder_state, hyperparams)
    log_probs = policy.log_probs(policy.params, observation)
    decision = Decision.choose(jnp.argmax(log_probs), log_probs, observation)
    hyperparams = actions.apply(policy.action_space, decision.action, hyperparams)
    return hyperparams, LearnedState(encoder_state, DecisionState.pack(decision))
