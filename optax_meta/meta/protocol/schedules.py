"""The schedules that controllers are judged against."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

SWEEP_RATES = tuple(10.0 ** (half / 2.0) for half in range(-10, 3))
SCHEDULES = ("constant", "linear", "cosine")


def schedule(
    kind: jax.typing.ArrayLike, rate: jax.typing.ArrayLike, steps: jax.typing.ArrayLike
) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """Return a schedule of the sweep: 0 constant, 1 linear, 2 cosine, as `SCHEDULES`.

    Linear and cosine fall to 0 at the end and warm up over the first twentieth.

    Args:
        kind: index into `SCHEDULES`, an integer or int32[]; may be traced, like the next two.
        rate: the highest learning rate, a number or float32[].
        steps: length of the run, a number or int32[].

    Returns:
        step, int32[] → learning rate, float32[].

    Example:
        >>> print(optax_meta.protocol.schedule(1, 1.0, 100)(jnp.array(50)).round(3))
        0.526
    """
    kind, rate, steps = (jnp.asarray(x) for x in (kind, rate, steps))

    def value(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        warm = jnp.maximum(steps / 20.0, 1.0)
        share = jnp.clip((step - warm) / jnp.maximum(steps - warm, 1.0), 0.0, 1.0)
        # All three are computed: `kind` is traced, so that one program runs the whole sweep.
        falls = jnp.stack(
            [jnp.ones_like(share), 1.0 - share, 0.5 * (1.0 + jnp.cos(jnp.pi * share))]
        )
        # From `step + 1`, since a first step at a rate of 0 would be lost.
        rise = jnp.where(kind == 0, 1.0, jnp.minimum((step + 1.0) / warm, 1.0))
        return rate * rise * falls[kind]

    return value
