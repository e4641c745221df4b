"""The wrappers: around policies, which they were made for, and around any other controller."""

import itertools
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import run_values

import optax_meta
from optax_meta import actions, annealed, calibrated, observations, trust_region
from optax_meta.controllers.wrapping import WRAPPERS, wrapped
from optax_meta.tracking import Statistics

PLAIN = {"share": 0.3, "growing_share": 0.3, "length_power": 0.0}
SPACE = actions.learning_rate((0.5, 1.0, 2.0), bounds=(1e-12, 1e6))


def policy(dense_steps=0, num_decisions=0, **wrappers):
    return optax_meta.init_policy(
        jax.random.key(0),
        encoder=observations.scale_free(),
        action_space=SPACE,
        wrappers={name: wrappers[name] for name in WRAPPERS if name in wrappers},
        dense_steps=dense_steps,
        num_decisions=num_decisions,
    )


def calibrating(steps=8, **options):
    """Moves of 0.3 of the distance, whether it grows or not and however long the run is."""
    return {"calibrated": {"steps": steps, **PLAIN, **options}}


DECAYED = ("learning_rate", "weight_decay")


def distance(state):
    return Statistics.unpack(state.statistics).distance.estimate


def raising(policy):
    """Return a policy that always chooses the largest factor."""
    head = {**policy.params["params"]["head"], "bias": jnp.array([0.0, 0.0, 9.0])}
    return policy._replace(params={"params": {**policy.params["params"], "head": head}})


def fit(policy, factory, steps, total_steps, params, start, scale, unit):
    """Fit a noisy quadratic, see `train`."""
    controller = optax_meta.learned(policy._replace(params=params), total_steps=total_steps)
    tx = optax_meta.control_hyperparams(factory, controller)(learning_rate=start)

    def loss(x, key):
        return unit * jnp.mean((x / scale - 1.0 - jax.random.normal(key, x.shape)) ** 2)

    def step(carry, key):
        x, state = carry
        value, grads = jax.value_and_grad(loss)(x, key)
        updates, state = tx.update(grads, state, x, value=value)
        moved = optax.apply_updates(x, updates)
        share = jnp.sqrt(jnp.mean((moved - x) ** 2)) / distance(state)
        return (moved, state), (optax_meta.record(state), share)

    x = scale * jax.random.normal(jax.random.key(1), (20,))
    keys = jax.random.split(jax.random.key(2), steps)
    (x, _), out = jax.lax.scan(step, (x, tx.init(x)), keys)
    return (*out, x)


PROGRAMS = {}


def train(policy, start, steps=40, scale=1.0, total_steps=None, factory=optax.adam, unit=1.0):
    """Fit a noisy quadratic, parameters in units of `scale` and the loss in units of `unit`.

    Return the records, the root mean square of moves over the distance, and the parameters. What
    differs by numbers alone is compiled once.
    """
    plain = policy._replace(params=None, wrappers=None, encoder=policy.encoder.features)
    key = plain, json.dumps(policy.wrappers), factory, steps, total_steps
    if key not in PROGRAMS:
        PROGRAMS[key] = jax.jit(partial(fit, policy, factory, steps, total_steps))
    return PROGRAMS[key](policy.params, start, scale, unit)


@pytest.mark.parametrize(
    ("factory", "scale"),
    [
        *itertools.product((optax.sgd, optax.adam, optax.lion), (1e-3, 1.0, 1e3)),
        (optax.adam, 1e5),  # moves of the usual rate do not show
    ],
)
def test_calibration_finds_the_rate_whatever_the_optimizer_and_the_units(factory, scale):
    inside = policy(**calibrating(20))
    _, share, _ = train(inside, 1e-3, steps=20, scale=scale, factory=factory)
    # What a unit rate moves is the average of noisy moves, or the last one where that is longer.
    assert 0.15 < np.median(share[-10:]) < 0.33
    assert np.max(share[1:]) < 0.5


@pytest.mark.parametrize(
    ("step", "progress", "shortness"),
    [(100, 0.1, 1.0), (100, 0.025, 0.25), (5, 0.5, 10.0), (100, -1.0, 1.0 / 16.0), (0, 0.0, 0.0)],
)
def test_a_run_of_unknown_length_counts_as_a_long_one(metrics, step, progress, shortness):
    seen = metrics(step=step, progress=progress)
    np.testing.assert_allclose(seen.shortness, shortness, rtol=1e-6)


@pytest.mark.parametrize(("steps", "unit"), [(2, 1.0), (16, 1.0), (4, 1e-6)])
def test_an_optimizer_that_moves_now_and_then_is_calibrated(steps, unit):
    def factory(learning_rate):
        return optax.MultiSteps(optax.adam(learning_rate), steps).gradient_transformation()

    inside = policy(**calibrating(), trust_region={"max_share": 0.5}, dense_steps=20)
    rows, share, _ = train(
        raising(inside), 10.0, factory=factory, total_steps=200, steps=200, unit=unit
    )
    # What an action does shows one move later.
    assert np.max(share) < 1.1
    still = share == 0.0
    assert share[~still][-1] > 0.2
    rate = rows.hyperparams["learning_rate"]
    np.testing.assert_array_equal(np.flatnonzero(~still), np.arange(steps - 1, 200, steps))
    # The bound sees a move one step later, and the window of a decision may hold no other.
    raised = rate[2:] > rate[1:-1] * 1.01
    assert not np.any(raised[:15] & still[1:16])


def test_the_starting_rate_is_forgotten():
    inside = policy(**calibrating(), dense_steps=10)
    runs = [train(inside, start)[0].hyperparams["learning_rate"] for start in (1e-5, 1e-2, 10.0)]
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])


def test_a_start_below_the_probing_rate_is_left_behind():
    low, _, _ = train(policy(**calibrating()), 1e-11)
    high, _, _ = train(policy(**calibrating()), 1.0)
    np.testing.assert_allclose(
        low.hyperparams["learning_rate"][-1], high.hyperparams["learning_rate"][-1], rtol=0.5
    )


