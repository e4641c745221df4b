import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import run_values

import optax_meta
from optax_meta import Controller, control_hyperparams, measuring

SEEN = ("value", "cost", "grad_norm", "alignment", "num_steps", "num_nonfinite")


def recorder(**options):
    """A controller that keeps the metrics of its latest decision."""

    def init(hyperparams):
        del hyperparams
        return jnp.zeros(6)

    def update(metrics, state, hyperparams):
        del state
        return hyperparams, jnp.stack([getattr(metrics, name) for name in SEEN])

    return Controller(init, update, **options)


@pytest.mark.parametrize(
    "factory",
    [
        pytest.param(optax.sgd, id="sgd"),
        lambda learning_rate: optax.sgd(learning_rate, momentum=0.9),
        optax.adam,
        optax.adamw,
        optax.lion,
        optax.rmsprop,
        optax.adafactor,
        lambda learning_rate, clip=1.0: optax.chain(
            optax.clip_by_global_norm(clip), optax.adam(learning_rate)
        ),
    ],
)
def test_any_factory_works_and_its_rate_is_steered(factory):
    def halve(metrics, state, hyperparams):
        del metrics
        return {"learning_rate": 0.5 * hyperparams["learning_rate"]}, state

    halving = Controller(lambda hyperparams: (), halve)
    rows, _, params = run_values(control_hyperparams(factory, halving)(0.8), [1.0] * 3)
    np.testing.assert_allclose(rows.hyperparams["learning_rate"], [0.4, 0.2, 0.1])
    scheduled = factory(lambda step: 0.4 * 0.5**step)
    expected, state = jnp.array(1.0), scheduled.init(jnp.array(1.0))
    for _ in range(3):
        updates, state = scheduled.update(jnp.array(1.0), state, expected)
        expected = optax.apply_updates(expected, updates)
    np.testing.assert_allclose(params, expected, rtol=1e-5)


@pytest.mark.parametrize("factory", [optax.sgd, optax.adafactor])
def test_reinforce_on_optimizers_without_weight_decay(factory):
    controller = optax_meta.reinforce(
        action_space=optax_meta.actions.learning_rate(), start="uniform", decision_interval=1
    )
    tx = control_hyperparams(factory, controller)(learning_rate=1e-2)
    rows, _, params = run_values(tx, np.linspace(1.0, 0.5, 12))
    assert jnp.isfinite(params)
    assert np.unique(rows.hyperparams["learning_rate"]).size > 1


@pytest.mark.parametrize("name", ["b1", "b2", "eps", "momentum", "clip"])
def test_any_hyperparameter_is_steerable(name):
    def factory(learning_rate, b1=0.9, b2=0.999, eps=1e-8, momentum=0.5, clip=1.0):
        return optax.chain(
            optax.clip_by_global_norm(clip),
            optax.scale_by_adam(b1, b2, eps),
            optax.trace(momentum),
            optax.scale_by_learning_rate(learning_rate),
        )

    def half(metrics, state, hyperparams):
        del metrics
        return {name: 0.5 * hyperparams[name]}, state

    halving = Controller(lambda hyperparams: (), half, hyperparams=(name,))
    rows, _, params = run_values(control_hyperparams(factory, halving)(0.1), [1.0, 1.0])
    values = rows.hyperparams[name]
    np.testing.assert_allclose(values[1], 0.5 * values[0], rtol=1e-6)
    default = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "momentum": 0.5, "clip": 1.0}[name]
    grads, twice = jnp.array(1.0), factory(0.1, **{name: 0.5 * default})
    _, state = twice.update(grads, twice.init(grads))
    assert list(rows.hyperparams) == [name]
    assert jnp.isfinite(params)
    del state


def test_a_decision_holds_from_the_same_update_on():
    def decide(metrics, state, hyperparams):
        del hyperparams
        return {"learning_rate": jnp.where(metrics.step >= 2, 0.5, 0.1)}, state

    tx = control_hyperparams(optax.sgd, Controller(lambda hyperparams: (), decide))(0.1)
    rows, _, params = run_values(tx, [1.0] * 4)
    np.testing.assert_allclose(rows.hyperparams["learning_rate"], [0.1, 0.1, 0.5, 0.5])
    np.testing.assert_allclose(params, 1.0 - 0.1 - 0.1 - 0.5 - 0.5, rtol=1e-6)


