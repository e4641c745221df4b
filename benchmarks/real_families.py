"""Families of real networks to learn a policy from: smaller than the cells that choose, same data.

Nothing of the half that is only reported is seen here.
"""

from collections.abc import Callable
from functools import partial

from real_models import CNN, GPT, LSTM, ResidualMLP, ViT
from real_tasks import digits, sensors, text
from real_tuning import tuned_whole

from optax_meta.meta.tasks import MLP, Task, TaskFamily


def family(name: str, make: Callable[..., Task], *about: object) -> TaskFamily:
    """Return the family of one task: draws differ in initial parameters, batches and optimizers.

    Args:
        name: of the task.
        make: (name, half, *about) → the task; loads its data.
        *about: network, batch, and the length of a sequence.
    """
    task = make(name, "validation", *about)
    return TaskFamily(name, task.description, lambda key: key, lambda key: task)  # noqa: ARG005


FAMILIES: dict[str, Callable[[], TaskFamily]] = {
    name: partial(family, name, *about)
    for name, about in {
        "mlp": (digits, MLP((128, 128, 10)), 32),
        "convolutions": (digits, CNN((12, 24), 48), 24),
        "normalized": (digits, CNN((16, 16), 32, normalize=True), 24),
        "vit": (digits, ViT(7, 32, 2), 24),
        "gpt": (text, GPT(48, 2), 8, 48),
        "gpt-narrow": (text, GPT(32, 1), 8, 32),
        "lstm": (text, LSTM(64), 12, 24),
        "shuttle": (sensors, ResidualMLP(64, 3, 10), 64),
        "tuned": (tuned_whole, CNN((12, 24), 64), 24),
    }.items()
}
"""By name."""