@pytest.mark.parametrize("power", [1.0, 1.5])
def test_a_held_rate_falls_to_the_end_and_stays_there(power):
    inside = policy(annealed={"power": power}, num_decisions=20)
    rows, _, _ = train(inside, 0.1, steps=60, total_steps=40)
    expected = 0.1 * (1.0 - np.arange(0, 40, 2) / 40.0) ** power
    np.testing.assert_allclose(rows.hyperparams["learning_rate"][:40:2], expected, rtol=1e-4)
    np.testing.assert_allclose(rows.hyperparams["learning_rate"][40:], expected[-1], rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"annealed": {"power": 1.0}},
        {"annealed": {"power": 1.5}, "trust_region": {"max_share": 0.5}},
        {"trust_region": {}},
        {},
    ],
)
def test_after_the_end_nothing_changes_whatever_the_policy_says(options):
    bold = raising(policy(num_decisions=20, **options))
    rate = train(bold, 1e-6, steps=60, total_steps=40)[0].hyperparams["learning_rate"]
    assert rate[38] > 1e3 * rate[0]
    np.testing.assert_array_equal(rate[40:], rate[39])


@pytest.mark.parametrize("size", [20, 40_000])
def test_parameters_that_all_start_at_zero_count_as_a_tenth(size):
    inside = policy(**calibrating())
    tx = optax_meta.control_hyperparams(optax.adam, optax_meta.learned(inside))(1.0)
    x, moved = jnp.zeros(size), []
    state, update = tx.init(x), jax.jit(tx.update)
    for _ in range(3):
        updates, state = update(jnp.ones(size), state, x, value=1.0)
        x = x + updates
        moved.append(float(jnp.sqrt(jnp.mean(updates**2))))
    # The first distance is a hundredth of a tenth, and a move 0.3 of that.
    np.testing.assert_allclose(distance(state), 1e-3, rtol=1e-4)
    np.testing.assert_allclose(moved[1:], 0.3e-3, rtol=0.01)


def test_without_a_horizon_a_held_rate_stays():
    rows, _, _ = train(policy(annealed={}, num_decisions=20), 0.1)
    np.testing.assert_allclose(rows.hyperparams["learning_rate"], 0.1)


def test_decisions_are_dense_first_and_then_evenly_spaced():
    rows, _, _ = train(policy(dense_steps=5, num_decisions=10), 0.1, steps=40, total_steps=40)
    due = [t < 5 or t % 4 == 0 for t in range(40)]
    np.testing.assert_array_equal(rows.decided, due)


def test_decisions_are_ten_steps_apart_at_most():
    rare = policy(dense_steps=5, num_decisions=2)
    rows, _, _ = train(rare, 0.1, steps=40, total_steps=40)
    due = [t < 5 or t % 10 == 0 for t in range(40)]
    np.testing.assert_array_equal(rows.decided, due)
    assert rare.decision_interval(10**6) == 10
    np.testing.assert_array_equal(rare.decision_interval(jnp.array(10**6)), 10)
    # Also where the run turns out to be that long.
    tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.learned(rare, total_steps=8))(0.1)
    x = jnp.ones(3)
    state = optax_meta.set_horizon(tx.init(x), total_steps=10**6)

    def step(state, _):
        _, state = tx.update(x, state, x, value=1.0)
        return state, optax_meta.record(state).decided

    np.testing.assert_array_equal(jax.lax.scan(step, state, length=40)[1], due)


def test_an_update_is_held_to_a_share_of_the_distance():
    bold = raising(policy(trust_region={"max_share": 0.5}, dense_steps=40))
    _, share, _ = train(bold, 1e-4)
    assert 0.4 < np.max(share) < 1.1  # one step late, at twice the rate
    assert np.max(train(bold._replace(wrappers={}), 1e-4)[1]) > 10.0


@pytest.mark.parametrize("start", [1e-6, 10.0])
def test_a_total_decay_forgets_the_starting_decay(start):
    space = actions.factored(*SPACE.moves, actions.scale("weight_decay", bounds=(1e-12, 1e6)))
    inside = optax_meta.init_policy(
        jax.random.key(0),
        encoder=observations.scale_free(weight_decay=True),
        action_space=space,
        wrappers={"calibrated": {"steps": 6, "total_decay": 0.02}},
        num_decisions=10,
    )
    factory = partial(optax.adamw, weight_decay=start)
    rows, _, _ = train(inside, 0.1, steps=40, total_steps=40, factory=factory)
    rate, decay = (np.asarray(rows.hyperparams[n]) for n in ("learning_rate", "weight_decay"))
    # The horizon shows at the second step; at the first one decay takes 1e-2 at most.
    np.testing.assert_allclose(decay[0], min(start, 1e-2 / rate[0]), rtol=1e-6)
    np.testing.assert_allclose(rate[1:] * decay[1:] * 40.0, 0.02, rtol=1e-4)
    blind, _, _ = train(inside, 0.1, factory=factory)
    np.testing.assert_allclose(blind.hyperparams["weight_decay"], start, rtol=1e-6)
    late, _, _ = train(inside, 0.1, steps=80, total_steps=40, factory=factory)
    np.testing.assert_array_equal(late.hyperparams["weight_decay"][40:], decay[-1])


