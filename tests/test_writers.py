"""Rows of a run reach files, trackers and the terminal, and come back from there."""

import io
import json
import struct
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

import optax_meta
from optax_meta import cli, recording, writers
from optax_meta.reports.rows import method_result

CONTROLLER = optax_meta.classic_reinforce(decision_interval=3, start="hold")
LABELS = CONTROLLER.action_labels
STEPS = 10
PLAIN = {"step": 1, "value": 0.5}


@pytest.fixture(scope="module")
def run():
    """Return the rows of a short run, stacked."""
    tx = optax_meta.control_hyperparams(optax.adamw, CONTROLLER)(1e-2)

    def step(carry, _):
        x, state = carry
        loss, grads = jax.value_and_grad(lambda x: jnp.sum((x - 1.0) ** 2))(x)
        updates, state = tx.update(grads, state, x, value=loss)
        return (x + updates, state), optax_meta.record(state)

    @jax.jit
    def whole():
        x = jnp.zeros(3)
        return jax.lax.scan(step, (x, tx.init(x)), length=STEPS)[1]

    return whole()


def at(rows, index):
    """Return some of the rows, on the device; NumPy slices, since JAX would compile each slice."""
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x)[index]), rows)


def stacked(*rows):
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def events_in(folder):
    """Return the events of a folder in the order in which TensorBoard reads them."""
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            size, _, body = data[:8], data[8:12], data[12:]
            (length,) = struct.unpack("<Q", size)
            text, (check,) = body[:length], struct.unpack("<I", body[length : length + 4])
            crc = crc32c(text)
            assert check == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
            yield Event.FromString(text)
            data = body[length + 4 :]


def scalars_in(folder):
    """Return values by tag and step, by TensorBoard's rule for a run that started again."""
    found = {}
    for event in events_in(folder):
        if event.session_log.status == SessionLog.START:
            found = {key: value for key, value in found.items() if key[1] < event.step}
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return found


def written(path, *records, controller=CONTROLLER):
    with writers.jsonl(path, controller=controller) as writer:
        for rows in records:
            writer.write(rows)
    return path.read_text()


# Plain rows


def test_a_row_holds_what_the_record_holds(run):
    rows = recording.flatten(run, LABELS)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["decided"] for row in rows] == [i % 3 == 0 for i in range(STEPS)]
    for i, row in enumerate(rows):
        for name in ("value", "cost", "grad_norm", "alignment", "num_nonfinite"):
            assert row[name] == getattr(run, name)[i]
        assert row["learning_rate"] == run.hyperparams["learning_rate"][i]
        assert ("action" in row) == row["decided"]
    assert rows[3]["action"] == run.decision.action[3]
    assert rows[3]["action_label"] == LABELS[rows[3]["action"]]
    np.testing.assert_array_equal(rows[3]["probabilities"], run.decision.probabilities[3])
    np.testing.assert_array_equal(rows[3]["observation"], run.decision.observation[3])


def test_stacked_rows_are_single_rows(run):
    rows = recording.flatten(run, LABELS)
    assert [recording.flatten(at(run, i), LABELS)[0] for i in range(STEPS)] == rows
    batch = recording.flatten(stacked(run, run), LABELS)
    assert batch == [{"seed": seed, **row} for seed in (0, 1) for row in rows]


def test_what_json_lacks_is_none(run):
    broken = run._replace(
        grad_norm=np.array([np.inf, *run.grad_norm[1:]]),
        decision=run.decision._replace(log_prob=np.full(STEPS, -np.inf)),
    )
    row = recording.flatten(broken)[0]
    assert row["grad_norm"] is row["log_prob"] is None
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert writers.frame(broken).grad_norm.isna().sum() == 1


# Files


def test_a_file_holds_each_row_once_however_they_came(run, tmp_path):
    whole = written(tmp_path / "a" / "whole.jsonl", run)
    single = written(tmp_path / "single.jsonl", *(at(run, i) for i in range(STEPS)))
    assert whole == single
    assert writers.read_rows(tmp_path / "single.jsonl") == recording.flatten(run, LABELS)


@pytest.mark.parametrize("first", [0, 4, STEPS])
def test_a_resumed_run_leaves_each_step_once(first, run, tmp_path):
    path = tmp_path / "steps.jsonl"
    whole = written(path, run)
    assert written(path, at(run, slice(first, None))) == whole
    with path.open("a") as file:
        file.write(whole.splitlines()[-1][:50])  # killed while it wrote
    assert writers.read_rows(path) == recording.flatten(run, LABELS)
    later = run._replace(step=run.step + STEPS)
    assert written(path, later).startswith(whole)
    assert [row["step"] for row in writers.read_rows(path)] == list(range(1, 2 * STEPS + 1))


