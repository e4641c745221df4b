"""How controllers are judged: against a sweep of schedules, over many cells.

A cell is a task, an inner optimizer, a starting learning rate and a horizon. All methods see the
same initial parameters and batches for a seed. A method's ratio is its final loss over that of an
oracle: the best of 13 constant rates under three schedules, chosen on other seeds than it is scored
on.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_meta.base import Controller
from optax_meta.tasks import Task, train_step
from optax_meta.transform import control_hyperparams

CAP = 10.0
SWEEP_RATES = tuple(10.0 ** (half / 2.0) for half in range(-10, 3))
SCHEDULES = ("constant", "linear", "cosine")
_ORACLE_SEED = 10_000

Factory = Callable[..., optax.GradientTransformation]


class Contender(NamedTuple):
    """A method to be judged.

    Attributes:
        make: (factory of the inner optimizer, starting rate as float32[], steps as int32[]) → what
            is trained with.
        optimizers: names of the inner optimizers that it is for; None for any.
        params: (optimizer state, parameters) → the parameters to evaluate; None for these.
    """

    make: Callable[[Factory, jax.Array, jax.Array], optax.GradientTransformation]
    optimizers: tuple[str, ...] | None = None
    params: Callable[[Any, Any], Any] | None = None

    @classmethod
    def from_controller(cls, make: Callable[[jax.Array], Controller]) -> "Contender":
        """Return the contender of a controller, given by a function of the run's length."""
        return cls(lambda factory, rate, steps: control_hyperparams(factory, make(steps))(rate))


class Score(NamedTuple):
    """One method over many cells; an interval is that of a bootstrap over seeds, 95 %.

    Attributes:
        method: its name.
        geometric_mean: of all capped ratios; 1 is the oracle, lower is better.
        geometric_interval: its interval.
        interquartile_mean: of the cells' mean ratios.
        interquartile_interval: its interval.
        within_tenth: share of cells whose geometric mean is at most 1.1.
        diverged: share of runs that ended non-finite or above their initial loss.
        cells: how many cells.
    """

    method: str
    geometric_mean: float
    geometric_interval: tuple[float, float]
    interquartile_mean: float
    interquartile_interval: tuple[float, float]
    within_tenth: float
    diverged: float
    cells: int


def schedule(kind: Any, rate: Any, steps: Any) -> Callable[[Any], jax.Array]:
    """Return a schedule of the sweep: 0 constant, 1 linear, 2 cosine, as `SCHEDULES`.

    Linear and cosine fall to 0 at the end and warm up over the first twentieth. All arguments may
    be traced.

    Example:
        >>> print(schedule(1, 1.0, 100)(jnp.array(50)).round(3))
        0.526
    """

    def value(step: Any) -> jax.Array:
        warm = jnp.maximum(steps / 20.0, 1.0)
        share = jnp.clip((step - warm) / jnp.maximum(steps - warm, 1.0), 0.0, 1.0)
        falls = jnp.stack(
            [jnp.ones_like(share), 1.0 - share, 0.5 * (1.0 + jnp.cos(jnp.pi * share))]
        )
        rise = jnp.where(jnp.asarray(kind) == 0, 1.0, jnp.minimum((step + 1.0) / warm, 1.0))
        return rate * rise * falls[kind]

    return value


