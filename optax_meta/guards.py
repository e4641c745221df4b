"""What is kept from the optimizer: steps that are not finite, and gradients that leap.

Pure functions of the gradients and of what was measured; no business of a controller, which only
says whether it wants them (`Controller.guards_nonfinite`, `Controller.max_growth`).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from optax_meta.base import Tree
from optax_meta.sampling import is_inexact
from optax_meta.tracking import Measured


def clip_growth(gradients: Tree, measured: Measured, largest: jax.Array) -> tuple[Tree, Measured]:
    """Scale gradients down to a norm of `largest`.

    A loss whose curvature explodes can throw a run away between two decisions; held to a multiple
    of what the last decision saw, gradients cannot compound before the next.

    Args:
        gradients: as they come.
        measured: of this step; its `grad_norm` is that of the gradients.
        largest: norm allowed, float32[]; 0 or less for any.

    Returns:
        The gradients, and what was measured with the norm that they have now.

    Source: P. Seetharaman et al., "AutoClip: Adaptive Gradient Clipping for Source Separation
    Networks", https://arxiv.org/abs/2007.14469.
    """
    norm = measured.grad_norm
    shrink = shrinkage(norm, largest)

    def scale(gradient: jax.Array) -> jax.Array:
        return gradient * shrink.astype(jnp.result_type(gradient))

    clipped = jax.tree.map(lambda g: scale(g) if is_inexact(g) else g, gradients)
    return clipped, measured._replace(grad_norm=norm * shrink)


def shrinkage(norm: jax.Array, largest: jax.Array) -> jax.Array:
    """Return what gradients are scaled by, float32[] in (0, 1].

    Args:
        norm: of the gradients, float32[].
        largest: as for `clip_growth`.
    """
    is_leap = (largest > 0.0) & (norm > largest) & jnp.isfinite(norm)
    return jnp.where(is_leap, largest / norm, 1.0)


def zero_nonfinite(
    gradients: Tree,
    passed: Mapping[str, object],
    measured: Measured,
    last_value: jax.Array,
    *,
    left_out: jax.typing.ArrayLike = False,
) -> tuple[Tree, dict[str, object]]:
    """Put zeros for the gradients, and another loss, where a step is not finite or left out.

    Moments then decay and no nan enters them; no second copy of the optimizer's state is needed, as
    `optax.apply_if_finite` keeps one.

    Args:
        gradients: as they come.
        passed: what else goes to the optimizer; of it "value" is replaced, where it is passed.
        measured: of this step.
        last_value: the loss to put, such as the latest finite one, float32[].
        left_out: whether this step is left out though it is finite, bool[].
    """
    is_finite = jnp.isfinite(measured.value) & jnp.isfinite(measured.grad_norm)
    is_finite &= ~jnp.asarray(left_out)
    safe = dict(passed)
    if safe.get("value") is not None:
        value = jnp.asarray(safe["value"])
        safe["value"] = jnp.where(is_finite, value, last_value.astype(value.dtype))

    def zero(gradient: jax.Array) -> jax.Array:
        # In a finite step what is not finite moves nothing anyway: see `measuring`.
        return jnp.where(is_finite & jnp.isfinite(gradient), gradient, jnp.zeros_like(gradient))

    return jax.tree.map(lambda g: zero(g) if is_inexact(g) else g, gradients), safe
