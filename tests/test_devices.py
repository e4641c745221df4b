"""One device or eight: the same losses, the same decisions, the same weights.

What needs the runs on eight devices is heavy: a minute and a half, for the job of that name in CI.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_meta

PROGRAM = Path(__file__).with_name("device_run.py")
CONTROLLERS = ["constant", "plateau", "hypergradient", "reinforce", "learned"]
MODES = ["jit", "explicit", "shard_map"]
CHECKED = ["plateau", "hypergradient"]
# These programs are small and run once: compiling them takes longer than anything they do.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def start(num_devices, *arguments):
    flags = f"{FLAGS} --xla_force_host_platform_device_count={num_devices}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, PROGRAM, *map(str, arguments)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def finish(process):
    try:
        _, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-2000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Train on eight devices and save half-way; then on four and on one, afresh and resumed."""
    folder = tmp_path_factory.mktemp("devices")
    out = {n: folder / f"{n}.npz" for n in (8, 4, 1)}
    modes = [*MODES, f"checked:{','.join(CHECKED)}", "apart:plateau"]
    recorded = ["--recorded", "hypergradient"]
    finish(start(8, out[8], "--modes", *modes, *recorded, "--save", folder / "saved"))
    for process in [start(n, out[n], "--resume", folder / "saved") for n in (4, 1)]:
        finish(process)
    return {n: dict(np.load(path)) for n, path in out.items()}


def get(run, label):
    found = {k.removeprefix(label + "/"): v for k, v in run.items() if k.startswith(label + "/")}
    assert found
    return found


def assert_same_run(got, wanted):
    """Assert equality up to the order of sums; rates of several devices stand side by side."""
    rates = got["rate"].reshape(len(got["rate"]), -1)
    np.testing.assert_allclose(rates, wanted["rate"][:, None] + 0.0 * rates, rtol=1e-5)
    for name in ("loss", "bad", "w1", "w2", "b"):
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.heavy
@pytest.mark.parametrize("name", CONTROLLERS)
@pytest.mark.parametrize("mode", MODES)
def test_eight_devices_give_the_numbers_of_one(runs, mode, name):
    assert_same_run(get(runs[8], f"{mode}/{name}"), get(runs[1], f"jit/{name}"))


@pytest.mark.heavy
@pytest.mark.parametrize("name", CHECKED)
def test_shard_map_may_check_what_varies(runs, name):
    assert_same_run(get(runs[8], f"checked/{name}"), get(runs[1], f"jit/{name}"))


@pytest.mark.heavy
@pytest.mark.parametrize("num_devices", [4, 1])
@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_run_saved_on_eight_devices_goes_on_with_fewer(runs, name, num_devices):
    wanted = get(runs[8], f"jit/{name}")
    second_half = {
        k: v[-len(v) // 2 :] if k in ("loss", "rate", "bad") else v for k, v in wanted.items()
    }
    assert_same_run(get(runs[num_devices], f"resumed/{name}"), second_half)


@pytest.mark.heavy
@pytest.mark.parametrize("name", CONTROLLERS)
def test_with_an_axis_name_all_replicas_decide_alike(runs, name):
    rates = get(runs[8], f"shard_map/{name}")["rate"]
    assert rates.shape[1] == 8
    np.testing.assert_array_equal(rates, rates[:, :1] + 0.0 * rates)
    assert (np.unique(rates).size > 1) == (name != "constant")


@pytest.mark.heavy
def test_with_an_axis_name_what_is_measured_is_averaged(runs):
    rows = get(runs[8], "recorded/hypergradient")
    for name in ("value", "cost", "grad_norm"):
        own, observed = rows[f"own_{name}"], rows[name]
        assert np.unique(own[-1]).size == 8
        np.testing.assert_allclose(observed[:, 0], own.mean(axis=1), rtol=1e-5)
    for name in ("value", "cost", "grad_norm", "alignment"):
        np.testing.assert_array_equal(rows[name], rows[name][:, :1] + 0.0 * rows[name])
    assert np.all(rows["alignment"][1:] != 0.0)


@pytest.mark.heavy
@pytest.mark.parametrize("name", CONTROLLERS)
@pytest.mark.parametrize("mode", MODES)
def test_all_devices_hold_all_of_the_controllers_state(runs, mode, name):
    assert get(runs[8], f"{mode}/{name}")["replicated"]


@pytest.mark.heavy
def test_without_an_axis_name_replicas_decide_apart(runs):
    rates = get(runs[8], "apart/plateau")["rate"]
    assert np.unique(rates[-1]).size > 1


@pytest.mark.heavy
@pytest.mark.parametrize("mode", MODES)
def test_a_loss_not_finite_on_one_device_is_skipped_on_all(runs, mode):
    np.testing.assert_array_equal(get(runs[8], f"{mode}/constant")["bad"], [0, 0, 0] + 9 * [1])


GATHERED = """
import math, re
import jax, jax.numpy as jnp, optax, optax_meta
from jax.sharding import NamedSharding, PartitionSpec
mesh = jax.make_mesh((4,), ("d",), (jax.sharding.AxisType.Auto,))
tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.hypergradient())(0.1)
for spec in (PartitionSpec(None, "d"), PartitionSpec("d", None)):
    w = jax.device_put(jnp.ones((512, 512)), NamedSharding(mesh, spec))
    state = jax.jit(tx.init)(w)
    text = jax.jit(tx.update).lower(w, state, w, value=1.0).compile().as_text()
    gathered = re.findall(r"= f32\\[([\\d,]+)\\]\\S* all-gather", text)
    assert all(math.prod(map(int, sizes.split(","))) <= 8192 for sizes in gathered), gathered
"""


def test_a_sharded_model_is_never_gathered():
    flags = "--xla_force_host_platform_device_count=4"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-c", GATHERED], check=True, env=env)


# Where a product may be rounded, a TPU takes bfloat16 and a GPU tf32, and the policy other actions.
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_policy_rounds_no_product(platform):
    controller = optax_meta.reinforce(optax_meta.load_policy("any-lr-v2"))
    tx = optax_meta.control_hyperparams(optax.adamw, controller)(learning_rate=1e-3)
    params = jnp.ones((3, 4))
    traced = jax.jit(tx.update).trace(params, tx.init(params), params, value=1.0)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) > 3
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
