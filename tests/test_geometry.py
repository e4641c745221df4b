"""The distance and what else samples tell: by hand, in any units, of whatever moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optax_meta
from optax_meta.geometry import FIRST_DISTANCE, MAX_GROWTH, SIZE_OF_ZEROS, Samples, compare
from optax_meta.measuring import global_norm
from optax_meta.sampling import roots, sample, sizes
from optax_meta.tracking import Distance, Statistics

GRADS = np.float32([[3.0, -4.0], [3.0, -3.0], [2.0, -1.0], [-1.0, -1.0]])
WAYS = np.float32([[0, 0], [-21, 20], [-41, 31], [-31, 61]]) / np.float32(1024.0)
POSITIONS = np.float32([1.0, 2.0]) + WAYS


@jax.jit
def follow(grads, positions, scales=None, least_norm=0.0):
    """Return what is seen at each of some steps, and the distance after it."""
    scales = np.ones(len(positions[0]), np.float32) if scales is None else scales
    start = positions[0]
    samples, earlier, distance, out = Samples(start, start, start, 0.0 * start), start, None, []
    distance = Distance.unknown()
    for grad, now in zip(grads, positions, strict=True):
        before, earlier = samples.now, samples.before
        samples = samples._replace(now=now, before=before)
        seen, slopes, distance = compare(
            grad, samples, earlier, scales, distance, jnp.float32(least_norm)
        )
        samples = samples._replace(slopes=slopes)
        out.append((seen, distance.estimate))
    return out


def test_distance_by_its_formula():
    """Each gradient weighs by the distance known before it, each sum of slopes up to the last."""
    first = FIRST_DISTANCE * np.sqrt((9.0 * 1.0 + 16.0 * 4.0) / 25.0)
    expected, gained, slopes = [first], 0.0, first * GRADS[0]
    for grad, position in zip(GRADS[1:], POSITIONS[1:], strict=True):
        gained += expected[-1] * np.dot(grad, POSITIONS[0] - position)
        expected.append(max(expected[-1], gained / np.sum(np.abs(slopes))))
        slopes = slopes + expected[-1] * grad
    np.testing.assert_allclose([d for _, d in follow(GRADS, POSITIONS)], expected, rtol=1e-5)
    assert expected[0] < expected[1] < expected[2] == expected[3]


def test_in_a_step_a_distance_grows_by_no_more_than_three_tenths():
    positions = POSITIONS[0] + np.float32(64.0) * WAYS
    distances = np.array([d for _, d in follow(GRADS, positions)])
    np.testing.assert_allclose(distances[1:3] / distances[:2], MAX_GROWTH, rtol=1e-5)


def test_a_move_by_hand():
    seen, _ = follow(GRADS, POSITIONS)[2]
    move, last, way = WAYS[2] - WAYS[1], WAYS[1], WAYS[2]
    downhill = -GRADS[2]

    def cosine(a, b):
        return np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)

    np.testing.assert_allclose(seen.alignment, cosine(downhill, move), rtol=1e-6)
    np.testing.assert_allclose(seen.persistence, cosine(move, last), rtol=1e-6)
    np.testing.assert_allclose(seen.start_alignment, cosine(downhill, way), rtol=1e-6)
    np.testing.assert_allclose(seen.update_norm, np.linalg.norm(move), rtol=1e-6)
    np.testing.assert_allclose(seen.update_rms, np.sqrt(np.mean(move**2)), rtol=1e-6)
    np.testing.assert_allclose(seen.displacement, np.sqrt(np.mean(way**2)), rtol=1e-6)
    np.testing.assert_allclose(seen.param_norm, np.linalg.norm(POSITIONS[2]), rtol=1e-6)


@given(st.integers(-40, 40), st.integers(-40, 40))
def test_no_units_in_what_has_none(grad_power, param_power):
    """Powers of two, up to 1e±12, are exact: so is what follows from them."""
    grad_unit, unit = np.float32(2.0) ** grad_power, np.float32(2.0) ** param_power
    told = follow(GRADS * grad_unit, POSITIONS * unit)
    for (seen, distance), (as_is, known) in zip(told, follow(GRADS, POSITIONS), strict=True):
        np.testing.assert_allclose(distance, unit * known, rtol=1e-5)
        lengths = ("update_norm", "param_norm", "update_rms", "displacement")
        units = {name: unit if name in lengths else 1.0 for name in seen._fields}
        for name, length in units.items():
            expected = length * getattr(as_is, name)
            np.testing.assert_allclose(getattr(seen, name), expected, rtol=1e-5, atol=1e-6 * length)


NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 0.3, 1e-40, -1e-30, 1e15, -1e15, 1e30, -3e38])


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), min_size=4, max_size=4))
def test_a_distance_never_falls_and_stays_finite(rows):
    rows = np.float32(rows)
    distances = np.array([d for _, d in follow(rows[:, :2], rows[:, 2:])])
    assert np.all(np.isfinite(distances))
    assert np.all(np.diff(distances) >= 0.0)


@pytest.mark.parametrize("still", [0.0, 100.0])
def test_what_never_moves_is_no_measure(still):
    """Neither without a gradient, as rows that no batch uses, nor with one, as what is frozen."""
    grads = np.concatenate([GRADS, [[still] * 3] * 4], axis=1).astype(np.float32)
    positions = np.concatenate([POSITIONS, [[7.0] * 3] * 4], axis=1).astype(np.float32)
    (seen, _), (alone, _) = follow(grads, positions)[-1], follow(GRADS, POSITIONS)[-1]
    for name, expected in alone._asdict().items():
        np.testing.assert_allclose(getattr(seen, name), expected, rtol=1e-5, err_msg=name)


def test_slopes_that_cancel_tell_no_distance():
    """A gradient of 1, -1 and 1 again, each at a place where the last move went downhill."""
    grads, positions = np.float32([[1], [-1], [1]]), np.float32([[3.0], [3.035], [2.97]])
    distances = [float(d) for _, d in follow(grads, positions)]
    np.testing.assert_allclose(distances, [0.03, 0.035, 0.035], rtol=1e-4)


def test_unused_rows_leave_the_distance_alone():
    grads = np.concatenate([GRADS, np.zeros((4, 3))], axis=1).astype(np.float32)
    positions = np.concatenate([POSITIONS, [[7.0] * 3] * 4], axis=1).astype(np.float32)
    more, alone = (
        [d for _, d in follow(g, p)] for g, p in ((grads, positions), (GRADS, POSITIONS))
    )
    np.testing.assert_allclose(more, alone, rtol=1e-5)


def test_where_all_start_at_zero_the_first_distance_is_that_of_a_tenth():
    positions = POSITIONS - POSITIONS[0]
    (_, distance), *_ = follow(GRADS, positions, least_norm=1.0)
    np.testing.assert_allclose(distance, FIRST_DISTANCE * SIZE_OF_ZEROS, rtol=1e-6)


def test_a_scaled_sample_tells_what_the_whole_tells():
    """Coordinates that stand for four each count four times, in the L1 norm as well."""
    whole = np.repeat(GRADS, 4, axis=1), np.repeat(POSITIONS, 4, axis=1)
    scales = np.full(2, 2.0, np.float32)
    thin = follow.__wrapped__(GRADS * scales, POSITIONS * scales, scales)
    for (seen, distance), (expected, known) in zip(thin, follow(*whole), strict=True):
        np.testing.assert_allclose(distance, known, rtol=1e-5)
        np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [10, 100, 10_000])
def test_roots_are_what_a_sample_is_scaled_by(size):
    ones = {
        "w": jnp.ones((37, 41)),
        "empty": jnp.zeros((0, 3)),
        "half": jnp.ones(77, jnp.bfloat16),
        "steps": jnp.ones(5, jnp.int32),
        "scalar": 1.0,
    }
    scales = roots(ones, size)
    np.testing.assert_array_equal(scales, sample(ones, size))
    np.testing.assert_allclose(np.sum(scales**2), 37 * 41 + 77 + 1, rtol=1e-5)
    assert sum(sizes(ones, size)) == scales.size


def test_roots_of_complex_numbers_cover_both_parts():
    tree = {"z": jnp.ones((30, 40), jnp.complex64)}
    scales = roots(tree, 100)
    assert scales.shape == sample(tree, 100).shape
    np.testing.assert_allclose(np.sum(scales**2), 2 * 1200, rtol=1e-5)
    sampled = sample({"z": jnp.full((30, 40), 3.0 + 4.0j)}, 100)
    np.testing.assert_allclose(np.linalg.norm(sampled), 5.0 * np.sqrt(1200), rtol=1e-5)
    np.testing.assert_allclose(global_norm(tree), np.sqrt(1200), rtol=1e-5)


FACTORIES = {
    "sgd": optax.sgd,
    "momentum": lambda learning_rate: optax.sgd(learning_rate, momentum=0.9),
    "adam": optax.adam,
    "lion": lambda learning_rate: optax.lion(learning_rate, weight_decay=0.0),
}


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", FACTORIES)
def test_the_distance_rule_reaches_the_optimum_from_any_rate(name, unit):
    """A quadratic whose curvatures differ tenfold, parameters in any unit."""
    steps = 300
    controller = optax_meta.distance(total_steps=steps)
    tx = optax_meta.control_hyperparams(FACTORIES[name], controller)
    curvature, optimum = jnp.linspace(0.1, 1.0, 20), unit * jnp.linspace(-3.0, 3.0, 20)

    def fit(rate):
        def step(carry, _):
            x, state = carry
            updates, state = tx(rate).update(curvature * (x - optimum) / unit, state, x)
            return (optax.apply_updates(x, updates), state), None

        x = unit * jnp.cos(jnp.arange(20.0))
        (x, _), _ = jax.lax.scan(step, (x, tx(rate).init(x)), length=steps)
        return x

    ends = np.asarray(jax.jit(jax.vmap(fit))(jnp.array([1e-5, 1e-2, 10.0])))
    assert np.max(np.abs(ends - np.asarray(optimum))) < 0.1 * unit
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[0], ends[2])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_distance_is_found_in_any_precision(dtype):
    tx = optax_meta.control_hyperparams(optax.adam, optax_meta.distance(total_steps=200))()

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(x - 3.0, state, x)
        return (optax.apply_updates(x, updates), state), None

    x = jnp.linspace(-1.0, 1.0, 64).astype(dtype)
    (x, state), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=200))((x, tx.init(x)))
    assert x.dtype == dtype
    np.testing.assert_allclose(x.astype(jnp.float32), 3.0, atol=0.2)
    assert 0.1 < Statistics.unpack(state.statistics).distance.estimate < 5.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": -1.0}, "`share` must be a number ≥ 0, got -1.0"),
        ({"growing_share": np.nan}, "`growing_share` must be a number ≥ 0, got nan"),
        ({"power": -1.0}, "`power` must be a number ≥ 0, got -1.0"),
        ({"total_steps": 0}, "`total_steps` must be a whole number ≥ 1, got 0"),
    ],
)
def test_bad_arguments_of_the_distance_rule(options, message):
    with pytest.raises(ValueError, match=message):
        optax_meta.distance(**options)
