"""Train the same model again and again, and let each run teach the next one.

python examples/across_runs.py              # three more runs; what they taught is in nightly-runs
python examples/across_runs.py              # and three more, which go on from there

Kill it whenever you like: a run that was not finished is started again.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

import optax_meta
from optax_meta import writers

STEPS = 300
runs = optax_meta.across_runs("any-lr-v2")


def batch(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draw rows of a noisy regression."""
    x_key, noise_key = jax.random.split(key)
    x = jax.random.normal(x_key, (64, 8))
    return x, jnp.sin(x[:, 0] + x[:, 1]) + 0.3 * jax.random.normal(noise_key, (64,))


def loss_fn(params: dict[str, jax.Array], xy: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return the mean squared error on a batch."""
    prediction = jnp.tanh(xy[0] @ params["hidden"]) @ params["out"]
    return jnp.mean(jnp.square(prediction - xy[1]))


@jax.jit
def train(policy_params, key):  # noqa: ANN001, ANN201
    """Train once under a policy; return the loss on data held out."""
    policy = optax_meta.load_policy("any-lr-v2")._replace(params=policy_params)
    controller = optax_meta.learned(policy, total_steps=STEPS)
    tx = optax_meta.control_hyperparams(optax.adamw, controller)(weight_decay=1e-2)
    first, second, data = jax.random.split(key, 3)
    params = {
        "hidden": 0.3 * jax.random.normal(first, (8, 32)),
        "out": 0.3 * jax.random.normal(second, (32,)),
    }

    def step(i, carry):  # noqa: ANN001, ANN202
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, batch(jax.random.fold_in(data, i)))
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        return optax.apply_updates(params, updates), opt_state

    params, _ = jax.lax.fori_loop(0, STEPS, step, (params, tx.init(params)))
    held_out = jax.vmap(batch)(jax.random.split(jax.random.key(1), 50))
    return jnp.mean(jax.vmap(loss_fn, (None, 0))(params, held_out))


def main(directory: str, more: int = 3) -> list[float]:
    """Train so many times more; return how the runs ended."""
    state, folder, losses = runs.init(seed=0), Path(directory).absolute(), []
    log = writers.jsonl(folder / "log.jsonl", counter="update")
    with ocp.CheckpointManager(folder / "learned") as manager, log:
        if (done := manager.latest_step()) is not None:
            state = manager.restore(done, args=ocp.args.StandardRestore(state))
        for night in range(int(state.num_runs), int(state.num_runs) + more):
            policy = runs.ask(state)  # the same for the same state, should this run be killed
            losses.append(float(train(policy.params, jax.random.key(night))))
            state = runs.tell(state, policy, losses[-1])
            manager.save(night + 1, args=ocp.args.StandardSave(state))
            log.put([{**runs.row(state), "loss": losses[-1]}])
            shift = float(runs.shifts(state)[0])
            print(f"run {night + 1}: loss {losses[-1]:.4f}, rate × {2.718**shift:.2f} from now on")
    return losses


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "nightly-runs")
