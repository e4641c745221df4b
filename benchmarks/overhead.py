"""What does a controller cost, beside plain AdamW and Optax's own adaptive methods?

XLA bytes accessed per parameter and step, of one donated update of a million parameters in 1, 10
and 100 leaves and of a Flax transformer's, and of a whole training step (loss, gradient, update) of
that transformer; state leaves, extra state bytes, compile time; and two times as ratio to plain
AdamW, median of interleaved repeats in this process: of the update alone at 1e3, 1e5 and 1e7
parameters, and of a whole training step of MLPs of about these sizes. Writes `overhead.json` beside
this script and prints the table.

    python benchmarks/overhead.py            # all sizes, about 8 minutes
    python benchmarks/overhead.py --quick    # without 1e7
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_meta
from optax_meta.meta.evaluation import library_versions

Transformation = optax.GradientTransformation
ANY_LR = optax_meta.load_policy("any-lr-v2")
HERE = Path(__file__).parent
RATE, DECAY = 1e-3, 1e-4
WIDTHS = (24, 240, 2240)


def controlled(controller: optax_meta.Controller) -> Callable[[], Transformation]:
    """Return AdamW under a controller."""
    factory = optax_meta.control_hyperparams(optax.adamw, controller)
    return lambda: factory(learning_rate=RATE, weight_decay=DECAY)


PEERS: dict[str, Callable[[], Transformation]] = {
    "adamw": lambda: optax.adamw(RATE, weight_decay=DECAY),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(RATE, weight_decay=DECAY),
    "reduce_on_plateau": lambda: optax.chain(
        optax.adamw(RATE, weight_decay=DECAY), optax.contrib.reduce_on_plateau()
    ),
    "reduce_on_plateau + inject": lambda: optax.chain(
        optax.inject_hyperparams(optax.adamw)(RATE, weight_decay=DECAY),
        optax.contrib.reduce_on_plateau(),
    ),
    "schedule_free_adamw": lambda: optax.contrib.schedule_free_adamw(RATE, weight_decay=DECAY),
    "prodigy": lambda: optax.contrib.prodigy(1.0, weight_decay=DECAY),
    "dadapt_adamw": lambda: optax.contrib.dadapt_adamw(1.0, weight_decay=DECAY),
    "mechanize(adamw)": lambda: optax.contrib.mechanize(optax.adamw(RATE, weight_decay=DECAY)),
    # What every exact gradient norm costs, since it must be known before the first update is made.
    "clip_by_global_norm + adamw": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(RATE, weight_decay=DECAY)
    ),
    "apply_if_finite(adamw)": lambda: optax.apply_if_finite(
        optax.adamw(RATE, weight_decay=DECAY), 5
    ),
}
OURS: dict[str, Callable[[], Transformation]] = {
    "constant": controlled(optax_meta.constant()),
    "plateau": controlled(optax_meta.plateau()),
    "warmup_plateau": controlled(optax_meta.warmup_plateau(100)),
    "hypergradient": controlled(optax_meta.hypergradient()),
    "learned": controlled(optax_meta.learned(optax_meta.init_policy(jax.random.key(0)))),
    "reinforce": controlled(optax_meta.reinforce()),
    "distance": controlled(optax_meta.distance(total_steps=1000)),
    "any-lr-v2": controlled(optax_meta.learned(ANY_LR, total_steps=1000)),
    "reinforce(any-lr-v2)": controlled(optax_meta.reinforce(ANY_LR, total_steps=1000)),
}
METHODS = PEERS | OURS


def make_update(tx: Transformation) -> Callable[..., Any]:
    """Return the optimizer's part of a step; donated and returned in the order that XLA aliases."""
    wrapped = optax.with_extra_args_support(tx)

    def update(params: Any, state: Any, grads: Any, value: jax.Array) -> tuple[Any, Any]:
        updates, state = wrapped.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    return update


