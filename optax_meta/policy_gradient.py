"""REINFORCE as mathematics: arrays in, arrays out, one episode at a time.

Time runs along the first axis; batches come from `jax.vmap`. The subscripts `_t` and `_tm1` say
which time an array belongs to, as in rlax.

Source: R. J. Williams, "Simple statistical gradient-following algorithms for connectionist
reinforcement learning", Machine Learning 8, 1992, https://doi.org/10.1007/BF00992696.
"""

import chex
import jax
import jax.numpy as jnp


def discounted_returns(r_t: jax.Array, discount: chex.Numeric) -> jax.Array:
    """Return Gₜ = rₜ + γ Gₜ₊₁, with G = 0 after the last reward.

    Args:
        r_t: rewards, float32[T].
        discount: γ in [0, 1].

    Returns:
        float32[T].

    >>> print(discounted_returns(jnp.array([1.0, 0.0, 2.0]), 0.5))
    [1.5 1.  2. ]
    """
    chex.assert_rank(r_t, 1)

    def backward(g_tp1: jax.Array, r: jax.Array) -> tuple[jax.Array, jax.Array]:
        g_t = r + discount * g_tp1
        return g_t, g_t

    return jax.lax.scan(backward, jnp.zeros((), r_t.dtype), r_t, reverse=True)[1]


def moving_average_baseline(
    baseline_tm1: jax.Array, returns_t: jax.Array, decay: chex.Numeric
) -> jax.Array:
    """Return bₜ = β bₜ₋₁ + (1 - β) mean(G), the average return of past episodes.

    Args:
        baseline_tm1: bₜ₋₁, float32[].
        returns_t: returns of the latest episode, float32[T].
        decay: β in [0, 1).

    Returns:
        float32[].

    >>> print(moving_average_baseline(jnp.array(1.0), jnp.array([2.0, 4.0]), 0.5))
    2.0
    """
    chex.assert_rank([baseline_tm1, returns_t], [0, 1])
    return jnp.asarray(decay * baseline_tm1 + (1.0 - decay) * jnp.mean(returns_t))


def advantages(returns_t: jax.Array, baseline: chex.Numeric) -> jax.Array:
    """Return Aₜ = Gₜ - b; a baseline that does not depend on the actions adds no bias.

    Args:
        returns_t: float32[T].
        baseline: b, float32[] or float32[T].

    Returns:
        float32[T], through which no gradient flows.

    >>> print(advantages(jnp.array([1.0, 3.0]), 2.0))
    [-1.  1.]
    """
    chex.assert_rank(returns_t, 1)
    return jax.lax.stop_gradient(returns_t - baseline)


def entropy(log_probs: jax.Array) -> jax.Array:
    """Return H = -Σₐ π(a) log π(a) in nats.

    Args:
        log_probs: normalized, float32[…, A]; may hold -inf.

    Returns:
        float32[…].

    >>> print(entropy(jnp.log(jnp.array([0.5, 0.5]))).round(4))
    0.6931
    """
    probs = jnp.exp(log_probs)
    return -jnp.sum(jnp.where(probs > 0.0, probs * log_probs, 0.0), axis=-1)


def divergence(log_probs: jax.Array, other: jax.Array) -> jax.Array:
    """Return KL(π‖π') = Σₐ π(a) (log π(a) - log π'(a)) in nats.

    Args:
        log_probs: of π, normalized, float32[…, A]; may hold -inf.
        other: of π', likewise, finite wherever π is not zero.

    Returns:
        float32[…].

    >>> probs = jnp.array([[0.5, 0.5], [0.25, 0.75]])
    >>> print(f"{divergence(*jnp.log(probs)):.4f}")
    0.1438
    """
    probs = jnp.exp(log_probs)
    return jnp.sum(jnp.where(probs > 0.0, probs * (log_probs - other), 0.0), axis=-1)


def policy_loss(
    log_probs_t: jax.Array,
    a_t: jax.Array,
    adv_t: jax.Array,
    entropy_bonus: chex.Numeric,
) -> jax.Array:
    """Return -meanₜ(log π(aₜ|sₜ) Aₜ) - c·meanₜ H(π(·|sₜ)); its gradient is REINFORCE's, negated.

    Args:
        log_probs_t: log π(·|sₜ), normalized, float32[T, A].
        a_t: actions taken, int32[T].
        adv_t: advantages, float32[T].
        entropy_bonus: c ≥ 0.

    Returns:
        float32[].

    >>> log_probs = jnp.log(jnp.array([[0.5, 0.5]]))
    >>> print(policy_loss(log_probs, jnp.array([0]), jnp.array([2.0]), 0.0).round(4))
    1.3863
    """
    chex.assert_rank([log_probs_t, a_t, adv_t], [2, 1, 1])
    taken_t = jnp.take_along_axis(log_probs_t, a_t[:, None], axis=1)[:, 0]
    return -jnp.mean(taken_t * adv_t + entropy_bonus * entropy(log_probs_t))


def clip_by_norm(gradient: jax.Array, max_norm: chex.Numeric) -> jax.Array:
    """Scale a flat gradient down to `max_norm` where its L2 norm exceeds it.

    Args:
        gradient: float32[P].
        max_norm: largest norm allowed, > 0.

    Returns:
        float32[P].

    >>> print(clip_by_norm(jnp.array([3.0, 4.0]), 1.0))
    [0.6 0.8]
    """
    chex.assert_rank(gradient, 1)
    norm = jnp.sqrt(jnp.sum(jnp.square(gradient)))
    return gradient * (max_norm / jnp.maximum(norm, max_norm))