def test_numbers_of_twice_the_precision_leave_the_state_as_it_is():
    options = {"share": np.float64(0.3), "total_decay": np.float64(1.0)}
    controller = calibrated(optax_meta.constant(hyperparams=DECAYED), **options)
    with jax.enable_x64(True):
        tx = optax_meta.control_hyperparams(optax.adamw, controller)()
        x = jnp.ones(3, jnp.float32)
        state = tx.init(x)
        _, after = tx.update(x, state, x, value=jnp.float32(1.0))
    dtypes = [[leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in (after, state)]
    assert dtypes[0] == dtypes[1]


def test_decay_may_grow_where_examples_are_learned_by_heart():
    """From a tenth of the first loss on, with the third power, up to the share that is allowed."""
    space = actions.joint(*SPACE.moves, actions.scale("weight_decay", bounds=(1e-12, 1e6)))

    def sums(losses, **options):
        inside = optax_meta.init_policy(
            jax.random.key(0),
            encoder=observations.scale_free(weight_decay=True),
            action_space=space,
            wrappers={"calibrated": {**PLAIN, "total_decay": 1e-2, **options}},
        )
        controller = optax_meta.learned(inside, total_steps=40, decision_interval=1)
        tx = optax_meta.control_hyperparams(optax.adamw, controller)(0.1, weight_decay=1.0)

        def step(carry, loss):
            x, state = carry
            updates, state = tx.update(jnp.sign(x - 3.0), state, x, value=loss)
            used = optax_meta.hyperparams(state)
            return (optax.apply_updates(x, updates), state), used

        x = jnp.linspace(0.5, 1.5, 8)
        _, used = jax.jit(lambda c: jax.lax.scan(step, c, losses))((x, tx.init(x)))
        return np.asarray(used["learning_rate"] * used["weight_decay"])[-1] * 40.0

    falling, negative = jnp.float32([8.0] * 20 + [0.4] * 20), jnp.float32([8.0] * 20 + [-0.4] * 20)
    np.testing.assert_allclose(sums(falling), 1e-2, rtol=1e-4)
    np.testing.assert_allclose(sums(falling, largest_decay=5.0), 8e-2, rtol=1e-4)
    np.testing.assert_allclose(sums(negative, largest_decay=5.0), 1e-2, rtol=1e-4)
    learned = sums(jnp.where(falling < 1.0, 1e-3, falling), largest_decay=0.3)
    assert 1e-2 < learned < 10.0  # a thousand times as much would be more than it may be
    with pytest.raises(ValueError, match="`largest_decay` must be"):
        optax_meta.calibrated(optax_meta.constant(), largest_decay=-1.0)


def test_no_more_than_a_tenth_of_a_move_is_decay():
    space = actions.joint(*SPACE.moves, actions.scale("weight_decay", bounds=(1e-12, 1e6)))
    inside = optax_meta.init_policy(
        jax.random.key(0),
        encoder=observations.scale_free(weight_decay=True),
        action_space=space,
        wrappers={"calibrated": {**PLAIN, "total_decay": 1e3}},
    )
    controller = optax_meta.learned(inside, total_steps=40, decision_interval=1)
    tx = optax_meta.control_hyperparams(optax.adamw, controller)(0.1, weight_decay=1.0)

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(jnp.sign(x - 3.0), state, x, value=1.0)
        x = optax.apply_updates(x, updates)
        size = jnp.sqrt(jnp.mean(x**2))
        return (x, state), (optax_meta.hyperparams(state), distance(state), size)

    x = jnp.linspace(0.5, 1.5, 8)
    _, (values, far, size) = jax.lax.scan(step, (x, tx.init(x)), length=40)
    decays = values["learning_rate"] * values["weight_decay"] * size / far
    np.testing.assert_allclose(decays[2:], 0.1 * PLAIN["share"], rtol=0.1)


def test_a_probe_is_small_beside_the_parameters_however_large_the_gradient():
    inside = policy(**calibrating())
    tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.learned(inside))(1.0)
    params = jnp.ones(4)
    updates, _ = tx.update(1e8 * params, tx.init(params), params, value=1.0)
    np.testing.assert_allclose(updates, -1e-2 * params, rtol=1e-4)


def test_a_rate_under_which_no_step_is_finite_is_halved_and_comes_back_slowly():
    inside = policy(**calibrating(), dense_steps=20)
    tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.learned(inside))(1.0)
    params, rates = jnp.ones(4), []
    state, update = tx.init(params), jax.jit(tx.update)
    for value in (1.0, 1.0, 1.0, np.inf, np.inf, 1.0, 1.0):
        updates, state = update(jnp.ones(4), state, params, value=value)
        params = optax.apply_updates(params, updates)
        rates.append(float(optax_meta.hyperparams(state)["learning_rate"] / distance(state)))
    np.testing.assert_allclose(np.divide(rates[3:], rates[2:-1]), [0.5, 0.5, 1.2, 1.2], rtol=0.01)


@pytest.mark.parametrize(("steps", "lost"), [(1, 1.0), (3, 0.5)])
@pytest.mark.parametrize("interval", [None, 1])
def test_a_rate_that_moved_nothing_yet_is_not_judged(interval, steps, lost):
    inside = policy(**calibrating(), trust_region={"max_share": 1.0})
    controller = optax_meta.learned(inside, total_steps=20)
    tx = optax_meta.control_hyperparams(optax.sgd, controller, decision_interval=interval)(1e-4)
    params = jnp.ones(4)
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(params, state, params, value=1.0)
        params = optax.apply_updates(params, updates)
    before = optax_meta.hyperparams(state)["learning_rate"]
    for value, factor in ((1.0, 1.0), (2.0, 1.0), (math.nan, lost)):
        told = optax_meta.decide(controller, state, value=value)
        after = optax_meta.hyperparams(told)["learning_rate"]
        np.testing.assert_allclose(after, factor * before, rtol=1e-5)


def test_first_steps_that_are_not_finite_do_not_pin_the_rate():
    controller = optax_meta.distance(total_steps=1000)  # found within these sixty steps
    tx = optax_meta.control_hyperparams(optax.adam, controller)()

    def fit(is_lost):
        def step(carry, is_lost):
            x, state = carry
            updates, state = tx.update(x - 3.0, state, x, value=jnp.where(is_lost, jnp.nan, 1.0))
            return (optax.apply_updates(x, updates), state), distance(state)

        x = jnp.linspace(-1.0, 1.0, 20)
        return jax.lax.scan(step, (x, tx.init(x)), is_lost)[1]

    at = np.arange(60)
    well, late = fit(at < 0), fit(at < 10)
    np.testing.assert_array_equal(late[:10], late[0])
    np.testing.assert_allclose(late[-1], well[-11], rtol=0.2)
    assert late[-1] > 20.0 * late[0]


