"""Learning across runs: the same model is trained again and again, and each run tells one number.

Within a run of usual length nothing tells which level of a rate ends lower: smaller moves show
their gain at once, whatever they cost later. How a run ended does, and across runs it adds up. So
little is learned from each that little must be asked: for each hyperparameter how far from the
policy it should lie.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_meta import actions
from optax_meta.checkpoints import as_policy
from optax_meta.checks import check_number, check_seed, is_real_scalar
from optax_meta.controllers.wrapping import OPTIONS
from optax_meta.policies import Policy, PolicyNetwork

SPAN = 16.0
"""How far levels may go by default."""
_RATE = "learning_rate"
_SLOPE, _CURVATURE, _CURVATURE_ERROR = 0.07, 0.06, 0.03
"""What is expected before the first run, of the log-loss by nats of a rate: a slope within ±0.07,
and a curvature of 0.06 ± 0.03 per nat², as networks have around a tuned rate."""
_LEAST_CURVATURE = 0.03
_NOISE, _NOISE_RUNS = 0.03, 5.0
"""Standard deviation of the log-loss from seed to seed, and how many runs that guess counts for."""
_ITERATIONS = 8
"""Noise and fit depend on each other; a few rounds settle both."""
_WORST = 1.0
"""Log-ratios are clipped to this, that of a run that diverged included."""
_SETTLING = 8.0
"""Runs after which the exploration's variance has fallen to a half."""


class AcrossState(NamedTuple):
    """What all runs so far have told; arrays only, of a size that does not grow.

    Attributes:
        num_runs: so far, int32[].
        seed: of all exploration, uint32[].
        reference: the first finite loss, which the others are compared with, float32[]; nan before.
        squares: sums of squares and products of what was tried and what came of it,
            float32[F + 1, F + 1] for F = 1 + 2 · moves coefficients.
    """

    num_runs: jax.Array
    seed: jax.Array
    reference: jax.Array
    squares: jax.Array


class AcrossRuns(NamedTuple):
    """Pure functions that learn a policy from how whole runs end.

    Attributes:
        init: (seed) → `AcrossState`.
        ask: (state, index=0) → `Policy` for the next run, a little off the best one known, so that
            there is something to learn; further indices are for runs that go on at the same time.
            The same state asks the same, so a run that was killed is started again.
        tell: (state, policy, loss) → state, once a run under an asked policy is over: a finite
            scalar, lower is better, for instance the held-out loss; one that is not finite counts
            as the worst.
        tell_group: (state, policies, losses) → state: the same for several asked policies at once
            whose runs share their seed, so that only how they differ counts, and that says more;
            float32[K].
        policy: (state) → the best `Policy` known, to use where nothing more is to be learned.
        shifts: (state) → how far that one lies from where it began, in nats, float32[moves].
        row: (state) → the same by name with the number of runs, for a log: `writers.jsonl(…,
            counter="update")` makes a file of it that `optax-meta report` shows.
    """

    init: Callable[..., AcrossState]
    ask: Callable[..., Policy]
    tell: Callable[..., AcrossState]
    tell_group: Callable[..., AcrossState]
    policy: Callable[[AcrossState], Policy]
    shifts: Callable[[AcrossState], jax.Array]
    row: Callable[[AcrossState], dict[str, float]]


