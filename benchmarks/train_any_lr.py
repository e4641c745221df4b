"""Learn `any-lr-v2`: by evolution, on small real networks and on toys, around the distance rule.

    python benchmarks/train_any_lr.py --seed 0 --updates 60 --out learned/0

It goes on where it was stopped. The policy is a linear map from what it sees to the level of the
rate, within a factor of four of the rule: few numbers, since a run tells one number, how it ended.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import jax
from real_families import FAMILIES as REAL

import optax_meta
from optax_meta import actions, observations
from optax_meta.meta import families
from optax_meta.meta.runs import train
from optax_meta.meta.training import MetaTrainer

TOYS = (
    *("tanh", "deep", "wide", "plain", "narrow", "heavy", "quadratic", "product"),
    *("rare", "transformer", "few-relu", "few-deep"),
)
LEVELS = [2.0 ** (k / 4) for k in range(-8, 9)]
POLICY = optax_meta.init_policy(
    jax.random.key(0),
    encoder=observations.scale_free(),
    action_space=actions.ordered(actions.level("learning_rate", LEVELS)),
    wrappers={
        "calibrated": {"span": 4.0},
        "annealed": {"power": 1.0},
        "trust_region": {"max_share": 2.0, "max_growth": 1.5},
    },
    hidden_sizes=(),
    dense_steps=20,
    num_decisions=100,
)


def trainer() -> MetaTrainer:
    """Return what learns: each update sees seven families, four tasks of each, two pairs a task."""
    toys = {**families.FAMILIES, **families.OVERFITTED}
    made = [make() for make in REAL.values()] + [toys[name]() for name in TOYS]
    return optax_meta.meta_trainer(
        made,
        POLICY,
        learner="evolution",
        optimizers=("adam", "momentum", "lion", "rmsprop"),
        horizons=(150, 1500),
        groups=4,
        rollouts=4,
        families_per_update=7,
        sigma=0.07,
        policy_learning_rate=0.015,
        vectorized=False,
    )


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
