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
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _HOME.get(name, __name__)
    home = vars(import_module(module))
    if module != __name__ and name in home:
        value = home[name]
    elif find_spec(module).submodule_search_locations and find_spec(f"{module}.{name}"):
        value = import_module(f"{module}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_HOME, "__version__"])
