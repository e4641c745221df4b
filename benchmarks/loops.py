"""What do the example programs of others' loops end with, beside the stock schedule of each?

Every program of `examples/` that trains both ways is run as it stands, on several seeds. Writes
`loops.json`, program by program, and goes on where it was stopped. `pip install -e '.[examples]'`.

    python benchmarks/loops.py
"""

import argparse
import contextlib
import importlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from optax_meta.meta.versions import library_versions

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
OUT = HERE / "loops.json"
FIGURES = {
    "equinox_model": "held-out loss, accuracy",
    "nnx_lora": "held-out loss",
    "loss_scaling": "loss on fresh data",
    "ppo": "reward from fall to fall",
    "gan": "energy distance",
    "accumulation": "held-out loss, accuracy",
    "fine_tuning": "held-out loss",
    "multi_host": "loss of the last 20 steps",
}
"""What each program returns for each way to train."""
SEEDS = {"ppo": 10, "multi_host": 1}
"""Where they are not those of the command: some policies collapse, and one program has no seed."""


def trained(name: str, seed: int) -> dict[str, tuple[float, ...]]:
    """Return the figures that a program ends with, by the way it trained."""
    main = importlib.import_module(name).main
    with contextlib.redirect_stdout(io.StringIO()):
        found = both(main) if name == "multi_host" else main(seed=seed)
    return {way: x if isinstance(x, tuple) else (x,) for way, x in found.items()}


def both(main: Callable[..., list[tuple[float, float]]]) -> dict[str, float]:
    """Return what `multi_host` ends with in one process, which computes what several would."""

    def last(rule: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            return float(np.mean(main(folder, rule=rule)[-20:], axis=0)[0])

    return {"warm-up + linear 1e-2": last("linear"), "any-lr-v2": last("any-lr-v2")}


def main() -> None:
    """Run what is missing, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds: int = parser.parse_args().seeds
    sys.path.insert(0, str(EXAMPLES))
    programs = json.loads(OUT.read_text())["programs"] if OUT.exists() else {}
    for name, figure in FIGURES.items():
        if name in programs:
            continue  # made before: remove the file to make all anew
        ends = [trained(name, seed) for seed in range(SEEDS.get(name, seeds))]
        ways = {way: [[round(x, 5) for x in end[way]] for end in ends] for way in ends[0]}
        programs[name] = {"figure": figure, "ways": ways}
        print(name, json.dumps(ways), flush=True)
        found = {"versions": library_versions(), "programs": programs}
        OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
