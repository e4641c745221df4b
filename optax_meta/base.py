"""The two pairs of pure functions that everything else is made of.

A gradient transformation maps (gradients, state, params) to (updates, state). A *controller* maps
(metrics, state, hyperparams) to (hyperparams, state): it is to hyperparameters what an optimizer
is to parameters. An *encoder* maps the same inputs to an observation for a policy.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from optax_meta.checks import Number
from optax_meta.metrics import Metrics

Hyperparams: TypeAlias = dict[str, jax.Array]
"""Hyperparameters by name, float[] each."""
Bounds: TypeAlias = tuple[float, float]
"""Smallest and largest value allowed."""
State: TypeAlias = Any
"""What an `init` returned: a pytree of arrays. There is no narrower type for what each chooses."""
Tree: TypeAlias = Any
"""A pytree of arrays: parameters, gradients, samples."""
Step: TypeAlias = Any
"""Index of a step: an `int`, or int32[] where it is traced."""
DECISION_INTERVAL = 10
"""Steps between decisions of a policy: fewer make the change of a noisy loss tell nothing, and with
more a rate follows what a move turns out to be too late, which cost an MLP 6 %."""
NEVER = 2**30
"""The step at which a decision is due that is never due; twice it still fits int32."""


class ControllerInit(Protocol):
    """`init` of a controller."""

    def __call__(self, hyperparams: Hyperparams) -> State:
        """Return the state for a run that starts with `hyperparams`."""
        ...


class ControllerUpdate(Protocol):
    """`update` of a controller."""

    def __call__(
        self, metrics: Metrics, state: State, hyperparams: Hyperparams
    ) -> tuple[Hyperparams, State]:
        """Return the hyperparameters to use from this step on, and the new state."""
        ...


class Controller(NamedTuple):
    """A rule that changes hyperparameters while a model trains.

    Attributes:
        init: (hyperparams) → state. Arrays only: the state is carried by `lax.scan` and saved.
        update: (metrics, state, hyperparams) → (hyperparams, state), called at each decision.
        hyperparams: names of the hyperparameters it steers; `update` returns these and no other.
        decision_interval: steps between decisions; the first is taken at step 0. A whole number,
            int32[] where a horizon is traced, `math.inf` for never, or a function of a step that
            returns the first one after it at which a decision is due, int32[].
        dense_steps: decides at each of that many first steps, whatever the interval, unless that
            is `math.inf`; or a function of the step that returns whether it does, bool[].
        bounds: smallest and largest value allowed, by name; a name left out is not bounded.
        action_labels: names of the actions of a policy, for tables; empty without one.
        features: names of what the policy sees; likewise.
        needs_value: whether `update` must be given the loss.
        needs_alignment: whether to measure the cosines of the last move with the gradient and with
            the move before, and norms, from strided samples; `update` must then be given the
            parameters.
        guards_nonfinite: whether the optimizer sees zeros for the gradients of a step whose loss or
            gradient norm is not finite. The guard may change the last bit of a healthy step, since
            compilers contract other products into fused multiply-adds.
        max_growth: gradients whose norm is more than this times the mean norm that the last
            decision saw are scaled down to that, so that they grow by no more from one decision to
            the next; with `guards_nonfinite` alone.
        total_steps: length of the run, which fills in `Metrics.progress`; None where it is not
            known, and also an int32[] below 1.
        default_start: starting values of hyperparameters whose start is forgotten, by name, which
            may therefore be left out where the optimizer is made.
        decisions_per_run: where the length of the run is only known while it goes on, as by
            `set_horizon` or a progress that is passed, so many evenly spaced decisions replace the
            interval, or more, so that they are ten steps apart at most; 0 for the interval.
        incremental: names of the hyperparameters whose given values it moves, as most policies do,
            rather than setting them. A wrapper that clips gives back what was left of these, lest
            they wander off to where the optimizer does not follow.
        origin: the call that made it, for `optax_meta.to_config`; None for one written by hand.

    Example:
        >>> def halve(metrics, state, hyperparams):
        ...     return {"learning_rate": 0.5 * hyperparams["learning_rate"]}, state
        >>> halving = Controller(init=lambda hyperparams: (), update=halve, needs_value=False)
        >>> tx = optax_meta.control_hyperparams(optax.sgd, halving)(learning_rate=1.0)
    """

    init: ControllerInit
    update: ControllerUpdate
    hyperparams: tuple[str, ...] = ("learning_rate",)
    decision_interval: Any = 1
    dense_steps: int | Callable[[Step], Any] = 0
    bounds: Mapping[str, Bounds] = {}
    action_labels: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    needs_value: bool = True
    needs_alignment: bool = False
    guards_nonfinite: bool = True
    max_growth: Number = math.inf
    total_steps: Any = None
    default_start: Mapping[str, float] = {}
    decisions_per_run: int = 0
    incremental: tuple[str, ...] = ()
    origin: "Origin | None" = None

    def next_due(self, step: Step) -> Step:
        """Return the first step after this one at which a decision is due.

        Args:
            step: int32[], -1 for before the run; of a fixed interval also an `int`, for an `int`.

        Returns:
            int32[] or `int`; `NEVER` where none is.

        >>> controller = optax_meta.plateau()._replace(decision_interval=10, dense_steps=2)
        >>> [controller.next_due(step) for step in (-1, 0, 1, 10)]
        [0, 1, 10, 20]
        """
        interval = self.decision_interval
        if self.only_asked:
            return NEVER
        due: Any = interval(step) if callable(interval) else (step // interval + 1) * interval
        is_dense = self.is_dense(step + 1)
        if isinstance(is_dense, bool):
            return step + 1 if is_dense else due
        return jnp.where(is_dense, step + 1, due)

    def is_due(self, step: Step) -> Any:
        """Return whether a decision is due at a step, bool[].

        Args:
            step: as for `next_due`, from 0.
        """
        return self.next_due(step - 1) == step

    @property
    def only_asked(self) -> bool:
        """Whether it never decides by itself, but where `decide` is called."""
        interval = self.decision_interval
        return isinstance(interval, float) and interval == math.inf

    def is_dense(self, step: Step) -> Any:
        """Return whether a step is decided upon whatever the interval, bool[].

        Args:
            step: as for `next_due`.
        """
        if self.only_asked:
            return False
        return self.dense_steps(step) if callable(self.dense_steps) else step < self.dense_steps

    def num_decisions(self, total_steps: int) -> int:
        """Return how many decisions there are in a run.

        Args:
            total_steps: its length.

        >>> optax_meta.plateau()._replace(decision_interval=10).num_decisions(25)
        3
        """
        count, step = 0, int(self.next_due(-1))
        while step < total_steps:
            count, step = count + 1, int(self.next_due(step))
        return count

    def keep_in_bounds(
        self,
        name: str,
        old: jax.Array,
        new: jax.typing.ArrayLike,
        bounds: Mapping[str, tuple[jax.Array, jax.Array]] = {},
    ) -> jax.Array:
        """Return a new value of a hyperparameter, clipped, or the old one where it is not finite.

        Args:
            name: of the hyperparameter.
            old: its value so far, float[].
            new: what was decided, a scalar.
            bounds: further ones by name, as `Metrics.bounds`; the controller's own come last.

        Returns:
            float[], of the dtype of `old`.
        """
        new = jnp.asarray(new).astype(old.dtype)
        new = jnp.where(jnp.isfinite(new), new, old)
        if name in bounds:
            new = jnp.clip(new, *(bound.astype(new.dtype) for bound in bounds[name]))
        return jnp.clip(new, *self.bounds[name]) if name in self.bounds else new


class Origin(NamedTuple):
    """The call that a controller came from.

    Attributes:
        factory: name of the function.
        arguments: those that were given, by name.
        made: what it returned, to tell what was replaced since.
    """

    factory: str
    arguments: Mapping[str, Any]
    made: Controller


class EncoderInit(Protocol):
    """`init` of an encoder."""

    def __call__(self) -> State:
        """Return the state before the first decision."""
        ...


class EncoderUpdate(Protocol):
    """`update` of an encoder."""

    def __call__(
        self, metrics: Metrics, state: State, hyperparams: Hyperparams
    ) -> tuple[jax.Array, State]:
        """Return the observation, float32[features], and the new state."""
        ...


class Encoder(NamedTuple):
    """A rule that turns what was measured into what a policy sees.

    Attributes:
        init: () → state; arrays only.
        update: (metrics, state, hyperparams) → (observation, state); the observation is
            float32[len(features)], every entry finite and in [-1, 1].
        features: names of the entries, in order.
        name: what a saved policy remembers it by.
        config: keyword arguments that build it again, JSON values.
        needs_alignment: whether it reads alignment and the norms of updates and parameters.

    Example:
        >>> def encode(metrics, state, hyperparams):
        ...     return jnp.stack([jnp.tanh(metrics.value), metrics.progress]), state
        >>> encoder = Encoder(lambda: (), encode, features=("loss", "progress"), name="mine")
        >>> controller = optax_meta.reinforce(encoder=encoder)
    """

    init: EncoderInit
    update: EncoderUpdate
    features: tuple[str, ...]
    name: str
    config: Mapping[str, Any] = {}
    needs_alignment: bool = False


def check_wrapped(wrapper: str, controller: object, hyperparam: str) -> None:
    """Refuse what a wrapper cannot be put around.

    Args:
        wrapper: its name, for the message.
        controller: what it was given.
        hyperparam: which it scales or clips.

    Raises:
        ValueError: this is no controller, or one that does not steer the hyperparameter.

    >>> check_wrapped("annealed", "plateau", "learning_rate")
    Traceback (most recent call last):
    ValueError: `annealed` must go around a Controller such as `plateau()`, got str
    """
    if not isinstance(controller, Controller):
        raise ValueError(
            f"`{wrapper}` must go around a Controller such as `plateau()`, got "
            f"{getattr(controller, '__name__', type(controller).__name__)}"
        )
    if hyperparam not in controller.hyperparams:
        raise ValueError(
            f"`{wrapper}` acts on `{hyperparam}`, which this controller does not steer: choose "
            f"`hyperparam=` out of {', '.join(controller.hyperparams)}"
        )
