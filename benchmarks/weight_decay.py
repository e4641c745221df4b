"""Does `adamw-lr-wd-v2` find the weight decay that a grid would?

Small tables that a network overfits, judged by the loss on held-out rows. All runs have the rate
chosen by `any-lr-v2`; five of them keep a weight decay of the grid, the best of which, by its mean
over the seeds scored, is what the policy's loss is divided by: an oracle that sees the answer.
Writes `weight_decay.json`.

    python benchmarks/weight_decay.py
    python benchmarks/weight_decay.py --tier validation --policies mine.policy
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from stacked_runs import interval, stacked

import optax_meta
from optax_meta import families
from optax_meta.meta.evaluation import library_versions
from optax_meta.meta.tasks import MLP, Task

HERE = Path(__file__).parent
GRID = (1e-4, 1e-2, 1e-1, 1.0, 10.0)
STARTS = (1e-4, 1.0)
HORIZONS = (300, 1000)
LARGEST = 2.0


def split(x: Any, y: Any, model: MLP, rows: int, loss: Callable[..., Any], key: jax.Array) -> Task:
    """Return the task of fitting `rows` random rows, judged on the others."""
    order = jax.random.permutation(key, len(x))
    x, y = jnp.asarray(x, jnp.float32)[order], jnp.asarray(y)[order]

    def value(params: Any, batch: Any) -> jax.Array:
        return jnp.mean(loss(jnp.asarray(model.apply(params, batch[0])), batch[1]))

    def sample(key: jax.Array) -> Any:
        row = jax.random.randint(key, (32,), 0, rows)
        return x[row], y[row]

    held_out = (x[rows:], y[rows:])
    return Task(
        "split",
        "held-out rows",
        lambda key: model.init(key, x[:1]),
        sample,
        value,
        lambda params: {"loss": value(params, held_out)},
    )


def digits(key: jax.Array) -> Task:
    """Return 200 digits, a tenth of them with a wrong label; MLP 64-64-10."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    wrong = np.random.default_rng(0).random(len(y)) < 0.1
    labels = np.where(wrong, (y + 1) % 10, y).astype(np.int32)
    return split(x / 16.0, labels, MLP((64, 10)), 200, cross_entropy, key)


def diabetes(key: jax.Array) -> Task:
    """Return 150 patients, a regression; MLP 10-50-50-1."""
    from sklearn.datasets import load_diabetes

    x, y = map(np.asarray, load_diabetes(return_X_y=True))

    def square(out: jax.Array, target: jax.Array) -> jax.Array:
        return (out[:, 0] - target) ** 2

    y = np.asarray((y - y.mean()) / y.std(), np.float32)
    return split(20.0 * x, y, MLP((50, 50, 1)), 150, square, key)


def sparse(key: jax.Array) -> Task:
    """Return 120 rows of 60 columns, three of which matter; a linear classifier."""
    x_key, y_key, split_key = jax.random.split(key, 3)
    x = jax.random.normal(x_key, (1120, 60))
    logits = 3.0 * jnp.stack([x[:, 0] - x[:, 1], x[:, 2], jnp.zeros(1120)], axis=-1)
    y = jax.random.categorical(y_key, logits)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return split(x, y, MLP((3,)), 120, cross_entropy, split_key)


def of_family(family: Any, key: jax.Array) -> Task:
    """Return a random task of a family."""
    return family.build(family.sample(key))


def validation() -> dict[str, Callable[[jax.Array], Task]]:
    """Return the tier that may choose: other sizes and activations than were trained on."""
    net = families.networks
    made = {
        "silu": net(sizes=(10, 40, 3), activation=jax.nn.silu, rows=160),
        "regression": net(sizes=(16, 32, 32, 32, 2), classify=False, batch_size=24, rows=320),
        "tanh": net(sizes=(30, 30, 8), activation=jnp.tanh, rows=224, batch_size=16),
    }
    return {name: partial(of_family, family) for name, family in made.items()}


TEST = {"digits": digits, "diabetes": diabetes, "sparse": sparse}


def final_losses(policy: optax_meta.Policy, make: Any, seeds: int) -> Any:
    """Return (stacked policies, weight decays, steps) → held-out losses, float[P, K, S]."""
    learned = partial(optax_meta.learned, policy)
    longest = max(learned(total_steps=steps).num_decisions(steps) for steps in HORIZONS)
    keys = jax.random.split(jax.random.key(5), seeds)

    def run(params: Any, decay: jax.Array, key: jax.Array, steps: jax.Array) -> jax.Array:
        task_key, run_key = jax.random.split(key)
        out = optax_meta.rollout(
            policy._replace(params=params),
            make(task_key),
            run_key,
            total_steps=steps,
            max_decisions=longest,
            optimizer=partial(optax.adamw, weight_decay=decay),
        )
        return out.final["loss"]

    over_seeds = jax.vmap(run, (None, None, 0, None))
    over_decays = jax.vmap(over_seeds, (None, 0, None, None))
    every = jax.jit(jax.vmap(over_decays, (0, None, None, None)))

    def losses(params: Any, decays: tuple[float, ...], steps: int) -> np.ndarray:
        return np.asarray(every(params, jnp.float32(decays), keys, jnp.int32(steps)), float)

    return losses


def geometric(values: Any) -> float:
    """Return the geometric mean."""
    return float(np.exp(np.mean(np.log(values))))


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tier", choices=("test", "validation"), default="test")
    parser.add_argument("--policies", nargs="*", default=["adamw-lr-wd-v2"], help="names or paths")
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    tier = TEST if options.tier == "test" else validation()
    base = optax_meta.load_policy("any-lr-v2")
    ours = {name: optax_meta.load_policy(name) for name in options.policies}
    for name, policy in [*ours.items()]:
        calibrated = {**policy.wrappers["calibrated"], "largest_decay": LARGEST}
        wrappers = {**policy.wrappers, "calibrated": calibrated}
        ours[f"{name}, largest_decay={LARGEST:g}"] = policy._replace(wrappers=wrappers)
    rows = []
    for task, make in tier.items():
        on_grid = final_losses(base, make, options.seeds)
        runs = {name: final_losses(policy, make, options.seeds) for name, policy in ours.items()}
        for steps in HORIZONS:
            [grid] = on_grid(stacked(base.params), GRID, steps)
            means = [geometric(losses) for losses in grid]
            best = int(np.argmin(means))
            row = {"task": task, "steps": steps, "best": GRID[best]}
            row["grid"] = [mean / means[best] for mean in means]
            row["logs"] = {}
            for name, policy in ours.items():
                [found] = runs[name](stacked(policy.params), STARTS, steps)
                row["logs"][name] = np.log(found / grid[best]).mean(0).tolist()
            rows.append(row)
            shown = {name: round(float(np.exp(np.mean(x))), 3) for name, x in row["logs"].items()}
            print(task, steps, np.round(row["grid"], 3), shown, flush=True)
    summary = {}
    for name in rows[0]["logs"]:
        logs = np.array([row["logs"][name] for row in rows])
        summary[name] = {"ratio": float(np.exp(logs.mean())), "interval": interval(logs)}
    summary["one decay of the grid for all"] = {
        f"{decay:g}": geometric([row["grid"][k] for row in rows]) for k, decay in enumerate(GRID)
    }
    print(json.dumps(summary, indent=1))
    if options.tier == "test":
        result = {"versions": library_versions(), "seeds": options.seeds, "summary": summary}
        (HERE / "weight_decay.json").write_text(
            json.dumps(result | {"rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