def test_going_back_within_a_run_replaces_too(run, tmp_path):
    text = written(tmp_path / "steps.jsonl", run, at(run, slice(3, 5)), at(run, slice(5, None)))
    assert text == written(tmp_path / "whole.jsonl", run)


def test_another_file_is_left_as_it_is(run, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"update": 1}\n')
    with (
        pytest.raises(ValueError, match=r"line 1 of .* is no row with `step`"),
        writers.jsonl(path) as writer,
    ):
        writer.write(run)
    assert path.read_text() == '{"update": 1}\n'


@pytest.mark.parametrize(
    ("name", "steps"),
    [("steps.jsonl", range(1, STEPS + 1)), ("log.jsonl", (3, 4, 6, 7, 9))],  # all; some left out
)
def test_a_run_that_was_killed_has_a_page(name, steps, run, tmp_path):
    text = written(tmp_path / name, *(at(run, step - 1) for step in steps))
    (tmp_path / name).write_text(text[:-40])
    assert cli.main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert f"{steps[-2]} steps, 1 run." in page
    assert f"<h1>Run: {tmp_path.name}</h1>" in page
    assert "Which actions were taken" in page


def test_a_run_is_read_back_as_it_was(run, tmp_path):
    written(tmp_path / "steps.jsonl", run)
    result = method_result(writers.read_rows(tmp_path / "steps.jsonl"), {})
    np.testing.assert_array_equal(result.losses[0], run.value)
    decided = np.asarray(run.decided)
    for name, value in result.records._asdict().items():
        if name not in ("decision", "hyperparams"):
            np.testing.assert_array_equal(value[0], getattr(run, name), err_msg=name)
    for name, value in run.decision._asdict().items():
        read = getattr(result.records.decision, name)[0]
        np.testing.assert_array_equal(read[decided], value[decided], err_msg=name)


def test_at_steps_that_are_left_out_the_nearest_row_counts(run, tmp_path):
    path = tmp_path / "steps.jsonl"
    written(path, *(at(run, i) for i in (2, 5, 6)))
    result = method_result(writers.read_rows(path), {})
    nearest = np.asarray(run.value)[[2, 2, 2, 2, 2, 5, 6]]
    np.testing.assert_array_equal(result.losses[0], nearest)
    np.testing.assert_array_equal(result.records.decided[0].nonzero()[0], [6])


# A table


def test_a_frame_has_a_row_a_step(run, tmp_path):
    table = writers.frame(run, CONTROLLER)
    assert len(table) == STEPS
    assert {"value", "grad_norm", "learning_rate", "action", "p(hold)"} <= {*table.columns}
    np.testing.assert_array_equal(table.value, run.value)
    decided = table[table.decided]
    assert decided.action.tolist() == run.decision.action[run.decided].tolist()
    assert decided.action_label.tolist() == [LABELS[action] for action in decided.action]
    np.testing.assert_allclose(decided.filter(like="p(").sum(axis=1), 1.0, rtol=1e-6)
    assert table[~table.decided].action.isna().all()
    written(tmp_path / "steps.jsonl", run)
    for same in (
        writers.frame([at(run, i) for i in range(STEPS)], CONTROLLER),
        writers.frame(tmp_path / "steps.jsonl", CONTROLLER),
    ):
        assert same.equals(table)


def test_a_frame_of_several_runs_keeps_them_apart(run):
    table = writers.frame(stacked(run, run)._replace(decision=None))
    assert table.groupby("seed").size().to_dict() == {0: STEPS, 1: STEPS}
    assert "action" not in table


# TensorBoard


def test_event_files_are_read_back(run, tmp_path):
    with writers.tensorboard(tmp_path, controller=CONTROLLER, prefix="controller/") as writer:
        writer.write(run)
    found = scalars_in(tmp_path)
    for i in range(STEPS):
        assert found["controller/value", i + 1] == run.value[i]
        assert found["controller/learning_rate", i + 1] == run.hyperparams["learning_rate"][i]
    hold = LABELS.index("hold")
    assert found["controller/p/hold", 4] == run.decision.probabilities[3, hold]
    tags = {tag for tag, _ in found}
    assert "controller/p/learning_rate_x2_weight_decay_-1e-05" in tags
    assert sum(tag.startswith("controller/p/") for tag in tags) == len(LABELS)
    assert not any("observation" in tag or "step" in tag for tag in tags)


