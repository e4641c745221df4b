"""Two processes over loopback: `examples/multi_host.py` as it stands, and what it must keep."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
LIMIT = 120.0  # seconds; lost processes wait for each other, so every wait here ends
PROGRAM = """
import json, sys
import jax
sys.path.insert(0, sys.argv[1])
import multi_host
directory, steps, address, count, index = sys.argv[2:]
if int(count) > 1:
    jax.distributed.initialize(address, int(count), int(index), initialization_timeout=60)
print(json.dumps(multi_host.main(directory, int(steps), save_every=6)))
"""

pytestmark = pytest.mark.heavy


def start(command):
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    # One device a process: with more, collectives over loopback may wait for each other.
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *map(str, command)], env=env, text=True, **pipes)


def free_port():
    with contextlib.closing(socket.socket()) as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def finish(processes):
    """Return what each printed; none outlives this call."""
    try:
        outputs = [process.communicate(timeout=LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-2000:]
    return [output for output, _ in outputs]


def train(directory, steps, num_processes):
    """Return losses and rates, float[process, step, 2]."""
    address = f"localhost:{free_port()}"
    common = ["-c", PROGRAM, EXAMPLES, directory, steps, address, num_processes]
    outputs = finish([start([*common, index]) for index in range(num_processes)])
    return np.array([json.loads(output.splitlines()[-1]) for output in outputs])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Twelve steps without a stop; the second six resumed by two processes and by one."""
    whole = tmp_path_factory.mktemp("whole")
    rows = {"whole": train(whole, 12, 2)}
    for num_processes in (2, 1):
        half = tmp_path_factory.mktemp("half")
        shutil.copytree(whole / "6", half / "6")
        rows[num_processes] = train(half, 12, num_processes)
    return rows


def test_two_processes_decide_alike(runs):
    losses_and_rates = runs["whole"]
    assert losses_and_rates.shape == (2, 12, 2)
    np.testing.assert_array_equal(losses_and_rates[0], losses_and_rates[1])
    assert np.unique(losses_and_rates[0, :, 1]).size > 1
    assert losses_and_rates[0, -1, 0] < losses_and_rates[0, 0, 0]


def test_two_processes_resume_where_they_stopped(runs):
    np.testing.assert_array_equal(runs[2], runs["whole"][:, 6:])


def test_one_process_goes_on_with_the_run_of_two(runs):
    np.testing.assert_allclose(runs[1][0], runs["whole"][0, 6:], rtol=1e-5)


@pytest.mark.heavy
def test_when_a_process_is_lost_the_other_ends_and_the_run_restarts(tmp_path):
    options = [EXAMPLES / "multi_host.py", tmp_path, "--steps", 10**6, "--processes", 2]
    options += ["--coordinator", f"localhost:{free_port()}", "--process"]
    processes = [start([*options, index]) for index in range(2)]
    timers = [threading.Timer(3 * LIMIT, process.kill) for process in processes]
    try:
        for timer in timers:
            timer.start()
        assert any("step 40:" in line for line in processes[0].stdout)
        processes[1].kill()
        assert processes[0].wait(2 * LIMIT) not in (0, -signal.SIGKILL)  # notices by itself
    finally:
        for timer, process in zip(timers, processes, strict=True):
            timer.cancel()
            process.kill()
            process.communicate()
    saved = max(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    assert saved >= 20
    resumed = train(tmp_path, saved + 12, 2)
    assert resumed.shape == (2, 12, 2)
    np.testing.assert_array_equal(resumed[0], resumed[1])
