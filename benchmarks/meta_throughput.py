"""How fast is meta-training, beside a Python loop of jitted steps on the same task?

Both train a task of the `relu` family under the same policy; one process, one device, alternating.
Prints inner steps per second, how time grows with tasks and with steps, what compiling costs, and
the arithmetic behind it: operations a second beside those of large matrix products, which nothing
on the same device exceeds.
Writes `meta_throughput-cpu.json`, or that of another device, beside this script.

    python benchmarks/meta_throughput.py
    python benchmarks/meta_throughput.py --tasks 1024 8192 65536  # where there is a GPU
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_meta
from optax_meta import families
from optax_meta.meta import runs
from optax_meta.meta.evaluation import library_versions

HERE = Path(__file__).parent


def seconds(run: Callable[[], Any]) -> float:
    """Time one call, device work included."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", type=int, nargs="*", default=[64, 256, 1024], help="at once")
    counts = parser.parse_args().tasks
    trainer = runs.any_lr()
    policy = trainer.policy(trainer.init(0))
    family = families.FAMILIES["relu"]()

    def one(key: jax.Array, total: jax.Array) -> jax.Array:
        task = family.build(family.sample(key))
        trajectory = optax_meta.rollout(
            policy, task, key, total_steps=total, max_decisions=221, optimizer=optax.adam
        )
        return trajectory.final["loss"]

    many = jax.jit(jax.vmap(one, (0, None)))
    keys = {count: jax.random.split(jax.random.key(0), count) for count in counts}
    # The horizon is traced: this one program runs every length.
    compiling = seconds(lambda: many.lower(keys[counts[0]], jnp.int32(200)).compile())
    task = family.build(family.sample(jax.random.key(0)))
    controller = optax_meta.learned(policy, total_steps=200)
    tx = optax_meta.control_hyperparams(optax.adam, controller)(learning_rate=1e-3)

    @jax.jit
    def step(params: Any, state: Any, key: jax.Array) -> tuple[Any, Any]:
        loss, grads = jax.value_and_grad(task.loss)(params, task.sample(key))
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    def loop() -> Any:
        params = task.init(jax.random.key(1))
        state = tx.init(params)
        for key in step_keys:
            params, state = step(params, state, key)
        return params

    state = tx.init(task.init(jax.random.key(1)))
    lowered = step.lower(task.init(jax.random.key(1)), state, jax.random.key(2))
    flops = (lowered.compile().cost_analysis() or {})["flops"]
    square = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    step_keys = list(jax.random.split(jax.random.key(2), 200))
    times: dict[str, list[float]] = {"loop": [], **{f"{n} tasks": [] for n in keys}, "400": []}
    times["product"] = []
    for repeat in range(6):
        took = {"loop": seconds(loop)}
        for count, some in keys.items():
            took[f"{count} tasks"] = seconds(lambda some=some: many(some, jnp.int32(200)))
        took["400"] = seconds(lambda: many(keys[counts[-1]], jnp.int32(400)))
        took["product"] = seconds(lambda: product(square, square))
        if repeat > 0:  # the first one compiles
            for name, value in took.items():
                times[name].append(value)
    rate = {"loop": 200 / np.median(times["loop"])}
    rate |= {f"{n} tasks": n * 200 / float(np.median(times[f"{n} tasks"])) for n in keys}
    most = f"{counts[-1]} tasks"
    peak = 2.0 * square.shape[0] ** 3 / float(np.median(times["product"]))
    results = {
        "inner_steps_per_second": {name: float(value) for name, value in rate.items()},
        "ratio_to_the_loop": {name: float(value / rate["loop"]) for name, value in rate.items()},
        "flops_of_a_step": flops,
        "flops_per_second_of_large_products": peak,
        "highest_ratio_that_arithmetic_allows": float(peak / flops / rate["loop"]),
        "time_at_400_steps_over_200": float(np.median(np.divide(times["400"], times[most]))),
        "compile_seconds_for_all_horizons": compiling,
        "versions": library_versions(),
    }
    (HERE / f"meta_throughput-{jax.default_backend()}.json").write_text(
        json.dumps(results, indent=1) + "\n"
    )
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
