"""Write every figure of the Markdown pages from the JSON files beside this script.

What stands between `<!-- name -->` and `<!-- /name -->` is made by the function of that name in
`tables.BLOCKS`; the prose around it is written by hand. A test compares the pages with what this
makes.

    python benchmarks/readme.py         # the pages, from the JSON: a second
    python benchmarks/readme.py --run   # first_light.* and fifteen_steps.json anew: minutes
"""

import argparse
import json
import re
import runpy
import tempfile
from pathlib import Path
from typing import Any

from tables import BLOCKS

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGES = (ROOT / "README.md", HERE / "README.md", ROOT / "examples" / "README.md")
BLOCK = re.compile(
    r"(?P<start><!-- (?P<name>\w+) -->)(?P<line>\n?).*?(?P<end><!-- /(?P=name) -->)", re.DOTALL
)


def rendered(page: str) -> str:
    """Return a page with all that stands between markers made anew.

    Raises:
        KeyError: a marker has a name that nothing is made under.
    """

    def anew(block: re.Match[str]) -> str:
        start, line, end = block["start"], block["line"], block["end"]
        return "".join((start, line, BLOCKS[block["name"]](), line, end))

    return BLOCK.sub(anew, page)


def write() -> None:
    """Write the pages from the JSON files."""
    for path in PAGES:
        path.write_text(rendered(path.read_text()))


def run() -> None:
    """Run `optax_meta.compare` and the classic demonstration; write their files."""
    import matplotlib as mpl

    mpl.use("agg")
    import optax_meta
    from optax_meta.meta.evaluation import library_versions
    from optax_meta.reports import folder as reports

    comparison = optax_meta.compare()
    with tempfile.TemporaryDirectory() as folder:
        results = reports.write_report(comparison, folder).with_name("results.json").read_text()
    dump("first_light", json.loads(results))
    picture(comparison).savefig(HERE / "first_light.png", dpi=110)
    seeds = 100
    rows = runpy.run_path(str(ROOT / "examples" / "fifteen_steps.py"))["main"](seeds)
    dump("fifteen_steps", {"versions": library_versions(), "seeds": seeds, "rows": rows})


def dump(name: str, results: dict[str, Any]) -> None:
    """Write `name.json`."""
    (HERE / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")


def picture(comparison: Any) -> Any:
    """Draw losses and learning rates side by side."""
    from matplotlib.figure import Figure

    from optax_meta import plots

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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", action="store_true", help="what the two slow tables come from")
    if parser.parse_args().run:
        run()
    write()