@pytest.mark.parametrize("interval", [1, 2, 5])
def test_decisions_see_means_since_the_last_one(interval):
    tx = control_hyperparams(optax.sgd, recorder(), decision_interval=interval)(0.0)
    values = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0, 3.0, 5.0], np.float32)
    rows, state, _ = run_values(tx, values, grads=-values)
    last = (len(values) - 1) // interval * interval
    window = values[last - interval + 1 : last + 1]
    expected = [window.mean(), 0.0, window.mean(), 0.0, interval, 0.0]
    np.testing.assert_allclose(state.controller_state, expected, rtol=1e-6)
    due = np.arange(len(values)) % interval == 0
    np.testing.assert_array_equal(rows.decided, due)


def test_own_interval_of_the_controller_is_the_default():
    tx = control_hyperparams(optax.sgd, recorder(decision_interval=3))(0.0)
    rows, _, _ = run_values(tx, [1.0] * 6)
    assert rows.decided.tolist() == [True, False, False, True, False, False]


def test_only_an_infinite_interval_is_never_due():
    for interval, due in ((10, True), (10.0, True), (np.inf, False)):
        assert recorder(decision_interval=interval).is_due(10) == due


def test_cost_and_alignment_reach_the_controller():
    tx = control_hyperparams(optax.sgd, recorder(needs_alignment=True))(0.1)
    params = jnp.array([1.0, 0.0])
    state = tx.init(params)
    updates, state = tx.update(jnp.array([3.0, 4.0]), state, params, value=1.0, cost=0.25)
    params = optax.apply_updates(params, updates)
    _, state = tx.update(jnp.array([4.0, 3.0]), state, params, value=1.0, cost=0.5)
    np.testing.assert_allclose(state.controller_state[1], 0.5)
    np.testing.assert_allclose(state.controller_state[3], 24 / 25, rtol=1e-6)


def test_a_frozen_mask_of_infinities_is_nothing_that_moves():
    tx = control_hyperparams(optax.sgd, recorder(needs_alignment=True))(0.1)
    params = {"w": jnp.ones(2), "mask": jnp.array([0.0, -jnp.inf])}
    state = tx.init(params)
    for _ in range(3):
        grads = {"w": params["w"], "mask": jnp.zeros(2)}
        updates, state = tx.update(grads, state, params, value=1.0)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.controller_state[3], 1.0, rtol=1e-6)
    assert optax_meta.record(state).num_nonfinite == 0


def test_a_complex_parameter_moves_along_both_axes():
    tx = control_hyperparams(optax.sgd, recorder(needs_alignment=True))(0.1)
    params = jnp.ones(2, jnp.complex64)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(1j * jnp.ones(2, jnp.complex64), state, params, value=1.0)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.controller_state[3], 1.0, rtol=1e-6)


def test_shapes_without_values_start_no_run_that_looks_at_parameters():
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    tx = control_hyperparams(optax.sgd, optax_meta.distance(total_steps=9))()
    with pytest.raises(ValueError, match=r"pass arrays to `init`, or ask for shapes by `jax\.eval"):
        tx.init({"w": shape})
    found = jax.eval_shape(tx.init, {"w": shape})
    assert jax.tree.structure(found) == jax.tree.structure(tx.init({"w": jnp.ones(3)}))
    plain = control_hyperparams(optax.sgd, optax_meta.plateau())(0.1)
    assert float(optax_meta.hyperparams(plain.init({"w": shape}))["learning_rate"]) == np.float32(
        0.1
    )


def test_with_an_axis_name_moves_are_those_of_each_device_and_gradients_are_averaged():
    def see(metrics, state, hyperparams):
        del state
        return hyperparams, jnp.stack([metrics.update_norm, metrics.persistence])

    seeing = Controller(lambda hyperparams: jnp.zeros(2), see, needs_alignment=True)
    tx = control_hyperparams(optax.sgd, seeing, axis_name="d")(0.5)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params, value=1.0)
        return optax.apply_updates(params, updates), state

    params, grads = jnp.array([[1.0, 0.0], [9.0, 0.0]]), jnp.eye(2)
    state = jax.vmap(tx.init)(params)
    for _ in range(3):
        params, state = jax.vmap(step, axis_name="d")(params, state, grads)
    np.testing.assert_allclose(state.controller_state, [[0.5, 1.0]] * 2, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["value", "gradient", "cost"])
