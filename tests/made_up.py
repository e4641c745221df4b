"""Made-up runs of the size and kind of real ones, for tests of what is drawn from them."""

import numpy as np

from optax_meta.meta.evaluation import Comparison, MethodResult
from optax_meta.recording import Decision, Record

METHODS = ("constant", "plateau", "warmup", "hypergradient", "learned", "reinforce", "random")
POLICIES = METHODS[4:]
FEATURES = tuple(f"feature_{name}" for name in "abcdefghijklmnopqr")
ACTIONS = ("learning_rate ×0.5", "hold", "learning_rate ×2", "learning_rate ×2, weight_decay ×2")
EVERY = 5


def result_of(name, generator, seeds, steps):
    """Return runs of a method: falling noisy losses, a walking rate, a decision every 5 steps."""
    shape = (seeds, steps)
    falls = np.exp(-np.arange(steps) / generator.uniform(50, 500))
    losses = falls * generator.lognormal(0.0, 0.2, shape) + 0.01
    action = generator.integers(0, len(ACTIONS), shape)
    decided = np.broadcast_to(np.arange(steps) % EVERY == 0, shape)
    moves = np.where(decided, (action - 1.5) * 0.2, 0.0).cumsum(axis=1)
    probabilities = generator.dirichlet(np.ones(len(ACTIONS)), shape)
    observed = generator.uniform(-1.0, 1.0, (*shape, len(FEATURES)))
    zeros = np.zeros(shape)
    decision = Decision(action, zeros, zeros, losses, zeros, probabilities, observed)
    is_policy = name in POLICIES
    records = Record(
        step=np.broadcast_to(np.arange(1, steps + 1), shape),
        value=losses,
        cost=zeros,
        grad_norm=zeros + 1.0,
        alignment=zeros,
        hyperparams={
            "learning_rate": 1e-3 * np.exp(moves),
            **({"weight_decay": 1e-4 * np.exp(-moves)} if is_policy else {}),
        },
        decided=decided,
        num_nonfinite=zeros.astype(int),
        num_spikes=zeros.astype(int),
        progress=zeros - 1.0,
        num_misread=zeros.astype(int),
        decision=decision if is_policy else None,
    )
    return MethodResult(
        initial={"loss": np.ones(seeds)},
        final={"loss": losses[:, -1]},
        losses=losses,
        records=records,
        seconds=np.ones(seeds),
        action_labels=ACTIONS if is_policy else (),
        features=FEATURES if is_policy else (),
    )


def comparison(methods=METHODS, seeds=10, steps=500):
    generator = np.random.default_rng(0)
    return Comparison(
        task="made up",
        description="numbers of the size of a real comparison",
        optimizer="adamw",
        learning_rate=1e-3,
        steps=steps,
        seeds=seeds,
        planned_seeds=seeds,
        methods={name: result_of(name, generator, seeds, steps) for name in methods},
        bare_seconds=np.ones(seeds),
        versions={"jax": "0"},
    )


def rows(runs, hyperparam="learning_rate", **fields):
    """Return rows of step, loss and hyperparameter; a run is a list of values, one a step."""
    return [
        {"seed": i, "step": t, "decided": False, "loss": 1.0, hyperparam: value, **fields}
        for i, run in enumerate(runs)
        for t, value in enumerate(run, 1)
    ]
