import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_metrics, run_values

import optax_meta
from optax_meta import control_hyperparams

TORCH = json.loads((Path(__file__).parent / "data" / "torch_plateau.json").read_text())


def rates(controller, values, start=0.1, grads=None, interval=None):
    tx = control_hyperparams(optax.sgd, controller, decision_interval=interval)(start)
    return np.asarray(run_values(tx, values, grads)[0].hyperparams["learning_rate"])


@pytest.mark.parametrize("options", TORCH["options"], ids=str)
def test_plateau_decides_as_pytorch(options):
    """Eight sequences of 60 values for each of ten settings."""
    tx = control_hyperparams(optax.sgd, optax_meta.plateau(**options))(0.1)
    cases = [case for case in TORCH["cases"] if case["options"] == options]
    values = jnp.array([TORCH["sequences"][case["sequence"]] for case in cases])
    rows, _, _ = jax.vmap(lambda sequence: run_values(tx, sequence))(values)
    got = rows.hyperparams["learning_rate"]
    for case, rates_of_case in zip(cases, got, strict=True):
        expected = case["learning_rates"]
        np.testing.assert_allclose(rates_of_case, expected, rtol=1e-5, err_msg=case["sequence"])
    assert len(cases) == 8


NOISY = np.exp(-np.arange(60) / 15) + 0.1 * np.random.default_rng(0).random(60)
SEQUENCES = np.float32([NOISY, np.ones(60), 1.0 + 0.01 * np.arange(60)])


def all_rates(controller):
    """Return the rates on each of the sequences."""
    tx = control_hyperparams(optax.sgd, controller)(0.1)
    rows = jax.vmap(lambda sequence: run_values(tx, sequence)[0])(SEQUENCES)
    return rows.hyperparams["learning_rate"]


def keras_rates(values, *, patience, cooldown, min_delta, min_lr, mode):
    """Keras 3's rule, whose count of patience and cooldown is one shorter than PyTorch's."""
    sign = 1.0 if mode == "min" else -1.0
    rate, best, wait, cooling, taken = 0.1, np.inf, 0, 0, []
    for value in sign * values:
        wait, cooling = (0, cooling - 1) if cooling else (wait, 0)
        if value < best - min_delta:
            best, wait = value, 0
        elif not cooling:
            wait += 1
            if wait >= patience and rate > min_lr:
                rate, wait, cooling = max(0.5 * rate, min_lr), 0, cooldown
        taken.append(rate)
    return taken


@pytest.mark.parametrize(("mode", "cooldown"), [("min", 0), ("min", 1), ("min", 3), ("max", 3)])
def test_plateau_decides_as_keras_with_the_arguments_that_the_readme_gives(mode, cooldown):
    controller = optax_meta.plateau(
        factor=0.5,
        patience=3 - 1,
        cooldown=max(cooldown - 1, 0),
        threshold=0.01,
        threshold_mode="abs",
        min_value=1e-3,
        eps=0.0,
        mode=mode,
    )
    theirs = {"patience": 3, "cooldown": cooldown, "min_delta": 0.01, "min_lr": 1e-3, "mode": mode}
    expected = [keras_rates(values, **theirs) for values in SEQUENCES]
    np.testing.assert_allclose(all_rates(controller), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"rtol": 0.01, "cooldown": 3}, {"threshold": 0.01, "cooldown": 3}),
        ({"rtol": 0.0, "atol": 0.01}, {"threshold": 0.01, "threshold_mode": "abs"}),
    ],
    ids=["rtol", "atol"],
)
def test_plateau_decides_as_optax_with_the_arguments_that_the_readme_gives(theirs, ours):
    controller = optax_meta.plateau(factor=0.5, patience=3 - 1, min_value=1e-3, eps=0.0, **ours)
    tx = optax.contrib.reduce_on_plateau(factor=0.5, patience=3, min_scale=0.01, **theirs)

    def scales(values):
        start = tx.init(jnp.array(1.0))
        step = lambda state, value: tx.update(jnp.array(0.1), state, value=value)[::-1]  # noqa: E731
        return jax.lax.scan(step, start, values)[1]

    np.testing.assert_allclose(all_rates(controller), jax.vmap(scales)(SEQUENCES), rtol=1e-5)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_plateau_fires_on_a_constant_loss_of_any_sign(value):
    got = rates(optax_meta.plateau(factor=0.5, patience=2), [value] * 5)
    np.testing.assert_allclose(got, [0.1, 0.1, 0.1, 0.05, 0.05], rtol=1e-6)


