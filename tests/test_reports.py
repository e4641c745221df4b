"""Pages made from files alone; `test_browser.py` looks at them in a browser."""

import html
import json
import re

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import optax
import pytest

import optax_meta
from optax_meta import cli
from optax_meta.meta import evaluation
from optax_meta.meta import runs as meta_runs
from optax_meta.recording import Decision
from optax_meta.reports import charts, curves, files, log_charts, pictures, table
from optax_meta.reports import folder as reports
from optax_meta.reports.rows import losses_to_draw, method_result, step_rows

NO_FILE = ["../../../victim", "a/../../../../victim", "", "a\\b", "a\0b", "\ud800"]
STEP = '{"step": 1, "decided": false, "value": 2.0, "learning_rate": 0.1}\n'
OUTSIDE = [*NO_FILE, ".", "..", "x" * 300]


@pytest.fixture(scope="module")
def comparison():
    def learning(steps, seed):  # however short the run
        options = {"decision_interval": 1, "full_steps": 0.0}
        return optax_meta.reinforce(total_steps=steps, seed=seed, **options)

    methods = {"reinforce": learning}
    return optax_meta.compare("quadratic", methods, steps=20, seeds=2, learning_rate=1e-2)


@pytest.fixture(scope="module")
def folder(comparison, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    reports.write_report(comparison, folder)
    return folder


@pytest.fixture
def log(tmp_path):
    rows = [
        {"update": i, "fall/mlp": i / 9, "spread/mlp": 0.5, "entropy": 1.0, "grad_norm": 0.1}
        for i in range(1, 9)
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def charts_of(page):
    (text,) = re.findall(r'<script type="application/json" id="chart-data">(.*?)</script>', page)
    return {chart["id"]: chart for chart in json.loads(text)}


def check_page(page):
    assert len(page) < 6e6
    assert not re.search(r'(src|srcset|href)="(?!data:)', page)
    assert "https://" not in page
    figures = re.findall(r"<figure>(.*?)</figure>", page, re.DOTALL)
    assert figures
    for figure in figures:
        assert figure.count("What to read from this.") == 1
        assert ('class="chart"' in figure) != ("<img" in figure)  # one renderer a picture
        assert ('class="chart"' in figure) == ("<noscript>" in figure)
    for name in charts_of(page):
        assert f'id="chart-{name}"' in page


def test_a_comparison_is_read_back_as_it_was(comparison, folder, tmp_path):
    page = reports.rebuild_report(folder, str(tmp_path / "again.html")).read_text()
    check_page(page)
    first = (folder / "report.html").read_text()
    assert charts_of(page) == charts_of(first)
    read = files.read_comparison(folder)
    assert evaluation.summarize(read) == evaluation.summarize(comparison)


def test_a_page_says_what_makes_each_controller_again(comparison, folder, tmp_path):
    config = files.read_comparison(folder).methods["reinforce"].config
    assert config == comparison.methods["reinforce"].config
    assert optax_meta.to_config(optax_meta.from_config(config)) == config
    assert html.unescape(json.dumps(config)) in html.unescape((folder / "report.html").read_text())
    by_hand = comparison.methods["reinforce"]._replace(config=None)
    reports.write_report(comparison._replace(methods={"mine": by_hand}), tmp_path)
    assert files.read_comparison(tmp_path).methods["mine"].config is None


def test_decisions_are_explained(folder, comparison):
    charts = charts_of((folder / "report.html").read_text())
    (online,) = charts["learning_rate"]["series"]
    result = comparison.methods["reinforce"]
    decision = Decision(*(x[0] for x in result.records.decision))
    for step, action, reward, probabilities, observation in online["decisions"]:
        assert result.records.decided[0, step - 1]
        assert action == decision.action[step - 1]
        np.testing.assert_allclose(probabilities, decision.probabilities[step - 1], rtol=1e-3)
        np.testing.assert_allclose(observation, decision.observation[step - 1], rtol=1e-3)
        later = np.flatnonzero(result.records.decided[0, step:])
        if later.size:
            assert reward == pytest.approx(decision.reward[step + later[0]], rel=1e-3)
        else:
            assert reward is None
    assert online["features"] == list(result.features)
    assert online["actions"] == list(result.action_labels)


def test_what_decided_nothing_is_not_explained():
    methods = made_up.comparison(("constant", "learned"), seeds=2, steps=20).methods
    (rate, decay) = charts.hyperparam_charts(methods)
    assert ["decisions" in series for series in rate["series"]] == [False, True]
    assert [series["name"] for series in decay["series"]] == ["learned"]


def test_a_single_run_and_its_truncated_last_line(folder, tmp_path):
    text = (folder / "records" / "reinforce.jsonl").read_text()
    (tmp_path / "mine.jsonl").write_text(text[:-40])
    assert cli.main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    check_page(page)
    assert set(charts_of(page)) == {"loss", "learning_rate", "reward"}
    names = [line["name"] for line in charts_of(page)["reward"]["series"]]
    assert [name.split(": ")[1] for name in names] == ["reward", "baseline"]
    for title in ("How rewards went", "Which actions earned what", "took its last lesson at step"):
        assert title in page
    assert "<h2>Ranking" not in page


def test_a_run_of_ones_own_says_what_steered_it(tmp_path):
    """By the card beside its rows, which names actions that were never taken, too."""
    controller = optax_meta.learned("any-lr-v2", total_steps=9)
    tx = optax_meta.control_hyperparams(optax.sgd, controller)(0.1)
    state, update = tx.init(x := jnp.ones(3)), jax.jit(tx.update)
    with optax_meta.writers.jsonl(tmp_path / "mine.jsonl", controller=controller) as writer:
        for value, progress in ((3.0, 0.0), (jnp.nan, 0.1), (2.0, jnp.nan)):
            _, state = update(x, state, x, value=value, progress=progress)
            writer.write(optax_meta.record(state))
    result = method_result(
        optax_meta.writers.read_rows(tmp_path / "mine.jsonl"),
        optax_meta.writers.read_card(tmp_path / "mine.jsonl"),
    )
    assert (result.action_labels, result.features) == (
        controller.action_labels,
        controller.features,
    )
    assert result.config == optax_meta.to_config(controller)
    assert cli.main(["report", str(tmp_path)]) == 0
    page = html.unescape((tmp_path / "report.html").read_text())
    check_page(page)
    assert json.dumps(result.config) in page
    assert "3 steps, 1 run; steps not finite: 1; progress misread: 1" in page


def test_a_card_of_another_controller_names_nothing(tmp_path):
    """And one that is broken is told."""
    policy = optax_meta.classic_reinforce(decision_interval=1)
    tx = optax_meta.control_hyperparams(optax.adamw, policy)(0.1)
    state = tx.init(x := jnp.ones(3))
    row = optax_meta.record(tx.update(x, state, x, value=1.0)[1])
    with optax_meta.writers.jsonl(tmp_path / "a.jsonl") as writer:
        writer.write(row)
    card = tmp_path / "a.controller.json"
    card.write_text('{"action_labels": ["up", "down"]}')
    rows = optax_meta.writers.read_rows(tmp_path / "a.jsonl")
    found = method_result(rows, optax_meta.writers.read_card(tmp_path / "a.jsonl")).action_labels
    assert found == tuple(f"action {i}" for i in range(9))
    for broken in ("{", "[]"):
        card.write_text(broken)
        with pytest.raises(ValueError, match=r"a\.controller\.json` is no card of a controller"):
            optax_meta.writers.read_card(tmp_path / "a.jsonl")


def test_a_file_of_something_else_gets_no_card(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"update": 1}\n')
    writer = optax_meta.writers.jsonl(tmp_path / "a.jsonl", controller=optax_meta.plateau())
    with writer, pytest.raises(ValueError, match="is no row with `step`"):
        writer.put([{"step": 1}])
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_running_meta_training(log, tmp_path):
    with log.open("a") as file:
        file.write('{"update": 9, "fall/ml')
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "x.html")]) == 0
    page = (tmp_path / "x.html").read_text()
    check_page(page)
    assert "8 updates of the policy" in page
    assert charts_of(page)["fall"]["series"][0]["x"] == list(range(1, 9))


