"""The two pairs of pure functions that everything else is made of.

A gradient transformation maps (gradients, state, params) to (updates, state). A *controller* maps
(metrics, state, hyperparams) to (hyperparams, state): it is to hyperparameters what an optimizer
is to parameters. An *encoder* maps the same inputs to an observation for a policy.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optax_meta.metrics import Metrics

Hyperparams = dict[str, jax.Array]
Bounds = tuple[float, float]


class ControllerInit(Protocol):
    """`init` of a controller."""

    def __call__(self, hyperparams: Hyperparams) -> Any:
        """Return the state for a run that starts with `hyperparams`."""
        ...


class ControllerUpdate(Protocol):
    """`update` of a controller."""

    def __call__(
        self, metrics: Metrics, state: Any, hyperparams: Hyperparams
    ) -> tuple[Hyperparams, Any]:
        """Return the hyperparameters to use from this step on, and the new state."""
        ...


class Controller(NamedTuple):
    """A rule that changes hyperparameters while a model trains.

    Attributes:
        init: (hyperparams) → state. Arrays only: the state is carried by `lax.scan` and saved.
        update: (metrics, state, hyperparams) → (hyperparams, state), called at each decision.
        hyperparams: names of the hyperparameters it steers; `update` returns these and no other.
        decision_interval: steps between decisions; the first is taken at step 0. A whole number,
            int32[] where a horizon is traced, or a function of the step, int32[], that returns
            whether one is due, bool[].
        dense_steps: decides at each of that many first steps, whatever the interval, unless that
            is `math.inf`; or a function of the step, int32[], that returns whether it does, bool[].
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
    dense_steps: int | Callable[[Any], Any] = 0
    bounds: Mapping[str, Bounds] = {}
    action_labels: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    needs_value: bool = True
    needs_alignment: bool = False
    guards_nonfinite: bool = True
    max_growth: float = math.inf

    def is_due(self, step: Any) -> Any:
        """Return whether a decision is due at a step, bool[].

        Args:
            step: from 0, int32[]; of a fixed interval also an `int`, for a `bool`.
        """
        interval: Any = self.decision_interval
        if callable(interval):
            return jnp.asarray(interval(step))
        if isinstance(interval, float) and interval == math.inf:
            return jnp.bool_(False)
        return (step % interval == 0) | self.is_dense(step)

    def is_dense(self, step: Any) -> Any:
        """Return whether a step is decided upon whatever the interval, bool[].

        Args:
            step: as for `is_due`.
        """
        return self.dense_steps(step) if callable(self.dense_steps) else step < self.dense_steps


class EncoderInit(Protocol):
    """`init` of an encoder."""

    def __call__(self) -> Any:
        """Return the state before the first decision."""
        ...


class EncoderUpdate(Protocol):
    """`update` of an encoder."""

    def __call__(
        self, metrics: Metrics, state: Any, hyperparams: Hyperparams
    ) -> tuple[jax.Array, Any]:
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


def is_set(number: Any, off: float) -> bool:
    """Whether a number that may be traced differs from the one that turns it off; if so, it may.

    >>> is_set(0.0, off=0.0), is_set(jnp.float32(0.0), off=0.0)
    (False, True)
    """
    return not isinstance(number, (int, float)) or number != off


def check_whole(name: str, number: Any, least: int = 1) -> Any:
    """Refuse what is no count; return it, a NumPy integer as an `int`.

    Args:
        name: of the argument, for the message.
        number: an integer, also as an array; of a traced scalar nothing but the dtype is checked.
        least: smallest value allowed.

    Raises:
        ValueError: it is something else, or smaller.

    >>> check_whole("patience", 2.5)
    Traceback (most recent call last):
    ValueError: `patience` must be a whole number ≥ 1, got 2.5
    """
    if not _is_whole(number, least):
        raise ValueError(f"`{name}` must be a whole number ≥ {least}, got {number!r}")
    if isinstance(number, jax.Array) and jnp.issubdtype(number.dtype, jnp.unsignedinteger):
        return number.astype(jnp.int32)  # it is subtracted from
    return int(number) if isinstance(number, (np.integer, np.ndarray)) else number


def check_seed(seed: Any) -> None:
    """Refuse what is no seed; of a traced scalar nothing but the dtype is checked.

    Args:
        seed: an integer that fits uint32, also as an array.

    Raises:
        ValueError: it is something else.

    >>> check_seed(-1)
    Traceback (most recent call last):
    ValueError: `seed` must be an integer in [0, 2³²), got -1
    """
    fits = _is_whole(seed, 0)
    if not fits or (not isinstance(seed, Tracer) and int(seed) >= 2**32):
        raise ValueError(f"`seed` must be an integer in [0, 2³²), got {seed!r}")


def check_interval(interval: Any) -> Any:
    """Refuse what is no number of steps between decisions.

    Args:
        interval: as `check_whole` takes it, or `math.inf`.

    Raises:
        ValueError: it is something else, or smaller than 1.

    >>> check_interval(10.0)
    Traceback (most recent call last):
    ValueError: `decision_interval` must be a whole number ≥ 1 or `math.inf`, got 10.0
    """
    if _is_whole(interval, 1):
        return check_whole("decision_interval", interval)
    if interval != math.inf:
        raise ValueError(
            f"`decision_interval` must be a whole number ≥ 1 or `math.inf`, got {interval!r}"
        )
    return math.inf


def _is_whole(number: Any, least: int) -> bool:
    if isinstance(number, (jax.Array, np.ndarray)):
        is_int = jnp.issubdtype(number.dtype, jnp.integer) and number.shape == ()
        return is_int and (isinstance(number, Tracer) or int(number) >= least)
    is_int = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
    return is_int and bool(number >= least)
