"""What do the single features and the parts of the wrappers bring to `any-lr-v2`?

Validation tier, so that the answer may choose. A feature is knocked out by giving the policy its
mean in place of its value; nothing is trained again. A part of the wrappers is taken away under the
policy and under one that holds; without the calibration, that survives any start, runs begin at
three of them, with and without what else might save those that are too high. Figures are geometric
means of the final loss, above the least that can be had where that is known, over that of the whole
policy on the same seeds: above 1, the part is missed. Writes `ablation.json`.

    python benchmarks/ablation.py
    python benchmarks/ablation.py --policy mine.policy
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping
from functools import partial, reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from frozen import Settings, changed, compiled_in, holding, settings, with_settings
from protocol import OPTIMIZERS
from validation_tasks import VALIDATION

import optax_meta
from optax_meta import protocol
from optax_meta.meta.evaluation import library_versions
from optax_meta.meta.tasks import Task
from optax_meta.policies import Policy

HERE = Path(__file__).parent
NAMES = ("adamw", "momentum", "lion")
STARTS = (1e-5, 1.0, 10.0)
Change = Callable[[Policy], Policy]


def other(numbers: dict[str, float]) -> Change:
    """Return the change of numbers of the wrappers."""
    return partial(changed, numbers=numbers)


def uncalibrated(policy: Policy) -> Policy:
    """Take the calibration off."""
    wrappers = {name: options for name, options in policy.wrappers.items() if name != "calibrated"}
    return policy._replace(wrappers=wrappers)


def sparse(policy: Policy) -> Policy:
    """Decide no more often at first, unless a wrapper does."""
    return policy._replace(dense_steps=0)


unbound = other({"trust_region.max_share": math.inf, "trust_region.max_growth": math.inf})
WITHOUT: dict[str, tuple[Change, ...]] = {
    "calibration": (uncalibrated,),
    "calibration, bounds": (uncalibrated, unbound),
    "calibration, dense first decisions": (uncalibrated, sparse),
    "calibration, dense first decisions, bounds": (uncalibrated, sparse, unbound),
    "dense first decisions": (sparse,),
    "bounds": (unbound,),
    "bound on the move": (other({"trust_region.max_share": math.inf}),),
    "fall": (other({"annealed.power": 0.0}),),
    "span": (other({"calibrated.span": math.inf}),),
    "longer moves while the distance grows": (other({"calibrated.growing_share": 0.3}),),
    "longer moves": (other({"calibrated.share": 0.1}),),
}


def runs(
    policy: Policy,
    task: Task,
    optimizer: str,
    steps: int,
    seeds: int,
    starts: tuple[float, ...] = (1e-3,),
) -> Callable[[Settings], optax_meta.Trajectory]:
    """Return jitted stacked `Settings` → trajectories, leading axes [K, starts, seeds]."""

    def one(settings: Settings, start: jax.Array, key: jax.Array) -> optax_meta.Trajectory:
        return optax_meta.rollout(
            with_settings(policy, settings),
            task,
            key,
            total_steps=steps,
            optimizer=OPTIMIZERS[optimizer],
            learning_rate=start,
        )

    keys = jax.random.split(jax.random.key(11), seeds)
    over_seeds = jax.vmap(one, (None, None, 0))
    every = jax.vmap(jax.vmap(over_seeds, (None, 0, None)), (0, None, None))
    # Much is compiled for short runs.
    quickly = {"xla_backend_optimization_level": 1}
    return jax.jit(
        lambda settings: every(settings, jnp.float32(starts), keys), compiler_options=quickly
    )


def stacked(*trees: Any) -> Any:
    """Stack what several policies have in the same places."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *trees)


def knocked_out(params: Any, mean: jax.Array, feature: int) -> Any:
    """Return the parameters of a policy that is given the mean of one feature."""
    first = params["params"]["Dense_0"]
    row = first["kernel"][feature]
    bias = first["bias"] + mean[feature] * row
    layer = {"kernel": first["kernel"].at[feature].set(0.0), "bias": bias}
    return {"params": {**params["params"], "Dense_0": layer}}


def log_losses(trajectories: optax_meta.Trajectory, floor: float = 0.0) -> np.ndarray:
    """Return logs of final losses above `floor`; a diverged run counts one nat above its start."""
    final, initial = (np.asarray(x["loss"], float) - floor for x in trajectories[-1:-3:-1])
    final = np.where(final < 1e-6 * initial, 1e-6 * initial, final)
    return np.log(np.where(np.isfinite(final), np.minimum(final, np.e * initial), np.e * initial))


def interval(logs: np.ndarray) -> list[float]:
    """Return the bootstrap interval of the geometric mean over seeds, from logs, float[C, S]."""
    means = [np.exp(np.mean(drawn)) for drawn in protocol.resampled([*logs[:, None]])]
    return np.percentile(means, [2.5, 97.5]).tolist()


def changed_policies(policy: Policy) -> dict[str, Policy]:
    """Return the policy and one that holds, as they are and without parts of the wrappers."""
    hold = holding(policy)
    found = {"whole": policy, "hold": hold}
    for part, changes in WITHOUT.items():
        for label, whole in (("without", policy), ("hold, without", hold)):
            found[f"{label} {part}"] = reduce(lambda p, change: change(p), changes, whole)
    return found


def by_program(policies: Mapping[str, Policy]) -> list[dict[str, Policy]]:
    """Return the policies in groups that share a program."""
    groups: dict[Any, dict[str, Policy]] = {}
    for name, policy in policies.items():
        groups.setdefault(tuple(compiled_in(policy).items()), {})[name] = policy
    return list(groups.values())


def losses_of(run: Any, policies: Mapping[str, Policy], floor: float) -> dict[str, np.ndarray]:
    """Run them; return log final losses, the mean over starts, float[S] each."""
    ran = run(stacked(*map(settings, policies.values())))
    return dict(zip(policies, log_losses(ran, floor).mean(axis=1), strict=True))


def judge(policy: Policy, of_cell: Callable[..., Any], floor: float) -> dict[str, np.ndarray]:
    """Return log final losses over those of the whole policy, float[S], by what was changed."""
    same, *others = by_program(changed_policies(policy))
    run, features = of_cell(policy), policy.encoder.features
    # As many copies as are run next, so that nothing is compiled for their number.
    ran = run(stacked(*[settings(policy)] * (len(same) + len(features))))
    weight = ran.mask[..., None]
    mean = jnp.sum(ran.observation * weight, (0, 1, 2, 3)) / jnp.sum(weight)
    for i, name in enumerate(features):
        same[name] = policy._replace(params=knocked_out(policy.params, mean, i))
    found = losses_of(run, same, floor)
    for group in others:
        [first, *_] = group.values()
        starts = (1e-3,) if "calibrated" in first.wrappers else STARTS
        found |= losses_of(of_cell(first, starts=starts), group, floor)
    base = found.pop("whole")
    return {name: losses - base for name, losses in found.items()}


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--policy", default="any-lr-v2", help="name or path")
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
