"""Policies learned over thousands of training runs at once.

Every run is one `rollout`: the same transformation that users run, under a scan, vectorized over
tasks and over several rollouts of each task. Runs of a group share the task, initial parameters,
batches, optimizer and starting rate, and differ in the policy's random choices alone, so that
their mean is a baseline without bias and most noise cancels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from optax_meta import policy_gradient
from optax_meta.base import check_seed, check_whole
from optax_meta.controllers.learned import learned
from optax_meta.meta.episodes import Trajectory, rollout
from optax_meta.meta.tasks import TaskFamily
from optax_meta.policies import Policy, check_policy

Learner = Literal["reinforce", "evolution"]
_AVERAGED_UPDATES = 50.0
_LEAST_RATIO = 1e-6
_FIGURES = ("fall", "spread")

OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": lambda b1, b2: optax.identity(),  # noqa: ARG005
    "momentum": lambda b1, b2: optax.trace(b1),  # noqa: ARG005
    "adam": optax.scale_by_adam,
    "rmsprop": lambda b1, b2: optax.scale_by_rms(b2),  # noqa: ARG005
    "lion": optax.scale_by_lion,
}
"""Inner optimizers by name: (decay of the first, decay of the second moment) → direction."""


class MetaState(NamedTuple):
    """State of a meta-trainer; arrays only.

    Attributes:
        step: updates of the policy so far, int32[].
        seed: of everything that is drawn, uint32[].
        policy_params: flat, float32[P].
        mean_params: their average over about the last fifty updates, float32[P].
        learner_state: of the policy's own optimizer.
        num_inner_steps: inner training steps taken so far, float32[].
    """

    step: jax.Array
    seed: jax.Array
    policy_params: jax.Array
    mean_params: jax.Array
    learner_state: Any
    num_inner_steps: jax.Array


class MetaTrainer(NamedTuple):
    """A pair of functions that learn a policy.

    Attributes:
        init: (seed) → `MetaState`.
        update: (state) → (state, info): runs one batch of every chosen family and improves the
            policy once; `info` is a dict of floats. The state alone decides what is drawn, so a
            restored run is the same run.
        policy: (state) → `Policy` with the average of the parameters learned so far, whose score
            is steadier than that of any one update's.
        description: what it learns from and how, JSON values, for the policy's card.
    """

    init: Callable[[int], MetaState]
    update: Callable[[MetaState], tuple[MetaState, dict[str, float]]]
    policy: Callable[[MetaState], Policy]
    description: Mapping[str, Any]


class _Setting(NamedTuple):
    """The static part of a meta-trainer."""

    families: tuple[TaskFamily, ...]
    policy: Policy
    optimizers: tuple[str, ...]
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
    optimizer: optax.GradientTransformation
    mesh: Any

    @property
    def steers_decay(self) -> bool:
        return "weight_decay" in self.policy.action_space.hyperparams


def meta_trainer(
    families: Sequence[TaskFamily],
    policy: Policy,
    *,
    optimizers: Sequence[str] = tuple(OPTIMIZERS),
    learning_rates: tuple[float, float] = (1e-6, 10.0),
    horizons: tuple[int, int] = (100, 2000),
    unknown_horizons: float = 0.25,
    groups: int = 16,
    rollouts: int = 8,
    families_per_update: int = 4,
    weight_decays: tuple[float, float] = (1e-5, 1.0),
    discount: float = 0.98,
    shaped_updates: int | None = None,
    entropy_bonus: float = 3e-3,
    epochs: int = 1,
    learner: Learner = "reinforce",
    sigma: float = 0.05,
    policy_learning_rate: float = 2e-3,
    mesh: Any = None,
) -> MetaTrainer:
    """Build a meta-trainer.

    Each update draws, for every chosen family, one horizon and `groups` tasks, each with its own
    inner optimizer, decay rates and starting rate; every task is run `rollouts` times. "reinforce"
    samples actions and follows -Σ log π(aₜ|sₜ)·Aₜ, where Aₜ is the return less that of the group,
    over the group's spread; the rewards are falls of the log-loss that add up to that between the
    first and the last. "evolution" perturbs the policy's parameters in antithetic pairs instead,
    others for each task, draws actions with the same random numbers in all runs of a group, and
    follows the ranks of their final log-losses.

    Args:
        families: what to learn from.
        policy: what to start from.
        optimizers: names out of `OPTIMIZERS`; drawn evenly. AdamW takes their place under a policy
            that steers its weight decay.
        learning_rates: range of the starting rate, drawn log-uniformly.
        horizons: range of the run's length, drawn log-uniformly.
        unknown_horizons: share of batches in which the policy is not told the length.
        groups: tasks of each family in an update; a multiple of the mesh's size.
        rollouts: runs of each task, ≥ 2, even for "evolution".
        families_per_update: how many families take part in an update.
        weight_decays: range of the starting weight decay, drawn log-uniformly; for a policy that
            steers it.
        discount: γ of the returns, per decision.
        shaped_updates: in this many first updates the training loss between decisions counts, which
            teaches fast but favours rates that fall too early; after them, only the final loss
            does. None for all updates; 0 where the final loss is taken on held-out data, which
            training loss does not foretell.
        entropy_bonus: as in `reinforce`.
        epochs: gradient steps on each batch; with more than one, ratios are clipped as in PPO.
        learner: "reinforce" or "evolution".
        sigma: standard deviation of the parameters' perturbation, for "evolution".
        policy_learning_rate: of the policy's Adam.
        mesh: `jax.sharding.Mesh` with one axis over which tasks are spread; None for one device.

    Returns:
        A `MetaTrainer`.

    Raises:
        ValueError: an argument is out of range.

    Source: averaged parameters, B. Polyak and A. Juditsky, "Acceleration of Stochastic
    Approximation by Averaging", https://doi.org/10.1137/0330046; group baselines without a critic,
    Z. Shao et al., https://arxiv.org/abs/2402.03300; clipped ratios,
    J. Schulman et al., https://arxiv.org/abs/1707.06347; evolution with ranks and antithetic pairs,
    T. Salimans et al., https://arxiv.org/abs/1703.03864.

    Example:
        >>> family = optax_meta.families.quadratics(dim=4)
        >>> policy = optax_meta.init_policy(
        ...     jax.random.key(0), action_space=optax_meta.actions.learning_rate()
        ... )
        >>> trainer = optax_meta.meta_trainer(
        ...     [family], policy, groups=2, rollouts=2, families_per_update=1, horizons=(10, 20)
        ... )
        >>> state, info = trainer.update(trainer.init(0))
        >>> int(state.step)
        1
    """
    unknown = [name for name in optimizers if name not in OPTIMIZERS]
    check_policy(policy)
    low, high = (check_whole("horizons", horizon) for horizon in horizons)
    names = [family.name for family in families]
    groups, epochs = check_whole("groups", groups), check_whole("epochs", epochs)
    rollouts = check_whole("rollouts", rollouts, 2)
    if shaped_updates is not None:
        shaped_updates = check_whole("shaped_updates", shaped_updates, 0)
    for holds, message in (
        (families, "`families` must not be empty"),
        (not unknown and optimizers, f"`optimizers` must be out of {tuple(OPTIMIZERS)}"),
        (len(set(names)) == len(names), f"families need different names, got {names}"),
        (low <= high, f"`horizons` must rise, got {horizons}"),
        (
            0.0 < learning_rates[0] <= learning_rates[1] < math.inf,
            f"`learning_rates` must rise from above 0, got {learning_rates}",
        ),
        (
            0.0 < weight_decays[0] <= weight_decays[1] < math.inf,
            f"`weight_decays` must rise from above 0, got {weight_decays}",
        ),
        (
            1 <= families_per_update <= len(families),
            f"`families_per_update` must lie between 1 and {len(families)}",
        ),
        *(
            (0.0 <= share <= 1.0, f"`{name}` must lie in [0, 1], got {share}")
            for name, share in (
                ("unknown_horizons", unknown_horizons),
                ("discount", discount),
            )
        ),
        (sigma > 0.0, f"`sigma` must be positive, got {sigma}"),
        (entropy_bonus >= 0.0, f"`entropy_bonus` must not be negative, got {entropy_bonus}"),
        (
            policy_learning_rate > 0.0,
            f"`policy_learning_rate` must be positive, got {policy_learning_rate}",
        ),
        (
            mesh is None or groups % mesh.size == 0,
            f"`groups` must be a multiple of the mesh's size, got {groups}",
        ),
        (
            learner in ("reinforce", "evolution"),
            f'`learner` must be "reinforce" or "evolution", got {learner!r}',
        ),
        (
            learner == "reinforce" or rollouts % 2 == 0,
            f'`rollouts` must be even for "evolution", got {rollouts}',
        ),
    ):
        if not holds:
            raise ValueError(message)
    setting = _Setting(
        families=tuple(families),
        policy=policy,
        optimizers=tuple(optimizers),
        learning_rates=learning_rates,
        horizons=horizons,
        unknown_horizons=unknown_horizons,
        groups=groups,
        rollouts=rollouts,
        families_per_update=families_per_update,
        weight_decays=weight_decays,
        discount=discount,
        shaped_updates=shaped_updates,
        entropy_bonus=entropy_bonus,
        epochs=epochs,
        learner=learner,
        sigma=sigma,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(policy_learning_rate)),
        mesh=mesh,
    )
    flat, unravel = ravel_pytree(policy.params)

    def init(seed: int) -> MetaState:
        check_seed(seed)
        state = MetaState(
            step=jnp.int32(0),
            seed=jnp.uint32(seed),
            policy_params=jnp.array(flat, jnp.float32, copy=True),
            mean_params=jnp.array(flat, jnp.float32, copy=True),
            learner_state=setting.optimizer.init(flat),
            num_inner_steps=jnp.float32(0.0),
        )
        return _place(setting, state)

    return MetaTrainer(
        init=init,
        update=partial(_update, setting, _compiled(setting)),
        policy=lambda state: policy._replace(params=unravel(state.mean_params)),
        description={
            "families": names,
            "optimizers": ["adamw"] if setting.steers_decay else list(optimizers),
            "learning_rates": list(learning_rates),
            "weight_decays": list(weight_decays),
            "horizons": list(horizons),
            "unknown_horizons": unknown_horizons,
            "learner": learner,
            "groups": groups,
            "rollouts": rollouts,
            "families_per_update": families_per_update,
            "shaped_updates": shaped_updates,
            "epochs": epochs,
            "policy_learning_rate": policy_learning_rate,
            "wrappers": {name: dict(options) for name, options in policy.wrappers.items()},
        },
    )


class _Compiled(NamedTuple):
    """The jitted functions: one for each family by name, and the learner's."""

    runs: dict[str, Any]
    learn: Any
    average: Any


