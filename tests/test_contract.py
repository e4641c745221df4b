"""Every controller keeps the same promises; a new one joins by one line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import optax_meta

ANY_LR = optax_meta.load_policy("any-lr-v2")
STEPS = 24
WRAPPERS = {
    "annealed": functools.partial(optax_meta.annealed, total_steps=STEPS),
    "calibrated": optax_meta.calibrated,
    "trust_region": functools.partial(optax_meta.trust_region, max_growth=3.0),
}
CONTROLLERS = {
    "constant": optax_meta.constant,
    "plateau": lambda: optax_meta.plateau(factor=0.5, patience=1),
    "warmup": lambda: optax_meta.warmup(5),
    "warmup_plateau": lambda: optax_meta.warmup_plateau(5, factor=0.5, patience=1),
    "hypergradient": optax_meta.hypergradient,
    "distance": lambda: optax_meta.distance(total_steps=STEPS),
    "reinforce": lambda: optax_meta.reinforce(decision_interval=2),
    "classic_reinforce": lambda: optax_meta.classic_reinforce(decision_interval=2),
    "learned": lambda: optax_meta.learned(
        optax_meta.init_policy(jax.random.key(1)), decision_interval=2
    ),
    "any_lr": lambda: optax_meta.learned(ANY_LR, total_steps=STEPS),
    "wrapped": lambda: optax_meta.trust_region(
        optax_meta.annealed(optax_meta.hypergradient(), total_steps=STEPS)
    ),
    "join": lambda: optax_meta.join(
        [optax_meta.warmup(5), optax_meta.hypergradient(), optax_meta.plateau(patience=1)], [5, 15]
    ),
}
# Those that have wrappers of their own, without these.
BARE = {
    "distance": lambda: optax_meta.annealed(optax_meta.constant(), total_steps=STEPS),
    "reinforce": lambda: optax_meta.reinforce(decision_interval=2, wrappers={}),
    "any_lr": lambda: optax_meta.learned(ANY_LR, total_steps=STEPS, wrappers={}),
}
HEAVY = {"any_lr"}
CASES = [pytest.param(n, marks=pytest.mark.heavy) if n in HEAVY else n for n in CONTROLLERS]


@pytest.fixture(params=CASES)
def name(request):
    return request.param


@pytest.fixture
def controller(name):
    return CONTROLLERS[name]()


def make(controller, rate=1e-2):
    return optax_meta.control_hyperparams(optax.adamw, controller)(learning_rate=rate)


def problem(dtype=jnp.float32):
    return {"w": jnp.linspace(-1.0, 1.0, 6, dtype=dtype).reshape(2, 3), "b": jnp.zeros(3, dtype)}


def loss_fn(params, key):
    noise = 0.1 * jax.random.normal(key, (3,))
    return jnp.sum(jnp.square(params["w"] - 2.0)) + jnp.sum(jnp.square(params["b"] - noise))


def make_step(tx):
    def step(carry, key):
        params, state = carry
        value, grads = jax.value_and_grad(loss_fn)(params, key)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), optax_meta.record(state)

    return step


def scan(tx, params, seed=0):
    keys = jax.random.split(jax.random.key(seed), STEPS)
    return jax.lax.scan(make_step(tx), (params, tx.init(params)), keys)


def assert_close(first, second, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), first, second)


@functools.cache
def jitted_scan(name):
    """One compiled run, shared by the tests of a controller."""
    tx = make(CONTROLLERS[name]())
    (params, state), rows = jax.jit(lambda p: scan(tx, p))(problem())
    return tx, params, state, rows


def test_eager_jitted_and_scanned_runs_agree(name):
    tx, params, state, rows = jitted_scan(name)
    keys = jax.random.split(jax.random.key(0), STEPS)
    carry = (problem(), tx.init(problem()))
    with jax.disable_jit():
        for key in keys[:2]:
            carry, row = make_step(tx)(carry, key)
    assert_close(row, jax.tree.map(lambda x: x[1], rows), rtol=1e-3, atol=1e-5)
    traces = 0

    def counted(carry, key):
        nonlocal traces
        traces += 1
        return make_step(tx)(carry, key)

    step = jax.jit(counted, donate_argnums=0)
    carry = (problem(), tx.init(problem()))
    for key in keys:
        carry, _ = step(carry, key)
    assert_close(carry, (params, state), rtol=2e-4, atol=1e-5)
    assert traces == 1


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_wrapper_goes_around_every_controller(name, wrapper, tmp_path):
    """All at once: jit, scan, vmap, MultiSteps, bfloat16, donation, Orbax, and a single trace."""
    controller = WRAPPERS[wrapper]((CONTROLLERS | BARE)[name]())
    traces = 0

    def half(rate, carry, keys):
        nonlocal traces
        traces += 1
        tx = optax.MultiSteps(make(controller, rate), 2).gradient_transformation()
        return jax.lax.scan(lambda c, key: (make_step(tx)(c, key)[0], None), carry, keys)[0]

    def start(rate):
        params = problem(jnp.bfloat16)
        return params, optax.MultiSteps(make(controller, rate), 2).init(params)

    rates = jnp.array([1e-2, 1e-7])
    run = jax.jit(jax.vmap(half, (0, 0, None)), donate_argnums=1)
    keys = jax.random.split(jax.random.key(0), STEPS)
    middle = run(rates, jax.vmap(start)(rates), keys[: STEPS // 2])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", middle)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "saved", jax.vmap(start)(rates))
    end = run(rates, middle, keys[STEPS // 2 :])
    jax.tree.map(np.testing.assert_array_equal, run(rates, restored, keys[STEPS // 2 :]), end)
    assert traces == 1
    assert {leaf.dtype for leaf in jax.tree.leaves(end[0])} == {jnp.dtype(jnp.bfloat16)}
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(end[0]))


def test_vmap_over_starting_rates(name):
    rates = jnp.array([1e-2, 1e-7])  # any_lr forgets those above 1e-6
    run = jax.vmap(lambda rate: scan(make(CONTROLLERS[name](), rate), problem())[1].value)
    losses = jax.jit(run)(rates)
    np.testing.assert_allclose(losses[0], jitted_scan(name)[3].value, rtol=1e-4)
    assert not np.array_equal(losses[0], losses[1])


def test_no_leaf_is_weakly_typed_shared_or_empty_or_a_key(controller):
    state = make(controller).init(problem())
    leaves = jax.tree.leaves(state)
    assert all(isinstance(leaf, jax.Array) and not leaf.weak_type for leaf in leaves)
    assert all(leaf.size > 0 for leaf in leaves)
    assert not any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves]
    assert len(set(pointers)) == len(pointers)


def test_the_state_keeps_its_structure_shapes_and_types(controller):
    tx = make(controller)
    state = tx.init(problem())
    _, new = tx.update(problem(), state, problem(), value=1.0)
    for other in (new, jax.eval_shape(tx.init, problem())):
        assert jax.tree.structure(state) == jax.tree.structure(other)
        jax.tree.map(
            lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)),
            state,
            other,
        )


def test_bfloat16_parameters_keep_their_type(controller):
    tx = make(controller)
    (params, state), rows = jax.jit(lambda p: scan(tx, p))(problem(jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert all(h.dtype == jnp.float32 for h in optax_meta.hyperparams(state).values())
    assert np.all(np.isfinite(rows.value))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_double_precision_changes_only_the_hyperparameters_type(controller, dtype):
    tx = make(controller)
    jax.config.update("jax_enable_x64", True)
    try:
        params = problem(dtype)
        state = tx.init(params)
        update = jax.jit(lambda p, s: tx.update(p, s, p, value=jnp.sum(p["w"]))[1])
        new = update(params, update(params, state))
        assert new.statistics.dtype == jnp.float32
        assert {str(h.dtype) for h in new.hyperparams.values()} == {dtype}
        jax.tree.map(lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), state, new)
    finally:
        jax.config.update("jax_enable_x64", False)


def test_in_a_chain_and_under_multi_steps(controller):
    tx = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1.0), make(controller)), 2)
    params = problem()
    state = tx.init(params)
    update = jax.jit(lambda p, s: tx.update(p, s, params=p, value=1.0))
    for _ in range(4):
        updates, state = update(params, state)
        params = optax.apply_updates(params, updates)
    assert optax_meta.record(state).step == 2
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))


def test_optax_tree_tools_find_what_they_look_for(controller):
    tx = make(controller)
    state = tx.init(problem())
    assert optax.tree.get(state, "learning_rate").shape == ()
    assert (
        optax.tree.get(state, "count", filtering=lambda path, _: "adam" in str(path).lower()) == 0
    )
    assert jax.tree.structure(optax.tree.get(state, "mu")) == jax.tree.structure(problem())
    changed = optax.tree.set(state, learning_rate=jnp.float32(0.5))
    np.testing.assert_allclose(optax_meta.hyperparams(changed)["learning_rate"], 0.5)
    mapped = optax.tree_map_params(tx, lambda x: x + 1.0, state)
    assert_close(optax.tree.get(mapped, "mu"), jax.tree.map(jnp.ones_like, problem()))


def decayed_sgd(learning_rate, weight_decay=1e-4):
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate))


def test_under_strict_dtype_promotion(controller):
    # Optax's Adam does not bear it.
    tx = optax_meta.control_hyperparams(decayed_sgd, controller)(learning_rate=1e-2)
    with jax.numpy_dtype_promotion("strict"):
        update = jax.jit(lambda p, s: tx.update(p, s, p, value=jnp.float32(1.0)))
        updates, state = update(problem(), tx.init(problem()))
        update(problem(), state)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates))


def test_nothing_in_the_state_is_infinite(controller):
    tx = make(controller)
    with jax.debug_infs(True), jax.debug_nans(True):
        state = tx.init(problem())
        for _ in range(2):
            _, state = tx.update(problem(), state, problem(), value=1.0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_a_typed_key_among_the_parameters_is_left_alone(controller):
    def factory(learning_rate, weight_decay=1e-4):
        return optax.masked(
            optax.adamw(learning_rate, weight_decay=weight_decay), {"w": True, "key": False}
        )

    tx = optax_meta.control_hyperparams(factory, controller)(learning_rate=1e-2)
    params = {"w": jnp.ones(3), "key": jax.random.key(0)}
    updates, _ = tx.update(params, tx.init(params), params, value=1.0)
    assert updates["key"] == params["key"]
    assert np.all(np.isfinite(updates["w"]))


def test_set_by_hand(controller):
    tx = make(controller)
    state = tx.init(problem())
    update = jax.jit(lambda p, s: tx.update(p, s, p, value=1.0)[1])
    state = update(problem(), state)
    by_hand = optax_meta.set_hyperparams(state, learning_rate=0.25)
    traced = jax.jit(lambda s, x: optax_meta.set_hyperparams(s, learning_rate=x))(state, 0.25)
    plain = optax.tree.set(state, learning_rate=0.25)
    for new in (by_hand, traced, plain):
        assert float(optax_meta.hyperparams(new)["learning_rate"]) == 0.25
        _, after = tx.update(problem(), new, problem(), value=1.0)
        judged = optax_meta.decide(controller, new, value=1.0)
        for other in (after, judged):
            jax.tree.map(lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), state, other)
            low, high = controller.bounds.get("learning_rate", (0.0, np.inf))
            assert low <= optax_meta.hyperparams(other)["learning_rate"] <= high


def test_record_holds_one_row_a_step(name):
    _, _, state, rows = jitted_scan(name)
    np.testing.assert_array_equal(rows.step, np.arange(1, STEPS + 1))
    assert rows.decided[0]
    for hyperparam, values in rows.hyperparams.items():
        assert values.shape == (STEPS,)
        assert values[-1] == optax_meta.hyperparams(state)[hyperparam]
    assert (rows.decision is None) == (not CONTROLLERS[name]().action_labels)
