"""Which guide serves a policy best? Variants of its own, on the validation tier.

Each variant changes numbers of the guide: `fall=1.5,max_ratio=0.04`. All are compiled as one, so
that thirty cost little more than the sweep that they are measured by; that is kept in the folder,
as is every finished part. Ratios are those of `protocol.py`; without a variant, those of the guide
as it is. With `--write`, `guides-200-1000.json`, named by the horizons.

    python benchmarks/guides.py fall=1 fall=1.5 fall=2.5
    python benchmarks/guides.py fall=1.5,max_ratio=0.04 --steps 200 1000 5000 --write
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ablation import numbers
from protocol import OPTIMIZERS, asked_for, by, table, versions
from validation_tasks import VALIDATION

import optax_meta
from optax_meta import protocol
from optax_meta.guides import Guide
from optax_meta.meta.protocol import Contender

HERE = Path(__file__).parent


def parsed(variant: str) -> dict[str, float]:
    """Read `field=value,…`."""
    try:
        change = {k: float(v) for k, v in (part.split("=") for part in variant.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected field=value,…, got {variant!r}") from None
    known = list(numbers(Guide()))
    if wrong := set(change) - set(known):
        raise argparse.ArgumentTypeError(f"no number of a guide: {wrong}; there are {known}")
    return change


def contenders(
    policy: optax_meta.Policy, changes: dict[str, dict[str, float]]
) -> dict[str, Contender]:
    """Return one contender for each guide, which share a program."""

    def make(run: protocol.Run, settings: Any) -> optax_meta.Controller:
        params, guide = settings
        guided = policy._replace(params=params, guide=policy.guide._replace(**guide))
        return optax_meta.learned(guided, total_steps=run.steps)

    guides = {name: policy.guide._replace(**change) for name, change in changes.items()}
    first = Contender.from_controller(make, any_start=True)
    return {
        name: first._replace(settings=(policy.params, numbers(guide)))
        for name, guide in guides.items()
    }


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("variants", nargs="*", type=parsed, help="field=value,… for each guide")
    parser.add_argument("--policy", default="any-lr-v1", help="name or path")
    parser.add_argument("--steps", type=int, nargs="*", default=[200, 1000])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--oracle-seeds", type=int, default=2)
    parser.add_argument("--optimizers", nargs="*", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--folder", type=Path, default=HERE / "protocol", help="finished parts")
    parser.add_argument("--write", action="store_true", help="JSON beside this script")
    options = parser.parse_args()
    changes = {",".join(f"{k}={v:g}" for k, v in c.items()): c for c in options.variants}
    policy = optax_meta.load_policy(options.policy)
    methods = contenders(policy, {"as it is": {}} | changes)
    cells = protocol.judge(
        [make() for make in VALIDATION.values()],
        methods,
        {name: OPTIMIZERS[name] for name in options.optimizers},
        learning_rates=[1e-3],
        horizons=options.steps,
        seeds=options.seeds,
        oracle_seeds=options.oracle_seeds,
        folder=options.folder / f"guides-{Path(options.policy).stem}",
        compiler_options={"xla_backend_optimization_level": 1},
        progress=lambda label: print(label, file=sys.stderr, flush=True),
    )
    cells = [asked_for(cell, methods) for cell in cells]
    print(table(cells))
    fields = ("task", "optimizer", "steps")
    split = {name: {field: by(cells, field, name) for field in fields} for name in methods}
    for name, parts in split.items():
        for field, row in parts.items():
            print(name, field, {k: round(v, 3) for k, v in row.items()})
    if options.write:
        scores = [score._asdict() | split[score.method] for score in protocol.score(cells)]
        results = {"versions": versions(cells), "policy": options.policy, "scores": scores}
        name = "-".join(["guides", *map(str, options.steps)])
        (HERE / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
