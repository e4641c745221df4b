"""Examples: each short, each run with a tiny budget; those of Flax beside their own tests."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import fifteen_steps
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import QUICK, is_known
from jax.flatten_util import ravel_pytree

import optax_meta

TESTS = Path(__file__).parent
FOLDER = TESTS.parent / "examples"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_says_how_to_run_it(name):
    source = (FOLDER / f"{name}.py").read_text()
    assert len(source.splitlines()) < 100
    doc = ast.get_docstring(ast.parse(source))
    assert re.search(rf"python (examples/)?{name}\.py", doc)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_run_by_a_test(name):
    tests = "".join(path.read_text() for path in TESTS.glob("test_*.py"))
    assert re.search(rf'import {name}\b|run\("{name}"|STEPS.*"{name}"', tests)


def run(name, arguments, *flags):
    """Run an example in a process of its own, which compiles fast; return what it printed."""
    known = [f"--{name}={value}".lower() for name, value in QUICK.items() if is_known(name, value)]
    quick = "--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true", *known
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join((*quick, *flags))}
    code = f"import {name}, json; print(json.dumps({name}.main({arguments})))"
    command = [sys.executable, "-W", "error", "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = subprocess.run(
        command, cwd=FOLDER, env=env, text=True, timeout=600, check=False, **pipes
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, result = done.stdout.splitlines()
    return lines, json.loads(result)


@pytest.mark.heavy
def test_fifteen_steps():
    lines, rows = run("fifteen_steps", "seeds=2")
    assert [*rows] == [*fifteen_steps.METHODS]
    assert len(lines) == 1 + len(rows)


def test_quickstart_learns_from_a_rate_that_is_far_too_small(capsys):
    import quickstart

    losses = {name: np.mean(run[-20:]) for name, run in quickstart.main(steps=200).items()}
    assert losses["any-lr-v2"] < 0.6 * losses["constant"]
    assert capsys.readouterr().out.count("learning rate 1e-05") == 5


def test_the_text_transformer_is_judged_on_text_that_it_has_not_seen(capsys, monkeypatch):
    import text_transformer as example

    monkeypatch.setattr(example, "LAYERS", 1)  # half as long to compile
    text = example.SOURCES.encode("ascii", "replace")
    assert bytes([*example.TRAIN, *example.HELD_OUT]) == text
    assert len(example.TRAIN) > 100_000
    losses = example.main(steps=10)
    assert all(0.0 < loss < np.log(128) for loss in losses.values())
    assert capsys.readouterr().out.count("held-out loss") == len(losses) == 3


def test_each_group_of_parameters_has_its_own_rate():
    import parameter_groups

    losses, hyperparams = parameter_groups.main(steps=100)
    assert set(hyperparams) == {"embedding/learning_rate", "network/learning_rate"}
    assert hyperparams["embedding/learning_rate"] > 2e-3  # it started from 1e-3
    np.testing.assert_allclose(hyperparams["network/learning_rate"], 3e-3)
    assert np.mean(losses[-10:]) < 0.5 * losses[0]


def test_the_bold_driver_does_what_it_says():
    import custom_controller

    rows = custom_controller.main(steps=300)
    rates, values = rows.hyperparams["learning_rate"], rows.value
    decided = np.flatnonzero(rows.decided)
    np.testing.assert_array_equal(decided, np.arange(0, 300, 5))
    means = np.array([np.mean(values[i - 4 : i + 1]) for i in decided[1:]])
    factors = rates[decided[2:]] / rates[decided[1:-1]]
    np.testing.assert_allclose(factors, np.where(means[1:] < means[:-1], 1.1, 0.5), rtol=1e-4)
    assert values[-1] < 0.5 * values[0]


def test_a_policy_of_ones_own_actions_takes_them(capsys):
    import custom_action_space as example

    rows = example.main(steps=200)
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines
    rates, b1s = (np.asarray(rows.hyperparams[name]) for name in example.SPACE.hyperparams)
    moved = 1 + np.flatnonzero((np.diff(rates) != 0.0) | (np.diff(b1s) != 0.0))
    assert [int(line.split()[1].strip(":")) for line in lines] == [*(moved + 1)]
    np.testing.assert_allclose(b1s / 0.05, np.round(b1s / 0.05), rtol=1e-4)
    assert rows.value[-1] < 0.5 * rows.value[0]


def test_data_parallel_on_eight_devices():
    flag = "--xla_force_host_platform_device_count=8"
    _, (losses, rates) = run("data_parallel", "steps=40", flag)
    assert len(rates) == 8
    assert len(set(rates)) == 1
    assert rates[0] != np.float32(1e-3)  # from which it started
    assert losses[-1] < losses[0]


def test_a_meta_trained_policy_is_saved_and_used(tmp_path):
    path = tmp_path / "mine.policy"
    lines, losses = run("meta_train", f"{str(path)!r}, updates=5, steps=30")
    policy = optax_meta.load_policy(path)
    fresh = optax_meta.init_policy(
        jax.random.key(0), encoder=policy.encoder, action_space=policy.action_space
    )
    assert not np.array_equal(*(ravel_pytree(p.params)[0] for p in (policy, fresh)))
    assert "update 5: the log-loss of a run falls by" in lines[0]
    assert np.all(np.isfinite([losses["constant"], losses["mine"]]))
    assert losses["mine"] != losses["constant"]


STEPS = {"accumulation": 8, "equinox_model": 4, "fine_tuning": 8, "gan": 8, "group_ratios": 8}
STEPS |= {"loss_scaling": 8, "nnx_lora": 4, "ppo": 2}
NEEDED = {"equinox_model": "equinox", "loss_scaling": "jmp", "ppo": "gymnax"}


LONG = {"gan", "group_ratios"}  # to compile
LOOPS = [pytest.param(name, marks=pytest.mark.heavy if name in LONG else ()) for name in STEPS]


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_run_beside_its_stock_schedule(name, capsys):
    pytest.importorskip(NEEDED.get(name, "jax"), reason=f"pip install {NEEDED.get(name)}")
    figures = importlib.import_module(name).main(steps=STEPS[name])
    assert np.all(np.isfinite([*figures.values()]))
    assert any("any-lr-v2" in figure for figure in figures)
    assert any("any-lr-v2" not in figure for figure in figures)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2
    if name == "accumulation":  # what `total_steps` counts
        assert [line.rpartition(", ")[2] for line in lines[1:]] == ["2 steps seen", "8 steps seen"]
    if name == "loss_scaling":
        assert all(int(line.split(", ")[1].split()[0]) > 0 for line in lines)


def test_a_group_gets_its_ratio_of_the_one_rate():
    import group_ratios as example

    tx = optax_meta.control_hyperparams(example.layer_wise, optax_meta.constant())
    params = example.MODEL.init(jax.random.key(0), example.IMAGES[:1])
    tx, grads = tx(learning_rate=0.1), jax.tree.map(np.ones_like, params)
    updates, opt_state = tx.update(grads, tx.init(params), params)
    assert optax_meta.record(opt_state).hyperparams == {"learning_rate": np.float32(0.1)}
    for layer, ratio in example.LAYERS.items():
        np.testing.assert_allclose(updates["params"][layer]["bias"], -0.1 * ratio, rtol=1e-5)


def test_multi_host_trains_by_the_stock_schedule_too(tmp_path):
    import multi_host as example

    rows = np.array(example.main(str(tmp_path), 20, save_every=20, rule="linear"))
    shares = np.minimum(np.arange(1, 21) / 2.0, 1.0) * (1.0 - np.arange(20) / 20.0)
    np.testing.assert_allclose(rows[1:, 1], 1e-2 * shares[1:], rtol=0.1)
    assert rows[-1, 0] < rows[0, 0]


@pytest.mark.parametrize(
    ("name", "of_bias", "alike"),
    [
        ("doubled_biases", 2.0, optax.adamw),
        ("muon_and_adamw", 0.1, partial(optax.contrib.muon, adam_weight_decay=1e-4)),
    ],
)
def test_biases_get_their_ratio_and_matrices_the_rate(name, of_bias, alike):
    import group_ratios as example

    params = {"params": {"layer": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}}
    grads = jax.tree.map(jnp.ones_like, params)

    def moved(tx):
        return tx.update(grads, tx.init(params), params)[0]["params"]["layer"]

    control = optax_meta.control_hyperparams(getattr(example, name), optax_meta.constant())
    found, plain = moved(control(0.1)), moved(alike(0.1))
    np.testing.assert_allclose(found["kernel"], plain["kernel"], rtol=1e-5)
    np.testing.assert_allclose(found["bias"], of_bias * plain["bias"], rtol=1e-5)


def test_across_runs(tmp_path, monkeypatch):
    import across_runs as example

    monkeypatch.setattr(example, "STEPS", 20)
    first = example.main(str(tmp_path / "a"), more=1)
    rest = example.main(str(tmp_path / "a"), more=1)
    # The same as two in a row: what was learned is kept.
    assert example.main(str(tmp_path / "b"), more=2) == first + rest
    page = optax_meta.reports.folder.rebuild_report(tmp_path / "a").read_text()
    assert "How runs end" in page


def test_own_task(tmp_path, capsys):
    import own_task as example

    losses = example.main(str(tmp_path), steps=20, groups=1)
    assert len(losses) == 4
    assert np.all(np.isfinite(losses))
    assert "regression.policy" in capsys.readouterr().out
    assert optax_meta.load_policy(tmp_path / "regression.policy").num_decisions == 100
