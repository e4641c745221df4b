"""REINFORCE inside the update, checked against a plain Python replay of its definition."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import run_values
from jax.flatten_util import ravel_pytree

import optax_meta
from optax_meta import actions, classic_reinforce, control_hyperparams, policy_gradient, reinforce
from optax_meta.controllers.reinforce import extract_policy, fresh_policy

VALUES = np.array([2.0, 1.5, 1.7, 1.2, 1.1, 0.9, 1.3, 0.8, 0.7, 0.75, 0.6], np.float32)


def run(values=VALUES, **options):
    return cached_run(tuple(float(value) for value in values), tuple(options.items()))


@functools.cache
def cached_run(values, options):
    options = dict(options)
    options = {"decision_interval": 1, "train_every": 3, **options}
    tx = control_hyperparams(optax.adamw, classic_reinforce(**options))(1e-3)
    return run_values(tx, values)


def replay(rows, policy, options):
    """Learn from the recorded decisions with Optax's Adam, step by step in Python."""
    params, unravel = ravel_pytree(policy.params)
    adam = optax.scale_by_adam()
    adam_state, baseline = adam.init(params), jnp.float32(0.0)
    length = options["train_every"]
    decision = rows.decision
    for end in range(length, len(decision.action), length):
        taken = slice(end - length, end)
        # What is left of the time to learn in; without an end all of it.
        left = 1.0
        if math.isfinite(options["explore_until"]):
            # Where exploring ends a short run has in proportion less time, and a lower rate.
            full = options["full_steps"]
            caution = min(options["total_steps"] / full, 1.0) if full else 1.0
            left -= float(rows.progress[end]) / (caution * options["explore_until"])
            if left <= 0.0:
                break
            left *= caution
        reward = decision.reward[end - length + 1 : end + 1]
        returns = policy_gradient.discounted_returns(reward, options["discount"])
        adv = policy_gradient.advantages(returns, baseline)

        def loss(flat, taken=taken, adv=adv):
            observed = decision.observation[taken]
            log_probs = jnp.stack([policy.log_probs(unravel(flat), s) for s in observed])
            bonus = options["entropy_bonus"]
            value = policy_gradient.policy_loss(log_probs, decision.action[taken], adv, bonus)
            first = jnp.stack([policy.log_probs(policy.params, s) for s in observed])
            away = jnp.sum(jnp.exp(log_probs) * (log_probs - first), axis=1)
            return value + options["anchor"] * jnp.mean(away)

        gradient = policy_gradient.clip_by_norm(jax.grad(loss)(params), options["max_grad_norm"])
        direction, adam_state = adam.update(gradient, adam_state)
        params = params - options["policy_learning_rate"] * left * direction
        baseline = policy_gradient.moving_average_baseline(
            baseline, returns, options["baseline_decay"]
        )
    return params, baseline


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train_every": 5, "discount": 0.5, "entropy_bonus": 0.5, "baseline_decay": 0.0},
        {"train_every": 1, "max_grad_norm": 0.01},
        {"policy_learning_rate": 0.0},
        {
            "train_every": 2,
            "anchor": 20.0,
            "policy_learning_rate": 1e-2,
            "explore_until": 0.75,
            "total_steps": len(VALUES),
            "full_steps": 0.0,
        },
        {
            "train_every": 1,
            "policy_learning_rate": 0.5,
            "explore_until": 0.9,
            "total_steps": len(VALUES),
            "full_steps": 1.5 * len(VALUES),
        },
    ],
    ids=str,
)
def test_learning_equals_its_definition(changes):
    options = {
        "train_every": 3,
        "discount": 0.99,
        "baseline_decay": 0.9,
        "entropy_bonus": 0.01,
        "max_grad_norm": 1.0,
        "policy_learning_rate": 1e-2,
        "anchor": 0.0,
        "explore_until": math.inf,
        **changes,
    }
    rows, state, _ = run(**options)
    policy = optax_meta.init_policy(jax.random.key(0), start="uniform")
    params, baseline = replay(rows, policy, options)
    learned = state.controller_state
    np.testing.assert_allclose(learned.policy_params, params, atol=2e-5)
    np.testing.assert_allclose(learned.before[-1], baseline, rtol=1e-5)
    has_moved = not np.array_equal(learned.policy_params, ravel_pytree(policy.params)[0])
    assert has_moved == (options["policy_learning_rate"] > 0)


