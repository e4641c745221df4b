"""The distance rule."""

from optax_meta.base import Controller, Hyperparams, State
from optax_meta.checks import Number
from optax_meta.controllers.annealed import annealed
from optax_meta.controllers.calibrated import calibrated
from optax_meta.metrics import Metrics
from optax_meta.origins import keep_origin


@keep_origin
def distance(
    *,
    share: Number = 0.4,
    growing_share: Number = 1.5,
    length_power: Number = 0.25,
    power: Number = 1.0,
    total_steps: Number | None = None,
) -> Controller:
    """Move by a share of the way ahead, under any optimizer, with a linear fall to the end.

    η = c·d·(1 - p)ᵏ/u, for the distance d that the parameters have to go at least, as gradients
    tell it, u what a rate of one moves, and c a share that depends on the length of the run, on
    whether gradients point back, and on how far moves add up; see `optax_meta.calibrated`. No
    starting rate, no state of the size of the parameters. It is what a policy that holds does, and
    what others must beat.

    Args:
        share: c, ≥ 0, in a run of 1000 steps under a momentum of about 0.9.
        growing_share: c while the distance still grows, as in `calibrated`.
        length_power: how c falls with the length of the run, as in `calibrated`.
        power: k, ≥ 0; 1 falls linearly.
        total_steps: length of the run, counted in calls of `update`; None where it is not known:
            then nothing falls.

    Returns:
        A `Controller` that decides at every step. Needs `params=`, but no loss. The starting rate
        may be left out.

    Raises:
        ValueError: a number is out of range.

    Source: K. Mishchenko and A. Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free
    Learner", https://arxiv.org/abs/2306.06101; A. Defazio et al., "When, Why and How Much? Adaptive
    Learning Rate Scheduling by Refinement", https://arxiv.org/abs/2310.07831.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.lion, distance(total_steps=1000))()
    """
    held = Controller(init=_init, update=_hold, needs_value=False)
    rule = calibrated(held, share=share, growing_share=growing_share, length_power=length_power)
    return annealed(rule, power=power, total_steps=total_steps)


def _init(hyperparams: Hyperparams) -> State:
    del hyperparams
    return ()


def _hold(metrics: Metrics, state: State, hyperparams: Hyperparams) -> tuple[Hyperparams, State]:
    del metrics
    return hyperparams, state
