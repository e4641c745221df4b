"""The methods that are judged."""

import hashlib
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_meta.base import Controller
from optax_meta.meta.protocol.schedules import SCHEDULES, schedule
from optax_meta.transform import control_hyperparams

Factory = Callable[..., optax.GradientTransformation]


class Run(NamedTuple):
    """What a contender knows of a run; all of it is traced.

    Attributes:
        rate: the learning rate to start from, float32[].
        steps: length of the run, int32[].
        seed: of the method's own draws, uint32[].

    Example:
        >>> walk = optax_meta.protocol.Contender.from_controller(
        ...     lambda run: optax_meta.reinforce(seed=run.seed, total_steps=run.steps)
        ... )
    """

    rate: Any
    steps: Any
    seed: Any = 0


class Contender(NamedTuple):
    """A method to be judged.

    Attributes:
        make: (factory of the inner optimizer, `Run`) → what is trained with; where there are
            `settings` they come third.
        settings: numbers or arrays, traced. Contenders that differ in these alone, made from one by
            `_replace(settings=…)`, share their compiled programs.
        optimizers: names of the inner optimizers that it is for; None for any.
        params: (optimizer state, parameters) → the parameters to evaluate; None for these.
        any_start: whether every starting rate gives the same run, which is then made once.

    Example:
        >>> cosine = optax_meta.protocol.Contender(
        ...     lambda factory, run: factory(optax_meta.protocol.schedule(2, run.rate, run.steps))
        ... )
    """

    make: Callable[..., optax.GradientTransformation]
    settings: Any = None
    optimizers: tuple[str, ...] | None = None
    params: Callable[[Any, Any], Any] | None = None
    any_start: bool = False

    @classmethod
    def from_controller(
        cls, make: Callable[..., Controller], *, settings: Any = None, any_start: bool = False
    ) -> "Contender":
        """Return the contender of a controller.

        Args:
            make: `Run` → controller; where there are settings they come second.
            settings: as in `Contender`.
            any_start: as in `Contender`.
        """
        return cls(
            lambda factory, run, *settings: control_hyperparams(factory, make(run, *settings))(
                run.rate
            ),
            settings=settings,
            any_start=any_start,
        )

    @classmethod
    def from_schedule(cls, kind: str, rate: float | None = None) -> "Contender":
        """Return the contender of a schedule.

        Args:
            kind: out of `SCHEDULES`.
            rate: its highest learning rate; None for the starting rate.
        """
        return cls(
            _scheduled,
            # Both traced, nan for none: one program for the whole sweep and every best schedule.
            settings=(SCHEDULES.index(kind), np.nan if rate is None else rate),
            any_start=rate is not None,
        )

    @property
    def is_schedule(self) -> bool:
        """Whether this is one of `from_schedule`."""
        return self.make is _scheduled

    @property
    def program(self) -> Hashable:
        """What contenders that can share a compiled program have in common."""
        return self.make, self.params

    @property
    def fingerprint(self) -> str:
        """A hash of the settings, such as a policy's parameters."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree.leaves_with_path(self.settings):
            array = np.asarray(leaf)  # bytes alone would not tell 2.0 of one name from another's
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def transformation(self, factory: Factory, run: Run) -> optax.GradientTransformationExtraArgs:
        """Return what is trained with.

        Args:
            factory: of the inner optimizer.
            run: what the method knows of the run.
        """
        given = () if self.settings is None else (self.settings,)
        return optax.with_extra_args_support(self.make(factory, run, *given))


def _scheduled(
    factory: Factory, run: Run, settings: tuple[jax.Array, jax.Array]
) -> optax.GradientTransformation:
    kind, rate = settings
    highest = jnp.where(jnp.isnan(rate), run.rate, rate)
    return factory(learning_rate=schedule(kind, highest, run.steps))
