"""`python -m optax_meta`."""

import sys

from optax_meta.cli import main

sys.exit(main())