def test_plateau_sees_improvement_below_zero():
    got = rates(optax_meta.plateau(patience=1), -np.arange(1.0, 20.0))
    np.testing.assert_allclose(got, 0.1)


@pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf])
def test_a_step_that_did_not_happen_is_no_evidence_for_plateau(lost):
    got = rates(optax_meta.plateau(factor=0.5, patience=1, cooldown=1), [lost] * 40 + [1.0] * 3)
    np.testing.assert_allclose(got, [0.1] * 42 + [0.05], rtol=1e-6)
    # Neither as a bad epoch nor as one of the cooldown.
    values = [1.0, 1.0, lost, 1.0, lost, 1.0, 1.0, lost, 1.0]
    got = rates(optax_meta.plateau(factor=0.5, patience=1, cooldown=1), values)
    np.testing.assert_allclose(got, [0.1] * 3 + [0.05] * 5 + [0.025], rtol=1e-6)


def test_plateau_with_an_interval_judges_means():
    values = [3.0, *[1.0, 3.0] * 6]
    got = rates(optax_meta.plateau(factor=0.5, patience=2), values, interval=2)
    # Means 3, 2, 2, 2, 2: two tolerated, the third without improvement reduces.
    np.testing.assert_allclose(got[::2], [0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05], rtol=1e-6)


