"""Packages that not everybody needs."""

from importlib import import_module
from types import ModuleType


def import_extra(package: str, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        package: its name, or that of a module in it.
        extra: of `optax-meta`, that installs it.

    Returns:
        The module.

    Raises:
        ImportError: it is not installed; the message says what to do.
    """
    try:
        return import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        raise ImportError(f"this needs {name}: pip install 'optax-meta[{extra}]'") from error
