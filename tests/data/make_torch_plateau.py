"""Write what PyTorch's ReduceLROnPlateau does on fixed sequences to torch_plateau.json.

Run once with torch 2.13; the tests need only the file.
"""

import json
from pathlib import Path

import numpy as np
import torch

t = np.arange(60)
rng = np.random.default_rng(0)
SEQUENCES = {
    "decay": np.exp(-t / 8) + 0.5,
    "noisy": np.exp(-t / 15) + 0.1 * rng.random(60) + 0.2,
    "flat": np.full(60, 1.0),
    "steps": np.repeat([3.0, 2.0, 2.0, 1.0, 1.0, 1.0], 10),
    "rising": 1 + t / 10,
    "slow": 1 - 3e-5 * t,
    "zigzag": 1 + 0.3 * np.sin(t),
    "spiky": np.where(t % 7 == 0, 10.0, np.exp(-t / 20) + 0.1),
}
OPTIONS = [
    {},
    {"factor": 0.5, "patience": 1},
    {"factor": 0.5, "patience": 2, "cooldown": 3},
    {"factor": 0.3, "patience": 3, "threshold": 0.1},
    {"factor": 0.5, "patience": 2, "threshold": 0.05, "threshold_mode": "abs"},
    {"factor": 0.1, "patience": 1, "min_lr": 1e-3},
    {"factor": 0.5, "patience": 1, "eps": 1e-2},
    {"mode": "max", "factor": 0.5, "patience": 2},
    {"mode": "max", "factor": 0.5, "patience": 2, "threshold": 0.05, "threshold_mode": "abs"},
    {"factor": 0.9, "patience": 1, "cooldown": 2, "threshold": 0.0},
]


def run(values, options):
    """Return the learning rate after each value."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    rates = []
    for value in values:
        scheduler.step(float(np.float32(value)))
        rates.append(float(f"{optimizer.param_groups[0]['lr']:.7g}"))
    return rates


def renamed(options):
    """Return the options under our names."""
    return {("min_value" if k == "min_lr" else k): v for k, v in options.items()}


cases = [
    {
        "sequence": name,
        "options": renamed(options),
        "learning_rates": run(values, options),
    }
    for name, values in SEQUENCES.items()
    for options in OPTIONS
]
sequences = {n: [float(f"{np.float32(v):.9g}") for v in s] for n, s in SEQUENCES.items()}
source = f"torch {torch.__version__}, ReduceLROnPlateau, lr=0.1"
data = {
    "source": source,
    "options": [renamed(options) for options in OPTIONS],
    "sequences": sequences,
    "cases": cases,
}
Path(__file__).with_name("torch_plateau.json").write_text(json.dumps(data))
