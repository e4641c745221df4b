"""Is a controller as good as a sweep? Methods judged by their ratio to a tuned schedule.

Every finished part is kept in `protocol/`, so that an interrupted run goes on where it stopped; a
policy that was trained anew under the same name is run again. With `--write`,
`protocol-medium.json` (or that of another cut, and of horizons where these are named) is written
beside this script and the pages from it; with baselines `start_sensitivity.png` and
`performance_profile.png` as well. "seconds" are those of the last call.

    python benchmarks/protocol.py               # the fast cut: each task under one optimizer
    python benchmarks/protocol.py --cut medium --write  # three optimizers: the main table
    python benchmarks/protocol.py --cut full    # all optimizers, horizons and ten seeds: hours
    python benchmarks/protocol.py --cut full --no-baselines --steps 200 1000 --write
    python benchmarks/protocol.py --cut long --write    # policies in runs of 10 000 steps
    python benchmarks/protocol.py --cut full --no-baselines --steps 5000 --tasks digits switch
    python benchmarks/protocol.py --cut full --optimizers lion sgd  # a part, beside another
    python benchmarks/protocol.py --tier validation --policies mine.policy
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import readme
from frozen import contender, holding, settings
from optax import contrib
from reported_tasks import TEST
from tables import score_table
from validation_tasks import VALIDATION

import optax_meta
from optax_meta import plots, protocol
from optax_meta.meta.protocol import Contender
from optax_meta.meta.tasks import Task

HERE = Path(__file__).parent
OPTIMIZERS: dict[str, protocol.Factory] = {
    "adamw": optax.adamw,
    "momentum": partial(optax.sgd, momentum=0.9),
    "lion": optax.lion,
    "rmsprop": optax.rmsprop,
    "sgd": optax.sgd,
}


TIERS = {"test": TEST, "validation": VALIDATION}


@dataclass(frozen=True)
class Cut:
    """A size of the benchmark.

    Attributes:
        every: each optimizer is for every such task alone, from another one on each.
        folder: where parts are kept; cuts of the same runs share it.
        baselines: their names; None for all.
    """

    optimizers: tuple[str, ...]
    rates: tuple[float, ...]
    horizons: tuple[int, ...]
    seeds: int
    oracle_seeds: int
    every: tuple[int, ...]
    folder: str
    baselines: tuple[str, ...] | None = None

    def tasks(self, optimizer: str, tasks: list[Task]) -> list[Task]:
        """Return those that an optimizer is for."""
        position = self.optimizers.index(optimizer)
        every = self.every[position]
        return tasks[(position - 1) % every :: every]


SHORT: dict[str, Any] = {
    "optimizers": ("adamw", "momentum", "lion"),
    "rates": (1e-5, 1e-3, 1e-1, 10.0),
    "seeds": 3,
    "oracle_seeds": 1,
    "folder": "short",
}
FAST_BASELINES = (
    "warmup + cosine 1e-3",
    "constant",
    "warmup + cosine",
    "hypergradient",
    "mechanic",
    "prodigy + linear",
)
MEDIUM_BASELINES = (
    *FAST_BASELINES,
    "constant 1e-3",
    "warmup + linear",
    "reduce_on_plateau",
    "reinforce from scratch",
)
CUTS = {
    "fast": Cut(**SHORT, horizons=(500,), every=(3, 3, 3), baselines=FAST_BASELINES),
    "medium": Cut(**SHORT, horizons=(500,), every=(1, 1, 1), baselines=MEDIUM_BASELINES),
    "long": Cut(**SHORT, horizons=(10_000,), every=(1, 3, 3), baselines=()),
    "full": Cut(
        optimizers=tuple(OPTIMIZERS),
        rates=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 0.3, 1.0, 10.0),
        horizons=(200, 1000, 5000),
        seeds=10,
        oracle_seeds=3,
        every=(1,) * len(OPTIMIZERS),
        folder="full",
    ),
}


def controlled(make: Callable[[Any], optax_meta.Controller]) -> Contender:
    """Return the contender of a controller."""
    return Contender.from_controller(make)


def with_rate(make: Callable[[Any], Any], **options: Any) -> Contender:
    """Return one of Optax's own adaptive methods that wraps an optimizer of the starting rate."""
    return Contender(lambda factory, run: make(factory(run.rate)), **options)


def adam_only(make: Callable[[Any], Any], **options: Any) -> Contender:
    """Return a method that replaces AdamW; it gets the run's length if it wants it."""
    return Contender(
        lambda factory, run: make(run.steps),  # noqa: ARG005
        optimizers=("adamw",),
        any_start=True,
        **options,
    )


def falling(shape: Callable[[Any], Any]) -> Contender:
    """Return a schedule that falls from the starting rate on, given by the share of the run."""
    return Contender(lambda factory, run: factory(lambda t: run.rate * shape(t / run.steps)))


