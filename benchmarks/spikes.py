"""Does a run end where it would have without spikes, bad batches and corrupt rows?

An MLP of 13,000 parameters on MNIST's digits at 14 × 14 pixels. Each run is hit early, in the
middle or late, once, ten times or ten times in a row, by one kind of fault, and its held-out loss
is divided by that of the same run without. One kind is none: another sound batch in place of that
which was drawn, which shows how far two sound runs lie apart. Intervals are those of a bootstrap
over faults and seeds. Writes `spikes.json`, row by row, and goes on where it was stopped.

    python benchmarks/spikes.py
"""

import argparse
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from real_data import mnist
from real_tasks import mean_loss

import optax_meta
from optax_meta.meta.tasks import MLP
from optax_meta.meta.versions import library_versions

HERE = Path(__file__).parent
KINDS = (
    "none",
    "another batch",
    "gradients × 100",
    "gradients × 10,000",
    "labels shuffled",
    "a row × 1000",
    "a row of nan",
    "loss × 1000",
)
TIMES = {"early": 0.05, "middle": 0.5, "late": 0.85}
"""Share of the run at which the first fault comes."""
PATTERNS = {"once": (1, 1), "ten times": (10, 4), "ten in a row": (10, 1)}
"""How many faults, and how many steps apart."""
BATCH = 16
CLOSE = 1.03


class Fault(NamedTuple):
    """What befalls a run, int32[] each; all traced.

    Attributes:
        kind: index into `KINDS`.
        start: step of the first.
        number: how many.
        gap: steps from one to the next.
    """

    kind: Any
    start: Any
    number: Any
    gap: Any


Made = Callable[[int], optax.GradientTransformation]
"""Steps → what a run is trained with."""


def controlled(factory: Any, make: Callable[[int], Any], on_spike: Any = "record") -> Made:
    """Return an optimizer under a controller, with what it does about spikes."""
    return lambda steps: optax_meta.control_hyperparams(factory, make(steps), on_spike=on_spike)(
        learning_rate=1e-3
    )


def policy(name: str) -> Callable[[int], Any]:
    """Return a shipped policy."""
    return lambda steps: optax_meta.learned(name, total_steps=steps)


def falling(steps: int) -> Any:
    """Return a rate that falls linearly, with no guard of its own: what a user has today."""
    return optax_meta.annealed(optax_meta.constant(), total_steps=steps)


def momentum(learning_rate: Any) -> optax.GradientTransformation:
    """Return SGD with momentum."""
    return optax.sgd(learning_rate, momentum=0.9)


def adamw(learning_rate: Any, weight_decay: Any = 0.1) -> optax.GradientTransformation:
    """Return AdamW."""
    return optax.adamw(learning_rate, weight_decay=weight_decay)


CONTROLLED: dict[str, tuple[Any, Callable[[int], Any]]] = {
    "any-lr-v2, AdamW": (adamw, policy("any-lr-v2")),
    "any-lr-v2, momentum": (momentum, policy("any-lr-v2")),
    "adamw-lr-wd-v2": (adamw, policy("adamw-lr-wd-v2")),
    "distance, AdamW": (adamw, lambda steps: optax_meta.distance(total_steps=steps)),
    "linear fall from 1e-3, AdamW": (adamw, falling),
    "linear fall from 1e-2, momentum": (
        lambda learning_rate: momentum(10.0 * learning_rate),
        falling,
    ),
}
SHIPPED = ("any-lr-v2, AdamW", "any-lr-v2, momentum", "adamw-lr-wd-v2")
ACTIONS = ("record", "clip", "skip", "roll_back", "clip_by_global_norm(1)")


def method(name: str, action: str) -> Made:
    """Return what a row of the table trains with."""
    factory, make = CONTROLLED[name]
    if action in ACTIONS[:-1]:
        return controlled(factory, make, action)
    plain = controlled(factory, make)
    return lambda steps: optax.chain(optax.clip_by_global_norm(1.0), plain(steps))


def data() -> tuple[Any, Any]:
    """Return what is trained on and what is held out: inputs float32[N, 196], classes int32[N]."""

    def small(rows: Any) -> tuple[jax.Array, jax.Array]:
        pixels = rows.x.reshape(-1, 14, 2, 14, 2).mean((2, 4))
        return jnp.asarray(pixels.reshape(len(pixels), -1)), jnp.asarray(rows.y)

    train, test = mnist("validation")
    return small(train), small(test)


def faulty_batch(kind: jax.Array, key: jax.Array, batch: Any) -> Any:
    """Return a batch after a fault of its kind; of most kinds it is the same."""
    x, y = batch
    first_row = (jnp.arange(len(x)) == 0)[:, None]
    x = jnp.where((kind == 5) & first_row, 1000.0 * x, x)
    x = jnp.where((kind == 6) & first_row, jnp.nan, x)
    return x, jnp.where(kind == 4, jax.random.permutation(key, y), y)


