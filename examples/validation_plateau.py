"""A plateau rule that judges the validation loss, once an epoch, without a dummy update.

Inside the epoch nothing decides, for the decision interval is infinite. Between epochs `decide`
asks the controller: a pure function of the optimizer's state and one number.

    python examples/validation_plateau.py
"""

import argparse
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import optax_meta

STEPS = 20  # in an epoch
MODEL: Any = nn.Sequential([nn.Dense(256), nn.relu, nn.Dense(1)])
CONTROLLER = optax_meta.plateau(factor=0.5, patience=1)
TX = optax_meta.control_hyperparams(optax.adamw, CONTROLLER, decision_interval=math.inf)(
    learning_rate=3e-2
)


def loss_fn(params: Any, data: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return the mean squared error."""
    x, y = data
    return jnp.mean((MODEL.apply(params, x) - y) ** 2)


@jax.jit
def train_epoch(params: Any, opt_state: Any, train: Any, validation: Any) -> Any:
    """Train on every batch, then decide; return parameters, state and the validation loss."""

    def train_step(carry, batch):  # noqa: ANN001, ANN202
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = TX.update(grads, opt_state, params, value=loss)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, opt_state), _ = jax.lax.scan(train_step, (params, opt_state), train)
    loss = loss_fn(params, validation)
    return params, optax_meta.decide(CONTROLLER, opt_state, value=loss), loss


def main(steps: int = 400) -> tuple[list[float], list[float]]:
    """Train; return the validation loss and the learning rate after every epoch."""
    x = jax.random.normal(jax.random.key(0), (STEPS + 10, 16, 4))
    y = jnp.sin(x[..., :1]) + 0.3 * jax.random.normal(jax.random.key(1), x[..., :1].shape)
    train, validation = (x[:STEPS], y[:STEPS]), (x[STEPS:], y[STEPS:])
    params = MODEL.init(jax.random.key(2), x)
    opt_state = TX.init(params)
    losses, rates = [], []
    for epoch in range(steps // STEPS):
        params, opt_state, loss = train_epoch(params, opt_state, train, validation)
        losses.append(float(loss))
        rates.append(float(optax_meta.hyperparams(opt_state)["learning_rate"]))
        print(f"epoch {epoch + 1}: validation loss {losses[-1]:.4f}, learning rate {rates[-1]:.2g}")
    return losses, rates


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    main(parser.parse_args().steps)
