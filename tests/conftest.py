import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")
# Most programs here are small and run once: compiling them takes longer than anything they do.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import HealthCheck, settings
from jax._src import compiler

import optax_meta
from optax_meta.metrics import Metrics

# The first call of a jitted function compiles, which no deadline should count.
settings.register_profile(
    "jax", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("jax")
jax.config.update("jax_numpy_rank_promotion", "raise")


def make_metrics(**changes):
    zeros = {name: jnp.float32(0.0) for name in Metrics._fields[:-2]}
    start = {"num_steps": 1.0, "num_judged": 1.0, "num_moves": 1.0, "progress": -1.0, **changes}
    values = {name: jnp.float32(value) for name, value in start.items() if name != "hyperparams"}
    step = jnp.int32(changes.get("step", 0))
    per_step = jnp.maximum(values["progress"], 0.0) / jnp.maximum(step, 1).astype(jnp.float32)
    return Metrics(**{**zeros, "per_step": per_step, **values, "step": step})


def run_values(tx, values, grads=None):
    """Feed losses to a one-parameter model; return the stacked records and the last state."""
    params = jnp.array(1.0)
    grads = jnp.ones(len(values)) if grads is None else jnp.asarray(grads, jnp.float32)

    def step(carry, inputs):
        params, state = carry
        value, grad = inputs
        updates, state = tx.update(grad, state, params, value=value)
        return (optax.apply_updates(params, updates), state), optax_meta.record(state)

    values = jnp.asarray(values, jnp.float32)
    (params, state), rows = jax.lax.scan(step, (params, tx.init(params)), (values, grads))
    return rows, state, params


# XLA's older emitters compile in a third of the time, and one thread in the least of it.
QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}


def is_known(name, value):
    try:
        jax.jit(lambda: 0, compiler_options={name: value})()
    except jax.errors.JaxRuntimeError:
        return False
    return True


@pytest.fixture(scope="session", autouse=True)
def quick():
    """Compile with the options above, where this XLA has them and no test asks for `optimized`.

    XLA_FLAGS would hold for those tests as well, and stop an XLA that knows one of them no more.
    """
    options = [(name, value) for name, value in QUICK.items() if is_known(name, value)]
    made = getattr(compiler, "get_compile_options", None)
    if made is None:  # a JAX that keeps it elsewhere: slower, but no less right
        yield
        return

    def get_compile_options(*args, **kwargs):
        found = made(*args, **kwargs)
        if found.executable_build_options.debug_options.xla_llvm_disable_expensive_passes:
            found.env_option_overrides = [*options, *found.env_option_overrides]
        return found

    compiler.get_compile_options = get_compile_options
    yield
    compiler.get_compile_options = made


@pytest.fixture(scope="module")
def optimized():
    """Compile as users do, where bits or bytes are counted."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def metrics():
    return make_metrics


@pytest.fixture
def feed():
    return run_values