def faulty_loss(kind: jax.Array, loss: jax.Array, grads: Any) -> tuple[jax.Array, Any]:
    """Return loss and gradients after a fault of its kind."""
    factor = jnp.select([kind == 2, kind == 3], [100.0, 1e4], 1.0)
    return jnp.where(kind == 7, 1000.0 * loss, loss), jax.tree.map(lambda g: factor * g, grads)


def trained(made: Made, steps: int, fault: Fault, seed: jax.Array) -> dict[str, jax.Array]:
    """Return held-out loss, and how many steps leapt, of one run."""
    (inputs, classes), (test_inputs, test_classes) = data()
    model, tx = MLP((64, 10)), optax.with_extra_args_support(made(steps))
    init_key, data_key = jax.random.split(jax.random.key(seed))

    def loss_of(params: Any, batch: Any) -> jax.Array:
        return mean_loss(model.apply(params, batch[0]), batch[1])

    def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
        params, state = carry
        since = t - fault.start
        is_hit = (since >= 0) & (since % fault.gap == 0) & (since < fault.gap * fault.number)
        kind = jnp.where(is_hit, fault.kind, 0)
        key = jax.random.fold_in(jax.random.fold_in(data_key, t), kind == 1)
        rows = jax.random.randint(key, (BATCH,), 0, len(inputs))
        batch = faulty_batch(kind, key, (inputs[rows], classes[rows]))
        loss, grads = faulty_loss(kind, *jax.value_and_grad(loss_of)(params, batch))
        updates, state = tx.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), None

    params = model.init(init_key, inputs[:1])
    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
    figures = {"loss": loss_of(params, (test_inputs, test_classes))}
    return figures | {"spikes": optax_meta.record(state).num_spikes}


def faults(
    steps: int, kinds: Any = KINDS[1:], times: Any = TIMES, patterns: Any = PATTERNS
) -> Fault:
    """Return none, then all faults: kinds × times × patterns; int32[N] each."""
    every = [(0, steps, 1, 1)]
    for kind, time, pattern in itertools.product(kinds, times, patterns):
        every.append((KINDS.index(kind), int(TIMES[time] * steps), *PATTERNS[pattern]))
    return Fault(*np.array(every, np.int32).T)


def runs(made: Made, steps: int, fault: Fault, seeds: Any) -> dict[str, np.ndarray]:
    """Return the figures of each fault and seed, [N, S]."""
    over = jax.vmap(lambda f: jax.vmap(lambda s: trained(made, steps, f, s))(np.uint32(seeds)))
    return {name: np.asarray(x) for name, x in jax.jit(over)(fault).items()}


def ratios(found: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return each run's loss over that of the same run without a fault, float[N - 1, S]."""
    losses = np.nan_to_num(found["loss"], nan=np.inf)
    return losses[1:] / losses[0]


def summary(of: np.ndarray) -> dict[str, Any]:
    """Return the mean of ratios, its interval, and how many lie close; the worst counts as 100."""
    flat = np.minimum(of.reshape(-1), 100.0)
    drawn = np.random.default_rng(0).choice(flat, (2000, flat.size)).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {
        "mean": round(float(flat.mean()), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
        "worst": round(float(flat.max()), 3),
        "within": round(float(np.mean(flat <= CLOSE)), 3),
        "runs": flat.size,
    }


def row(name: str, action: str, steps: int, seeds: int) -> dict[str, Any]:
    """Return a row of the table: over all faults, and by kind, time and pattern."""
    fault = faults(steps)
    found = runs(method(name, action), steps, fault, np.arange(seeds))
    every = ratios(found)
    labels = list(itertools.product(KINDS[1:], TIMES, PATTERNS))
    is_fault = np.array([kind != KINDS[1] for kind, _, _ in labels])

    def by(place: int) -> dict[str, Any]:
        parts = dict.fromkeys(label[place] for label in labels)
        return {
            part: summary(
                every[
                    [
                        at == part and (place == 0 or hit)
                        for at, hit in zip([x[place] for x in labels], is_fault, strict=True)
                    ]
                ]
            )
            for part in parts
        }

    return {
        "method": name,
        "on_spike": action,
        "loss": round(float(found["loss"][0].mean()), 4),
        "false_alarms": float(found["spikes"][0].mean()),
        "all": summary(every[is_fault]),
        "kind": by(0),
        "time": by(1),
        "pattern": by(2),
    }


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--methods", nargs="*", default=list(CONTROLLED))
    parser.add_argument("--actions", nargs="*", default=list(ACTIONS))
    parser.add_argument("--out", type=Path, default=HERE / "spikes.json")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    for name, action in itertools.product(options.methods, options.actions):
        if any((row["method"], row["on_spike"]) == (name, action) for row in rows):
            continue  # made before: remove the file to make all anew
        rows.append(row(name, action, options.steps, options.seeds))
        print(json.dumps(rows[-1]), flush=True)
        about = {"steps": options.steps, "versions": library_versions()}
        options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
