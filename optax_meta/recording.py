"""What the controller did, one row a step, for `lax.scan` to stack."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optax_meta import policy_gradient
from optax_meta.base import Hyperparams, State
from optax_meta.state import ControlState, detach, find_control_states
from optax_meta.tracking import Statistics


class Decision(NamedTuple):
    """The latest decision of a policy.

    Attributes:
        action: index into the action space, int32[]; -1 before the first decision.
        log_prob: log π(action|observation), float32[].
        entropy: of the policy at this decision, in nats, float32[].
        reward: earned by the decision *before* this one, float32[]; 0 if there was none.
        baseline: moving average of returns that they are compared with, float32[]; 0 before
            anything was learned, and for a policy that learns nothing.
        probabilities: π(·|observation), float32[num_actions].
        observation: what the policy decided by, float32[features].

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.adamw, optax_meta.reinforce())(1e-3)
        >>> print(optax_meta.record(tx.init(jnp.zeros(3))).decision.action)
        -1
    """

    action: jax.Array
    log_prob: jax.Array
    entropy: jax.Array
    reward: jax.Array
    baseline: jax.Array
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
            baseline=jnp.float32(0.0),
            probabilities=jnp.exp(log_probs),
            observation=observation,
        )


class DecisionState(NamedTuple):
    """A `Decision` as controllers carry it, packed in two leaves.

    Attributes:
        summary: action, log_prob, entropy, reward, baseline, then the observation;
            float32[5 + features].
        probabilities: float32[num_actions].
    """

    summary: jax.Array
    probabilities: jax.Array

    @classmethod
    def empty(cls, num_features: int, num_actions: int) -> "DecisionState":
        """Return the state before the first decision."""
        # The action of -1 is how a later reader knows that there was none.
        summary = jnp.zeros(5 + num_features, jnp.float32).at[0].set(-1.0)
        return cls(summary, jnp.zeros(num_actions, jnp.float32))

    @classmethod
    def pack(cls, decision: Decision) -> "DecisionState":
        """Pack a decision."""
        *scalars, probabilities, observation = decision
        # An action's index is exact in float32; a leaf of its own would cost time at every step.
        head = jnp.stack([jnp.asarray(x, jnp.float32) for x in scalars])
        return cls(jnp.concatenate([head, observation]), probabilities)

    def unpack(self) -> Decision:
        """Return the decision; leading axes are batches."""
        action, log_prob, entropy, reward, baseline = jnp.moveaxis(self.summary[..., :5], -1, 0)
        return Decision(
            action.astype(jnp.int32),
            log_prob,
            entropy,
            reward,
            baseline,
            self.probabilities,
            self.summary[..., 5:],
        )


class StagesState(NamedTuple):
    """States of controllers that take turns.

    Attributes:
        in_charge: which of them decided last, int32[].
        stages: the state of each.
    """

    in_charge: jax.Array
    stages: tuple[State, ...]


class Record(NamedTuple):
    """One row of the timeline: the run after one update.

    A step whose loss, cost or gradient norm is not finite is only counted: its row repeats the
    measurements of the last finite one, all 0 before the first.

    Attributes:
        step: updates so far, int32[].
        value: latest loss, float32[]; 0 where none is passed.
        cost: latest cost in the user's unit, float32[]; 0 where none is passed.
        grad_norm: latest global L2 norm of the gradients, float32[].
        alignment: latest cosine of negative gradient and last move, float32[] in [-1, 1]; 0 where
            the controller does not ask for it.
        hyperparams: values that this update used, float32[] by name.
        decided: whether the controller decided in this update, bool[].
        num_nonfinite: steps so far whose loss, cost or gradient was not finite, int32[].
        num_spikes: steps so far whose loss or gradient norm leapt, int32[].
        progress: share of the run that is over, as the controller sees it, float32[] in [0, 1]; -1
            where no horizon is known.
        num_misread: how often a `progress` that was passed was no number in [0, 1], int32[].
        decision: the policy's latest decision; None for a controller without a policy.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.plateau())(0.1)
        >>> x = jnp.zeros(3)
        >>> row = optax_meta.record(tx.update(x, tx.init(x), x, value=2.0)[1])
        >>> print(row.step, row.value, row.decided, row.decision)
        1 2.0 True None
    """

    step: jax.Array
    value: jax.Array
    cost: jax.Array
    grad_norm: jax.Array
    alignment: jax.Array
    hyperparams: Hyperparams
    decided: jax.Array
    num_nonfinite: jax.Array
    num_spikes: jax.Array
    progress: jax.Array
    num_misread: jax.Array
    decision: Decision | None


Row = dict[str, Any]
"""One step as JSON values, by name: of which type depends on the name."""

COLUMNS = ("seed", "loss", "action_label", *Record._fields, *Decision._fields)
"""Names in a row; whatever else it holds is a hyperparameter."""


def record(opt_state: Any) -> Record:
    """Return one row of the timeline from any state that holds a controlled optimizer.

    Args:
        opt_state: as for `optax_meta.hyperparams`; one controlled optimizer.

    Returns:
        A `Record` of arrays, the same structure at every step, so that `lax.scan` stacks it; they
        stay when the state is donated.

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
            f"the state holds several controlled optimizers ({', '.join(found)}): pass one of "
            "them, for instance `opt_state.inner_states[label]` of `optax.partition`"
        )
    return detach(_row(next(iter(found.values()))))