def test_a_resumed_run_hides_old_events(run, tmp_path):
    for start in (0, 4):
        with writers.tensorboard(tmp_path) as writer:
            writer.write(at(run, slice(start, 8))._replace(value=np.full(8 - start, start)))
            writer.put([{"step": 6, "value": 100.0 + start}])  # goes back within a run
    values = {step: v for (tag, step), v in scalars_in(tmp_path).items() if tag == "value"}
    assert values == {1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0, 5: 4.0, 6: 104.0}
    assert len(list(tmp_path.glob("events*"))) == 4


# Trackers, whose packages are large: doubles with the signatures of wandb 0.31 and mlflow 3.17


class Run:
    """In place of `wandb.Run`."""

    def __init__(self, step=0):
        self.step, self.logged = step, []

    def log(self, data, step=None, commit=None):  # noqa: ARG002
        assert all(type(value) in (int, float) for value in data.values())
        self.logged.append((step, data))


class Client:
    """In place of `mlflow.MlflowClient`."""

    logged: dict

    def get_run(self, run_id):
        latest = {name: value for (name, _), value in sorted(self.logged[run_id].items())}
        return SimpleNamespace(data=SimpleNamespace(metrics=latest))

    def log_batch(self, run_id, metrics=(), params=(), tags=(), synchronous=None):  # noqa: ARG002
        for metric in metrics:
            assert (metric.key, metric.step) not in self.logged[run_id]
            self.logged[run_id][metric.key, metric.step] = metric.value


class Metric:
    """In place of `mlflow.entities.Metric`."""

    def __init__(self, key, value, timestamp, step):
        assert set(key) <= {*"_-./", *map(chr, range(48, 58)), *map(chr, range(97, 123))}
        assert timestamp > 1e12
        self.key, self.value, self.step = key, value, step


@pytest.fixture
def mlflow(monkeypatch):
    """Return metrics by (name, step), by run."""
    Client.logged = {"active": {}, "mine": {}}
    active = SimpleNamespace(info=SimpleNamespace(run_id="active"))
    fake = SimpleNamespace(MlflowClient=Client, active_run=lambda: active)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", SimpleNamespace(Metric=Metric))
    return Client.logged


@pytest.mark.parametrize("is_active", [False, True])
def test_wandb_gets_a_call_a_step(is_active, run, monkeypatch):
    wandb_run = Run()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=wandb_run))
    with writers.wandb(None if is_active else wandb_run, controller=CONTROLLER) as writer:
        writer.write(run)
        writer.write(at(run, slice(2, 4)))  # wandb would drop them, with a warning each
    assert [step for step, _ in wandb_run.logged] == list(range(1, STEPS + 1))
    assert wandb_run.logged[4][1]["learning_rate"] == run.hyperparams["learning_rate"][4]
    assert {"p/hold", "reward"} <= wandb_run.logged[3][1].keys()


def test_wandb_goes_on_where_the_run_is(run):
    resumed = Run(step=8)
    with writers.wandb(resumed) as writer:
        writer.write(run)
    assert [step for step, _ in resumed.logged] == [8, 9, 10]


@pytest.mark.parametrize("run_id", [None, "mine"])
def test_mlflow_gets_each_step_once(run_id, run, mlflow):
    for rows in (at(run, slice(0, 6)), at(run, slice(4, None))):
        with writers.mlflow(run_id, controller=CONTROLLER) as writer:
            writer.write(rows)
    logged = mlflow[run_id or "active"]
    assert [logged["value", i + 1] for i in range(STEPS)] == run.value.tolist()
    assert ("p/hold", 4) in logged


