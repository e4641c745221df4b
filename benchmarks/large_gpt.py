"""Does it hold at 30 million parameters? One GPT on all of 20 Newsgroups, ten minutes a method.

The shipped policy, Prodigy with linear decay, and three cosines of AdamW with 5 % warm-up, all for
the same number of steps: as many as AdamW makes in ten minutes, measured beforehand. For each the
held-out loss at the end and the lowest on the way (ten minutes of a fast device are many passes
over 16 MB), the training loss, the time of a step, and what the compiled program needs of the
device's memory at most. bfloat16 compute on an accelerator, float32 parameters.

Writes `large_gpt-gpu.json`, or that of another device, beside this script, after each method. The
same command goes on with the next one; delete the file to begin anew. It needs the text that
`real_data.py` tells how to get.

    python benchmarks/large_gpt.py                     # an hour on one GPU
    python benchmarks/large_gpt.py --small             # a miniature: seconds, on anything
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from real import policies, progress, written
from real_cells import CELLS, OPTIMIZERS, STARTS
from real_data import all_newsgroups
from real_models import GPT
from real_rivals import rivals
from real_running import num_parameters
from real_tables import large_gpt
from real_tasks import next_byte

from optax_meta.meta.protocol import Contender, Run
from optax_meta.meta.tasks import Task, train_step
from optax_meta.meta.versions import library_versions

HERE = Path(__file__).parent
SEED = 0
LOOKS = 20
"""How often the loss on data held out is computed on the way."""
RATES = (3e-4, 1e-3, 3e-3)


class Size(NamedTuple):
    """What is trained.

    Attributes:
        model: the network.
        batch: sequences of a step.
        length: bytes of a sequence.
        block: steps of one call.
    """

    model: GPT
    batch: int
    length: int
    block: int


LARGE = Size(GPT(512, 10, 8), 32, 256, 20)
SMALL = Size(GPT(32, 1, 2), 2, 16, 1)


class Cast(NamedTuple):
    """A network that computes in another type than its parameters have.

    Attributes:
        model: a Flax module.
        dtype: that it computes in.
    """

    model: Any
    dtype: Any

    def init(self, key: jax.Array, x: jax.Array) -> Any:
        """Return the network's parameters, float32."""
        return self.model.init(key, x)

    def apply(self, params: Any, x: jax.Array) -> jax.Array:
        """Return what the network gives, float32."""
        cast = jax.tree.map(lambda p: p.astype(self.dtype), params)
        return self.model.apply(cast, x).astype(jnp.float32)


def methods() -> dict[str, tuple[Contender, float]]:
    """Return the methods by name, and the rate that each starts from."""
    name = "prodigy + linear"
    found = policies(["any-lr-v2"]) | {name: rivals(CELLS["gpt-large-adamw"], 1)[name]}
    cosine = Contender.from_schedule("cosine")
    cosines = {f"cosine {rate:g}": (cosine, rate) for rate in RATES}
    return {name: (made, STARTS["adamw"]) for name, made in found.items()} | cosines


class Program(NamedTuple):
    """A compiled block of steps.

    Attributes:
        start: () → parameters and the optimizer's state.
        block: (those, first step) → those, and the losses, float32[block]; takes what it is given.
        memory: bytes of the device that it needs at most.
        compile_seconds: what compiling took.
    """

    start: Callable[[], Any]
    block: Callable[[Any, int], tuple[Any, jax.Array]]
    memory: int
    compile_seconds: float


def compiled(task: Task, size: Size, contender: Contender, rate: float, steps: int) -> Program:
    """Compile a method."""
    init_key, data_key = jax.random.split(jax.random.key(SEED))
    run = Run(np.float32(rate), np.int32(steps), np.uint32(SEED))

    def start(run: Run) -> Any:
        params = task.init(init_key)
        return params, contender.transformation(OPTIMIZERS["adamw"], run).init(params)

    def block(carry: Any, first: jax.Array, run: Run) -> tuple[Any, jax.Array]:
        tx = contender.transformation(OPTIMIZERS["adamw"], run)

        def step(carry: Any, t: jax.Array) -> tuple[Any, jax.Array]:
            *carry, loss = train_step(task, tx, jax.random.fold_in(data_key, t), t, *carry)
            return tuple(carry), loss

        return jax.lax.scan(step, carry, first + jnp.arange(size.block))

    began = time.monotonic()
    shapes = jax.eval_shape(start, run)
    program = jax.jit(block, donate_argnums=0).lower(shapes, np.int32(0), run).compile()
    took = time.monotonic() - began
    return Program(
        partial(jax.jit(start), run),
        lambda carry, first: program(carry, np.int32(first), run),
        memory_of(program),
        took,
    )


