"""Tables of single runs: with faults, and without a horizon."""

import json
from pathlib import Path

from wording import number, table, within

HERE = Path(__file__).parent


def spikes() -> str:
    """Return where runs end that were hit, over the same runs without."""
    found = json.loads((HERE / "spikes.json").read_text())["rows"]
    rows = []
    for row in found:
        every = row["all"]
        rows.append(
            (
                f"{row['method']}, {row['on_spike'].replace('_', ' ')}",
                str(every["runs"]),
                f"{every['mean']:.3f} {within(every['interval'])}",
                number(every["worst"]),
                f"{row['kind']['labels shuffled']['mean']:.3f}",
                f"{row['pattern']['ten in a row']['mean']:.3f}",
                f"{row['kind']['another batch']['mean']:.3f}",
            )
        )
    heads = ("runs", "all faults", "worst run", "labels shuffled", "ten in a row", "no fault")
    return table(("held-out loss over that without", *heads), rows)


def no_horizon() -> str:
    """Return where runs of unknown length end, over the best swept schedule with a horizon."""
    found = json.loads((HERE / "no_horizon.json").read_text())
    shares = list(next(iter(found["means"].values())))
    rows = [
        (f"{row['cell']}, {row['method']}", *(f"{row['ratios'][s]:.3f}" for s in shares))
        for row in found["rows"]
    ]
    for method, means in found["means"].items():
        rows.append((f"geometric mean, {method}", *(f"{means[s]:.3f}" for s in shares)))
    heads = ["raw" if share == "raw" else f"averaged, {share}" for share in shares]
    return table(("held-out loss over that of the sweep", *heads), rows)
