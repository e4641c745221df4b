"""The controller that changes nothing."""

from collections.abc import Sequence

from optax_meta.base import Controller
from optax_meta.origins import keep_origin


@keep_origin
def constant(
    *, hyperparams: Sequence[str] = ("learning_rate",), guards_nonfinite: bool = False
) -> Controller:
    """Hold every hyperparameter at its starting value.

    The baseline of every comparison: the optimizer as it is, bit for bit, with the record. Needs no
    loss; passes it on to the record where it is given.

    Args:
        hyperparams: names of those to inject and show.
        guards_nonfinite: whether steps that are not finite are kept from the optimizer, as all
            other controllers do; this may change the last bit of the others.

    Returns:
        A `Controller`.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.adam, optax_meta.constant())(1e-3)
        >>> params = jnp.ones(3)
        >>> updates, state = tx.update(params, tx.init(params), params)
    """
    return Controller(
        init=lambda hyperparams: (),  # noqa: ARG005 - called by keyword or position
        update=lambda metrics, state, hyperparams: (hyperparams, state),  # noqa: ARG005
        hyperparams=tuple(hyperparams),
        needs_value=False,
        guards_nonfinite=guards_nonfinite,
    )
