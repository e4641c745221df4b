import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_meta
from optax_meta import actions, observations

SPACE = actions.learning_rate((0.5, 1.0, 2.0), bounds=(1e-12, 1e6))


def policy(**options):
    return optax_meta.init_policy(
        jax.random.key(0),
        encoder=observations.scale_free(),
        action_space=SPACE,
        guide=Guide(**options),
    )


def raising(policy):
    """Return a policy that always chooses the largest factor."""
    head = {**policy.params["params"]["head"], "bias": jnp.array([0.0, 0.0, 9.0])}
    return policy._replace(params={"params": {**policy.params["params"], "head": head}})


def train(policy, start, steps=40, scale=1.0, total_steps=None, factory=optax.adam, unit=1.0):
    """Fit a noisy quadratic, parameters in units of `scale` and the loss in units of `unit`.

    Return the records, the norms of moves over those of parameters, and the parameters.
    """
    tx = optax_meta.control_hyperparams(
        factory, optax_meta.learned(policy, total_steps=total_steps)
    )(learning_rate=start)

    def loss(x, key):
        return unit * jnp.mean((x / scale - 1.0 - jax.random.normal(key, x.shape)) ** 2)

    def step(carry, key):
        x, state = carry
        value, grads = jax.value_and_grad(loss)(x, key)
        updates, state = tx.update(grads, state, x, value=value)
        moved = optax.apply_updates(x, updates)
        ratio = jnp.linalg.norm(moved - x) / jnp.linalg.norm(x)
        return (moved, state), (optax_meta.record(state), ratio)

    x = scale * jax.random.normal(jax.random.key(1), (20,))
    keys = jax.random.split(jax.random.key(2), steps)
    (x, _), out = jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), keys))(x)
    return (*out, x)


@pytest.mark.parametrize(
    ("factory", "scale"),
    [
        *itertools.product((optax.sgd, optax.adam, optax.lion), (1e-3, 1.0, 1e3)),
        (optax.adam, 1e5),  # moves of the usual rate do not show
    ],
)
def test_calibration_finds_the_rate_whatever_the_optimizer_and_the_units(factory, scale):
    guided = policy(calibration_steps=8, target_ratio=1e-2)
    _, ratio, _ = train(guided, 1e-3, steps=8, scale=scale, factory=factory)
    assert 1e-2 / 3 < ratio[-1] < 3e-2
    assert np.max(ratio[1:]) < 0.05


@pytest.mark.parametrize(("steps", "unit"), [(2, 1.0), (16, 1.0), (4, 1e-6)])
def test_an_optimizer_that_moves_now_and_then_is_calibrated(steps, unit):
    def factory(learning_rate):
        return optax.MultiSteps(optax.adam(learning_rate), steps).gradient_transformation()

    guided = policy(calibration_steps=8, target_ratio=1e-2, max_ratio=0.05, dense_steps=20)
    rows, ratio, _ = train(
        raising(guided), 10.0, factory=factory, total_steps=200, steps=200, unit=unit
    )
    # What an action does shows one move later.
    assert np.max(ratio) < 0.11, np.max(ratio)
    still = ratio == 0.0
    assert ratio[~still][-1] > 1e-3
    rate = rows.hyperparams["learning_rate"]
    np.testing.assert_array_equal(np.flatnonzero(~still), np.arange(steps - 1, 200, steps))
    # The bound sees a move one step later, and the window of a decision may hold no other.
    raised = rate[2:] > rate[1:-1] * 1.01
    assert not np.any(raised[:15] & still[1:16])


def test_the_starting_rate_is_forgotten():
    guided = policy(calibration_steps=8, target_ratio=1e-2, dense_steps=10)
    runs = [train(guided, start)[0].hyperparams["learning_rate"] for start in (1e-5, 1e-2, 10.0)]
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])


def test_a_start_below_the_probing_rate_is_left_behind():
    low, _, _ = train(policy(calibration_steps=8), 1e-11)
    high, _, _ = train(policy(calibration_steps=8), 1.0)
    np.testing.assert_allclose(
        low.hyperparams["learning_rate"][-1], high.hyperparams["learning_rate"][-1], rtol=0.5
    )