def _compiled(setting: _Setting) -> _Compiled:
    everywhere = None  # what the learner returns is on every host
    if setting.mesh is not None:
        everywhere = jax.sharding.NamedSharding(setting.mesh, jax.sharding.PartitionSpec())
    return _Compiled(
        runs={f.name: jax.jit(partial(_run, setting, f)) for f in setting.families},
        learn=jax.jit(partial(_learn, setting), out_shardings=everywhere),
        average=jax.jit(lambda new, old, share: share * new + (1.0 - share) * old),
    )


def _update(
    setting: _Setting, compiled: _Compiled, state: MetaState
) -> tuple[MetaState, dict[str, float]]:
    key = jax.random.fold_in(jax.random.key(state.seed), state.step)
    family_key, *keys = jax.random.split(key, 1 + setting.families_per_update)
    chosen = jax.random.choice(
        family_key, len(setting.families), (setting.families_per_update,), replace=False
    )
    batches, names, figures, steps = [], [], [], 0
    is_shaped = jnp.bool_(
        setting.shaped_updates is None or int(state.step) < setting.shaped_updates
    )
    for index, family_key in zip(chosen.tolist(), keys, strict=True):
        family = setting.families[index]
        horizon_key, known_key, run_key = jax.random.split(family_key, 3)
        low, high = (math.log(h) for h in setting.horizons)
        total = round(math.exp(float(jax.random.uniform(horizon_key, minval=low, maxval=high))))
        is_known = jax.random.uniform(known_key) >= setting.unknown_horizons
        task_keys = jax.random.key_data(jax.random.split(run_key, setting.groups))
        batch = compiled.runs[family.name](
            _place(setting, state.policy_params),
            _place(setting, task_keys, sharded=True),
            *_place(setting, (jnp.int32(total), is_known, is_shaped)),
        )
        batches.append(batch["learn"])
        names += [f"{figure}/{family.name}" for figure in _FIGURES]
        figures += [batch[figure] for figure in _FIGURES]
        steps += total * setting.groups * setting.rollouts
    params, learner_state, learned, figures = compiled.learn(
        *_place(setting, (state.policy_params, state.learner_state)), batches, figures
    )
    # Evolution ranks what it is given, be it finite or not.
    if not np.all(np.isfinite([learned["grad_norm"], *figures])):
        drawn = ", ".join(setting.families[index].name for index in chosen.tolist())
        raise ValueError(
            f"nothing finite to learn from at update {int(state.step)}, on {drawn}: the loss of a "
            "family must be finite and positive before the first step, since its logarithm is what "
            "the policy is to lower"
        )
    # Early on the average spans the latter part of the updates so far.
    share = max(1.0 / _AVERAGED_UPDATES, 2.0 / (int(state.step) + 2.0))
    mean_params = compiled.average(params, _place(setting, state.mean_params), share)
    named = [*learned.items(), *zip(names, figures, strict=True)]
    info = {name: float(value) for name, value in sorted(named)}
    return MetaState(
        *_place(setting, (state.step + 1, state.seed)),
        policy_params=params,
        mean_params=mean_params,
        learner_state=learner_state,
        num_inner_steps=_place(setting, state.num_inner_steps + steps),
    ), info


