"""What a controller may cost, as deterministic counts; timings are in benchmarks/overhead.py."""

import functools

import jax
import optax
import overhead
import pytest

pytestmark = pytest.mark.usefixtures("optimized")


SIZES = 10**6, 3 * 10**6
fusing = pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="older XLA fuses less")


@functools.cache
def compiled(name, size):
    return overhead.compile_update(overhead.METHODS[name](), size)


COMPILED = [
    pytest.param(name, marks=pytest.mark.heavy) if name == "reinforce(any-lr-v1)" else name
    for name in overhead.OURS
]


def slope(totals):
    """Bytes per parameter without what does not grow with the model."""
    return (totals[1] - totals[0]) / (SIZES[1] - SIZES[0])


@fusing
@pytest.mark.parametrize("name", ["adamw", *COMPILED])
def test_bytes_accessed_per_parameter(name):
    sampled = dict.fromkeys(("hypergradient", "any-lr-v1", "reinforce(any-lr-v1)"), 46.0)
    limit = {"adamw": 40.0, **sampled}.get(name, 44.0)
    totals = [compiled(name, size).cost_analysis()["bytes accessed"] for size in SIZES]
    assert slope(totals) <= limit + 1e-3


@fusing
@pytest.mark.parametrize("name", COMPILED)
def test_temporary_memory_does_not_grow_with_the_model(name):
    analyses = [compiled(name, size).memory_analysis() for size in SIZES]
    if None in analyses:
        pytest.skip("this backend does not report its memory")
    assert slope([analysis.temp_size_in_bytes for analysis in analyses]) <= 0.1


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