@pytest.mark.parametrize("power", [1.0, 1.5])
def test_a_held_rate_falls_to_the_end_and_stays_there(power):
    guided = policy(fall=power, num_decisions=20)
    rows, _, _ = train(guided, 0.1, steps=60, total_steps=40)
    expected = 0.1 * (1.0 - np.arange(0, 40, 2) / 40.0) ** power
    np.testing.assert_allclose(rows.hyperparams["learning_rate"][:40:2], expected, rtol=1e-4)
    np.testing.assert_allclose(rows.hyperparams["learning_rate"][40:], expected[-1], rtol=1e-4)


@pytest.mark.parametrize("options", [{"fall": 1.0}, {"fall": 1.5, "max_ratio": 1e-2}, {}])
def test_after_the_end_nothing_changes_whatever_the_policy_says(options):
    bold = raising(policy(num_decisions=20, **options))
    rate = train(bold, 1e-6, steps=60, total_steps=40)[0].hyperparams["learning_rate"]
    assert rate[38] > 1e3 * rate[0]
    np.testing.assert_array_equal(rate[40:], rate[39])


@pytest.mark.parametrize("size", [20, 40_000])
def test_parameters_that_all_start_at_zero_count_as_a_tenth(size):
    guided = policy(calibration_steps=8, target_ratio=1e-2)
    tx = optax_meta.control_hyperparams(optax.adam, optax_meta.learned(guided))(1.0)
    x, moved = jnp.zeros(size), []
    state, update = tx.init(x), jax.jit(tx.update)
    for _ in range(12):
        updates, state = update(jnp.ones(size), state, x, value=1.0)
        x = x + updates
        moved.append(float(jnp.sqrt(jnp.mean(updates**2))))
    assert 5e-4 < moved[-1] < 2e-3
    assert max(moved) < 2e-3


def test_without_a_horizon_a_held_rate_stays():
    rows, _, _ = train(policy(fall=1.0, num_decisions=20), 0.1)
    np.testing.assert_allclose(rows.hyperparams["learning_rate"], 0.1)


def test_decisions_are_dense_first_and_then_evenly_spaced():
    rows, _, _ = train(policy(dense_steps=5, num_decisions=10), 0.1, steps=40, total_steps=40)
    due = [t < 5 or t % 4 == 0 for t in range(40)]
    np.testing.assert_array_equal(rows.decided, due)


def test_an_update_is_held_to_a_share_of_the_parameters():
    bold = policy(max_ratio=0.05, dense_steps=40)
    up = jnp.array([-9.0, -9.0, 9.0])  # always double
    head = {**bold.params["params"]["head"], "bias": up}
    bold = bold._replace(params={"params": {**bold.params["params"], "head": head}})
    _, ratio, _ = train(bold, 1e-4)
    assert 0.02 < np.max(ratio) < 0.11  # one step late, at twice the rate
    unbound = bold._replace(guide=Guide(dense_steps=40))
    assert np.max(train(unbound, 1e-4)[1]) > 1.0


def test_the_share_that_an_update_may_move_grows_as_the_run_gets_shorter(metrics):
    guide = Guide(max_ratio=0.03, ratio_power=0.5)
    rate = {"learning_rate": jnp.float32(1.0)}
    told = partial(metrics, update_norm=0.5, param_norm=1.0, num_steps=1, step=10)
    wanted = {"learning_rate": jnp.float32(9.0)}
    cases = (-1.0, 0.06), (0.01, 0.06), (0.04, 0.12), (0.0025, 0.03), (0.5, 0.06 * math.sqrt(10))
    with jax.debug_nans(True):
        for progress, largest in cases:
            held = guide.bound(told(progress=progress), rate, rate, wanted)["learning_rate"]
            np.testing.assert_allclose(held, largest, rtol=1e-5)
    calibrated = guide._replace(calibration_steps=8, target_ratio=1e-2)
    held = calibrated.bound(told(progress=1e-6), rate, rate, wanted)["learning_rate"]
    np.testing.assert_allclose(held, 0.02, rtol=1e-5)


def test_a_guide_leaves_other_hyperparameters_alone():
    space = actions.joint(actions.scale("b1", (0.9, 1.0), bounds=(0.1, 0.99)))
    guided = optax_meta.init_policy(
        jax.random.key(0), action_space=space, guide=Guide(calibration_steps=8, max_ratio=0.1)
    )
    tx = optax_meta.control_hyperparams(optax.adam, optax_meta.learned(guided))(0.1, b1=0.8)
    params = jnp.ones(3)
    _, state = tx.update(params, tx.init(params), params, value=1.0)
    np.testing.assert_allclose(optax_meta.hyperparams(state)["b1"], 0.8)