class Transformer(nn.Module):
    """A small causal decoder: 0.8 million parameters in 68 leaves, most of them in a few."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return logits, float32[batch, time, 64]."""
        mask = nn.make_causal_mask(tokens)
        x = nn.Embed(64, 128)(tokens)
        for _ in range(4):
            x += nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x), mask=mask)
            x += nn.Dense(128)(nn.gelu(nn.Dense(512)(nn.LayerNorm()(x))))
        return nn.Dense(64)(nn.LayerNorm()(x))


TOKENS = jax.ShapeDtypeStruct((8, 32), jnp.int32)
LEAVES = (1, 10, 100)


def leaves(count: int, size: int = 10**6) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of `size` parameters in equal matrices."""
    shape = (100, size // count // 100)
    return {f"p{i}": jax.ShapeDtypeStruct(shape, jnp.float32) for i in range(count)}


def transformer() -> Any:
    """Return the shapes of the transformer's parameters."""
    return jax.eval_shape(Transformer().init, jax.random.key(0), TOKENS)


def count_params(params: Any) -> int:
    """Return the number of coordinates of a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def compile_update(tx: Transformation, params: Any) -> Any:
    """Compile one donated update of parameters of these shapes."""
    state = jax.eval_shape(tx.init, params)
    value = jax.ShapeDtypeStruct((), jnp.float32)
    lowered = jax.jit(make_update(tx), donate_argnums=(0, 1)).lower(params, state, params, value)
    return lowered.compile()


def compile_training_step(tx: Transformation) -> Any:
    """Compile one donated training step of the transformer: loss, gradient, update."""
    update, params = make_update(tx), transformer()

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        logits = jnp.asarray(Transformer().apply(params, tokens))[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def step(params: Any, state: Any, tokens: jax.Array) -> Any:
        value, grads = jax.value_and_grad(loss)(params, tokens)
        return update(params, state, grads, value)

    state = jax.eval_shape(tx.init, params)
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, TOKENS).compile()


def bytes_per_param(compiled: Any, params: Any) -> float:
    """Return XLA's count of bytes accessed, over the number of parameters."""
    return compiled.cost_analysis()["bytes accessed"] / count_params(params)


