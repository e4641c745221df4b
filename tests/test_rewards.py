import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_metrics
from hypothesis import given
from hypothesis import strategies as st

from optax_meta import rewards

ANY = st.floats(width=32, allow_subnormal=False)
ALL = [rewards.improvement, rewards.log_improvement, rewards.relative_improvement]


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


def test_bad_floor():
    with pytest.raises(ValueError, match="`floor` must be positive and finite"):
        rewards.log_improvement(floor=0.0)
