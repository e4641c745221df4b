import json
import subprocess
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_meta
from optax_meta import arguments, cli, tasks
from optax_meta.meta import evaluation
from optax_meta.meta.evaluation import methods, running
from optax_meta.reports import folder as reports


@pytest.fixture(scope="module")
def comparison():
    return optax_meta.compare("quadratic", steps=40, seeds=3, learning_rate=1e-2)


def test_every_method_ran_every_seed(comparison):
    assert tuple(comparison.methods) == arguments.METHODS
    for result in comparison.methods.values():
        assert result.losses.shape == (3, 40)
        assert result.records.value.shape == (3, 40)
        assert result.final["loss"].shape == result.seconds.shape == (3,)


def test_all_methods_start_from_the_same_parameters_and_first_batch(comparison):
    first = comparison.methods["constant"]
    for result in comparison.methods.values():
        np.testing.assert_array_equal(result.initial["loss"], first.initial["loss"])
        np.testing.assert_array_equal(result.losses[:, 0], first.losses[:, 0])


def test_a_random_walk_goes_on_to_the_end():
    result = optax_meta.compare("quadratic", ["random-walk"], steps=240, seeds=2)
    records = result.methods["random-walk"].records
    late = records.decision.action[:, 120:][records.decided[:, 120:]]
    assert late.size == 24
    assert len(np.unique(late)) > 3


def test_constant_equals_plain_optax(comparison):
    task, seed = tasks.quadratic(), jnp.uint32(1)
    losses = running.train(task, optax.adamw, 1e-2, 40, None, seed).losses
    np.testing.assert_allclose(comparison.methods["constant"].losses[1], losses, rtol=1e-5)


def test_summary_by_hand(comparison):
    rows = evaluation.summarize(comparison)
    means = [row.final_loss.mean for row in rows]
    assert means == sorted(means)
    constant = next(row for row in rows if row.method == "constant")
    final = comparison.methods["constant"].final["loss"]
    assert constant.num_rates == 1
    assert constant.lowest_rate == constant.highest_rate == pytest.approx(1e-2)
    assert constant.final_loss.mean == pytest.approx(final.mean())
    # t(0.975, 2) = 4.303
    half = 4.303 * final.std(ddof=1) / np.sqrt(3)
    assert constant.final_loss.half_width == pytest.approx(half, rel=1e-3)
    assert rows[0].versus_best == (0.0, 0.0)
    assert rows[0].is_tied


def test_a_diverged_run_counts_with_its_initial_loss():
    result = optax_meta.compare("quadratic", ["constant"], steps=50, seeds=2, learning_rate=1e30)
    row = evaluation.summarize(result)[0]
    assert row.num_diverged == 2
    np.testing.assert_allclose(row.loss_reduction.mean, 0.0)


def test_own_tasks_and_controllers():
    task = tasks.Task(
        name="mine",
        description="x²",
        init=jax.random.normal,
        sample=lambda key: key,
        loss=lambda x, _: jnp.square(x),
        evaluate=lambda x: {"loss": jnp.square(x)},
    )
    own = {
        "warm": optax_meta.warmup(5),
        "mine": lambda steps, seed: optax_meta.reinforce(seed=seed, total_steps=steps),
    }
    result = optax_meta.compare(task, own, steps=10, seeds=2, optimizer=optax.adamw)
    assert set(result.methods) == {"warm", "mine"}
    assert result.methods["mine"].action_labels


@pytest.mark.parametrize(
    ("name", "smaller"),
    [("digits", {"hidden_size": 16}), ("digits-conv", {"channels": 4}), ("quadratic", {})],
)
def test_every_task_can_be_learned(name, smaller):
    task = tasks.TASKS[name](**smaller)
    assert task.name == name
    run = jax.jit(partial(running.train, task, optax.adamw, 1e-2, 15, None))(jnp.uint32(0))
    assert run.final["loss"] < 0.8 * run.initial["loss"]
    assert run.losses.shape == (15,)


ADAMW = "learning_rate", "weight_decay"


