"""How do the built-in methods rank on the main job and in the classic 15 steps?

Runs `optax_meta.compare` with its defaults and `examples/fifteen_steps.py`, writes
`first_light.json` (every seed, versions, device) and `first_light.png` beside this script, and puts
both tables into the README.

    python benchmarks/readme.py
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

import optax_meta
from optax_meta import plots
from optax_meta.meta import evaluation
from optax_meta.reports import folder as reports
from optax_meta.reports.table import Table, result_table

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
COLUMNS = ("method", "final loss", "loss reduction %", "test accuracy %", "rates", "time ×")


def markdown(table: Table) -> str:
    """Return the table as Markdown."""
    lines = [table.columns, ("---",) * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def picture(comparison: evaluation.Comparison) -> Figure:
    """Draw losses and learning rates side by side."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = {n: r for n, r in comparison.methods.items() if n != "random-walk"}
    plots.loss_curves({name: result.losses for name, result in shown.items()}, ax=left)
    right.set_yscale("log")
    for color, result in zip(plots.COLORS, shown.values(), strict=False):
        plots.timeline(result.records, ax=right, color=color)
    left.set_title(f"{comparison.task}, {comparison.optimizer}, {comparison.seeds} seeds")
    right.set_title("what the controllers did")
    return figure


def insert(text: str, name: str, new: str) -> str:
    """Replace what stands between the markers of `name`."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    if not re.search(pattern, text, re.DOTALL):
        sys.exit(f"README.md has no markers for {name}")
    return re.sub(pattern, rf"\g<1>{new}\n\g<2>", text, flags=re.DOTALL)


def main() -> None:
    """Run, write, and update the README."""
    mpl.use("agg")
    comparison = optax_meta.compare()
    with tempfile.TemporaryDirectory() as folder:
        page = reports.write_report(comparison, folder)
        results = json.loads(page.with_name("results.json").read_text())
    (HERE / "first_light.json").write_text(json.dumps(results, indent=1) + "\n")
    table = markdown(result_table(comparison).select(COLUMNS))
    picture(comparison).savefig(HERE / "first_light.png", dpi=110)
    command = [sys.executable, HERE.parent / "examples" / "fifteen_steps.py"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    steps = "\n".join(line for line in printed.splitlines() if line.startswith("|"))
    text = insert(README.read_text(), "first_light", table)
    README.write_text(insert(text, "fifteen_steps", steps))
    print(f"{table}\n\n{steps}")


if __name__ == "__main__":
    main()