def memory_of(program: Any) -> int:
    """Return the bytes that a program needs at most, what it is given included."""
    found = program.memory_analysis()
    given = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return given + found.temp_size_in_bytes


def steps_within(task: Task, size: Size, seconds: float) -> int:
    """Return how many steps plain AdamW makes in so many seconds, a multiple of the block."""
    program = compiled(task, size, *methods()[f"cosine {RATES[0]:g}"], size.block)
    carry = program.start()
    times = []
    for _ in range(4):  # the first one is not counted
        began = time.monotonic()
        carry, losses = program.block(carry, 0)
        jax.block_until_ready(losses)
        times.append(time.monotonic() - began)
    return max(1, int(seconds / np.median(times[1:]))) * size.block


def trained(
    task: Task, size: Size, program: Program, steps: int, announce: Callable[[str], None]
) -> dict[str, Any]:
    """Train, and return what is written of a method."""
    evaluate = jax.jit(task.evaluate)
    carry = program.start()
    blocks, times, figures = steps // size.block, [], [evaluate(carry[0])]
    looks = {math.ceil(blocks * (look + 1) / LOOKS) for look in range(LOOKS)}
    for done in range(blocks):
        began = time.monotonic()
        carry, losses = program.block(carry, done * size.block)
        loss = float(np.mean(losses))  # waits for the block
        times.append((time.monotonic() - began) / size.block)
        if done + 1 in looks:
            figures.append(evaluate(carry[0]))
            announce(f"training loss {loss:.3f}, held out {figures[-1]['loss']:.3f}")
    curve = [float(figure["loss"]) for figure in figures]
    return {
        **{name: finite(float(value)) for name, value in figures[-1].items()},
        "lowest_loss": finite(float(np.nanmin(curve))),
        "held_out": [finite(value) for value in curve],
        "step_milliseconds": finite(1e3 * float(np.median(times))),
        "memory_bytes": program.memory,
        "compile_seconds": finite(program.compile_seconds),
    }


def said(
    announce: Callable[[str], None], advance: Callable[[], None], name: str, text: str
) -> None:
    """Show how far a method is."""
    announce(f"{name}: {text}")
    advance()


def finite(value: float) -> float | None:
    """Return seven digits of a number as JSON can hold it."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="of each method")
    parser.add_argument("--steps", type=int, help="of each method, in place of measuring them")
    parser.add_argument("--methods", nargs="*", choices=methods(), help="all by default")
    parser.add_argument("--small", action="store_true", help="a miniature of 20 steps")
    parser.add_argument("--folder", type=Path, help="of the file; beside this script by default")
    return parser.parse_args()


def opened(path: Path, options: argparse.Namespace, task: Task, size: Size) -> dict[str, Any]:
    """Return what the file holds, or its beginnings with the number of steps that are to be made.

    Raises:
        SystemExit: the file is of another setting.
    """
    about = {"network": " ".join(str(size.model).split()), "parameters": num_parameters(task)}
    about |= {"batch": size.batch, "length": size.length, "compute": jnp.dtype(compute()).name}
    about |= {"steps": options.steps} if options.steps else {"seconds": options.seconds}
    if not path.exists():
        steps = options.steps or steps_within(task, size, options.seconds)
        return {**about, "steps": steps, "versions": library_versions(), "methods": {}}
    found = json.loads(path.read_text())
    if {name: found.get(name) for name in about} != about:
        raise SystemExit(f"{path} is of another setting: delete it, or give another --folder")
    return found


def compute() -> Any:
    """Return the type that networks compute in: bfloat16 where there is an accelerator."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def task_of(size: Size) -> Task:
    """Return the task of predicting the next byte of all the text."""
    model = Cast(size.model, compute())
    return next_byte("large-gpt", all_newsgroups(), model, size.batch, size.length)


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    """Run the methods that the file does not hold yet, and write each as it ends."""
    size = SMALL if options.small else LARGE
    if options.small and not options.steps:
        options.steps = 20
    if options.steps:
        size = size._replace(block=math.gcd(options.steps, size.block))
    folder = options.folder or (HERE / "real" if options.small else HERE)
    name = "large_gpt_small" if options.small else "large_gpt"
    path = folder / f"{name}-{jax.default_backend()}.json"
    task = task_of(size)
    results = opened(path, options, task, size)
    names = [name for name in options.methods or methods() if name not in results["methods"]]
    with progress(LOOKS * len(names)) as (announce, advance):
        for name in names:
            announce(f"{name}: compiling")
            made, rate = methods()[name]
            program = compiled(task, size, made, rate, results["steps"])
            told = partial(said, announce, advance, name)
            results["methods"][name] = trained(task, size, program, results["steps"], told)
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(written(results))
    return results


def main() -> None:
    """Run and print."""
    print(large_gpt(run_all(parsed())))


if __name__ == "__main__":
    main()
