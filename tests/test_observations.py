import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optax_meta import observations

ANY = st.one_of(
    st.floats(width=32, allow_subnormal=False),
    st.sampled_from([np.inf, -np.inf, np.nan, 0.0, 1e30, 1e-30, -1e30]),
)
START = {"learning_rate": jnp.float32(1e-3), "weight_decay": jnp.float32(1e-4)}


def test_eight_features_by_their_formulas(metrics):
    encoder = observations.classic()
    seen = metrics(value=1.0, grad_norm=10.0, cost=0.5, step=250, progress=0.25)
    observation, _ = encoder.update(seen, encoder.init(), START)
    expected = {
        "loss": np.log(2) / (1 + np.log(2)),
        "learning_rate": 0.0,
        "grad_norm": np.tanh(1 / 3),
        "weight_decay": 0.0,
        "cost": np.log(1.5) / (1 + np.log(1.5)),
        "loss_trend": 0.0,
        "grad_norm_trend": 0.0,
        "progress": -0.5,
    }
    assert encoder.features == tuple(expected)
    np.testing.assert_allclose(observation, list(expected.values()), atol=1e-6)


@given(st.lists(st.tuples(ANY, ANY, ANY, ANY, ANY), min_size=1, max_size=4))
def test_bounded_and_finite_for_any_input(history):
    encoder = observations.classic(history=3)
    state = encoder.init()
    update = jax.jit(encoder.update)
    for value, cost, norm, rate, progress in history:
        observed, state = update(
            _metrics(value, cost, norm, progress),
            state,
            {"learning_rate": jnp.float32(rate), "weight_decay": jnp.float32(rate)},
        )
        assert np.all(np.isfinite(observed))
        assert np.all(np.abs(observed) <= 1.0)


def _metrics(value, cost, norm, progress):
    from conftest import make_metrics

    return make_metrics(value=value, cost=cost, grad_norm=norm, progress=progress)


@pytest.mark.parametrize(("values", "sign"), [([4, 3, 2, 1], -1), ([1, 2, 3, 4], 1), ([2] * 4, 0)])
def test_trends_have_the_sign_of_the_slope(metrics, values, sign):
    encoder = observations.classic(history=4)
    state = encoder.init()
    for value in values:
        observed, state = encoder.update(metrics(value=value, grad_norm=value), state, START)
    assert np.sign(observed[5]) == np.sign(observed[6]) == sign


def test_trend_looks_back_no_further_than_the_history(metrics):
    encoder = observations.classic(history=2)
    state = encoder.init()
    for value in [100.0, 1.0, 1.0]:
        observed, state = encoder.update(metrics(value=value), state, START)
    assert observed[5] == 0.0


@given(st.floats(1e-20, 1e20))
def test_trends_do_not_depend_on_the_scale(scale):
    history = jnp.array([1.0, 2.0, 4.0, 3.0])
    np.testing.assert_allclose(
        observations.trend(history * scale, jnp.array(4.0)),
        observations.trend(history, jnp.array(4.0)),
        rtol=1e-5,
    )


def test_progress_without_a_horizon_still_grows(metrics):
    shares = [observations.progress(metrics(step=step)) for step in (0, 10, 1000, 10**8)]
    np.testing.assert_allclose(shares, [-1.0, -0.980198, 0.0, 1.0], atol=1e-4)


def test_short_history_is_refused():
    with pytest.raises(ValueError, match="`history` must be a whole number ≥ 2, got 1"):
        observations.classic(history=1)


@pytest.mark.parametrize("transform", [lambda v: 1e3 * v, lambda v: v + 7.0, lambda v: 1e-3 * v])
def test_scale_free_features_do_not_see_units_of_the_loss(metrics, transform):
    encoder = observations.scale_free()
    factor = transform(1.0) - transform(0.0)
    seen = []
    for told, unit in ((lambda v: v, 1.0), (transform, factor)):
        state, rows = encoder.init(), []
        for t, value in enumerate([3.0, 2.5, 2.75, 1.5, 1.25, 2.0]):
            measured = metrics(
                value=told(value),
                value_change=0.5 * unit,
                grad_norm=(1.0 + t) * unit,
                update_norm=0.01,
                param_norm=2.0,
                alignment=0.3,
                step=10 * t,
                num_steps=10,
            )
            row, state = encoder.update(measured, state, {"learning_rate": jnp.float32(0.1)})
            rows.append(row)
        seen.append(np.stack(rows))
    np.testing.assert_allclose(seen[0], seen[1], atol=2e-3)
    assert np.unique(seen[0].round(3), axis=0).shape[0] == 6


def test_a_slow_fall_is_seen_whatever_came_before(metrics):
    """A first drop a thousand times larger must not hide that the loss still falls."""
    encoder = observations.scale_free()
    update = jax.jit(encoder.update)

    def watch(slope):
        state = encoder.init()
        for t in range(500):
            value = 1000.0 if t == 0 else 2.0 - slope * t
            told = metrics(value=value, value_change=0.1, num_steps=50, step=50 * t)
            row, state = update(told, state, {"learning_rate": jnp.float32(0.1)})
        return dict(zip(encoder.features, np.asarray(row), strict=True))

    falling, flat, rising = watch(0.01), watch(0.0), watch(-0.01)
    names = ("steady_drop", "long_drop")
    assert all(falling[n] > flat[n] + 0.4 and flat[n] > rising[n] + 0.2 for n in names)
    assert abs(falling["relative_drop"] - flat["relative_drop"]) < 0.1
    assert rising["rise"] > 0.7
    assert falling["rise"] < 0.1


@pytest.mark.parametrize("decay", [False, True])
def test_scale_free_features_are_bounded_for_any_input(metrics, decay):
    encoder = observations.scale_free(weight_decay=decay)
    steered = {"learning_rate": jnp.float32(1e-12), "weight_decay": jnp.float32(0.0)}
    bad = [0.0, 1e38, -1e38, 1e-40, np.inf, np.nan]
    state = encoder.init()
    for value in bad:
        for norm in bad:
            told = metrics(value=value, grad_norm=norm, update_norm=norm, value_change=value)
            row, state = encoder.update(told, state, steered)
            assert np.all(np.abs(row) <= 1.0)
