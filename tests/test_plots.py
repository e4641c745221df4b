"""What the pictures show: the drawn data are read back."""

import inspect

import matplotlib.pyplot as plt
import numpy as np
import pytest

from optax_meta import plots, protocol
from optax_meta.meta.evaluation import Interval, Summary
from optax_meta.recording import Decision, Record

RATES = [1e-3, 0.1]
LABELS = ("learning_rate ×0.5", "hold", "learning_rate ×2, weight_decay ×2")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def ax():
    return plt.subplots()[1]


def cell(losses, oracle=(1.0, 1.0), rates=RATES):
    return {
        "learning_rates": rates,
        "initial": [4.0, 4.0],
        "oracle": {"losses": list(oracle)},
        "floor": 0.0,
        "losses": losses,
    }


def record(runs=(), steps=12, every=4):
    """Return rows of a policy that decides at steps 1, 5, 9 and chooses 0, 1, 2."""
    t = np.broadcast_to(np.arange(steps), (*runs, steps))
    action = t // every
    probabilities = np.where(np.arange(3) == action[..., None], 0.6, 0.2)
    observed = np.stack([t / steps, -t / steps], axis=-1)
    zeros = np.zeros(t.shape)
    return Record(
        step=t + 1,
        value=zeros,
        cost=zeros,
        grad_norm=zeros,
        alignment=zeros,
        hyperparams={"learning_rate": 0.1 * 2.0 ** (action - 1)},
        decided=t % every == 0,
        num_nonfinite=zeros,
        num_spikes=zeros,
        progress=zeros,
        num_misread=zeros,
        decision=Decision(action, zeros, zeros, zeros, zeros, probabilities, observed),
    )


def lines(ax):
    return {line.get_label(): line for line in ax.lines}


def test_start_sensitivity_draws_geometric_means_of_capped_ratios(ax):
    cells = [
        cell({"a": [[1.0, 4.0], [2.0, 2.0]], "b": [[1.0, 1.0], [1.0, np.nan]]}),
        cell({"a": [[2.0, 2.0], [0.5, 0.5]]}),
    ]
    assert plots.start_sensitivity(cells, {"a": "first", "b": "second"}, ax=ax) is ax
    drawn = lines(ax)
    np.testing.assert_allclose(drawn["first"].get_xdata(), RATES)
    np.testing.assert_allclose(drawn["first"].get_ydata(), [2.0, 1.0])
    np.testing.assert_allclose(drawn["second"].get_ydata(), [1.0, protocol.CAP**0.5])
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert drawn["first"].get_linewidth() > drawn["second"].get_linewidth()
    assert "39-trial" in ax.get_ylabel()


def test_starting_rates_are_matched_by_value(ax):
    cells = [cell({"a": [[2.0, 2.0], [1.0, 1.0]]}), cell({"a": [[3.0, 3.0]]}, rates=[1e-5])]
    (line, _) = plots.start_sensitivity(cells, ["a"], ax=ax).lines
    np.testing.assert_allclose(line.get_xdata(), [1e-5, 1e-3, 0.1])
    np.testing.assert_allclose(line.get_ydata(), [3.0, 2.0, 1.0])


@pytest.mark.parametrize("draw", [plots.start_sensitivity, plots.performance_profile])
def test_cells_whose_oracle_diverged_are_excluded(draw, ax):
    good = cell({"a": [[1.0, 2.0], [2.0, 2.0]]})
    excluded = cell({"a": [[9.0, 9.0], [9.0, 9.0]]}, oracle=(1.0, np.nan))
    alone = draw([good], ["a"]).lines[0].get_ydata()
    np.testing.assert_array_equal(draw([good, excluded], ["a"], ax=ax).lines[0].get_ydata(), alone)
    with pytest.raises(
        ValueError, match="must hold one whose oracle diverged on no seed, got 1 that"
    ):
        draw([excluded], ["a"])
    with pytest.raises(ValueError, match="`methods` must be among a, got 'b'"):
        draw([good], ["b"])


