"""`python -m optax_meta`."""

from optax_meta.cli import _entry

_entry()
