"""What a controller sees of a training run, averaged over the steps since its last decision.

Everything here is float32, whatever the dtype of the parameters, and finite, whatever the run
does: a step whose loss, cost or gradient is not finite is counted and otherwise left out.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = float(np.finfo(np.float32).max)
"""Stands for a number without a bound: a state that holds no infinity can be searched for one."""
USUAL_RATE = 1e-3
"""A learning rate that is seldom far wrong, for where nothing better is known yet."""
USUAL_STEPS = 1000.0
"""Length of the runs that numbers which depend on the length are given for."""
UNKNOWN_STEPS = 16_000.0
"""Length that a run of unknown length counts as: nothing falls there, and half the rate that others
have at their start serves it best."""
_LEAST_VISIBLE = 1e-6
"""A move of this share of the parameters' norm shows in float32, whose spacing is 1.2e-7."""
_PATIENCE = 5
"""So many steps an optimizer that accumulates gradients is given to make its first move."""
_RAISE = 10.0
"""Of a rate that still moved nothing then, at each decision."""


class Metrics(NamedTuple):
    """The run since the last decision, as a controller sees it.

    Averages run over the finite steps of the window; a window without any repeats the last ones.

    Attributes:
        value: mean loss, float32[].
        cost: mean cost in the user's unit, float32[]; 0 where none is passed.
        grad_norm: mean global L2 norm of the gradients, float32[].
        alignment: mean cosine of the negative gradient and the parameters' last move, float32[] in
            [-1, 1]; positive while that move still points downhill. 0 unless the controller asks;
            likewise the next six and the distance, which are estimated from samples, too.
        persistence: mean cosine of the parameters' last two moves, float32[] in [-1, 1]: how much
            further than a random walk they lead. Near the decay of the momentum where there is one.
        update_norm: mean L2 norm of the parameters' moves, float32[].
        param_norm: mean L2 norm of the parameters in play, float32[]: those whose gradient was
            other than zero before now and that have moved, if any have.
        start_alignment: mean cosine of the negative gradient and the way that the parameters have
            come since the start, float32[] in [-1, 1]; positive while further along it is lower.
        update_rms: mean root mean square of the moves of the parameters in play, float32[].
        displacement: mean root mean square of the way that these have come since the start.
        value_change: mean absolute change of the loss from one step to the next, float32[].
        num_steps: length of the window in steps, this one included, float32[]; 0 where `decide` is
            called right after another decision.
        num_nonfinite: how many of these steps were not finite, float32[].
        num_judged: how many finite steps came after an update made under these hyperparameters,
            float32[]; the first step after a decision of `decide` does not, nor does step 0.
        num_moves: how many of `num_judged` saw the parameters move, float32[]: those that
            alignments, persistence, norm and size of the moves average. Where it is 0 these
            repeat, as while an optimizer accumulates gradients, or where moves are too small to
            show.
        step: index of this step, from 0, int32[].
        distance: how far each parameter has to go at least, as gradients tell it, float32[]; 0
            before the first. It is the unit of `update_rms` and `displacement`, and never falls.
        progress: share of the run that is over, float32[] in [0, 1]; -1 where no horizon is known.
            Where the horizon changes it goes on from where it was, so that nothing jumps.
        per_step: one over the length of the run in steps, float32[]; 0 where it is not known, or
            not yet, as at step 0. Where the horizon changes it moves gradually.
        hyperparams: what the optimizer used since the last decision, by name, float[] each, as
            wrappers scaled and clipped it; empty where a controller is asked by hand.
        bounds: smallest and largest value allowed as `optax_meta.set_bounds` set them, by name,
            float[] each; likewise empty.

    Example:
        >>> def halve_where_it_rises(metrics, last_value, hyperparams):
        ...     rises = metrics.value > last_value
        ...     rate = hyperparams["learning_rate"] * jnp.where(rises, 0.5, 1.0)
        ...     return {"learning_rate": rate}, metrics.value
        >>> controller = optax_meta.Controller(lambda hyperparams: jnp.inf, halve_where_it_rises)
    """

    value: jax.Array
    cost: jax.Array
    grad_norm: jax.Array
    alignment: jax.Array
    persistence: jax.Array
    update_norm: jax.Array
    param_norm: jax.Array
    start_alignment: jax.Array
    update_rms: jax.Array
    displacement: jax.Array
    value_change: jax.Array
    num_steps: jax.Array
    num_nonfinite: jax.Array
    num_judged: jax.Array
    num_moves: jax.Array
    step: jax.Array
    distance: jax.Array
    progress: jax.Array
    per_step: jax.Array
    hyperparams: Mapping[str, jax.Array] = {}
    bounds: Mapping[str, tuple[jax.Array, jax.Array]] = {}

    def pack(self) -> jax.Array:
        """Return all but the hyperparameters and their bounds, float32[19]."""
        return jnp.stack([x.astype(jnp.float32) for x in self[:-2]])

    @classmethod
    def unpack(cls, packed: jax.Array) -> "Metrics":
        """Read what `pack` returned; `hyperparams` and `bounds` are empty."""
        metrics = cls(*packed)
        return metrics._replace(step=metrics.step.astype(jnp.int32))

    @property
    def saw_finite(self) -> jax.Array:
        """Whether anything in the window was finite, bool[]."""
        return self.num_nonfinite < jnp.maximum(self.num_steps, 1.0)

    @property
    def is_empty(self) -> jax.Array:
        """Whether no step was finite since the run began, so that all averages are still 0."""
        is_zero = (self.value == 0.0) & (self.cost == 0.0) & (self.grad_norm == 0.0)
        return is_zero & ~self.saw_finite

    @property
    def is_over(self) -> jax.Array:
        """Whether a run of known length has come to its end, bool[]."""
        return self.progress >= 1.0

    @property
    def shortness(self) -> jax.Array:
        """1000 over the length of the run, float32[] at most 10; 0 at the very first step.

        Where the length is not known that is `UNKNOWN_STEPS`.
        """
        known = jnp.clip(USUAL_STEPS * self.per_step, 0.0, 10.0)
        return jnp.where(self.progress < 0.0, USUAL_STEPS / UNKNOWN_STEPS, known)

    def steepest_rate(self, ratio: jax.typing.ArrayLike) -> jax.Array:
        """Return the rate at which a gradient step moves `ratio` of the parameters' norm.

        Args:
            ratio: share of the norm, float[].

        Returns:
            float32[]; of no meaning where there is no gradient.
        """
        return jnp.asarray(ratio) * self.param_norm / jnp.maximum(self.grad_norm, 1e-30)

    def visible_rate(self, ratio: jax.typing.ArrayLike, used: jax.Array) -> jax.Array:
        """Return a rate that is safe to try where no move was seen, float32[], at least that used.

        Moves may be too small for the parameters to show, or gradients may be accumulated inside
        the optimizer. So the rate is first what is usual, and only after some steps what makes a
        gradient step show. Gradients that move nothing may be far larger than those that do: it is
        then also raised by a decade at each decision, up to what is usual.

        Args:
            ratio: share of the parameters' norm that a gradient step should not pass.
            used: the rate so far, float32[].
        """
        usual = jnp.minimum(USUAL_RATE, self.steepest_rate(ratio))
        visible = jnp.where(self.step < _PATIENCE, usual, self.steepest_rate(_LEAST_VISIBLE))
        raised = jnp.where(self.step > _PATIENCE, jnp.minimum(_RAISE * used, USUAL_RATE), used)
        return jnp.maximum(jnp.maximum(used, raised), visible)


def with_progress(metrics: Metrics, total_steps: jax.typing.ArrayLike | None) -> Metrics:
    """Fill in the share of the run that is over, where the horizon is known.

    Args:
        metrics: of which `step` is read.
        total_steps: length of the run in steps; None, or an int32[] below 1, where it is not known.

    >>> at = optax_meta.Metrics(*jnp.zeros(19))._replace(step=jnp.int32(25))
    >>> print(with_progress(at, 100).progress)
    0.25
    """
    if total_steps is None:
        return metrics
    total = jnp.asarray(total_steps, jnp.int32)
    share = metrics.step.astype(jnp.float32) / jnp.maximum(total, 1).astype(jnp.float32)
    share = jnp.where(total > 0, jnp.minimum(share, 1.0), -1.0)
    per_step = jnp.maximum(share, 0.0) / jnp.maximum(metrics.step, 1).astype(jnp.float32)
    return metrics._replace(progress=share, per_step=per_step)