def test_performance_profile_is_the_share_of_runs_at_most_tau(ax):
    cells = [cell({"a": [[0.8, 1.0], [2.0, 2.0]], "b": [[1.0, 1.0], [np.nan, 5.0]]})]
    plots.performance_profile(cells, ["a", "b"], ax=ax)
    taus = ax.lines[0].get_xdata()
    assert (taus[0], taus[-1]) == (0.5, pytest.approx(10.0))
    for name, ratios in (("a", [0.8, 1.0, 2.0, 2.0]), ("b", [1.0, 1.0, np.inf, np.inf])):
        shares = np.mean(np.array(ratios)[:, None] <= taus, axis=0)
        np.testing.assert_allclose(lines(ax)[name].get_ydata(), shares)
    assert ax.get_xscale() == "log"
    assert ax.get_ylim()[0] == 0.0


def test_the_band_of_a_profile_holds_its_line(ax):
    generator = np.random.default_rng(0)
    losses = np.exp(generator.normal(0.3, 0.5, (2, 8)))
    wide = cell({"a": losses.tolist(), "b": np.tile(losses[:, :1], 8).tolist()}, (1.0,) * 8)
    plots.performance_profile([{**wide, "initial": [99.0] * 8}], ["a", "b"], ax=ax)
    for band, line, is_wide in zip(ax.collections, ax.lines[:2], (True, False), strict=True):
        edge = band.get_paths()[0].vertices
        at = {tau: edge[edge[:, 0] == tau, 1] for tau in line.get_xdata()[1:-1]}
        low, high = (np.array([f(ys) for ys in at.values()]) for f in (np.min, np.max))
        share = line.get_ydata()[1:-1]
        assert np.all((low <= share) & (share <= high))
        assert bool(np.any(high > low + 0.2)) == is_wide


@pytest.mark.parametrize("runs", [(), (2,)])
def test_decisions_shows_probabilities_and_choices(runs, ax):
    assert plots.decisions(record(runs), LABELS, ax=ax) is ax
    (mesh,) = ax.collections
    chosen = np.eye(3) * 0.4 + 0.2
    np.testing.assert_allclose(mesh.get_array().reshape(3, 3), chosen)
    (dots,) = ax.lines
    np.testing.assert_allclose(dots.get_xdata(), [3.0, 7.0, 11.0])  # the middle of what it ruled
    np.testing.assert_array_equal(dots.get_ydata(), [0, 1, 2])
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == ["learning rate ×0.5", "hold", "learning rate ×2,\nweight decay ×2"]
    assert ax.get_xlim() == (1.0, 13.0)


def test_decisions_shows_what_the_policy_observed(ax):
    plots.decisions(record(), LABELS, ("progress", "noise"), ax=ax)
    _, observed = ax.collections
    times = np.array([0, 4, 8]) / 12
    np.testing.assert_allclose(observed.get_array().reshape(2, 3), [times, -times])
    assert [text.get_text() for text in ax.get_yticklabels()][3:] == ["progress", "noise"]


def test_decisions_that_cannot_be_drawn():
    rows = record()
    with pytest.raises(ValueError, match="of a controller without a policy"):
        plots.decisions(rows._replace(decision=None), LABELS)
    with pytest.raises(ValueError, match="a run that ended before the first"):
        plots.decisions(rows._replace(decided=np.zeros(12, bool)), LABELS)
    with pytest.raises(ValueError, match="`labels` must hold 3 names, got 2"):
        plots.decisions(rows, LABELS[:2])
    with pytest.raises(ValueError, match="`features` must hold 2 names, got 1"):
        plots.decisions(rows, LABELS, ["progress"])
    with pytest.raises(
        ValueError, match="must be one of the record's: learning_rate; got 'momentum'"
    ):
        plots.timeline(rows, "momentum")
    with pytest.raises(ValueError, match="must hold a policy's actions"):
        plots.action_histogram(rows._replace(decision=None), LABELS)