def test_several_files_are_runs_side_by_side(tmp_path):
    """A trunk without a horizon, and what was made of it: cooled down."""
    trunk = [json.loads(STEP) | {"step": t, "progress": -1.0} for t in range(1, 41)]
    cooled = [trunk[0] | {"step": t, "progress": (t - 41) / 20} for t in range(41, 61)]
    for name, rows in (("trunk", trunk), ("cooled", trunk + cooled)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    check_page(page)
    found = charts_of(page)
    assert [series["name"] for series in found["loss"]["series"]] == ["cooled", "trunk"]
    [progress] = found["progress"]["series"]  # the trunk has none
    assert progress["name"] == "cooled"
    assert progress["y"] == [None] * 40 + [row["progress"] for row in cooled]
    assert "60 steps, 1 run" in page


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "must hold results.json"),
        ({"a.jsonl": STEP, "b.jsonl": "{}\n"}, "b.jsonl` must hold rows of steps"),
        ({"a.jsonl": STEP, "b.jsonl": '{"update": 1}\n'}, "b.jsonl` must hold rows of steps"),
        ({"a.jsonl": "{}\n"}, "a row of steps needs at least step, decided, and value or loss"),
        ({"a.jsonl": ""}, "holds no complete row yet"),
        ({"a.jsonl": "{\n{}\n"}, "line 1 of"),
        ({"log.jsonl": "{}\n"}, "a row of steps needs at least step"),
        ({"log.jsonl": '{"update": 1}\n{}\n{}\n'}, "must hold rows of steps or of updates"),
        ({"a.jsonl": "3\n"}, "must hold rows of steps or of updates"),
        ({"results.json": "{}"}, "must be a complete folder"),
        ({"results.json": "[]"}, "must be a complete folder"),
        ({"results.json": '{"runs": [3], "bare_seconds": []}'}, "holds no file of 3"),
    ],
)
def test_folders_that_cannot_be_read(files, message, tmp_path, capsys):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cli.main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_path_that_is_nearly_right_leads_to_the_folder(log, tmp_path, capsys):
    assert cli.main(["report", str(log)]) == 2
    assert f"must be a folder: pass `{tmp_path}`" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    log.rename(tmp_path / "run" / "log.jsonl")
    assert cli.main(["report", str(tmp_path)]) == 2
    assert f"pass a folder inside it, such as `{tmp_path / 'run'}`" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "run"), "--out", str(tmp_path)]) == 2
    assert f"cannot write to `{tmp_path}`: Is a directory" in capsys.readouterr().err