def judge(
    tasks: Sequence[Task],
    contenders: Mapping[str, Contender],
    optimizers: Mapping[str, Factory],
    *,
    learning_rates: Sequence[float],
    horizons: Sequence[int],
    seeds: int = 10,
    oracle_seeds: int = 3,
    folder: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Run every method on every cell.

    Args:
        tasks: what is trained; their names tell them apart.
        contenders: methods by name.
        optimizers: factories of inner optimizers by name.
        learning_rates: starting rates.
        horizons: lengths of the runs in steps.
        seeds: runs of a method in a cell, ≥ 2.
        oracle_seeds: runs of each schedule of the sweep that it is chosen on, ≥ 1.
        folder: where finished parts are kept; a second call there runs what is missing.
        progress: called with what is done next.

    Returns:
        One dict for each task, optimizer and horizon: their names; "initial" float[S]; "oracle":
        kind, rate and float[S] of its losses; "floor"; and "losses", by method float[K][S] for K
        starting rates and S seeds.

    Raises:
        ValueError: fewer than two seeds, or two tasks of one name.

    Example:
        >>> task = optax_meta.tasks.quadratic(dim=2)
        >>> hold = optax_meta.protocol.Contender.from_controller(
        ...     lambda steps: optax_meta.constant()
        ... )
        >>> cells = optax_meta.protocol.judge([task], {"hold": hold}, {"sgd": optax.sgd},
        ...     learning_rates=[0.1], horizons=[5], seeds=2, oracle_seeds=1)
        >>> len(cells[0]["losses"]["hold"][0])
        2
    """
    names = [task.name for task in tasks]
    if seeds < 2 or oracle_seeds < 1:
        raise ValueError(f"`seeds` must be ≥ 2 and `oracle_seeds` ≥ 1, got {seeds}, {oracle_seeds}")
    if len(set(names)) < len(names):
        raise ValueError(f"tasks need different names, got {names}")
    cells = []
    for task in tasks:
        for name, factory in optimizers.items():
            runners: dict[str, Any] = {}
            for steps in horizons:
                path = None if folder is None else folder / f"{task.name}-{name}-{steps}.json"
                done = json.loads(path.read_text()) if path is not None and path.exists() else {}
                cell = partial(
                    _cell, task, name, factory, contenders, runners, learning_rates, steps, seeds
                )
                cell = cell(oracle_seeds, done, progress)
                if path is not None and cell != done:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    whole = path.with_suffix(".partial")
                    whole.write_text(json.dumps(cell))
                    whole.replace(path)
                cells.append(cell)
    return cells


def score(cells: Sequence[Mapping[str, Any]], *, rates: Sequence[int] | None = None) -> list[Score]:
    """Summarize the cells: one row a method, the lowest geometric mean first.

    Args:
        cells: from `judge`.
        rates: indices of the starting rates to look at; None for all.

    Returns:
        Rows, losers included. A method is scored on the cells that it ran in. Cells whose oracle
        is itself lost on a seed that it is scored on are left out for all: no yardstick.

    Source: interquartile mean and stratified bootstrap as in R. Agarwal et al., "Deep Reinforcement
    Learning at the Edge of the Statistical Precipice", https://arxiv.org/abs/2108.13264.
    """
    cells = [cell for cell in cells if np.all(np.isfinite(cell["oracle"]["losses"]))]
    methods = dict.fromkeys(name for cell in cells for name in cell["losses"])
    rows = [_score(name, cells, rates) for name in methods]
    return sorted(rows, key=lambda row: row.geometric_mean)


def ratios(cell: Mapping[str, Any], method: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the capped ratios and which runs diverged, float[K, S] and bool[K, S]."""
    losses = np.array(cell["losses"][method], float)
    initial, oracle = np.array(cell["initial"]), np.array(cell["oracle"]["losses"], float)
    diverged = ~np.isfinite(losses) | (losses > initial)
    # The oracle's mean over seeds: one lucky or lost run of it must not decide a ratio.
    best = np.mean(np.where(np.isfinite(oracle), oracle, initial))
    excess = np.maximum(losses - cell["floor"], 0.0) / max(best - cell["floor"], 1e-12)
    return np.where(diverged, CAP, np.clip(excess, 1.0 / CAP, CAP)), diverged


def _score(method: str, cells: Sequence[Mapping[str, Any]], rates: Sequence[int] | None) -> Score:
    from scipy import stats

    pairs = [ratios(cell, method) for cell in cells if method in cell["losses"]]
    logs = np.concatenate([np.log(ratio if rates is None else ratio[rates]) for ratio, _ in pairs])
    diverged = np.concatenate([lost if rates is None else lost[rates] for _, lost in pairs])
    generator = np.random.default_rng(0)

    def figures(logs: np.ndarray) -> tuple[float, float]:
        means = logs.mean(axis=1)
        return float(np.exp(means.mean())), float(stats.trim_mean(np.exp(means), 0.25))

    drawn = generator.integers(0, logs.shape[1], (1000, *logs.shape))
    boot = np.array([figures(np.take_along_axis(logs, index, axis=1)) for index in drawn])
    low, high = np.percentile(boot, [2.5, 97.5], axis=0)
    geometric, interquartile = figures(logs)
    return Score(
        method=method,
        geometric_mean=geometric,
        geometric_interval=(float(low[0]), float(high[0])),
        interquartile_mean=interquartile,
        interquartile_interval=(float(low[1]), float(high[1])),
        within_tenth=float(np.mean(np.exp(logs.mean(axis=1)) <= 1.1)),
        diverged=float(diverged.mean()),
        cells=len(logs),
    )


def _cell(
    task: Task,
    optimizer: str,
    factory: Factory,
    contenders: Mapping[str, Contender],
    runners: dict[str, Any],
    learning_rates: Sequence[float],
    steps: int,
    seeds: int,
    oracle_seeds: int,
    done: dict[str, Any],
    progress: Callable[[str], None] | None,
) -> dict[str, Any]:
    cell = {**done, "losses": dict(done.get("losses", {}))}
    label = f"{task.name}, {optimizer}, {steps} steps"

    def run(name: str, rates: Any, seed_ids: np.ndarray, kinds: Any = 0) -> Any:
        if progress is not None:
            progress(f"{label}: {name}")
        if name not in runners:
            contender = contenders.get(name, Contender(_never))
            runners[name] = jax.jit(
                jax.vmap(
                    jax.vmap(
                        partial(_train, task, factory, contender, name == "sweep"),
                        (None, None, 0, None),
                    ),
                    (0, 0, None, None),
                )
            )
        rate, kind = np.broadcast_arrays(np.asarray(rates, np.float32), np.int32(kinds))
        out = runners[name](rate, kind, seed_ids.astype(np.uint32), np.int32(steps))
        return np.asarray(out[0], float), np.asarray(out[1], float)

    scored = np.arange(seeds)
    if "oracle" not in cell:
        rates = np.repeat(SWEEP_RATES, len(SCHEDULES))
        kinds = np.tile(np.arange(len(SCHEDULES)), len(SWEEP_RATES))
        initial, final = run("sweep", rates, _ORACLE_SEED + np.arange(oracle_seeds), kinds)
        tuned = np.where(np.isfinite(final), np.minimum(final, initial), initial).mean(axis=1)
        best = int(np.argmin(tuned))
        initial, final = run("sweep", rates[best : best + 1], scored, kinds[best : best + 1])
        cell |= {
            "task": task.name,
            "optimizer": optimizer,
            "steps": steps,
            "learning_rates": list(learning_rates),
            "floor": task.floor,
            "initial": initial[0].tolist(),
            "oracle": {
                "schedule": SCHEDULES[kinds[best]],
                "rate": float(rates[best]),
                "losses": final[0].tolist(),
            },
            "losses": {},
        }
    for name, contender in contenders.items():
        fits = contender.optimizers is None or optimizer in contender.optimizers
        if fits and name not in cell["losses"]:
            cell["losses"][name] = run(name, learning_rates, scored)[1].tolist()
    return cell


def _never(factory: Factory, rate: jax.Array, steps: jax.Array) -> Any:
    raise AssertionError(factory, rate, steps)


def _train(
    task: Task,
    factory: Factory,
    contender: Contender,
    is_sweep: bool,  # noqa: FBT001
    rate: jax.Array,
    kind: jax.Array,
    seed: jax.Array,
    steps: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return the evaluated loss before and after a run of any length."""
    init_key, data_key = jax.random.split(jax.random.key(seed))
    params = task.init(init_key)
    made = (
        factory(learning_rate=schedule(kind, rate, steps))
        if is_sweep
        else contender.make(factory, rate, steps)
    )
    tx = optax.with_extra_args_support(made)

    def step(t: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        return train_step(task, tx, jax.random.fold_in(data_key, t), t, *carry)[:2]

    final, opt_state = jax.lax.fori_loop(0, steps, step, (params, tx.init(params)))
    final = final if contender.params is None else contender.params(opt_state, final)
    return task.evaluate(params)["loss"], task.evaluate(final)["loss"]