# The terminal


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_what_happens(run, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with writers.console(2 * STEPS, controller=CONTROLLER) as writer:
        for start in (0, 3, 6):
            writer.write(at(run, slice(start, start + 4)))
    last = sys.stderr.getvalue().rstrip().splitlines()[-2]
    assert f"loss {float(run.value[-1]):.4g}" in last
    assert f"learning rate {float(run.hyperparams['learning_rate'][-1]):.4g}" in last
    assert LABELS[int(run.decision.action[-1])] in last
    assert f"{STEPS}/{2 * STEPS}" in last
    assert "steps/s" in last


def test_in_a_narrow_terminal_the_row_gives_way_and_the_numbers_stay(run, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with writers.console(2 * STEPS, controller=CONTROLLER) as writer:
        writer.write(run)
    last = sys.stderr.getvalue().rstrip().splitlines()[-2]
    assert f"loss {float(run.value[-1]):.4g} · learning" in last
    assert "…" in last
    assert f"{STEPS}/{2 * STEPS}" in last
    assert "0:00:0" in last or "-:--:--" in last


def test_no_terminal_no_word(run, capsys):
    with writers.console(STEPS) as writer:
        writer.write(run)
    assert capsys.readouterr() == ("", "")


def test_ctrl_c_leaves_a_file_and_says_how_to_go_on(run, tmp_path, capsys):
    folder = tmp_path / "run"
    joined = writers.tee(
        writers.console(STEPS, folder=folder), writers.jsonl(folder / "steps.jsonl")
    )

    def interrupted():
        with joined as writer:
            writer.write(at(run, slice(0, 4)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    error = capsys.readouterr().err
    assert f"stopped at step 4 of {STEPS}; its page: optax-meta report {folder};" in error
    assert "to resume" in error
    assert error.count("\n") == 1
    assert len(writers.read_rows(folder / "steps.jsonl")) == 4
    assert cli.main(["report", str(folder)]) == 0


def test_all_are_closed_where_one_fails(tmp_path):
    class Broken:
        def put(self, rows):
            pass

        def close(self, **_):
            raise OSError

    file = writers.jsonl(tmp_path / "a.jsonl")
    joined = writers.tee(writers.Writer((Broken(), ())), file, writers.Writer((Broken(), ())))
    joined.put([PLAIN])
    with pytest.raises(OSError):  # noqa: PT011 - whatever it is
        joined.close()
    assert file.outlets[0][0].file is None


def test_only_the_first_host_writes(run, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with writers.jsonl(tmp_path / "a.jsonl") as writer:
        writer.write(run)
        writer.put([PLAIN])
    assert not list(tmp_path.iterdir())


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (writers.jsonl, "`path` must be a file such as `run/steps.jsonl`"),
        (lambda folder: writers.jsonl(folder / "a.csv"), "`path` must be a file such as"),
        (lambda folder: writers.jsonl("a.jsonl", controller="hold"), "`controller` must be that"),
        (lambda folder: writers.console(controller=LABELS), "`controller` must be that"),
        (lambda folder: writers.tensorboard(__file__), "`folder` must be a folder for events"),
        (lambda folder: writers.wandb("mine"), r"`run` must be what `wandb.init\(\)` returned"),
        (lambda folder: writers.mlflow(3), "`run_id` must be text"),
        (lambda folder: writers.console(0), "`total_steps` must be a whole number ≥ 1"),
        (lambda folder: writers.tee(), "`writers` must be writers such as"),
        (writers.tee, "`writers` must be writers such as"),
        (lambda folder: writers.frame({"step": 1}), "`rows` must be what `optax_meta.record"),
        (lambda folder: writers.frame([1]), "`rows` must be what `optax_meta.record"),
    ],
)
def test_bad_input(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(tmp_path)


@pytest.mark.usefixtures("mlflow")
def test_no_active_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=None))
    with pytest.raises(ValueError, match="`run` must be what"):
        writers.wandb()
    monkeypatch.setattr(sys.modules["mlflow"], "active_run", lambda: None)
    with pytest.raises(ValueError, match="no MLflow run is active"):
        writers.mlflow()


def test_rows_that_cannot_be_written(run, tmp_path):
    writer = writers.jsonl(tmp_path / "a.jsonl", controller=CONTROLLER)
    batch = stacked(run)
    for rows, message in (
        ({"step": 1}, "`rows` must be what `optax_meta.record"),
        (batch, "must be of one run"),
        (stacked(batch), "may have leading axes"),
        (run._replace(decision=run.decision._replace(probabilities=np.ones((STEPS, 2)))), "the 2"),
    ):
        with pytest.raises(ValueError, match=message):
            writer.write(rows)
    with pytest.raises(ValueError, match="inside `jit`"):
        jax.jit(writer.write)(run)


@pytest.mark.parametrize(
    ("package", "extra", "make"),
    [
        ("tensorboardX", "writers", lambda run: writers.tensorboard("run")),
        ("rich", "writers", lambda run: writers.console()),
        ("pandas", "writers", writers.frame),
        ("wandb", "wandb", lambda run: writers.wandb()),
        ("mlflow", "mlflow", lambda run: writers.mlflow()),
    ],
)
def test_a_missing_package_is_named_with_its_command(package, extra, make, run, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}: pip install 'optax-meta\[{extra}\]'"):
        make(run)