def test_non_finite_steps_touch_nothing_and_are_counted(bad, where):
    tx = control_hyperparams(optax.sgd, recorder(), decision_interval=4)(0.1)
    params = jnp.array(1.0)
    state = tx.init(params)
    for step in range(5):
        is_bad = step == 2
        grad = jnp.array(bad if is_bad and where == "gradient" else 1.0)
        value = bad if is_bad and where == "value" else 2.0
        cost = bad if is_bad and where == "cost" else 3.0
        updates, state = tx.update(grad, state, params, value=value, cost=cost)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.controller_state, [2.0, 3.0, 1.0, 0.0, 4.0, 1.0])
    moved = 5 if where == "cost" else 4
    np.testing.assert_allclose(params, 1.0 - 0.1 * moved, rtol=1e-6)
    row = optax_meta.record(state)
    assert row.num_nonfinite == 1
    assert row.value == 2.0


@pytest.mark.parametrize(
    ("grads", "params"),
    [
        ({"a": jnp.ones(3)}, {"a": jnp.ones(3), "b": jnp.ones(2)}),
        ({"a": jnp.ones(3), "b": jnp.ones(2)}, {"a": jnp.ones(3), "b": jnp.ones(2, jnp.int8)}),
    ],
)
def test_gradients_of_other_parameters_are_refused(grads, params):
    tx = control_hyperparams(optax.sgd, recorder(needs_alignment=True))(0.1)
    with pytest.raises(ValueError, match="must belong together"):
        tx.update(grads, tx.init(params), params, value=1.0)


@pytest.mark.parametrize("options", [{}, {"max_growth": 2.0}, {"needs_alignment": True}])
def test_python_floats_are_gradients_too(options):
    tx = control_hyperparams(optax.sgd, recorder(**options))(0.1)
    state = tx.init(1.0)
    _, state = tx.update(2.0, state, 1.0, value=1.0)
    assert optax_meta.record(state).grad_norm == 2.0
    updates, state = tx.update(np.nan, state, 1.0, value=1.0)
    assert updates == 0.0
    assert optax_meta.record(state).num_nonfinite == 1


@pytest.mark.parametrize(
    "make_controller",
    [
        optax_meta.plateau,
        lambda: optax_meta.reinforce(decision_interval=2),
        lambda: optax_meta.reinforce(decision_interval=1, train_every=2),
        lambda: optax_meta.learned(optax_meta.load_policy("any-lr-v2"), total_steps=50),
    ],
)
def test_steps_that_nobody_jits_compile_nothing_new(make_controller, caplog):
    tx = optax_meta.control_hyperparams(optax.adamw, make_controller())(1e-3)
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    state = tx.init(params)
    for step in range(6):
        with contextlib.nullcontext() if step < 3 else jax.log_compiles():
            updates, state = tx.update(params, state, params, value=1.0)
            params = optax.apply_updates(params, updates)
    assert not [r for r in caplog.records if "Compiling" in r.getMessage()]
    with jax.log_compiles():
        jax.jit(lambda x: x + 3.25)(params["b"])
    assert [r for r in caplog.records if "Compiling" in r.getMessage()]


def test_what_decides_at_every_step_may_be_plain_python():
    def halve_where_it_is_high(metrics, state, hyperparams):
        factor = 0.5 if metrics.value > 1.0 else 1.0
        return {"learning_rate": factor * hyperparams["learning_rate"]}, state

    controller = optax_meta.Controller(lambda hyperparams: (), halve_where_it_is_high)
    tx = optax_meta.control_hyperparams(optax.sgd, controller)(1.0)
    params = jnp.ones(2)
    state = tx.init(params)
    for value in (2.0, 0.5, 3.0):
        _, state = tx.update(params, state, params, value=value)
    np.testing.assert_allclose(optax_meta.hyperparams(state)["learning_rate"], 0.25)


