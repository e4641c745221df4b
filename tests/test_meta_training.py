import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import optax_meta
from optax_meta import actions, cli, families, observations, tasks
from optax_meta.meta import folder, learning
from optax_meta.meta import runs as meta_runs
from optax_meta.meta import training as meta_training

SPACE = actions.learning_rate((0.5, 1.0, 2.0), bounds=(1e-12, 1e6))


def fresh_policy(**options):
    options = {"hold_probability": 0.5, **options}
    return optax_meta.init_policy(
        jax.random.key(0), encoder=observations.scale_free(), action_space=SPACE, **options
    )


def tiny(policy=None, made=None, **options):
    options = {"groups": 2, "rollouts": 2, "families_per_update": 1, "horizons": (5, 30), **options}
    return optax_meta.meta_trainer(
        made or [families.quadratics(dim=4)], policy or fresh_policy(), **options
    )


def run(trainer, updates, seed=0):
    state, rows = trainer.init(seed), []
    for _ in range(updates):
        state, info = trainer.update(state)
        rows.append(info)
    return state, rows


@pytest.fixture(scope="module")
def counts():
    """How often the shared trainer was traced, by what is traced."""
    return {"runs": 0, "learn": 0}


@pytest.fixture(scope="module")
def trainer(counts):
    """Two families of one kind and all optimizers: compiled once for all tests of this file."""
    family, learn = families.quadratics(dim=4), meta_training._learn

    def build(drawn):
        counts["runs"] += 1
        return family.build(drawn)

    def counted(*arguments):
        counts["learn"] += 1
        return learn(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meta_training, "_learn", counted)
        return tiny(made=[family._replace(build=build, name=name) for name in ("one", "other")])


SOON = ("relu", "bigram", "drifting")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in SOON else pytest.mark.heavy)
        for name in (*families.FAMILIES, *families.OVERFITTED)
    ],
)
def test_families_are_sound_and_judged_without_noise(name):
    family = {**families.FAMILIES, **families.OVERFITTED}[name]()

    def check(key):
        task_key, init_key, batch_key = jax.random.split(key, 3)
        task = family.build(family.sample(task_key))
        params = task.init(init_key)
        points = jax.tree.map(lambda x: jnp.stack([x, 0.2 * x]), params)
        batches = jax.vmap(task.sample)(jax.random.split(batch_key, 128))
        grads = jax.grad(task.loss)(params, jax.tree.map(lambda x: x[0], batches))
        losses = jax.vmap(jax.vmap(task.loss, (None, 0)), (0, None))(points, batches)
        judged = jax.vmap(lambda point: task.evaluate(point)["loss"])(points)
        return jnp.mean(losses, axis=1), optax.tree.norm(grads), judged

    losses, norm, judged = jax.jit(jax.vmap(check))(jax.random.split(jax.random.key(0), 32))
    for values in (losses, norm, judged):
        assert np.all(np.isfinite(values))
        assert np.all(values > 0.0)
    assert np.unique(judged).size == 64
    # Noise adds to both points alike.
    scale = np.mean(judged, axis=1)
    observed, wanted = ((x[:, 0] - x[:, 1]) / scale for x in (losses, judged))
    assert np.corrcoef(observed, wanted)[0, 1] > 0.9
    if name not in ("quadratic", "product", "drifting"):  # far from the optimum noise is small
        assert np.median((losses[:, 0] - judged[:, 0]) / scale) > 1e-3


@pytest.mark.parametrize("name", [*families.FAMILIES, *families.OVERFITTED])
def test_families_use_every_key_once(name):
    family = {**families.FAMILIES, **families.OVERFITTED}[name]()

    def run(task_key, init_key, batch_key):
        task = family.build(family.sample(task_key))
        params, batch = task.init(init_key), task.sample(batch_key)
        return task.loss(params, batch), task.evaluate(params)

    with jax.debug_key_reuse(True):  # checked while tracing
        jax.jit(run).trace(*(jax.random.key(i) for i in range(3)))


