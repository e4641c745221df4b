"""Optax's own tests, unmodified from the wheel, with controlled factories in their tables.

The first few under `constant` without the long optimizations, and mixed precision under `learned`
too, run by default, all else under `-m heavy`. Two things are added: `value=0.0` where a test
passes no loss, which the other controllers cannot do without, and the way to the optimizer's own
state for `schedule_free_eval_params`, which reads that of no wrapper.
"""

import functools
import inspect
import os
import subprocess
import sys
from pathlib import Path

import jax
import optax
import pytest
from optax import contrib
from optax._src import alias_test, float64_test
from optax.contrib import _common_test

import optax_meta

PATIENT = 10**6
RATE = optax_meta.actions.learning_rate((0.999, 1.0, 1.001))
CONTROLLERS = {
    "constant": optax_meta.constant,
    "plateau": lambda: optax_meta.plateau(patience=PATIENT),
    # Optax's tests converge at the rate that they give, which `reinforce` would forget.
    "reinforce": lambda: optax_meta.classic_reinforce(action_space=RATE, start="hold"),
    "learned": lambda: optax_meta.learned(
        optax_meta.init_policy(jax.random.key(0), action_space=RATE)
    ),
}
LONG = (
    "test_optimization",
    "test_optimizers",
    "test_state_shape_dtype_shard_stability",
    "test_gradient_accumulation",
)
# Under `constant` an optimizer is itself, bit for bit, as `test_exact.py` holds for each of them:
# of tests in a row the first few see that the tables are right, which implies the rest.
FIRST = {"", "0", "1", "2", "3"}
# What no wrapper can pass, by the beginning of the test's name.
EXCEPTIONS = {
    "test_optimizers_can_be_wrapped_in_inject_hyperparams": (
        "compares the state with one wrapped again, whose layout differs, and passes no static rate"
    ),
}


def control(factory, make_controller):
    """Return `factory` under a controller, with a loss of 0 where the test passes none."""
    signature = inspect.signature(factory)
    if "learning_rate" not in signature.parameters:
        return factory

    @functools.wraps(factory)
    def controlled(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if not isinstance(bound.arguments["learning_rate"], float):
            return factory(*args, **kwargs)
        tx = optax_meta.control_hyperparams(factory, make_controller())(*args, **kwargs)

        def update(updates, state, params=None, *, value=0.0, **extra):
            return tx.update(updates, state, params, value=value, **extra)

        return optax.GradientTransformationExtraArgs(tx.init, update)

    return controlled


def swap(monkeypatch, module, make_controller):
    if module is alias_test:
        original = alias_test._get_opt

        def get(test, name):
            return control(original(test, name), make_controller)

        monkeypatch.setattr(alias_test, "_get_opt", get)
    else:
        original = _common_test._get_opt_factory
        monkeypatch.setattr(
            _common_test, "_get_opt_factory", lambda n: control(original(n), make_controller)
        )
        evaluated = contrib.schedule_free_eval_params
        monkeypatch.setattr(
            contrib,
            "schedule_free_eval_params",
            lambda state, params: evaluated(own_state(state), params),
        )


def own_state(state):
    """Return the optimizer's state, within that of the controller where there is one."""
    return state if isinstance(state, contrib.ScheduleFreeState) else state.inner_state.inner_state


@pytest.fixture(autouse=True)
def room(request):
    """Drop compiled programs now and then: Linux lets a process have 65530 mappings."""
    yield
    if request.session.items.index(request.node) % 100 == 99:
        jax.clear_caches()


def cases():
    """Yield each test of Optax that takes its optimizer from a table, for each controller."""
    for module, cls in (
        (alias_test, alias_test.AliasTest),
        (_common_test, _common_test.ContribTest),
    ):
        for name in dir(cls):
            if not name.startswith("test_"):
                continue
            for controller in CONTROLLERS:
                test = name.rstrip("0123456789")
                is_long = test in LONG or controller != "constant"
                is_implied = name.removeprefix(test) not in FIRST
                yield pytest.param(
                    module,
                    cls,
                    name,
                    controller,
                    id=f"{cls.__name__}-{name}-{controller}",
                    marks=[pytest.mark.heavy] if is_long or is_implied else [],
                )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("module", "cls", "name", "controller"), list(cases()))