def _place(setting: _Setting, arrays: Any, *, sharded: bool = False) -> Any:
    """Put arrays on the mesh: spread along the first axis, or a copy on each device."""
    if setting.mesh is None:
        return arrays
    spec = jax.sharding.PartitionSpec(*setting.mesh.axis_names[:1] if sharded else ())
    sharding = jax.sharding.NamedSharding(setting.mesh, spec)
    # From the host, where each process has the same values.
    return jax.device_put(jax.tree.map(np.asarray, arrays), sharding)


def _run(
    setting: _Setting,
    family: TaskFamily,
    flat: jax.Array,
    task_keys: jax.Array,
    total_steps: jax.Array,
    horizon_is_known: jax.Array,
    is_shaped: jax.Array,
) -> dict[str, Any]:
    """Run a batch of one family; return what the learner needs, and its summary."""
    task_keys = jax.random.wrap_key_data(task_keys)
    _, unravel = ravel_pytree(setting.policy.params)
    draw_optimizer = partial(_draw_optimizer, setting.optimizers)
    if setting.steers_decay:
        draw_optimizer = partial(_draw_adamw, setting.weight_decays)

    def one(key: jax.Array, seed: jax.Array, params: jax.Array) -> Trajectory:
        task_key, optimizer_key, rate_key, run_key = jax.random.split(key, 4)
        low, high = (math.log(rate) for rate in setting.learning_rates)
        return rollout(
            setting.policy._replace(params=unravel(params)),
            family.build(family.sample(task_key)),
            run_key,
            total_steps=total_steps,
            optimizer=draw_optimizer(optimizer_key),
            learning_rate=jnp.exp(jax.random.uniform(rate_key, minval=low, maxval=high)),
            seed=seed,
            horizon_is_known=horizon_is_known,
            max_decisions=_max_decisions(setting),
        )

    seeds = jax.vmap(lambda key: jax.random.bits(key, (setting.rollouts,)))(task_keys)
    if setting.learner == "reinforce":
        runs = jax.vmap(jax.vmap(one, (None, 0, None)), (0, 0, None))(task_keys, seeds, flat)
        values = _log_values(runs)
        learn = _episodes(setting, runs, values, is_shaped)
    else:
        draw = partial(jax.random.normal, shape=(setting.rollouts // 2, flat.size))
        half = setting.sigma * jax.vmap(lambda seed: draw(jax.random.key(seed)))(seeds[:, 0])
        moves = jnp.concatenate([half, -half], axis=1)
        seeds = jnp.broadcast_to(seeds[:, :1], seeds.shape)
        runs = jax.vmap(jax.vmap(one, (None, 0, 0)))(task_keys, seeds, flat[None, None] + moves)
        values = _log_values(runs)
        ranks = jnp.argsort(jnp.argsort(values[..., -1], axis=1), axis=1)
        score = ranks / (setting.rollouts - 1) - 0.5
        learn = jnp.einsum("gr,grp->p", score, moves, precision="highest")
        learn /= setting.sigma**2 * score.size
    return {
        "learn": learn,
        "fall": jnp.mean(values[..., 0] - values[..., -1]),
        "spread": jnp.mean(jnp.std(values[..., -1], axis=1)),
    }


def _max_decisions(setting: _Setting) -> int:
    """Return how many decisions the longest run takes, whether its length is known or not."""
    (_, longest), unknown = setting.horizons, learned(setting.policy)
    spaced = max(-(-longest // unknown.decision_interval), setting.policy.num_decisions)
    return unknown.dense_steps + spaced + 1


def _draw_optimizer(
    names: tuple[str, ...], key: jax.Array
) -> Callable[..., optax.GradientTransformation]:
    """Return the factory of a random optimizer: all directions are computed, one is taken."""
    kind_key, *decay_keys = jax.random.split(key, 3)
    kind = jax.random.randint(kind_key, (), 0, len(names))
    b1, b2 = _draw_decays(*decay_keys)
    directions = [OPTIMIZERS[name](b1, b2) for name in names]

    def factory(learning_rate: jax.Array) -> optax.GradientTransformation:
        def init(params: Any) -> tuple[Any, ...]:
            return tuple(direction.init(params) for direction in directions)

        def update(updates: Any, state: Any, params: Any = None) -> Any:
            pairs = [d.update(updates, s, params) for d, s in zip(directions, state, strict=True)]
            moves, state = zip(*pairs, strict=True)
            picked = jax.tree.map(lambda *u: -learning_rate * jax.lax.select_n(kind, *u), *moves)
            return picked, state

        return optax.GradientTransformation(init, update)

    return factory


def _draw_decays(b1_key: jax.Array, b2_key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return random decay rates of first and second moments."""
    b1 = 1.0 - 10.0 ** jax.random.uniform(b1_key, minval=-1.7, maxval=-0.7)
    return b1, 1.0 - 10.0 ** jax.random.uniform(b2_key, minval=-3.0, maxval=-1.3)


def _draw_adamw(
    weight_decays: tuple[float, float], key: jax.Array
) -> Callable[..., optax.GradientTransformation]:
    """Return AdamW with random decay rates and a random weight decay to start from."""
    decay_key, *decay_keys = jax.random.split(key, 3)
    b1, b2 = _draw_decays(*decay_keys)
    low, high = (math.log(decay) for decay in weight_decays)
    return partial(
        optax.adamw,
        b1=b1,
        b2=b2,
        weight_decay=jnp.exp(jax.random.uniform(decay_key, minval=low, maxval=high)),
    )


def _log_values(runs: Trajectory) -> jax.Array:
    """Return log-losses before each decision's effect and after the last, float32[G, R, D + 1].

    They begin at that of the steps up to the second decision; the last one is that plus the
    log-ratio that the loss on fixed data ends at, which may be of another kind; a millionth is as
    good as less. A run that is lost ends one nat above where it began.
    """
    begin = jnp.log(jnp.maximum(runs.value[..., 0], 1e-30))
    initial, final = runs.initial["loss"], runs.final["loss"]
    fall = jnp.log(initial) - jnp.log(jnp.maximum(final, _LEAST_RATIO * initial))
    final = begin - jnp.where(jnp.isfinite(final), fall, -jnp.inf)
    during = jnp.log(jnp.maximum(runs.value, 1e-30))
    last = runs.mask - jnp.roll(runs.mask, -1, axis=-1).at[..., -1].set(0.0)
    during = jnp.where(last > 0.0, final[..., None], during)
    during = jnp.where(runs.mask > 0.0, during, final[..., None])
    values = jnp.concatenate([begin[..., None], during], axis=-1)
    return jnp.minimum(values, begin[..., None] + 1.0)


def _episodes(
    setting: _Setting, runs: Trajectory, values: jax.Array, is_shaped: jax.Array
) -> dict[str, jax.Array]:
    """Return observations, actions, log-probabilities, advantages and mask of every decision."""
    rewards = (values[..., :-1] - values[..., 1:]) * runs.mask
    discounted = jax.vmap(jax.vmap(policy_gradient.discounted_returns, (0, None)), (0, None))
    shaped = discounted(rewards, setting.discount)
    returns = jnp.where(is_shaped, shaped, values[..., :1] - values[..., -1:])
    centred = returns - jnp.mean(returns, axis=1, keepdims=True)
    spread = jnp.std(values[..., -1], axis=1)[:, None, None]
    advantages = jnp.clip(centred / (spread + 0.02), -4.0, 4.0) * runs.mask
    return {
        "observation": runs.observation,
        "action": runs.action,
        "log_prob": runs.log_prob,
        "advantage": advantages,
        "mask": runs.mask,
    }


def _learn(
    setting: _Setting, flat: Any, learner_state: Any, batches: list[Any], figures: list[jax.Array]
) -> tuple[Any, Any, dict[str, jax.Array], list[jax.Array]]:
    """Improve the policy's parameters; return the learner's own figures, and pass on the others.

    These have no names here: another set of families must not be another program.
    """
    if setting.learner == "evolution":
        gradient: Any = sum(batches[1:], batches[0]) / len(batches)
        updates, learner_state = setting.optimizer.update(gradient, learner_state, flat)
        flat = optax.apply_updates(flat, updates)
        return flat, learner_state, {"grad_norm": optax.tree.norm(gradient)}, figures
    rows = {
        name: jnp.concatenate(
            [batch[name].reshape(-1, *batch[name].shape[3:]) for batch in batches]
        )
        for name in batches[0]
    }
    _, unravel = ravel_pytree(setting.policy.params)

    def loss(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
        policy_log_probs = partial(setting.policy.log_probs, unravel(flat))
        log_probs = jax.vmap(policy_log_probs)(rows["observation"])
        entropy = policy_gradient.entropy(log_probs)
        entropy = jnp.sum(entropy * rows["mask"]) / jnp.sum(rows["mask"])
        taken = jnp.take_along_axis(log_probs, rows["action"][:, None], axis=1)[:, 0]
        ratio = jnp.exp(jnp.clip(taken - rows["log_prob"], -5.0, 5.0))
        advantage = rows["advantage"]
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
        mean_gain = jnp.sum(gain * rows["mask"]) / jnp.sum(rows["mask"])
        return -mean_gain - setting.entropy_bonus * entropy, entropy

    def epoch(_: int, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        flat, learner_state, *_rest = carry
        (_value, entropy), gradient = jax.value_and_grad(loss, has_aux=True)(flat)
        updates, learner_state = setting.optimizer.update(gradient, learner_state, flat)
        return (
            optax.apply_updates(flat, updates),
            learner_state,
            entropy,
            optax.tree.norm(gradient),
        )

    zero = jnp.float32(0.0)
    flat, learner_state, entropy, norm = jax.lax.fori_loop(
        0, setting.epochs, epoch, (flat, learner_state, zero, zero)
    )
    return flat, learner_state, {"entropy": entropy, "grad_norm": norm}, figures
