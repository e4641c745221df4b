"""The command line. Nothing heavy is imported before the arguments are known to be good."""

import argparse
import json
import math
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn, TypeVar

import optax_meta

_T = TypeVar("_T")

# Named here too, since `--help` must answer before JAX is loaded; a test compares them.
TASKS = ("digits", "digits-conv", "quadratic")
RECIPES = ("any-lr-v1", "adamw-lr-wd-v1")
METHODS = (
    "constant",
    "plateau",
    "warmup-plateau",
    "hypergradient",
    "any-lr-v1",
    "reinforce",
    "random-walk",
)

_STOPPED = 130

_NARROW = (
    "method",
    "final loss",
    "loss reduction %",
    "test accuracy %",
    "rates",
    "time ×",
)


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
        options = _parser().parse_args(argv)
        return options.run(options)
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


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Tells the defaults there are, and breaks no name at its hyphen."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="optax-meta", description="Control the hyperparameters of Optax optimizers."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {optax_meta.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    compare = commands.add_parser(
        "compare",
        help="train a model with each method and report which won",
        description="Train a Flax model with each method over several seeds, print a table of the "
        "results, and write a report that opens in any browser.",
        formatter_class=_Help,
    )
    compare.set_defaults(run=_compare)
    compare.add_argument("--task", default=TASKS[0], choices=TASKS, help="what to train")
    compare.add_argument(
        "--methods",
        type=_names,
        default=",".join(METHODS),
        help=f"comma-separated, out of: {', '.join(METHODS)}",
    )
    compare.add_argument("--steps", type=_at_least(1), default=500, help="steps in a run")
    compare.add_argument("--seeds", type=_at_least(2), default=10, help="runs of each method")
    compare.add_argument("--lr", type=_rate, default=1e-3, help="starting learning rate of AdamW")
    compare.add_argument(
        "--out",
        default="optax-meta-report",
        help="folder for the report; an earlier one there is replaced",
    )
    train = commands.add_parser(
        "meta-train",
        help="learn a policy over thousands of training runs",
        description="Learn a policy over thousands of small training runs at once and write it to "
        "DIR/NAME.policy. A run that was stopped goes on where it was when it is started "
        "again with the same folder. For several hosts start the same command on each with "
        "--distributed.",
        formatter_class=_Help,
    )
    train.set_defaults(run=_meta_train)
    train.add_argument("--recipe", default=RECIPES[0], choices=RECIPES, help="what to learn")
    train.add_argument("--updates", type=_at_least(1), default=360, help="of the policy")
    train.add_argument(
        "--learner",
        default="reinforce",
        choices=("reinforce", "evolution"),
        help="policy gradient, or evolution strategies",
    )
    train.add_argument("--groups", type=_at_least(1), default=16, help="tasks of a family at once")
    train.add_argument("--rollouts", type=_at_least(2), default=8, help="runs of each task")
    train.add_argument("--seed", type=_seed, default=0, help="of everything that is drawn")
    train.add_argument(
        "--devices",
        type=_at_least(1),
        help="to split a CPU into (default: 2, and 1 of each process with --distributed)",
    )
    train.add_argument(
        "--distributed",
        type=_distributed,
        metavar="auto|HOST:PORT,N,I",
        help="several hosts: found by JAX, or the address of the first, how many, and which",
    )
    train.add_argument("--out", default="optax-meta-policy", help="folder for the run")
    report = commands.add_parser(
        "report",
        help="write the page again from the files of a run",
        description="Write report.html from the files alone: of `compare`, of `meta-train`, "
        "finished or running, or from a folder with one *.jsonl of step rows, as "
        "`optax_meta.writers.jsonl` writes it.",
    )
    report.set_defaults(run=_report)
    report.add_argument("folder", metavar="DIR", help="where the files are")
    report.add_argument("--out", metavar="FILE", help="the page; DIR/report.html if left out")
    return parser


def _report(options: argparse.Namespace) -> int:
    _require("report", "report", "matplotlib", "jinja2")
    from optax_meta.reports import page as reports

    print(f"Report: {reports.rebuild_report(options.folder, options.out)}")  # noqa: T201
    return 0