def test_an_update_uses_every_key_once():
    with jax.debug_key_reuse(True):
        trainer = tiny(fresh_policy(hidden_sizes=(4,)), optimizers=("sgd",))
        state, _ = trainer.update(trainer.init(0))
        assert int(state.step) == 1
        evolution = tiny(learner="evolution", optimizers=("sgd", "adam"))
        setting, compiled = evolution.update.args
        [draw] = meta_training._draw(setting, evolution.init(0))
        meta_training._run(
            setting,
            compiled._replace(runs={"quadratic": compiled.runs["quadratic"].trace}),
            evolution.init(0),
            draw,
        )


def test_a_run_on_shifting_data_is_judged_by_those_at_its_end():
    family = families.drifting(sizes=(4, 8, 1))
    turn = {"radians_per_step": np.pi / 100, "jump": 0.0}
    task = family.build(family.sample(jax.random.key(0))._replace(**turn))
    run = partial(optax_meta.rollout, fresh_policy(), task, total_steps=100, learning_rate=1e-9)
    trajectory = jax.jit(run)(jax.random.key(1))
    params = task.init(jax.random.split(jax.random.key(1))[0])
    for figures, step in ((trajectory.initial, 0), (trajectory.final, 100)):
        again = jax.jit(partial(tasks.figures_at, task))(params, step)
        np.testing.assert_allclose(figures["loss"], again["loss"], rtol=1e-5)
    # After half a turn the targets have the other sign.
    x, targets, _ = batch = task.sample(jax.random.key(2))
    opposite = task.loss(params, (x, -targets, 0.0))
    np.testing.assert_allclose(task.loss(params, task.shift(batch, 100)), opposite, rtol=1e-4)
    assert abs(float(trajectory.final["loss"] / trajectory.initial["loss"]) - 1.0) > 1e-3


def test_classes_of_the_transformer_family_depend_on_a_token_before():
    family = families.transformers(tokens=5, length=4, batch_size=4000)
    drawn = family.sample(jax.random.key(3))
    x, y = family.build(drawn).sample(jax.random.key(4))
    other = jnp.roll(x, drawn.lag, axis=1)
    for lookup, bound in ((other, 0.02), (x, np.inf)):
        log_probs = jax.nn.log_softmax(drawn.own[x] + drawn.other[lookup])
        expected = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1).mean()
        found = -jnp.take_along_axis(log_probs, y[..., None], axis=-1).mean()
        assert abs(found - expected) < bound
    assert found > expected + 0.1  # looking at the token itself alone does not explain them
    counts = jnp.bincount(x.ravel(), length=5) / x.size
    np.testing.assert_allclose(counts, jax.nn.softmax(drawn.frequency), atol=0.02)


def test_a_rollout_is_the_run_that_users_run():
    policy = fresh_policy(dense_steps=3, num_decisions=5)
    task = tasks.quadratic(dim=3)
    run = partial(optax_meta.rollout, policy, task, total_steps=23, learning_rate=0.1)
    trajectory = jax.jit(run)(jax.random.key(4))
    init_key, data_key = jax.random.split(jax.random.key(4))
    controller = optax_meta.learned(policy, total_steps=23)
    tx = optax_meta.control_hyperparams(optax.adamw, controller)(learning_rate=0.1)
    params = task.init(init_key)
    state, observed = tx.init(params), []

    @jax.jit
    def step(t, params, state):
        batch = task.sample(jax.random.fold_in(data_key, t))
        loss, grads = jax.value_and_grad(task.loss)(params, batch)
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    for t in range(23):
        params, state = step(t, params, state)
        row = optax_meta.record(state)
        if row.decided:
            observed.append((row.decision.observation, row.hyperparams["learning_rate"]))
    assert trajectory.mask.size == trajectory.mask.sum() == len(observed)
    np.testing.assert_allclose(trajectory.observation, [o for o, _ in observed], atol=1e-4)
    np.testing.assert_allclose(trajectory.learning_rate, [r for _, r in observed], rtol=1e-5)
    np.testing.assert_allclose(trajectory.final["loss"], task.evaluate(params)["loss"], rtol=1e-4)


