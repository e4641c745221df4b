import argparse
import json
import shutil
import sys

import data_switch
import frozen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import protocol as benchmark
import pytest
import wrappers
from reported_tasks import TEST
from validation_tasks import VALIDATION

import optax_meta
from optax_meta import families, protocol, tasks
from optax_meta.meta.protocol import Contender

PLAIN = Contender.from_schedule("constant")
HOLD = Contender.from_controller(lambda run: optax_meta.constant())


NUMBERS = {"learning_rates": [1e-3, 0.1], "horizons": [5, 9], "seeds": 2, "oracle_seeds": 1}


def judge(folder=None, progress=None, numbers=NUMBERS, **contenders):
    return protocol.judge(
        [tasks.quadratic(dim=2)],
        contenders or {"hold": HOLD},
        {"sgd": optax.sgd},
        folder=folder,
        progress=progress,
        **numbers,
    )


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A folder of two finished cells, asked for in NumPy's numbers, and these cells."""
    folder = tmp_path_factory.mktemp("judged")
    numbers = {
        "learning_rates": np.array([1e-3, 0.1]),
        "horizons": np.array([5, 9]),
        "seeds": np.int64(2),
        "oracle_seeds": np.int32(1),
    }
    return folder, judge(folder, numbers=numbers)


@pytest.fixture
def folder(judged, tmp_path):
    """A copy of that folder, to be changed."""
    return shutil.copytree(judged[0], tmp_path / "judged")


def test_schedules_agree_with_optax():
    steps = np.arange(100)
    for kind, decay in (
        (1, optax.linear_schedule(2.0, 0.0, 95)),
        (2, optax.cosine_decay_schedule(2.0, 95)),
    ):
        ours = protocol.schedule(kind, 2.0, 100)(steps)
        np.testing.assert_allclose(ours[5:], decay(steps[5:] - 5), atol=1e-6)
        np.testing.assert_allclose(ours[:5], 2.0 * np.arange(1, 6) / 5.0, rtol=1e-6)
    np.testing.assert_array_equal(protocol.schedule(0, 2.0, 100)(steps), 2.0)


def test_the_oracle_is_the_best_of_the_sweep_and_scored_on_other_seeds(judged, folder):
    cell = judged[1][1]
    rates = {"constant": 0}
    rates |= {name: index for index, name in enumerate(protocol.SCHEDULES)}
    again = Contender(
        lambda factory, run: factory(
            learning_rate=protocol.schedule(
                rates[cell["oracle"]["schedule"]], cell["oracle"]["rate"], run.steps
            )
        )
    )
    same = judge(folder, again=again)[1]
    for losses in same["losses"]["again"]:
        np.testing.assert_allclose(losses, cell["oracle"]["losses"], rtol=1e-5)
    sweep = np.array(cell["sweep"])
    assert sweep.argmin() == 13 * rates[cell["oracle"]["schedule"]] + list(
        protocol.SWEEP_RATES
    ).index(cell["oracle"]["rate"])
    assert abs(sweep.min() / np.mean(cell["oracle"]["losses"]) - 1.0) > 1e-3  # other seeds
    ratio, diverged = protocol.ratios(same, "again")
    np.testing.assert_allclose(np.mean(ratio), 1.0, atol=0.05)
    assert not diverged.any()


def test_what_is_done_is_not_done_again(judged, folder):
    first, calls = judged[1], []
    assert judge(folder, calls.append) == first
    assert calls == []
    more = judge(folder, calls.append, hold=HOLD, again=HOLD)
    assert [call.rpartition(": ")[2] for call in calls] == ["again", "again"]
    assert more[0]["losses"]["again"] == first[0]["losses"]["hold"]
    assert len(list(folder.iterdir())) == 2
    assert json.loads((folder / "quadratic-sgd-5.json").read_text()) == more[0]


def test_other_settings_of_a_contender_are_run_again(folder):
    def scaled(factor):
        return Contender(lambda factory, run, factor: factory(factor * run.rate), factor)

    calls = []
    one = judge(folder, calls.append, mine=scaled(1.0))
    other = judge(folder, calls.append, mine=scaled(0.5))
    assert [call.rpartition(": ")[2] for call in calls] == ["mine"] * 4
    assert one[0]["losses"]["mine"] != other[0]["losses"]["mine"]


