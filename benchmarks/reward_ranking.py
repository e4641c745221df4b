"""Does a reward within a run know which level of the rate ends lower?

Small tasks of the validation tier, two optimizers. First the truth: runs at half and at twice the
rate that the wrappers give, to the end. Then runs whose level changes at random every ten steps,
within the same wrappers, and what each reward says of these levels: the slope of the reward (or of
the discounted return from there) over the level, in standard errors. A reward that is right has a
positive slope where twice the rate ends lower. Writes `reward_ranking.json`.

    python benchmarks/reward_ranking.py
    python benchmarks/reward_ranking.py --tasks friedman --steps 1000     # prints alone
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import readme
from real import written
from validation_tasks import VALIDATION

import optax_meta
from optax_meta import actions, policy_gradient, rewards
from optax_meta.meta.evaluation import library_versions
from optax_meta.meta.runs import LEVELS
from optax_meta.meta.tasks import Task, train_step

HERE = Path(__file__).parent
OPTIMIZERS = {"adamw": optax.adamw, "momentum": lambda learning_rate: optax.sgd(learning_rate, 0.9)}
REWARDS = {
    "improvement": rewards.improvement(cost_weight=0.0),
    "log_improvement": rewards.log_improvement(),
    "trend, annealing left in": rewards.trend(annealing_gain=0.0),
    "trend": rewards.trend(),
    "trend, three times the gain taken out": rewards.trend(annealing_gain=0.3),
}
DISCOUNTS = (0.0, 0.9)
SEEDS, TRUTH_SEEDS, CLEAR = 8, 4, 0.05


def _raw(metrics: optax_meta.Metrics, state: Any, hyperparams: Any) -> tuple[jax.Array, Any]:
    del hyperparams
    return metrics.pack(), state


NAMES = optax_meta.Metrics._fields[:-2]
POLICY = optax_meta.init_policy(
    jax.random.key(0),
    encoder=optax_meta.Encoder(lambda: (), _raw, NAMES, "raw", needs_alignment=True),
    action_space=actions.ordered(actions.level("learning_rate", LEVELS), spread=0.7),
    wrappers={"calibrated": {"span": 4.0}, "annealed": {}, "trust_region": {"max_growth": 1.5}},
    hidden_sizes=(),
)


def trained(
    task: Task, optimizer: Any, steps: int, level: jax.Array, seed: jax.Array, samples: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return final excess, and what was seen and chosen at each step.

    Args:
        task: what is trained.
        optimizer: the inner factory.
        steps: length of the run.
        level: that the policy stands at, in nats, float32[].
        seed: of the run and of the levels, uint32[].
        samples: whether levels are drawn, bool[]; else it stays.
    """
    head = {"kernel": jnp.zeros((len(NAMES), 1)), "bias": level[None]}
    policy = POLICY._replace(params={"params": {"head": head}})
    # A spread that is drawn from, or the same policy at its mode.
    drawn = optax_meta.learned(policy, total_steps=steps, seed=seed)
    fixed = optax_meta.learned(policy, total_steps=steps)

    def update(metrics: Any, state: Any, hyperparams: Any) -> Any:
        both = [c.update(metrics, state, hyperparams) for c in (drawn, fixed)]
        return jax.tree.map(lambda a, b: jnp.where(samples, a, b), *both)

    controller = drawn._replace(update=update)
    tx = optax_meta.control_hyperparams(optimizer, controller)()
    init_key, data_key = jax.random.split(jax.random.key(seed))
    params = task.init(init_key)

    def step(carry: Any, t: jax.Array) -> Any:
        params, state, _ = train_step(task, tx, jax.random.fold_in(data_key, t), t, *carry)
        row = optax_meta.record(state).decision
        assert row is not None
        return (params, state), (row.observation, row.action)

    (params, _), rows = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
    return task.evaluate(params)["loss"] - task.floor, *rows


def judged(name: str, kind: str, steps: int) -> dict[str, Any]:
    """Return the truth of a task, and what each reward says."""
    task = VALIDATION[name]()
    run = jax.jit(jax.vmap(lambda *about: trained(task, OPTIMIZERS[kind], steps, *about)))
    levels = np.repeat(np.float32(np.log([0.5, 1.0, 2.0])), TRUTH_SEEDS)
    levels = np.append(levels, np.zeros(SEEDS, np.float32))
    seeds = np.append(np.tile(np.arange(TRUTH_SEEDS), 3), np.arange(SEEDS)).astype(np.uint32)
    excess, seen, chosen = run(levels, seeds, np.arange(len(levels)) >= 3 * TRUTH_SEEDS)
    logs = np.log(np.maximum(excess, 1e-9))[: 3 * TRUTH_SEEDS].reshape(3, TRUTH_SEEDS).mean(1)
    # Every ten steps, after the twenty first, in which the distance is found.
    rows = slice(40, int(0.8 * steps), 10)
    slopes: dict[str, list[float]] = {}
    for reward_name, reward in REWARDS.items():
        for discount in DISCOUNTS:
            label = f"{reward_name}, return" if discount else reward_name
            slopes[label] = [
                slope(np.asarray(_returns(reward, seen[i, rows], discount)), chosen[i, rows])
                for i in range(3 * TRUTH_SEEDS, len(levels))
            ]
    return {
        "task": name,
        "optimizer": kind,
        "steps": steps,
        "half": float(logs[0] - logs[1]),
        "twice": float(logs[2] - logs[1]),
        "slopes": slopes,
    }


def _returns(reward: Any, seen: jax.Array, discount: float) -> jax.Array:
    """Return what each decision but the last earned, float32[D - 1]."""
    metrics = jax.vmap(optax_meta.Metrics.unpack)(seen)
    before, after = (
        jax.tree.map(lambda x, at=at: x[at], metrics) for at in (np.s_[:-1], np.s_[1:])
    )
    earned = jax.vmap(reward)(before, after)
    return policy_gradient.discounted_returns(earned, discount)


def slope(returns: np.ndarray, chosen: jax.Array) -> float:
    """Return the slope of returns over the level in standard errors, a parabola in time removed."""
    level = np.log(np.array(LEVELS))[np.asarray(chosen)][: len(returns)]
    time = np.linspace(-1.0, 1.0, len(returns))
    design = np.stack([np.ones_like(time), time, time**2, level], axis=1)
    fit, *_ = np.linalg.lstsq(design, returns, rcond=None)
    left = returns - design @ fit
    variance = left @ left / max(len(left) - 4, 1)
    error = np.sqrt(variance * np.linalg.pinv(design.T @ design)[3, 3])
    return float(fit[3] / error) if error > 0.0 else 0.0


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="*", choices=VALIDATION, help="prints alone")
    parser.add_argument("--steps", nargs="*", type=int, default=[1000, 5000])
    options = parser.parse_args()
    cells = []
    for steps in options.steps:
        for name in options.tasks or VALIDATION:
            for kind in OPTIMIZERS:
                cell = judged(name, kind, steps)
                cells.append(cell)
                means = {label: round(float(np.mean(x)), 1) for label, x in cell["slopes"].items()}
                print(
                    steps, name, kind, f"{cell['half']:.2f} {cell['twice']:.2f}", means, flush=True
                )
    if not options.tasks:
        results = {"clear": CLEAR, "versions": library_versions(), "cells": cells}
        (HERE / "reward_ranking.json").write_text(written(results))
        readme.write()


if __name__ == "__main__":
    main()
