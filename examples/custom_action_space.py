"""REINFORCE with actions of your own: learning rate and momentum of AdamW.

The policy picks one step of the log-learning-rate and one increment of `b1`, from two independent
heads. It starts by holding nine times in ten, and learns while the model trains.

    python examples/custom_action_space.py
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_meta
from optax_meta import actions

SPACE = actions.factored(
    actions.log_step("learning_rate", (-0.5, 0.0, 0.5), bounds=(1e-5, 1e-1)),
    actions.add("b1", (-0.05, 0.0, 0.05), bounds=(0.5, 0.99)),
)


def loss_fn(params: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """Return the mean squared error of a small network on a fresh batch."""
    x = jax.random.normal(key, (64, 4))
    prediction = jnp.tanh(x @ params["hidden"]) @ params["out"]
    return jnp.mean((prediction - jnp.sin(x.sum(axis=1))) ** 2)


def main(steps: int = 1000) -> Any:
    """Train; return all rows of the timeline."""
    # The classic agent has no wrappers: what it chooses is what the optimizer gets.
    controller = optax_meta.classic_reinforce(
        action_space=SPACE,
        start="hold",
        reward=optax_meta.rewards.log_improvement(),
        total_steps=steps,
    )
    tx = optax_meta.control_hyperparams(optax.adamw, controller)(learning_rate=3e-3)
    hidden_key, out_key = jax.random.split(jax.random.key(0))
    params = {
        "hidden": 0.5 * jax.random.normal(hidden_key, (4, 32)),
        "out": 0.1 * jax.random.normal(out_key, (32,)),
    }

    def train_step(carry, key):  # noqa: ANN001, ANN202
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, key)
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        return (optax.apply_updates(params, updates), opt_state), optax_meta.record(opt_state)

    keys = jax.random.split(jax.random.key(1), steps)
    train = jax.jit(lambda carry: jax.lax.scan(train_step, carry, keys))
    rows: Any = train((params, tx.init(params)))[1]
    labels = actions.labels(SPACE)
    print(f"{SPACE.num_actions} actions from {SPACE.num_logits} logits: {'; '.join(labels)}")
    for step in range(steps):
        action = labels[rows.decision.action[step]]
        if rows.decided[step] and action != "hold":
            rate, b1 = (rows.hyperparams[name][step] for name in SPACE.hyperparams)
            loss = rows.value[step]
            print(f"step {step + 1}: loss {loss:.4f}, {action}: rate {rate:.2g}, b1 {b1:.2f}")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1000)
    main(parser.parse_args().steps)
