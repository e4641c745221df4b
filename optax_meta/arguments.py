"""What can be asked of the command line, and how it must be written.

Nothing heavy is imported here, so that help and errors come at once.
"""

import argparse
import json
import math
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

import optax_meta

_AddParser = Callable[..., argparse.ArgumentParser]

# Named here too, since `--help` must answer before JAX is loaded; a test compares them.
TASKS = ("digits", "digits-conv", "quadratic")
RECIPES = ("any-lr-v2", "adamw-lr-wd-v2")
METHODS = (
    "constant",
    "plateau",
    "warmup-plateau",
    "hypergradient",
    "any-lr-v2",
    "reinforce",
    "random-walk",
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; its result holds the name of one as `command`."""
    top = _Parser(prog="optax-meta", description="Control the hyperparameters of Optax optimizers.")
    top.add_argument("--version", action="version", version=f"%(prog)s {optax_meta.__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_compare(commands.add_parser)
    _add_meta_train(commands.add_parser)
    _add_fine_tune(commands.add_parser)
    _add_report(commands.add_parser)
    _add_watch(commands.add_parser)
    return top


def _add_compare(add_parser: _AddParser) -> None:
    command = add_parser(
        "compare",
        help="train a model with each method and report which won",
        description="Train a Flax model with each method over several seeds, print a table of the "
        "results, and write a report that opens in any browser.",
        formatter_class=_Help,
    )
    command.add_argument("--task", default=TASKS[0], choices=TASKS, help="what to train")
    command.add_argument(
        "--methods",
        type=_names,
        default=",".join(METHODS),
        help=f"comma-separated, out of: {', '.join(METHODS)}",
    )
    command.add_argument(
        "--controller",
        type=_config,
        action="append",
        metavar="NAME=JSON",
        help="one more method: the config of a controller, as in "
        """'mine={"controller": "plateau", "factor": 0.5}'; may be given several times""",
    )
    command.add_argument("--steps", type=_at_least(1), default=500, help="steps in a run")
    command.add_argument("--seeds", type=_at_least(2), default=10, help="runs of each method")
    command.add_argument("--lr", type=_rate, default=1e-3, help="starting learning rate of AdamW")
    command.add_argument(
        "--out",
        default="optax-meta-report",
        help="folder for the report; an earlier one there is replaced",
    )


def _add_meta_train(add_parser: _AddParser) -> None:
    command = add_parser(
        "meta-train",
        help="learn a policy over thousands of training runs",
        description="Learn a policy over thousands of small training runs at once and write it to "
        "DIR/NAME.policy. A run that was stopped goes on where it was when it is started "
        "again with the same folder. For several hosts start the same command on each with "
        "--distributed.",
        formatter_class=_Help,
    )
    command.add_argument("--recipe", default=RECIPES[0], choices=RECIPES, help="what to learn")
    command.add_argument("--updates", type=_at_least(1), default=60, help="of the policy")
    command.add_argument(
        "--learner",
        default="evolution",
        choices=("evolution", "reinforce"),
        help="evolution strategies, or policy gradient",
    )
    command.add_argument(
        "--groups", type=_at_least(1), default=16, help="tasks of a family at once"
    )
    command.add_argument("--rollouts", type=_at_least(2), default=8, help="runs of each task")
    command.add_argument("--seed", type=_seed, default=0, help="of everything that is drawn")
    command.add_argument(
        "--devices",
        type=_at_least(1),  # no default: it depends on --distributed, and help must not say None
        help="to split a CPU into (default: 2, and 1 of each process with --distributed)",
    )
    command.add_argument(
        "--distributed",
        type=_distributed,
        metavar="auto|HOST:PORT,N,I",
        help="several hosts: found by JAX, or the address of the first, how many, and which",
    )
    command.add_argument("--out", default="optax-meta-policy", help="folder for the run")


def _add_fine_tune(add_parser: _AddParser) -> None:
    command = add_parser(
        "fine-tune",
        help="tune a policy to a task of your own",
        description="Train a task of your own again and again for a few hundred steps, learn from "
        "how the runs end by how much a policy should do otherwise there, and write the policy to "
        "DIR/TASK.policy. A run that was stopped goes on where it was when it is started again "
        "with the same folder.",
        formatter_class=_Help,
    )
    command.add_argument(
        "--task",
        required=True,
        metavar="FILE:FUNCTION",
        help="a function without arguments in a Python file, which returns an "
        "optax_meta.tasks.Task; or the name of a built-in task",
    )
    command.add_argument("--policy", default="any-lr-v2", help="name or path of what to begin with")
    command.add_argument(
        "--optimizer",
        default="adamw",
        type=_optimizer,
        metavar="NAME[=JSON]",
        help="a function of optax or optax.contrib, with arguments as in "
        """'sgd={"momentum": 0.9}'""",
    )
    command.add_argument("--steps", type=_at_least(1), default=500, help="steps in a run")
    command.add_argument("--groups", type=_at_least(1), default=16, help="of four runs each")
    command.add_argument("--seed", type=_seed, default=0, help="of everything that is drawn")
    command.add_argument("--out", default="optax-meta-tuned", help="folder for the run")


def _add_report(add_parser: _AddParser) -> None:
    command = add_parser(
        "report",
        help="write the page again from the files of a run",
        description="Write report.html from the files alone: of `compare`, of `meta-train`, "
        "finished or running, or from a folder with *.jsonl of step rows, as "
        "`optax_meta.writers.jsonl` writes them, one run each.",
    )
    command.add_argument("folder", metavar="DIR", help="where the files are")
    command.add_argument("--out", metavar="FILE", help="the page; DIR/report.html if left out")


def _add_watch(add_parser: _AddParser) -> None:
    command = add_parser(
        "watch",
        help="show the page of a run while it goes on",
        description="Serve the page of a folder, as `report` makes it, to this machine alone, and "
        "refresh it while rows are written. Start it before the run, during it or after; Ctrl-C "
        "ends it. Of a run on another machine: ssh -L 8765:localhost:8765 there.",
        formatter_class=_Help,
    )
    command.add_argument("folder", metavar="DIR", help="where the files are, or will be")
    command.add_argument(
        "--port", type=_at_least(0), default=8765, help="to listen at; 0 for any that is free"
    )


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Gives the defaults there are, and breaks no name at its hyphen."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)

    def _split_lines(self, text: str, width: int) -> list[str]:
        # Half of `warmup-plateau` at the end of a line would read as a method of its own.
        return textwrap.wrap(text, width, break_on_hyphens=False)


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"unknown method {(unknown or [text])[0]!r}: choose from {', '.join(METHODS)}"
        )
    return names


def _config(text: str) -> tuple[str, Any]:
    name, _, config = text.partition("=")
    try:
        return name, json.loads(config)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be NAME=JSON, got {text!r}") from None


def _optimizer(text: str) -> tuple[str, dict[str, Any]]:
    name, given, config = text.partition("=")
    try:
        arguments = json.loads(config) if given else {}
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise argparse.ArgumentTypeError(f"must be NAME or NAME=JSON, got {text!r}")
    return name, arguments


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
    # `jax.random.key` would take a larger one without its upper bits.
    if seed >= 2**32:
        raise argparse.ArgumentTypeError(f"must be below 2³², got {text!r}")
    return seed


def _distributed(text: str) -> dict[str, str | int]:
    """Return the arguments of `jax.distributed.initialize`, none where JAX is to find them."""
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
        rate = math.nan  # which lies in no interval
    # The bounds of the controllers' action space, from which no start may be outside.
    if not 1e-8 <= rate <= 10.0:
        raise argparse.ArgumentTypeError(f"must lie in [1e-8, 10], got {text!r}")
    return rate
