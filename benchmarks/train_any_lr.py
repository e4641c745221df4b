"""Learn `any-lr-v2`: by evolution, on small real networks and on toys, around the distance rule.

    python benchmarks/train_any_lr.py --seed 0 --updates 60 --out learned/0

It goes on where it was stopped.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from real_families import FAMILIES as REAL

import optax_meta
from optax_meta.meta.runs import any_lr, train
from optax_meta.meta.training import MetaTrainer


def trainer() -> MetaTrainer:
    """Return what learns: each update sees seven families, four tasks of each, two pairs a task."""
    real = [make() for make in REAL.values()]
    return any_lr(families=real, groups=4, rollouts=4, vectorized=False)


def _show(updates: int, done: int, info: dict[str, Any]) -> None:
    falls = [value for name, value in info.items() if name.startswith("fall/")]
    print(f"{done} of {updates}: log-loss fell by {sum(falls) / len(falls):.3f}", flush=True)


def main() -> None:
    """Run the training, and write the policy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    made, length = trainer(), {"updates": options.updates, "seed": options.seed}
    policy = train(made, options.out, **length, progress=partial(_show, options.updates))
    notes = {"command": f"python {Path(__file__).name} --seed {options.seed}", **length}
    notes |= {"distribution": dict(made.description)}
    optax_meta.save_policy(policy, options.out / "any-lr-v2.policy", notes=notes)


if __name__ == "__main__":
    main()