def test_a_gradient_that_leaps_is_held_back_in_the_distance_too():
    controller = trust_region(optax_meta.distance(), max_growth=3.0)
    tx = optax_meta.control_hyperparams(optax.adam, controller)()

    def fit(signs):
        def step(carry, sign):
            x, state = carry
            updates, state = tx.update(sign * (x - 3.0), state, x, value=1.0)
            return (optax.apply_updates(x, updates), state), None

        x = jnp.linspace(-1.0, 1.0, 20)
        return distance(jax.lax.scan(step, (x, tx.init(x)), signs)[0][1])

    ordinary = np.ones(60, np.float32)
    leaping = np.where(np.arange(60) == 5, -1e6, ordinary)
    np.testing.assert_allclose(fit(leaping), fit(ordinary), rtol=0.5)


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e-9])
def test_a_decision_from_outside_between_two_updates_raises_nothing(unit):
    controller = optax_meta.learned(policy(**calibrating(), trust_region={"max_share": 0.5}))
    tx = optax_meta.control_hyperparams(partial(optax.adam, eps=1e-30), controller)(1e-3)
    params = jnp.linspace(1.0, 2.0, 4)
    state = tx.init(params)
    for _ in range(12):
        updates, state = tx.update(unit * params, state, params, value=1.0)
        assert jnp.sqrt(jnp.mean(updates**2)) < 0.5 * distance(state)
        params = optax.apply_updates(params, updates)
        state = optax_meta.decide(controller, state, value=1.0)


def test_arguments_may_be_arrays_from_outside_of_a_trace():
    total, seed = jnp.int32(100), np.array(3)

    @jax.jit
    def rate(x):
        controller = optax_meta.learned(policy(), total_steps=total, seed=seed)
        tx = optax_meta.control_hyperparams(optax.sgd, controller)(0.1)
        return optax_meta.hyperparams(tx.update(x, tx.init(x), x, value=1.0)[1])["learning_rate"]

    assert rate(jnp.ones(2)) > 0.0


def test_decisions_from_outside_judge_a_rate_by_its_own_moves():
    inside = raising(policy(**calibrating(), trust_region={"max_share": 1.0}))
    controller = optax_meta.learned(inside, decision_interval=math.inf)
    tx = optax_meta.control_hyperparams(optax.sgd, controller)(1e-4)
    params = jnp.linspace(1.0, 2.0, 4)
    state, shares = tx.init(params), []

    @jax.jit
    def train(params, state):
        for _ in range(3):
            updates, state = tx.update(params - 9.0, state, params, value=1.0)
            params = optax.apply_updates(params, updates)
        share = jnp.sqrt(jnp.mean(updates**2)) / distance(state)
        return params, optax_meta.decide(controller, state, value=1.0), share

    state = optax_meta.decide(controller, state, value=1.0)
    assert optax_meta.hyperparams(state)["learning_rate"] == np.float32(1e-6)
    for _ in range(12):
        params, state, share = train(params, state)
        shares.append(float(share))
    assert max(shares) < 1.1


def test_before_the_length_is_known_a_starting_decay_takes_little():
    policy = optax_meta.load_policy("adamw-lr-wd-v2")
    controller = optax_meta.learned(policy, total_steps=100)
    tx = optax_meta.control_hyperparams(optax.adamw, controller)(1e-3, weight_decay=1e6)
    params = jnp.ones(4)
    updates, _ = tx.update(jnp.zeros(4), tx.init(params), params, value=1.0)
    assert np.all(np.abs(updates) < 0.03)


@pytest.mark.parametrize(("momentum", "expected"), [(0.0, 0.0), (0.9, 0.9)])
def test_persistence_is_the_decay_of_the_momentum_where_gradients_are_noise(momentum, expected):
    def see(metrics, state, hyperparams):
        del state
        return hyperparams, metrics.persistence

    seeing = optax_meta.Controller(lambda _: jnp.float32(0.0), see, needs_alignment=True)
    factory = partial(optax.sgd, momentum=momentum)
    tx = optax_meta.control_hyperparams(factory, seeing, decision_interval=100)(1e-3)

    def step(carry, key):
        params, state = carry
        grads = jax.random.normal(key, (500,))
        updates, state = tx.update(grads, state, params, value=1.0)
        return (optax.apply_updates(params, updates), state), None

    start = jnp.zeros(500), tx.init(jnp.zeros(500))
    keys = jax.random.split(jax.random.key(0), 201)
    (_, state), _ = jax.jit(lambda start: jax.lax.scan(step, start, keys))(start)
    np.testing.assert_allclose(state.controller_state, expected, atol=0.03)


def bounded_rate(metrics, **options):
    """Return the value that a trust region leaves of a rate of 9, where 1 was used so far."""
    asks = optax_meta.Controller(lambda _: (), lambda m, s, h: ({"learning_rate": 9.0}, s))
    region = trust_region(asks, **options)
    rate = {"learning_rate": jnp.float32(1.0)}
    return region.update(metrics, region.init(rate), rate)[0]["learning_rate"]


@pytest.mark.parametrize(
    ("update_rms", "distance", "largest"),
    [
        (0.5, 0.25, 1.0),  # twice the distance at most, and a rate of one moves twice the distance
        (0.5, 0.5, 2.0),
        (4.0, 0.5, 0.25),
        (0.1, 100.0, 9.0),  # not clipped
        (0.5, 0.0, 0.0),
    ],
)
def test_a_move_takes_no_more_than_a_share_of_the_distance(metrics, update_rms, distance, largest):
    seen = metrics(update_rms=update_rms, distance=distance, step=10)
    assert bounded_rate(seen) == largest
    assert bounded_rate(seen, max_share=1.0) == min(largest, 9.0 if largest == 9.0 else largest / 2)


@pytest.mark.parametrize(
    ("num_nonfinite", "update_rms", "step", "expected"),
    [
        (9.0, 0.0, 50, 1.0),  # a single finite step: nothing shows that the rate is too low
        (0.0, 0.0, 50, 9.0),  # ten that moved nothing do
        (0.0, 0.5, 50, 1.0),  # an optimizer that accumulates: it moved before
        (10.0, 0.5, 50, 0.5),  # nothing finite
        (10.0, 0.0, 50, 1.0),  # likewise, but before anything moved
    ],
)
def test_where_no_move_was_seen_a_rate_is_raised_with_care(
    metrics, num_nonfinite, update_rms, step, expected
):
    seen = metrics(
        num_moves=0.0,
        num_steps=10.0,
        num_nonfinite=num_nonfinite,
        update_rms=update_rms,
        distance=1.0,
        step=step,
        grad_norm=1.0,
        param_norm=1.0,
    )
    assert bounded_rate(seen) == expected