def test_optax(module, cls, name, controller, monkeypatch):
    for start, reason in EXCEPTIONS.items():
        if name.startswith(start):
            pytest.skip(reason)
    swap(monkeypatch, module, CONTROLLERS[controller])
    run(cls, name)


def run(cls, name):
    with jax.numpy_rank_promotion("allow"):
        result = cls(name).run()
    problems = [text for _, text in (*result.failures, *result.errors)]
    assert not problems, "\n".join(problems)
    if result.skipped:
        pytest.skip(result.skipped[0][1])


def parts(cls, name):
    """Return the method behind a test made by `named_parameters`, and its parameters."""
    made = getattr(cls, name)
    cells = zip(made.__code__.co_freevars, made.__closure__, strict=True)
    found = {key: cell.cell_contents for key, cell in cells}
    return found["test_method"], found["testcase_params"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "controller",
    [
        pytest.param(n, marks=[] if n in ("constant", "learned") else pytest.mark.heavy)
        for n in CONTROLLERS
    ],
)
@pytest.mark.parametrize(
    "name", [n for n in dir(float64_test.Float64Test) if n.startswith("test_")]
)
def test_optax_in_mixed_precision(name, controller):
    cls = float64_test.Float64Test  # as a name of this module pytest would collect it
    method, (factory, arguments) = parts(cls, name)
    if "learning_rate" not in arguments:
        pytest.skip("nothing to control")
    try:
        method(cls(name), control(factory, CONTROLLERS[controller]), arguments)
    finally:
        jax.config.update("jax_enable_x64", False)


def run_sharding_tests(controller):
    """Run Optax's sharding tests; needs 8 devices."""
    from optax._src import sharding_test

    # They compare versions as text, take jax 0.10 for older than 0.7.2, and skip themselves.
    jax.__version__ = "9"

    cls = sharding_test.ShardingTest
    assert len(jax.devices()) == 8
    count = 0
    for name in [n for n in dir(cls) if n.startswith("test_")]:
        method, (tx,) = parts(cls, name)
        label = next((k for k, v in sharding_test.OPTIMIZERS.items() if v is tx), "")
        if label in ("", "lbfgs", "adafactor2"):
            continue  # made with other arguments than a rate
        method(cls(name), control(getattr(optax, label), CONTROLLERS[controller])(1.0))
        count += 1
    assert count >= 60, count


@pytest.mark.heavy
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_optax_on_eight_devices(controller):
    code = f"import test_conformance as t; t.run_sharding_tests({controller!r})"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    env = {**os.environ, **flags, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=env,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


# Their updates are scaled to a size of their own, from which a rate tells little of a move.
SELF_SCALED = {"adadelta", "lamb", "lars"}


def convergence_cases():
    """Yield Optax's tests of convergence of optimizers that have a weight decay, too."""
    cls = alias_test.AliasTest
    for name in dir(cls):
        if name.rstrip("0123456789") == "test_optimization":
            _, found = parts(cls, name)
            factory = getattr(optax, found["opt_name"])
            is_steered = "weight_decay" in inspect.signature(factory).parameters
            if is_steered and found["opt_name"] not in SELF_SCALED:
                is_shown = (found["opt_name"], found["dtype"]) == ("adamw", jax.numpy.float32)
                is_shown = is_shown and "rosenbrock" in found["target"].__name__
                marks = [] if is_shown else [pytest.mark.heavy]
                yield pytest.param(name, marks=marks, id=f"{name}-{found['opt_name']}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(convergence_cases()))
def test_a_policy_that_knows_nothing_lets_optimizers_converge(name, monkeypatch):
    # So many steps they take: without a horizon nothing falls, and the walk goes on around them.
    swap(monkeypatch, alias_test, functools.partial(optax_meta.reinforce, total_steps=10_000))
    run(alias_test.AliasTest, name)