def _compare(options: argparse.Namespace) -> int:
    _require("compare", "report", "rich", "sklearn", "scipy", "matplotlib", "jinja2")
    from rich.console import Console

    from optax_meta.meta import evaluation
    from optax_meta.reports import page as reports

    console = Console()

    folder = reports.check_folder(options.out)
    interrupted = False
    if not sys.stderr.isatty():  # else the progress bar tells
        _say("each method takes half a minute to compile, or more")
    with _progress() as show:
        try:
            comparison = evaluation.compare(
                options.task,
                options.methods,
                learning_rate=options.lr,
                steps=options.steps,
                seeds=options.seeds,
                progress=show,
            )
        except evaluation.Interrupted as stop:
            if stop.partial is None:
                raise
            comparison, interrupted = stop.partial, True
        show("writing the report", 1, 1)
        page = reports.write_report(comparison, folder)
    _print_table(console, comparison, reports.result_table(comparison))
    console.print(f"Report: [link={page.resolve().as_uri()}]{page}[/link]", soft_wrap=True)
    if interrupted:
        left = f"seeds {comparison.seeds} … {options.seeds - 1} are left out"
        _say(f"stopped; {left}. All of them: {_command(options)}")
    return _STOPPED if interrupted else 0


def _command(options: argparse.Namespace) -> str:
    methods = ",".join(options.methods)
    parts = ["optax-meta", "compare", "--task", options.task, "--methods", methods]
    for name in ("steps", "seeds", "lr", "out"):
        parts += [f"--{name}", str(getattr(options, name))]
    return shlex.join(parts)


def _say(text: str) -> None:
    print(f"optax-meta: {text}", file=sys.stderr)  # noqa: T201


def _meta_train(options: argparse.Namespace) -> int:
    _require("meta-train", "meta", "rich", "sklearn", "orbax")
    devices = options.devices or (2 if options.distributed is None else 1)
    # Read by XLA when the first device is asked for.
    count = f"--xla_force_host_platform_device_count={devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"
    import jax

    if options.distributed is not None:
        jax.distributed.initialize(**options.distributed)
    from optax_meta import checkpoints
    from optax_meta.meta import evaluation, runs

    mesh = jax.make_mesh((jax.device_count(),), ("tasks",), (jax.sharding.AxisType.Auto,))
    if options.groups % mesh.size:
        raise ValueError(f"`--groups` must be a multiple of the {mesh.size} devices")
    sizes = {"learner": options.learner, "groups": options.groups, "rollouts": options.rollouts}
    folder = Path(options.out)
    trainer = runs.RECIPES[options.recipe](mesh, **sizes)
    is_first = jax.process_index() == 0
    _same_run(folder, {"recipe": options.recipe, "seed": options.seed, **sizes}, write=is_first)
    if not sys.stderr.isatty():  # else the progress bar tells
        _say(f"compiling takes minutes; then `{folder / 'log.jsonl'}` gets a row after each update")
    with _progress() as show:

        def progress(done: int, info: dict[str, float]) -> None:
            falls = [value for name, value in info.items() if name.startswith("fall/")]
            fall = sum(falls) / len(falls)
            rate = info["inner_steps_per_second"]
            label = f"log-loss fell by {fall:.2f}, {rate:,.0f} inner steps a second"
            show(label, done, options.updates)

        train = partial(runs.train, trainer, folder, updates=options.updates, seed=options.seed)
        training = _in_thread(partial(train, progress=progress))
        try:
            policy = training.result()
        except KeyboardInterrupt:
            _say("stopped; the same command goes on from the latest checkpoint")
            if (folder / "log.jsonl").exists():  # after the first update
                _write_page(folder)
            return _STOPPED
    path = folder / f"{options.recipe}.policy"
    if is_first:
        *_, last = (folder / "log.jsonl").read_text().splitlines()
        cost = {k: v for k, v in json.loads(last).items() if k.startswith("inner_steps")}
        flags = {"recipe": options.recipe, "updates": options.updates, "seed": options.seed}
        flags |= {**sizes, "devices": mesh.size}
        notes = {
            "command": " ".join(
                ["optax-meta meta-train", *(f"--{k} {v}" for k, v in flags.items())]
            ),
            "updates": options.updates,
            "seed": options.seed,
            **cost,
            "distribution": trainer.description,
            "versions": evaluation.library_versions(),
        }
        checkpoints.save_policy(policy, path, notes=notes)
        print(f"Policy: {path}")  # noqa: T201
        _write_page(folder)
    return 0


