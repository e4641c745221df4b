"""Controllers for Optax hyperparameters.

A controller maps (metrics, state, hyperparams) to (hyperparams, state): it is to hyperparameters
what an optimizer is to parameters. `control_hyperparams` puts one around any Optax factory.

The public names stand in `__init__.pyi`. They are imported on first use, so that the command line
answers before JAX is loaded.
"""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from optax_meta.lazy import submodule

__version__ = "0.1.0"

# Where each public name is from. The stub, which type checkers read, is the only list of them.
_STUB = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_HOMES = {name: home for home, name in re.findall(r"(?m)^from (\S+) import \w+ as (\w+)$", _STUB)}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name, __name__)
    # What is from here is a module, as are those that no stub lists, such as `checkpoints`.
    return submodule(home, name) if home == __name__ else getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])