@pytest.fixture
def small():
    return made_up.comparison(("constant", "learned"), seeds=2, steps=20)


@pytest.fixture
def victim(tmp_path):
    """Return a file that no report may touch, where each of `OUTSIDE` that leads out leads to."""
    path = tmp_path / "victim.jsonl"
    path.write_text('{"step": 1, "decided": false, "loss": 1.0, "learning_rate": 0.1}\n')
    return path


def names(victim, name):
    """Return what an outsider wrote into results.json: a run by this name and by a full path."""
    runs = {name: {}, str(victim.with_suffix("")): {}}
    return json.dumps({"runs": runs, "bare_seconds": [1.0], "ranking": []})


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_removes_a_file_outside_of_records(name, small, victim, monkeypatch):
    monkeypatch.setattr(reports.page, "comparison_page", lambda _: "")
    folder = victim.parent / "a" / "b"
    (folder / "records").mkdir(parents=True)
    (folder / "records" / ".jsonl").write_text("someone else's")
    (folder / "results.json").write_text(names(victim, name))
    reports.write_report(small, folder)
    assert victim.exists()
    found = {path.name for path in (folder / "records").iterdir()}
    assert found == {".jsonl", "constant.jsonl", "learned.jsonl"}


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_reads_a_file_outside_of_records(name, victim):
    folder = victim.parent / "a" / "b"
    (folder / "records").mkdir(parents=True)
    (folder / "results.json").write_text(names(victim, name))
    with pytest.raises(ValueError, match=r"must be a complete folder .* records/ holds no file of"):
        files.read_comparison(folder)
    only_full = json.dumps({"runs": {str(victim.with_suffix("")): {}}, "bare_seconds": [1.0]})
    (folder / "results.json").write_text(only_full)
    with pytest.raises(ValueError, match=r"holds no file of '.*victim'"):
        files.read_comparison(folder)