def across_runs(
    policy: Policy | str = "any-lr-v2", *, sigma: float = 0.35, span: float = SPAN
) -> AcrossRuns:
    """Learn from run to run of one workload: nightly trainings, folds, ablations.

    Each run follows a policy whose outputs are shifted by a little; how it ends teaches which shift
    is better, by Bayesian regression of the log-loss on shifts and their squares. It forgets
    nothing and costs nothing within a run. A shift that changes in the course of a run would be
    twice as much to learn, which twenty runs do not tell.

    Args:
        policy: what to start from: a `Policy`, the name of a shipped one or the path of a file;
            with an ordered action space, as `any-lr-v2` has.
        sigma: standard deviation of the first shifts, in nats, > 0.
        span: how far levels of the learning rate may go from where they hold, as a factor up or
            down, in [1, 1000]. Whole runs tell what one run cannot, so that this may be further
            than the policy itself goes, whose wrappers are widened with it; where that goes further
            it stays.

    Returns:
        An `AcrossRuns`.

    Raises:
        ValueError: `sigma` is not positive, `span` is out of range, or the policy has another kind
            of actions or network.

    Source: G. E. P. Box and K. B. Wilson, "On the Experimental Attainment of Optimum Conditions",
    https://doi.org/10.1111/j.2517-6161.1951.tb00067.x, for the quadratic; F. Sehnke et al.,
    "Parameter-exploring policy gradients", https://doi.org/10.1016/j.neunet.2009.12.004, for
    exploring by the parameters of a policy, one draw and its mirror image a pair of runs.

    Example:
        >>> runs = optax_meta.across_runs("any-lr-v2")
        >>> state = runs.init(seed=0)
        >>> for loss in (2.31, 2.28, 2.30):
        ...     policy = runs.ask(state)  # train with `learned(policy, total_steps=…)`
        ...     state = runs.tell(state, policy, loss)
        >>> runs.shifts(state).shape
        (1,)
    """
    policy = as_policy(policy)
    check_number("sigma", sigma)
    if not sigma > 0.0:
        raise ValueError(f"`sigma` must be positive, got {sigma}")
    if not policy.action_space.spread or not isinstance(policy.network, PolicyNetwork):
        raise ValueError(
            "learning across runs needs a policy with an ordered action space: make its actions "
            "with `actions.ordered(…)`"
        )
    policy = _wider(policy, span)
    return AcrossRuns(
        init=partial(_init, policy),
        ask=partial(_ask, policy, sigma),
        tell=partial(_tell, policy),
        tell_group=partial(_tell_group, policy),
        policy=lambda state: _shifted(policy, _best(policy, state)),
        shifts=partial(_best, policy),
        row=partial(_row_of, policy),
    )


def _wider(policy: Policy, span: float) -> Policy:
    """Return the policy with levels of the rate, and room in its wrappers, up to a factor."""
    space = actions.wider(policy.action_space, _RATE, span)
    before, after = (_highest(s) for s in (policy.action_space, space))
    wrappers = {name: dict(options) for name, options in policy.wrappers.items()}
    for name, argument in (("calibrated", "span"), ("trust_region", "max_share")):
        options = {**OPTIONS[name], **wrappers.get(name, {})}
        if name in wrappers and options.get("hyperparam", _RATE) == _RATE:
            wrappers[name][argument] = options[argument] * after / before
    return policy._replace(action_space=space, wrappers=wrappers)


def _highest(space: actions.ActionSpace) -> float:
    """Return the highest level of the learning rate; 1 where it has none."""
    levels = [m.amounts for m in space.moves if (m.hyperparam, m.kind) == (_RATE, "level")]
    return max(levels[0]) if levels else 1.0


def _init(policy: Policy, seed: int = 0) -> AcrossState:
    check_seed(seed)
    size = 2 + 2 * len(policy.action_space.moves)
    return AcrossState(
        num_runs=jnp.int32(0),
        seed=jnp.asarray(seed, jnp.uint32),
        reference=jnp.float32(jnp.nan),
        squares=jnp.zeros((size, size), jnp.float32),
    )


def _ask(policy: Policy, sigma: float, state: AcrossState, index: int = 0) -> Policy:
    best = _best(policy, state)
    number = state.num_runs + index
    pair = number // 2
    key = jax.random.fold_in(jax.random.key(state.seed), pair)
    # A draw and its mirror image: what is even in the shift cancels out of what a pair tells.
    sign = 1.0 - 2.0 * (number % 2)
    width = sigma / jnp.sqrt(1.0 + 2 * pair / _SETTLING)
    shift = best + width * sign * jax.random.normal(key, best.shape)
    return _shifted(policy, _within_reach(policy, shift))


def _tell(
    policy: Policy, state: AcrossState, asked: Policy, loss: jax.typing.ArrayLike
) -> AcrossState:
    if not is_real_scalar(loss):
        raise ValueError(f"`loss` must be a scalar, got {type(loss).__name__}")
    reference = _reference(state, jnp.asarray(loss, jnp.float32))
    return _add(state, reference, _told(policy, reference, asked, loss)[None])


def _tell_group(
    policy: Policy, state: AcrossState, asked: Sequence[Policy], losses: jax.typing.ArrayLike
) -> AcrossState:
    losses = jnp.asarray(losses, jnp.float32)
    if jnp.shape(losses) != (len(asked),):
        raise ValueError(
            f"`losses` must be one for each of the {len(asked)} policies, got the shape "
            f"{jnp.shape(losses)}"
        )
    reference = _reference(state, losses[jnp.argmax(jnp.isfinite(losses))])
    told = [_told(policy, reference, *pair) for pair in zip(asked, losses, strict=True)]
    rows = jnp.stack(told)
    # What they share, such as the luck of the seed, is no matter of the policy.
    return _add(state, reference, rows - jnp.mean(rows, axis=0, keepdims=True))