@pytest.mark.parametrize("start", [1e-6, 10.0])
def test_a_total_decay_forgets_the_starting_decay(start):
    space = actions.factored(*SPACE.moves, actions.scale("weight_decay", bounds=(1e-12, 1e6)))
    guided = optax_meta.init_policy(
        jax.random.key(0),
        encoder=observations.scale_free(weight_decay=True),
        action_space=space,
        guide=Guide(dense_steps=6, num_decisions=10, total_decay=2.0),
    )
    factory = partial(optax.adamw, weight_decay=start)
    rows, _, _ = train(guided, 0.1, steps=40, total_steps=40, factory=factory)
    decay = np.asarray(rows.hyperparams["weight_decay"])
    # The horizon shows at the second step; at the first one decay takes 1e-3 at most.
    np.testing.assert_allclose(decay[0], min(start, 1e-2), rtol=1e-6)
    np.testing.assert_allclose(0.1 * decay[1:] * 40.0, 2.0, rtol=1e-4)
    blind, _, _ = train(guided, 0.1, factory=factory)
    np.testing.assert_allclose(blind.hyperparams["weight_decay"], start, rtol=1e-6)


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


def test_exploding_gradients_are_held_to_a_multiple_of_the_recent_norm():
    controller = optax_meta.constant(guards_nonfinite=True)._replace(max_growth=3.0)
    tx = optax_meta.control_hyperparams(optax.sgd, controller, decision_interval=4)(1.0)
    params = jnp.zeros(2)
    state, moves = tx.init(params), []
    for scale in (1.0, 1.0, 1e6, 1e6, 1.0, np.inf, 1e6):
        updates, state = tx.update(scale * jnp.array([0.6, 0.8]), state, params, value=1.0)
        moves.append(float(-jnp.linalg.norm(updates)))
    # Three times the mean that the last decision saw: 1 at step 0, (1 + 3 + 3 + 1)/4 at step 4.
    held = [1.0, 1.0, 3.0, 3.0, 1.0, 0.0, 6.0]
    np.testing.assert_allclose(-np.array(moves), held, rtol=1e-5)


def test_a_probe_is_small_beside_the_parameters_however_large_the_gradient():
    guided = policy(calibration_steps=8, target_ratio=1e-2)
    tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.learned(guided))(1.0)
    params = jnp.ones(4)
    updates, _ = tx.update(1e8 * params, tx.init(params), params, value=1.0)
    np.testing.assert_allclose(updates, -1e-2 * params, rtol=1e-4)


def test_calibration_lowers_the_rate_where_no_step_was_finite():
    guided = policy(calibration_steps=8)
    tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.learned(guided))(1.0)
    params, rates = jnp.ones(4), []
    state = tx.init(params)
    for value in (1.0, np.inf, np.inf, np.inf):
        _, state = tx.update(params, state, params, value=value)
        rates.append(float(optax_meta.hyperparams(state)["learning_rate"]))
    np.testing.assert_allclose(np.divide(rates[1:], rates[:-1]), 0.1, rtol=1e-4)


@pytest.mark.parametrize(
    ("interval", "steps", "lost"), [(None, 1, 0.5), (None, 3, 0.5), (math.inf, 1, 0.1)]
)
def test_a_rate_that_moved_nothing_yet_is_not_judged(interval, steps, lost):
    guided = policy(calibration_steps=8, max_ratio=0.03, fall=1.0)
    controller = optax_meta.learned(guided, total_steps=20)
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


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e-9])
def test_a_decision_from_outside_between_two_updates_raises_nothing(unit):
    controller = optax_meta.learned(policy(calibration_steps=8, target_ratio=1e-2, max_ratio=0.05))
    tx = optax_meta.control_hyperparams(partial(optax.adam, eps=1e-30), controller)(1e-3)
    params = jnp.linspace(1.0, 2.0, 4)
    state = tx.init(params)
    for _ in range(12):
        updates, state = tx.update(unit * params, state, params, value=1.0)
        assert jnp.linalg.norm(updates) < 0.02 * jnp.linalg.norm(params)
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


def test_steps_that_are_not_finite_open_no_bound(metrics):
    guide = Guide(max_ratio=0.05)
    rate, raised = ({"learning_rate": jnp.float32(x)} for x in (1.0, 2.0))
    for num_nonfinite, expected in ((9.0, 1.0), (0.0, 2.0)):
        seen = metrics(num_moves=0.0, num_steps=10.0, num_nonfinite=num_nonfinite, update_norm=0.0)
        assert guide.bound(seen, rate, rate, raised)["learning_rate"] == expected


