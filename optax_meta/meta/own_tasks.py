"""Tasks and optimizers as the command line names them."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import optax

from optax_meta.meta.evaluation.methods import Optimizer, steered_by
from optax_meta.meta.tasks import TASKS, Task


def load_task(place: str) -> Task:
    """Return the task that a function in a file makes, or a built-in one.

    Args:
        place: FILE:FUNCTION, or a name out of `optax_meta.tasks.TASKS`.

    Raises:
        ValueError: there is no such file or function, or it does not return a `Task`. What the file
            itself raises is raised as it is.

    Example:
        >>> from optax_meta.meta.own_tasks import load_task
        >>> load_task("quadratic").name
        'quadratic'
    """
    if place in TASKS:
        return TASKS[place]()
    file, _, name = place.rpartition(":")
    path = Path(file)
    if not file or not name:
        raise ValueError(
            f"a task must be FILE:FUNCTION or one of {', '.join(TASKS)}, got {place!r}"
        )
    spec = (
        importlib.util.spec_from_file_location(f"_task_{path.stem}", path)
        if path.is_file()
        else None
    )
    if spec is None or spec.loader is None:
        raise ValueError(f"cannot read `{file}`: it must be a Python file that makes a task")
    module = importlib.util.module_from_spec(spec)
    # As for a script: what lies beside the file can be imported.
    sys.path.insert(0, str(path.parent.absolute()))
    sys.modules[spec.name] = module  # where dataclasses look their types up
    spec.loader.exec_module(module)
    make = getattr(module, name, None)
    if not callable(make):
        found = sorted(k for k, v in vars(module).items() if callable(v) and not k.startswith("_"))
        raise ValueError(
            f"`{file}` has no function `{name}`: choose from {', '.join(found) or 'none'}"
        )
    task = make()
    if not isinstance(task, Task):
        raise ValueError(
            f"`{name}` must return an `optax_meta.tasks.Task`, got {type(task).__name__}"
        )
    return task


def load_optimizer(name: str, arguments: Mapping[str, Any]) -> Optimizer:
    """Return a factory of Optax by its name.

    Args:
        name: of a function of `optax` or `optax.contrib` that takes a `learning_rate`.
        arguments: further ones, by name.

    Raises:
        ValueError: there is none of that name, or it has no such arguments.

    Example:
        >>> from optax_meta.meta.own_tasks import load_optimizer
        >>> load_optimizer("sgd", {"momentum": 0.9}).keywords
        {'momentum': 0.9}
    """
    contrib = importlib.import_module("optax.contrib")
    factory: Any = getattr(optax, name, None) or getattr(contrib, name, None)
    if not inspect.isfunction(factory):
        raise ValueError(f"optax has no optimizer `{name}`: write one such as adamw, sgd or muon")
    steered_by(factory)
    made: Any = partial(factory, **arguments) if arguments else factory
    try:
        made(learning_rate=1e-3)
    except TypeError as error:
        raise ValueError(
            f"`{name}` cannot be made with {dict(arguments)}: pass what it takes ({error})"
        ) from error
    return made
