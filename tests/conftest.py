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

import optax_meta
from optax_meta.metrics import Metrics

# The first call of a jitted function compiles, which no deadline should count.
settings.register_profile(
    "jax", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("jax")
jax.config.update("jax_numpy_rank_promotion", "raise")


def make_metrics(**changes):
    zeros = {name: jnp.float32(0.0) for name in Metrics._fields if name != "hyperparams"}
    start = {"num_steps": 1.0, "num_judged": 1.0, "num_moves": 1.0, "progress": -1.0, **changes}
    values = {name: jnp.float32(value) for name, value in start.items() if name != "hyperparams"}
    step = jnp.int32(changes.get("step", 0))
    return Metrics(**{**zeros, **values, "step": step})


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
