"""Train, save with Orbax while training goes on, and resume: the resumed run is the same run.

python examples/resume.py                   # stop it whenever you like, even with kill -9,
python examples/resume.py                   # and start it again; checkpoints are in resume-run
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

import optax_meta

# Goes on learning from a policy that knows how: its decisions, samples and lessons resume, too.
controller = optax_meta.reinforce("any-lr-v2", decision_interval=2, train_every=3)
tx = optax_meta.control_hyperparams(optax.adamw, controller)()


def loss_fn(params: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """Return the loss on a fresh batch of a noisy regression."""
    x = jax.random.normal(key, (64, 8))
    prediction = jnp.tanh(x @ params["hidden"]) @ params["out"]
    return jnp.mean(jnp.square(prediction - jnp.sin(x.sum(axis=1))))


@jax.jit
def train_step(params, opt_state, key):  # noqa: ANN001, ANN201
    """Take one step; return parameters, optimizer state and loss."""
    loss, grads = jax.value_and_grad(loss_fn)(params, key)
    updates, opt_state = tx.update(grads, opt_state, params, value=loss)
    return optax.apply_updates(params, updates), opt_state, loss


def main(directory: str, steps: int = 200, save_every: int = 5):  # noqa: ANN201
    """Train up to `steps`, from the latest checkpoint in `directory` if there is one."""
    key = jax.random.key(0)
    params = {
        "hidden": 0.3 * jax.random.normal(key, (8, 16)),
        "out": 0.3 * jax.random.normal(key, (16,)),
    }
    state = {"params": params, "opt_state": tx.init(params)}
    options = ocp.CheckpointManagerOptions(max_to_keep=2, save_interval_steps=save_every)
    with ocp.CheckpointManager(Path(directory).absolute(), options=options) as manager:
        start = manager.latest_step() or 0
        if start:
            # The fresh state is the target: it says what the restored arrays are to become.
            state = manager.restore(start, args=ocp.args.StandardRestore(state))
            print(f"resumed after step {start}", flush=True)
        for step in range(start, steps):
            batch_key = jax.random.fold_in(key, step)
            params, opt_state, loss = train_step(state["params"], state["opt_state"], batch_key)
            state = {"params": params, "opt_state": opt_state}
            manager.save(step + 1, args=ocp.args.StandardSave(state))
            if (step + 1) % 20 == 0:
                rate = optax_meta.hyperparams(opt_state)["learning_rate"]
                print(f"step {step + 1}, loss {loss:.4f}, learning rate {rate:.2e}", flush=True)
    return state


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "resume-run")
