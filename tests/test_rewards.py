import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_metrics
from hypothesis import given
from hypothesis import strategies as st

from optax_meta import rewards

ANY = st.floats(width=32, allow_subnormal=False)
ALL = [
    rewards.improvement,
    rewards.log_improvement,
    rewards.relative_improvement,
    rewards.trend,
]


def test_improvement_by_hand(metrics):
    reward = rewards.improvement()(metrics(value=2.0, cost=0.5), metrics(value=1.5, cost=0.4))
    np.testing.assert_allclose(reward, 0.5 + 0.1 * 0.1, rtol=1e-6)


def test_cost_weight(metrics):
    reward = rewards.improvement(cost_weight=2.0)(metrics(cost=1.0), metrics(cost=0.75))
    np.testing.assert_allclose(reward, 0.5)


def test_log_improvement_telescopes(metrics):
    reward = rewards.log_improvement(bound=10.0)
    losses = [8.0, 4.0, 5.0, 1.0]
    steps = [reward(metrics(value=a), metrics(value=b)) for a, b in itertools.pairwise(losses)]
    np.testing.assert_allclose(sum(steps), np.log(8.0), rtol=1e-6)


def test_relative_improvement_of_negative_losses(metrics):
    reward = rewards.relative_improvement()(metrics(value=-1.0), metrics(value=-3.0))
    np.testing.assert_allclose(reward, 1.0)


@pytest.mark.parametrize("make", ALL)
def test_non_finite_step_gives_the_worst_reward(make, metrics):
    reward = make(bound=0.5)(metrics(value=9.0), metrics(value=1.0, num_nonfinite=1.0))
    assert reward == -0.5


@pytest.mark.parametrize("make", ALL)
@given(before=ANY, after=ANY)
def test_bounded_and_finite_for_any_losses(make, before, after):
    reward = make(bound=2.0)(make_metrics(value=before), make_metrics(value=after))
    assert jnp.isfinite(reward)
    assert abs(reward) <= 2.0


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("bound", [0.0, -1.0, np.inf, np.nan])
def test_bad_bound(make, bound):
    with pytest.raises(ValueError, match="`bound` must be positive and finite"):
        make(bound=bound)


@pytest.mark.parametrize("weight", [np.inf, np.nan])
def test_bad_cost_weight(weight):
    with pytest.raises(ValueError, match="`cost_weight` must be finite"):
        rewards.improvement(cost_weight=weight)


def test_trend_counts_standard_errors(metrics):
    # A mean of 8 steps is off by 0.2·√(2/8) = 0.1.
    after = metrics(value=-2.2, value_change=0.2, num_steps=8.0)
    np.testing.assert_allclose(rewards.trend()(metrics(value=-2.0), after), 2.0, rtol=1e-5)
    np.testing.assert_allclose(rewards.trend()(metrics(value=-2.45), after), -2.5, rtol=1e-5)
    np.testing.assert_allclose(rewards.trend(bound=1.5)(metrics(value=-2.0), after), 1.5)


@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_trend_takes_out_what_shorter_moves_gain(factor, metrics):
    before = metrics(value=1.0, update_rms=0.1)
    noise, gain = 0.2, 0.3
    # As annealing does: κδ for each nat by which the moves are shorter.
    value = 1.0 + gain * noise * np.log(factor)
    after = metrics(value=value, value_change=noise, num_steps=8.0, update_rms=0.1 * factor)
    reward = rewards.trend(annealing_gain=gain)
    np.testing.assert_allclose(reward(before, after), 0.0, atol=1e-5)
    expected = 0.0 if factor == 1.0 else -np.sign(np.log(factor))
    assert np.sign(rewards.trend(annealing_gain=0.0)(before, after)) == expected


def test_trend_of_a_loss_that_stands_still(metrics):
    assert rewards.trend()(metrics(value=1.0), metrics(value=1.0)) == 0.0


@pytest.mark.parametrize("gain", [-0.1, np.inf, np.nan])
def test_bad_annealing_gain(gain):
    with pytest.raises(ValueError, match="`annealing_gain` must be ≥ 0 and finite"):
        rewards.trend(annealing_gain=gain)


def test_bad_floor():
    with pytest.raises(ValueError, match="`floor` must be positive and finite"):
        rewards.log_improvement(floor=0.0)