@pytest.mark.parametrize(
    ("optimizer", "names", "called"),
    [
        (optax.sgd, ("learning_rate",), "sgd"),
        (partial(optax.sgd, momentum=0.9), ("learning_rate",), "sgd(momentum=0.9)"),
        (optax.adamw, ADAMW, "adamw"),
        (optax.lion, ADAMW, "lion"),
        (optax.lamb, ADAMW, "lamb"),  # its weight decay starts from 0
    ],
)
def test_methods_steer_what_the_optimizer_has(optimizer, names, called):
    assert methods.steered_by(optimizer) == names
    assert methods.name_of(optimizer) == called
    for method in ("constant", "random-walk"):
        controller = methods.METHODS[method](names, 10, jnp.uint32(0))
        assert controller.hyperparams == names
    fresh = methods.METHODS["reinforce"](names, 10, jnp.uint32(0))
    assert fresh.hyperparams == ("learning_rate",)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(evaluation.Interrupted):  # all are accepted, then the first is compiled
        optax_meta.compare("quadratic", optimizer=optimizer, progress=stop)


def test_an_optimizer_without_weight_decay_is_compared():
    result = optax_meta.compare(
        tasks.quadratic(dim=2),
        ["constant", "random-walk"],
        optimizer=partial(optax.sgd, momentum=0.9),
        steps=12,
        seeds=2,
    )
    assert result.optimizer == "sgd(momentum=0.9)"
    assert len(result.methods["random-walk"].action_labels) == 3
    assert set(result.methods["constant"].records.hyperparams) == {"learning_rate"}


