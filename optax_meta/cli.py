"""The command line. Nothing heavy is imported before the arguments are known to be good."""

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, NoReturn, TypeVar

from optax_meta import arguments

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from optax_meta.meta.evaluation import Comparison
    from optax_meta.meta.training import MetaTrainer
    from optax_meta.policies import Policy
    from optax_meta.reports.terminal import Show

_T = TypeVar("_T")

_STOPPED = 130  # what shells report of a program that Ctrl-C ended: 128 + SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for bad input, 130 for Ctrl-C.

    Args:
        argv: arguments without the program's name; None for those of the process.

    Returns:
        The exit code.

    Example:
        >>> optax_meta.cli.main(["compare", "--methods", "constant,foo"])
        2
    """
    try:
        options = arguments.parser().parse_args(argv)
        return _COMMANDS[options.command](options)
    except (ValueError, ImportError) as error:
        print(f"optax-meta: error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except SystemExit as stop:  # argparse after --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("optax-meta: stopped; nothing was written", file=sys.stderr)  # noqa: T201
        return _STOPPED


def _entry() -> NoReturn:
    """Run as a program; after Ctrl-C leave at once, since XLA neither stops nor bears an exit."""
    code = main()
    if code == _STOPPED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _report(options: argparse.Namespace) -> int:
    _require("report", "report", "matplotlib", "jinja2")
    from optax_meta.reports import folder as reports

    print(f"Report: {reports.rebuild_report(options.folder, options.out)}")  # noqa: T201
    return 0


def _watch(options: argparse.Namespace) -> int:
    _require("watch", "report", "matplotlib", "jinja2")
    # Whoever looks on must not take the accelerator's memory from the run.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from optax_meta.reports import watching

    with watching.server(options.folder, options.port) as server:
        address = f"http://{watching.LOOPBACK}:{server.server_address[1]}/"
        print(f"Watching {options.folder} at {address} until Ctrl-C", flush=True)  # noqa: T201
        with contextlib.suppress(KeyboardInterrupt):  # the way it ends
            server.serve_forever()
    return 0


def _compare(options: argparse.Namespace) -> int:
    _require("compare", "report", "rich", "sklearn", "scipy", "matplotlib", "jinja2")
    from optax_meta.reports import folder as reports
    from optax_meta.reports import terminal
    from optax_meta.reports.table import result_table

    # Before the minutes of training, not after: a folder that cannot be written to.
    folder = reports.check_folder(options.out)
    if not sys.stderr.isatty():  # else the progress bar says what happens
        _say("each method takes half a minute to compile, or more")
    with terminal.progress_bar() as show:
        comparison, is_interrupted = _comparison(options, show)
        show("writing the report", 1, 1)
        page = reports.write_report(comparison, folder)
    terminal.print_ranking(comparison, result_table(comparison))
    terminal.print_link("Report", page)
    if is_interrupted:
        left = f"seeds {comparison.seeds} … {options.seeds - 1} are left out"
        _say(f"stopped; {left}. All of them: {_command(options)}")
    return _STOPPED if is_interrupted else 0


def _comparison(options: argparse.Namespace, show: "Show") -> "tuple[Comparison, bool]":
    """Return what was found until the end or Ctrl-C, and whether it was the latter."""
    from optax_meta.meta import evaluation

    methods = {name: name for name in options.methods} | dict(options.controller or [])
    try:
        comparison = evaluation.compare(
            options.task,
            methods,
            learning_rate=options.lr,
            steps=options.steps,
            seeds=options.seeds,
            progress=show,
        )
    except evaluation.Interrupted as stop:
        if stop.partial is None:  # too few seeds for an interval
            raise
        return stop.partial, True
    return comparison, False


def _command(options: argparse.Namespace) -> str:
    """Return the command that was given, with its defaults, to be typed again."""
    methods = ",".join(options.methods)
    parts = ["optax-meta", "compare", "--task", options.task, "--methods", methods]
    for name in ("steps", "seeds", "lr", "out"):
        parts += [f"--{name}", str(getattr(options, name))]
    for name, config in options.controller or []:
        parts += ["--controller", f"{name}={json.dumps(config)}"]
    return shlex.join(parts)


def _say(text: str) -> None:
    print(f"optax-meta: {text}", file=sys.stderr)  # noqa: T201


def _meta_train(options: argparse.Namespace) -> int:
    _require("meta-train", "meta", "rich", "sklearn", "orbax")
    mesh = _mesh(options)
    import jax

    from optax_meta.meta.folder import claim, write_policy
    from optax_meta.meta.runs import RECIPES

    sizes = {"learner": options.learner, "groups": options.groups, "rollouts": options.rollouts}
    settings = {"recipe": options.recipe, "seed": options.seed, **sizes}
    folder, is_first = Path(options.out), jax.process_index() == 0
    # Built before anything is written: what it refuses leaves no folder behind.
    trainer = RECIPES[options.recipe](mesh, **sizes)
    claim(folder, settings, write=is_first)
    try:
        policy = _train(trainer, folder, options)
    except KeyboardInterrupt:
        _say("stopped; the same command goes on from the latest checkpoint")
        if (folder / "log.jsonl").exists():  # after the first update
            _write_page(folder)
        return _STOPPED
    if is_first:
        amount = {"updates": options.updates, "devices": mesh.size}
        source = trainer.description
        path = write_policy(policy, folder, settings, **amount, distribution=source)
        print(f"Policy: {path}")  # noqa: T201
        _write_page(folder)
    return 0


def _fine_tune(options: argparse.Namespace) -> int:
    _require("fine-tune", "meta", "rich", "sklearn", "orbax")
    from optax_meta.meta import own_tasks, tuning
    from optax_meta.reports.terminal import progress_bar

    task = own_tasks.load_task(options.task)
    optimizer = own_tasks.load_optimizer(*options.optimizer)
    folder = Path(options.out)
    if not sys.stderr.isatty():
        _say(f"compiling takes a minute; then `{folder / 'log.jsonl'}` gets a row after each group")
    length = {"steps": options.steps, "groups": options.groups, "seed": options.seed}
    with progress_bar() as show:
        tune = partial(tuning.fine_tune, task, folder, options.policy, optimizer=optimizer)
        try:
            tuned = _interruptible(partial(tune, **length, progress=show))
        except KeyboardInterrupt:
            _say("stopped; the same command goes on after the last group that was finished")
            return _STOPPED
    before, after = (", ".join(f"{x:.4g}" for x in losses) for losses in tuned[1:3])
    print(f"Held-out loss on other seeds: {before} before, {after} tuned")  # noqa: T201
    print(f"Policy: {tuned.path}")  # noqa: T201
    _write_page(folder)
    return 0


def _mesh(options: argparse.Namespace) -> "Mesh":
    """Return all devices of all hosts as one row, among which the groups of tasks are shared."""
    devices = options.devices or (2 if options.distributed is None else 1)
    # Read by XLA when the first device is asked for.
    count = f"--xla_force_host_platform_device_count={devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"
    import jax

    if options.distributed is not None:
        jax.distributed.initialize(**options.distributed)
    mesh = jax.make_mesh((jax.device_count(),), ("tasks",), (jax.sharding.AxisType.Auto,))
    if options.groups % mesh.size:
        raise ValueError(f"`--groups` must be a multiple of the {mesh.size} devices")
    return mesh


def _train(trainer: "MetaTrainer", folder: Path, options: argparse.Namespace) -> "Policy":
    """Run a meta-training to its end, with a progress bar."""
    from optax_meta.meta import runs
    from optax_meta.reports.terminal import progress_bar

    if not sys.stderr.isatty():  # else the progress bar says what happens
        _say(f"compiling takes minutes; then `{folder / 'log.jsonl'}` gets a row after each update")
    with progress_bar() as show:
        length = {"updates": options.updates, "seed": options.seed}
        progress = partial(_show_update, show, options.updates)
        return _interruptible(partial(runs.train, trainer, folder, **length, progress=progress))


def _show_update(show: "Show", updates: int, done: int, info: Mapping[str, float]) -> None:
    falls = [value for name, value in info.items() if name.startswith("fall/")]
    fall = sum(falls) / len(falls)
    rate = info["inner_steps_per_second"]
    show(f"log-loss fell by {fall:.2f}, {rate:,.0f} inner steps a second", done, updates)


def _interruptible(work: Callable[[], _T]) -> _T:
    """Wait for work in a thread: while XLA compiles, Python hears of Ctrl-C only where it waits."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            future.set_exception(error)

    # A daemon, or the program would not end before the compilation that it gives up.
    Thread(target=run, daemon=True).start()
    return future.result()


def _write_page(folder: Path) -> None:
    """Write the report of a meta-training, where the extra `report` is installed."""
    try:
        from optax_meta.reports import folder as reports

        print(f"Report: {reports.rebuild_report(folder)}")  # noqa: T201
    except ImportError:
        pass
    except ValueError as error:  # stopped before the first update
        _say(f"no report: {error}")


def _require(command: str, extra: str, *modules: str) -> None:
    """Refuse at once where a package of an extra is missing."""
    if missing := [module for module in modules if find_spec(module) is None]:
        raise ImportError(
            f"`optax-meta {command}` needs the extra `{extra}` ({missing[0]} is missing): "
            f"pip install 'optax-meta[{extra}]'"
        )


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "compare": _compare,
    "fine-tune": _fine_tune,
    "meta-train": _meta_train,
    "report": _report,
    "watch": _watch,
}
