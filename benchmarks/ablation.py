"""What do the single features and the parts of the guide bring to `any-lr-v1`?

Validation tier, so that the answer may choose. A feature is knocked out by showing the policy its
mean in place of its value; nothing is trained again. A part of the guide is taken away under the
policy and under holding alone; without the calibration, that survives any start, runs begin at
three of them, with and without what else might save those that are too high. Figures are geometric
means of the final loss over that of the whole policy on the same seeds: above 1, the part is
missed. Writes `ablation.json`.

    python benchmarks/ablation.py
    python benchmarks/ablation.py --policy mine.policy
"""

import argparse
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from protocol import OPTIMIZERS, holding
from validation_tasks import VALIDATION

import optax_meta
from optax_meta import protocol
from optax_meta.evaluation import library_versions
from optax_meta.tasks import Task

HERE = Path(__file__).parent
NAMES = ("adamw", "momentum", "lion")
STARTS = (1e-5, 1.0, 10.0)
UNCALIBRATED: dict[str, Any] = {"calibration_steps": 0}
SPARSE: dict[str, Any] = {"dense_steps": 0}
UNBOUND: dict[str, Any] = {"max_ratio": math.inf, "max_growth": math.inf}
WITHOUT = {
    "calibration": UNCALIBRATED,
    "calibration, bounds": UNCALIBRATED | UNBOUND,
    "calibration, dense first decisions": UNCALIBRATED | SPARSE,
    "calibration, dense first decisions, bounds": UNCALIBRATED | SPARSE | UNBOUND,
    "dense first decisions": SPARSE,
    "bounds": UNBOUND,
    "bound on the move": {"max_ratio": math.inf},
    "fall": {"fall": 0.0},
    "steeper fall": {"fall": 1.0},
    "wider bound of short runs": {"ratio_power": 0.0},
    "narrower bound of persistent moves": {"persistence_power": 0.0},
    "narrower bound of persistent moves, 2 % for all": {
        "persistence_power": 0.0,
        "max_ratio": 0.02,
    },
    "the tighter target, 1e-2 for 1e-3": {"target_ratio": 1e-3},
}


def runs(
    policy: optax_meta.Policy,
    task: Task,
    optimizer: str,
    steps: int,
    seeds: int,
    starts: tuple[float, ...] = (1e-3,),
) -> Any:
    """Return jitted (stacked policy parameters) → trajectories, leading axes [K, starts, seeds]."""

    def one(params: Any, start: jax.Array, key: jax.Array) -> optax_meta.Trajectory:
        return optax_meta.rollout(
            policy._replace(params=params),
            task,
            key,
            total_steps=steps,
            optimizer=OPTIMIZERS[optimizer],
            learning_rate=start,
        )

    keys = jax.random.split(jax.random.key(11), seeds)
    every = jax.vmap(jax.vmap(jax.vmap(one, (None, None, 0)), (None, 0, None)), (0, None, None))
    # Much is compiled for short runs.
    quickly = {"xla_backend_optimization_level": 1}
    return jax.jit(
        lambda params: every(params, jnp.float32(starts), keys), compiler_options=quickly
    )


def stacked(*params: Any) -> Any:
    """Stack the parameters of several policies."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)


def knocked_out(params: Any, mean: jax.Array, feature: int) -> Any:
    """Return the parameters of a policy that sees the mean of one feature."""
    first = params["params"]["Dense_0"]
    row = first["kernel"][feature]
    bias = first["bias"] + mean[feature] * row
    layer = {"kernel": first["kernel"].at[feature].set(0.0), "bias": bias}
    return {"params": {**params["params"], "Dense_0": layer}}


def log_losses(trajectories: optax_meta.Trajectory) -> np.ndarray:
    """Return log final losses; a lost run counts one nat above its start."""
    final, initial = (np.asarray(x["loss"], float) for x in trajectories[-1:-3:-1])
    return np.log(np.where(np.isfinite(final), np.minimum(final, np.e * initial), np.e * initial))


def interval(logs: np.ndarray) -> list[float]:
    """Return the bootstrap interval of the geometric mean over seeds, from logs, float[C, S]."""
    means = [np.exp(np.mean(drawn)) for drawn in protocol.resampled([*logs[:, None]])]
    return np.percentile(means, [2.5, 97.5]).tolist()


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--policy", default="any-lr-v1", help="name or path")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    policy = optax_meta.load_policy(options.policy)
    hold = holding(policy)
    rows: dict[str, list[np.ndarray]] = {}
    for task in (make() for make in VALIDATION.values()):
        for optimizer in NAMES:
            of_cell = partial(
                runs, task=task, optimizer=optimizer, steps=options.steps, seeds=options.seeds
            )
            seen = of_cell(policy)(stacked(policy.params))
            weight = seen.mask[..., None]
            mean = jnp.sum(seen.observation * weight, (0, 1, 2, 3)) / jnp.sum(weight)
            features = policy.encoder.features
            names = ["whole", "hold", *features]
            variants = [knocked_out(policy.params, mean, i) for i in range(len(features))]
            ran = of_cell(policy)(stacked(policy.params, hold.params, *variants))
            found = dict(zip(names, log_losses(ran), strict=True))
            for part, change in WITHOUT.items():
                changed = policy._replace(guide=policy.guide._replace(**change))
                starts = STARTS if "calibration_steps" in change else (1e-3,)
                ran = of_cell(changed, starts=starts)(stacked(policy.params, hold.params))
                of_whole, of_hold = log_losses(ran).mean(axis=1, keepdims=True)
                found |= {f"without {part}": of_whole, f"hold, without {part}": of_hold}
            base = found.pop("whole")
            for name, losses in found.items():
                rows.setdefault(name, []).append(losses - base)
            jax.clear_caches()
            print(task.name, optimizer, flush=True)
    result: dict[str, Any] = {"versions": library_versions(), "policy": options.policy}
    result["loss_over_whole"] = {}
    for name, parts in rows.items():
        logs = np.stack(parts)
        error = logs.mean(axis=(0, 1)).std(ddof=1) / math.sqrt(options.seeds)
        ratio = float(np.exp(logs.mean()))
        result["loss_over_whole"][name] = {"ratio": ratio, "standard_error": float(ratio * error)}
        print(f"{name:50s} {ratio:6.3f} ± {2.0 * ratio * error:.3f}")
    (HERE / "ablation.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