def test_leaves_that_are_no_inexact_numbers_have_no_norm():
    tree = {"count": 3, "flag": True, "name": "w", "masked": optax.MaskedNode(), "w": 2.0}
    assert measuring.global_norm(tree) == 2.0
    np.testing.assert_array_equal(measuring.sample(tree), [2.0])


def test_window_without_a_finite_step_repeats_the_last_means():
    tx = control_hyperparams(optax.sgd, recorder())(0.1)
    _, state, _ = run_values(tx, [2.0, np.nan])
    np.testing.assert_allclose(state.controller_state, [2.0, 0.0, 1.0, 0.0, 1.0, 1.0])


def test_huge_losses_do_not_overflow_the_mean():
    tx = control_hyperparams(optax.sgd, recorder(), decision_interval=3)(0.1)
    _, state, _ = run_values(tx, [0.0, 3e38, 3e38, 3e38])
    np.testing.assert_allclose(state.controller_state[0], 3e38, rtol=1e-5)


@pytest.mark.parametrize("wanted", [np.nan, np.inf, 5.0, -5.0])
def test_hyperparameters_never_leave_their_bounds(wanted):
    def decide(metrics, state, hyperparams):
        del metrics, hyperparams
        return {"learning_rate": wanted}, state

    bounds = {"learning_rate": (0.01, 1.0)}
    tx = control_hyperparams(optax.sgd, Controller(lambda hyperparams: (), decide, bounds=bounds))
    rows, _, _ = run_values(tx(0.1), [1.0])
    expected = {5.0: 1.0, -5.0: 0.01}.get(wanted, 0.1)
    np.testing.assert_allclose(rows.hyperparams["learning_rate"], expected)


def test_starting_values_may_be_arrays_or_traced():
    def final_loss(rate):
        tx = control_hyperparams(optax.sgd, optax_meta.plateau())(learning_rate=rate)
        return run_values(tx, [1.0] * 3)[2]

    rates = jnp.array([0.1, 0.2])
    np.testing.assert_allclose(jax.vmap(final_loss)(rates), 1.0 - 3 * rates, rtol=1e-6)
    np.testing.assert_allclose(final_loss(np.float64(0.1)), 0.7, rtol=1e-6)
    np.testing.assert_allclose(final_loss(rates[1]), 0.4, rtol=1e-6)


def test_an_array_given_as_start_is_copied():
    rate = jnp.array(0.1)
    tx = control_hyperparams(optax.sgd, optax_meta.constant())(rate)
    state = tx.init(jnp.array(1.0))
    jax.jit(lambda s: jax.tree.map(lambda x: x + 0, s), donate_argnums=0)(state)
    assert not rate.is_deleted()


def test_chained_and_nested_states_are_read():
    tx = control_hyperparams(optax.adamw, optax_meta.plateau())(1e-3)
    chained = optax.MultiSteps(optax.chain(optax.clip(1.0), tx), 2)
    state = chained.init({"w": jnp.ones(2)})
    np.testing.assert_allclose(optax_meta.hyperparams(state)["learning_rate"], 1e-3)


def test_several_controllers_are_told_apart():
    tx = optax.partition(
        {
            "a": control_hyperparams(optax.sgd, optax_meta.plateau())(0.1),
            "b": control_hyperparams(optax.adamw, optax_meta.classic_reinforce())(0.2),
        },
        {"x": "a", "y": "b"},
    )
    state = tx.init({"x": jnp.ones(2), "y": jnp.ones(3)})
    names = {"a/learning_rate", "b/learning_rate", "b/weight_decay"}
    assert set(optax_meta.hyperparams(state)) == names
    with pytest.raises(ValueError, match=r"several controlled optimizers \(a, b\)"):
        optax_meta.record(state)
    assert optax_meta.record(state.inner_states["a"]).decision is None