def test_a_traced_horizon_gives_the_same_run():
    policy = fresh_policy(wrappers={"annealed": {}}, dense_steps=3, num_decisions=5)
    run = partial(optax_meta.rollout, policy, tasks.quadratic(dim=3), seed=1)

    def traced(total, known):
        key = jax.random.key(4)
        return run(key, total_steps=total, horizon_is_known=known, max_decisions=30)

    compiled = jax.jit(traced)
    for total, known in ((7, True), (40, False)):
        static = jax.jit(partial(run, total_steps=total, horizon_is_known=known))(jax.random.key(4))
        same, count = compiled(total, known), static.mask.size
        assert same.mask.sum() == count
        np.testing.assert_array_equal(same.action[:count], static.action)
        np.testing.assert_allclose(same.final["loss"], static.final["loss"], rtol=1e-4)
    assert compiled._cache_size() == 1


def test_a_run_with_more_decisions_than_are_kept_goes_on():
    run = partial(optax_meta.rollout, fresh_policy(), tasks.quadratic(dim=3), seed=1)
    whole, first = (
        jax.jit(partial(run, total_steps=50, max_decisions=count))(jax.random.key(4))
        for count in (None, 2)
    )
    np.testing.assert_array_equal(first.final["loss"], whole.final["loss"])
    np.testing.assert_array_equal(first.step, [0, 10])
    np.testing.assert_array_equal(first.action, whole.action[:2])
    assert first.mask.tolist() == [1.0, 1.0]


def test_a_seed_samples_and_none_does_not():
    run = partial(optax_meta.rollout, fresh_policy(), tasks.quadratic(dim=3), total_steps=300)
    key = jax.random.key(0)
    most_probable = jax.jit(lambda key: run(key).action)(jax.random.clone(key))
    assert set(most_probable.tolist()) == {1}
    seeds = jnp.array([0, 0, 1])
    first, again, other = jax.jit(jax.vmap(lambda seed: run(key, seed=seed).action))(seeds)
    np.testing.assert_array_equal(first, again)
    assert first.tolist() != other.tolist()
    assert set(first.tolist()) == {0, 1, 2}


@pytest.mark.heavy
def test_few_rows_are_judged_on_fresh_ones():
    family = families.networks(sizes=(4, 32, 2), rows=16)
    task = family.build(family.sample(jax.random.key(0)))
    batches = [task.sample(jax.random.key(i))[0] for i in range(20)]
    assert 2 <= np.unique(np.concatenate(batches), axis=0).shape[0] <= 16
    policy = fresh_policy(wrappers={"calibrated": {}})
    run = optax_meta.rollout(policy, task, jax.random.key(1), total_steps=600)
    assert run.final["loss"] > run.value[-1]


@pytest.mark.heavy
def test_weight_decay_is_learned_from_the_final_loss_alone():
    policy = optax_meta.init_policy(
        jax.random.key(0),
        encoder=observations.scale_free(weight_decay=True),
        action_space=actions.factored(*SPACE.moves, actions.scale("weight_decay")),
        wrappers={"calibrated": {"steps": 4, "share": 0.1, "total_decay": 1.0}},
    )
    family = families.networks(sizes=(4, 8, 2), rows=16)
    trainer = tiny(policy, [family], shaped_updates=0, weight_decays=(1e-3, 1e-2))
    state, _ = run(trainer, 2)
    assert np.all(np.isfinite(state.policy_params))
    assert np.any(state.policy_params != trainer.init(0).policy_params)


@pytest.mark.parametrize(
    ("is_shaped", "expected"), [(True, [0.0, 0.0, 1.0]), (False, [0.5, 0.5, 0.5])]
)
def test_without_shaping_the_final_loss_alone_counts(is_shaped, expected):
    values = -jnp.array([[[0.0, 1.0, 2.0, 4.0], [0.0, 1.0, 3.0, 3.0]]])
    found = learning.advantages(values, jnp.ones((1, 2, 3)), jnp.bool_(is_shaped), 0.5)
    advantage = np.array(expected) / (0.5 + 0.02)
    np.testing.assert_allclose(found[0], [advantage, -advantage], rtol=1e-5)


