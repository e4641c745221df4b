"""Losses and gradients that leap: what counts as one, what is done about it, and what it saves."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import spikes as benchmark

import optax_meta
from optax_meta import recording, snapshots, spikes
from optax_meta.reports import page
from optax_meta.reports.rows import leaps, method_result

LEAPS_AT = 40
SOUND, STEPS = np.random.default_rng(0), 2000


@jax.jit
def watched(values, norms):
    """Return which steps leap."""

    def step(known, seen):
        return spikes.watch(known, *seen, spikes.limits(known))

    return jax.lax.scan(step, spikes.Spikes.none(), (jnp.float32(values), jnp.float32(norms)))[1]


NORMS = SOUND.lognormal(0.0, 0.5, STEPS)
NOISE = SOUND.normal(size=STEPS)


@pytest.mark.parametrize(
    ("values", "norms", "most"),
    [
        (2.0 + 0.1 * NOISE, NORMS, 0),
        (-5.0 + 3.0 * NOISE, np.exp(2.0 * NOISE), 0),  # as a reward's
        (10.0 * np.exp(-np.arange(STEPS) / 100), np.exp(-np.arange(STEPS) / 100), 0),  # full batch
        (1.0 / (1.0 + np.arange(STEPS)), 1e-6 * np.exp(np.minimum(np.arange(STEPS), 300) / 20), 0),
        (2.0 + 0.1 * NOISE, np.abs(SOUND.standard_t(2, STEPS)), 0),  # no variance
        (np.exp(1.5 * NOISE), NORMS, 0.01 * STEPS),
        (SOUND.pareto(1.5, STEPS), NORMS, 0.02 * STEPS),  # neither
        (np.zeros(STEPS), NORMS, 0),  # no loss passed
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_sound_runs_do_not_leap(values, norms, most, scale):
    assert watched(scale * values, scale * norms).sum() <= most


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_leaps_are_found_one_after_the_other(scale):
    at = np.arange(100, STEPS, 200)
    values, norms = 2.0 + 0.1 * NOISE, NORMS.copy()
    values[at[::2]] *= 3.0
    norms[at[1::2]] *= 100.0
    np.testing.assert_array_equal(np.flatnonzero(watched(scale * values, scale * norms)), at)


def test_new_data_are_soon_usual_and_no_step_is_without_a_limit():
    values = np.where(np.arange(STEPS) < 1000, 0.1, 2.3) * (1.0 + 0.1 * NOISE)
    found = np.flatnonzero(watched(values, NORMS))
    assert found[0] == 1000
    assert found[-1] < 1000 + 2 * spikes.PATIENCE
    norms = np.where(np.arange(STEPS) < 1000, 1.0, 1e12) * NORMS
    last = np.flatnonzero(watched(values, norms))[-1]
    assert 1000 + 2 * spikes.PATIENCE < last < 1100


def test_steps_that_are_not_finite_tell_nothing():
    known = spikes.Spikes.none()._replace(num_usual=jnp.float32(30), value=jnp.float32(1.0))
    for value, norm in ((jnp.nan, 1.0), (1.0, jnp.inf)):
        new, is_leap = spikes.watch(known, value, norm, spikes.limits(known))
        assert not is_leap
        chex.assert_trees_all_equal(new, known._replace(streak=jnp.float32(1.0)))


@functools.cache
def trainer(on_spike, momentum=0.9):
    factory = functools.partial(optax.sgd, momentum=momentum)
    controller = optax_meta.constant()
    tx = optax_meta.control_hyperparams(factory, controller, on_spike=on_spike)(1e-2)

    @jax.jit
    def train(grads, values):
        def step(carry, seen):
            params, state = carry
            updates, state = tx.update({"w": seen[0]}, state, params, value=seen[1])
            params = optax.apply_updates(params, updates)
            return (params, state), (params["w"], optax_meta.record(state))

        params = {"w": jnp.zeros(3)}
        return jax.lax.scan(step, (params, tx.init(params)), (grads, values))

    return train


def usual(length=60):
    chance = np.random.default_rng(1)
    return chance.normal(size=(length, 3)) + 1.0, 2.0 + 0.1 * chance.normal(size=length)


def leapt(factor=1e4, number=1, length=60):
    grads, values = usual(length)
    grads[LEAPS_AT : LEAPS_AT + number] *= factor
    return grads, values


def test_a_leap_is_counted_whatever_is_done_and_nothing_else_by_default():
    for on_spike in ("record", "clip", "skip", "roll_back"):
        rows = trainer(on_spike)(*leapt())[1][1]
        np.testing.assert_array_equal(rows.num_spikes, np.arange(60) >= LEAPS_AT)
        assert recording.flatten(rows)[-1]["num_spikes"] == 1
    plain = optax.sgd(1e-2, momentum=0.9)
    params, state = jnp.zeros(3), plain.init(jnp.zeros(3))
    for grad in jnp.float32(leapt()[0]):
        updates, state = plain.update(grad, state)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(trainer("record")(*leapt())[1][0][-1], params, rtol=1e-5)


def test_clipping_holds_a_leap_to_what_was_usual():
    sound = trainer("clip")(*usual())[1][0]
    clipped = trainer("clip")(*leapt())[1][0]
    np.testing.assert_array_equal(clipped[:LEAPS_AT], sound[:LEAPS_AT])
    assert np.abs(clipped - sound).max() < 5.0 < np.abs(trainer("record")(*leapt())[1][0]).max()


def test_a_skipped_step_has_a_gradient_of_zero_and_enters_no_average():
    skipped, rows = trainer("skip")(*leapt())[1]
    grads, values = usual()
    grads[LEAPS_AT] = 0.0
    np.testing.assert_allclose(skipped, trainer("record")(grads, values)[1][0], rtol=1e-5)
    grads, values = usual()
    values[LEAPS_AT] = 1e6
    _, (_, rows) = trainer("skip")(grads, values)
    assert rows.value[LEAPS_AT] == 1e6
    assert rows.num_spikes[-1] == 1
    assert rows.num_nonfinite[-1] == 0


@pytest.mark.parametrize("fault", ["leap", "nan"])
def test_three_in_a_row_lead_back_to_the_snapshot(fault):
    length = snapshots.EVERY + 40
    grads, values = usual(length)
    start = snapshots.EVERY + 10
    values[start : start + snapshots.RETURN_AFTER] = np.nan if fault == "nan" else 50.0
    last = start + snapshots.RETURN_AFTER - 1
    path = trainer("roll_back")(grads, values)[1][0]
    # Before the step of the snapshot, which is after the one before.
    np.testing.assert_allclose(path[last], path[snapshots.EVERY - 1], rtol=1e-5, atol=1e-7)
    again = grads.copy()
    again[snapshots.EVERY : last + 1] = 0.0
    # The momentum is that of the snapshot, too: the next move goes on from there.
    moved = path[last + 1] - path[last]
    before = path[snapshots.EVERY - 1] - path[snapshots.EVERY - 2]
    np.testing.assert_allclose(moved, 0.9 * before - 1e-2 * grads[last + 1], rtol=1e-3, atol=1e-5)


def test_two_in_a_row_do_not():
    grads, values = usual(100)
    values[70:72] = 50.0
    skipped, back = (trainer(name)(grads, values)[1][0] for name in ("skip", "roll_back"))
    np.testing.assert_allclose(skipped, back, rtol=1e-5)


def test_errors():
    make = functools.partial(optax_meta.control_hyperparams, optax.sgd, optax_meta.constant())
    with pytest.raises(ValueError, match="`on_spike` must be one of 'record', 'clip', 'skip', 'r"):
        make(on_spike="ignore")
    x = jnp.ones(2)
    tx = make(on_spike="roll_back")(0.1)
    with pytest.raises(ValueError, match="rolling back needs the parameters"):
        tx.update(x, tx.init(x))
    for other, state in ((make()(0.1), tx.init(x)), (tx, make()(0.1).init(x))):
        with pytest.raises(ValueError, match="`state` is that of another controller"):
            other.update(x, state, x)


def test_the_page_tells_which_steps_leapt():
    rows = recording.flatten(trainer("record")(*leapt())[1][1])
    result = method_result(rows, {})
    assert leaps(result) == [LEAPS_AT + 1]
    html = page.run_page("mine", {"mine.jsonl": result})
    assert f"a loss or a gradient leapt: {LEAPS_AT + 1}." in html
    assert f'"leaps":[{LEAPS_AT + 1}]' in html.replace(" ", "")


@pytest.mark.parametrize(
    ("name", "on_spike"),
    [
        ("any-lr-v2, AdamW", "record"),
        ("any-lr-v2, AdamW", "skip"),
        ("any-lr-v2, momentum", "roll_back"),
        ("adamw-lr-wd-v2", "clip"),
    ],
)
def test_a_shipped_policy_ends_where_it_would_have(name, on_spike):
    steps = 120
    fault = benchmark.faults(steps, times=["middle"], patterns=["once"])
    made = benchmark.method(name, on_spike)
    found = benchmark.runs(made, steps, fault, np.arange(2))
    ratios = benchmark.ratios(found)
    assert np.mean(ratios) < benchmark.CLOSE
    assert np.max(ratios) < 1.1
    assert not np.any(found["spikes"][0])  # no false alarm