def test_a_folder_of_another_setting_is_refused(folder):
    for changes in ({"learning_rates": [1e-3]}, {"seeds": 3}, {"oracle_seeds": 2}):
        [name] = changes
        with pytest.raises(ValueError, match=rf"another `{name}`, .* choose another folder"):
            judge(folder, numbers={**NUMBERS, **changes})


def cell(losses, oracle=(1.0, 1.0), initial=(4.0, 4.0), floor=0.0, times=(0.5, 0.9)):
    return {
        "times": {name: [list(times)] for name in losses},
        "initial": list(initial),
        "oracle": {"losses": list(oracle)},
        "floor": floor,
        "losses": losses,
    }


def test_a_folder_of_another_version_is_refused(folder):
    finished = [(path, json.loads(path.read_text())) for path in folder.glob("*.json")]
    for key in ("test_losses", "sweep", "initial", "fingerprints"):
        for path, cell in finished:
            path.write_text(json.dumps({k: v for k, v in cell.items() if k != key}))
        with pytest.raises(ValueError, match="was written by another version"):
            judge(folder, hold=HOLD, other=PLAIN)


@pytest.mark.parametrize("text", ["", '{"task": ', "[]", "3"])
def test_a_damaged_folder_is_refused(tmp_path, text):
    (tmp_path / "quadratic-sgd-5.json").write_text(text)
    with pytest.raises(ValueError, match=r"quadratic-sgd-5\.json` is damaged"):
        judge(tmp_path)


def test_numbers_of_numpy_are_kept_as_numbers(judged):
    folder, cells = judged
    kept = [json.loads((folder / f"quadratic-sgd-{steps}.json").read_text()) for steps in (5, 9)]
    assert kept == cells


def test_settings_of_another_name_are_other_settings():
    named = [{"power": 2.0}, {"last_raise": 2.0}, (2.0,), np.float32(2.0), np.ones(1) * 2.0]
    assert len({PLAIN._replace(settings=settings).fingerprint for settings in named}) == len(named)


def test_ratios_are_capped_and_diverged_runs_are_counted():
    losses = [[2.0, float("nan")], [5.0, 1e-9]]
    ratio, diverged = protocol.ratios(cell({"a": losses}), "a")
    np.testing.assert_allclose(ratio, [[2.0, 10.0], [10.0, 0.1]])
    np.testing.assert_array_equal(diverged, [[False, True], [True, False]])
    negative = cell({"a": [[-1.5, -1.0]]}, oracle=(-1.5, -1.5), initial=(3.0, 3.0), floor=-2.0)
    np.testing.assert_allclose(protocol.ratios(negative, "a")[0], [[1.0, 2.0]])


def test_scores():
    cells = [cell({"good": [[1.0, 1.0]], "bad": [[2.0, 2.0]]}) for _ in range(3)]
    cells.append(cell({"good": [[1.21, 1.21]], "bad": [[5.0, 5.0]]}))
    good, bad = protocol.score(cells)
    assert (good.method, bad.method) == ("good", "bad")
    assert good.geometric_mean == pytest.approx(1.21**0.25)
    assert good.geometric_interval == pytest.approx((1.21**0.25, 1.21**0.25))
    assert good.interquartile_mean == pytest.approx(1.0)
    assert good.within_tenth == 0.75
    assert good.time_to_oracle == 0.9
    assert bad.diverged == 0.25
    assert bad.cells == 4
    excluded = cell({"good": [[1.0, 1.0]]}, oracle=(1.0, float("nan")))
    assert protocol.score([*cells, excluded])[0].cells == 4


def test_a_cell_whose_oracle_diverges_is_excluded():
    huge = cell({"a": [[3.9, 3.9]]}, oracle=(1.0, 1e6))
    assert not protocol.comparable([huge])
    np.testing.assert_allclose(protocol.ratios(huge, "a")[0], 3.9 / 2.5)  # as if it ended at 4