def test_the_policy_is_the_average_over_updates(trainer):
    first, _ = run(trainer, 1)
    second, _ = trainer.update(first)
    share = 2.0 / 3.0
    expected = share * second.policy_params + (1.0 - share) * first.mean_params
    np.testing.assert_array_equal(first.mean_params, first.policy_params)
    np.testing.assert_allclose(second.mean_params, expected, atol=1e-7)
    assert np.abs(second.policy_params - first.policy_params).max() > 1e-4
    head = trainer.policy(second).params["params"]["head"]["bias"]
    assert np.isin(head, second.mean_params).all()


def test_the_same_seed_gives_the_same_policy_and_another_another(trainer):
    first, again, other = (run(trainer, 2, seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.policy_params, again.policy_params)
    assert not np.array_equal(first.policy_params, other.policy_params)


def test_one_program_serves_every_horizon_seed_and_set_of_families(trainer, counts):
    rows = [row for seed in (0, 1) for row in run(trainer, 4, seed)[1]]
    falls = {name: value for row in rows for name, value in row.items() if "fall/" in name}
    assert set(falls) == {"fall/one", "fall/other"}
    assert len({next(v for k, v in row.items() if "fall/" in k) for row in rows}) == 8
    assert counts == {"runs": 2, "learn": 1}


def test_runs_of_a_group_share_all_but_the_actions(trainer):
    for probability in (1.0 - 1e-6, 0.4):
        params, _ = ravel_pytree(fresh_policy(hold_probability=probability).params)
        _, info = trainer.update(trainer.init(0)._replace(policy_params=params))
        [spread] = [value for name, value in info.items() if "spread/" in name]
        assert (spread == 0.0) == (probability > 0.5)


def test_the_distribution_is_as_wide_as_it_says():
    scales = jax.vmap(families.scales.draw_scales)(jax.random.split(jax.random.key(0), 2048))
    for drawn, low, high in (
        (scales.loss, 1e-2, 1e2),
        (scales.params, 1e-3, 1e3),
        (scales.init, 10.0**-1.5, 10.0**0.4),
    ):
        assert low * 0.999 <= drawn.min() < 1.5 * low
        assert high / 1.5 < drawn.max() <= high * 1.001
    recipe = meta_runs.any_lr().description
    assert recipe["learning_rates"] == [1e-6, 10.0]
    assert recipe["horizons"] == [150, 1500]
    assert {"sgd", "momentum", "adam", "rmsprop", "lion"} <= set(recipe["optimizers"])


# Evolution needs more updates the more parameters, hence features, a policy has.
@pytest.mark.parametrize(
    ("learner", "updates"),
    [("reinforce", 25), pytest.param("evolution", 100, marks=pytest.mark.heavy)],
)
def test_it_learns_to_raise_a_rate_that_is_too_low(learner, updates):
    trainer = tiny(
        learner=learner,
        optimizers=("sgd",),
        learning_rates=(1e-3, 1e-3),
        horizons=(60, 60),
        groups=8,
        rollouts=8,
        policy_learning_rate=2e-2,
        sigma=0.1,
    )
    state, _ = run(trainer, updates)
    rates = []
    for policy in (trainer.policy(trainer.init(0)), trainer.policy(state)):
        probs = np.exp(policy.log_probs(policy.params, jnp.zeros(28)))
        rates.append(probs[2] - probs[0])
    assert rates[0] == pytest.approx(0.0, abs=1e-6)
    assert rates[1] > 0.1


def test_several_epochs_clip_the_ratio():
    """The first of two actions turned out well, the last badly, and that again and again."""
    policy = fresh_policy(start="uniform")
    flat, unravel = ravel_pytree(policy.params)
    batch = learning.Decisions(
        observation=jnp.ones((1, 1, 2, 28)),
        action=jnp.array([[[0, 2]]]),
        log_prob=jnp.full((1, 1, 2), -np.log(3.0)),
        advantage=jnp.array([[[1.0, -1.0]]]),
        mask=jnp.ones((1, 1, 2)),
    )
    options = {"entropy_bonus": 0.0, "policy_learning_rate": 1e-4}

    def ratios(epochs):
        setting, _ = tiny(policy, epochs=epochs, **options).update.args
        start = setting.policy_optimizer.init(flat)
        params, _, info = jax.jit(partial(learning.reinforce, setting))(flat, start, [batch])
        assert all(np.isfinite(value) for value in info.values())
        return 3.0 * np.exp(policy.log_probs(unravel(params), jnp.ones(28)))

    once, often = ratios(1), ratios(300)
    assert 1.0 < once[0] < 1.1
    # Where there is no gain left, nothing but momentum moves it.
    assert 1.2 < often[0] < 1.3
    assert 0.7 < often[2] < 0.8


def test_a_run_that_diverges_counts_as_one_nat_above_its_start():
    values = learning.log_values(
        optax_meta.Trajectory(
            step=jnp.zeros((1, 2, 3), jnp.int32),
            observation=jnp.zeros((1, 2, 3, 28)),
            action=jnp.zeros((1, 2, 3), jnp.int32),
            log_prob=jnp.zeros((1, 2, 3)),
            value=jnp.array([[[2.0, 1.5, 0.0], [2.0, 900.0, 0.0]]]),
            learning_rate=jnp.zeros((1, 2, 3)),
            mask=jnp.array([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]]),
            initial={"loss": jnp.array([[2.0, 2.0]])},
            final={"loss": jnp.array([[1.0, jnp.nan]])},
        )
    )
    np.testing.assert_allclose(values[0, 0], np.log([2.0, 2.0, 1.0, 1.0]), atol=1e-6)
    worst = np.log(2.0) + 1.0
    np.testing.assert_allclose(values[0, 1], [np.log(2.0), np.log(2.0), worst, worst], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rollouts": 1}, "`rollouts` must be a whole number ≥ 2"),
        ({"horizons": (10, 5)}, "`horizons` must rise"),
        ({"horizons": (10.5, 20.5)}, "`horizons` must be a whole number"),
        ({"discount": 5.0}, r"`discount` must lie in \[0, 1\]"),
        ({"unknown_horizons": -3.0}, r"`unknown_horizons` must lie in \[0, 1\]"),
        ({"sigma": 0.0}, "`sigma` must be positive"),
        ({"entropy_bonus": -1.0}, "`entropy_bonus` must not be negative"),
        ({"policy_learning_rate": -1.0}, "`policy_learning_rate` must be positive"),
        ({"policy": "any-lr-v2"}, "`policy` must be a Policy, got str"),
        ({"learning_rates": (0.0, 1.0)}, "`learning_rates` must rise"),
        ({"optimizers": ("adamax",)}, "`optimizers` must be out of"),
        ({"learner": "dqn"}, "`learner` must be"),
        ({"learner": "evolution", "rollouts": 3}, "must be even"),
        ({"weight_decays": (0.0, 1.0)}, "`weight_decays` must rise from above 0"),
        ({"families_per_update": 2}, "`families_per_update` must lie between 1 and 1"),
        ({"epochs": 0}, "`epochs` must be a whole number ≥ 1"),
        ({"groups": 0}, "`groups` must be a whole number ≥ 1"),
        ({"shaped_updates": -1}, "`shaped_updates` must be a whole number ≥ 0, got -1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_families_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"different names, got \['quadratic', 'quadratic'\]"):
        tiny(made=[families.quadratics(dim=4), families.quadratics(dim=8)])


@pytest.mark.parametrize("learner", ["reinforce", "evolution"])
def test_runs_one_after_another_teach_what_runs_at_once_do(learner):
    policy = fresh_policy(hidden_sizes=())
    learned = []
    for vectorized in (True, False):
        options = {"optimizers": ("sgd",), "learner": learner, "vectorized": vectorized}
        state, _ = run(tiny(policy=policy, rollouts=4, **options), 1)
        learned.append(state.policy_params)
    np.testing.assert_allclose(*learned, rtol=1e-3, atol=1e-6)
    assert np.any(learned[0] != ravel_pytree(policy.params)[0])


@pytest.mark.parametrize("learner", ["reinforce", "evolution"])
def test_a_loss_without_a_logarithm_is_refused_and_nothing_is_changed(learner):
    family = families.quadratics(dim=4)

    def build(drawn):
        task = family.build(drawn)
        return task._replace(evaluate=lambda params: {"loss": -jnp.sum(params**2)})

    trainer = tiny(made=[family._replace(build=build)], learner=learner, optimizers=("sgd",))
    state = trainer.init(0)
    with pytest.raises(ValueError, match="on quadratic: the loss of a family must be finite and"):
        trainer.update(state)
    assert np.all(np.isfinite(state.policy_params))


def test_a_run_of_other_settings_is_not_gone_on_with(tmp_path, capsys):
    settings = {"recipe": "any-lr-v2", "learner": "evolution", "groups": 16, "rollouts": 8}
    folder.claim(tmp_path, {**settings, "seed": 0}, write=False)
    assert not list(tmp_path.iterdir())
    for _ in range(2):
        folder.claim(tmp_path, {**settings, "seed": 0}, write=True)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    assert cli.main(["meta-train", "--groups", "2", "--out", str(tmp_path)]) == 2
    assert "holds a run with --groups 16: go on" in capsys.readouterr().err
    for text in ("", "[]", '{"recipe": "any-lr-v2"}'):
        (tmp_path / "settings.json").write_text(text)
        assert cli.main(["meta-train", "--out", str(tmp_path)]) == 2
        assert "settings.json` is damaged: write {" in capsys.readouterr().err


def test_a_refused_command_leaves_nothing(tmp_path, capsys):
    folder = tmp_path / "run"
    options = ["--learner", "evolution", "--rollouts", "3"], ["--seed", str(2**32)]
    for given in options:
        assert cli.main(["meta-train", *given, "--out", str(folder)]) == 2
        assert capsys.readouterr().err.startswith("optax-meta: error: ")
        assert not folder.exists()


def test_fewer_updates_than_there_are_is_refused(tmp_path, trainer):
    meta_runs.train(trainer, tmp_path, updates=2)
    with pytest.raises(ValueError, match="holds 2 updates, more than the 1 asked for"):
        meta_runs.train(trainer, tmp_path, updates=1)


def test_a_bad_seed_of_meta_training(trainer):
    for seed in (-1, 1.7, 2**32):
        with pytest.raises(ValueError, match="`seed` must be an integer in"):
            trainer.init(seed)


def test_a_stopped_run_goes_on_at_the_same_bits(tmp_path, trainer):
    meta_runs.train(trainer, tmp_path / "a", updates=2, save_seconds=0.0)
    stopped = meta_runs.train(trainer, tmp_path / "a", updates=4, save_seconds=0.0)
    whole = meta_runs.train(trainer, tmp_path / "b", updates=4)
    jax.tree.map(np.testing.assert_array_equal, stopped.params, whole.params)
    assert len((tmp_path / "a" / "log.jsonl").read_text().splitlines()) == 4
    assert list((tmp_path / "a").glob("events*"))


@pytest.mark.heavy
def test_eight_devices_learn_what_one_does(tmp_path):
    code = (
        "import sys, jax, numpy as np\n"
        "sys.path.insert(0, 'tests')\n"
        "from test_meta_training import run, tiny\n"
        "auto = (jax.sharding.AxisType.Auto,)\n"
        "mesh = jax.make_mesh((8,), ('tasks',), auto) if jax.device_count() == 8 else None\n"
        "state, _ = run(tiny(groups=8, horizons=(20, 20), mesh=mesh), 2)\n"
        "np.save(sys.argv[1], np.asarray(state.policy_params))\n"
    )
    found = []
    for count in (1, 8):
        path = tmp_path / f"{count}.npy"
        flags = f"--xla_force_host_platform_device_count={count}"
        env = {**os.environ, "XLA_FLAGS": flags}
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=env)
        found.append(np.load(path))
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
    assert np.ptp(found[0]) > 0.0


@pytest.mark.parametrize(
    ("arguments", "compiled", "message", "waits"),
    [
        ("meta-train --groups 2 --devices 1", "jit(run_batch)", "the same command goes on", False),
        # What takes seconds, not minutes, may be compiled to its end.
        (
            "compare --methods any-lr-v2 --seeds 2 --steps 20000",
            "jit(train)",
            "nothing was written",
            True,
        ),
    ],
)
def test_ctrl_c_while_xla_compiles(arguments, compiled, message, waits, tmp_path):
    argv = ["optax-meta", *arguments.split(), "--out", str(tmp_path / "run")]
    code = (
        "import signal, sys\n"
        "from optax_meta.cli import _entry\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs\n"
        f"sys.argv = {argv}\n"
        "_entry()\n"
    )
    env = {**os.environ, "JAX_LOG_COMPILES": "1"}
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    try:
        while f"Compiling {compiled}" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(1.0)  # so that it is XLA that works, not Python
        for _ in range(20):  # one that falls into a garbage collection is ignored by Python
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                _, errors = process.communicate(timeout=12)
                break
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert message in errors
    assert waits or f"Finished XLA compilation of {compiled}" not in errors


SCRIPT = """
import sys, jax, numpy as np
sys.path.insert(0, 'tests')
address, count, index, folder, updates = sys.argv[1:]
if int(count) > 1:
    jax.distributed.initialize(address, int(count), int(index))
from pathlib import Path
from types import SimpleNamespace
from optax_meta.meta import runs
from test_meta_training import tiny
mesh = jax.make_mesh((jax.device_count(),), ('tasks',), (jax.sharding.AxisType.Auto,))
trainer = tiny(groups=2, mesh=mesh)
policy = runs.train(trainer, Path(folder), updates=int(updates), save_seconds=0.0)
leaves = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(policy.params)]
np.save(Path(folder) / f'params-{count}-{index}.npy', np.concatenate(leaves))
"""


def start(folder, updates, count=1, index=0, devices=1, port=0):
    flags = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-c", SCRIPT, f"localhost:{port}", count, index, folder, updates]
    env = {**os.environ, "XLA_FLAGS": flags}
    return subprocess.Popen(list(map(str, command)), env=env, stderr=subprocess.PIPE, text=True)


def finish(*processes):
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]


