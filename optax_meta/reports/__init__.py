"""What runs leave behind: pages, pictures, and the files that both are made of.

`files` and `rows` hold the numbers, `table`, `plots`, `charts` and `log_charts` show them,
`pictures` and `page` put these together, `folder` reads and writes the whole.
"""

from functools import partial

from optax_meta.lazy import submodule

__getattr__ = partial(submodule, __name__)
