"""The tasks that the command line knows."""

from collections.abc import Callable

from optax_meta.meta.tasks.images import digits, digits_conv
from optax_meta.meta.tasks.quadratics import quadratic
from optax_meta.meta.tasks.task import Task

TASKS: dict[str, Callable[[], Task]] = {
    "digits": digits,
    "digits-conv": digits_conv,
    "quadratic": quadratic,
}
"""Tasks by the name that the command line takes."""