PARAMS = {"w": jnp.ones((2, 3))}
PLATEAU = optax_meta.plateau()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: control_hyperparams(optax.adamw(1e-3), PLATEAU), "not the optimizer it returns"),
        (lambda: control_hyperparams(optax.adamw, optax_meta.plateau), "got plateau: call it"),
        (
            lambda: control_hyperparams(optax.adamw, optax_meta.init_policy(jax.random.key(0))),
            r"got Policy: write `learned\(policy\)`$",
        ),
        (
            lambda: control_hyperparams(optax.adamw, PLATEAU, decision_interval=0),
            r"≥ 1 or `math\.inf`, got 0",
        ),
        (
            lambda: control_hyperparams(optax.adamw, PLATEAU, decision_interval=1.5),
            r"≥ 1 or `math\.inf`, got 1\.5",
        ),
        (
            lambda: control_hyperparams(optax.adamw, PLATEAU._replace(decision_interval=10.0)),
            r"≥ 1 or `math\.inf`, got 10\.0",
        ),
        (
            lambda: control_hyperparams(optax.adamw, PLATEAU, decision_interval=jnp.array(0)),
            r"≥ 1 or `math\.inf`, got Array\(0",
        ),
        (
            lambda: control_hyperparams(optax.adamw, PLATEAU._replace(bounds={"lr": (0, 1)})),
            "has bounds for lr but steers learning_rate",
        ),
        (
            lambda: control_hyperparams(optax.sgd, optax_meta.classic_reinforce())(0.1),
            (
                "steers `weight_decay`, which `sgd` does not have; its hyperparameters are: "
                "learning_rate"
            ),
        ),
        (
            lambda: control_hyperparams(optax.adamw, PLATEAU)(optax.constant_schedule(0.1)),
            "must start from a number, got a schedule",
        ),
        (
            lambda: control_hyperparams(optax.adamw, PLATEAU)(jnp.ones(2)),
            "`learning_rate` is steered by the controller and must start from a number",
        ),
        (
            lambda: control_hyperparams(optax.adamw, optax_meta.classic_reinforce())(11.0),
            r"must start within the controller's bounds \[1e-08, 10\], got 11.0",
        ),
        (
            lambda: control_hyperparams(optax.adamw, PLATEAU)(float("nan")),
            "must start within the controller's bounds",
        ),
    ],
)
def test_bad_factory_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"needs the loss: call `tx.update\(grads, state, params, value=loss\)`"),
        ({"value": jnp.ones(3)}, r"`value` must be a real scalar, got float32\[3\]: pass a mean"),
        ({"value": 1j}, "`value` must be a real scalar"),
        ({"value": (1.0, {})}, "got a tuple: pass the loss alone, with `has_aux=True` the first"),
        ({"loss": 1.0}, "since Flax's own passes no loss on; got `loss`"),
        ({"value": 1.0, "cost": jnp.ones(1)}, r"`cost` must be a real scalar, got float32\[1\]"),
    ],
)
def test_bad_values(arguments, message):
    tx = control_hyperparams(optax.adamw, PLATEAU)(1e-3)
    with pytest.raises(ValueError, match=message):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, **arguments)


def test_gradients_that_do_not_fit_the_parameters():
    tx = control_hyperparams(optax.adamw, PLATEAU)(1e-3)
    message = r"the gradient of `w` has shape \(3,\), its parameter \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        tx.update({"w": jnp.ones(3)}, tx.init(PARAMS), PARAMS, value=1.0)


def test_a_misnamed_argument_is_told_the_names():
    with pytest.raises(TypeError, match=r"`adamw`: .*'lr'; its arguments are learning_rate, b1"):
        control_hyperparams(optax.adamw, PLATEAU)(lr=1e-3)
    with pytest.raises(ValueError, match="in a function of your own name the argument `learning"):
        control_hyperparams(lambda lr: optax.sgd(2 * lr), PLATEAU)(0.1)


def test_a_loss_without_its_name():
    tx = control_hyperparams(optax.adamw, PLATEAU)(1e-3)
    with pytest.raises(ValueError, match=r"the rest by name: `tx.update\(.*, value=loss\)`"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, 1.0)


@pytest.mark.parametrize("jitted", [False, True])
def test_a_state_of_another_controller(jitted):
    controllers = {
        "plateau": PLATEAU,
        "reinforce": optax_meta.reinforce(),
        "learned": optax_meta.learned(optax_meta.load_policy("any-lr-v2")),
    }
    made = {k: control_hyperparams(optax.adamw, c)(1e-3) for k, c in controllers.items()}
    for one, other in itertools.permutations(made, 2):
        update = jax.jit(made[one].update) if jitted else made[one].update
        state = made[other].init(PARAMS)
        with pytest.raises(ValueError, match="`state` is that of another controller"):
            update(PARAMS, state, PARAMS, value=1.0)
        with pytest.raises(ValueError, match="`state` is that of another controller"):
            optax_meta.decide(controllers[one], state, value=1.0)


