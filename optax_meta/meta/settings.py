"""How a policy is meta-trained: the static part of a meta-trainer, and its bounds."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import optax

from optax_meta.checks import check_whole
from optax_meta.meta.inner_optimizers import OPTIMIZERS
from optax_meta.meta.tasks import TaskFamily
from optax_meta.policies import Policy, check_policy

Learner = Literal["reinforce", "evolution"]
_LEAST = {"groups": 1, "rollouts": 2, "epochs": 1}
_RANGES = ("learning_rates", "weight_decays")
_SHARES = ("unknown_horizons", "discount")
_POSITIVE = ("sigma", "policy_learning_rate")
# What stands in a policy's card by itself, and what no recipe changes.
_UNDESCRIBED = ("policy", "mesh", "discount", "entropy_bonus", "sigma", "vectorized")


class Setting(NamedTuple):
    """The arguments of `meta_trainer`, as they are described there."""

    families: Sequence[TaskFamily]
    policy: Policy
    optimizers: Sequence[str]
    learning_rates: tuple[float, float]
    horizons: tuple[int, int]
    unknown_horizons: float
    groups: int
    rollouts: int
    families_per_update: int
    weight_decays: tuple[float, float]
    discount: float
    shaped_updates: int | None
    entropy_bonus: float
    epochs: int
    learner: Learner
    sigma: float
    policy_learning_rate: float
    vectorized: bool
    mesh: jax.sharding.Mesh | None

    @property
    def steers_decay(self) -> bool:
        """Whether the policy steers a weight decay, which AdamW alone has here."""
        return "weight_decay" in self.policy.action_space.hyperparams

    @property
    def policy_optimizer(self) -> optax.GradientTransformation:
        """What the policy itself is learned with."""
        # Clipped, so that no single batch undoes what many have taught.
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(self.policy_learning_rate))

    def checked(self) -> "Setting":
        """Refuse what is out of range; return counts as `int` and sequences as tuples.

        Raises:
            ValueError: an argument is out of range.
        """
        check_policy(self.policy)
        # Types first: the comparisons below take numbers for granted.
        low, high = (check_whole("horizons", horizon) for horizon in self.horizons)
        counts = {name: check_whole(name, getattr(self, name), n) for name, n in _LEAST.items()}
        if self.shaped_updates is not None:
            counts["shaped_updates"] = check_whole("shaped_updates", self.shaped_updates, 0)
        setting = self._replace(
            families=tuple(self.families),
            optimizers=tuple(self.optimizers),
            horizons=(low, high),
            **counts,
        )
        for holds, message in (*_of_families(setting), *_of_numbers(setting), *_of_runs(setting)):
            if not holds:
                raise ValueError(message)
        return setting

    def described(self) -> dict[str, Any]:
        """Return what is learned from and how, JSON values."""
        values = {name: getattr(self, name) for name in self._fields}
        lists = {k: list(v) for k, v in values.items() if isinstance(v, tuple)}
        # Of the inner optimizers AdamW alone decays weights, so it is all that is drawn then.
        optimizers = ["adamw"] if self.steers_decay else list(self.optimizers)
        names = [family.name for family in self.families]
        described = {**values, **lists, "families": names, "optimizers": optimizers}
        return {k: v for k, v in described.items() if k not in _UNDESCRIBED}


def _of_families(setting: Setting) -> list[tuple[bool, str]]:
    names = [family.name for family in setting.families]
    return [
        (len(names) > 0, "`families` must not be empty"),
        (len(set(names)) == len(names), f"families need different names, got {names}"),
        (
            1 <= setting.families_per_update <= len(names),
            f"`families_per_update` must lie between 1 and {len(names)}",
        ),
    ]


def _of_numbers(setting: Setting) -> list[tuple[bool, str]]:
    def named(names: Sequence[str]) -> list[tuple[str, Any]]:
        return [(name, getattr(setting, name)) for name in names]

    low, high = setting.horizons
    bonus = setting.entropy_bonus
    return [
        (low <= high, f"`horizons` must rise, got {setting.horizons}"),
        *(
            (0.0 < low <= high < math.inf, f"`{name}` must rise from above 0, got {(low, high)}")
            for name, (low, high) in named(_RANGES)
        ),
        *((0.0 <= x <= 1.0, f"`{name}` must lie in [0, 1], got {x}") for name, x in named(_SHARES)),
        *((x > 0.0, f"`{name}` must be positive, got {x}") for name, x in named(_POSITIVE)),
        (bonus >= 0.0, f"`entropy_bonus` must not be negative, got {bonus}"),
    ]


def _of_runs(setting: Setting) -> list[tuple[bool, str]]:
    known = len(setting.optimizers) > 0 and set(setting.optimizers) <= OPTIMIZERS.keys()
    return [
        (known, f"`optimizers` must be out of {tuple(OPTIMIZERS)}"),
        (
            setting.mesh is None or setting.groups % setting.mesh.size == 0,
            f"`groups` must be a multiple of the mesh's size, got {setting.groups}",
        ),
        (
            setting.learner in ("reinforce", "evolution"),
            f'`learner` must be "reinforce" or "evolution", got {setting.learner!r}',
        ),
        (
            setting.learner == "reinforce" or setting.rollouts % 2 == 0,
            f'`rollouts` must be even for "evolution", got {setting.rollouts}',
        ),
    ]
