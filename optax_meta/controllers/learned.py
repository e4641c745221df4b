"""A frozen policy."""

import os
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_meta.base import Controller, Hyperparams, State
from optax_meta.checkpoints import as_policy
from optax_meta.checks import Number, check_seed
from optax_meta.controllers.wrapping import wrapped
from optax_meta.metrics import Metrics
from optax_meta.origins import keep_origin
from optax_meta.policies import Policy, Wrappers, draw
from optax_meta.recording import Decision, DecisionState


class LearnedState(NamedTuple):
    """State of `learned`, inside those of its wrappers.

    Attributes:
        encoder_state: what the encoder carries.
        decision: the latest decision, for the record.
    """

    encoder_state: State
    decision: DecisionState


@keep_origin
def learned(
    policy: Policy | str | os.PathLike[str],
    *,
    wrappers: Wrappers | None = None,
    total_steps: Number | None = None,
    decision_interval: float | None = None,
    seed: jax.typing.ArrayLike | None = None,
) -> Controller:
    """Follow a frozen policy, inside the wrappers that it was learned under.

    Args:
        policy: a `Policy`, one of `available_policies()` by its name, or the path of a file.
        wrappers: what the policy lives inside, as for `optax_meta.reinforce`; None for its own.
        total_steps: length of the run if known, counted in calls of `update`; after it nothing
            changes any more. A traced int32[] may be below 1 where it is not known.
        decision_interval: steps between decisions, ≥ 1; None for the policy's own; `math.inf` as in
            `control_hyperparams`.
        seed: None for the most probable action at every decision, nothing random; an integer, may
            be traced, to sample the actions: what meta-training learns from.

    Returns:
        A `Controller`. Where one of the wrappers is `calibrated`, as with the shipped policies, the
        starting rate is forgotten and may be left out.

    Raises:
        ValueError: `policy` is something else or cannot be read, `total_steps` or
            `decision_interval` no whole number ≥ 1, `seed` no integer in [0, 2³²), or a wrapper's
            argument is out of range.

    Example:
        >>> controller = optax_meta.learned("any-lr-v2", total_steps=1000)
        >>> tx = optax_meta.control_hyperparams(optax.adamw, controller)(weight_decay=0.1)
    """
    policy = as_policy(policy)
    if seed is not None:
        check_seed(seed)

    def init(hyperparams: Hyperparams) -> LearnedState:
        del hyperparams
        empty = DecisionState.empty(len(policy.encoder.features), policy.action_space.num_actions)
        return LearnedState(policy.encoder.init(), empty)

    update = partial(_update, policy, seed)
    own = policy.as_controller(
        init, update, total_steps=total_steps, decision_interval=decision_interval
    )
    return wrapped(own, policy.wrappers if wrappers is None else wrappers)


def _update(
    policy: Policy,
    seed: jax.typing.ArrayLike | None,
    metrics: Metrics,
    state: LearnedState,
    hyperparams: Hyperparams,
) -> tuple[Hyperparams, LearnedState]:
    observation, encoder_state = policy.encoder.update(metrics, state.encoder_state, hyperparams)
    log_probs = policy.log_probs(policy.params, observation)
    if seed is None:
        action = jnp.argmax(log_probs)
    else:
        stream = jnp.stack([jnp.asarray(seed, jnp.uint32), metrics.step.astype(jnp.uint32)])
        action = draw(stream, log_probs)
    decision = Decision.choose(action, log_probs, observation)
    last_action = state.decision.unpack().action
    hyperparams = policy.apply(action, last_action, metrics, hyperparams)
    return hyperparams, LearnedState(encoder_state, DecisionState.pack(decision))
