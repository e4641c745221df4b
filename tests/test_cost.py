"""What a controller may cost, as deterministic counts; timings are in benchmarks/overhead.py."""

import jax
import optax
import overhead
import pytest

pytestmark = pytest.mark.usefixtures("optimized")


def slope(name):
    """Bytes per parameter without what does not grow with the model."""
    sizes = 10**6, 3 * 10**6
    totals = [size * overhead.bytes_per_param(overhead.METHODS[name](), size) for size in sizes]
    return (totals[1] - totals[0]) / (sizes[1] - sizes[0])


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="older XLA fuses less")
@pytest.mark.parametrize("name", ["adamw", *overhead.OURS])
def test_bytes_accessed_per_parameter(name):
    limit = {"adamw": 40.0, "hypergradient": 46.0}.get(name, 44.0)
    assert slope(name) <= limit + 1e-3


@pytest.mark.parametrize("name", overhead.OURS)
def test_no_buffer_of_the_parameters_size(name):
    _, small = overhead.state_size(overhead.METHODS[name](), 10**6)
    _, large = overhead.state_size(overhead.METHODS[name](), 2 * 10**6)
    # AdamW's two moments, and nothing else, grow with the model.
    assert abs(large - small - 2 * 4 * 10**6) < 2**15


@pytest.mark.parametrize("name", overhead.OURS)
def test_state_leaves(name):
    inject, _ = overhead.state_size(optax.inject_hyperparams(optax.adamw)(1e-3))
    ours, _ = overhead.state_size(overhead.METHODS[name]())
    assert ours <= inject + 8


def test_the_count_is_xlas():
    tx = optax.sgd(1.0)
    assert overhead.bytes_per_param(tx) == pytest.approx(12.0)
    assert len(jax.tree.leaves(tx.init(0.0))) == 0