@pytest.mark.parametrize(
    ("progress", "step", "raised"),
    [
        (0.5, 1000, True),
        (0.7, 1400, False),  # 2000 steps: no longer than 1000, as far as this goes
        (0.7, 175, True),  # 250 steps: up to 1.2 of the run
        (0.9, 450, False),  # 500 steps: up to 0.85
        (-1.0, 1400, True),
    ],
)
def test_no_raise_late_in_a_run_of_known_length(metrics, progress, step, raised):
    for wanted in (2.0, 0.5):
        asks = optax_meta.Controller(
            lambda _: (), lambda m, s, h, wanted=wanted: ({"learning_rate": wanted}, s)
        )
        falls = annealed(asks, last_raise=0.6, raise_power=0.5)
        rate = {"learning_rate": jnp.float32(1.0)}
        seen = metrics(progress=progress, step=step)
        value = falls.update(seen, falls.init(rate), rate)[0]["learning_rate"]
        left = 1.0 - max(progress, 0.0)
        expected = left * (wanted if raised else min(wanted, 1.0))
        np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_asking_twice_changes_nothing_twice():
    controller = annealed(optax_meta.constant(), total_steps=100)
    tx = optax_meta.control_hyperparams(optax.sgd, controller, decision_interval=10)(1.0)
    state, x = tx.init(jnp.ones(2)), jnp.ones(2)
    update = jax.jit(tx.update)
    for _ in range(10):
        for _ in range(10):
            _, state = update(x, state, x, value=1.0)
        state = optax_meta.decide(controller, state, value=1.0)
        state = optax_meta.decide(controller, state, value=1.0)
    np.testing.assert_allclose(optax_meta.hyperparams(state)["learning_rate"], 0.1, rtol=1e-5)


def test_what_is_set_by_hand_is_gone_on_from():
    def fall(rows, factor):
        np.testing.assert_allclose(rows, factor * (1.0 - np.arange(20) / 20.0), rtol=1e-5)

    for wrap in (lambda c: c, trust_region):
        controller = wrap(annealed(optax_meta.constant(), total_steps=20))
        tx = optax_meta.control_hyperparams(optax.sgd, controller)(1e-3)
        state, x, rates = tx.init(jnp.ones(2)), jnp.ones(2), []
        for t in range(20):
            _, state = tx.update(x, state, x, value=1.0)
            rates.append(float(optax_meta.hyperparams(state)["learning_rate"]))
            if t == 9:
                state = optax_meta.set_hyperparams(state, learning_rate=4.0 * rates[-1])
        fall(np.array(rates) / np.where(np.arange(20) < 10, 1.0, 4.0), 1e-3)


def test_a_rule_that_was_clipped_gets_its_value_back():
    """A plateau rule cannot raise: pinned by one leap it would stay there for good."""
    controller = trust_region(optax_meta.plateau(), max_share=0.5)
    tx = optax_meta.control_hyperparams(optax.sgd, controller)(1e-3)
    grads = jnp.array([1.0] * 10 + [-1e4] + [1.0] * 30)
    rows, _, _ = run_values(tx, jnp.linspace(2.0, 1.0, grads.size), grads)
    rate = np.asarray(rows.hyperparams["learning_rate"])
    assert rate.min() < 1e-5
    np.testing.assert_allclose(rate[[0, 9, -1]], 1e-3, rtol=1e-6)


def test_a_policy_that_was_clipped_goes_on_from_there():
    bold = raising(policy(trust_region={"max_share": 0.5}, dense_steps=40))
    rows, _, _ = train(bold, 1e-3, steps=40)
    own = rows.hyperparams["learning_rate"]
    lowered = bold._replace(params=jax.tree.map(lambda x: -x, bold.params))
    assert own[-1] < 1.0
    state = optax_meta.control_hyperparams(optax.sgd, optax_meta.learned(lowered))(0.5)
    values = state.init(jnp.ones(3)).controller_state.values
    np.testing.assert_array_equal(values, [0.5, 0.5])


def test_wrappers_compose_around_anything():
    controller = trust_region(annealed(optax_meta.hypergradient(), total_steps=40))
    tx = optax_meta.control_hyperparams(optax.sgd, controller)(1e-2)
    rows, _, _ = run_values(tx, [1.0] * 50, grads=[1.0] * 50)
    rate = np.asarray(rows.hyperparams["learning_rate"])
    assert np.all(np.diff(rate[30:40]) < 0.0)
    np.testing.assert_array_equal(rate[40:], rate[39])
    bare = optax_meta.control_hyperparams(optax.sgd, optax_meta.hypergradient())(1e-2)
    own = np.asarray(run_values(bare, [1.0] * 10)[0].hyperparams["learning_rate"])
    np.testing.assert_allclose(rate[:3], own[:3] * (1.0 - np.arange(3) / 40.0), rtol=1e-3)


def test_a_calibrated_rule_needs_no_start():
    controller = calibrated(optax_meta.plateau(factor=0.5, patience=30), **PLAIN)
    tx = optax_meta.control_hyperparams(optax.adam, controller)()
    x = jnp.linspace(1.0, 2.0, 8)
    state = tx.init(x)
    for _ in range(10):
        updates, state = tx.update(x, state, x, value=1.0)
        x = optax.apply_updates(x, updates)
    share = jnp.sqrt(jnp.mean(updates**2)) / distance(state)
    np.testing.assert_allclose(share, 0.3, rtol=0.1)


def test_what_is_not_forgotten_cannot_be_left_out():
    with pytest.raises(TypeError, match="missing a required argument: 'learning_rate'"):
        optax_meta.control_hyperparams(optax.adamw, annealed(optax_meta.plateau()))()