def test_an_interval_is_that_of_the_runs_however_often_they_count():
    losses = np.exp(np.random.default_rng(0).normal(0.0, 0.3, (1, 8)))
    once, often = (
        protocol.score(
            [
                {
                    "initial": [9.0] * 8,
                    "oracle": {"losses": [1.0] * 8},
                    "floor": 0.0,
                    "losses": {"a": np.repeat(losses, k, axis=0)},
                    "times": {"a": np.ones((k, 8))},
                }
            ]
        )[0]
        for k in (1, 8)
    )
    assert once.geometric_interval == pytest.approx(often.geometric_interval)
    assert once.geometric_interval[1] - once.geometric_interval[0] > 0.1


def test_methods_that_draw_have_a_seed_for_each_run():
    walk = Contender.from_controller(
        lambda run: optax_meta.classic_reinforce(
            action_space=optax_meta.actions.learning_rate(),
            policy_learning_rate=0.0,
            decision_interval=1,
            seed=run.seed,
        )
    )
    task = tasks.quadratic(dim=2, noise=0.0)
    same = task._replace(init=lambda key: jnp.ones(2))
    [found] = protocol.judge(
        [same],
        {"walk": walk},
        {"sgd": optax.sgd},
        learning_rates=[1e-3],
        horizons=[9],
        seeds=4,
        oracle_seeds=1,
    )
    assert len(set(found["losses"]["walk"][0])) == 4


def test_most_runs_must_reach_the_loss_of_the_oracle():
    never = cell({"a": [[2.0, 2.0]]}, times=(0.5, np.inf))
    assert protocol.score([never])[0].time_to_oracle == np.inf
    assert protocol.score([never])[0].reached == 0.5
    assert protocol.score([never, never, cell({"a": [[1.0, 1.0]]})])[0].time_to_oracle == 0.9


def test_times_are_when_the_loss_of_the_oracle_is_first_reached():
    task = tasks.quadratic(dim=1, condition=1.0, noise=0.0)
    shallow = task._replace(loss=lambda params, batch: 0.01 * task.loss(params, batch))
    halving = Contender(lambda factory, run: factory(run.rate), any_start=True)
    [found] = protocol.judge(
        [shallow],
        {"mine": halving, "slow": halving._replace(make=lambda factory, *_: factory(1e-3))},
        {"sgd": optax.sgd},
        learning_rates=[50.0],  # halves the parameter at each step; the sweep's highest is 10
        horizons=[20],
        seeds=2,
        oracle_seeds=1,
    )
    initial = np.array(found["initial"])
    np.testing.assert_allclose(found["oracle"]["losses"], initial * 0.9**40, rtol=1e-3)
    goal = np.mean(found["oracle"]["losses"])
    wanted = np.maximum(np.ceil(np.log(initial / goal) / np.log(4.0)), 1.0) / 20.0
    np.testing.assert_allclose(found["times"]["mine"][0], wanted)
    assert np.all(np.array(found["times"]["slow"]) == np.inf)
    np.testing.assert_allclose(found["losses"]["mine"][0], initial * 0.25**20, rtol=1e-3)


def test_losses_on_held_out_data_are_reported_where_there_are_any(judged):
    task = tasks.quadratic(dim=2)

    def evaluate(params):
        loss = task.evaluate(params)["loss"]
        return {"loss": loss, "test_loss": 3.0 * loss}

    away = Contender(lambda factory, run: factory(1e30 * run.rate))
    [held_out] = protocol.judge(
        [task._replace(evaluate=evaluate)],
        {"hold": HOLD, "away": away},
        {"sgd": optax.sgd},
        learning_rates=[0.1],
        horizons=[5],
        seeds=2,
        oracle_seeds=1,
    )
    assert held_out["test_losses"]["away"] == [[np.inf, np.inf]]
    for losses, test_losses in (
        (held_out["oracle"]["losses"], held_out["oracle"]["test_losses"]),
        (held_out["losses"]["hold"], held_out["test_losses"]["hold"]),
    ):
        np.testing.assert_allclose(test_losses, 3.0 * np.array(losses), rtol=1e-6)
    assert judged[1][0]["test_losses"]["hold"] == [[None, None]] * 2


def test_a_method_for_one_optimizer_runs_there_alone(folder):
    only = HOLD._replace(optimizers=("adamw",))
    assert list(judge(folder, hold=HOLD, only=only)[0]["losses"]) == ["hold"]


