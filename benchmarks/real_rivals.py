"""What else a user of the real cells could do: methods by name, at their authors' defaults.

Where a method replaces AdamW it keeps the cells' weight decay of 0.1. Those that are given a rate
get the customary one of the optimizer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib
from real_cells import Cell

import optax_meta
from optax_meta import protocol
from optax_meta.meta.protocol import Contender, Factory, Run

SHARES = (0.001, 0.003, 0.01, 0.03)
"""Of the norm, for the constant that serves all cells best."""
SHARE_KINDS = ("of the norm", "of each matrix", "of each matrix, norms kept")
_LARGEST_SHARE = 0.05
_DECAY = 0.1


def linear(run: Run) -> Callable[[Any], jax.Array]:
    """Return a factor that warms up over 5 % of the run and falls to 0."""
    return protocol.schedule(1, 1.0, run.steps)


def warmed_up(run: Run, rate: float) -> Callable[[Any], jax.Array]:
    """Return a rate that warms up over 5 % of the run and stays."""
    return lambda step: rate * jnp.minimum((step + 1.0) / jnp.maximum(run.steps / 20.0, 1.0), 1.0)


def _only(optimizer: str, make: Callable[[Run], Any], **options: Any) -> Contender:
    """Return a method in place of one optimizer."""
    return Contender(
        lambda factory, run: make(run),  # noqa: ARG005
        optimizers=(optimizer,),
        any_start=True,
        **options,
    )


def _schedule_free(base: Callable[[Any], Any], rate: float) -> Callable[[Run], Any]:
    def make(run: Run) -> optax.GradientTransformationExtraArgs:
        schedule = warmed_up(run, rate)
        return contrib.schedule_free(base(schedule), schedule, b1=0.9)

    return make


class GreedyState(NamedTuple):
    """State of `greedy`.

    Attributes:
        values: the last losses, float32[W]; nan where there were none yet.
        best: lowest mean of these so far, float32[].
        streak: decisions in a row that brought a new best, or below 0 that did not, int32[].
        start: rate that the run began with, float32[].
    """

    values: jax.Array
    best: jax.Array
    streak: jax.Array
    start: jax.Array


def greedy(*, factor: float = 0.95, patience: int = 10, window: int = 50) -> optax_meta.Controller:
    """Raise the rate while the averaged loss falls, lower it while it does not.

    Args:
        factor: what a rate is multiplied by, or divided.
        patience: steps in a row of one kind that are tolerated: the next one moves the rate.
        window: steps that the loss is averaged over.

    Source: "GreedyLR: A Novel Adaptive Learning Rate Scheduler", https://arxiv.org/abs/2512.14527;
    its defaults, with the average that noise asks for, and a rate between a hundredth and ten times
    the start, as 1e-3 and 1 are around 0.1.
    """

    def init(hyperparams: Any) -> GreedyState:
        start = jnp.asarray(hyperparams["learning_rate"], jnp.float32)
        largest = jnp.float32(jnp.finfo(jnp.float32).max)
        return GreedyState(jnp.full(window, largest), largest, jnp.int32(0), start)

    def update(metrics: Any, state: GreedyState, hyperparams: Any) -> tuple[Any, GreedyState]:
        values = jnp.roll(state.values, 1).at[0].set(metrics.value)
        count = jnp.minimum(metrics.step + 1, window)
        mean = jnp.sum(jnp.where(jnp.arange(window) < count, values, 0.0)) / count
        is_better = mean < state.best - 1e-6
        streak = jnp.where(
            is_better, jnp.maximum(state.streak, 0) + 1, jnp.minimum(state.streak, 0) - 1
        )
        is_due = jnp.abs(streak) > patience
        change = jnp.where(is_due, jnp.where(streak > 0, 1.0 / factor, factor), 1.0)
        rate = hyperparams["learning_rate"] * change
        rate = jnp.clip(rate, 0.01 * state.start, 10.0 * state.start)
        best = jnp.where(is_better, mean, state.best)
        streak = jnp.where(is_due, 0, streak)
        return {"learning_rate": rate}, GreedyState(values, best, streak, state.start)

    return optax_meta.Controller(init, update)


def moves(share: float, kind: str) -> Contender:
    """Return the method whose every move is a share of the norm, with a linear fall.

    Args:
        share: η, of the norm; 0.01 for 1 %.
        kind: out of `SHARE_KINDS`; each leaf by itself but for the first, where leaves smaller than
            the average count as that, since biases start at 0. The last is "Hyperball" itself:
            matrices are scaled back to their norm after every move.

    Source: "Hyperball", https://arxiv.org/abs/2606.16899.
    """
    if kind == SHARE_KINDS[-1]:
        return Contender(_hyperball, settings=(share,), any_start=True)
    return Contender(_moves, settings=(share, SHARE_KINDS.index(kind)), any_start=True)


def _hyperball(factory: Factory, run: Run, settings: Any) -> optax.GradientTransformation:
    free = _moves(factory, run, (*settings, 1))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = free.update(updates, state, params)
        least = 0.1 * optax.tree.norm(params) / sum(x.size for x in jax.tree.leaves(params)) ** 0.5

        def kept(update: jax.Array, param: jax.Array) -> jax.Array:
            before, after = (
                jnp.linalg.norm(param.ravel()),
                jnp.linalg.norm((param + update).ravel()),
            )
            # What starts at 0, as half of an adapter does, has to grow first.
            is_kept = (param.ndim > 1) & (before > least * param.size**0.5)
            factor = jnp.where(is_kept, before / jnp.maximum(after, 1e-30), 1.0)
            return factor * (param + update) - param

        return jax.tree.map(kept, updates, params), state

    return optax.GradientTransformation(free.init, update)


def _moves(factory: Factory, run: Run, settings: Any) -> optax.GradientTransformation:
    share, kind = settings

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        wanted = share * (1.0 - state / run.steps)
        whole, moved = optax.tree.norm(params), optax.tree.norm(updates)
        num = sum(x.size for x in jax.tree.leaves(params))

        def scaled(update: jax.Array, param: jax.Array) -> jax.Array:
            least = whole * (param.size / num) ** 0.5
            norm = jnp.maximum(jnp.linalg.norm(param.ravel()), least)
            single = norm / jnp.maximum(jnp.linalg.norm(update.ravel()), 1e-30)
            return wanted * jnp.where(kind == 0, whole / jnp.maximum(moved, 1e-30), single) * update

        return jax.tree.map(scaled, updates, params), state + 1

    scale = optax.GradientTransformation(lambda params: jnp.int32(0), update)  # noqa: ARG005
    return optax.chain(factory(1.0), scale)


def share_by_law(cell: Cell, steps: int) -> float:
    """Return the share that a published fit gives for a cell: η = 18.3 · N⁻⁰·³⁹⁵ · w⁻⁰·¹⁵ · √B.

    N is the number of tokens, or examples, of the run, w the width and B the batch; at most 5 %,
    which all runs as short as these come to or near.

    Source: the fit by Marin of the moves of "Hyperball", https://arxiv.org/abs/2606.16899.
    """
    tokens = steps * cell.batch * cell.length
    found = 18.3 * tokens**-0.395 * cell.width**-0.15 * cell.batch**0.5
    return min(found, _LARGEST_SHARE)


_METHODS: dict[str, Contender] = {
    "prodigy + linear": _only(
        "adamw", lambda run: contrib.prodigy(linear(run), weight_decay=_DECAY)
    ),
    "dadapt + linear": _only(
        "adamw", lambda run: contrib.dadapt_adamw(linear(run), weight_decay=_DECAY)
    ),
    "schedule-free": _only(
        "adamw",
        _schedule_free(partial(optax.adamw, b1=0.0, weight_decay=_DECAY), 0.0025),
        params=contrib.schedule_free_eval_params,
    ),
    "schedule-free (sgd)": _only(
        "momentum", _schedule_free(optax.sgd, 1.0), params=contrib.schedule_free_eval_params
    ),
    "momo (adam)": _only("adamw", lambda run: contrib.momo_adam(weight_decay=_DECAY)),  # noqa: ARG005
    "momo": _only("momentum", lambda run: contrib.momo()),  # noqa: ARG005
    "dog": _only("momentum", lambda run: contrib.dog()),  # noqa: ARG005
    "mechanic + linear": Contender(
        lambda factory, run: contrib.mechanize(factory(lambda t: run.rate * linear(run)(t)))
    ),
    # Of single batches, a loss sets no new best for ten steps in a row from the start on.
    "reduce_on_plateau": Contender(
        lambda factory, run: optax.chain(
            factory(run.rate), contrib.reduce_on_plateau(accumulation_size=20)
        )
    ),
    "distance": Contender.from_controller(
        lambda run: optax_meta.distance(total_steps=run.steps), any_start=True
    ),
    "greedy": Contender.from_controller(lambda run: greedy()),  # noqa: ARG005
    "hypergradient": Contender.from_controller(
        lambda run: optax_meta.hypergradient()  # noqa: ARG005
    ),
}
METHODS = tuple(_METHODS)


def rivals(cell: Cell, steps: int) -> dict[str, Contender]:
    """Return the methods that a cell can be trained with, by name."""
    fitting = {
        name: method
        for name, method in _METHODS.items()
        if method.optimizers is None or cell.optimizer in method.optimizers
    }
    law = share_by_law(cell, steps)
    return fitting | {f"moves {kind}, by law": moves(law, kind) for kind in SHARE_KINDS}
