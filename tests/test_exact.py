"""Under `constant()` an optimizer is itself, bit for bit, in every precision."""

import contextlib
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import optax_meta

pytestmark = pytest.mark.usefixtures("optimized")

STEPS = 300
# They need more than a learning rate, or no gradient of a loss: tested with arguments below, or
# not optimizers at all.
OTHERS = {"_deprecated_dpsgd", "dpsgd", "sophia", "lbfgs", "schedule_free", "inject_hyperparams"}
# The first two compute with the rate in Python, in double precision, when they are built; for the
# third XLA folds a constant rate into other constants, for some shapes.
INEXACT = {"adafactor", "fromage", "momo_adam"}
ARGUMENTS = {"noisy_sgd": {"key": 0}, "galore": {"rank": 2}}


@pytest.fixture(autouse=True)
def rank_promotion():
    """Some of Optax's own optimizers, and the loss below, rely on it."""
    with jax.numpy_rank_promotion("allow"):
        yield


def factories(module):
    found = {}
    for name, function in inspect.getmembers(module, callable):
        if name in OTHERS or inspect.isclass(function):
            continue
        with contextlib.suppress(ValueError, TypeError):
            if "learning_rate" in inspect.signature(function).parameters:
                found[name] = functools.partial(function, **ARGUMENTS.get(name, {}))
    return found


FACTORIES = factories(optax) | factories(contrib)


def make_params(dtype, others=None):
    params = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "b": jnp.zeros(4), "s": jnp.ones(1)}
    dtypes = {"w": dtype, "b": others or dtype, "s": dtype}
    return {name: leaf.astype(dtypes[name]) for name, leaf in params.items()}


def loss_fn(params, x):
    y = jnp.tanh(x @ params["w"] + params["b"]) * params["s"]
    return jnp.mean(jnp.square(y - 1.5))


def make_step(tx):
    tx = optax.with_extra_args_support(tx)

    def step(carry, x):
        params, state = carry
        value, grads = jax.value_and_grad(loss_fn)(params, x)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), updates

    return step


def train(tx, params, steps=STEPS):
    xs = jax.random.normal(jax.random.key(0), (steps, 8, 3)).astype(params["w"].dtype)
    step = jax.jit(lambda carry, x: make_step(tx)(carry, x)[0])
    carry = params, tx.init(params)
    for x in xs:
        carry = step(carry, x)
    return carry[0]


def controlled(factory, controller=None):
    return optax_meta.control_hyperparams(factory, controller or optax_meta.constant())


@contextlib.contextmanager
def precision(dtype):
    jax.config.update("jax_enable_x64", dtype == "float64")
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


def test_all_optimizers_are_listed():
    assert len(FACTORIES) >= 45
    assert {"adam", "lars", "prodigy", "muon", "schedule_free_adamw"} <= FACTORIES.keys()


@pytest.mark.filterwarnings("ignore")  # optax deprecates some of its own
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FACTORIES)
def test_constant_changes_no_bit_in_300_steps(name, dtype):
    with precision(dtype):
        params = make_params(dtype)
        plain = train(FACTORIES[name](learning_rate=1e-2), params)
        ours = train(controlled(FACTORIES[name])(learning_rate=1e-2), params)
    tolerance = 1e-5 if name in INEXACT else 0.0
    for key in params:
        np.testing.assert_allclose(ours[key], plain[key], rtol=0.0, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "others"),
    [("bfloat16", None), ("float16", None), ("bfloat16", "float32"), ("float32", "bfloat16")],
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FACTORIES)
def test_every_leaf_keeps_the_type_it_has_unwrapped(name, dtype, others):
    params = make_params(jnp.dtype(dtype), others and jnp.dtype(others))
    x = jnp.ones((8, 3), dtype)
    plain, ours = (f(learning_rate=1e-3) for f in (FACTORIES[name], controlled(FACTORIES[name])))
    bare = jax.eval_shape(plain.init, params)
    carry = params, ours.init(params)
    types = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (carry[1].inner_state.inner_state))
    assert jax.tree.leaves(types) == jax.tree.leaves(
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), bare)
    )
    with contextlib.suppress(TypeError):  # some drift unwrapped: then nothing is owed
        (_, state), updates = jax.eval_shape(make_step(plain), (params, bare), x)
        kept = jax.tree.map(lambda a, b: a.dtype == b.dtype, bare, state)
        if not all(jax.tree.leaves(kept)):
            return
    (_, state), ours_updates = jax.eval_shape(make_step(ours), carry, x)
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype, carry[1], state)
    assert all(jax.tree.leaves(same)), same
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), updates, ours_updates)


def mask(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


@pytest.mark.parametrize(
    ("factory", "arguments"),
    [
        pytest.param(optax.adamw, {"mask": mask, "weight_decay": 0.1}, id="mask, callable"),
        pytest.param(
            optax.adamw,
            {"mask": {"w": True, "b": False, "s": False}, "weight_decay": 0.1},
            id="mask, tree",
        ),
        pytest.param(optax.adamw, {"mu_dtype": jnp.bfloat16}, id="mu_dtype"),
        pytest.param(optax.adam, {"mu_dtype": "bfloat16"}, id="mu_dtype, name"),
        pytest.param(contrib.galore, {"rank": 2}, id="integer"),
        pytest.param(optax.noisy_sgd, {"key": 0}, id="seed"),
        pytest.param(contrib.ademamix, {"b3": lambda step: 0.9}, id="schedule"),
        pytest.param(contrib.muon, {"ns_coeffs": (3.4, -4.7, 2.0), "ns_steps": 3}, id="tuple"),
        pytest.param(functools.partial(optax.sgd, momentum=0.9, nesterov=True), {}, id="partial"),
        pytest.param(
            lambda learning_rate, max_norm: optax.chain(
                optax.clip_by_global_norm(max_norm), optax.adam(learning_rate)
            ),
            {"max_norm": 0.5},
            id="chain",
        ),
    ],
)
def test_arguments_reach_the_optimizer_as_they_are(factory, arguments):
    params = make_params("float32")
    plain = train(factory(learning_rate=1e-2, **arguments), params, steps=20)
    ours = train(controlled(factory)(learning_rate=1e-2, **arguments), params, steps=20)
    jax.tree.map(np.testing.assert_array_equal, ours, plain)


def test_a_mask_matters():
    params = make_params("float32")
    masked, everything = (
        train(controlled(optax.adamw)(1e-2, weight_decay=0.5, mask=m), params, steps=20)
        for m in (mask, None)
    )
    assert not np.array_equal(masked["b"], everything["b"])


def test_the_guard_is_there_when_asked_for():
    guarded = controlled(optax.sgd, optax_meta.constant(guards_nonfinite=True))(0.1)
    bare = controlled(optax.sgd)(0.1)
    for tx, is_zero in ((guarded, True), (bare, False)):
        updates, state = tx.update(jnp.array(jnp.nan), tx.init(jnp.array(1.0)), jnp.array(1.0))
        assert bool(updates == 0.0) == is_zero
        assert optax_meta.record(state).num_nonfinite == 1
