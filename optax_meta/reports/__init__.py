"""What runs leave behind: pages, pictures, and the files that both are made of."""

from functools import partial

from optax_meta.lazy import submodule

__getattr__ = partial(submodule, __name__)
