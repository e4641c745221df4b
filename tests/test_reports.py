"""Pages made from files alone; `test_browser.py` looks at them in a browser."""

import json
import re

import pytest

import optax_meta
from optax_meta import cli
from optax_meta.meta import evaluation
from optax_meta.meta import runs as meta_runs
from optax_meta.reports import files
from optax_meta.reports import page as reports

METHODS = ["constant", "any-lr-v1", "reinforce"]


@pytest.fixture(scope="module")
def comparison():
    return optax_meta.compare("quadratic", METHODS, steps=60, seeds=3, learning_rate=1e-2)


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
    figures, captions = page.count("<figure>"), page.count("What to read from this.")
    assert figures == captions == page.count("<img")
    for name in charts_of(page):
        assert f'id="chart-{name}"' in page


def test_a_comparison_is_read_back_as_it_was(comparison, folder, tmp_path):
    page = reports.rebuild_report(folder, str(tmp_path / "again.html")).read_text()
    check_page(page)
    first = (folder / "report.html").read_text()
    assert charts_of(page) == charts_of(first)
    read = files.read_comparison(folder)
    assert evaluation.summarize(read) == evaluation.summarize(comparison)


def test_decisions_are_explained(folder, comparison):
    charts = charts_of((folder / "report.html").read_text())
    series = {s["name"]: s for s in charts["learning_rate"]["series"]}
    assert "decisions" not in series["constant"]
    learned, online = series["any-lr-v1"], series["reinforce"]
    assert learned["features"][0] == "progress"
    assert len(learned["features"]) == len(learned["decisions"][0][4]) == 23
    assert len(learned["actions"]) == len(learned["decisions"][0][3]) == 5
    rewards = comparison.methods["reinforce"].records.decision.reward[0]
    assert online["decisions"][0][2] == pytest.approx(float(rewards[10]), rel=1e-3)
    assert online["decisions"][-1][2] is None


def test_a_single_run_and_its_truncated_last_line(folder, tmp_path):
    text = (folder / "records" / "any-lr-v1.jsonl").read_text()
    (tmp_path / "mine.jsonl").write_text(text[:-40])
    assert cli.main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    check_page(page)
    assert set(charts_of(page)) == {"loss", "learning_rate"}
    assert "<h2>Ranking" not in page


def test_a_running_meta_training(log, tmp_path):
    with log.open("a") as file:
        file.write('{"update": 9, "fall/ml')
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "x.html")]) == 0
    page = (tmp_path / "x.html").read_text()
    check_page(page)
    assert "8 updates of the policy" in page
    assert charts_of(page)["fall"]["series"][0]["x"] == list(range(1, 9))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds neither results.json"),
        ({"a.jsonl": "{}\n", "b.jsonl": "{}\n"}, "nor one file of step rows, but 2 *.jsonl"),
        ({"a.jsonl": "{}\n"}, "a row of steps needs at least step, decided, and value or loss"),
        ({"a.jsonl": ""}, "holds no complete row yet"),
        ({"a.jsonl": "{\n{}\n"}, "line 1 of"),
        ({"log.jsonl": "{}\n"}, "a row of steps needs at least step"),
        ({"results.json": "{}"}, "is no complete folder"),
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
    assert f"is not a folder: pass `{tmp_path}`" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    log.rename(tmp_path / "run" / "log.jsonl")
    assert cli.main(["report", str(tmp_path)]) == 2
    assert f"pass a folder inside it, such as `{tmp_path / 'run'}`" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "run"), "--out", str(tmp_path)]) == 2
    assert f"cannot write to `{tmp_path}`: Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize("is_stopped", [False, True])
def test_meta_training_ends_with_a_page(is_stopped, log, monkeypatch, capsys):
    trainer = optax_meta.meta_trainer(
        [optax_meta.families.quadratics(dim=2)],
        optax_meta.load_policy("any-lr-v1"),
        families_per_update=1,
    )

    def train(trainer, *_, seed, **__):
        if is_stopped:
            raise KeyboardInterrupt
        return trainer.policy(trainer.init(seed))

    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setitem(meta_runs.RECIPES, "any-lr-v1", lambda mesh, **options: trainer)
    monkeypatch.setattr(meta_runs, "train", train)
    code = cli.main(["meta-train", "--out", str(log.parent), "--devices", "1"])
    assert code == (130 if is_stopped else 0)
    assert (log.parent / "report.html").exists()
    assert (log.parent / "any-lr-v1.policy").exists() != is_stopped
    assert ("the same command goes on" in capsys.readouterr().err) == is_stopped
