"""Which numbers of its wrappers serve a policy best? Variants, on the validation tier.

Each variant changes some: `annealed.power=1.5,calibrated.share=0.5`. All are compiled as
one, so that thirty cost little more than the sweep that they are measured by; that is kept in the
folder, as is every finished part. Ratios are those of `protocol.py`; without a variant, those of
the policy as it is. With `--write`, `wrappers-200-1000.json`, named by the horizons.

    python benchmarks/wrappers.py annealed.power=1 annealed.power=1.5 annealed.power=2.5
    python benchmarks/wrappers.py annealed.power=1.5,calibrated.share=0.5 --write
"""

import argparse
import json
import sys
from pathlib import Path

from frozen import NUMBERS, changed, contender, settings
from protocol import OPTIMIZERS, asked_for, by, table, versions
from validation_tasks import VALIDATION

import optax_meta
from optax_meta import protocol
from optax_meta.meta.protocol import Contender

HERE = Path(__file__).parent


def parsed(variant: str) -> dict[str, float]:
    """Read `wrapper.number=value,…`."""
    try:
        change = {k: float(v) for k, v in (part.split("=") for part in variant.split(","))}
    except ValueError:
        message = f"expected wrapper.number=value,…, got {variant!r}"
        raise argparse.ArgumentTypeError(message) from None
    if unknown := set(change) - set(NUMBERS):
        raise argparse.ArgumentTypeError(
            f"no number of a wrapper: {', '.join(unknown)}; there are {', '.join(NUMBERS)}"
        )
    return change


def contenders(
    policy: optax_meta.Policy, changes: dict[str, dict[str, float]]
) -> dict[str, Contender]:
    """Return one contender for each change of numbers, which share a program."""
    variants = {name: changed(policy, change) for name, change in changes.items()}
    for variant in variants.values():
        optax_meta.learned(variant)  # refuses what it cannot once it is traced
    whole = contender(policy)
    return {name: whole._replace(settings=settings(v)) for name, v in variants.items()}


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("variants", nargs="*", type=parsed, help="wrapper.number=value,…")
    parser.add_argument("--policy", default="any-lr-v2", help="name or path")
    parser.add_argument("--steps", type=int, nargs="*", default=[200, 1000])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--oracle-seeds", type=int, default=2)
    parser.add_argument("--optimizers", nargs="*", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--folder", type=Path, default=HERE / "protocol", help="finished parts")
    parser.add_argument("--write", action="store_true", help="JSON beside this script")
    options = parser.parse_args()
    changes = {",".join(f"{k}={v:g}" for k, v in c.items()): c for c in options.variants}
    policy = optax_meta.load_policy(options.policy)
    try:
        methods = contenders(policy, {"as it is": {}} | changes)
    except ValueError as error:
        parser.error(str(error))
    cells = protocol.judge(
        [make() for make in VALIDATION.values()],
        methods,
        {name: OPTIMIZERS[name] for name in options.optimizers},
        learning_rates=[1e-3],
        horizons=options.steps,
        seeds=options.seeds,
        oracle_seeds=options.oracle_seeds,
        folder=options.folder / f"wrappers-{Path(options.policy).stem}",
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
        name = "-".join(["wrappers", *map(str, options.steps)])
        (HERE / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