def test_wrappers_around_a_join_see_each_stage():
    stages = optax_meta.join([optax_meta.warmup(4), optax_meta.constant()], [4])
    controller = annealed(stages, total_steps=8)
    tx = optax_meta.control_hyperparams(optax.sgd, controller)(1.0)
    rate = run_values(tx, [1.0] * 8)[0].hyperparams["learning_rate"]
    expected = np.minimum((np.arange(8) + 1) / 4.0, 1.0) * (1.0 - np.arange(8) / 8.0)
    np.testing.assert_allclose(rate, expected, rtol=1e-6)


def test_a_stage_of_a_join_may_be_wrapped():
    last = annealed(optax_meta.constant(), total_steps=4)
    controller = optax_meta.join([optax_meta.warmup(2), last], [2])
    tx = optax_meta.control_hyperparams(optax.sgd, controller)(1.0)
    rate = run_values(tx, [1.0] * 8)[0].hyperparams["learning_rate"]
    np.testing.assert_allclose(rate, [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.25, 0.25], rtol=1e-6)


def test_wrappers_may_be_traced():
    policy = optax_meta.init_policy(jax.random.key(0), action_space=actions.learning_rate())
    task, powers = optax_meta.tasks.quadratic(dim=3), (0.5, 2.0)

    def rates(power):
        options = {"annealed": {"power": power, "last_raise": 0.5}, "trust_region": {}}
        inside = policy._replace(wrappers=options)
        return optax_meta.rollout(inside, task, jax.random.key(1), total_steps=50).learning_rate

    traced = jax.jit(jax.vmap(rates))(jnp.array(powers))
    np.testing.assert_allclose(traced, [rates(power) for power in powers], rtol=1e-6)
    assert traced[0, -1] > traced[1, -1]


@pytest.mark.parametrize(("curvature", "is_settled"), [(1.0, True), (0.0, False)])
def test_the_share_falls_where_moves_are_noise_around_an_optimum(curvature, is_settled):
    controller = optax_meta.distance()
    tx = optax_meta.control_hyperparams(optax.adam, controller)()

    def step(carry, key):
        x, state = carry
        grads = curvature * x + jax.random.normal(key, x.shape) - 1.0
        updates, state = tx.update(grads, state, x)
        return (optax.apply_updates(x, updates), state), jnp.mean((x - 1.0) ** 2)

    x = jnp.zeros(64)
    keys = jax.random.split(jax.random.key(0), 1000)
    (_, state), excess = jax.jit(lambda c: jax.lax.scan(step, c, keys))((x, tx.init(x)))
    ahead = state.controller_state.controller_state.last[2]
    assert ahead < 0.2 if is_settled else ahead == 4.0
    if is_settled:
        assert jnp.mean(excess[-100:]) < 0.5 * jnp.mean(excess[100:200])


@pytest.mark.parametrize("factory", [optax.adam, partial(optax.sgd, momentum=0.9)])
def test_the_share_rises_where_moves_lead_downhill_and_comes_back(factory):
    """A bowl a thousand times as long as wide: gradients agree for long, then they are noise."""
    tx = optax_meta.control_hyperparams(factory, optax_meta.distance())()
    curvature = jnp.logspace(-3.0, 0.0, 16)

    def step(carry, inputs):
        x, state = carry
        is_noise, key = inputs
        grads = jnp.where(is_noise, jax.random.normal(key, x.shape), curvature * (x - 1.0))
        updates, state = tx.update(grads, state, x)
        x = optax.apply_updates(x, updates)
        ahead = state.controller_state.controller_state.last[2]
        return (x, state), (ahead, jnp.sum(curvature * (x - 1.0) ** 2))

    x = jnp.zeros(16)
    inputs = jnp.arange(4000) >= 1000, jax.random.split(jax.random.key(0), 4000)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, inputs))
    _, (ahead, loss) = run((x, tx.init(x)))
    assert jnp.all(ahead[:60] == 1.0)
    assert 1.0 < jnp.max(ahead) <= 4.0
    assert loss[999] < 1e-3 * loss[0]
    assert ahead[-1] <= 1.0


def moves_over_distance(factory, steps=200, controller=None):
    """Return the last moves' root mean square over the distance, under noise alone."""
    tx = optax_meta.control_hyperparams(factory, controller or optax_meta.distance())()

    def step(carry, key):
        x, state = carry
        grads = jax.random.normal(key, x.shape)
        updates, state = tx.update(grads, state, x)
        return (optax.apply_updates(x, updates), state), jnp.mean(jnp.square(updates))

    x = jnp.ones(512)
    keys = jax.random.split(jax.random.key(0), steps)
    (_, state), squares = jax.jit(lambda c: jax.lax.scan(step, c, keys))((x, tx.init(x)))
    squares = squares[-20:]
    return jnp.sqrt(jnp.sum(squares) / jnp.sum(squares > 0.0)) / distance(state)


def accumulating(learning_rate):
    every = optax.MultiSteps(optax.sgd(learning_rate, momentum=0.9), 4)
    return every.gradient_transformation()


def test_moves_that_do_not_add_up_are_longer_and_those_that_do_shorter():
    usual = 0.4 * (1 / 16) ** 0.25
    momentum = moves_over_distance(partial(optax.sgd, momentum=0.9))
    np.testing.assert_allclose(momentum, usual, rtol=0.1)
    # Without momentum each move is all that its gradient does.
    np.testing.assert_allclose(moves_over_distance(optax.sgd), 3.0 * usual, rtol=0.2)
    np.testing.assert_allclose(moves_over_distance(accumulating, steps=600), usual, rtol=0.2)
    heavy = moves_over_distance(partial(optax.sgd, momentum=0.98), steps=600)
    np.testing.assert_allclose(heavy, usual * 5.0 / (1.98 / 0.02) ** 0.5, rtol=0.25)


def test_a_stage_that_begins_late_counts_what_was_come_before_once():
    """Two stages of one rule are that rule, whose moves stand for all that were before."""
    late = optax_meta.join([optax_meta.distance(), optax_meta.distance()], [300])
    share = moves_over_distance(partial(optax.sgd, momentum=0.9), steps=500, controller=late)
    np.testing.assert_allclose(share, 0.4 * (1 / 16) ** 0.25, rtol=0.15)


def test_before_sixty_moves_nobody_knows_how_they_add_up():
    early = moves_over_distance(optax.sgd, steps=60)
    np.testing.assert_allclose(early, 0.4 * (1 / 16) ** 0.25, rtol=0.1)