def test_a_state_of_other_shapes():
    controller = optax_meta.reinforce(optax_meta.load_policy("any-lr-v2"))
    state = control_hyperparams(optax.adamw, controller)(1e-3).init(PARAMS)
    small = control_hyperparams(optax.adamw, optax_meta.reinforce(hidden_sizes=(16, 16)))
    for other, wrong in (
        (controller, state._replace(statistics=state.statistics[:-3])),
        (controller, state._replace(last_samples=state.last_samples[0])),
        (optax_meta.reinforce(), small(1e-3).init(PARAMS)),
    ):
        tx = control_hyperparams(optax.adamw, other)(1e-3)
        with pytest.raises(ValueError, match="`state` is that of another controller"):
            tx.update(PARAMS, wrong, PARAMS, value=1.0)
        with pytest.raises(ValueError, match="`state` is that of another controller"):
            optax_meta.decide(other, wrong, value=1.0)


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        ({"learning_rate": 0.1}, "got dict"),
        (0.1, "got float"),
        ((0.1, ()), "got tuple"),
        (((), {"learning_rate": 0.1}), "got tuple"),
        (({"learning_rte": 0.1}, ()), "got learning_rte"),
        (({"learning_rate": 0.1, "b1": 0.9}, ()), "got learning_rate, b1"),
    ],
)
def test_what_a_controller_returns_is_checked(returned, got):
    controller = Controller(lambda hyperparams: (), lambda metrics, state, hyperparams: returned)
    tx = control_hyperparams(optax.adamw, controller)(0.1)
    with pytest.raises(ValueError, match=f"with the names learning_rate and no others, {got}"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=1.0)


def test_a_rate_that_is_no_scalar():
    wrong = {"learning_rate": jnp.ones(3)}, ()
    controller = Controller(lambda hyperparams: (), lambda metrics, state, hyperparams: wrong)
    tx = control_hyperparams(optax.adamw, controller)(0.1)
    with pytest.raises(ValueError, match=r"must return a scalar for `learning_rate`, got one of"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=1.0)


def test_a_factory_that_was_not_called():
    factory = control_hyperparams(optax.adamw, PLATEAU)
    for call in (lambda: factory.init(PARAMS), lambda: factory.update(PARAMS, (), PARAMS)):
        with pytest.raises(ValueError, match=r"this is its factory: call it first"):
            call()


def test_controllers_at_different_depths_are_told_apart():
    tx = control_hyperparams(optax.sgd, optax_meta.constant())
    states = (tx(1.0).init(PARAMS), {"a": tx(2.0).init(PARAMS), "b": tx(3.0).init(PARAMS)})
    found = optax_meta.hyperparams(states)
    assert {name: float(rate) for name, rate in found.items()} == {
        "0/learning_rate": 1.0,
        "1/a/learning_rate": 2.0,
        "1/b/learning_rate": 3.0,
    }


def test_a_row_outlives_a_donated_state():
    tx = control_hyperparams(optax.sgd, PLATEAU)(0.1)
    step = jax.jit(lambda state: tx.update(PARAMS, state, PARAMS, value=1.0)[1], donate_argnums=0)
    state, rows, rates = tx.init(PARAMS), [], []
    for _ in range(3):
        state = step(state)
        rows.append(optax_meta.record(state))
        rates.append(optax_meta.hyperparams(state)["learning_rate"])
    assert [int(row.step) for row in rows] == [1, 2, 3]
    assert [float(row.hyperparams["learning_rate"]) for row in rows] == pytest.approx([0.1] * 3)
    assert [float(rate) for rate in rates] == pytest.approx([0.1] * 3)


def test_norms_of_a_sample_are_those_of_the_whole():
    keys = jax.random.split(jax.random.key(0), 200)
    params = {f"small{i}": 5.0 + jax.random.normal(key, (7,)) for i, key in enumerate(keys)}
    params["large"] = jax.random.normal(jax.random.key(1), (300, 1000))
    params["counts"] = jnp.ones(10**6, jnp.int32)
    sampled = measuring.sample(params)
    assert sampled.size < 6500
    np.testing.assert_allclose(np.linalg.norm(sampled), measuring.global_norm(params), rtol=0.05)