@pytest.mark.parametrize("name", ["/victim", *NO_FILE])
def test_no_name_writes_a_file_outside_of_records(name, small, tmp_path):
    hostile = small._replace(methods={name: small.methods["learned"]})
    with pytest.raises(ValueError, match="`methods` must have names without /"):
        reports.write_report(hostile, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_stands_in_the_way_is_told(small, tmp_path, monkeypatch):
    monkeypatch.setattr(reports.page, "comparison_page", lambda _: "")
    (tmp_path / "records").write_text("a file")
    with pytest.raises(ValueError, match=f"cannot write to `{tmp_path}`"):
        reports.write_report(small, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["records"]


def test_a_table_may_be_narrowed(small):
    whole = table.result_table(small)
    narrow = whole.select(["method", "test accuracy %"])
    assert narrow.columns == ("method",)
    assert narrow.rows == [(row[1],) for row in whole.rows]
    assert table.verdict(small._replace(planned_seeds=9)).startswith("Stopped early: 2 of 9 seeds")


# Seeds of different lengths


def test_what_moves_is_drawn_where_seeds_differ_in_length():
    result = method_result(made_up.rows([[0.1, 0.1], [0.1, 0.1, 0.2]], "momentum"), {})
    assert charts.moved(result.records.hyperparams) == ["momentum"]
    still = method_result(made_up.rows([[0.1, 0.1], [0.3, 0.3, 0.3]], "momentum"), {})
    assert charts.moved(still.records.hyperparams) == []  # seeds differ, but nothing moves
    (chart,) = charts.hyperparam_charts({"mine": result})
    (series,) = chart["series"]
    assert (series["x"], series["y"]) == ([1, 2], [0.1, 0.1])
    assert series["others"] == [{"x": [1, 2, 3], "y": [0.1, 0.1, 0.2]}]


def test_a_mean_goes_on_after_a_shorter_seed_and_ends_with_a_diverged_one():
    rows = made_up.rows([[0.1, 0.1], [0.1] * 4])
    for row, loss in zip(rows, [1.0, 1.0, 3.0, 3.0, 3.0, None], strict=True):
        row["loss"] = loss
    losses = losses_to_draw(method_result(rows, {}))
    np.testing.assert_array_equal(losses, [[1, 1, np.nan, np.nan], [3, 3, 3, np.inf]])
    (series,) = charts.loss_chart({"mine": losses}, 1)["series"]
    assert series["y"] == [2.0, 2.0, 3.0, None]
    assert [other["y"] for other in series["others"]] == [[1, 1, None, None], [3, 3, 3, None]]


def test_a_smoothed_run_ends_where_the_run_does():
    runs = np.array([[2.0, 4.0, np.nan, np.nan], [1.0, np.inf, 1.0, 1.0]])
    np.testing.assert_array_equal(curves.smoothed(runs, 2), [[2, 3, np.nan, np.nan], [1, 1, 1, 1]])


def test_rows_of_seeds_of_different_lengths_are_read_back():
    rows = made_up.rows([[0.1, 0.2], [0.1, 0.2, 0.4]])
    again = list(step_rows(method_result(rows, {})))
    assert [(row["seed"], row["step"], row["learning_rate"]) for row in again] == [
        (row["seed"], row["step"], row["learning_rate"]) for row in rows
    ]
    assert len(list(pictures.run_pictures({"mine": method_result(rows, {})}))) == 2


def test_a_log_may_skip_rows_and_values():
    rows = [{"update": 1, "grad_norm": 1.0}, {"update": 2}, {"update": 3, "grad_norm": None}]
    (picture,) = log_charts.log_pictures(rows)
    (series,) = picture.charts[0]["series"]
    assert (series["x"], series["y"]) == ([1, 3], [1.0, None])


# Meta-training


@pytest.mark.parametrize("is_stopped", [False, True])
def test_meta_training_ends_with_a_page(is_stopped, log, monkeypatch, capsys):
    trainer = optax_meta.meta_trainer(
        [optax_meta.families.quadratics(dim=2)],
        optax_meta.load_policy("any-lr-v2"),
        families_per_update=1,
    )

    def train(trainer, *_, seed, **__):
        if is_stopped:
            raise KeyboardInterrupt
        return trainer.policy(trainer.init(seed))

    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setitem(meta_runs.RECIPES, "any-lr-v2", lambda mesh, **options: trainer)
    monkeypatch.setattr(meta_runs, "train", train)
    code = cli.main(["meta-train", "--out", str(log.parent), "--devices", "1"])
    assert code == (130 if is_stopped else 0)
    assert (log.parent / "report.html").exists()
    assert (log.parent / "any-lr-v2.policy").exists() != is_stopped
    assert ("the same command goes on" in capsys.readouterr().err) == is_stopped