def linear(steps: Any) -> Callable[[Any], jax.Array]:
    """Return a linear decay from 1 to 0."""
    return protocol.schedule(1, 1.0, steps)


BASELINES: dict[str, Contender] = {
    "constant 1e-3": Contender.from_schedule("constant", 1e-3),
    "warmup + cosine 1e-3": Contender.from_schedule("cosine", 1e-3),
    "constant": Contender.from_schedule("constant"),
    "linear": falling(lambda share: 1.0 - share),
    "cosine": falling(lambda share: 0.5 * (1.0 + jnp.cos(jnp.pi * share))),
    "warmup + linear": Contender.from_schedule("linear"),
    "warmup + cosine": Contender.from_schedule("cosine"),
    "reduce_on_plateau": with_rate(lambda tx: optax.chain(tx, contrib.reduce_on_plateau())),
    "warmup + plateau": controlled(lambda run: optax_meta.warmup_plateau(50)),  # noqa: ARG005
    "hypergradient": controlled(lambda run: optax_meta.hypergradient()),  # noqa: ARG005
    "mechanic": with_rate(contrib.mechanize),
    "prodigy": adam_only(lambda steps: contrib.prodigy(1.0)),  # noqa: ARG005
    "prodigy + linear": adam_only(lambda steps: contrib.prodigy(linear(steps))),
    "dadapt": adam_only(lambda steps: contrib.dadapt_adamw(1.0)),  # noqa: ARG005
    "dadapt + linear": adam_only(lambda steps: contrib.dadapt_adamw(linear(steps))),
    "momo": adam_only(lambda steps: contrib.momo_adam()),  # noqa: ARG005
    "dog": Contender(
        lambda factory, run: contrib.dog(1.0),  # noqa: ARG005
        optimizers=("sgd",),
        any_start=True,
    ),
    "schedule-free": Contender(
        lambda factory, run: contrib.schedule_free_adamw(),  # noqa: ARG005
        optimizers=("adamw",),
        any_start=True,
        params=contrib.schedule_free_eval_params,
    ),
    "cocob": adam_only(lambda steps: contrib.cocob()),  # noqa: ARG005
    "reinforce from scratch": controlled(
        lambda run: optax_meta.classic_reinforce(
            action_space=optax_meta.actions.learning_rate(), seed=run.seed, start="hold"
        )
    ),
    "random walk": controlled(
        lambda run: optax_meta.classic_reinforce(
            action_space=optax_meta.actions.learning_rate(),
            seed=run.seed,
            policy_learning_rate=0.0,
        )
    ),
}


def policies(names: list[str]) -> dict[str, Contender]:
    """Return contenders for policies by name or path, and for their wrappers alone."""
    loaded = {Path(name).stem: optax_meta.load_policy(name) for name in names}
    found = {name: contender(policy) for name, policy in loaded.items()}
    for name, policy in loaded.items():
        others = {f"{name}, no horizon": settings(policy, horizon_is_known=False)}
        alone = settings(holding(policy))
        # A policy that only holds is that already.
        if any(map(np.any, jax.tree.leaves(policy.params))):
            others[f"wrappers of {name} alone (hold)"] = alone
        for label, changed in others.items():
            found[label] = found[name]._replace(settings=changed)
    return found


def asked_for(cell: dict[str, Any], methods: Collection[str]) -> dict[str, Any]:
    """Return a cell without methods that were left in the folder by other calls."""
    kept = {f: {n: x for n, x in cell[f].items() if n in methods} for f in protocol.FIGURES}
    return {**cell, **kept}