def test_contenders_that_differ_in_their_settings_share_a_program(folder):
    traces = []

    def make(factory, run, factor):
        traces.append(run)
        return factory(learning_rate=factor * run.rate)

    once = Contender(make, settings=1.0)
    cells = judge(folder, once=once, tenfold=once._replace(settings=10.0), same=PLAIN)
    assert len(traces) == 1
    for cell in cells:
        losses = cell["losses"]
        np.testing.assert_allclose(losses["once"], losses["same"], rtol=1e-5)
        assert np.all(np.array(losses["tenfold"]) < losses["once"])


def test_the_best_single_schedule_is_that_of_the_lowest_mean_ratio(judged):
    sweep = np.full((3, 13), 5.0)
    sweep[0, 3], sweep[1, 7], sweep[2, 9] = 1.0, 4.0, 2.0
    other = np.full((3, 13), 5.0)
    other[0, 3], other[1, 7], other[2, 9] = 5.0, 1.0, 1.5
    cells = [{"sweep": sweep.tolist(), "floor": 0.0}, {"sweep": other.tolist(), "floor": 0.0}]
    assert protocol.best_single(cells) == ("cosine", protocol.SWEEP_RATES[9])
    assert protocol.best_single(cells[:1]) == ("constant", protocol.SWEEP_RATES[3])
    assert np.shape(judged[1][0]["sweep"]) == (3, 13)


def test_recovery_from_a_switch_of_the_data():
    def run(rate):  # jumps from 1 to 11 at half time and falls back
        return np.concatenate([np.full(50, 1.0), 1.0 + 10.0 * np.exp(-rate * np.arange(50.0))])

    slow, fast = (np.stack([run(rate)] * 3) for rate in (0.1, 0.4))
    target = data_switch.goal(slow)
    np.testing.assert_allclose(target, 1.0 + (1.0 + np.exp(-0.1)) / 2.0, rtol=1e-6)
    # The mean over five steps to come is e^-2r of the value in their middle, or nearly.
    assert abs(data_switch.recovery(slow, target) - (np.log(10.0) / 0.1 - 2.0)) <= 2.0
    found = data_switch.times_faster(slow, fast)
    assert 3.5 < found["faster"] < 6.0
    assert found["interval"] == [found["faster"]] * 2
    assert data_switch.recovery(np.full((2, 100), 5.0), target) == 50  # never


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.heavy) if name == "random walk" else name
        for name in benchmark.BASELINES
    ],
)
def test_every_baseline_of_the_benchmark_trains(name):
    contender = benchmark.BASELINES[name]
    [only] = contender.optimizers or ("adamw",)
    run = protocol.Run(jnp.float32(1e-2), jnp.int32(20), jnp.uint32(0))
    tx = contender.transformation(benchmark.OPTIMIZERS[only], run)

    @jax.jit
    def train():
        def step(_, carry):
            params, state = carry
            value, grads = jax.value_and_grad(lambda x: jnp.sum((x - 1.0) ** 2))(params)
            updates, state = tx.update(grads, state, params, value=value)
            return optax.apply_updates(params, updates), state

        params = jnp.zeros(3)
        params, state = jax.lax.fori_loop(0, 5, step, (params, tx.init(params)))
        return params if contender.params is None else contender.params(state, params)

    assert 0.0 < jnp.abs(train()).max() < 1.0


def test_a_policy_trained_anew_or_inside_other_wrappers_is_run_again():
    policy = optax_meta.load_policy("any-lr-v2")
    changed = frozen.changed(policy, {"trust_region.max_share": 0.1})
    rewrapped = policy._replace(wrappers=dict(reversed(policy.wrappers.items())))
    others = changed, rewrapped, policy._replace(dense_steps=10)
    prints = {frozen.contender(p).fingerprint for p in (policy, *others)}
    assert len(prints) == 4
    # Its wrappers alone are of the same shape, and since it holds they are what it is.
    assert frozen.contender(frozen.holding(policy)).fingerprint in prints


