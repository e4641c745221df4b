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
# The first two want one gradient for each example, see below; the others wrap an optimizer.
OTHERS = {"_deprecated_dpsgd", "dpsgd", "schedule_free", "inject_hyperparams"}
# The first two compute with the rate in Python, in double precision, when they are built; for the
# third XLA folds a constant rate into other constants, for some shapes.
INEXACT = {"adafactor", "fromage", "momo_adam"}
ARGUMENTS = {"noisy_sgd": {"key": 0}, "galore": {"rank": 2}, "lbfgs": {"linesearch": None}}
RATES = {"dadapt_adamw": 0.5, "dog": 0.5, "prodigy": 0.5}  # with a small one they hardly move
# In mixed trees their states change types, unwrapped too.
DRIFTING = {"dadapt_adamw", "dog", "dowg", "momo", "momo_adam", "prodigy"}
# In float16 they become nan, unwrapped too.
OVERFLOWING = {"dadapt_adamw", "lbfgs", "prodigy"}
# What runs by default where all of them would take long.
SOON = ("adam", "lion", "adadelta", "lars")
# Long to compile.
LATE = {
    "dadapt_adamw",
    "galore",
    "muon",
    "optimistic_adam",
    "optimistic_adam_v2",
    "signum",
    "sophia",
}
PRECISIONS = [
    ("bfloat16", None),
    ("float16", None),
    ("bfloat16", "float32"),
    ("float32", "bfloat16"),
]


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
        updates, state = tx.update(
            grads, state, params, value=value, obj_fn=lambda p: loss_fn(p, x)
        )
        return (optax.apply_updates(params, updates), state), updates

    return step


def inputs(params, steps):
    return jax.random.normal(jax.random.key(0), (steps, 8, 3)).astype(params["w"].dtype)


def train(tx, params, steps=STEPS):
    step = jax.jit(lambda carry, x: make_step(tx)(carry, x)[0])
    carry = params, tx.init(params)
    for x in inputs(params, steps):
        carry = step(carry, x)
    return carry[0]


def train_scanned(tx, params, steps=STEPS):
    run = jax.jit(lambda carry, xs: jax.lax.scan(make_step(tx), carry, xs)[0])
    return run((params, tx.init(params)), inputs(params, steps))[0]


def assert_close(ours, plain, tolerance):
    """Assert equality; where there is a tolerance, to the rounding of the type at least."""
    for key, leaf in plain.items():
        atol = tolerance and max(tolerance, float(jnp.finfo(leaf.dtype).eps))
        first, second = (np.asarray(x, np.float64) for x in (ours[key], leaf))
        np.testing.assert_allclose(first, second, rtol=0.0, atol=atol)


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
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(
            pytest.param(name, "float32", marks=pytest.mark.heavy if name in LATE else ())
            for name in FACTORIES
        ),
        *(
            pytest.param(name, "float64", marks=() if name in SOON else pytest.mark.heavy)
            for name in FACTORIES
        ),
    ],
)
def test_constant_changes_no_bit_in_300_steps(name, dtype):
    with precision(dtype):
        params = make_params(dtype)
        rate = RATES.get(name, 1e-2)
        plain = train(FACTORIES[name](learning_rate=rate), params)
        ours = train(controlled(FACTORIES[name])(learning_rate=rate), params)
    assert all(np.all(np.isfinite(leaf)) for leaf in plain.values())
    assert max(np.max(np.abs(plain[key] - params[key])) for key in params) > 1e-3
    assert_close(ours, plain, 1e-5 if name in INEXACT else 0.0)


def test_lars_inside_a_scan_is_exact_up_to_rounding():
    params = make_params("float32")
    plain = train_scanned(optax.lars(1e-2), params)
    ours = train_scanned(controlled(optax.lars)(1e-2), params)
    assert np.max(np.abs(plain["w"] - params["w"])) > 1e-3
    assert_close(ours, plain, 1e-5)


@pytest.mark.filterwarnings("ignore")
def test_gradients_of_single_examples_are_aggregated_outside_the_controller():
    private = 1.0, 0.1, 0  # norm to clip to, noise, seed
    aggregate = contrib.differentially_private_aggregate(*private)
    params = make_params("float32")
    gradients = jax.vmap(jax.grad(loss_fn), (None, 0))

    def train(tx):
        def step(carry, x):
            params, state = carry
            updates, state = tx.update(gradients(params, x), state, params)
            return (optax.apply_updates(params, updates), state), None

        run = jax.jit(lambda carry, xs: jax.lax.scan(step, carry, xs)[0])
        return run((params, tx.init(params)), inputs(params, STEPS))[0]

    ours = train(optax.chain(aggregate, controlled(optax.sgd)(1e-2)))
    assert_close(ours, train(contrib.dpsgd(1e-2, *private)), 0.0)
    assert np.max(np.abs(ours["w"] - params["w"])) > 1e-3
    with pytest.raises(ValueError, match="they must agree"):
        train(controlled(contrib.dpsgd)(1e-2, *private))


def types(tree):
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


CASES = [
    (name, *precision)
    for name in FACTORIES
    for precision in PRECISIONS
    if name != "sophia" or precision[1] is None  # it refuses mixed trees by itself
]
QUICK = {(name, "bfloat16", None) for name in SOON}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "dtype", "others"), CASES)
def test_every_leaf_keeps_the_type_it_has_unwrapped(name, dtype, others):
    params = make_params(jnp.dtype(dtype), others and jnp.dtype(others))
    x = jnp.ones((8, 3), dtype)
    plain, ours = (f(learning_rate=1e-3) for f in (FACTORIES[name], controlled(FACTORIES[name])))
    bare, state = (jax.eval_shape(tx.init, params) for tx in (plain, ours))
    assert types(state.inner_state.inner_state) == types(bare)
    (_, bare_after), bare_updates = jax.eval_shape(make_step(plain), (params, bare), x)
    (_, after), updates = jax.eval_shape(make_step(ours), (params, state), x)
    assert types(after.inner_state.inner_state) == types(bare_after)
    assert types(updates) == types(bare_updates)
    assert (types(after) != types(state)) == bool(others and name in DRIFTING)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "dtype", "others"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.heavy) for case in CASES],
)
def test_in_low_precision_the_parameters_are_those_of_the_bare_optimizer(name, dtype, others):
    params = make_params(jnp.dtype(dtype), others and jnp.dtype(others))
    run = train if others and name in DRIFTING else train_scanned  # a scan keeps types
    rate = RATES.get(name, 1e-2)
    plain = run(FACTORIES[name](learning_rate=rate), params, steps=30)
    ours = run(controlled(FACTORIES[name])(learning_rate=rate), params, steps=30)
    is_finite = all(np.all(np.isfinite(leaf.astype("float32"))) for leaf in plain.values())
    assert is_finite == (dtype != "float16" or name not in OVERFLOWING)
    is_inexact = name in INEXACT or (name == "lars" and others is not None)
    assert_close(ours, plain, 1e-5 if is_inexact else 0.0)


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