def test_loss_curves_and_timeline_draw_what_they_are_given(ax):
    losses = {"one": np.full((2, 9), 0.5), "two": np.array([[2.0, np.nan, 4.0], [2.0, 2.0, 2.0]])}
    plots.loss_curves(losses, smoothing=2, ax=ax)
    np.testing.assert_allclose(lines(ax)["two"].get_ydata(), [2.0, 2.0, 3.0])
    assert ax.get_yscale() == "log"
    rows = record((2,))
    rate = rows.hyperparams["learning_rate"]
    drawn = plots.timeline(rows).lines
    np.testing.assert_array_equal(drawn[1].get_ydata(), rate[0])
    np.testing.assert_array_equal(drawn[2].get_xdata(), [5, 9])
    assert drawn[1].axes.get_yscale() == "log"


def test_seeds_of_different_lengths_are_drawn_to_their_ends(ax):
    nan = np.nan
    plots.loss_curves({"a": np.array([[1.0, 1.0, nan], [3.0, 3.0, 3.0]])}, smoothing=1, ax=ax)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [2.0, 2.0, 3.0])
    band = ax.collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in band} >= {(2.0, 1.0), (2.0, 3.0), (3.0, 3.0)}
    rate = np.array([[0.1, 0.4, nan], [0.1, 0.1, 0.1]])
    rows = record((2,), steps=3)._replace(hyperparams={"learning_rate": rate})
    drawn = plots.timeline(rows).lines
    np.testing.assert_array_equal(drawn[1].get_ydata(), rate[0])
    assert drawn[1].axes.get_yscale() == "log"
    plots.timeline(rows._replace(hyperparams={"momentum": np.full((2, 3), nan)}), "momentum")


def test_a_ranking_over_decades_is_logarithmic(ax):
    def row(name, loss, half):
        interval = Interval(loss, half)
        return Summary(name, interval, interval, interval, None, 1.0, 0.1, 0.1, 0, interval, 1.0)

    plots.ranking([row("a", 1e-3, 1e-4), row("b", 0.1, 0.2)], ax=ax)
    assert ax.get_xscale() == "log"
    assert ax.get_xlim() == pytest.approx((9e-4 / 1.5, 0.3 * 1.5))
    plots.ranking([row("a", 1.0, 0.1), row("b", 1.2, 0.2)], ax=(near := plt.subplots()[1]))
    assert near.get_xscale() == "linear"


def test_a_reward_belongs_to_the_action_of_the_decision_before(ax):
    rows = record((2,))
    # At steps 0, 4 and 8 the actions are 0, 1 and 2; what they earned stands beside the next.
    reward = np.arange(12.0) * np.array([[1.0], [3.0]])
    rows = rows._replace(decision=rows.decision._replace(reward=reward))
    assert plots.rewards_by_action(rows, LABELS, ax=ax) is ax
    points = [np.ravel(box.lines[0].get_xydata()).astype(float) for box in ax.containers]
    np.testing.assert_allclose(points, [(8.0, 0.0), (16.0, 1.0)])
    (segment,) = ax.containers[0].lines[2][0].get_segments()
    # Two standard errors of 4 and 12.
    np.testing.assert_allclose(segment[:, 0], 8.0 + np.array([-1.0, 1.0]) * 2.0 * 4.0 / 2.0**0.5)
    with pytest.raises(ValueError, match="`record` must hold a policy's rewards"):
        plots.rewards_by_action(rows._replace(decision=None), LABELS)


def test_the_namespace_is_whole():
    functions = {name for name, value in vars(plots).items() if inspect.isfunction(value)}
    assert functions == {
        "action_histogram",
        "decisions",
        "line_style",
        "loss_curves",
        "performance_profile",
        "ranking",
        "rewards_by_action",
        "running_mean",
        "start_sensitivity",
        "timeline",
    }


def test_many_lines_can_be_told_apart():
    styles = [plots.line_style(i) for i in range(35)]
    assert len({str(style) for style in styles}) == 35