def versions(cells: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return what the cells were run with, each combination once."""
    found = [cell["versions"] for cell in cells]
    return [combination for i, combination in enumerate(found) if combination not in found[:i]]


def table(cells: list[dict[str, Any]]) -> str:
    """Return the scores as Markdown."""
    return score_table(row._asdict() for row in protocol.score(cells))


def geometric_mean(cells: list[dict[str, Any]], method: str) -> float:
    """Return the geometric mean of a method's ratios."""
    scored = protocol.comparable(cells)
    found = [protocol.ratios(c, method)[0] for c in scored if method in c["losses"]]
    return float(np.exp(np.mean(np.log(found))))


def by(cells: list[dict[str, Any]], field: str, method: str) -> dict[str, float]:
    """Return the geometric mean of a method for each value of a field of the cells."""
    values = dict.fromkeys(cell[field] for cell in cells)
    chosen = {v: [c for c in cells if c[field] == v and method in c["losses"]] for v in values}
    return {str(v): geometric_mean(c, method) for v, c in chosen.items() if c}


def picture(draw: Callable[..., Any], title: str, path: Path) -> None:
    """Write what `draw` draws on the axes `ax`."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 4.0), layout="constrained")
    draw(ax=axes).set_title(title, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_pictures(cells: list[dict[str, Any]]) -> None:
    """Draw the two pictures of methods beside each other."""
    shown = {
        "any-lr-v2": "any-lr-v2 (ours)",
        "constant": "constant",
        "warmup + cosine": "warmup + cosine",
        "mechanic": "mechanic",
        "hypergradient": "hypergradient",
    }
    picture(
        partial(plots.start_sensitivity, cells, shown),
        "Test tasks, geometric mean; lower is better",
        HERE / "start_sensitivity.png",
    )
    picture(
        partial(plots.performance_profile, cells, shown),
        "Test tasks, all starting rates; higher is better",
        HERE / "performance_profile.png",
    )


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cut", choices=CUTS, default="fast", help="minutes, more, or hours")
    parser.add_argument("--tier", choices=TIERS, default="test")
    parser.add_argument("--policies", nargs="*", default=["any-lr-v2"], help="names or paths")
    parser.add_argument("--folder", type=Path, default=HERE / "protocol", help="finished parts")
    parser.add_argument("--write", action="store_true", help="JSON, pages and pictures")
    parser.add_argument("--optimizers", nargs="*", choices=OPTIMIZERS, help="a part of the cut")
    parser.add_argument("--tasks", nargs="*", help="some of the tier's, by name")
    parser.add_argument("--steps", type=int, nargs="*", help="horizons in place of the cut's")
    parser.add_argument("--no-baselines", action="store_true", help="policies alone")
    options = parser.parse_args()
    if options.write and (options.tier != "test" or "any-lr-v2" not in options.policies):
        parser.error("--write is for any-lr-v2 on the test tasks")
    if options.write and options.optimizers:
        parser.error("--write is for whole cuts: finished parts in the folder are not run again")
    if options.write and options.tasks:
        parser.error("--write is for all tasks: the pages have no table of some")
    if options.write and options.cut == "fast":
        parser.error("--write is for the cuts that the pages show: medium, full and long")
    tier = TIERS[options.tier]
    if unknown := set(options.tasks or ()) - set(tier):
        parser.error(
            f"no task of this tier: {', '.join(sorted(unknown))}; it has {', '.join(tier)}"
        )
    return options


def main() -> None:
    """Run, print and write."""
    options, started = parsed(), time.monotonic()
    cut, is_short = CUTS[options.cut], options.cut in ("fast", "medium")
    tier = TIERS[options.tier]
    chosen = tuple(BASELINES) if cut.baselines is None else cut.baselines
    baselines = {} if options.no_baselines else {name: BASELINES[name] for name in chosen}
    contenders = policies(options.policies) | baselines
    tasks = [make() for name, make in tier.items() if not options.tasks or name in options.tasks]
    judge = partial(
        protocol.judge,
        learning_rates=cut.rates,
        horizons=options.steps or cut.horizons,
        seeds=cut.seeds,
        oracle_seeds=cut.oracle_seeds,
        folder=options.folder / f"{options.tier}-{cut.folder}",
        compiler_options={"xla_backend_optimization_level": 1} if is_short else None,
        progress=lambda label: print(label, file=sys.stderr, flush=True),
    )
    cells = []
    for name in options.optimizers or cut.optimizers:
        factory, fitting = {name: OPTIMIZERS[name]}, cut.tasks(name, tasks)
        found = judge(fitting, contenders, factory)
        if baselines:
            kind, rate = protocol.best_single(found)
            single = {"best single schedule": Contender.from_schedule(kind, rate)}
            found = judge(fitting, single, factory)
        cells += [asked_for(cell, (*contenders, "best single schedule")) for cell in found]
    print(table(cells))
    for name in options.policies:
        stem = Path(name).stem
        for field in ("task", "optimizer", "steps"):
            print(stem, field, {k: round(v, 3) for k, v in by(cells, field, stem).items()})
    if options.write:
        rows = [score._asdict() for score in protocol.score(cells)]
        results: dict[str, Any] = {"cut": options.cut, "versions": versions(cells)}
        results |= {"rates": cut.rates, "horizons": options.steps or cut.horizons}
        results |= {"seeds": cut.seeds, "oracle_seeds": cut.oracle_seeds, "scores": rows}
        results["seconds"] = round(time.monotonic() - started)
        results |= {f: by(cells, f, "any-lr-v2") for f in ("task", "optimizer", "steps")}
        name = "-".join(["protocol", options.cut, *map(str, options.steps or ())])
        path = HERE / f"{name}.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        readme.write()
    if options.write and baselines:
        draw_pictures(cells)
    assert np.all([np.isfinite(s.geometric_mean) for s in protocol.score(cells)])


if __name__ == "__main__":
    main()