def state_size(tx: Transformation, size: int = 10**6) -> tuple[int, int]:
    """Return the number of leaves of the state and its bytes for `size` parameters."""
    params = jax.ShapeDtypeStruct((size,), jnp.float32)
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    return len(leaves), sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def step_times(size: int, repeats: int) -> dict[str, list[float]]:
    """Time blocks of updates, methods alternating; return seconds a step for each repeat."""
    params = jnp.full((size,), 0.1)
    grads = jax.random.normal(jax.random.key(0), (size,))
    value = jnp.float32(1.0)
    runs = {}
    for name, make in METHODS.items():
        tx = make()
        update = jax.jit(make_update(tx), donate_argnums=(0, 1))
        # Copies: some peers keep the parameters themselves in their state, which donation deletes.
        runs[name] = (update, jax.tree.map(jnp.copy, (params, tx.init(params))))
    return interleaved(runs, (grads, value), max(3, min(200, 10**6 // size)), repeats)


def interleaved(
    runs: dict[str, Any], inputs: tuple[jax.Array, ...], block: int, repeats: int
) -> dict[str, list[float]]:
    """Time blocks of (params, state, *inputs) → (params, state), methods alternating."""
    runs = dict(runs)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(-1, repeats):
        for name, (update, carry) in runs.items():
            params, state = carry
            start = time.perf_counter()
            for _ in range(block):
                params, state = update(params, state, *inputs)
            jax.block_until_ready((params, state))
            runs[name] = (update, (params, state))
            if repeat >= 0:  # the first block compiles
                times[name].append((time.perf_counter() - start) / block)
    return times


def training_step_times(width: int, repeats: int) -> tuple[int, dict[str, list[float]]]:
    """Time blocks of whole training steps of an MLP; return its size and seconds a step."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((width, width), (width, width), (width, 1))
    params = [0.3 * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=False)]
    x, size = jax.random.normal(keys[3], (32, width)), sum(p.size for p in params)

    def loss(params: list[jax.Array], x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(jnp.tanh(x @ params[0]) @ params[1])
        return jnp.mean(jnp.square(hidden @ params[2] - x[:, :1]))

    runs = {}
    for name, make in METHODS.items():
        tx = make()
        update = make_update(tx)

        def step(params: Any, state: Any, x: jax.Array, update: Any = update) -> Any:
            value, grads = jax.value_and_grad(loss)(params, x)
            return update(params, state, grads, value)

        carry = jax.tree.map(jnp.copy, (params, tx.init(params)))
        runs[name] = (jax.jit(step, donate_argnums=(0, 1)), carry)
    return size, interleaved(runs, (x,), max(3, min(200, 10**6 // size)), repeats)


def import_seconds() -> dict[str, float]:
    """Time importing the package after jax, optax and flax; the best of five fresh processes."""
    code = (
        "import time, jax, optax, flax, flax.linen; start = time.perf_counter(); "
        "import optax_meta; {}; print(time.perf_counter() - start)"
    )
    uses = {
        "import": "None",
        "and use every name": "[getattr(optax_meta, n) for n in dir(optax_meta)]",
    }
    return {
        label: min(
            float(subprocess.check_output([sys.executable, "-c", code.format(use)]))  # noqa: S603
            for _ in range(5)
        )
        for label, use in uses.items()
    }


def measure(sizes: tuple[int, ...]) -> dict[str, Any]:
    """Measure everything."""
    rows: dict[str, dict[str, Any]] = {name: {} for name in METHODS}
    lean = state_size(METHODS["adamw"]())
    trees = {f"in_{count}": leaves(count) for count in LEAVES} | {"of_transformer": transformer()}
    for name, make in METHODS.items():
        for label, params in trees.items():
            rows[name][f"bytes_{label}"] = bytes_per_param(compile_update(make(), params), params)
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(3):
        for name, make in METHODS.items():
            start = time.perf_counter()
            compiled = compile_training_step(make())
            seconds[name].append(time.perf_counter() - start)
            rows[name]["bytes_of_training_step"] = bytes_per_param(compiled, transformer())
    for name, make in METHODS.items():
        row = rows[name]
        above = row["bytes_of_training_step"] - rows["adamw"]["bytes_of_training_step"]
        row["training_step_bytes_above_adamw"] = above
        num_leaves, size = state_size(make())
        row |= {"state_leaves": num_leaves, "extra_state_bytes": size - lean[1]}
        row["compile_ratio"] = float(np.median(np.divide(seconds[name], seconds["adamw"])))
    for size in sizes:
        times = step_times(size, repeats=15 if size > 10**6 else 40)
        for name in METHODS:
            ratios = np.divide(times[name], times["adamw"])
            rows[name][f"step_ratio_{size:.0e}"] = float(np.median(ratios))
            rows[name][f"step_microseconds_{size:.0e}"] = 1e6 * float(np.median(times[name]))
    for width in WIDTHS[: len(sizes)]:
        size, times = training_step_times(width, repeats=15 if width > 1000 else 40)
        for name in METHODS:
            ratio = float(np.median(np.divide(times[name], times["adamw"])))
            rows[name][f"training_ratio_{size:.0e}"] = ratio
    return {"versions": library_versions(), "import_seconds": import_seconds(), "rows": rows}


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    first = next(iter(results["rows"].values()))
    columns = [name for name in first if not name.startswith("step_microseconds")]
    lines = [
        f"| {' | '.join(['method', *(c.replace('_', ' ') for c in columns)])} |",
        "|" + "---|" * (len(columns) + 1),
    ]
    for name, row in results["rows"].items():
        cells = [f"{row[c]:.2f}" if isinstance(row[c], float) else str(row[c]) for c in columns]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="without 1e7 parameters")
    sizes = (10**3, 10**5) if parser.parse_args().quick else (10**3, 10**5, 10**7)
    results = measure(sizes)
    (HERE / "overhead.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    print(f"\nimport optax_meta after jax, optax and flax: {results['import_seconds']}")
