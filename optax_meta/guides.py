"""What happens to the learning rate around the actions of a policy.

A policy multiplies a learning rate; a guide says from where it starts, how often the policy is
asked, how the rate falls when the end of the run is known, and how far one update may move the
parameters; after the end nothing changes any more. All of it follows from `Metrics` alone: a guide
has no state.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optax_meta.base import Hyperparams, is_set
from optax_meta.metrics import Metrics

HYPERPARAM = "learning_rate"
DECAY = "weight_decay"
_LARGEST_JUMP = 1e3
_USUAL_STEPS = 1000.0
_USUAL_RATE = 1e-3
_LEAST_SEEN = 1e-6
"""A move of this share of the parameters' norm shows in float32."""
_STILL = 10.0
"""After so many steps of a run that never moved an action may raise the rate."""
_PATIENCE = 5
"""So many steps an optimizer is given to make its first move."""


class Guide(NamedTuple):
    """How the learning rate moves when the policy holds, and how often the policy is asked.

    The starting rate of the user is forgotten within `calibration_steps`: the first update is made
    at no more than `probe_rate`, and each of the next ones scales the rate until one update moves
    the parameters by `target_ratio` of their norm. This needs the strided sample of the parameters
    that alignment is measured from, no update's norm, and works for any optimizer and any scale of
    the parameters. One that accumulates gradients must make its first move within five steps; then
    steps without a move change nothing. Where all parameters start at zero, which tells no scale,
    their root mean square counts as at least 0.1.

    Attributes:
        calibration_steps: steps, from the first, in which the rate is calibrated; 0 for none.
        probe_rate: largest learning rate of the very first update; it is lower still where
            gradients are so large that `target_ratio` would be passed.
        target_ratio: norm of the update over norm of the parameters to calibrate to.
        max_ratio: the rate is kept so low that the last update, scaled with it, would have moved
            the parameters by no more than this share of their norm.
        ratio_power: in a run of known length T the share is `max_ratio` times (1000/T) to this
            power: shorter runs have fewer updates to get there. Runs of fewer than 100 steps count
            as that long, and no share is below `target_ratio`.
        persistence_power: the share is divided by ((1 + ρ)/(1 - ρ)) to this power, ρ the cosine of
            successive moves less that of move and negative gradient, held to [0, 0.95]: moves that
            momentum alone keeps in one direction lead further than their length tells; at ½ all
            lead as far. Moves that still go downhill are not held back.
        max_growth: gradients are scaled down to this times the mean norm that the last decision
            saw, so that a loss whose curvature explodes cannot throw a run away before the next.
        dense_steps: the policy decides at each of the first steps; at least in calibration.
        num_decisions: further decisions in a run of known length, evenly spaced; 0 for one every
            ten steps, as where the length is not known.
        total_decay: in a run of known length, and if the weight decay is steered, the rate times
            the weight decay of each of the first decisions but that of step 0 is this over the
            number of steps, so that the starting decay is forgotten, too; before, it takes no more
            than `target_ratio` off the parameters. 0 for leaving it alone.
        fall: in a run of known length a held rate falls as (1 - p) to this power, p the share of
            the run that is over: 1 for linearly, 0 for not at all.
        last_raise: in a run of known length no action raises the rate any more once more than this
            share of the run is over.
        raise_power: in a run of T steps, fewer than 1000, that share is `last_raise` times (1000/T)
            to this power.

    The numbers that are no counts may be traced, for instance to search for a guide by `jax.vmap`.

    Source: the ratio of update to parameters as a measure of the rate is from Y. You et al.,
    "Large Batch Training of Convolutional Networks", https://arxiv.org/abs/1708.03888; starting
    low and probing up from A. Cutkosky et al., "Mechanic: A Learning Rate Tuner",
    https://arxiv.org/abs/2306.00144; gradients held to a multiple of their own recent norm from
    P. Seetharaman et al., "AutoClip", https://arxiv.org/abs/2007.14469; rate · weight decay · steps
    as the measure of decay from X. Wang and L. Aitchison, "How to set AdamW's weight decay as you
    scale model and dataset size", https://arxiv.org/abs/2405.13698; the distance that correlated
    steps lead from A. Sokal, "Monte Carlo Methods in Statistical Mechanics",
    https://doi.org/10.1007/978-1-4899-0319-8_6.

    Example:
        >>> guide = optax_meta.guides.Guide(calibration_steps=8, fall=1.0)
        >>> policy = optax_meta.init_policy(jax.random.key(0))._replace(guide=guide)
    """

    calibration_steps: int = 0
    probe_rate: float = 1e-6
    target_ratio: float = 1e-3
    max_ratio: float = math.inf
    ratio_power: float = 0.0
    persistence_power: float = 0.0
    max_growth: float = math.inf
    dense_steps: int = 0
    num_decisions: int = 0
    total_decay: float = 0.0
    fall: float = 0.0
    last_raise: float = math.inf
    raise_power: float = 0.0

    @property
    def first_decisions(self) -> int:
        """How many of the first steps are each decided upon, calibration included."""
        return max(self.dense_steps, self.calibration_steps)

    @property
    def needs_alignment(self) -> bool:
        """Whether it reads the norms of parameters and updates."""
        return self.calibration_steps > 0 or is_set(self.max_ratio, math.inf)

    @property
    def counts(self) -> tuple[str, ...]:
        """Names of the numbers that are counts, and so compiled in."""
        return tuple(k for k, v in self._field_defaults.items() if isinstance(v, int))

    def check(self) -> "Guide":
        """Refuse numbers out of range; return itself. What is traced passes.

        Raises:
            ValueError: one is no number of its kind, negative, or, for `max_growth`, below 1.

        >>> Guide(fall=-1.0).check()
        Traceback (most recent call last):
        ValueError: the guide's `fall` must be a number ≥ 0, got -1.0
        """
        for name, value in self._asdict().items():
            if isinstance(value, Tracer):
                continue
            value = np.asarray(value)[()] if isinstance(value, jax.Array) else value  # noqa: PLW2901
            least, is_count = int(name == "max_growth"), name in self.counts
            kinds = (int, np.integer) if is_count else (int, float, np.number)
            if isinstance(value, bool) or not isinstance(value, kinds) or not value >= least:
                kind = "whole number" if is_count else "number"
                raise ValueError(f"the guide's `{name}` must be a {kind} ≥ {least}, got {value!r}")
        return self

    def decision_interval(self, total_steps: Any) -> Any:
        """Return the steps between decisions: a whole number, or int32[] for a traced horizon."""
        if total_steps is None or self.num_decisions == 0:
            return 10
        if isinstance(total_steps, int):
            return max(-(-total_steps // self.num_decisions), 1)
        return jnp.where(total_steps > 0, -(-total_steps // self.num_decisions), 10)

    def shown(self, metrics: Metrics, hyperparams: Hyperparams) -> Hyperparams:
        """Return the hyperparameters that the policy sees: not the start, where it is forgotten.

        Args:
            metrics: the run since the last decision.
            hyperparams: those used since.
        """
        if self.calibration_steps == 0 or HYPERPARAM not in hyperparams:
            return hyperparams
        rate = hyperparams[HYPERPARAM]
        return {**hyperparams, HYPERPARAM: jnp.where(metrics.step > 0, rate, _USUAL_RATE)}

    def lead(self, metrics: Metrics, hyperparams: Hyperparams) -> Hyperparams:
        """Return the hyperparameters that the policy's action then changes.

        Args:
            metrics: the run since the last decision, with its progress.
            hyperparams: those used since.
        """
        if HYPERPARAM not in hyperparams:
            return hyperparams
        rate = hyperparams[HYPERPARAM]
        lead = rate * self._fallen(metrics).astype(rate.dtype) if is_set(self.fall, 0.0) else rate
        if self.calibration_steps > 0:
            wanted = self.target_ratio / jnp.maximum(metrics.update_ratio, 1e-30)
            # No move yet: they may be too small for the parameters to show, or gradients may be
            # accumulated inside the optimizer. So the rate is first raised to what is usual, and
            # only after some steps until a gradient step would show.
            slope = jnp.maximum(metrics.grad_norm, 1e-30)
            steepest = self.target_ratio * metrics.param_norm / slope
            shows = jnp.where(
                metrics.step < _PATIENCE,
                jnp.minimum(_USUAL_RATE, steepest),
                _LEAST_SEEN * metrics.param_norm / slope,
            )
            to_show = jnp.maximum(shows / jnp.maximum(rate, 1e-30), 1.0)
            unseen = jnp.where(metrics.update_norm > 0.0, 1.0, to_show)
            wanted = jnp.where(metrics.num_moves > 0.0, wanted, unseen)
            jump = jnp.clip(wanted, 1.0 / _LARGEST_JUMP, _LARGEST_JUMP)
            # Nothing is learned where no gradient was seen, or no step at this rate; where none was
            # finite, nothing but that the rate may be too high.
            is_seen = (metrics.grad_norm > 0.0) & (metrics.num_moves >= 0.0)
            jump = jnp.where(metrics.saw_finite, jnp.where(is_seen, jump, 1.0), 0.1)
            jump = jump.astype(rate.dtype)
            largest = jnp.where(steepest > 0.0, steepest, math.inf).astype(rate.dtype)
            probe = jnp.minimum(jnp.minimum(rate, self.probe_rate), largest)
            calibrated = jnp.where(metrics.step > 0, rate * jump, probe)
            lead = jnp.where(self._is_calibrating(metrics), calibrated, lead)
        return {**hyperparams, HYPERPARAM: lead, **self._lead_decay(metrics, hyperparams, lead)}

    def _is_calibrating(self, metrics: Metrics) -> jax.Array:
        """Tell whether it is early and asked at each step: by `decide` alone it begins as it is."""
        steps = metrics.num_steps
        is_each = jnp.where(metrics.step > 0, steps == 1.0, steps > 0.0)
        return is_each & (metrics.step < self.calibration_steps)

    def _lead_decay(
        self, metrics: Metrics, hyperparams: Hyperparams, rate: jax.Array
    ) -> Hyperparams:
        if DECAY not in hyperparams or not is_set(self.total_decay, 0.0):
            return {}
        decay = hyperparams[DECAY]
        per_step = self.total_decay * _over_steps(metrics)
        wanted = (per_step / jnp.maximum(rate, 1e-30)).astype(decay.dtype)
        is_first = (metrics.step < self.first_decisions) & (metrics.progress > 0.0)
        # The length of the run, if there is one, shows at the next step.
        is_near = (metrics.step == 0) & (metrics.progress >= 0.0)
        harmless = jnp.minimum(decay, self.target_ratio / jnp.maximum(rate, 1e-30))
        decay = jnp.where(is_near, harmless.astype(decay.dtype), decay)
        return {DECAY: jnp.where(is_first, wanted, decay)}

    def bound(
        self, metrics: Metrics, hyperparams: Hyperparams, lead: Hyperparams, wanted: Hyperparams
    ) -> Hyperparams:
        """Return `wanted` with the rate held to `max_ratio`; after the end, what there is.

        Args:
            metrics: the run since the last decision.
            hyperparams: those used since.
            lead: those that holding would give.
            wanted: those that the policy asks for.
        """
        if HYPERPARAM in hyperparams:
            rates = (values[HYPERPARAM] for values in (hyperparams, lead, wanted))
            wanted = {**wanted, HYPERPARAM: self._held(metrics, *rates)}
        is_over = metrics.progress >= 1.0
        return {name: jnp.where(is_over, hyperparams[name], new) for name, new in wanted.items()}

    def _held(
        self, metrics: Metrics, rate: jax.Array, lead: jax.Array, wanted: jax.Array
    ) -> jax.Array:
        if is_set(self.max_ratio, math.inf):
            # Where no move was seen, no action raises the rate, unless it may be too low to show.
            num_finite = metrics.num_steps - metrics.num_nonfinite
            is_low = (metrics.update_norm <= 0.0) & (num_finite >= _STILL)
            is_low |= (metrics.step == 0) & self._is_calibrating(metrics)
            unseen = jnp.where(is_low, _LARGEST_JUMP * rate, jnp.maximum(rate, lead))
            largest = rate * self._room(metrics).astype(rate.dtype)
            largest = jnp.where(metrics.num_moves > 0.0, largest, unseen)
            wanted = jnp.minimum(wanted, jnp.where(metrics.saw_finite, largest, 0.5 * rate))
        if is_set(self.last_raise, math.inf):
            # Where the length of the run is not known, `progress` is below 0.
            share = self.last_raise * jnp.maximum(_shortness(metrics), 1.0) ** self.raise_power
            wanted = jnp.where(metrics.progress > share, jnp.minimum(wanted, lead), wanted)
        return wanted

    def _room(self, metrics: Metrics) -> jax.Array:
        """Return by how much the last update may be scaled and be no larger than it may."""
        stretch = jnp.where(metrics.progress > 0.0, _shortness(metrics) ** self.ratio_power, 1.0)
        inert = metrics.persistence - jnp.maximum(metrics.alignment, 0.0)
        rho = jnp.clip(inert, 0.0, 0.95)
        reach = ((1.0 + rho) / (1.0 - rho)) ** self.persistence_power
        least = self.target_ratio if self.calibration_steps > 0 else 0.0
        room = jnp.maximum(self.max_ratio * stretch / reach, least)
        room /= jnp.maximum(metrics.update_ratio, 1e-30)
        return jnp.minimum(room, _LARGEST_JUMP)

    def _fallen(self, metrics: Metrics) -> jax.Array:
        """Return (1 - p)/(1 - p'), to the power, for the progress p now and p' when last asked."""
        step = metrics.step.astype(jnp.float32)
        share = jnp.maximum(step - metrics.num_steps, 0.0) / jnp.maximum(step, 1.0)
        left, left_before = 1.0 - metrics.progress, 1.0 - metrics.progress * share
        kept = left / jnp.maximum(left_before, 1e-6)
        return jnp.where(metrics.progress >= 0.0, kept**self.fall, 1.0)


def _shortness(metrics: Metrics) -> jax.Array:
    """Return 1000 over the length of the run, at most 10; 0 where it is not known, or not yet."""
    return jnp.clip(_USUAL_STEPS * _over_steps(metrics), 0.0, 10.0)


def _over_steps(metrics: Metrics) -> jax.Array:
    """Return one over the length of the run; 0 or less where it is not known, or not yet."""
    return metrics.progress / jnp.maximum(metrics.step, 1)
