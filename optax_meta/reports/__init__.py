"""What runs leave behind: pages, pictures, and the files that both are made of.

`files` and `rows` hold the numbers, `table`, `plots`, `charts` and `log_charts` show them,
`pictures` and `page` put these together, `folder` reads and writes the whole.
"""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


# Modules on first use, as in `optax_meta` itself: pictures need an extra.
def __getattr__(name: str) -> ModuleType:
    if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
