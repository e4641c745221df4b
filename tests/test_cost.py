"""What a controller may cost, as deterministic counts; timings are in benchmarks/overhead.py."""

import functools

import jax
import optax
import overhead
import pytest

pytestmark = pytest.mark.usefixtures("optimized")

fusing = pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="older XLA fuses less")
TREES = {count: overhead.leaves(count) for count in overhead.LEAVES}
SAMPLED = ("hypergradient", "reinforce", "distance", "any-lr-v2", "reinforce(any-lr-v2)")


@functools.cache
def compiled(name, count):
    return overhead.compile_update(overhead.METHODS[name](), TREES[count])


def limit(name):
    """Return bytes a parameter: AdamW's 40, the gradients read once more, samples."""
    return 40.0 if name == "adamw" else 46.0 if name in SAMPLED else 44.5


# What differs between trees is how XLA fuses the gradients' norm, the same for every method; what
# differs between methods shows in any tree.
ORDINARY = [(name, 10) for name in ("adamw", *overhead.OURS) if name != "reinforce(any-lr-v2)"]
ORDINARY += [(name, count) for name in ("constant", "plateau", "any-lr-v2") for count in (1, 100)]
CASES = [
    (name, count)
    if (name, count) in ORDINARY
    else pytest.param(name, count, marks=pytest.mark.heavy)
    for count in TREES
    for name in ("adamw", *overhead.OURS)
]


@fusing
@pytest.mark.parametrize(("name", "count"), CASES)
def test_bytes_accessed_per_parameter(name, count):
    assert overhead.bytes_per_param(compiled(name, count), TREES[count]) <= limit(name) + 5e-3


@fusing
@pytest.mark.parametrize(("name", "count"), [case for case in CASES if "adamw" not in str(case)])
def test_no_temporary_of_a_leafs_size(name, count):
    analysis = compiled(name, count).memory_analysis()
    if analysis is None:
        pytest.skip("this backend does not report its memory")
    # A leaf has 4 MB, 400 kB or 40 kB; samples have at most 16 kB for each of ten vectors.
    assert analysis.temp_size_in_bytes <= 10 * 2**14


@fusing
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "plateau" else pytest.mark.heavy) for n in overhead.OURS],
)
def test_bytes_accessed_for_a_transformers_parameters(name):
    params = overhead.transformer()
    update = overhead.compile_update(overhead.METHODS[name](), params)
    assert overhead.bytes_per_param(update, params) <= limit(name)


@fusing
@pytest.mark.heavy
@pytest.mark.parametrize("name", [name for name in overhead.OURS if name != "constant"])
def test_bytes_accessed_by_a_whole_training_step(name):
    params = overhead.transformer()
    plain, ours = (
        overhead.bytes_per_param(overhead.compile_training_step(overhead.METHODS[n]()), params)
        for n in ("adamw", name)
    )
    assert ours - plain <= limit(name) - limit("adamw")


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
    assert ours <= inject + 12  # of which three wrappers have five


def test_the_count_is_xlas():
    params = overhead.leaves(1)
    update = overhead.compile_update(optax.sgd(1.0), params)
    assert overhead.bytes_per_param(update, params) == pytest.approx(12.0)
