"""States that outlive the process: every format gives back every bit, and the run goes on."""

import functools
import itertools
import operator
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from orbax.checkpoint import v1
from test_contract import CONTROLLERS, HEAVY, STEPS, make, make_step, problem

import optax_meta

EXAMPLES = Path(__file__).parent.parent / "examples"


def abstract(carry):
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, carry)


def through_manager(carry, folder, target):
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=True)
    with ocp.CheckpointManager(folder, options=options) as manager:
        manager.save(0, args=ocp.args.StandardSave(carry))
        manager.wait_until_finished()
        return manager.restore(0, args=ocp.args.StandardRestore(target))


def through_v1(carry, folder, target):
    v1.save_pytree(folder / "v1", carry)
    return v1.load_pytree(folder / "v1", target)


def through_msgpack(carry, _, target):
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), target)
    return serialization.from_bytes(zeros, serialization.to_bytes(carry))


def through_pickle(carry, *_):
    return pickle.loads(pickle.dumps(carry))  # noqa: S301 - our own bytes


FORMATS = [through_manager, through_v1, through_msgpack, through_pickle]


@functools.cache
def halves(name):
    """Return the jitted half of a run, the carry after the first, and that after the second."""
    tx = make(CONTROLLERS[name]())
    keys = jax.random.split(jax.random.key(0), STEPS)
    half = jax.jit(lambda carry, keys: jax.lax.scan(make_step(tx), carry, keys)[0])
    first = problem(), tx.init(problem())
    carry = half(first, keys[: STEPS // 2])
    rest = keys[STEPS // 2 :]
    return first, carry, functools.partial(half, keys=rest), half(carry, rest)


# The state of a policy that learns holds all kinds of arrays: it goes through every format, the
# others through one. What is left says the same again.
SOON = [
    *(("reinforce", through, False) for through in FORMATS),
    *((name, through_manager, True) for name in CONTROLLERS if name not in HEAVY),
]
WAYS = [
    pytest.param(*way, marks=() if way in SOON else pytest.mark.heavy)
    for way in itertools.product(CONTROLLERS, FORMATS, (False, True))
]


@pytest.mark.filterwarnings("ignore")  # Orbax's own
@pytest.mark.parametrize(("name", "through", "is_abstract"), WAYS)
def test_a_restored_run_is_the_same_run(name, through, is_abstract, tmp_path):
    first, carry, half, end = halves(name)
    restored = through(carry, tmp_path, abstract(first) if is_abstract else first)
    assert jax.tree.structure(restored) == jax.tree.structure(carry)
    jax.tree.map(np.testing.assert_array_equal, restored, carry)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), restored, carry)
    jax.tree.map(np.testing.assert_array_equal, half(restored), end)


def with_agent(state, **changes):
    """Return a state with changes in that of the agent, inside those of its wrappers."""
    if hasattr(state, "policy_params"):
        return state._replace(**changes)
    return state._replace(controller_state=with_agent(state.controller_state, **changes))


def test_graft_takes_what_is_there_and_names_what_is_not(tmp_path):
    first, carry, _, _ = halves("reinforce")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "old", carry[1])
        checkpointer.wait_until_finished()
        saved = checkpointer.restore(tmp_path / "old")
    inside = "controller_state/" * 4  # three wrappers go around the agent
    agent = functools.reduce(operator.getitem, inside.split("/")[:-1], saved)
    del agent["before"]
    agent["gone"] = np.zeros(3)
    saved["statistics"] = saved["statistics"][:-1]
    grafted = optax_meta.graft(first[1], saved)
    size = first[1].statistics.size
    assert set(grafted.missing) == {
        f"{inside}before",
        f"statistics: ({size - 1},) float32, not ({size},) float32",
    }
    assert grafted.unused == (f"{inside}gone", "statistics")
    assert jax.tree.structure(grafted.state) == jax.tree.structure(carry[1])
    expected = with_agent(carry[1], before=optax.tree.get(first[1], "before"))
    expected = expected._replace(statistics=first[1].statistics)
    jax.tree.map(np.testing.assert_array_equal, grafted.state, expected)


@pytest.mark.parametrize("form", [lambda x: x, serialization.to_state_dict])
def test_graft_of_everything_is_a_restore(form):
    first, carry, half, end = halves("plateau")
    grafted = optax_meta.graft(first, form(carry))
    assert grafted.missing == grafted.unused == ()
    jax.tree.map(np.testing.assert_array_equal, half(grafted.state), end)


def test_graft_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="nothing in the saved state fits"):
        optax_meta.graft({"a": jnp.zeros(2)}, {"b": jnp.zeros(2)})


def test_the_example_resumes(tmp_path, capsys):
    import resume

    whole = resume.main(str(tmp_path / "whole"), steps=20)
    resume.main(str(tmp_path / "parts"), steps=10)
    parts = resume.main(str(tmp_path / "parts"), steps=20)
    assert "resumed after step 10" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


@pytest.mark.heavy
@pytest.mark.usefixtures("optimized")
def test_a_run_killed_at_random_moments_ends_as_one_left_alone(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import resume; resume.main(sys.argv[2], 400)"
    )
    command = [sys.executable, "-c", code, str(EXAMPLES), str(tmp_path / "killed")]
    env = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}  # as `optimized` does here
    chance, kills, resumed = np.random.default_rng(0), 0, 0
    for _ in range(12):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        line = process.stdout.readline()  # it trains
        resumed += "resumed" in line
        time.sleep(chance.uniform(0.0, 1.0))
        if kills < 5 and process.poll() is None:
            process.kill()
            kills += 1
            process.communicate()
            continue
        process.communicate(timeout=120)
        break
    assert process.returncode == 0
    assert kills >= 3
    assert resumed >= 3
    import resume

    jax.clear_caches()  # of what another test compiled, not as users do
    killed = resume.main(str(tmp_path / "killed"), 400)
    alone = resume.main(str(tmp_path / "alone"), 400)
    jax.tree.map(np.testing.assert_array_equal, killed, alone)


def test_one_trace_over_thousands_of_steps():
    tx = make(optax_meta.reinforce(decision_interval=2, train_every=3))
    traces = 0

    @jax.jit
    def step(params, state, value):
        nonlocal traces
        traces += 1
        updates, state = tx.update(params, state, params, value=value)
        return optax.apply_updates(params, updates), state

    params = problem()
    state = tx.init(params)
    for value in np.random.default_rng(0).random(3000, np.float32):
        params, state = step(params, state, value)
    assert traces == 1
    assert optax_meta.record(state).step == 3000
    calibrating = 20  # decides at every step
    assert optax.tree.get(state, "stream")[1] == calibrating + (3000 - calibrating) // 2
