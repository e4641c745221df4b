"""An average of the parameters, for runs whose length nobody knows."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_meta.base import Tree
from optax_meta.checks import is_number
from optax_meta.sampling import is_inexact
from optax_meta.state import detach, read_variables


class AveragedState(NamedTuple):
    """State of `averaged`.

    Attributes:
        num_averaged: updates so far, int32[].
        average: of the parameters after each, float32 or wider, of their shapes.
    """

    num_averaged: jax.Array
    average: Tree


def averaged(share: float = 0.1) -> optax.GradientTransformationExtraArgs:
    """Keep an average of the parameters over the latest part of the run, whenever that ends.

    x̄ₜ = x̄ₜ₋₁ + (xₜ - x̄ₜ₋₁)/(1 + s·(t - 1)): weights grow like t^(1/s - 1), so that the average
    covers about the same share s of the run at any time, and no horizon is needed. A rate that does
    not fall leaves parameters bouncing around where they should settle; their average settles. The
    updates pass unchanged: the run is the same with and without. Costs a copy of the parameters.

    Args:
        share: s, in (0, 1]; 1 averages all steps alike.

    Returns:
        A transformation to chain after the optimizer, and last, since it must see what is added to
        the parameters. Needs `params=`. `averaged_params` reads the average.

    Raises:
        ValueError: the share is out of range; from `update`, if the parameters are missing.

    Source: O. Shamir and T. Zhang, "Stochastic Gradient Descent for Non-smooth Optimization", 2013,
    https://arxiv.org/abs/1212.1824, for the weights; A. Meterez et al., "Anytime Pretraining:
    Horizon-Free Learning-Rate Schedules with Weight Averaging", 2026,
    https://arxiv.org/abs/2602.03702, for a share of the run that stands for a fall of the rate.

    Example:
        >>> controlled = optax_meta.control_hyperparams(optax.adamw, optax_meta.distance())()
        >>> tx = optax.chain(controlled, averaged())
        >>> params = {"w": jnp.ones(3)}
        >>> state = tx.init(params)
        >>> print(averaged_params(state)["w"])
        [1. 1. 1.]
    """
    if not is_number(share) or not 0.0 < share <= 1.0:
        raise ValueError(f"`share` must lie in (0, 1], got {share!r}: 1 averages all steps alike")
    update: Any = partial(_update, share)
    return optax.GradientTransformationExtraArgs(_init, update)


def averaged_params(opt_state: Any) -> Tree:
    """Return the averaged parameters from any state that holds an `averaged`.

    Args:
        opt_state: the state itself, or any pytree around it: `optax.chain`, `optax.MultiSteps`, a
            Flax `TrainState`, an `nnx.Optimizer`.

    Returns:
        A tree like the parameters; of 16-bit parameters in float32. They stay when the state is
        donated. What a model keeps beside its parameters, such as the statistics of batch
        normalization, is not averaged, and must be measured anew under them.

    Raises:
        ValueError: the state holds none, or several.

    Example:
        >>> tx = optax.chain(optax.sgd(0.5), averaged(share=1.0))
        >>> x = jnp.ones(2)
        >>> _, state = tx.update(x, tx.init(x), x)
        >>> print(averaged_params(state))
        [0.5 0.5]
    """
    opt_state = getattr(opt_state, "opt_state", opt_state)
    found = [x for x in jax.tree.leaves(opt_state, is_leaf=_is_averaged) if _is_averaged(x)]
    if len(found) != 1:
        raise ValueError(
            f"`opt_state` must hold exactly one average of parameters, found {len(found)}: make "
            "the optimizer with `optax.chain(optimizer, optax_meta.averaged())`; under NNX pass "
            "the optimizer, not its `nnx.state`"
        )
    return detach(read_variables(found[0]).average)


def _is_averaged(x: object) -> bool:
    return isinstance(x, AveragedState)


def _init(params: optax.Params) -> AveragedState:
    return AveragedState(jnp.int32(0), jax.tree.map(_wide, params))


def _update(
    share: float,
    updates: optax.Updates,
    state: AveragedState,
    params: optax.Params | None = None,
    **extra_args: object,
) -> tuple[optax.Updates, AveragedState]:
    del extra_args
    if params is None:
        raise ValueError("`averaged` needs the parameters: call `tx.update(grads, state, params)`")
    weight = 1.0 / (1.0 + share * state.num_averaged.astype(jnp.float32))

    def moved(average: jax.Array, param: jax.Array) -> jax.Array:
        if not is_inexact(param):
            return param
        return average + weight.astype(average.dtype) * (param.astype(average.dtype) - average)

    after = optax.apply_updates(params, updates)
    average = jax.tree.map(moved, state.average, after)
    return updates, AveragedState(state.num_averaged + 1, average)


def _wide(param: jax.Array) -> jax.Array:
    """Return a copy, float32 where that is wider: a weight of 1/t is lost in 16 bits."""
    param = jnp.asarray(param)
    if not is_inexact(param):
        return param
    return jnp.array(param, jnp.promote_types(param.dtype, jnp.float32), copy=True)
