"""Learning from how whole runs end, on losses whose optimum is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from optax_meta import (
    across_runs,
    actions,
    control_hyperparams,
    init_policy,
    learned,
    load_policy,
    observations,
    save_policy,
)

LEVELS = tuple(2.0 ** (k / 2) for k in range(-4, 5))
MOVES = actions.level("learning_rate", LEVELS), actions.level("weight_decay", LEVELS)
ORDERED = {"action_space": actions.ordered(*MOVES), "hidden_sizes": ()}
POLICY = init_policy(jax.random.key(0), encoder=observations.scale_free(), **ORDERED)
RUNS = across_runs(POLICY)
REACH = np.log(16.0)


def shift_of(asked, policy=POLICY):
    """Return by how much the outputs of a policy differ."""
    head, first = (p.params["params"]["head"] for p in (asked, policy))
    return head["bias"] - first["bias"]


def four(state):
    return [RUNS.ask(state, index) for index in range(4)]


@jax.jit
def shifts_of_four(state):
    return jnp.stack([shift_of(asked) for asked in four(state)])


@functools.partial(jax.jit, static_argnames="group")
def tell_four(state, losses, *, group):
    """Return the state after a group, told as one or one after another."""
    if group:
        return RUNS.tell_group(state, four(state), losses)
    for policy, loss in zip(four(state), losses, strict=True):
        state = RUNS.tell(state, policy, loss)
    return state


best_of = jax.jit(RUNS.shifts)


def test_asking_is_a_pure_function_of_the_state():
    state = RUNS.init(3)
    first, again, other = (shift_of(RUNS.ask(state, index)) for index in (0, 0, 2))
    np.testing.assert_array_equal(first, again)
    assert np.all(first != other)
    assert np.all(first != shift_of(RUNS.ask(RUNS.init(4))))
    told = RUNS.tell(state, RUNS.ask(state), 1.0)
    # One run alone is compared with nothing; a further one is the next of the same draws.
    np.testing.assert_allclose(shift_of(RUNS.ask(told)), shift_of(RUNS.ask(state, 1)), atol=1e-5)
    assert told.num_runs == 1
    assert all(np.shape(a) == np.shape(b) for a, b in zip(told, state, strict=True))


def test_only_what_is_asked_for_is_changed():
    asked = RUNS.ask(RUNS.init())
    head, first = (p.params["params"]["head"] for p in (asked, POLICY))
    np.testing.assert_array_equal(head["kernel"], first["kernel"])
    narrow = across_runs(POLICY, span=1.0).ask(RUNS.init())
    assert narrow._replace(params=None) == POLICY._replace(params=None)
    same = shift_of(RUNS.policy(RUNS.init()))
    np.testing.assert_array_equal(same, 0.0)


def test_runs_come_in_pairs_of_mirror_images():
    state = RUNS.init()
    for _ in range(2):
        shifts, best = shifts_of_four(state), best_of(state)
        np.testing.assert_allclose(shifts[0] + shifts[1], 2.0 * best, atol=1e-5)
        np.testing.assert_allclose(shifts[2] + shifts[3], 2.0 * best, atol=1e-5)
        state = tell_four(state, 1.0 + 0.1 * shifts[:, 0], group=True)
    assert np.any(best != 0.0)


def test_exploration_narrows_and_is_as_wide_as_was_asked_for():
    state = RUNS.init()
    drawn = [shift_of(RUNS.ask(state, index)) for index in (0, 200)]
    wide = shift_of(across_runs(POLICY, sigma=0.7).ask(state))
    np.testing.assert_allclose(wide, 2.0 * drawn[0], rtol=1e-4)
    many = jax.vmap(lambda i: shift_of(RUNS.ask(state._replace(num_runs=jnp.int32(200)), i)))
    assert np.std(many(2 * jnp.arange(50))) < 0.5 * 0.35


BEST = jnp.array([0.6, -0.5])


def log_loss(shift):
    return 0.08 * jnp.sum((shift - BEST) ** 2)


@pytest.mark.parametrize("as_loss", [jnp.exp, lambda x: -jnp.exp(-x)], ids=["above 0", "below 0"])
def test_it_finds_the_optimum_of_noisy_runs(as_loss):
    """By one run at a time, jitted; the mean over twelve seeds is within 0.2 nats."""

    def one(state, key):
        asked = RUNS.ask(state)
        noise = 0.01 * jax.random.normal(key)
        return RUNS.tell(state, asked, as_loss(log_loss(shift_of(asked)) + noise)), None

    def found(seed):
        keys = jax.random.split(jax.random.key(seed), 120)
        state, _ = jax.lax.scan(one, RUNS.init(seed), keys)
        return RUNS.shifts(state), shift_of(RUNS.policy(state))

    shifts, applied = jax.jit(jax.vmap(found))(jnp.arange(12, dtype=jnp.uint32))
    np.testing.assert_allclose(applied, shifts, atol=1e-5)
    np.testing.assert_allclose(np.mean(shifts, axis=0), BEST, atol=0.2)
    lost = jax.vmap(log_loss)(shifts)
    assert np.mean(lost) < 0.2 * log_loss(jnp.zeros(2))


def told(losses, group):
    """Return the state after a first group, and one of these losses."""
    state = tell_four(RUNS.init(), jnp.array([1.0, 1.1, 1.2, 1.05]), group=group)
    state = tell_four(state, jnp.asarray(losses), group=group)
    assert state.num_runs == 8
    return state


def test_what_a_group_shares_does_not_count():
    losses = jnp.array([1.0, 0.9, 1.1, 0.95])
    shifts = [best_of(told(x, group=True)) for x in (losses, 1.5 * losses)]
    np.testing.assert_allclose(*shifts, atol=2e-4)
    alone = [best_of(told(x, group=False)) for x in (losses, 1.5 * losses)]
    assert np.max(np.abs(alone[0] - alone[1])) > 0.01
    ordered = best_of(told(losses[::-1], group=True))
    assert np.max(np.abs(ordered - shifts[0])) > 0.01


@pytest.mark.parametrize("worst", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("group", [False, True])
def test_runs_that_diverge_are_avoided_and_nothing_overflows(worst, group):
    state = RUNS.init()
    for _ in range(3):
        are_high = shifts_of_four(state)[:, 0] > best_of(state)[0]
        state = tell_four(state, jnp.where(are_high, worst, 1.0), group=group)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    shifts = np.asarray(best_of(state))
    assert -REACH * 1.001 <= shifts[0] < -0.3
    assert np.all(np.abs(shifts) <= REACH * 1.001)


def test_nothing_is_learned_where_all_runs_diverge():
    state = RUNS.init()
    asked = [RUNS.ask(state, index) for index in range(2)]
    state = RUNS.tell_group(state, asked, jnp.array([np.nan, np.inf]))
    assert np.isnan(state.reference)
    np.testing.assert_array_equal(RUNS.shifts(state), 0.0)
    later = RUNS.tell(state, RUNS.ask(state), 2.0)
    assert later.reference == 2.0


def test_the_row_names_what_was_learned():
    state = told([1.0, 0.9, 1.1, 0.95], group=True)
    row = RUNS.row(state)
    assert row.pop("update") == 8
    assert list(row) == ["level/learning_rate", "level/weight_decay"]
    np.testing.assert_allclose([*row.values()], RUNS.shifts(state))


def test_any_network_with_ordered_actions_will_do():
    policy = init_policy(jax.random.key(0), action_space=ORDERED["action_space"], hidden_sizes=(4,))
    runs = across_runs(policy)
    state = runs.init()
    for _ in range(4):
        asked = runs.ask(state)
        assert asked.params["params"]["Dense_0"] is policy.params["params"]["Dense_0"]
        state = runs.tell(state, asked, 1.0 + 0.2 * shift_of(asked, policy)[0])
    assert runs.shifts(state)[0] < 0.0


def test_it_goes_further_than_the_policy_itself():
    """Where four times the rate is not enough; the policy that comes of it does as it says."""
    state = RUNS.init()
    for _ in range(12):
        asked = shifts_of_four(state)
        state = tell_four(state, jnp.exp(-0.2 * asked[:, 0]), group=True)
    policy, shift = RUNS.policy(state), float(RUNS.shifts(state)[0])
    assert np.log(4.0) < shift <= REACH * 1.001
    np.testing.assert_allclose(actions.factors(policy.action_space, "learning_rate").max(), 16.0)
    shipped = across_runs("any-lr-v2")
    policy = shipped.policy(shipped.init())
    # Wrappers leave as much room above the highest level as they did.
    np.testing.assert_allclose(policy.wrappers["calibrated"]["span"], 16.0)
    np.testing.assert_allclose(policy.wrappers["trust_region"]["max_share"], 8.0)
    head = {**policy.params["params"]["head"], "bias": jnp.array([shift])}
    policy = policy._replace(params={"params": {"head": head}})

    def last_rate(policy):
        controller = learned(policy, total_steps=400)
        tx = control_hyperparams(optax.sgd, controller)()
        params, slope = jnp.ones(3), jnp.ones(3)

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(slope, state, params, value=jnp.sum(params))
            # Neither moves by what it says, so that both see the same way.
            return (params - 1e-3, state), updates

        (_, state), _ = jax.lax.scan(step, (params, tx.init(params)), length=30)
        return state.hyperparams["learning_rate"]

    rates = [last_rate(p) for p in (policy, load_policy("any-lr-v2"))]
    # More than in proportion, since the same moves are taken for those of a higher rate.
    assert rates[0] > 10.0 * rates[1]


@pytest.mark.parametrize("name", ["any-lr-v2", "adamw-lr-wd-v2"])
@pytest.mark.parametrize("span", [1.0, 16.0, 1000.0])
def test_a_policy_that_goes_further_can_be_saved(name, span, tmp_path):
    runs = across_runs(name, span=span)
    policy = runs.policy(runs.init())
    save_policy(policy, tmp_path / "wide.policy")
    saved = load_policy(tmp_path / "wide.policy")
    assert saved.action_space == policy.action_space
    assert saved.wrappers == policy.wrappers
    spaces = [p.action_space for p in (policy, load_policy(name))]
    # The decay's levels stay: 16 times the rate is for the rate.
    assert [s.moves[1:] for s in spaces] == [spaces[1].moves[1:]] * 2


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ((0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0, 4.0)),
        ((2.0, 1.0, 1.0, 0.5), (0.25, 2.0, 1.0, 1.0, 0.5, 4.0)),
        ((1.0, 2.0), (1.0, 2.0, 4.0)),
        ((0.5, 1.0), (0.25, 0.5, 1.0)),
        ((1.0,), (1.0,)),
        ((0.1, 1.0, 10.0), (0.1, 1.0, 10.0)),
        ((0.25, 1.0, 4.0), (0.25, 1.0, 4.0)),
    ],
)
def test_levels_go_on_as_they_lie(inside, expected):
    space = actions.ordered(actions.level("learning_rate", inside), MOVES[1])
    wide = actions.wider(space, "learning_rate", 4.0)
    np.testing.assert_allclose(wide.moves[0].amounts, expected)
    assert wide.moves[1] == space.moves[1]
    assert wide.spread == space.spread
    steps = actions.learning_rate()
    assert actions.wider(steps, "learning_rate", 4.0) == steps


@pytest.mark.filterwarnings("ignore")  # Orbax's own
def test_the_state_goes_through_a_checkpoint(tmp_path):
    state = told([1.0, 0.9, 1.1, 0.95], group=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "runs", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "runs", RUNS.init())
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    np.testing.assert_array_equal(shift_of(RUNS.ask(restored)), shift_of(RUNS.ask(state)))


FIRST = RUNS.init()
ASKED = RUNS.ask(FIRST)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: across_runs(init_policy(jax.random.key(0))), "with an ordered action space"),
        (lambda: across_runs(POLICY._replace(network=None)), "with an ordered action space"),
        (lambda: across_runs(3), "`policy` must be a Policy, a name or a path, got int"),
        (lambda: across_runs(POLICY, sigma=0.0), "`sigma` must be positive, got 0"),
        (lambda: across_runs(POLICY, sigma="wide"), "`sigma` must be a number ≥ 0, got 'wide'"),
        (lambda: across_runs("any-lr-v2", span=0.5), "`span` must be a number ≥ 1, got 0.5"),
        (lambda: across_runs("any-lr-v2", span="wide"), "`span` must be a number ≥ 1, got 'wide'"),
        (lambda: across_runs("any-lr-v2", span=np.inf), "`span` must be at most 1000, got inf"),
        (lambda: RUNS.init(-1), r"`seed` must be an integer in \[0, 2³²\), got -1"),
        (lambda: RUNS.tell(FIRST, ASKED, jnp.ones(2)), "`loss` must be a scalar, got"),
        (lambda: RUNS.tell(FIRST, 1.0, 1.0), "a policy must be one that was asked for, got float"),
        (lambda: RUNS.tell_group(FIRST, [ASKED], 1.0), "one for each of the 1 policies, got the"),
        (lambda: RUNS.tell_group(FIRST, [1.0], [1.0]), "a policy must be one that was asked for"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
