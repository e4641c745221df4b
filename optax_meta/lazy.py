"""Submodules that are imported where their name is first used."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def submodule(package: str, name: str) -> ModuleType:
    """Import a submodule: with its first argument bound, the `__getattr__` of a package.

    Args:
        package: its full name.
        name: of the submodule.

    Returns:
        The module, from then on an ordinary attribute of the package.

    Raises:
        AttributeError: there is none.
    """
    # Python looks for names such as `__wrapped__` here too, and `__main__` would run the program.
    if name.startswith("_") or find_spec(f"{package}.{name}") is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return import_module(f"{package}.{name}")