@pytest.mark.heavy
def test_two_processes_learn_what_two_devices_do_and_resume(tmp_path):
    with contextlib.closing(socket.socket()) as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for updates in (1, 2):  # the second call resumes
        finish(*(start(tmp_path / "two", updates, 2, index, port=port) for index in range(2)))
    finish(start(tmp_path / "one", 2, devices=2))
    two = [np.load(tmp_path / "two" / f"params-2-{index}.npy") for index in range(2)]
    np.testing.assert_array_equal(two[0], two[1])
    np.testing.assert_allclose(two[0], np.load(tmp_path / "one" / "params-1-0.npy"), atol=1e-4)


@pytest.mark.heavy
def test_a_killed_run_goes_on_at_the_same_bits(tmp_path):
    log = tmp_path / "killed" / "log.jsonl"
    for wanted in (2, 4):
        process = start(tmp_path / "killed", 6)
        deadline = time.monotonic() + 200
        while not (log.exists() and len(log.read_text().splitlines()) >= wanted):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
        process.communicate()
    finish(start(tmp_path / "killed", 6))
    finish(start(tmp_path / "whole", 6))
    killed, whole = (np.load(tmp_path / n / "params-1-0.npy") for n in ("killed", "whole"))
    np.testing.assert_array_equal(killed, whole)
