"""Meta-train a policy of your own on tasks of your own, save it, and let it train something new.

The tasks are sines to be fitted by a small network, from a learning rate that is too small: the
policy has to find that out.

    python examples/meta_train.py mine.policy
"""

import argparse
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import optax_meta
from optax_meta.meta.tasks import Task, TaskFamily, train_step

MODEL: Any = nn.Sequential([nn.Dense(32), nn.tanh, nn.Dense(1)])


def build_task(frequency: jax.Array) -> Task:
    """Return the task of fitting the sine of a frequency."""

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.mean((MODEL.apply(params, x) - jnp.sin(frequency * x)) ** 2)

    return Task(
        name="sine",
        description="a network of 32 hidden units, fitted to a sine",
        init=lambda key: MODEL.init(key, jnp.zeros((1, 1))),
        sample=lambda key: jax.random.uniform(key, (64, 1), minval=-2.0, maxval=2.0),
        loss=loss,
        evaluate=lambda params: {"loss": loss(params, jnp.linspace(-2.0, 2.0, 101)[:, None])},
    )


FAMILY = TaskFamily("sine", "a random sine", lambda key: 4.0 * jax.random.uniform(key), build_task)


def final_loss(controller: optax_meta.Controller, steps: int, key: jax.Array) -> jax.Array:
    """Train a fresh task from a learning rate of 1e-4; return its loss at the end."""
    task_key, data_key = jax.random.split(key)
    task = FAMILY.build(FAMILY.sample(task_key))
    tx = optax_meta.control_hyperparams(optax.adam, controller)(learning_rate=1e-4)
    params = task.init(task_key)

    def step(t: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        return train_step(task, tx, jax.random.fold_in(data_key, t), t, *carry)[:2]

    params, _ = jax.lax.fori_loop(0, steps, step, (params, tx.init(params)))
    return task.evaluate(params)["loss"]


def main(path: str, updates: int = 20, steps: int = 200) -> dict[str, float]:
    """Meta-train, save and use a policy; return mean final losses without and with it."""
    policy = optax_meta.init_policy(
        jax.random.key(0),
        encoder=optax_meta.observations.scale_free(),
        action_space=optax_meta.actions.learning_rate((0.5, 1.0, 2.0)),
        hold_probability=0.5,
    )
    trainer = optax_meta.meta_trainer(
        [FAMILY],
        policy,
        optimizers=["adam"],
        learning_rates=(1e-5, 1e-3),
        horizons=(steps, steps),
        families_per_update=1,
        policy_learning_rate=2e-2,
    )
    state = trainer.init(0)
    for update in range(updates):
        state, info = trainer.update(state)
        if (update + 1) % 5 == 0:
            print(f"update {update + 1}: the log-loss of a run falls by {info['fall/sine']:.2f}")
    optax_meta.save_policy(trainer.policy(state), path)
    mine = optax_meta.learned(path, total_steps=steps)
    keys, losses = jax.random.split(jax.random.key(1), 32), {}
    for name, controller in {"constant": optax_meta.constant(), "mine": mine}.items():
        run = jax.jit(jax.vmap(partial(final_loss, controller, steps)))
        losses[name] = float(jnp.mean(run(keys)))
        print(f"{name}: mean final loss of 32 fresh tasks {losses[name]:.4f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", help="where to save the policy")
    parser.add_argument("--updates", type=int, default=20)
    args = parser.parse_args()
    main(args.path, args.updates)