def test_decisions_from_outside_judge_a_rate_by_its_own_moves():
    guided = raising(policy(calibration_steps=50, target_ratio=1e-2, max_ratio=0.03))
    controller = optax_meta.learned(guided, decision_interval=math.inf)
    tx = optax_meta.control_hyperparams(optax.sgd, controller)(1e-4)
    params = jnp.linspace(1.0, 2.0, 4)
    state, ratios = tx.init(params), []

    @jax.jit
    def train(params, state):
        for _ in range(3):
            updates, state = tx.update(params, state, params, value=jnp.sum(params**2))
            params = optax.apply_updates(params, updates)
            ratio = jnp.linalg.norm(updates) / jnp.linalg.norm(params)
        return params, optax_meta.decide(controller, state, value=1.0), ratio

    # Nothing is calibrated, not even before the first step.
    state = optax_meta.decide(controller, state, value=1.0)
    assert optax_meta.hyperparams(state)["learning_rate"] == np.float32(1e-4)
    for _ in range(12):
        params, state, ratio = train(params, state)
        ratios.append(float(ratio))
    np.testing.assert_allclose(ratios[:8], 1e-4 * 2.0 ** np.arange(8), rtol=0.03)
    assert 0.02 < max(ratios) < 0.031


def test_before_the_length_is_known_a_starting_decay_takes_little():
    policy = optax_meta.load_policy("adamw-lr-wd-v1")
    controller = optax_meta.learned(policy, total_steps=100)
    tx = optax_meta.control_hyperparams(optax.adamw, controller)(1e-3, weight_decay=1e6)
    params = jnp.ones(4)
    updates, _ = tx.update(jnp.zeros(4), tx.init(params), params, value=1.0)
    assert np.all(np.abs(updates) < 0.03)


@pytest.mark.parametrize(
    ("progress", "step", "expected"),
    [
        (0.5, 1000, 2.0),
        (0.7, 1400, 0.9),  # 2000 steps: no longer than 1000, as far as this goes
        (0.7, 175, 2.0),  # 250 steps: up to 1.2 of the run
        (0.9, 450, 0.9),  # 500 steps: up to 0.85
        (-1.0, 1400, 2.0),
    ],
)
def test_no_raise_late_in_a_run_of_known_length(metrics, progress, step, expected):
    guide = Guide(last_raise=0.6, raise_power=0.5)
    rate, lead, raised, lowered = ({"learning_rate": jnp.float32(x)} for x in (1.0, 0.9, 2.0, 0.5))
    seen = metrics(progress=progress, step=step)
    assert guide.bound(seen, rate, lead, raised)["learning_rate"] == np.float32(expected)
    assert guide.bound(seen, rate, lead, lowered)["learning_rate"] == np.float32(0.5)


def test_guides_may_be_traced():
    policy = optax_meta.init_policy(jax.random.key(0), action_space=actions.learning_rate())
    task, falls = optax_meta.tasks.quadratic(dim=3), (0.5, 2.0)

    def rates(fall):
        guided = policy._replace(guide=Guide(fall=fall, last_raise=0.5, max_ratio=0.1))
        return optax_meta.rollout(guided, task, jax.random.key(1), total_steps=50).learning_rate

    traced = jax.jit(jax.vmap(rates))(jnp.array(falls))
    np.testing.assert_allclose(traced, [rates(fall) for fall in falls], rtol=1e-6)
    assert traced[0, -1] > traced[1, -1]


def test_moves_that_momentum_alone_carries_on_are_held_shorter(metrics):
    guide = Guide(max_ratio=0.05, persistence_power=0.5)
    told = partial(metrics, update_norm=0.1, param_norm=1.0, step=10)
    rate = {"learning_rate": jnp.float32(1.0)}

    def largest(**seen):
        wanted = {"learning_rate": jnp.float32(10.0)}
        return float(guide.bound(told(**seen), rate, rate, wanted)["learning_rate"])

    assert largest() == pytest.approx(0.5)
    assert largest(persistence=0.8) == pytest.approx(0.5 / 3.0)
    assert largest(persistence=-0.5) == pytest.approx(0.5)
    assert largest(persistence=0.8, alignment=0.8) == pytest.approx(0.5)
    assert largest(persistence=0.8, alignment=-0.5) == pytest.approx(0.5 / 3.0)
    assert largest(persistence=1.0) == pytest.approx(0.5 / 39.0**0.5)


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