def test_rewards_are_the_classic_ones():
    rows, _, _ = run(reward_scale=2.0)
    expected = np.concatenate([[0.0], 2.0 * -np.diff(VALUES)])
    np.testing.assert_allclose(rows.decision.reward, expected, atol=1e-6)


def test_a_non_finite_loss_earns_the_worst_reward():
    values = VALUES.copy()
    values[4] = np.nan
    rows, state, _ = run(values, reward=optax_meta.rewards.improvement(bound=3.0))
    assert rows.decision.reward[4] == -3.0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_episode_is_cleared_after_learning():
    length = 3
    tx = control_hyperparams(
        optax.adamw, classic_reinforce(decision_interval=1, train_every=length)
    )(1e-3)
    update = jax.jit(lambda state, value: tx.update(jnp.array(1.0), state, 1.0, value=value)[1])
    state = tx.init(jnp.array(1.0))
    for value in VALUES[:length]:
        state = update(state, value)
    assert np.all(np.any(state.controller_state.episode != 0, axis=1))
    state = update(state, VALUES[length])
    episode = state.controller_state.episode
    assert np.any(episode[0] != 0)
    np.testing.assert_array_equal(episode[1:], 0)


def test_record_tells_what_was_decided():
    rows, _, _ = run()
    decision = rows.decision
    chosen = np.take_along_axis(np.asarray(decision.probabilities), decision.action[:, None], 1)
    np.testing.assert_allclose(np.exp(decision.log_prob), chosen[:, 0], rtol=1e-5)
    np.testing.assert_allclose(decision.probabilities.sum(axis=1), 1.0, rtol=1e-5)
    factor = np.asarray([0.5, 1.0, 2.0])[decision.action // 3]
    before = np.concatenate([[1e-3], rows.hyperparams["learning_rate"][:-1]])
    np.testing.assert_allclose(rows.hyperparams["learning_rate"], before * factor, rtol=1e-6)


def test_same_seed_same_run_and_other_seed_another():
    same, other = run(seed=3)[0], run(seed=4)[0]
    np.testing.assert_array_equal(same.decision.action, run(seed=3)[0].decision.action)
    assert np.any(same.decision.action != other.decision.action)


def test_seeds_can_be_vmapped():
    def seeded(seed):
        controller = classic_reinforce(seed=seed, decision_interval=1, train_every=3)
        tx = control_hyperparams(optax.adamw, controller)(1e-3)
        return run_values(tx, VALUES)[0].decision.action

    actions = jax.vmap(seeded)(jnp.arange(3))
    for seed in range(3):
        np.testing.assert_array_equal(actions[seed], run(seed=seed)[0].decision.action)


def test_a_fresh_policy_holds():
    rows, _, _ = run(np.ones(200, np.float32), start="hold", policy_learning_rate=0.0)
    share = np.mean(rows.decision.action == 4)
    # 0.9 within four standard errors of 200 draws.
    assert abs(share - 0.9) < 4 * np.sqrt(0.9 * 0.1 / 200)


def test_uniform_start_draws_all_actions_alike():
    rows, _, _ = run(np.ones(900, np.float32), policy_learning_rate=0.0)
    counts = np.bincount(rows.decision.action, minlength=9)
    # χ² with 8 degrees of freedom exceeds 26.1 once in 1000 draws.
    assert np.sum((counts - 100) ** 2 / 100) < 26.1


def test_a_reward_sees_all_of_the_run_before():
    def reward(before, after):
        return (after.step - before.step) + 0.1 * before.num_steps + 0.01 * before.param_norm

    controller = classic_reinforce(
        encoder=optax_meta.observations.scale_free(),
        action_space=optax_meta.actions.learning_rate(),
        reward=reward,
        decision_interval=3,
    )
    tx = control_hyperparams(optax.sgd, controller)(1e-3)
    params = jnp.array(2.0)
    state, rewards = tx.init(params), []
    update = jax.jit(lambda state: tx.update(jnp.array(1.0), state, params, value=1.0)[1])
    for _ in range(10):
        state = update(state)
        row = optax_meta.record(state)
        if row.decided:
            rewards.append(float(row.decision.reward))
    np.testing.assert_allclose(rewards, [0.0, 3.12, 3.32, 3.32], rtol=1e-5)


@pytest.mark.parametrize(("anchor", "least", "most"), [(0.0, 0.0, 0.1), (100.0, 0.25, 0.4)])
def test_it_learns_not_to_double_where_low_rates_pay(anchor, least, most):
    """Reward is the negative log rate, bounded below: halving and holding end up alike.

    A large anchor keeps the policy where it began.
    """

    def reward(before, after):
        del before
        return -after.value

    def step(carry, _):
        params, state = carry
        rate = optax_meta.hyperparams(state)["learning_rate"]
        _, state = tx.update(jnp.array(0.0), state, params, value=jnp.log2(rate / 1e-3))
        return (params, state), optax_meta.record(state).decision.probabilities

    space = optax_meta.actions.learning_rate(bounds=(1e-3 / 2, 2e-3))
    controller = classic_reinforce(
        action_space=space, reward=reward, decision_interval=1, discount=0.0, anchor=anchor
    )
    tx = control_hyperparams(optax.adamw, controller)(1e-3)
    carry = (jnp.array(0.0), tx.init(jnp.array(0.0)))
    _, probabilities = jax.lax.scan(step, carry, length=1000)
    assert probabilities[0, 2] > 0.3
    assert least <= probabilities[-1, 2] < most


def test_a_given_policy_is_where_learning_starts():
    policy = optax_meta.init_policy(jax.random.key(7), hidden_sizes=(4,))
    controller = reinforce(policy, decision_interval=1, explore_from=0.0)
    tx = control_hyperparams(optax.adamw, controller)(1e-3)
    state = tx.init(jnp.array(1.0))
    same = extract_policy(policy, state)
    jax.tree.map(np.testing.assert_array_equal, same.params, policy.params)
    _, state, _ = run_values(tx, VALUES)
    learned = extract_policy(policy, state)
    assert learned.network == policy.network
    assert np.any(
        learned.params["params"]["head"]["bias"] != policy.params["params"]["head"]["bias"]
    )


def test_learned_takes_the_most_probable_action():
    policy = optax_meta.init_policy(jax.random.key(0), hold_probability=0.05)
    head = {**policy.params["params"]["head"], "bias": jnp.arange(9.0)}
    policy = policy._replace(params={"params": {**policy.params["params"], "head": head}})
    controller = optax_meta.learned(policy, total_steps=4, decision_interval=1)
    rows, _, _ = run_values(control_hyperparams(optax.adamw, controller)(1e-3), [1.0] * 4)
    np.testing.assert_array_equal(rows.decision.action, 8)
    np.testing.assert_allclose(rows.hyperparams["learning_rate"], 1e-3 * 2.0 ** np.arange(1, 5))
    np.testing.assert_allclose(rows.decision.observation[:, 7], [-1.0, -0.5, 0.0, 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_every": 0}, "`train_every` must be a whole number ≥ 1, got 0"),
        ({"train_every": 2.5}, "`train_every` must be a whole number ≥ 1, got 2.5"),
        ({"decision_interval": 10.0}, r"`decision_interval` .* ≥ 1 or `math\.inf`, got 10\.0"),
        ({"decision_interval": 0}, r"`decision_interval` must be a whole number ≥ 1"),
        ({"seed": -1}, r"`seed` must be an integer in \[0, 2³²\), got -1"),
        ({"seed": 0.5}, "`seed` must be an integer"),
        ({"discount": 1.1}, r"`discount` must lie in \[0, 1\]"),
        ({"baseline_decay": 1.0}, r"`baseline_decay` must lie in \[0, 1\)"),
        ({"entropy_bonus": -1.0}, "`entropy_bonus` must not be negative"),
        ({"max_grad_norm": 0.0}, "`max_grad_norm` must be positive"),
        ({"reward_scale": 0.0}, "`reward_scale` must be positive"),
        ({"anchor": -0.1}, "`anchor` must not be negative, got -0.1"),
        ({"anchor": math.nan}, "`anchor` must not be negative, got nan"),
        (
            {"explore_until": 1.5},
            r"`explore_until` must lie in \[0, 1\], or be `math\.inf`, got 1\.5",
        ),
        ({"full_steps": -1.0}, "`full_steps` must not be negative, nor infinite, got -1.0"),
        ({"full_steps": math.inf}, "`full_steps` must not be negative, nor infinite, got inf"),
        ({"explore_until": -0.1}, "`explore_until` must lie in"),
        ({"explore_until": math.nan}, "`explore_until` must lie in"),
        ({"policy_learning_rate": -1.0}, "`policy_learning_rate` must not be negative"),
        ({"total_steps": 0}, "`total_steps` must be a whole number ≥ 1"),
        ({"hidden_sizes": (0,)}, "`hidden_sizes` must be a whole number ≥ 1, got 0"),
        ({"policy": "any-lr-v0"}, "cannot read the policy file `any-lr-v0`: no such file"),
        ({"policy": 3}, "`policy` must be a Policy, a name or a path, got int"),
        ({"wrappers": {"anneal": {}}}, "unknown wrapper 'anneal': choose from calibrated"),
        (
            {"action_space": actions.scale("learning_rate")},
            "an ActionSpace, got Move: `actions.joi",
        ),
        ({"start": "warm"}, '`start` must be "hold" or "uniform"'),
        ({"hold_probability": 0.0}, r"`hold_probability` must lie in \(0, 1\)"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        reinforce(**options)


def test_a_policy_excludes_what_describes_a_fresh_one():
    policy = optax_meta.init_policy(jax.random.key(0))
    with pytest.raises(ValueError, match="a `policy` brings its own hidden_sizes, start"):
        reinforce(policy, hidden_sizes=(4,), start="hold")
    with pytest.raises(ValueError, match="`total_steps` must be a whole number ≥ 1"):
        optax_meta.learned(policy, total_steps=0)
    for bad in (2.5, -3):
        with pytest.raises(ValueError, match="`decision_interval` must be a whole number ≥ 1"):
            optax_meta.learned(policy, decision_interval=bad)
    with pytest.raises(
        ValueError, match="`policy` must be a Policy, a name or a path, got ActionSpace"
    ):
        optax_meta.learned(actions.classic())


def test_an_infinite_interval_leaves_it_to_decide():
    policy = optax_meta.init_policy(jax.random.key(0))
    for controller in (reinforce, optax_meta.learned):
        infinite = controller(policy, decision_interval=float("inf"))
        rows, _, _ = run_values(control_hyperparams(optax.adamw, infinite)(1e-3), [1.0] * 3)
        assert not np.any(rows.decided)


def test_after_the_end_nothing_is_learned(feed):
    controller = classic_reinforce(total_steps=10, decision_interval=1, train_every=3, seed=1)
    tx = optax_meta.control_hyperparams(optax.adamw, controller)(0.1)
    values = np.random.default_rng(0).uniform(1.0, 2.0, 40)
    states = [feed(tx, values[:steps])[1] for steps in (5, 10, 40)]
    early, end, late = (state.controller_state.policy_params for state in states)
    assert not np.array_equal(early, end)
    np.testing.assert_array_equal(end, late)


def stepwise(steps, **options):
    """Return after each decision which action it was, the most probable one, and the policy."""
    options = {"wrappers": {}, "explore_from": 0.0, "train_every": 2, **options}
    controller = reinforce(decision_interval=1, **options)
    tx = control_hyperparams(optax.sgd, controller)(0.1)
    update = jax.jit(lambda state, value: tx.update(jnp.ones(()), state, 1.0, value=value)[1])
    state, rows = tx.init(jnp.ones(())), []
    for value in np.random.default_rng(0).uniform(1.0, 2.0, steps).astype(np.float32):
        state = update(state, value)
        row = optax_meta.record(state)
        assert row.decided
        best = np.argmax(row.decision.probabilities)
        rows.append((int(row.decision.action), best, state.controller_state.policy_params))
    chosen, best, params = zip(*rows, strict=True)
    return np.array(chosen), np.array(best), np.array(params)


def test_after_half_of_a_run_it_does_what_is_best_and_learns_no_more():
    chosen, best, params = stepwise(24, total_steps=24, full_steps=0.0)
    np.testing.assert_array_equal(chosen[12:], best[12:])
    assert np.mean(chosen[:12] == best[:12]) < 0.7
    assert len(np.unique(params[:12], axis=0)) == 6  # the start, and one for each pair but the last
    np.testing.assert_array_equal(params[12:], params[[11] * 12])


@pytest.mark.parametrize("options", [{}, {"total_steps": 40, "explore_until": math.inf}])
def test_without_an_end_it_never_stops_exploring(options):
    chosen, best, params = stepwise(24, **options)
    assert np.mean(chosen[12:] == best[12:]) < 0.7
    assert len(np.unique(params[12:], axis=0)) == 6


def test_exploring_begins_where_the_distance_is_found():
    chosen, best, params = stepwise(40, total_steps=40, explore_from=0.25, full_steps=0.0)
    np.testing.assert_array_equal(chosen[:10], best[:10])
    assert len(np.unique(params[:10], axis=0)) == 1
    assert np.mean(chosen[10:20] == best[10:20]) < 0.7
    assert len(np.unique(params[10:20], axis=0)) > 3
    # Of a run of unknown length it is the share of a thousand steps.
    chosen, best, _ = stepwise(40, explore_from=0.02)
    np.testing.assert_array_equal(chosen[:20], best[:20])
    assert np.mean(chosen[20:] == best[20:]) < 0.7


def test_a_short_run_explores_for_less_of_its_time():
    options = {"total_steps": 40, "explore_from": 0.1, "explore_until": 0.6}
    chosen, best, params = stepwise(40, full_steps=80.0, **options)  # from 0.1 to 0.35
    np.testing.assert_array_equal(chosen[:4], best[:4])
    assert np.mean(chosen[4:14] == best[4:14]) < 0.7
    np.testing.assert_array_equal(chosen[14:], best[14:])
    assert len(np.unique(params[14:], axis=0)) == 1
    whole, *_ = stepwise(40, full_steps=40.0, **options)
    without, *_ = stepwise(40, full_steps=0.0, **options)
    np.testing.assert_array_equal(whole, without)
    chosen, best, _ = stepwise(40, **options)  # for 5000 steps: one decision
    np.testing.assert_array_equal(chosen[5:], best[5:])


def test_what_is_best_is_to_hold_where_nothing_is_better():
    options = {"action_space": actions.learning_rate(), "start": "uniform"}
    chosen, *_ = stepwise(6, total_steps=6, explore_until=0.0, **options)
    np.testing.assert_array_equal(chosen, 1)


def test_nothing_is_drawn_that_the_trust_region_would_clip():
    space = actions.joint(actions.level("learning_rate", (0.25, 1.0, 4.0)))
    options = {"action_space": space, "start": "uniform", "decision_interval": 1}

    def chosen(max_share):
        wrappers = {"calibrated": {}, "trust_region": {"max_share": max_share}}
        controller = reinforce(
            wrappers=wrappers, explore_from=0.0, policy_learning_rate=0.0, **options
        )
        tx = control_hyperparams(optax.sgd, controller)()

        def step(carry, _):
            x, state = carry
            value, grads = jax.value_and_grad(lambda x: jnp.sum((x - 3.0) ** 2))(x)
            updates, state = tx.update(grads, state, x, value=value)
            return (x + updates, state), optax_meta.record(state).decision.action

        x = jnp.ones(8)
        return np.asarray(jax.lax.scan(step, (x, tx.init(x)), length=60)[1])[5:]

    # Within so small a region all but the shortest move is clipped.
    assert set(chosen(1e6)) == {0, 1, 2}
    assert 2 not in set(chosen(1e-3))


def test_it_need_not_explore_at_all():
    chosen, best, params = stepwise(6, total_steps=6, explore_until=0.0)
    np.testing.assert_array_equal(chosen, best)
    assert len(np.unique(params, axis=0)) == 1


def test_a_fresh_agent_chooses_levels_around_what_it_began_with():
    controller = reinforce(
        wrappers={}, decision_interval=1, policy_learning_rate=0.0, explore_from=0.0
    )
    assert controller.hyperparams == ("learning_rate",)
    assert controller.incremental == ()
    rows, state, _ = run_values(control_hyperparams(optax.sgd, controller)(0.1), np.ones(40))
    nats = np.log(2.0) * np.arange(-8, 9) / 4
    spread = fresh_policy(jax.random.key(0)).action_space.spread
    assert 0.2 < spread < 0.4
    expected = np.exp(-0.5 * (nats / spread) ** 2)
    probs = np.asarray(rows.decision.probabilities)
    np.testing.assert_allclose(probs, np.tile(expected / expected.sum(), (40, 1)), rtol=1e-4)
    levels = 0.1 * np.exp(nats[rows.decision.action])
    np.testing.assert_allclose(rows.hyperparams["learning_rate"], levels, rtol=1e-4)
    assert len(np.unique(rows.decision.action)) > 3
    # A weight for each feature, and a bias.
    assert state.controller_state.policy_params.size == rows.decision.observation.shape[1] + 1


def test_extracting_from_a_state_without_a_policy():
    policy = optax_meta.init_policy(jax.random.key(0))
    state = optax.adam(1e-3).init(jnp.zeros(2))
    with pytest.raises(ValueError, match="got none"):
        extract_policy(policy, state)
    small = reinforce(hidden_sizes=(4,))
    state = control_hyperparams(optax.adamw, small)(1e-3).init(jnp.zeros(2))
    with pytest.raises(ValueError, match=r"expected one policy in this state, of \d+ parameters"):
        extract_policy(policy, state)
    state = control_hyperparams(optax.adamw, reinforce(policy))(1e-3).init(jnp.zeros(2))
    with pytest.raises(ValueError, match=r"got (\d+), \1: pass the state of one controller"):
        extract_policy(policy, (state, state))


def test_nothing_is_earned_before_a_loss_is_known():
    rows, _, _ = run([np.nan, 100.0, 99.0])
    np.testing.assert_allclose(rows.decision.reward, [0.0, 0.0, 1.0])


def test_the_record_holds_the_baseline():
    """That of the decisions so far: after an episode β·b + (1 - β)·mean G, 0 before."""
    rows, _, _ = run(discount=0.0)
    reward = np.asarray(rows.decision.reward)
    baselines, expected = [], 0.0
    for step in range(len(VALUES)):
        if step and step % 3 == 0:
            expected = 0.9 * expected + 0.1 * reward[step - 2 : step + 1].mean()
        baselines.append(expected)
    np.testing.assert_allclose(rows.decision.baseline, baselines, atol=1e-6)
    assert len(np.unique(baselines)) == 4


def test_the_classic_agent_is_one_call_away():
    classic, default = classic_reinforce(), reinforce(total_steps=100)
    assert classic.default_start == {}
    assert classic.dense_steps == 0
    assert not classic.needs_alignment
    assert default.default_start == {"learning_rate": 1e-3}
    assert default.max_growth == 1.5
    space = actions.joint(actions.scale("b1", (0.9, 1.0), bounds=(0.1, 0.99)))
    assert reinforce(action_space=space).default_start == {}
