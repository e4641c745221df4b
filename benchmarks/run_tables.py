"""Tables of single runs: with faults, without a horizon, and with all that befalls a real one."""

import json
from pathlib import Path

import numpy as np
from wording import number, table, within

HERE = Path(__file__).parent
KNOWN = "known from the start"
"""The run that all others of its length are divided by."""


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


def one_run() -> str:
    """Return where the branches of one run end, over having known their length."""
    seeds = json.loads((HERE / "one_run.json").read_text())["seeds"]
    means = {}
    for runs in zip(*(seed["runs"] for seed in seeds), strict=True):
        found = np.mean([(run["raw"], run["averaged"]) for run in runs], axis=0)
        means[runs[0]["run"], runs[0]["steps"]] = found
    known = {steps: raw for (name, steps), (raw, _) in means.items() if name == KNOWN}
    rows = []
    for (name, steps), found in sorted(means.items(), key=lambda pair: pair[0][1]):
        ratios = [number(x / known[steps] if steps in known else None, 3) for x in found]
        rows.append((name, str(steps), *(f"{x:.3f}" for x in found), *ratios))
    heads = ("steps", "raw", "averaged", "raw, over known", "averaged, over known")
    return table((f"held-out loss, mean of {len(seeds)} seeds", *heads), rows)


def one_run_kills() -> str:
    """Return where the process was killed and what became of it, for a sentence."""
    seeds = json.loads((HERE / "one_run.json").read_text())["seeds"]
    if not all(seed["is_same"] for seed in seeds):
        raise ValueError("a run that was resumed is not the run that was left alone")
    names = ("killed", "resumed", "compared")
    told = (" or ".join(map(str, sorted({seed[name] for seed in seeds}))) for name in names)
    text = (
        "was killed after step {}; the next one went on from the checkpoint of step {}, and at "
        "step {} its state was, bit for bit, that of a run which nobody had killed"
    )
    return text.format(*told)


def replanned() -> str:
    """Return where runs end whose length became known late, over having known it."""
    cells = json.loads((HERE / "horizons.json").read_text())["cells"]
    losses = [{plan: np.array(x) for plan, x in cell["losses"].items()} for cell in cells]
    rows = []
    for plan in losses[0]:
        logs = [np.mean(np.log(cell[plan] / cell[KNOWN])) for cell in losses]
        ratios = [f"{np.exp(log):.3f}" for log in (*logs, np.mean(logs))]
        rows.append((plan, *ratios))
    return table(("over known", *(cell["name"] for cell in cells), "mean"), rows)


def loops() -> str:
    """Return what the programs of others' loops end with, and where single seeds lie."""
    rows = []
    for name, found in json.loads((HERE / "loops.json").read_text())["programs"].items():
        for way, runs in found["ways"].items():
            first = [run[0] for run in runs]
            accuracies = [x for run in runs for x in run[1:]]
            also = f", {np.mean(accuracies):.1%}" if accuracies else ""
            span = f" ({min(first):.3g} … {max(first):.3g})" if len(first) > 1 else ""
            rows.append((f"{name}: {way}", found["figure"], f"{np.mean(first):.3g}{span}{also}"))
    return table(("program", "what", "mean (range of seeds)"), rows)
