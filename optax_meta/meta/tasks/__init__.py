"""Tasks: something to train, small enough to be trained many times."""

from optax_meta.meta.tasks.catalogue import TASKS as TASKS
from optax_meta.meta.tasks.images import MLP as MLP
from optax_meta.meta.tasks.images import ConvNet as ConvNet
from optax_meta.meta.tasks.images import digits as digits
from optax_meta.meta.tasks.images import digits_conv as digits_conv
from optax_meta.meta.tasks.quadratics import quadratic as quadratic
from optax_meta.meta.tasks.task import Task as Task
from optax_meta.meta.tasks.task import TaskFamily as TaskFamily
from optax_meta.meta.tasks.task import figures_at as figures_at
from optax_meta.meta.tasks.task import train_step as train_step
