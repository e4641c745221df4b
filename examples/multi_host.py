"""Data-parallel training on several hosts, with checkpoints, against warm-up and linear decay.

One program, started once a process. Each feeds its share of every batch, and `jax.jit` sees the
whole one: loss and gradients are means over all hosts, so that every process takes the same
decision. Started again, it goes on from the last checkpoint, with as many processes as there are
then; all of them must see the directory DIR.

SLURM finds the processes itself; one task a GPU:

    #SBATCH --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 --requeue
    srun python multi_host.py DIR

Kubernetes: with `pip install 'jax[k8s]'` the pods of a JobSet find each other, if the service
account may read pods, jobs and services. If not, say it in the JobSet NAME, here with four pods
of one job `workers`, and let `failurePolicy: {maxRestarts: 10}` restart all when one is lost:

    command: [sh, -c, "python multi_host.py DIR --processes 4
              --process $JOB_COMPLETION_INDEX --coordinator NAME-workers-0-0.NAME:1234"]

Two processes on one machine:

    P="python multi_host.py DIR --coordinator localhost:1234 --processes 2 --process"
    $P 0 & $P 1
"""

import argparse
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_meta

BATCH = 64  # over all processes
MODEL = nn.Sequential([nn.Dense(32), nn.tanh, nn.Dense(1)])


def local_batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return this process's share of a batch; here all make the whole one and keep their part."""
    rng = np.random.default_rng(step)
    x = rng.normal(size=(BATCH, 8)).astype(np.float32)
    y = np.sin(x.sum(axis=1, keepdims=True)) + 0.1 * rng.normal(size=(BATCH, 1)).astype(np.float32)
    mine = slice(jax.process_index(), None, jax.process_count())
    return x[mine], y[mine]


def main(checkpoints: str, steps: int = 300, save_every: int = 20, rule: str = "any-lr-v2") -> list:
    """Train up to `steps`; return the loss and the learning rate of the steps taken here."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    everywhere, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    controller = optax_meta.learned("any-lr-v2", total_steps=steps)
    if rule == "linear":
        controller = optax_meta.annealed(optax_meta.warmup(steps // 10 or 1), total_steps=steps)
    tx = optax_meta.control_hyperparams(optax.adamw, controller)(learning_rate=1e-2)

    def train_step(carry, x, y):  # noqa: ANN001, ANN202
        params, opt_state = carry
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((MODEL.apply(p, x) - y) ** 2))(params)
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        return (optax.apply_updates(params, updates), opt_state), optax_meta.record(opt_state)

    # Made on the mesh, so that a checkpoint is restored onto the mesh too.
    params = jax.jit(MODEL.init, out_shardings=everywhere)(jax.random.key(0), jnp.zeros((1, 8)))
    carry = params, jax.jit(tx.init, out_shardings=everywhere)(params)
    train_step = jax.jit(train_step, out_shardings=everywhere, donate_argnums=0)
    options = ocp.CheckpointManagerOptions(max_to_keep=3, save_interval_steps=save_every)
    rows = []
    with ocp.CheckpointManager(Path(checkpoints).resolve(), options=options) as manager:
        first = manager.latest_step() or 0
        if first:
            target = jax.tree.map(ocp.utils.to_shape_dtype_struct, carry)
            carry = manager.restore(first, args=ocp.args.StandardRestore(target))
        for step in range(first, steps):
            batch = jax.make_array_from_process_local_data(divided, local_batch(step))
            carry, row = train_step(carry, *batch)
            rows.append((float(row.value), float(row.hyperparams["learning_rate"])))  # waits
            manager.save(step + 1, args=ocp.args.StandardSave(carry))
            if jax.process_index() == 0 and (step + 1) % 20 == 0:
                print(f"step {step + 1}: loss {np.mean(rows[-20:], axis=0)[0]:.4f}")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoints", help="a directory that all processes see")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rule", choices=("any-lr-v2", "linear"), default="any-lr-v2")
    parser.add_argument("--coordinator", help="host:port of process 0; found where it can be")
    parser.add_argument("--processes", type=int, help="how many there are")
    parser.add_argument("--process", type=int, help="which this is, from 0")
    args = parser.parse_args()
    jax.distributed.initialize(args.coordinator, args.processes, args.process)
    main(args.checkpoints, args.steps, rule=args.rule)
