"""What do the single features and the parts of the guide bring to `any-lr-v1`?

Validation tier, so that the answer may choose. A feature is knocked out by showing the policy its
mean in place of its value; nothing is trained again. A part of the guide is taken away under the
policy and under holding alone; without the calibration, that survives any start, runs begin at
three of them, with and without what else might save those that are too high. Figures are geometric
means of the final loss, above the least that can be had where that is known, over that of the whole
policy on the same seeds: above 1, the part is missed. Writes `ablation.json`.

    python benchmarks/ablation.py
    python benchmarks/ablation.py --policy mine.policy
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
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
from optax_meta.guides import Guide
from optax_meta.meta.evaluation import library_versions
from optax_meta.meta.tasks import Task

HERE = Path(__file__).parent
NAMES = ("adamw", "momentum", "lion")
STARTS = (1e-5, 1.0, 10.0)
UNCALIBRATED: dict[str, Any] = {"calibration_steps": 0}
SPARSE: dict[str, Any] = {"dense_steps": 0}
UNBOUND: dict[str, Any] = {"max_ratio": math.inf, "max_growth": math.inf}
# These are compiled in; the rest of a guide is traced.
COUNTS = Guide().counts
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
    "end of raises": {"last_raise": math.inf},
    "the tighter target, 1e-2 for 1e-3": {"target_ratio": 1e-3},
}


def numbers(guide: Guide) -> dict[str, float]:
    """Return what of a guide may change without compiling anew."""
    return {name: value for name, value in guide._asdict().items() if name not in COUNTS}


def runs(
    policy: optax_meta.Policy,
    task: Task,
    optimizer: str,
    steps: int,
    seeds: int,
    starts: tuple[float, ...] = (1e-3,),
) -> Any:
    """Return jitted (policy parameters, `numbers` of guides) → trajectories.

    Both are stacked; the leading axes are [K, starts, seeds].
    """

    def one(
        params: Any, guide: dict[str, jax.Array], start: jax.Array, key: jax.Array
    ) -> optax_meta.Trajectory:
        return optax_meta.rollout(
            policy._replace(params=params, guide=policy.guide._replace(**guide)),
            task,
            key,
            total_steps=steps,
            optimizer=OPTIMIZERS[optimizer],
            learning_rate=start,
        )

    keys = jax.random.split(jax.random.key(11), seeds)
    over_seeds = jax.vmap(one, (None, None, None, 0))
    every = jax.vmap(jax.vmap(over_seeds, (None, None, 0, None)), (0, 0, None, None))
    # Much is compiled for short runs.
    quickly = {"xla_backend_optimization_level": 1}
    return jax.jit(
        lambda params, guides: every(params, guides, jnp.float32(starts), keys),
        compiler_options=quickly,
    )


def stacked(*trees: Any) -> Any:
    """Stack what several policies, or guides, have in the same places."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *trees)


def knocked_out(params: Any, mean: jax.Array, feature: int) -> Any:
    """Return the parameters of a policy that sees the mean of one feature."""
    first = params["params"]["Dense_0"]
    row = first["kernel"][feature]
    bias = first["bias"] + mean[feature] * row
    layer = {"kernel": first["kernel"].at[feature].set(0.0), "bias": bias}
    return {"params": {**params["params"], "Dense_0": layer}}


def log_losses(trajectories: optax_meta.Trajectory, floor: float = 0.0) -> np.ndarray:
    """Return logs of final losses above `floor`; a lost run counts one nat above its start."""
    final, initial = (np.asarray(x["loss"], float) - floor for x in trajectories[-1:-3:-1])
    final = np.where(final < 1e-6 * initial, 1e-6 * initial, final)
    return np.log(np.where(np.isfinite(final), np.minimum(final, np.e * initial), np.e * initial))


def interval(logs: np.ndarray) -> list[float]:
    """Return the bootstrap interval of the geometric mean over seeds, from logs, float[C, S]."""
    means = [np.exp(np.mean(drawn)) for drawn in protocol.resampled([*logs[:, None]])]
    return np.percentile(means, [2.5, 97.5]).tolist()


Row = tuple[str, Any, Guide]


def rows_without(policy: optax_meta.Policy, hold: Any) -> dict[tuple[int, ...], list[Row]]:
    """Return what runs without parts of the guide, by the counts that are compiled in."""
    found: dict[tuple[int, ...], list[Row]] = {}
    for part, change in WITHOUT.items():
        guide = policy.guide._replace(**change)
        counts = tuple(getattr(guide, name) for name in COUNTS)
        rows = ("without", policy.params), ("hold, without", hold)
        found.setdefault(counts, []).extend((f"{how} {part}", p, guide) for how, p in rows)
    return found


def losses_of(run: Any, rows: Sequence[Row], floor: float) -> dict[str, np.ndarray]:
    """Run them; return log final losses, the mean over starts, float[S] each."""
    names, params, guides = zip(*rows, strict=True)
    ran = run(stacked(*params), stacked(*map(numbers, guides)))
    return dict(zip(names, log_losses(ran, floor).mean(axis=1), strict=True))


def judge(
    policy: optax_meta.Policy, of_cell: Callable[..., Any], floor: float
) -> dict[str, np.ndarray]:
    """Return log final losses over those of the whole policy, float[S], by what was changed."""
    guide, features = policy.guide, policy.encoder.features
    hold = holding(policy).params
    without = rows_without(policy, hold)
    same = without.pop(tuple(getattr(guide, name) for name in COUNTS))
    rows = [("whole", policy.params, guide), ("hold", hold, guide), *same]
    run, size = of_cell(policy), len(rows) + len(features)
    seen = run(stacked(*[policy.params] * size), stacked(*[numbers(guide)] * size))
    weight = seen.mask[..., None]
    mean = jnp.sum(seen.observation * weight, (0, 1, 2, 3)) / jnp.sum(weight)
    for i, name in enumerate(features):
        rows.append((name, knocked_out(policy.params, mean, i), guide))
    found = losses_of(run, rows, floor)
    for counts, others in without.items():
        changed = policy._replace(guide=guide._replace(**dict(zip(COUNTS, counts, strict=True))))
        starts = (1e-3,) if changed.guide.calibration_steps else STARTS
        found |= losses_of(of_cell(changed, starts=starts), others, floor)
    base = found.pop("whole")
    return {name: losses - base for name, losses in found.items()}


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--policy", default="any-lr-v1", help="name or path")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    policy = optax_meta.load_policy(options.policy)
    rows: dict[str, list[np.ndarray]] = {}
    for task in (make() for make in VALIDATION.values()):
        for optimizer in NAMES:
            of_cell = partial(
                runs, task=task, optimizer=optimizer, steps=options.steps, seeds=options.seeds
            )
            for name, losses in judge(policy, of_cell, task.floor).items():
                rows.setdefault(name, []).append(losses)
            jax.clear_caches()
            print(task.name, optimizer, flush=True)
    result: dict[str, Any] = {"versions": library_versions(), "policy": options.policy}
    result["loss_over_whole"] = {}
    for name, parts in rows.items():
        logs = np.stack(parts)
        error = logs.mean(axis=0).std(ddof=1) / math.sqrt(options.seeds)
        ratio = float(np.exp(logs.mean()))
        result["loss_over_whole"][name] = {"ratio": ratio, "standard_error": float(ratio * error)}
        print(f"{name:50s} {ratio:6.3f} ± {2.0 * ratio * error:.3f}")
    (HERE / "ablation.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
