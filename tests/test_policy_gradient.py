import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_meta import policy_gradient as pg


def test_returns_by_hand():
    # G₂ = 4, G₁ = -2 + 0.9·4 = 1.6, G₀ = 1 + 0.9·1.6 = 2.44
    returns = pg.discounted_returns(jnp.array([1.0, -2.0, 4.0]), 0.9)
    np.testing.assert_allclose(returns, [2.44, 1.6, 4.0], rtol=1e-6)


@pytest.mark.parametrize(("discount", "expected"), [(0.0, [1, 2, 3]), (1.0, [6, 5, 3])])
def test_returns_without_and_with_full_memory(discount, expected):
    returns = pg.discounted_returns(jnp.array([1.0, 2.0, 3.0]), discount)
    np.testing.assert_allclose(returns, expected)


def test_baseline_by_hand():
    # 0.9·2 + 0.1·mean(4, 6) = 2.3
    baseline = pg.moving_average_baseline(jnp.array(2.0), jnp.array([4.0, 6.0]), 0.9)
    np.testing.assert_allclose(baseline, 2.3, rtol=1e-6)


def test_advantages_let_no_gradient_through():
    gradient = jax.grad(lambda g: pg.advantages(g, 1.0).sum())(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(gradient, 0.0)


def test_entropy_by_hand():
    np.testing.assert_allclose(pg.entropy(jnp.log(jnp.full(4, 0.25))), np.log(4), rtol=1e-6)
    probs = np.array([0.7, 0.2, 0.1])
    expected = -np.sum(probs * np.log(probs))
    np.testing.assert_allclose(pg.entropy(jnp.log(jnp.asarray(probs))), expected, rtol=1e-6)


def test_entropy_of_a_sure_choice_is_zero():
    assert pg.entropy(jnp.array([0.0, -jnp.inf])) == 0.0


def test_divergence_by_hand():
    probs, other = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]]), np.array([0.2, 0.3, 0.5])
    expected = [np.sum(probs[0] * np.log(probs[0] / other)), -np.log(0.2)]
    both = jnp.log(jnp.asarray(np.tile(other, (2, 1)), jnp.float32))
    got = pg.divergence(jnp.log(jnp.asarray(probs, jnp.float32)), both)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    same = jnp.log(jnp.asarray(probs[0], jnp.float32))
    np.testing.assert_allclose(pg.divergence(same, same), 0.0, atol=1e-7)


def test_the_gradient_of_the_divergence_ends_where_both_agree():
    other = jax.nn.log_softmax(jnp.array([0.3, -1.0, 2.0]))

    def away(logits):
        return pg.divergence(jax.nn.log_softmax(logits), other)

    np.testing.assert_allclose(jax.grad(away)(other), 0.0, atol=1e-6)
    assert jax.grad(away)(other + jnp.array([1.0, 0.0, 0.0]))[0] > 0.01


def test_policy_loss_by_hand():
    probs = np.array([[0.5, 0.5], [0.25, 0.75]])
    # -(ln 0.5·2 + ln 0.75·(-1))/2 - 0.1·(H₀ + H₁)/2
    entropies = -(probs * np.log(probs)).sum(axis=1)
    expected = -(np.log(0.5) * 2 - np.log(0.75)) / 2 - 0.1 * entropies.mean()
    loss = pg.policy_loss(
        jnp.log(jnp.asarray(probs, jnp.float32)), jnp.array([0, 1]), jnp.array([2.0, -1.0]), 0.1
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize(("norm", "expected"), [(1.0, [0.6, 0.8]), (10.0, [3.0, 4.0])])
def test_clip_by_norm(norm, expected):
    np.testing.assert_allclose(pg.clip_by_norm(jnp.array([3.0, 4.0]), norm), expected, rtol=1e-6)


def test_clip_by_norm_keeps_zero():
    np.testing.assert_array_equal(pg.clip_by_norm(jnp.zeros(3), 1.0), 0.0)


def test_gradient_equals_exact_enumeration():
    """Two steps, three actions, rewards that depend on both: E[REINFORCE] = ∇ E[return]."""
    rewards = jax.random.normal(jax.random.key(0), (2, 3, 3))
    logits = jax.random.normal(jax.random.key(1), (2, 3))
    discount, baseline = 0.9, 0.3

    def episode(actions):
        first, second = actions
        return jnp.stack([rewards[0, first, 0], rewards[1, first, second]])

    def log_prob(logits, actions):
        log_probs = jax.nn.log_softmax(logits)
        return log_probs[0, actions[0]] + log_probs[1, actions[1]]

    trajectories = list(itertools.product(range(3), repeat=2))

    def expected_return(logits):
        return sum(
            jnp.exp(log_prob(logits, a)) * (episode(a)[0] + discount * episode(a)[1])
            for a in trajectories
        )

    def estimate(actions):
        returns = pg.discounted_returns(episode(actions), discount)
        # Policy loss averages over time and lets step 1 count without its discount γ¹.
        weights = 2.0 * discount ** jnp.arange(2.0)
        adv = weights * pg.advantages(returns, baseline)

        def loss(x):
            return pg.policy_loss(jax.nn.log_softmax(x), jnp.array(actions), adv, 0.0)

        return -jax.grad(loss)(logits)

    mean = sum(jnp.exp(log_prob(logits, a)) * estimate(a) for a in trajectories)
    np.testing.assert_allclose(mean, jax.grad(expected_return)(logits), atol=1e-5)
