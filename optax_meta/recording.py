"""What the controller did, one row a step, for `lax.scan` to stack."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_meta import policy_gradient
from optax_meta.base import Hyperparams
from optax_meta.metrics import Statistics
from optax_meta.transform import ControlState, find_control_states


class Decision(NamedTuple):
    """The latest decision of a policy.

    Attributes:
        action: index into the action space, int32[]; -1 before the first decision.
        log_prob: log π(action|observation), float32[].
        entropy: of the policy at this decision, in nats, float32[].
        reward: earned by the decision *before* this one, float32[]; 0 if there was none.
        probabilities: π(·|observation), float32[num_actions].
        observation: what the policy saw, float32[features].
    """

    action: jax.Array
    log_prob: jax.Array
    entropy: jax.Array
    reward: jax.Array
    probabilities: jax.Array
    observation: jax.Array

    @classmethod
    def choose(cls, action: jax.Array, log_probs: jax.Array, observation: jax.Array) -> "Decision":
        """Return the decision for `action`, with no reward yet."""
        return cls(
            action=action,
            log_prob=log_probs[action],
            entropy=policy_gradient.entropy(log_probs),
            reward=jnp.float32(0.0),
            probabilities=jnp.exp(log_probs),
            observation=observation,
        )


class DecisionState(NamedTuple):
    """A `Decision` as controllers carry it, packed in two leaves.

    Attributes:
        summary: action, log_prob, entropy, reward, then the observation; float32[4 + features].
        probabilities: float32[num_actions].
    """

    summary: jax.Array
    probabilities: jax.Array

    @classmethod
    def empty(cls, num_features: int, num_actions: int) -> "DecisionState":
        """Return the state before the first decision."""
        summary = jnp.zeros(4 + num_features, jnp.float32).at[0].set(-1.0)
        return cls(summary, jnp.zeros(num_actions, jnp.float32))

    @classmethod
    def pack(cls, decision: Decision) -> "DecisionState":
        """Pack a decision."""
        *scalars, probabilities, observation = decision
        head = jnp.stack([jnp.asarray(x, jnp.float32) for x in scalars])
        return cls(jnp.concatenate([head, observation]), probabilities)

    def unpack(self) -> Decision:
        """Return the decision; leading axes are batches."""
        action, log_prob, entropy, reward = jnp.moveaxis(self.summary[..., :4], -1, 0)
        return Decision(
            action.astype(jnp.int32),
            log_prob,
            entropy,
            reward,
            self.probabilities,
            self.summary[..., 4:],
        )


class Record(NamedTuple):
    """One row of the timeline: the run after one update.

    Attributes:
        step: updates so far, int32[].
        value: latest finite loss, float32[]; likewise the next three.
        cost: latest finite cost, float32[].
        grad_norm: latest finite gradient norm, float32[].
        alignment: latest cosine of negative gradient and last move, float32[]; 0 if not measured.
        hyperparams: values that this update used, float32[] by name.
        decided: whether the controller decided in this update, bool[].
        num_nonfinite: steps so far whose loss, cost or gradient was not finite, int32[].
        decision: the policy's latest decision; None for a controller without a policy.
    """

    step: jax.Array
    value: jax.Array
    cost: jax.Array
    grad_norm: jax.Array
    alignment: jax.Array
    hyperparams: Hyperparams
    decided: jax.Array
    num_nonfinite: jax.Array
    decision: Decision | None


def record(opt_state: Any) -> Record:
    """Return one row of the timeline from any state that holds a controlled optimizer.

    Args:
        opt_state: as for `optax_meta.hyperparams`; one controlled optimizer.

    Returns:
        A `Record` of arrays, the same structure at every step, so that `lax.scan` stacks it.

    Raises:
        ValueError: the state holds none or several; take `opt_state.inner_states[label]` of
            `optax.partition` to read one of several.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.constant())(0.1)
        >>> def step(carry, _):
        ...     params, state = carry
        ...     loss, grads = jax.value_and_grad(lambda x: x**2)(params)
        ...     updates, state = tx.update(grads, state, params, value=loss)
        ...     return (params + updates, state), optax_meta.record(state)
        >>> x = jnp.array(1.0)
        >>> _, rows = jax.lax.scan(step, (x, tx.init(x)), length=3)
        >>> print(rows.value.round(2))
        [1.   0.64 0.41]
    """
    found = find_control_states(opt_state)
    if len(found) > 1:
        raise ValueError(
            f"the state holds several controlled optimizers ({', '.join(found)}): pass one of them"
        )
    return _row(next(iter(found.values())))


def find_decision(controller_state: Any) -> Decision | None:
    """Return the first decision in a controller's state, None where it keeps none."""

    def is_decision(x: Any) -> bool:
        return isinstance(x, DecisionState)

    leaves = jax.tree.leaves(controller_state, is_leaf=is_decision)
    return next((leaf.unpack() for leaf in leaves if is_decision(leaf)), None)


def _row(state: ControlState) -> Record:
    statistics = Statistics.unpack(state.statistics)
    value, cost, grad_norm, alignment, *_ = jnp.moveaxis(statistics.last, -1, 0)
    return Record(
        step=state.step,
        value=value,
        cost=cost,
        grad_norm=grad_norm,
        alignment=alignment,
        hyperparams=dict(state.hyperparams),
        decided=(statistics.window[..., 0] == 0) & (state.step > 0),
        num_nonfinite=statistics.total_nonfinite[..., 0].astype(jnp.int32),
        decision=find_decision(state.controller_state),
    )
