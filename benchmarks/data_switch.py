"""How fast does a run recover where the data change halfway?

Labels of classification tasks are permuted at half of the run. Recovery is the number of steps
until 90 % of the jump of the mini-batch loss is made up for, from before the switch to just after
it, both under the tuned cosine schedule: until the loss, averaged over seeds and the five steps to
come, is below that. The rate of the schedule is the best of the sweep
by final loss, chosen on another seed. Intervals are those of a bootstrap over seeds. Writes
`data_switch.json`.

    python benchmarks/data_switch.py
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from frozen import contender, settings
from protocol import OPTIMIZERS
from reported_tasks import TEST, switched

import optax_meta
from optax_meta import protocol
from optax_meta.meta.evaluation import library_versions
from optax_meta.meta.protocol import Contender
from optax_meta.meta.tasks import Task, train_step

HERE = Path(__file__).parent
SMOOTHING = 5
BEFORE = 20


def losses(
    task: Task, factory: protocol.Factory, contender: Contender, steps: int, rates: Any, seeds: Any
) -> np.ndarray:
    """Return the mini-batch losses of every starting rate and seed, float[K, S, T]."""

    def run(rate: jax.Array, seed: jax.Array) -> jax.Array:
        init_key, data_key = jax.random.split(jax.random.key(seed))
        params = task.init(init_key)
        tx = contender.transformation(factory, protocol.Run(rate, jnp.int32(steps), seed))

        def step(carry: tuple[Any, Any], t: jax.Array) -> tuple[Any, jax.Array]:
            params, state, loss = train_step(task, tx, jax.random.fold_in(data_key, t), t, *carry)
            return (params, state), loss

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))[1]

    over_seeds = jax.vmap(jax.vmap(run, (None, 0)), (0, None))
    found = jax.jit(over_seeds)(jnp.float32(rates), jnp.uint32(seeds))
    return np.nan_to_num(np.asarray(found, float), nan=np.inf)


def goal(cosine: np.ndarray) -> float:
    """Return the loss that makes up for 90 % of the jump, from losses float[S, T]."""
    half, mean = cosine.shape[1] // 2, cosine.mean(axis=0)
    before, after = mean[half - BEFORE : half].mean(), mean[half : half + 2].mean()
    return float(before + 0.1 * (after - before))


def recovery(runs: np.ndarray, target: float) -> int:
    """Return the steps after the switch until the mean loss is below `target`, or all there are."""
    after = runs.mean(axis=0)[runs.shape[1] // 2 :]
    smooth = np.convolve(after, np.ones(SMOOTHING) / SMOOTHING, mode="valid")
    below = np.flatnonzero(smooth < target)
    return int(below[0]) + 1 if below.size else len(after)


def times_faster(cosine: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Return the cosine's steps to recovery over those of another method, and the interval."""
    drawn = np.random.default_rng(0).integers(0, len(cosine), (1000, len(cosine)))

    def ratio(c: np.ndarray, o: np.ndarray) -> float:
        target = goal(c)
        return recovery(c, target) / recovery(o, target)

    boot = [ratio(cosine[rows], other[rows]) for rows in drawn]
    low, high = np.percentile(boot, [2.5, 97.5])
    steps = recovery(other, goal(cosine))
    return {"steps": steps, "faster": ratio(cosine, other), "interval": [float(low), float(high)]}


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--policy", default="any-lr-v2", help="name or path")
    options = parser.parse_args()
    policy = optax_meta.load_policy(options.policy)
    ours = contender(policy)
    without_horizon = ours._replace(settings=settings(policy, horizon_is_known=False))
    seeds, rows = np.arange(options.seeds), []
    for name in ("digits", "convolution"):
        task = switched(TEST[name](), options.steps // 2)
        for optimizer in ("adamw", "momentum", "lion"):
            run = partial(losses, task, OPTIMIZERS[optimizer], steps=options.steps)
            swept = run(
                contender=Contender.from_schedule("cosine"),
                rates=protocol.SWEEP_RATES,
                seeds=[10_000],
            )
            rate = protocol.SWEEP_RATES[int(np.argmin(swept[:, 0, -BEFORE:].mean(-1)))]
            cosine = run(contender=Contender.from_schedule("cosine"), rates=[rate], seeds=seeds)[0]
            constant = run(
                contender=Contender.from_schedule("constant"), rates=[rate], seeds=seeds
            )[0]
            known = run(contender=ours, rates=[1e-3], seeds=seeds)[0]
            unknown = run(contender=without_horizon, rates=[1e-3], seeds=seeds)[0]
            row = {"task": name, "optimizer": optimizer, "rate": rate, "methods": {}}
            for label, found in (
                ("cosine, tuned", cosine),
                ("constant, same rate", constant),
                (options.policy, known),
                (f"{options.policy}, no horizon", unknown),
            ):
                ends = {"final": float(found[:, -BEFORE:].mean())}
                row["methods"][label] = times_faster(cosine, found) | ends
            rows.append(row)
            print(json.dumps(row), flush=True)
    logs = {
        label: float(np.exp(np.mean([np.log(row["methods"][label]["faster"]) for row in rows])))
        for label in rows[0]["methods"]
    }
    print("times faster than the tuned cosine:", logs)
    result = {"versions": library_versions(), "faster": logs, "rows": rows}
    (HERE / "data_switch.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