def _reference(state: AcrossState, loss: jax.Array) -> jax.Array:
    is_first = jnp.isnan(state.reference) & jnp.isfinite(loss)
    return jnp.where(is_first, loss, state.reference)


def _told(
    policy: Policy, reference: jax.Array, asked: Policy, loss: jax.typing.ArrayLike
) -> jax.Array:
    """Return what a run tells: what was tried, and the log of what came of it; float32[F + 1]."""
    if not isinstance(asked, Policy):
        raise ValueError(
            f"a policy must be one that was asked for, got {type(asked).__name__}: call "
            "`tell(state, policy, loss)`"
        )
    loss = jnp.asarray(loss, jnp.float32)
    return jnp.append(_row(_shift_of(policy, asked)), _log_ratio(loss, reference))


def _add(state: AcrossState, reference: jax.Array, rows: jax.Array) -> AcrossState:
    squares = jnp.einsum("ri,rj->ij", rows, rows, precision="highest")
    return state._replace(
        num_runs=state.num_runs + len(rows),
        reference=reference,
        squares=state.squares + squares,
    )


def _row_of(policy: Policy, state: AcrossState) -> dict[str, float]:
    levels = zip(policy.action_space.hyperparams, _best(policy, state), strict=True)
    found = {f"level/{name}": float(level) for name, level in levels}
    return {"update": int(state.num_runs), **found}


def _log_ratio(loss: jax.Array, reference: jax.Array) -> jax.Array:
    """Return log(loss / reference), of losses that may be negative what is close to it."""
    both = (loss > 0.0) & (reference > 0.0)
    ratio = jnp.log(jnp.where(both, loss, 1.0) / jnp.where(both, reference, 1.0))
    scale = jnp.maximum(jnp.abs(loss) + jnp.abs(reference), 1e-30)
    value = jnp.where(both, ratio, 2.0 * (loss - reference) / scale)
    return jnp.clip(jnp.where(jnp.isfinite(value), value, _WORST), -_WORST, _WORST)


def _row(shift: jax.Array) -> jax.Array:
    """Return what the log-loss is linear in: 1, the shifts, and their squares."""
    return jnp.concatenate([jnp.ones(1), shift, shift**2])


def _best(policy: Policy, state: AcrossState) -> jax.Array:
    """Return the shifts with the lowest expected loss, float32[moves]."""
    moves = len(policy.action_space.moves)
    products, sums = state.squares[:-1, :-1], state.squares[:-1, -1]
    curvature = jnp.full(moves, _CURVATURE)
    expected = jnp.concatenate([jnp.zeros(1 + moves), curvature])
    slopes, bends = jnp.full(moves, _SLOPE**-2), jnp.full(moves, _CURVATURE_ERROR**-2)
    # Of the constant nothing is known: losses are compared with the first, whatever its luck.
    prior = jnp.diag(jnp.concatenate([jnp.full(1, 1e-3), slopes, bends]))

    def fitted(variance: jax.Array) -> jax.Array:
        return jnp.linalg.solve(products / variance + prior, sums / variance + prior @ expected)

    def settle(_: int, variance: jax.Array) -> jax.Array:
        row = jnp.append(-fitted(variance), 1.0)
        left = jnp.maximum(row @ state.squares @ row, 0.0)
        return (_NOISE_RUNS * _NOISE**2 + left) / (_NOISE_RUNS + state.num_runs)

    variance = jax.lax.fori_loop(0, _ITERATIONS, settle, jnp.float32(_NOISE**2))
    fit = fitted(variance)
    bend = jnp.maximum(fit[1 + moves :], _LEAST_CURVATURE)
    return _within_reach(policy, -fit[1 : 1 + moves] / (2.0 * bend))


def _within_reach(policy: Policy, shift: jax.Array) -> jax.Array:
    """Return shifts that go no further than the choices reach, float32[moves]."""
    reach = jnp.array([np.abs(actions.positions(move)).max() for move in policy.action_space.moves])
    return jnp.clip(shift, -reach, reach)


def _shifted(policy: Policy, shift: jax.Array) -> Policy:
    """Return the policy with its outputs shifted."""
    params: Any = policy.params
    head = _head(policy)
    head = {**head, "bias": head["bias"] + shift}
    return policy._replace(params={"params": {**params["params"], "head": head}})


def _shift_of(policy: Policy, asked: Policy) -> jax.Array:
    """Return by how much the outputs of a policy that was asked for are shifted."""
    return _head(asked)["bias"] - _head(policy)["bias"]


def _head(policy: Policy) -> Any:
    params: Any = policy.params
    return params["params"]["head"]