def test_other_numbers_leave_wrappers_in_their_order():
    policy = optax_meta.load_policy("any-lr-v2")
    numbers = {"annealed.power": 1.5, "calibrated.probe_rate": 1e-7}
    changed = frozen.changed(policy, numbers)
    assert list(changed.wrappers) == list(policy.wrappers)
    assert frozen.numbers(changed) == frozen.numbers(policy) | numbers
    with pytest.raises(ValueError, match=r"`annealed\.power`: the policy's wrappers are none"):
        frozen.changed(optax_meta.init_policy(jax.random.key(0)), numbers)


def test_variants_of_numbers_share_a_program():
    change = {"annealed.power": 1.5, "calibrated.total_decay": 1.0}
    policy = optax_meta.load_policy("any-lr-v2")
    same, other = wrappers.contenders(policy, {"as it is": {}, "other": change}).values()
    assert same.program == other.program
    assert jax.tree.structure(same.settings) == jax.tree.structure(other.settings)
    with pytest.raises(ValueError, match="`power` must be a number ≥ 0, got -1"):
        wrappers.contenders(policy, {"wrong": {"annealed.power": -1.0}})


@pytest.mark.parametrize(
    ("variant", "message"),
    [("fall=1.5", "no number of a wrapper: fall; there are"), ("annealed.power", "expected")],
)
def test_a_variant_names_wrapper_and_number(variant, message):
    assert wrappers.parsed("annealed.power=1.5") == {"annealed.power": 1.5}
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        wrappers.parsed(variant)


def test_bad_arguments():
    for changes, message in (
        ({"seeds": 1}, "`seeds` must be a whole number ≥ 2"),
        ({"horizons": [5, 0]}, "`horizons` must be a whole number ≥ 1, got 0"),
        ({"horizons": [5.5]}, "`horizons` must be a whole number ≥ 1"),
        ({"learning_rates": []}, "`learning_rates` must be positive and finite"),
        ({"learning_rates": [1.0, -1.0]}, "`learning_rates` must be positive and finite"),
    ):
        given = {"learning_rates": [0.1], "horizons": [5], **changes}
        with pytest.raises(ValueError, match=message):
            protocol.judge([], {}, {}, **given)
    with pytest.raises(ValueError, match="tasks need different names"):
        protocol.judge([tasks.quadratic()] * 2, {}, {}, learning_rates=[1.0], horizons=[])


def test_tiers_are_disjoint():
    names = set(families.FAMILIES)
    assert not names & set(TEST)
    assert not names & set(VALIDATION)
    assert not set(TEST) & set(VALIDATION)


@pytest.fixture
def promotion():
    with jax.numpy_rank_promotion("allow"):  # the benchmarks are scripts
        yield


@pytest.mark.heavy
@pytest.mark.usefixtures("promotion")
@pytest.mark.parametrize("make", [*TEST.values(), *VALIDATION.values()])
def test_tasks_are_sound(make):
    task = make()

    @jax.jit  # one program compiles sooner than each operation by itself
    def figures():
        params = task.init(jax.random.key(0))
        loss, grads = jax.value_and_grad(task.loss)(params, task.sample(jax.random.key(1)))
        moved = optax.tree.add_scale(params, -1e-4, grads)
        after = task.evaluate(moved)["loss"]
        return loss, optax.tree.norm(grads), task.evaluate(params)["loss"], after

    loss, grad_norm, start, after = figures()
    assert jnp.isfinite(loss)
    assert jnp.isfinite(grad_norm)
    assert start > task.floor
    assert after < start + 1e-2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--write"], "--write is for the cuts that the pages show"),
        (["--cut", "full", "--write", "--tasks", "digits"], "--write is for all tasks"),
        (["--cut", "full", "--write", "--optimizers", "sgd"], "--write is for whole cuts"),
        (["--tasks", "chess"], "no task of this tier: chess"),
    ],
)
def test_the_benchmark_refuses_what_would_not_be_whole(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["protocol.py", *arguments])
    with pytest.raises(SystemExit):
        benchmark.parsed()
    assert message in capsys.readouterr().err


def test_every_cut_covers_every_task():
    tasks = list(TEST)
    for cut in benchmark.CUTS.values():
        covered = {task for name in cut.optimizers for task in cut.tasks(name, tasks)}
        assert covered == set(tasks)
