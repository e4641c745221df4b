"""Policies: a small Flax MLP that turns an observation into the logits of an action.

A `Policy` is a network, its parameters, the encoder that feeds it and the action space that it
chooses from: all that is needed to decide.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from optax_meta import actions, observations
from optax_meta.actions import ActionSpace
from optax_meta.base import (
    DECISION_INTERVAL,
    Controller,
    ControllerInit,
    ControllerUpdate,
    Encoder,
    Hyperparams,
    Tree,
)
from optax_meta.checks import Number, check_interval, check_whole
from optax_meta.metrics import Metrics

Start = Literal["hold", "uniform"]
Wrappers = Mapping[str, Mapping[str, Number]]
"""Wrappers by name, the innermost first, each with its keyword arguments."""


class PolicyNetwork(nn.Module):
    """Map an observation to logits: Dense layers with ReLU, and a linear head.

    It computes in full float32 on every device: the precision that a GPU or TPU takes for large
    products would choose other actions there.

    Attributes:
        num_logits: outputs, `ActionSpace.num_logits`.
        hidden_sizes: widths of the hidden layers.

    Example:
        >>> network = optax_meta.PolicyNetwork(num_logits=9)
        >>> params = network.init(jax.random.key(0), jnp.zeros(8))
        >>> network.apply(params, jnp.zeros(8)).shape
        (9,)
    """

    num_logits: int
    hidden_sizes: Sequence[int] = (32, 32)

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        """Return float32[num_logits] for an observation, float32[features]."""
        dense, x = partial(nn.Dense, precision="highest"), observation
        for size in self.hidden_sizes:
            x = nn.relu(dense(size)(x))
        return dense(self.num_logits, kernel_init=nn.initializers.zeros, name="head")(x)


class Policy(NamedTuple):
    """All that is needed to decide.

    Attributes:
        network: the module; `network.apply(params, observation)` gives the logits.
        params: its variables, a pytree of float32.
        encoder: what turns metrics into observations.
        action_space: what it chooses from.
        wrappers: what it lives inside, by name, the innermost first: "calibrated", "annealed" and
            "trust_region" with their arguments; `learned` and `reinforce` put them on. By default
            nothing.
        dense_steps: it decides at each of that many first steps, ≥ 0.
        num_decisions: at least so many further decisions in a run of known length, evenly spaced
            and ten steps apart at most, ≥ 0. Where the length is not known, and always for 0, there
            is one every ten steps.

    Example:
        >>> policy = optax_meta.init_policy(jax.random.key(0))
        >>> policy.action_space.num_actions
        9
    """

    network: nn.Module
    params: Tree
    encoder: Encoder
    action_space: ActionSpace
    wrappers: Mapping[str, Mapping[str, Number]] = {}
    dense_steps: int = 0
    num_decisions: int = 0

    def __repr__(self) -> str:
        """Say what it sees and does, not its parameters one by one."""
        space = self.action_space
        return (
            f"Policy({type(self.network).__name__} of {optax.tree.size(self.params)} parameters, "
            f"{len(self.encoder.features)} features of {self.encoder.name}, "
            f"{space.num_actions} actions on {', '.join(space.hyperparams)})"
        )

    def log_probs(self, params: Tree, observation: jax.Array) -> jax.Array:
        """Return log π(a|s) of every action, float32[num_actions].

        Args:
            params: variables to use in place of the policy's own.
            observation: float32[features].
        """
        return actions.log_probs(self.action_space, self.network.apply(params, observation))  # pyright: ignore[reportArgumentType]

    def apply(
        self, action: jax.Array, last_action: jax.Array, metrics: Metrics, hyperparams: Hyperparams
    ) -> Hyperparams:
        """Return the hyperparameters after an action; after the end of the run, the same.

        Args:
            action: int32[].
            last_action: that of the decision before, int32[]; -1 for none.
            metrics: the run since the last decision.
            hyperparams: the policy's own so far.
        """
        moved = actions.apply(self.action_space, action, hyperparams, last_action)
        return {
            name: jnp.where(metrics.is_over, hyperparams[name], new) for name, new in moved.items()
        }

    def decision_interval(self, total_steps: Number | None) -> Number:
        """Return the steps between decisions, a whole number, or int32[] for a traced horizon.

        Args:
            total_steps: length of the run; None, or an int32[] below 1, where it is not known.
        """
        if total_steps is None or self.num_decisions == 0:
            return DECISION_INTERVAL
        spaced = -(-total_steps // self.num_decisions)
        if isinstance(total_steps, int):
            return min(max(spaced, 1), DECISION_INTERVAL)
        spaced = jnp.minimum(spaced, DECISION_INTERVAL)
        return jnp.where(total_steps > 0, spaced, DECISION_INTERVAL)

    def as_controller(
        self,
        init: ControllerInit,
        update: ControllerUpdate,
        *,
        total_steps: Number | None,
        decision_interval: Number | None,
    ) -> Controller:
        """Return a `Controller` with this policy's hyperparameters, bounds and action labels.

        Args:
            init: of the controller.
            update: of the controller.
            total_steps: length of the run; None where it is not known.
            decision_interval: steps between decisions; None for the policy's own.
        """
        if total_steps is not None:
            total_steps = check_whole("total_steps", total_steps)
        if decision_interval is None:
            spaced, decision_interval = self.num_decisions, self.decision_interval(total_steps)
        else:
            spaced, decision_interval = 0, check_interval(decision_interval)
        return Controller(
            init=init,
            update=update,
            hyperparams=self.action_space.hyperparams,
            decision_interval=decision_interval,
            bounds={move.hyperparam: move.bounds for move in self.action_space.moves},
            dense_steps=self.dense_steps,
            action_labels=actions.labels(self.action_space),
            features=self.encoder.features,
            needs_alignment=self.encoder.needs_alignment,
            total_steps=total_steps,
            decisions_per_run=spaced,
            incremental=self.action_space.increments,
        )


def check_policy(policy: Any) -> None:
    """Refuse what is no `Policy`.

    Args:
        policy: what a controller was given.

    Raises:
        ValueError: it is something else.

    >>> check_policy(optax_meta.plateau())
    Traceback (most recent call last):
    ValueError: `policy` must be a Policy, got Controller: read one with `load_policy(…)`
    """
    if not isinstance(policy, Policy):
        raise ValueError(
            f"`policy` must be a Policy, got {type(policy).__name__}: read one with "
            "`load_policy(…)`"
        )


def draw(stream: jax.Array, log_probs: jax.Array) -> jax.Array:
    """Draw an action by inverting the cumulative distribution.

    Args:
        stream: uint32[2], the data of a threefry key: one draw for each.
        log_probs: normalized, float32[num_actions].

    Returns:
        int32[].

    >>> print(draw(jnp.array([0, 1], jnp.uint32), jnp.log(jnp.array([0.0, 1.0]))))
    1
    """
    key = jax.random.wrap_key_data(stream, impl="threefry2x32")
    cumulative = jnp.cumsum(jnp.exp(log_probs))
    drawn = jax.random.uniform(key, dtype=jnp.float32) * cumulative[-1]
    return jnp.minimum(jnp.sum(cumulative <= drawn), log_probs.size - 1)


def init_policy(
    key: jax.Array,
    *,
    encoder: Encoder | None = None,
    action_space: ActionSpace | None = None,
    wrappers: Wrappers | None = None,
    dense_steps: int = 0,
    num_decisions: int = 0,
    hidden_sizes: Sequence[int] = (32, 32),
    start: Start = "hold",
    hold_probability: float = 0.9,
) -> Policy:
    """Make a fresh policy.

    Args:
        key: PRNG key for the hidden layers.
        encoder: what it sees; None for `observations.classic()`.
        action_space: what it may do; None for `actions.classic()`.
        wrappers: as in `Policy`; None for none.
        dense_steps: likewise.
        num_decisions: likewise.
        hidden_sizes: widths of the hidden layers, each ≥ 1.
        start: "hold": the head starts at zero with a bias towards the action that changes nothing,
            since a policy that knows nothing must not be a random walk. "uniform": all actions are
            equally likely at first.
        hold_probability: of the hold action under "hold", in (0, 1).

    Returns:
        A `Policy`.

    Raises:
        ValueError: `action_space` is none, sizes or counts out of range, an unknown `start`, or
            no hold action to start from.

    Example:
        >>> policy = init_policy(jax.random.key(0))
        >>> probs = jnp.exp(policy.log_probs(policy.params, jnp.zeros(8)))
        >>> print(probs[4].round(2))
        0.9
    """
    counts = {"dense_steps": dense_steps, "num_decisions": num_decisions}
    counts = {name: check_whole(name, count, 0) for name, count in counts.items()}
    encoder = observations.classic() if encoder is None else encoder
    action_space = actions.classic() if action_space is None else action_space
    if not isinstance(action_space, ActionSpace):
        raise ValueError(
            f"`action_space` must be an ActionSpace, got {type(action_space).__name__}: "
            "`actions.joint(…)` makes one of moves"
        )
    if start not in ("hold", "uniform"):
        raise ValueError(f'`start` must be "hold" or "uniform", got {start!r}')
    sizes = tuple(check_whole("hidden_sizes", size) for size in hidden_sizes)
    network = PolicyNetwork(action_space.num_logits, sizes)
    params: Any = network.init(key, jnp.zeros(len(encoder.features)))
    if start == "hold":
        bias = jnp.asarray(actions.hold_logits(action_space, hold_probability))
        head = {**params["params"]["head"], "bias": bias}
        params = {"params": {**params["params"], "head": head}}
    return Policy(network, params, encoder, action_space, wrappers or {}, **counts)
