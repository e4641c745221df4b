"""Learning and judging over many runs: one concept a file."""

from functools import partial

from optax_meta.lazy import submodule

__getattr__ = partial(submodule, __name__)
