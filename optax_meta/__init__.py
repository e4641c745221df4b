"""Controllers for Optax hyperparameters.

A controller maps (metrics, state, hyperparams) to (hyperparams, state): it is to hyperparameters
what an optimizer is to parameters. `control_hyperparams` puts one around any Optax factory.

The public names stand in `__init__.pyi`. They are imported on first use, so that the command line
answers before JAX is loaded.
"""

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_HOME = {
    alias.name: node.module
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom) and node.module
    for alias in node.names
}


def __getattr__(name: str) -> Any:
    if name not in _HOME and not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOME[name]
    if home == __name__:
        return import_module(f"{home}.{name}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_HOME, "__version__"])
