"""Where a decision is made: the controller is asked, by the run at its steps or from outside."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from optax_meta import measuring, tracking
from optax_meta.base import DECISION_INTERVAL, Controller, Hyperparams, State, Tree
from optax_meta.checks import check_share
from optax_meta.horizon import Horizon, advanced
from optax_meta.metrics import Metrics
from optax_meta.state import ByHand, ControlState, replace_control_states
from optax_meta.tracking import NUM_STATISTICS, Statistics

FOREIGN = (
    "`state` is that of another controller, or of another version of this one: start from `init`, "
    "or fit what was saved with `optax_meta.graft`"
)


def decide(
    controller: Controller,
    opt_state: Any,
    *,
    value: jax.typing.ArrayLike,
    cost: jax.typing.ArrayLike | None = None,
    progress: jax.typing.ArrayLike | None = None,
) -> Any:
    """Let a controller decide now, on a loss of its own: for instance the validation loss.

    For a loss that is known once an epoch: make the optimizer with `decision_interval=math.inf`, so
    that it never decides by itself, and call this between epochs. Nothing else changes: no update,
    no step counted. A pure function, to be jitted or not. The controller sees `value` (and `cost`,
    if given) in place of the averages over the steps since its last decision; the other metrics,
    and the number of steps, are those of the steps. A value that is not finite counts as a window
    without a finite step.

    Args:
        controller: the one that the optimizer was made with.
        opt_state: any pytree with exactly one `ControlState`: `optax.chain`, `optax.MultiSteps`, a
            Flax `TrainState`.
        value: the loss to judge, a scalar, the same on all devices.
        cost: a scalar in any unit.
        progress: share of the run that is over, as `update` takes it.

    Returns:
        `opt_state` with new hyperparameters, which hold from the next update on.

    Raises:
        ValueError: the state holds no controlled optimizer or several, `value` is no scalar, or
            `progress` no number in [0, 1].

    Example:
        >>> controller = optax_meta.plateau(factor=0.5, patience=1)
        >>> tx = optax_meta.control_hyperparams(optax.sgd, controller, decision_interval=math.inf)
        >>> state = tx(learning_rate=1.0).init(jnp.zeros(2))
        >>> for validation_loss in (1.0, 2.0, 2.0):
        ...     state = optax_meta.decide(controller, state, value=validation_loss)
        >>> print(optax_meta.hyperparams(state)["learning_rate"])
        0.5
    """
    found = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, ControlState))
    count = sum(isinstance(leaf, ControlState) for leaf in found)
    if count != 1:
        raise ValueError(
            f"`opt_state` must hold exactly one controlled optimizer, found {count}: pass the "
            "state of one, for instance `opt_state.inner_states[label]` of `optax.partition`"
        )
    if value is None:
        raise ValueError("`decide` needs a loss to judge, got None: pass `value=validation_loss`")
    passed = {"value": value, "cost": cost, "progress": progress}
    return replace_control_states(
        opt_state, lambda _, state: _decide_now(controller, state.with_arrays(), passed)
    )


def _decide_now(
    controller: Controller, state: ControlState, passed: Mapping[str, Any]
) -> ControlState:
    if not is_own(controller, state):
        raise ValueError(FOREIGN)
    statistics = _with_judged(Statistics.unpack(state.statistics), passed)
    horizon = advance(controller, statistics, state.step, passed["progress"])
    statistics = statistics._replace(horizon=horizon)
    hyperparams, controller_state = _ask(
        controller,
        statistics,
        state.step,
        state.by_hand,
        state.hyperparams,
        state.controller_state,
    )
    # The next step sees an update that was made before these hyperparameters.
    statistics = tracking.decided(statistics, is_own=False)
    return state._replace(
        statistics=statistics.pack(), controller_state=controller_state
    ).with_hyperparams(hyperparams)


def _with_judged(statistics: Statistics, passed: Mapping[str, Any]) -> Statistics:
    """Put the loss to judge, and the cost, in place of their averages over the window."""
    means, window = statistics.means, statistics.window
    value = measuring.scalar("value", passed["value"])
    cost = means.cost if passed["cost"] is None else measuring.scalar("cost", passed["cost"])
    is_finite = jnp.isfinite(value) & jnp.isfinite(cost)
    # A finite value is evidence, even if no step was; one that is not is none.
    most = jnp.maximum(window.num_steps - 1.0, 0.0)
    num_nonfinite = jnp.where(
        is_finite, jnp.minimum(window.num_nonfinite, most), jnp.maximum(window.num_steps, 1.0)
    )
    return statistics._replace(
        means=means._replace(
            value=jnp.where(is_finite, value, means.value),
            cost=jnp.where(is_finite, cost, means.cost),
        ),
        window=window._replace(num_nonfinite=num_nonfinite),
    )


def advance(
    controller: Controller,
    statistics: Statistics,
    step: jax.Array,
    progress: Any,
    axis_name: str | None = None,
) -> Horizon:
    """Return how far the run is at a step.

    Args:
        controller: of which the length of the run is read.
        statistics: of which the horizon is read.
        step: index of the step, int32[].
        progress: what was passed, None where nothing was.
        axis_name: axis to average it over; None for none.

    Raises:
        ValueError: `progress` is no number in [0, 1].
    """
    total: Any = controller.total_steps
    total = None if total is None else jnp.asarray(total, jnp.int32)
    if progress is not None:
        check_share("progress", progress)
        progress = jax.lax.stop_gradient(jnp.asarray(progress).astype(jnp.float32))
        progress = progress if axis_name is None else jax.lax.pmean(progress, axis_name)
    return advanced(statistics.horizon, step, total, progress)


def decide_if_due(
    controller: Controller,
    statistics: Statistics,
    step: jax.Array,
    by_hand: jax.Array,
    hyperparams: Hyperparams,
    controller_state: State,
) -> tuple[Hyperparams, State, Statistics]:
    """Ask the controller where a decision is due; else keep everything."""
    # As one array: each operand of a branch costs every step, whether it is taken or not.
    packed = statistics.pack()

    def decide(hyperparams: Hyperparams, controller_state: State) -> tuple[Hyperparams, State]:
        known = Statistics.unpack(packed)
        return _ask(controller, known, step, by_hand, hyperparams, controller_state)

    operands = (hyperparams, controller_state)
    after = tracking.decided(statistics, is_own=True)
    if is_static(controller.decision_interval):
        if controller.decision_interval == math.inf:
            return *operands, statistics
        return *decide(*operands), after
    is_due = _is_due(controller, statistics, step)
    chosen = jax.lax.cond(is_due, decide, lambda *same: same, *operands)
    return *chosen, jax.tree.map(lambda new, old: jnp.where(is_due, new, old), after, statistics)


def _is_due(controller: Controller, statistics: Statistics, step: jax.Array) -> jax.Array:
    is_due = jnp.asarray(controller.is_due(step))
    if not controller.decisions_per_run:
        return is_due
    horizon, num_steps = statistics.horizon, statistics.window.num_steps
    interval = jnp.ceil(horizon.length / controller.decisions_per_run)
    interval = jnp.clip(interval, 1.0, DECISION_INTERVAL)
    # On the grid of a run that was always this long, and never later than that.
    is_spaced = (step % interval.astype(jnp.int32) == 0) | (num_steps >= interval)
    is_spaced |= jnp.asarray(controller.is_dense(step))
    return jnp.where(horizon.is_replanned & (horizon.per_step > 0.0), is_spaced, is_due)


def is_static(decision_interval: Any) -> bool:
    """Whether every step is decided upon, or none: there is no branch to take."""
    is_number = isinstance(decision_interval, (int, float))
    return is_number and decision_interval in (1, math.inf)


def _ask(
    controller: Controller,
    statistics: Statistics,
    step: jax.Array,
    by_hand: jax.Array,
    hyperparams: Hyperparams,
    controller_state: State,
) -> tuple[Hyperparams, State]:
    """Show the window to the controller and return what it decides, kept in bounds."""
    held = ByHand(*by_hand)
    counts = statistics.window[:-1]  # whether the next step is its own is no business of it
    window = Metrics(
        *statistics.means,
        *counts,
        step,
        statistics.distance.estimate,
        statistics.horizon.progress,
        statistics.horizon.per_step,
        dict(hyperparams),
        held.bounds(hyperparams),
    )
    decided: Any = controller.update(window, controller_state, hyperparams)
    is_pair = isinstance(decided, tuple) and len(decided) == 2 and isinstance(decided[0], Mapping)
    if not is_pair or set(decided[0]) != set(hyperparams):
        got = ", ".join(map(str, decided[0])) if is_pair else type(decided).__name__
        raise ValueError(
            "the controller's `update` must return (new hyperparameters by name, new state), with "
            f"the names {', '.join(hyperparams)} and no others, got {got}"
        )
    wanted, controller_state = decided
    kept = {}
    for name, old in hyperparams.items():
        if jnp.shape(wanted[name]) != ():
            raise ValueError(
                f"the controller's `update` must return a scalar for `{name}`, got one of shape "
                f"{jnp.shape(wanted[name])}"
            )
        kept[name] = controller.keep_in_bounds(name, old, wanted[name], window.bounds)
    return held.hold(hyperparams, kept), controller_state


def is_own(controller: Controller, state: ControlState) -> bool:
    """Tell whether a state has the structure and the shapes that this controller's own has."""
    if set(state.hyperparams) != set(controller.hyperparams):
        return False

    def shapes(tree: Tree) -> object:
        return jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]

    own = jax.eval_shape(controller.init, dict(state.hyperparams))
    sampled = [jnp.shape(leaf)[:-1] for leaf in jax.tree.leaves(state.last_samples)]
    return (
        shapes(state.controller_state) == shapes(own)
        and jnp.shape(state.statistics) == (NUM_STATISTICS,)
        and jnp.shape(state.by_hand) == (len(ByHand._fields), len(state.hyperparams))
        and sampled == [(measuring.NUM_SAMPLES,)] * controller.needs_alignment
    )
