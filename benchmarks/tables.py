"""What the JSON files beside this script say, as tables in Markdown: one function for each table.

`readme.py` puts them into the pages.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from learning_tables import across, learning, learning_starts, reward_ranking
from real_tables import half_losses, half_scores, large_gpts, ratios, tunings
from run_tables import loops, no_horizon, one_run, one_run_kills, replanned, spikes
from wording import label, made_with, number, plus_minus, table, within

HERE = Path(__file__).parent
FIRST = "any-lr-v1"
"""The first policy, which is gone: what was measured of it elsewhere stays."""
SHIPPED, WITH_DECAY = "any-lr-v2", "adamw-lr-wd-v2"


def read(name: str) -> dict[str, Any]:
    """Return what `name.json` holds."""
    return json.loads((HERE / f"{name}.json").read_text())


# What the front page shows.


def honest() -> str:
    """Real networks: held-out loss over that of the best of a sweep, by half and optimizer."""
    methods = ("prodigy + linear", "distance", SHIPPED, WITH_DECAY)
    halves = {"validation": "first half", "reported": "second half"}
    rows = [
        (f"{kind}: {name}", *figures)
        for half, kind in halves.items()
        for name, *figures in ratios(half, methods)
    ]
    heads = ("cells", "Prodigy + linear decay", "`distance`", SHIPPED, WITH_DECAY)
    return table(heads, rows)


# Real networks.


def network(cell: Mapping[str, Any]) -> str:
    """Return what was trained, how and for how long."""
    return f"{cell['network']} ({cell['parameters']}), {cell['steps']} steps, {cell['optimizer']}"


def real_networks() -> str:
    """Return the held-out losses themselves."""
    names = (
        "sweep",
        "prodigy + linear",
        FIRST,
        f"{FIRST}, no horizon",
        f"reinforce({FIRST})",
        "reinforce from nothing",
    )
    rows = [
        (network(c), *(number(c.get(name), 3) for name in names))
        for c in read("real_networks")["cells"]
    ]
    return table(("held-out loss", "best of a sweep", *names[1:]), rows)


def real_networks_three_seeds() -> str:
    """Return the means over three seeds."""
    names = ("sweep", "prodigy + linear", FIRST)
    rows = [
        (f"{c['network']}, {c['optimizer']}", *(number(c.get(name), 4) for name in names))
        for c in read("real_networks")["three_seeds"]
    ]
    return table(("mean of three seeds", "best of a sweep", *names[1:]), rows)


def real_networks_long() -> str:
    """Return held-out and training loss of runs that overfit."""
    names = ("linear fall", "prodigy + linear", FIRST)
    rows = [
        (
            f"{c['network']}, {c['steps']} steps, linear fall from {c['at rate']:g}",
            *(" / ".join(f"{x:.3f}" for x in c[name]) if name in c else "–" for name in names),
        )
        for c in read("real_networks")["long_runs"]
    ]
    return table(("held-out / training loss", *names), rows)


def real_networks_trust_region() -> str:
    """Return what a tighter trust region would have given."""
    found = read("real_networks")["tighter_trust_region"]
    columns = (found["network"], *(f"`max_ratio={ratio}`" for ratio in found["max_ratio"]))
    return table(columns, [("held-out loss", *(f"{x:.3f}" for x in found["max_ratio"].values()))])


def reinforce_from_nothing() -> str:
    """Return what learning from nothing brings, by the starting rate."""
    found = read("real_networks")["eight_toy_cells"]
    names = ("reinforce from nothing", "left alone", "hypergradient")
    columns = ("start", *(f"{start:g}" for start in found["starts"]))
    return table(columns, [(name, *(f"{x:.2f}" for x in found[name])) for name in names])


# Small tasks against a sweep.


def score_table(scores: Iterable[dict[str, Any]]) -> str:
    """Return the rows of `protocol.score`, from each as a dict."""
    columns = ("method", "geometric mean", "IQM", "within 10 %", "reach it", "diverged", "cells")
    rows = [
        (
            label(row["method"]),
            f"{row['geometric_mean']:.2f} {within(row['geometric_interval'])}",
            f"{row['interquartile_mean']:.2f}",
            f"{row['within_tenth']:.0%}",
            f"{row['reached']:.0%}",
            f"{row['diverged']:.1%}",
            f"{row['cells']}",
        )
        for row in scores
    ]
    return table(columns, rows)


def cuts() -> list[dict[str, Any]]:
    """Return every cut of the protocol that was run, by the length of its runs."""
    found = [json.loads(path.read_text()) for path in HERE.glob("protocol-*.json")]
    return sorted(found, key=lambda cut: cut["horizons"])


def horizons() -> str:
    """Return what the policy has in runs of any length."""
    columns = ("steps", "optimizers", "starts", "seeds", "oracle's seeds", "geometric mean", "IQM")
    rows = []
    for cut in cuts():
        [row] = [row for row in cut["scores"] if row["method"] == SHIPPED]
        rows.append(
            (
                ", ".join(map(str, cut["horizons"])),
                *(str(len(cut[name])) for name in ("optimizer", "rates")),
                *(str(cut[name]) for name in ("seeds", "oracle_seeds")),
                f"{row['geometric_mean']:.2f} {within(row['geometric_interval'])}",
                f"{row['interquartile_mean']:.2f}",
                f"{row['within_tenth']:.0%}",
                f"{row['diverged']:.1%}",
            )
        )
    return table((*columns, "within 10 %", "diverged"), rows)


def split(field: str) -> str:
    """Return what the policy has for each task or optimizer in runs of any length."""
    found = cuts()
    values = dict.fromkeys(value for cut in found for value in cut[field])
    columns = (field, *(f"{', '.join(map(str, cut['horizons']))} steps" for cut in found))
    return table(columns, [(v, *(number(cut[field].get(v)) for cut in found)) for v in values])


def other_optimizers() -> str:
    """Return the ratios of optimizers that no policy was trained with, best first."""
    found = sorted(read("other_optimizers")["optimizer"].items(), key=lambda pair: pair[1])
    return table(("optimizer", "geometric mean"), [(f"`{n}`", number(x)) for n, x in found])


def other_optimizers_score() -> str:
    """Return their score over all."""
    return score_table([read("other_optimizers")])


# Learners.


def learners() -> str:
    """Return what each learner makes of the same runs."""
    found = read("learners")
    columns = ("learner", "inner steps", "loss over that of holding", "by training")
    rows = [
        (
            name,
            f"{row['inner_steps']:.2g}",
            f"{row['loss_over_hold']:.2f} {within(row['interval'])}",
            ", ".join(f"{x:.2f}" for x in row["by_meta_seed"]),
        )
        for name, row in found["rows"].items()
    ]
    return table(columns, rows)


# Two more questions.


def data_switch() -> str:
    """Return how fast runs recover from new labels."""
    found = read("data_switch")
    names = [name for name in found["faster"] if name != "cosine, tuned"]
    rows = []
    for row in found["rows"]:
        cells = [row["methods"][name] for name in names]
        steps = row["methods"]["cosine, tuned"]["steps"]
        shown = [f"{cell['faster']:.2f} {within(cell['interval'])}" for cell in cells]
        rows.append((f"{row['task']}, {row['optimizer']}", str(steps), *shown))
    rows.append(("geometric mean", "", *(number(found["faster"][name]) for name in names)))
    return table(("times as fast as a tuned cosine", "its steps", *names), rows)


def weight_decay() -> str:
    """Return held-out losses over those of the best decay of a grid."""
    found = read("weight_decay")
    summary = dict(found["summary"])
    grid = summary.pop("one decay of the grid for all")
    rows = [
        (label(name), f"{row['ratio']:.2f} {within(row['interval'])}")
        for name, row in summary.items()
    ]
    rows += [(f"a decay of {decay} everywhere", number(ratio)) for decay, ratio in grid.items()]
    return table(("method", "held-out loss over that of the best decay"), rows)


def weight_decay_by_task() -> str:
    """Return the same for each task and length."""
    found = read("weight_decay")
    names = list(found["rows"][0]["logs"])
    rows = [
        (
            f"{row['task']}, {row['steps']} steps",
            f"{row['best']:g}",
            *(number(float(np.exp(np.mean(row["logs"][name])))) for name in names),
        )
        for row in found["rows"]
    ]
    return table(("task", "best decay", *map(label, names)), rows)


# What it costs.


def overhead() -> str:
    """Return what a step costs beside plain AdamW."""
    rows = read("overhead")["rows"]
    first = next(iter(rows.values()))
    columns = [name for name in first if "microseconds" not in name and "compile" not in name]
    columns += [name for name in first if "compile" in name]
    shown = [
        (name, *(f"{x:.2f}" if isinstance(x, float) else f"{x:,}" for x in map(row.get, columns)))
        for name, row in rows.items()
    ]
    return table(("method", *(c.replace("_", " ") for c in columns)), shown)


def controllers() -> list[dict[str, Any]]:
    """Return what ours cost, who stand below the peers, from the plain optimizer on."""
    rows = read("overhead")["rows"]
    return list(rows.values())[list(rows).index("constant") :]


def overhead_bytes() -> str:
    """Return the range of bytes a parameter and step, for a sentence."""
    found = [
        x
        for row in controllers()
        for key, x in row.items()
        if key.startswith(("bytes_in_", "bytes_of_transformer"))
    ]
    return f"{min(found):.1f} to {max(found):.1f}"


def bytes_of(method: str) -> str:
    """Return the bytes a parameter and step of one method, for a sentence."""
    return f"{read('overhead')['rows'][method]['bytes_in_10']:.0f}"


def overhead_state() -> str:
    """Return how much the state grows at most, for a sentence."""
    most = max(row["extra_state_bytes"] for row in controllers())
    return f"{most / 1000:.0f} kB"


def meta_throughput() -> str:
    """Return inner steps a second of meta-training, by device."""
    rows = []
    for path in sorted(HERE.glob("meta_throughput-*.json")):
        found = json.loads(path.read_text())
        device = found["versions"]["device"]
        for name, rate in found["inner_steps_per_second"].items():
            ratio = found["ratio_to_the_loop"][name]
            rows.append((device, name, f"{rate:,.0f}", f"{ratio:,.{ratio < 100.0:d}f}"))
        most = found["highest_ratio_that_arithmetic_allows"]
        rows.append((device, "at the speed of large matrix products", "", f"{most:,.0f}"))
    return table(("device", "at once", "inner steps a second", "times the loop"), rows)


# What the command line shows, and the classic demonstration.


def first_light() -> str:
    """Return what `optax-meta compare` printed."""
    columns = ("method", "final loss", "loss reduction %", "test accuracy %", "rates", "time ×")
    rows = [
        (
            row["method"],
            plus_minus(row["final_loss"], 4),
            plus_minus(row["loss_reduction"], 1),
            plus_minus(row["test_accuracy"], 1, scale=100.0),
            f"{row['num_rates']:.1f}",
            f"{row['overhead']:.2f}",
        )
        for row in read("first_light")["ranking"]
    ]
    return table(columns, rows)


def fifteen_steps() -> str:
    """Return what 15 steps look like over many seeds."""
    columns = ("method", "change of the loss, %", "median", "distinct rates", "range of rates")
    rows = []
    for name, row in read("fifteen_steps")["rows"].items():
        (least, most), (mean, fewest, many) = row["changes"], row["num_rates"]
        rows.append(
            (
                name,
                f"{plus_minus(row['change'], 1)} ({least:.1f} … {most:.1f})",
                f"{row['median']:.1f}",
                f"{mean:.1f} ({fewest} … {many})",
                " … ".join(f"{rate:.2g}" for rate in row["rates"]),
            )
        )
    return table(columns, rows)


def versions() -> str:
    """Return what each file was made with."""
    rows = []
    for path in sorted(HERE.glob("*.json")):
        found = json.loads(path.read_text())
        rows.append((f"[{path.name}]({path.name})", made_with(found["versions"])))
    return table(("file", "made with"), rows).replace("---:", "---")


BLOCKS: dict[str, Callable[[], str]] = {
    "honest": honest,
    "real_validation": lambda: half_scores("validation"),
    "real_validation_losses": lambda: half_losses("validation"),
    "real_reported": lambda: half_scores("reported"),
    "real_reported_losses": lambda: half_losses("reported"),
    "tuning": tunings,
    "large_gpt": large_gpts,
    "real_networks": real_networks,
    "real_networks_three_seeds": real_networks_three_seeds,
    "real_networks_long": real_networks_long,
    "real_networks_trust_region": real_networks_trust_region,
    "reinforce_from_nothing": reinforce_from_nothing,
    "protocol": lambda: score_table(read("protocol-medium")["scores"]),
    "horizons": horizons,
    "by_task": lambda: split("task"),
    "by_optimizer": lambda: split("optimizer"),
    "other_optimizers_score": other_optimizers_score,
    "other_optimizers": other_optimizers,
    "learners": learners,
    "learning": learning,
    "learning_starts": learning_starts,
    "across": across,
    "reward_ranking": reward_ranking,
    "spikes": spikes,
    "loops": loops,
    "no_horizon": no_horizon,
    "one_run": one_run,
    "replanned": replanned,
    "one_run_kills": one_run_kills,
    "data_switch": data_switch,
    "weight_decay": weight_decay,
    "weight_decay_by_task": weight_decay_by_task,
    "overhead": overhead,
    "overhead_bytes": overhead_bytes,
    "overhead_state": overhead_state,
    "bytes_adamw": lambda: bytes_of("adamw"),
    "bytes_clip": lambda: bytes_of("clip_by_global_norm + adamw"),
    "bytes_prodigy": lambda: bytes_of("prodigy"),
    "meta_throughput": meta_throughput,
    "first_light": first_light,
    "fifteen_steps": fifteen_steps,
    "versions": versions,
}
