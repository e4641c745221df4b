"""What share of the distance a move should be, told by the way that parameters have come."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_meta.checks import Number
from optax_meta.metrics import Metrics

_USUAL_GROWTH, _GROWTH_MEMORY = 0.07, 0.95
"""Of the logarithm of the distance in a step: half of what c = 0.3 reached while all moves agree.
Networks have it for some twenty steps; where it lasts longer the start was tiny."""
_OVERSHOT, _SLACK, _CERTAIN, _LEAST_FACTOR, _SETTLING = 50.0, 0.01, 0.05, 0.03, 60
"""The share falls as one over the square of the number of steps, after the first sixty, where the
mean cosine of the gradient with the way come is -0.05 or less, as around an optimum that was
passed, and less fast above; it rises from -0.01 on: in networks that still learn the cosine is
within 0.003. Before, gradients turn about where nothing was passed."""
_RECENT = 3.0
"""That mean is over about the latest third of the steps: one cosine is mostly noise."""
_LEADING, _FOR_CERTAIN, _LATEST, _RISE, _MOST_FACTOR = 0.1, 0.3, 10.0, 4.0, 4.0
"""Moves that lead downhill, at a mean cosine above the first over the latest tenth of the steps,
are too short. The share rises then, with up to the fourth power of the number of steps where the
cosine is the second or more, as long as the last one is above zero. In networks that learn from
batches it is within 0.02 after the first sixty steps; in a valley without noise it comes to 0.9."""
_RETURN = 1.0
"""Where moves lead no longer, what the share rose above one goes again, with this power."""
_LEAST, _INCOHERENT, _COHERENT, _MOST = 1.0, 3.0, 5.0, 15.0
"""Real networks under AdamW and momentum lie between the second and the third, whatever they are;
RMSprop has 1.3, Lion comes to 14. Where gradients go on to agree, as those of all examples at once
do on a small task, there would be no end."""
_LONGEST = 1e12
"""No move and no way is longer than that many distances: their squares are added up."""


class Way(NamedTuple):
    """What is remembered of the way come, float32[] each.

    Attributes:
        distance: at the last decision.
        growth: average growth of its logarithm in a step.
        ahead: factor of the share: less where gradients point back along the way, more where moves
            lead downhill.
        cosine: mean cosine of gradients and the way.
        num_moves: so far.
        squares: sum over moves of their mean squares, in units of the squared distance.
        persistence: mean cosine of a move with the one before.
        coherence: by how much moves add up, the most that there was after the first sixty; 0
            before.
        downhill: mean cosine of moves and what the next gradient asks for.
    """

    distance: jax.Array
    growth: jax.Array
    ahead: jax.Array
    cosine: jax.Array
    num_moves: jax.Array
    squares: jax.Array
    persistence: jax.Array
    coherence: jax.Array
    downhill: jax.Array

    @classmethod
    def unknown(cls) -> "Way":
        """Return what is known before the first step."""
        return cls(*map(jnp.float32, (0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)))

    def after(self, metrics: Metrics) -> "Way":
        """Return the way as it is after the steps since the last decision."""
        ahead, cosine, downhill = _ahead(metrics, self)
        num_moves = self.num_moves + metrics.num_moves
        # In units of the distance, so that no scale of the parameters vanishes when squared.
        unit = jnp.where(metrics.distance > 0.0, metrics.distance, 1.0)
        move = jnp.minimum(metrics.update_rms / unit, _LONGEST)
        way = jnp.minimum(metrics.displacement / unit, _LONGEST)
        # What was come before anybody looked counts as one move.
        is_known = self.distance > 0.0
        squares = jnp.where(is_known, self.squares * jnp.square(self.distance / unit), way**2)
        # Moves that nobody is to be judged by, as after a rate was set by hand, are moves as well.
        num_finite = metrics.num_steps - metrics.num_nonfinite
        every = metrics.num_moves * num_finite / jnp.maximum(metrics.num_judged, 1.0)
        squares += every * jnp.square(move)
        is_told = (num_moves >= _SETTLING) & (squares > 0.0)
        new = metrics.num_moves / jnp.maximum(num_moves, 1.0)
        coherence = jnp.maximum(self.coherence, way / jnp.maximum(jnp.sqrt(squares), 1e-15))
        return Way(
            distance=metrics.distance,
            growth=_growth(metrics, self.distance, self.growth),
            ahead=ahead,
            cosine=cosine,
            num_moves=num_moves,
            squares=squares,
            persistence=self.persistence + new * (metrics.persistence - self.persistence),
            coherence=jnp.where(is_told, coherence, self.coherence),
            downhill=downhill,
        )


def share_of_distance(
    way: Way, metrics: Metrics, share: Number, growing_share: Number, length_power: Number
) -> jax.Array:
    """Return the root mean square of the next moves over the distance, float32[].

    Args:
        way: that was come.
        metrics: of the steps since the last decision.
        share: where the distance is known.
        growing_share: where it still grows.
        length_power: how both fall with the length of the run.
    """
    is_growing = jnp.clip((way.growth - _USUAL_GROWTH) / _USUAL_GROWTH, 0.0, 1.0)
    share = share + (growing_share - share) * is_growing
    shortness = metrics.shortness
    share *= jnp.where(shortness > 0.0, shortness**length_power, 1.0)
    return share * way.ahead * _in_all(way)


def _in_all(way: Way) -> jax.Array:
    """Return by which factor moves are longer or shorter for how they add up, float32[].

    What a gradient changes in all, and so the noise around where it leads, is a move times the
    coherence: the way come over the root of the sum of squared moves. By the cosine ρ of two moves
    in a row alone it would be √((1 + ρ)/(1 - ρ)), which tells of momentum where the way led back.
    The share was chosen for optimizers with a momentum of 0.9, √(1.9/0.1) = 4.4.
    """
    cosine = jnp.clip(way.persistence, -0.99, 0.99)
    by_momentum = jnp.sqrt((1.0 + cosine) / (1.0 - cosine))
    longer = _INCOHERENT / jnp.clip(jnp.maximum(way.coherence, by_momentum), _LEAST, _INCOHERENT)
    # Where the optimum was passed the way is short for another reason.
    is_ahead = jnp.clip(2.0 * way.ahead - 1.0, 0.0, 1.0)
    shorter = _COHERENT / jnp.clip(way.coherence, _COHERENT, _MOST)
    factor = (1.0 + is_ahead * (longer - 1.0)) * shorter
    return jnp.where(way.coherence > 0.0, factor, 1.0)


def _growth(metrics: Metrics, before: jax.Array, growth: jax.Array) -> jax.Array:
    """Return the average growth of the logarithm of the distance in a step, float32[]."""
    ratio = metrics.distance / jnp.maximum(before, 1e-30)
    now = jnp.where(before > 0.0, jnp.log(jnp.maximum(ratio, 1.0)), 0.0)
    left = _GROWTH_MEMORY**metrics.num_steps
    return left * growth + (1.0 - left) * now / jnp.maximum(metrics.num_steps, 1.0)


def _ahead(metrics: Metrics, way: Way) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the factor of the share, and the two mean cosines that tell it, float32[] each.

    Around an optimum x*, where moves are noise, the mean of ⟨-g, x - x₀⟩ is -tr(HΣ) for curvature H
    and the spread Σ of the positions: twice what the noise costs, which smaller moves would spare.
    Whoever passed it by far and is led back has such cosines as well, but moves downhill.
    """
    share = metrics.num_steps / jnp.maximum(metrics.step + 1, 1).astype(jnp.float32)
    e_folds = -jnp.log1p(-jnp.minimum(share, 0.9))  # of the number of steps, since last asked

    def mean(before: jax.Array, now: jax.Array, memory: float) -> jax.Array:
        new = 1.0 - jnp.exp(-memory * e_folds)
        return jnp.where(metrics.num_moves > 0.0, before + new * (now - before), before)

    cosine = mean(way.cosine, metrics.start_alignment, _RECENT)
    downhill = mean(way.downhill, metrics.alignment, _LATEST)
    fall = _OVERSHOT * (jnp.clip(cosine, -_CERTAIN, _CERTAIN) + _SLACK)
    leading = (downhill - _LEADING) / (_FOR_CERTAIN - _LEADING)
    is_leading = (leading > 0.0) & (metrics.alignment > 0.0)
    rise = jnp.maximum(fall, 0.0) + _RISE * jnp.minimum(leading, 1.0)
    # Above one only as long as it leads: the share was chosen for gradients with noise.
    back = jnp.minimum(fall, 0.0) - jnp.clip(-_RISE * leading, 0.0, _RETURN)
    change = jnp.where(is_leading, rise, jnp.where(way.ahead > 1.0, back, fall))
    most = jnp.where(is_leading, _MOST_FACTOR, jnp.maximum(way.ahead, 1.0))
    changed = jnp.clip(way.ahead * jnp.exp(e_folds * change), _LEAST_FACTOR, most)
    return jnp.where(metrics.step >= _SETTLING, changed, way.ahead), cosine, downhill