def _same_run(folder: Path, settings: dict[str, Any], *, write: bool) -> None:
    """Refuse to go on with a run of other settings; else note them, if `write`."""
    path = folder / "settings.json"
    if path.exists():
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError):
            known = None
        if not isinstance(known, dict) or not known.keys() >= settings.keys():
            raise ValueError(
                f"`{path}` is damaged: write {json.dumps(settings)} into it if that is the run "
                "there, or choose another --out"
            )
        if other := [name for name in settings if known.get(name) != settings[name]]:
            raise ValueError(
                f"`{folder}` holds a run with {', '.join(f'--{n} {known.get(n)}' for n in other)}: "
                "go on with the same, or choose another --out"
            )
        return
    if not write:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".partial")
        whole.write_text(json.dumps(settings) + "\n")
        whole.replace(path)
    except OSError as error:
        raise ValueError(
            f"cannot write to `{folder}`: {error.strerror}; choose another --out"
        ) from error


def _in_thread(work: Callable[[], _T]) -> "Future[_T]":
    """Start `work` in a thread, since Python hears of Ctrl-C in XLA only where it waits itself."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _write_page(folder: Path) -> None:
    """Write the report of a meta-training, where the extra `report` is installed."""
    try:
        from optax_meta.reports import page as reports

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


class _progress:  # noqa: N801 - reads as a function where it is used
    """A progress bar on standard error that can be called with (label, done, total)."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        text = TextColumn("{task.description}", markup=False)
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        columns = (text, BarColumn(), MofNCompleteColumn(), *times)
        quiet = Console(stderr=True)
        self.bar = Progress(*columns, console=quiet, transient=True, disable=not quiet.is_terminal)
        self.task = self.bar.add_task("loading", total=None)

    def __enter__(self) -> Callable[[str, int, int], None]:
        self.bar.start()
        return lambda label, done, total: self.bar.update(
            self.task, description=label, completed=done, total=total
        )

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def _print_table(console: Any, comparison: Any, table: Any) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = (
        f"{comparison.task}, optax.{comparison.optimizer} from {comparison.learning_rate:g}, "
        f"{comparison.steps} steps, {comparison.seeds} seeds"
    )
    caption = "mean ± half-width of the 95 % interval over seeds; time × the bare optimizer's"
    if console.width < 130:
        table = table.select(_NARROW)
    shown = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in table.columns:
        justify = "left" if column == "method" else "right"
        shown.add_column(column, justify=justify, no_wrap=column in ("method", "final loss"))
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"unknown method {(unknown or [text])[0]!r}: choose from {', '.join(METHODS)}"
        )
    return names


def _at_least(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"must be a whole number ≥ {least}, got {text!r}")
        return number

    return whole_number


def _seed(text: str) -> int:
    seed = _at_least(0)(text)
    if seed >= 2**32:
        raise argparse.ArgumentTypeError(f"must be below 2³², got {text!r}")
    return seed


def _distributed(text: str) -> dict[str, Any]:
    if text == "auto":
        return {}
    address, *numbers = text.split(",")
    if ":" not in address or len(numbers) != 2 or not all(n.isdecimal() for n in numbers):
        raise argparse.ArgumentTypeError(f'must be "auto" or HOST:PORT,N,I, got {text!r}')
    count, index = map(int, numbers)
    return {"coordinator_address": address, "num_processes": count, "process_id": index}


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 1e-8 <= rate <= 10.0:
        raise argparse.ArgumentTypeError(f"must lie in [1e-8, 10], got {text!r}")
    return rate
