"""How does a policy fare with optimizers that it was not trained with?

More of Optax's optimizers, and other settings of those that it knows, on the validation tier in 500
steps; each against its own sweep, as in `protocol.py`. Finished parts are kept. Writes
`other_optimizers.json`.

    python benchmarks/other_optimizers.py
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import optax
from frozen import contender
from optax import contrib
from protocol import by, table, versions
from validation_tasks import VALIDATION

import optax_meta
from optax_meta import protocol

HERE = Path(__file__).parent


def clipped_adamw(learning_rate: Any) -> optax.GradientTransformation:
    """Return AdamW behind a clipped gradient."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(learning_rate))


def clipped_momentum(learning_rate: Any) -> optax.GradientTransformation:
    """Return momentum behind a gradient that is nearly always clipped."""
    return optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(learning_rate, momentum=0.9))


def named(factory: protocol.Factory, **options: Any) -> tuple[str, protocol.Factory]:
    """Return a factory with some of its options, and the call for a name."""
    arguments = ", ".join(f"{name}={value}" for name, value in options.items())
    return f"{factory.__name__}({arguments})", partial(factory, **options)


OTHERS: dict[str, protocol.Factory] = dict(
    [
        named(optax.adabelief),
        named(optax.adafactor, multiply_by_parameter_scale=False),
        named(optax.adagrad),
        named(optax.adam, b1=0.0),
        named(optax.adam, b1=0.8, b2=0.95),
        named(optax.adam, b1=0.95),
        named(optax.adamax),
        named(optax.adamw, weight_decay=0.1),
        named(optax.adan),
        named(optax.amsgrad),
        named(optax.lamb),
        named(optax.lars, weight_decay=0.0),
        named(optax.lion, b1=0.95, b2=0.98),
        named(optax.adam, nesterov=True),
        named(optax.novograd),
        named(optax.radam),
        named(optax.rmsprop, momentum=0.9, decay=0.99),
        named(optax.sgd, momentum=0.95, nesterov=True),
        named(optax.sgd, momentum=0.99),
        named(optax.sign_sgd),
        named(optax.yogi),
        named(contrib.ademamix),
        named(contrib.muon),
        named(clipped_adamw),
        named(clipped_momentum),
    ]
)


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--policy", default="any-lr-v2", help="name or path")
    parser.add_argument("--folder", type=Path, default=HERE / "protocol", help="finished parts")
    options = parser.parse_args()
    name = Path(options.policy).stem
    cells = protocol.judge(
        [make() for make in VALIDATION.values()],
        {name: contender(optax_meta.load_policy(options.policy))},
        OTHERS,
        learning_rates=[1e-3],
        horizons=[500],
        seeds=5,
        oracle_seeds=2,
        folder=options.folder / f"others-{name}",
        compiler_options={"xla_backend_optimization_level": 1},
        progress=lambda label: print(label, file=sys.stderr, flush=True),
    )
    print(table(cells))
    split = {field: by(cells, field, name) for field in ("optimizer", "task")}
    for optimizer, ratio in sorted(split["optimizer"].items(), key=lambda pair: pair[1]):
        print(f"{ratio:5.2f}  {optimizer}")
    [score] = protocol.score(cells)
    results = {"versions": versions(cells), **score._asdict(), **split}
    (HERE / "other_optimizers.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