def test_stages_are_calibrated_at_each_of_the_first_steps():
    ten = optax_meta.reinforce(wrappers={}, action_space=SPACE, start="uniform")
    stages = optax_meta.join([ten, optax_meta.constant()], [500])
    controller = calibrated(stages, steps=8)
    assert [controller.next_due(t) for t in (-1, 0, 6, 7, 10, 499)] == [0, 1, 7, 10, 20, 500]
    tx = optax_meta.control_hyperparams(optax.adam, controller)()
    _, state, _ = run_values(tx, [1.0] * 9)
    assert optax_meta.hyperparams(state)["learning_rate"] > 1e-3


def test_bounds_are_no_hand():
    """A value that the bounds lift is not one that somebody set."""
    controller = trust_region(optax_meta.plateau(min_value=0.08), max_share=0.5)
    tx = optax_meta.control_hyperparams(optax.sgd, controller)(0.1)
    grads = jnp.array([1e-2] * 5 + [1e3] + [1e-2] * 30)
    rows, _, _ = run_values(tx, jnp.linspace(2.0, 1.0, grads.size), grads)
    rate = np.asarray(rows.hyperparams["learning_rate"])
    assert rate.min() == pytest.approx(0.08)
    assert rate[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("is_level", [True, False])
def test_a_level_comes_back_after_it_was_clipped(is_level):
    """A factor that was clipped is gone: what moves its value goes on from what was left."""
    move = optax_meta.actions.level if is_level else optax_meta.actions.scale
    space = optax_meta.actions.joint(move("learning_rate", (1.0, 4.0)))
    policy = optax_meta.init_policy(jax.random.key(0), action_space=space, hidden_sizes=())
    head = policy.params["params"]["head"]
    # A level of 4 all the time, or a factor of 1.
    bias = jnp.array([0.0, 9.0]) if is_level else jnp.array([9.0, 0.0])
    policy = policy._replace(params={"params": {"head": {**head, "bias": bias}}})
    inside = optax_meta.learned(policy, decision_interval=1)
    tx = optax_meta.control_hyperparams(optax.sgd, trust_region(inside, max_share=0.5))
    grads = jnp.array([1e-2] * 5 + [3.0] + [1e-2] * 10)
    rows, _, _ = run_values(tx(0.1 if is_level else 0.4), jnp.ones(grads.size), grads)
    rate = np.asarray(rows.hyperparams["learning_rate"])
    assert rate[5] == pytest.approx(0.4)
    assert rate[6] < 0.2
    assert (rate[-1] == pytest.approx(0.4)) == is_level


def test_a_level_set_by_hand_scales_and_stays():
    space = optax_meta.actions.levels((0.5, 1.0, 2.0))
    controller = optax_meta.reinforce(
        action_space=space,
        decision_interval=1,
        explore_from=0.0,
        wrappers={"trust_region": {"max_share": 1e6}},
    )
    tx = optax_meta.control_hyperparams(optax.sgd, controller)(1e-3)
    x, seen = jnp.float32(0.0), []
    state, update = tx.init(x), jax.jit(partial(tx.update, value=1.0))
    for step in range(30):
        moved, state = update(jnp.float32(1.0), state, x)
        x += moved
        rate = optax_meta.hyperparams(state)["learning_rate"]
        level = (0.5, 1.0, 2.0)[int(optax_meta.record(state).decision.action)]
        seen.append(level)
        np.testing.assert_allclose(rate, level * (1e-3 if step < 10 else 3e-3), rtol=1e-4)
        if step == 9:
            state = optax_meta.set_hyperparams(state, learning_rate=3.0 * rate)
    assert len(set(seen[10:])) > 1


def test_a_stage_knows_the_length_of_what_is_left(metrics):
    observed = []

    def see(metrics, state, hyperparams):
        observed.append((float(metrics.shortness), float(metrics.progress)))
        return hyperparams, state

    stages = [optax_meta.warmup(5), optax_meta.Controller(lambda _: (), see)]
    joined = annealed(optax_meta.join(stages, [5]), total_steps=1005)
    rate = {"learning_rate": jnp.float32(1.0)}
    state = joined.init(rate)
    for step in (5, 105, 505, 1005):
        joined.update(metrics(step=step, progress=step / 1005), state, rate)
    np.testing.assert_allclose(
        observed, [(0.0, 0.0), (1.0, 0.1), (1.0, 0.5), (1.0, 1.0)], rtol=1e-3
    )


@pytest.mark.parametrize("start", [-1e-3, 1e-3])
def test_values_below_zero_are_clipped_alike(start):
    def factory(learning_rate):
        return optax.scale(learning_rate)

    controller = trust_region(optax_meta.constant(), max_share=1.0)
    tx = optax_meta.control_hyperparams(factory, controller)(start)
    leap = float(np.sign(start)) * 100.0  # away from where the others lead: the distance stays
    rows, _, _ = run_values(tx, [1.0] * 20, [1.0] * 6 + [leap] + [1.0] * 13)
    rate = np.asarray(rows.hyperparams["learning_rate"]) / start
    np.testing.assert_allclose(rate[:6], 1.0, rtol=1e-6)
    assert 0.0 < np.min(rate) < 0.5


@pytest.mark.parametrize("factor", [0.25, 2.0])
@pytest.mark.parametrize("incremental", [(), ("learning_rate",)])
def test_what_is_set_by_hand_scales_a_calibrated_rate_from_there(factor, incremental):
    held = optax_meta.Controller(lambda _: (), lambda m, s, h: (h, s), incremental=incremental)
    rule = calibrated(held, **PLAIN)
    inside = annealed(rule, total_steps=40)
    tx = optax_meta.control_hyperparams(optax.sgd, trust_region(inside, max_share=1.0))()

    def run(set_at):
        x, rates = jnp.ones(4), []
        state, update = tx.init(x), jax.jit(tx.update)
        for t in range(20):
            if t == set_at:
                rate = optax_meta.hyperparams(state)["learning_rate"]
                state = optax_meta.set_hyperparams(state, learning_rate=factor * rate)
            updates, state = update(jnp.ones(4), state, x, value=1.0)
            x = optax.apply_updates(x, updates)
            rates.append(float(optax_meta.hyperparams(state)["learning_rate"] / distance(state)))
        return np.array(rates)

    rates, left = run(None), 1.0 - np.arange(20) / 40.0
    np.testing.assert_allclose(rates[5:], 0.3 * left[5:], rtol=0.01)
    np.testing.assert_allclose(run(10)[10:], factor * rates[10:], rtol=0.02)


def test_stages_of_a_join_may_each_be_calibrated():
    """Each finds the rate anew; where the first leaves off the second begins with a probe."""
    stages = [calibrated(optax_meta.plateau(), **PLAIN) for _ in range(2)]
    tx = optax_meta.control_hyperparams(optax.adam, optax_meta.join(stages, [10]))()
    x, shares = jnp.linspace(1.0, 2.0, 8), []
    state, update = tx.init(x), jax.jit(tx.update)
    for _ in range(20):
        updates, state = update(x - 9.0, state, x, value=1.0)
        x = optax.apply_updates(x, updates)
        shares.append(float(jnp.sqrt(jnp.mean(updates**2)) / distance(state)))
    np.testing.assert_allclose(np.delete(shares, [0, 1, 10, 11]), 0.3, rtol=0.1)


@pytest.mark.parametrize("wrap", [calibrated, trust_region])
def test_parameters_that_never_move_are_raised_for_no_further_than_is_usual(metrics, wrap):
    """An optimizer that accumulates gradients for long would else make a move of any length."""
    rate = {"learning_rate": jnp.float32(1e-6)}
    asks = optax_meta.Controller(lambda _: (), lambda m, s, h: ({"learning_rate": 1.0}, s))
    controller = wrap(asks)
    state, rates = controller.init(rate), []
    for step in range(6, 12):
        still = metrics(step=step, grad_norm=1e12, param_norm=1.0, num_moves=0.0, distance=0.01)
        rate, state = controller.update(still, state, rate)
        rates.append(float(rate["learning_rate"]))
    np.testing.assert_allclose(rates, [1e-5, 1e-4, 1e-3, 1e-3, 1e-3, 1e-3], rtol=1e-5)


def test_what_was_zero_is_gone_on_from_as_well():
    controller = annealed(
        optax_meta.constant(hyperparams=["weight_decay"]), total_steps=10, hyperparam="weight_decay"
    )
    tx = optax_meta.control_hyperparams(optax.adamw, controller)(1e-3, weight_decay=0.0)
    x = jnp.ones(2)
    state = tx.init(x)
    for _ in range(5):
        _, state = tx.update(x, state, x, value=1.0)
    state = optax_meta.set_hyperparams(state, weight_decay=0.3)
    _, state = tx.update(x, state, x, value=1.0)
    expected = 0.3 / 0.6 * 0.5  # set at the fifth step's factor, used at the sixth's
    np.testing.assert_allclose(optax_meta.hyperparams(state)["weight_decay"], expected, rtol=1e-6)


def test_a_state_of_the_same_shapes_from_another_order_is_refused():
    first, second = (
        annealed(trust_region(optax_meta.plateau()), total_steps=9),
        trust_region(annealed(optax_meta.plateau(), total_steps=9)),
    )
    txs = [optax_meta.control_hyperparams(optax.sgd, c)(0.1) for c in (first, second)]
    x = jnp.ones(2)
    with pytest.raises(ValueError, match="that of another controller"):
        optax_meta.decide(second, txs[0].init(x), value=1.0)


def test_after_the_end_nothing_is_calibrated():
    inside = raising(policy(**calibrating(), num_decisions=5))
    rows, _, _ = train(inside, 1e-3, steps=6, total_steps=2)
    rate = np.asarray(rows.hyperparams["learning_rate"])
    np.testing.assert_array_equal(rate[2:], rate[1])


def test_a_rate_stays_within_the_span_of_the_calibrated_one():
    asks = raising(policy(**calibrating(span=4.0), dense_steps=30))
    share = train(asks, 1e-3, steps=30)[1]
    assert 0.6 < np.median(share[-10:]) < 1.3  # 4 · 0.3
    free = train(raising(policy(**calibrating(), dense_steps=30)), 1e-3, steps=30)[1]
    assert free[-1] > 100.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: annealed(c, power=-1.0), "`power` must be a number ≥ 0, got -1.0"),
        (lambda c: annealed(c, power=math.nan), "`power` must be a number ≥ 0, got nan"),
        (lambda c: annealed(c, total_steps=2.5), "`total_steps` must be a whole number ≥ 1"),
        (lambda c: annealed(annealed(c, total_steps=3), total_steps=4), "pass it once"),
        (lambda c: annealed(optax_meta.plateau), "must go around a Controller such as"),
        (lambda c: annealed(c, hyperparam="b1"), "`hyperparam=` out of learning_rate"),
        (lambda c: calibrated(c, steps=0), "`steps` must be a whole number ≥ 1, got 0"),
        (lambda c: calibrated(optax_meta.constant(hyperparams=["b1"])), "acts on `learning_rate`"),
        (lambda c: trust_region(c, max_share="5%"), "`max_share` must be a number ≥ 0, got '5%'"),
        (lambda c: trust_region(c, max_growth=0.5), "`max_growth` must be a number ≥ 1, got 0.5"),
        (lambda c: calibrated(calibrated(c)), "is not calibrated yet: use it once"),
        (lambda c: calibrated(c, span=0.5), "`span` must be a number ≥ 1, got 0.5"),
        (lambda c: wrapped(c, ["annealed"]), "`wrappers` must be arguments by name"),
        (lambda c: wrapped(c, {"annealed": 2.0}), "`wrappers` must be arguments by name"),
        (lambda c: wrapped(c, {"annealed": {"total_steps": 3}}), "no argument `total_steps`"),
        (lambda c: wrapped(c, {"anneal": {}}), "unknown wrapper 'anneal': choose from calibrated"),
        (lambda c: wrapped(c, {"annealed": {"fall": 1}}), "has no argument `fall`: choose from"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make(optax_meta.plateau())