def no_progress(*_):
    pytest.fail("compiled before the arguments were looked at")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "nothing"}, "unknown task 'nothing': choose from digits"),
        ({"methods": ["foo"]}, "unknown method 'foo': choose from constant"),
        ({"methods": {"a/b": optax_meta.constant()}}, "name becomes that of a file, got 'a/b'"),
        ({"methods": []}, "`methods` must be a whole number ≥ 1"),
        ({"steps": 0}, "`steps` must be a whole number ≥ 1"),
        ({"seeds": 1}, "`seeds` must be a whole number ≥ 2"),
        ({"learning_rate": -1.0}, "`learning_rate` must be positive"),
        ({"learning_rate": 11.0, "progress": no_progress}, r"bounds \[1e-08, 10\], got 11.0"),
        (
            {
                "optimizer": optax.sgd,
                "methods": {"both": optax_meta.constant(hyperparams=ADAMW)},
                "progress": no_progress,
            },
            "steers `weight_decay`",
        ),
        (
            {"optimizer": optax.scale_by_adam, "progress": no_progress},
            "must take a `learning_rate`, which `scale_by_adam` does not; its arguments are: b1",
        ),
        ({"optimizer": optax.sgd(0.1), "progress": no_progress}, "must be a function such as"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        optax_meta.compare(**{"task": "quadratic", **arguments})


def test_report_holds_everything(comparison, tmp_path):
    page = reports.write_report(comparison, tmp_path / "new").read_text()
    for name in arguments.METHODS:
        assert name in page
    assert page.count("<img") == 4
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    assert [row["method"] for row in results["ranking"]] == [
        row.method for row in evaluation.summarize(comparison)
    ]
    lines = (tmp_path / "new" / "records" / "reinforce.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 3 * 40
    result = comparison.methods["reinforce"]
    assert rows[0]["loss"] == pytest.approx(float(result.losses[0, 0]))
    decided = [row for row in rows if row["decided"]]
    assert len(decided) == 3 * (20 + 2)  # each of the calibrating steps, then every ten
    assert {"action_label", "probabilities", "observation", "reward"} <= decided[0].keys()


def test_writing_again_replaces_the_records(comparison, tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "mine.txt").write_text("kept")
    reports.write_report(comparison, tmp_path)
    fewer = comparison._replace(methods={"constant": comparison.methods["constant"]})
    reports.write_report(fewer, tmp_path)
    kept = {path.name for path in (tmp_path / "records").iterdir()}
    assert kept == {"constant.jsonl", "mine.txt"}
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "results.json", "records"}


def test_a_failing_report_leaves_nothing_behind(comparison, tmp_path, monkeypatch):
    monkeypatch.setattr(reports.page, "comparison_page", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reports.write_report(comparison, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_report_and_prints_a_table(tmp_path, capsys):
    arguments = ["compare", "--task", "quadratic", "--steps", "20", "--seeds", "2"]
    folder = tmp_path / "out"
    assert cli.main([*arguments, "--methods", "constant,plateau", "--out", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "plateau" in printed
    assert "report.html" in printed
    assert "20 steps, 2 seeds. Lowest mean final loss" in (folder / "report.html").read_text()


def test_ctrl_c_after_two_seeds_leaves_a_partial_report(tmp_path, monkeypatch, capsys):
    timed, calls = running.timed, []

    def interrupt(runner, seed):
        calls.append(int(seed))
        if seed == 2 and calls.count(2) == 2:
            raise KeyboardInterrupt
        return timed(runner, seed)

    monkeypatch.setattr(running, "timed", interrupt)
    config = {"controller": "warmup", "steps": 5}
    arguments = ["--task", "quadratic", "--steps", "20", "--seeds", "4", "--methods", "constant"]
    given = ["--controller", f"mine={json.dumps(config)}", "--out", str(tmp_path)]
    assert cli.main(["compare", *arguments, *given]) == 130
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert runs["mine"]["config"] == config
    assert "Stopped early: 2 of 4 seeds are finished" in (tmp_path / "report.html").read_text()
    error = capsys.readouterr().err
    assert "seeds 2 … 3 are left out" in error
    assert "optax-meta compare --task quadratic --methods constant --steps 20 --seeds 4" in error
    assert f"--controller 'mine={json.dumps(config)}'" in error


def test_ctrl_c_before_two_seeds_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "timed", interrupt)
    arguments = ["compare", "--task", "quadratic", "--methods", "constant"]
    assert cli.main([*arguments, "--out", str(tmp_path / "a")]) == 130
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "compare", interrupt)
    assert cli.main(["compare", "--out", str(tmp_path / "a" / "b")]) == 130
    assert capsys.readouterr().err == (
        "optax-meta: each method takes half a minute to compile, or more\n"
        "optax-meta: stopped; nothing was written\n"
    )
    assert not list(tmp_path.iterdir())


def test_bad_configs_are_refused_before_anything_is_compiled(tmp_path, capsys):
    for config, message in {
        '{"controller": "plat"}': "unknown controller 'plat': choose from constant",
        "3": "`methods` must be Controllers, got int",
    }.items():
        assert cli.main(["compare", f"--controller=mine={config}", "--out", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "foo"], "unknown method 'foo': choose from constant"),
        (["--task", "foo"], "invalid choice: 'foo'"),
        (["--steps", "0"], "must be a whole number ≥ 1, got '0'"),
        (["--seeds", "one"], "must be a whole number ≥ 2, got 'one'"),
        (["--lr", "-1"], "must lie in [1e-8, 10], got '-1'"),
        (["--lr", "1e-9"], "must lie in [1e-8, 10], got '1e-9'"),
        (["--controller", "mine=plateau"], "must be NAME=JSON, got 'mine=plateau'"),
        (["--out", "/proc/nowhere"], "cannot write to `/proc/nowhere`"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(arguments, message, capsys):
    assert cli.main(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("optax-meta: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_python_m_answers_before_jax_is_loaded():
    code = "import sys; from optax_meta.cli import main; code = main(['compare', '--help'])"
    check = f"{code}; assert code == 0; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL)
    start = time.perf_counter()
    command = [sys.executable, "-m", "optax_meta", "--help"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "compare" in done.stdout
    assert time.perf_counter() - start < 30


def test_help_breaks_no_name_and_tells_no_default_where_there_is_none(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["compare", "--help"]) == 0
    assert "warmup-\n" not in capsys.readouterr().out
    assert cli.main(["meta-train", "--help"]) == 0
    assert "None" not in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"optax-meta {optax_meta.__version__}\n"


def test_data_may_shift_with_the_step():
    still = tasks.quadratic(dim=2, noise=0.0)
    moved = still._replace(shift=lambda batch, step: batch + jnp.where(step >= 5, 3.0, 0.0))
    runs = (jax.jit(partial(running.train, t, optax.adamw, 1e-3, 10, None)) for t in (still, moved))
    before, after = (run(jnp.uint32(0)).losses for run in runs)
    np.testing.assert_array_equal(before[:5], after[:5])
    assert np.all(after[5:] > before[5:])