def test_warmup_rises_to_its_peak_and_stays():
    got = rates(optax_meta.warmup(4), [1.0] * 6, start=2.0)
    np.testing.assert_allclose(got, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


def test_warmup_outlives_the_counter_of_steps():
    controller, start = optax_meta.warmup(5), {"learning_rate": jnp.float32(2.0)}
    metrics = make_metrics(step=jnp.int32(2**31 - 1))
    got, _ = controller.update(metrics, controller.init(start), start)
    assert got["learning_rate"] == 2.0


def test_warmup_from_a_share_of_the_peak():
    got = rates(optax_meta.warmup(2, init_scale=0.5), [1.0] * 3, start=1.0)
    np.testing.assert_allclose(got, [0.75, 1.0, 1.0])


def test_join_hands_over_at_the_boundary_and_restarts_the_count():
    stages = [optax_meta.constant(), optax_meta.warmup(3)]
    got = rates(optax_meta.join(stages, [2]), [1.0] * 6, start=0.3)
    np.testing.assert_allclose(got, [0.3, 0.3, 0.1, 0.2, 0.3, 0.3], rtol=1e-6)


@pytest.mark.parametrize("interval", [1, 3, 7])
def test_warmup_plateau_reaches_the_peak_with_any_interval(interval):
    controller = optax_meta.warmup_plateau(10, factor=0.5, patience=1)
    got = rates(controller, np.linspace(10, 1, 30), interval=interval)
    np.testing.assert_allclose(got[-1], 0.1, rtol=1e-6)
    assert np.all(np.diff(got) >= 0)


def test_warmup_plateau_ignores_losses_of_the_warmup():
    controller = optax_meta.warmup_plateau(5, factor=0.5, patience=2)
    got = rates(controller, [0.1] * 5 + [1.0] * 5)
    np.testing.assert_allclose(got, [0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05])


def test_a_stage_may_have_a_traced_horizon():
    policy = optax_meta.init_policy(jax.random.key(0), num_decisions=10)

    @jax.jit
    def decided(total_steps):
        learned = optax_meta.learned(policy, total_steps=total_steps)
        joined = optax_meta.join([optax_meta.warmup(3), learned], [3])
        return jnp.stack([joined.is_due(jnp.int32(t)) for t in range(13)])

    np.testing.assert_array_equal(decided(50), [True] * 3 + [True, *[False] * 4] * 2)


def test_join_steers_what_any_stage_steers():
    both = optax_meta.join([optax_meta.warmup(2), optax_meta.classic_reinforce()], [5])
    assert both.hyperparams == ("learning_rate", "weight_decay")
    assert both.action_labels == optax_meta.classic_reinforce().action_labels
    assert both.incremental == ("learning_rate", "weight_decay")
    rules = optax_meta.plateau(), optax_meta.hypergradient(hyperparam="eps"), optax_meta.reinforce()
    assert [rule.incremental for rule in rules] == [(), ("eps",), ()]
    rows, _, _ = run_values(control_hyperparams(optax.adamw, both)(0.1), [1.0] * 8)
    assert np.unique(rows.hyperparams["weight_decay"][:5]).size == 1


def test_each_stage_decides_as_often_as_alone():
    policy = optax_meta.init_policy(
        jax.random.key(0), wrappers={"trust_region": {"max_growth": 2.0}}, dense_steps=3
    )
    late = optax_meta.join([optax_meta.warmup(4), optax_meta.learned(policy)], [7])
    rows, _, _ = run_values(control_hyperparams(optax.adamw, late)(0.1), [1.0] * 40)
    assert late.max_growth == 2.0
    expected = [*range(7), 7, 8, 9, 17, 27, 37]
    np.testing.assert_array_equal(np.flatnonzero(rows.decided), expected)
    flat = optax_meta.recording.flatten(rows, late.action_labels)
    assert [i for i, row in enumerate(flat) if "action" in row] == expected[7:]


@pytest.mark.parametrize("boundary", [4, 7])
def test_an_interval_for_all_stages_leaves_each_its_first_decisions(boundary):
    policy = optax_meta.init_policy(jax.random.key(0), dense_steps=3)
    late = optax_meta.join([optax_meta.warmup(4), optax_meta.learned(policy)], [boundary])
    tx = control_hyperparams(optax.adamw, late, decision_interval=10)(0.1)
    rows, _, _ = run_values(tx, [1.0] * 30)
    expected = [0, *range(boundary, boundary + 3), 10, 20]
    np.testing.assert_array_equal(np.flatnonzero(rows.decided), expected)


def test_stages_hold_gradients_to_the_least_growth_of_any_even_if_traced():
    def limit(growth):
        stages = [optax_meta.constant(guards_nonfinite=True) for _ in range(3)]
        limits = growth, 3.0, np.inf
        stages = [c._replace(max_growth=g) for c, g in zip(stages, limits, strict=True)]
        return optax_meta.join(stages, [2, 4]).max_growth

    np.testing.assert_array_equal(jax.jit(jax.vmap(limit))(jnp.array([2.0, 4.0])), [2.0, 3.0])
    assert optax_meta.join([optax_meta.constant()], []).max_growth == np.inf


@pytest.mark.parametrize(("grads", "sign"), [([1.0] * 6, 1), ([1.0, -1.0] * 3, -1)])
def test_hypergradient_follows_the_sign_of_the_alignment(grads, sign):
    got = rates(optax_meta.hypergradient(step_size=0.1), [1.0] * 6, grads=grads)
    np.testing.assert_allclose(got, 0.1 * np.exp(0.1 * sign * np.arange(6)), rtol=1e-5)


def test_hypergradient_recovers_from_a_rate_far_too_low():
    got = rates(optax_meta.hypergradient(step_size=0.5), [1.0] * 40, start=1e-6)
    np.testing.assert_allclose(got[-1], 10.0)


def test_hypergradient_judges_no_move_twice():
    controller = optax_meta.hypergradient()
    tx = optax_meta.control_hyperparams(optax.sgd, controller)(1e-3)
    params = jnp.ones(2)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    rate = optax_meta.hyperparams(state)["learning_rate"]
    assert rate > 1e-3
    state = optax_meta.decide(controller, state, value=1.0)
    assert optax_meta.hyperparams(state)["learning_rate"] == rate


def test_a_stage_that_never_decides_by_itself_does_not_in_a_join_either():
    policy = optax_meta.load_policy("any-lr-v2")
    asked = optax_meta.learned(policy, decision_interval=np.inf)
    joined = optax_meta.join([optax_meta.constant(), asked], [3])
    assert [t for t in range(30) if joined.is_due(jnp.int32(t))] == [0, 1, 2]


def test_hypergradient_needs_the_parameters():
    tx = control_hyperparams(optax.sgd, optax_meta.hypergradient())(0.1)
    state = tx.init(jnp.array(1.0))
    with pytest.raises(ValueError, match="the controller needs the parameters"):
        tx.update(jnp.array(1.0), state)


def test_constant_needs_no_loss():
    tx = control_hyperparams(optax.sgd, optax_meta.constant())(0.5)
    updates, _ = tx.update(jnp.array(1.0), tx.init(jnp.array(1.0)))
    assert updates == -0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optax_meta.plateau(factor=1.5), r"`factor` must lie in \(0, 1\), got 1.5"),
        (lambda: optax_meta.plateau(factor=0.0), "`factor`"),
        (lambda: optax_meta.plateau(patience=-1), "`patience` must be a whole number ≥ 0, got -1"),
        (lambda: optax_meta.plateau(cooldown=-1), "`cooldown` must be a whole number ≥ 0"),
        (lambda: optax_meta.plateau(threshold=-1.0), "must not be negative"),
        (lambda: optax_meta.plateau(threshold_mode="x"), '"rel" or "abs"'),
        (lambda: optax_meta.plateau(mode="x"), '"min" or "max"'),
        (lambda: optax_meta.warmup(0), "`steps` must be a whole number ≥ 1, got 0"),
        (lambda: optax_meta.warmup(5, init_scale=2.0), r"`init_scale` must lie in \[0, 1\]"),
        (lambda: optax_meta.join([], []), "one fewer"),
        (lambda: optax_meta.join(optax_meta.warmup(2), [3]), "must be a list of Controllers"),
        (lambda: optax_meta.join([optax_meta.plateau], []), "must be a list of Controllers"),
        (lambda: optax_meta.hypergradient(bounds=1.0), "must be \\(low, high\\)"),
        (lambda: optax_meta.join([optax_meta.constant()], [3]), "one fewer"),
        (lambda: optax_meta.join([optax_meta.constant()] * 3, [5, 5]), "must rise from above 0"),
        (lambda: optax_meta.hypergradient(step_size=0.0), "`step_size` must be positive"),
        (lambda: optax_meta.hypergradient(step_size=np.inf), "`step_size` must be positive and fi"),
        (lambda: optax_meta.hypergradient(bounds=(1.0, 0.1)), "low < high"),
        (lambda: optax_meta.hypergradient(bounds=(0.0, 0.1)), "`bounds` must be positive"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_where_a_join_has_left_a_policy_no_row_repeats_its_action():
    space = optax_meta.actions.learning_rate()
    policy = optax_meta.init_policy(jax.random.key(0), action_space=space)
    stages = [optax_meta.learned(policy, decision_interval=1), optax_meta.constant()]
    joined = optax_meta.join(stages, [3])
    rows, _, _ = run_values(control_hyperparams(optax.sgd, joined)(0.1), [1.0] * 6)
    np.testing.assert_array_equal(rows.decision.action, [1, 1, 1, -1, -1, -1])
    assert not np.any(rows.decision.probabilities[3:])
    flat = optax_meta.recording.flatten(rows, joined.action_labels)
    assert ["action" in row for row in flat] == [True] * 3 + [False] * 3


def test_of_several_policies_the_one_in_charge_is_recorded():
    first, second = (
        optax_meta.init_policy(jax.random.key(0), action_space=optax_meta.actions.learning_rate(f))
        for f in ((0.5, 1.0, 2.0), (1.0, 2.0))
    )
    stages = [optax_meta.learned(p, decision_interval=1) for p in (first, second)]
    joined = optax_meta.join(
        [stages[0], optax_meta.join([optax_meta.warmup(1), stages[1]], [1])], [2]
    )
    rows, _, _ = run_values(control_hyperparams(optax.sgd, joined)(0.1), [1.0] * 5)
    np.testing.assert_array_equal(rows.decision.action, [1, 1, -1, 3, 3])
    assert [joined.action_labels[i] for i in (1, 3)] == ["stage 1: hold", "stage 2: hold"]
    assert len(joined.features) == rows.decision.observation.shape[-1] == 16
    flat = optax_meta.recording.flatten(rows, joined.action_labels)
    assert [row.get("action_label") for row in flat][2:4] == [None, "stage 2: hold"]


def test_first_decisions_of_a_stage_end_with_it():
    dense = optax_meta.init_policy(jax.random.key(0), dense_steps=20)
    stages = [optax_meta.learned(dense), optax_meta.constant()._replace(decision_interval=np.inf)]
    joined = optax_meta.join(stages, [3])
    for controller in (joined, optax_meta.calibrated(joined, steps=2)):
        assert [t for t in range(30) if controller.is_due(jnp.int32(t))] == [0, 1, 2]
    overridden = joined._replace(decision_interval=10)
    assert [t for t in range(30) if overridden.is_due(jnp.int32(t))] == [0, 1, 2, 10, 20]


def test_a_dense_stage_may_have_a_traced_horizon():
    @jax.jit
    def due(total_steps):
        learned = optax_meta.learned("any-lr-v2", total_steps=total_steps)
        joined = optax_meta.join([optax_meta.warmup(3), learned], [3])
        return jnp.stack([joined.is_due(jnp.int32(t)) for t in range(40)])

    np.testing.assert_array_equal(np.flatnonzero(due(1000)), [*range(23), 23, 33])
