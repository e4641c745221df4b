"""Flax's `TrainState`, with the loss passed on to the optimizer."""

import inspect
from functools import partial
from typing import Any, Self

import jax
import optax
from flax.training import train_state


class TrainState(train_state.TrainState):
    """Flax's `TrainState` whose `apply_gradients` takes the loss.

    The stock one calls `tx.update(grads, opt_state, params)` and has no way to pass more. Made with
    `TrainState.create(apply_fn=…, params=…, tx=…)` and subclassed for more fields, as usual; `tx`
    may be any gradient transformation, of which those that take no loss do not get it.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.plateau())(0.1)
        >>> state = TrainState.create(apply_fn=None, params={"w": jnp.ones(3)}, tx=tx)
        >>> loss, grads = jax.value_and_grad(lambda p: jnp.sum(p["w"] ** 2))(state.params)
        >>> state = state.apply_gradients(grads=grads, value=loss)
        >>> print(optax_meta.record(state).value)
        3.0
    """

    def apply_gradients(
        self,
        *,
        grads: Any,
        value: jax.typing.ArrayLike | None = None,
        cost: jax.typing.ArrayLike | None = None,
        progress: jax.typing.ArrayLike | None = None,
        **kwargs: Any,
    ) -> Self:
        """Return the state after one update.

        Args:
            grads: gradients, like `params`.
            value: the loss that they belong to, a scalar; needed by controllers that judge it.
            cost: what the step cost, a scalar in any unit.
            progress: share of the run that is over, a scalar in [0, 1].
            **kwargs: other fields to replace.
        """
        # Told by the signature: `optax.MultiSteps` is no `GradientTransformationExtraArgs`.
        takes = inspect.signature(self.tx.update).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in takes.values())
        passed = {"value": value, "cost": cost, "progress": progress}
        passed = {k: v for k, v in passed.items() if v is not None and (takes_any or k in takes)}
        bound_tx = optax.GradientTransformation(self.tx.init, partial(self.tx.update, **passed))
        state: Any = super(TrainState, self.replace(tx=bound_tx))
        return state.apply_gradients(grads=grads, **kwargs).replace(tx=self.tx)