def find_decision(controller_state: State) -> Decision | None:
    """Return the latest decision in a controller's state, None where no part of it has a policy.

    Of controllers that take turns it is that of the one in charge, with action -1 where that one
    has no policy; the actions and features of several policies are counted on.

    Args:
        controller_state: any pytree; leading axes of its arrays are batches.
    """

    def is_node(x: object) -> bool:
        return isinstance(x, (DecisionState, StagesState))

    for node in jax.tree.leaves(controller_state, is_leaf=is_node):
        if isinstance(node, DecisionState):
            return node.unpack()
        if isinstance(node, StagesState) and (found := _of_stages(node)) is not None:
            return found
    return None


def _of_stages(state: StagesState) -> Decision | None:
    """Return the decision of the stage in charge, with the actions of all laid side by side."""
    found = [find_decision(stage) for stage in state.stages]
    if all(decision is None for decision in found):
        return None
    scalars: Sequence[jax.Array] = [jnp.int32(-1), *jnp.zeros(4, jnp.float32)]
    probabilities, observations, offset = [], [], 0
    for stage, decision in enumerate(found):
        if decision is None:
            continue
        is_its = state.in_charge == stage
        action = decision.action + jnp.where(decision.action >= 0, offset, 0)
        own = (action, *decision[1:5])
        scalars = [jnp.where(is_its, x, other) for x, other in zip(own, scalars, strict=True)]
        probabilities.append(jnp.where(is_its[..., None], decision.probabilities, 0.0))
        observations.append(jnp.where(is_its[..., None], decision.observation, 0.0))
        offset += decision.probabilities.shape[-1]
    sides = (jnp.concatenate(parts, axis=-1) for parts in (probabilities, observations))
    return Decision(*scalars, *sides)


def flatten(records: Record, labels: Sequence[str] = ()) -> list[Row]:
    """Return rows as plain dicts of JSON values, as files, trackers and tables take them.

    Args:
        records: one row, or rows with leading axes [T] or [S, T].
        labels: names of the actions, `controller.action_labels`.

    Returns:
        One dict a step, the runs of a batch one after the other: the fields of `Record`, each
        hyperparameter by its name; for a batch `seed`, its index; where a decision was taken the
        fields of `Decision` and with `labels` also `action_label`. None stands for nan and inf,
        which JSON lacks.

    Raises:
        ValueError: `records` is something else, was made inside `jit`, or has further axes, or
            `labels` do not fit its actions.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.constant())(0.5)
        >>> row = optax_meta.record(tx.init(jnp.zeros(2)))
        >>> optax_meta.recording.flatten(row)[0]["learning_rate"]
        0.5
    """
    records = _fetch(records)
    # Whole columns become lists at once: row by row it takes ten times as long.
    batch = np.shape(records.step)
    if len(batch) > 2:
        raise ValueError(f"`records` may have leading axes [T] or [S, T], got {list(batch)}")
    fields = records._asdict()
    decision, hyperparams = fields.pop("decision"), fields.pop("hyperparams")
    seeds = {"seed": np.repeat(np.arange(batch[0]), batch[1])} if len(batch) == 2 else {}
    columns = {**seeds, **fields, **hyperparams}
    lists = {name: _lists(np.reshape(column, -1)) for name, column in columns.items()}
    flat = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    if decision is not None:
        _add_decisions(flat, decision, len(batch), labels)
    return flat


def _row(state: ControlState) -> Record:
    statistics = Statistics.unpack(state.statistics)
    last = statistics.last
    return Record(
        step=state.step,
        value=last.value,
        cost=last.cost,
        grad_norm=last.grad_norm,
        alignment=last.alignment,
        hyperparams=dict(state.hyperparams),
        # A decision begins a new window of measurements; so does the start, which decides nothing.
        decided=(statistics.window.num_steps == 0) & (state.step > 0),
        num_nonfinite=statistics.total_nonfinite.astype(jnp.int32),
        num_spikes=statistics.spikes.total.astype(jnp.int32),
        progress=statistics.horizon.progress,
        num_misread=statistics.horizon.num_misread.astype(jnp.int32),
        decision=find_decision(state.controller_state),
    )


def _fetch(records: object) -> Record:
    """Bring rows from the device, all at once."""
    if not isinstance(records, Record):
        raise ValueError(
            "`rows` must be what `optax_meta.record(opt_state)` returns, one or stacked by "
            f"`lax.scan`; got {type(records).__name__}"
        )
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(records)):
        raise ValueError("rows cannot be written inside `jit`: return them from it, then write")
    return jax.device_get(records)


def _lists(x: np.ndarray) -> list[Any]:
    """Return nested lists with None for nan and inf."""
    # None fits only into an array of objects, a copy that most columns can do without.
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        return np.where(np.isfinite(x), x, np.array(None)).tolist()
    return x.tolist()


def _add_decisions(
    flat: list[Row], decision: Decision, num_axes: int, labels: Sequence[str]
) -> None:
    """Add the decision's details to the rows that took one."""
    num_actions = decision.probabilities.shape[-1]
    if labels and len(labels) != num_actions:
        raise ValueError(
            f"`labels` must name the {num_actions} actions of the policy, "
            f"`controller.action_labels`, got {len(labels)}"
        )
    # One controller of several may decide before the policy does.
    actions = np.reshape(decision.action, -1)
    taken = [i for i, row in enumerate(flat) if row["decided"] and actions[i] >= 0]
    details = {
        name: _lists(np.reshape(value, (-1, *np.shape(value)[num_axes:]))[taken])
        for name, value in decision._asdict().items()
    }
    for i, values in zip(taken, zip(*details.values(), strict=True), strict=True):
        flat[i] |= dict(zip(details, values, strict=True))
        if labels:
            flat[i]["action_label"] = labels[flat[i]["action"]]
