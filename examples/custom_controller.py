"""A controller of your own: the bold driver, which speeds up while the loss falls.

A controller is two pure functions, `init` and `update`; the state may be any pytree of arrays. It
works wherever the others do: under `jit`, `scan` and `vmap`, in `optax.chain`, in checkpoints.

    python examples/custom_controller.py
"""

import argparse
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_meta

Hyperparams = dict[str, jax.Array]


class BoldDriverState(NamedTuple):
    """What is carried from decision to decision: the last mean loss, float32[]."""

    last_value: jax.Array


def bold_driver(*, faster: float = 1.1, slower: float = 0.5) -> optax_meta.Controller:
    """Multiply the learning rate by `faster` where the loss fell, by `slower` where it rose."""

    def init(hyperparams: Hyperparams) -> BoldDriverState:
        del hyperparams
        return BoldDriverState(last_value=jnp.array(jnp.inf, jnp.float32))

    def update(
        metrics: optax_meta.Metrics, state: BoldDriverState, hyperparams: Hyperparams
    ) -> tuple[Hyperparams, BoldDriverState]:
        factor = jnp.where(metrics.value < state.last_value, faster, slower)
        rate = factor * hyperparams["learning_rate"]
        return {"learning_rate": rate}, BoldDriverState(last_value=metrics.value)

    return optax_meta.Controller(
        init,
        update,
        decision_interval=5,  # `metrics.value` is the mean loss of these steps
        bounds={"learning_rate": (1e-6, 1.0)},
    )


def loss_fn(params: dict[str, jax.Array]) -> jax.Array:
    """Return the mean squared error of a small network on all data."""
    x = jax.random.normal(jax.random.key(0), (256, 4))
    prediction = jnp.tanh(x @ params["hidden"]) @ params["out"]
    return jnp.mean((prediction - jnp.sin(x.sum(axis=1))) ** 2)


def main(steps: int = 500) -> optax_meta.Record:
    """Train; return all rows of the timeline."""
    tx = optax_meta.control_hyperparams(optax.sgd, bold_driver())(learning_rate=1e-3)
    hidden_key, out_key = jax.random.split(jax.random.key(1))
    params = {
        "hidden": 0.5 * jax.random.normal(hidden_key, (4, 32)),
        "out": 0.1 * jax.random.normal(out_key, (32,)),
    }

    def train_step(carry, _):  # noqa: ANN001, ANN202
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        return (optax.apply_updates(params, updates), opt_state), optax_meta.record(opt_state)

    train = jax.jit(lambda carry: jax.lax.scan(train_step, carry, length=steps))
    _, rows = train((params, tx.init(params)))
    every = max(1, steps // 5)
    for step in range(every - 1, steps, every):
        loss, rate = rows.value[step], rows.hyperparams["learning_rate"][step]
        print(f"step {step + 1}: loss {loss:.4f}, learning rate {rate:.2g}")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=500)
    main(parser.parse_args().steps)
