"""REINFORCE or evolution strategies: which learns more from the same training runs?

Both start from the same policy, draw the same tasks and take the same number of inner steps, with
the recipe of `any-lr-v2`, the first half of the updates shaped; each is then judged on the
validation tier by its final loss over that of holding. The interval is that of a bootstrap over
runs. Writes `learners.json`.

    python benchmarks/learners.py --updates 48
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from frozen import settings
from stacked_runs import NAMES, interval, log_losses, runs, stacked
from validation_tasks import VALIDATION

from optax_meta.meta.evaluation import library_versions
from optax_meta.meta.runs import any_lr

HERE = Path(__file__).parent
LEARNERS = {
    "reinforce": {"learner": "reinforce"},
    "evolution": {"learner": "evolution"},
    "evolution, ten times the rate": {"learner": "evolution", "policy_learning_rate": 1e-2},
}


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--updates", type=int, default=48)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--meta-seeds", type=int, default=2)
    options = parser.parse_args()
    found: dict[str, list[np.ndarray]] = {name: [] for name in LEARNERS}
    inner_steps: dict[str, float] = {}
    cells = [(task(), optimizer) for task in VALIDATION.values() for optimizer in NAMES]
    trained = {}
    for name, extra in LEARNERS.items():
        halves = {"shaped_updates": options.updates // 2}
        trainer = any_lr(groups=options.groups, **halves, **extra)
        for seed in range(options.meta_seeds):
            state = trainer.init(seed)
            for _ in range(options.updates):
                state, _info = trainer.update(state)
            trained[name, seed] = trainer.policy(state).params
            inner_steps[name] = float(state.num_inner_steps)
            print(name, seed, f"{inner_steps[name]:.3g} inner steps", flush=True)
    trainer = any_lr(groups=options.groups)
    policy = trainer.policy(trainer.init(0))
    for task, optimizer in cells:
        run = runs(policy, task, optimizer, options.steps, options.seeds)
        policies = [policy, *(policy._replace(params=params) for params in trained.values())]
        base, *ends = log_losses(run(stacked(*map(settings, policies))))
        for (name, _), end in zip(trained, ends, strict=True):
            found[name].append(end - base)
        jax.clear_caches()
    result: dict[str, object] = {"versions": library_versions(), "updates": options.updates}
    rows = {}
    for name, logs in found.items():
        runs_of = np.stack(logs).reshape(len(cells), options.meta_seeds, -1)
        by_seed = runs_of.mean((0, 2))
        rows[name] = {
            "inner_steps": inner_steps[name],
            "loss_over_hold": float(np.exp(by_seed.mean())),
            "interval": interval(runs_of.reshape(len(cells), -1)),
            "by_meta_seed": np.exp(by_seed).tolist(),
        }
        print(name, rows[name])
    (HERE / "learners.json").write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
