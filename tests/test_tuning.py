"""A policy is tuned to a task of one's own, from Python and from the command line."""

import json
import shutil
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_meta
from optax_meta import actions, checkpoints, cli, tasks
from optax_meta.meta import own_tasks
from optax_meta.meta.tuning import AT_ONCE, fine_tune

# The least that can be tuned: it compiles in seconds.
POLICY = optax_meta.init_policy(
    jax.random.key(0),
    action_space=actions.ordered(actions.level("learning_rate", np.geomspace(0.25, 4.0, 65))),
    hidden_sizes=(),
)
TASK = tasks.quadratic(dim=2)
SHORT = {"optimizer": optax.sgd, "steps": 6, "seed": 5}

FILE = """
import json as imported

import jax.numpy as jnp
import optax_meta
from beside import SIZE

number = 3


def make():
    return optax_meta.tasks.quadratic(dim=SIZE)._replace(name="mine")


def other():
    return 3
"""


@pytest.fixture(scope="module")
def at_once(tmp_path_factory):
    """Two groups in one call; the folder, and what was shown on the way."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    shown = []
    tuned = fine_tune(
        TASK, folder, POLICY, groups=2, progress=lambda *now: shown.append(now), **SHORT
    )
    return folder, tuned, shown


def rows_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_every_group_leaves_a_row_and_the_policy_its_card(at_once):
    folder, tuned, shown = at_once
    rows = rows_of(folder)
    assert [row["update"] for row in rows] == [AT_ONCE, 2 * AT_ONCE]
    assert all(row["loss"] == pytest.approx(np.mean(row["losses"])) for row in rows)
    assert [done for _, done, _ in shown] == [0, 1, 2]
    assert {total for *_, total in shown} == {2}
    notes = checkpoints.read_card(tuned.path)["notes"]
    assert tuned.path == folder / "quadratic.policy"
    assert notes["runs"] == 2 * AT_ONCE
    assert notes["task"] == "quadratic"
    assert (notes["steps"], notes["seed"], notes["optimizer"]) == (6, 5, "sgd")
    assert notes["policy"] == f"given ({checkpoints.digest(POLICY)[:12]})"
    assert notes["level/learning_rate"] == rows[-1]["level/learning_rate"] != 0.0
    np.testing.assert_allclose(notes["held-out loss before"], tuned.before)
    np.testing.assert_allclose(notes["held-out loss after"], tuned.after)
    assert tuned.before.shape == tuned.after.shape == (AT_ONCE,)
    assert np.all(tuned.before != tuned.after)
    same = optax_meta.load_policy(tuned.path)
    jax.tree.map(np.testing.assert_array_equal, same.params, tuned.policy.params)


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(at_once, tmp_path):
    folder, tuned, _ = at_once
    (tmp_path / "log.jsonl").write_text(
        # Killed while it wrote its second row.
        (folder / "log.jsonl").read_text()[:-20]
    )
    shutil.copy(folder / "settings.json", tmp_path)
    again = fine_tune(TASK, tmp_path, POLICY, groups=2, **SHORT)
    jax.tree.map(np.testing.assert_array_equal, again.policy.params, tuned.policy.params)
    assert (tmp_path / "log.jsonl").read_bytes() == (folder / "log.jsonl").read_bytes()
    np.testing.assert_array_equal(again.after, tuned.after)


def test_what_was_run_before_is_not_run_again_whatever_it_came_to(at_once, tmp_path):
    """Losses out of the log count, those of runs that diverged included; the first row was cut."""
    folder, tuned, _ = at_once
    first, second = rows_of(folder)
    losses = [None, *second["losses"][1:]]
    rows = [first, {**second, "losses": losses}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copy(folder / "settings.json", tmp_path)
    again = fine_tune(TASK, tmp_path, POLICY, groups=2, **SHORT)
    runs = optax_meta.across_runs(POLICY)
    state = runs.init(0)
    for row in rows:
        asked = [runs.ask(state, index) for index in range(AT_ONCE)]
        values = jnp.array([np.nan if x is None else x for x in row["losses"]])
        state = runs.tell_group(state, asked, values)
    jax.tree.map(np.testing.assert_array_equal, again.policy.params, runs.policy(state).params)
    assert np.any(again.after != tuned.after)


def test_a_folder_whose_first_row_was_cut_off_is_gone_on_with(tmp_path):
    def diverged(params):
        return {"loss": jnp.inf * jnp.sum(jnp.abs(params))}

    (tmp_path / "log.jsonl").write_text('{"update": 4, "lo')
    tuned = fine_tune(TASK._replace(evaluate=diverged), tmp_path, POLICY, groups=1, **SHORT)
    (row,) = rows_of(tmp_path)
    assert row["losses"] == [None] * AT_ONCE
    assert "loss" not in row
    same = partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(same, tuned.policy.params, POLICY.params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 7}, "holds a run with --steps 6: go on with the same"),
        ({"seed": 6}, "holds a run with --seed 5"),
        ({"optimizer": optax.adamw}, "holds a run with --optimizer sgd"),
        ({"task": TASK._replace(name="other")}, "holds a run with --task quadratic"),
        ({"groups": 0}, "`groups` must be a whole number ≥ 1, got 0"),
        ({"steps": 1.5}, "`steps` must be a whole number ≥ 1"),
        ({"seed": -1}, "`seed` must be an integer in"),
        ({"policy": optax_meta.init_policy(jax.random.key(0))}, "with an ordered action space"),
        ({"optimizer": optax.sgd(0.1)}, "`optimizer` must be a function"),
        ({"task": TASK._replace(name="my/task")}, "name of the task must be that of a file"),
    ],
)
def test_what_is_refused_leaves_the_folder_as_it_was(changes, message, at_once):
    folder, _, _ = at_once
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    given = {"task": TASK, "folder": folder, "policy": POLICY, "groups": 2, **SHORT, **changes}
    with pytest.raises(ValueError, match=message):
        fine_tune(**given)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside.py").write_text("SIZE = 2\n")
    (tmp_path / "own_task.py").write_text(FILE)
    yield tmp_path / "own_task.py"
    for name in ("own_task", "beside"):
        sys.modules.pop(name, None)


def test_the_command_line_tunes_and_shows_how_runs_end(file, tmp_path, capsys):
    start, out = tmp_path / "start.policy", tmp_path / "run"
    optax_meta.save_policy(POLICY, start)
    command = ["fine-tune", "--task", f"{file}:make", "--policy", str(start), "--out", str(out)]
    command += ["--steps", "6", "--groups", "2", "--optimizer", 'sgd={"momentum": 0.5}']
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert f"Policy: {out / 'mine.policy'}" in printed
    assert "Held-out loss on other seeds: " in printed
    assert checkpoints.read_card(out / "mine.policy")["notes"]["optimizer"] == "sgd(momentum=0.5)"
    page = (out / "report.html").read_text()
    for title in ("How runs end", "Where the policy stands"):
        assert title in page
    assert cli.main([*command, "--seed", "1"]) == 2
    assert "holds a run with --seed 0: go on with the same" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("quadratics", r"a task must be FILE:FUNCTION or one of digits, .*, got 'quadratics'"),
        (":make", "a task must be FILE:FUNCTION"),
        ("{file}:", "a task must be FILE:FUNCTION"),
        ("missing.py:make", "cannot read `missing.py`: it must be a Python file"),
        ("{folder}:make", "it must be a Python file"),
        ("{folder}/notes.txt:make", "it must be a Python file"),
        ("{file}:made", "has no function `made`: choose from make, other"),
        ("{file}:number", "has no function `number`"),
        ("{file}:other", "`other` must return an `optax_meta.tasks.Task`, got int"),
    ],
)
def test_a_task_that_is_none(place, message, file):
    (file.parent / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=message):
        own_tasks.load_task(place.format(file=file, folder=file.parent))


def test_what_a_file_raises_is_raised_as_it_is(file):
    file.write_text("import nothing_of_that_name\n")
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name"):
        own_tasks.load_task(f"{file}:make")


def test_an_optimizer_by_its_name():
    assert own_tasks.load_optimizer("adamw", {}) is optax.adamw
    assert own_tasks.load_optimizer("muon", {}) is optax.contrib.muon
    made = own_tasks.load_optimizer("sgd", {"momentum": 0.5})
    assert made.keywords == {"momentum": 0.5}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("adamv", {}, "optax has no optimizer `adamv`"),
        ("contrib", {}, "optax has no optimizer `contrib`"),
        ("apply_updates", {}, "must take a `learning_rate`"),
        ("sgd", {"momentums": 0.5}, "`sgd` cannot be made with {'momentums': 0.5}"),
    ],
)
def test_an_optimizer_that_is_none(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        own_tasks.load_optimizer(name, arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "--task"),
        (["--task", "nothing"], "a task must be FILE:FUNCTION or one of digits"),
        (["--task", "quadratic", "--optimizer", "adamv"], "optax has no optimizer `adamv`"),
        (["--task", "quadratic", "--optimizer", "sgd={momentum}"], "must be NAME or NAME=JSON"),
        (["--task", "quadratic", "--optimizer", "sgd=[1]"], "must be NAME or NAME=JSON"),
        (["--task", "quadratic", "--groups", "0"], "--groups"),
        (["--task", "quadratic", "--policy", "any-lr-v0"], "no such file; choose from"),
    ],
)
def test_a_refused_command_leaves_nothing(given, message, tmp_path, capsys):
    assert cli.main(["fine-tune", *given, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