def test_an_error_of_the_controller_is_its_own():
    def broken(metrics, state, hyperparams):
        raise KeyError(metrics, state, hyperparams)

    tx = control_hyperparams(optax.sgd, Controller(lambda hyperparams: (), broken))(0.1)
    with pytest.raises(KeyError, match="Metrics"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=1.0)


def test_a_state_from_elsewhere():
    tx = control_hyperparams(optax.adamw, PLATEAU)(1e-3)
    with pytest.raises(ValueError, match="`state` must come from this transformation's `init`"):
        tx.update(PARAMS, optax.adamw(1e-3).init(PARAMS), PARAMS, value=1.0)
    with pytest.raises(ValueError, match="no controlled optimizer in this state"):
        optax_meta.hyperparams(optax.adamw(1e-3).init(PARAMS))


def seen_by(tx_factory, losses, names):
    """Return what a controller saw of these at each step."""

    def see(metrics, state, hyperparams):
        del state
        return hyperparams, jnp.stack([getattr(metrics, name) for name in names])

    seeing = Controller(lambda _: jnp.zeros(len(names)), see)
    tx = control_hyperparams(tx_factory, seeing)(0.1)
    state, found = tx.init(PARAMS), []
    for loss in losses:
        _, state = tx.update(PARAMS, state, PARAMS, value=loss)
        found.append(np.asarray(state.controller_state))
    return np.array(found)


def test_a_loss_before_the_first_finite_one_is_no_change():
    found = seen_by(optax.sgd, [np.nan, 100.0, 97.0], ("value", "value_change"))
    np.testing.assert_allclose(found, [[0.0, 0.0], [100.0, 0.0], [97.0, 3.0]])


def test_hyperparameters_in_use_are_among_the_metrics():
    def see(metrics, state, hyperparams):
        del state
        return {"learning_rate": 0.5 * hyperparams["learning_rate"]}, (
            metrics.hyperparams["learning_rate"]
        )

    own = Controller(lambda _: jnp.float32(0.0), see)
    controller = optax_meta.annealed(own, total_steps=4)
    tx = control_hyperparams(optax.sgd, controller)(1.0)
    state, used = tx.init(PARAMS), []
    for _ in range(4):
        _, state = tx.update(PARAMS, state, PARAMS, value=1.0)
        used.append(float(state.controller_state.controller_state))
    np.testing.assert_allclose(used, [1.0, 0.5, 0.25 * 0.75, 0.125 * 0.5])


@pytest.mark.parametrize(
    "wrap", [lambda name: name, optax_meta.load_policy], ids=["name", "policy"]
)
@pytest.mark.parametrize("make", [optax_meta.learned, optax_meta.reinforce])
def test_one_line_by_name_and_without_a_start(make, wrap):
    controller = make(wrap("any-lr-v2"), total_steps=100)
    tx = control_hyperparams(optax.adamw, controller)(weight_decay=0.1)
    given = control_hyperparams(optax.adamw, controller)(1e-3, weight_decay=0.1)
    first, second = (t.update(PARAMS, t.init(PARAMS), PARAMS, value=1.0)[0] for t in (tx, given))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize(
    "factory", [optax.adafactor, lambda learning_rate, /: optax.sgd(learning_rate)]
)
def test_any_factory_can_do_without_a_start(factory):
    tx = control_hyperparams(factory, optax_meta.learned("any-lr-v2"))()
    assert float(optax_meta.hyperparams(tx.init(PARAMS))["learning_rate"]) == np.float32(1e-3)
    within = optax_meta.calibrated(optax_meta.hypergradient(bounds=(0.01, 1.0)))
    control_hyperparams(factory, within)()


def test_a_policy_by_its_path(tmp_path):
    optax_meta.save_policy(optax_meta.load_policy("any-lr-v2"), tmp_path / "mine.policy")
    assert optax_meta.learned(tmp_path / "mine.policy").num_decisions(100) > 0
    with pytest.raises(ValueError, match="no such file; choose from"):
        optax_meta.learned("any-lr-v0")
