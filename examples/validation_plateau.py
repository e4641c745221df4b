"""A plateau rule that judges the validation loss, once an epoch, without a dummy update.

Inside the epoch nothing decides: the same controller with an `update` that holds. Between epochs
`judge` calls the controller itself, a pure function of the optimizer's state and one number.

    python examples/validation_plateau.py
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import optax_meta

STEPS = 20  # in an epoch
MODEL: Any = nn.Sequential([nn.Dense(256), nn.relu, nn.Dense(1)])
CONTROLLER = optax_meta.plateau(factor=0.5, patience=1)
HOLD = CONTROLLER._replace(
    update=lambda metrics, state, hyperparams: (hyperparams, state),  # noqa: ARG005
    needs_value=False,
)
TX = optax_meta.control_hyperparams(optax.adamw, HOLD)(learning_rate=3e-2)


def loss_fn(params: Any, data: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return the mean squared error."""
    x, y = data
    return jnp.mean((MODEL.apply(params, x) - y) ** 2)


def judge(opt_state: Any, value: jax.Array) -> Any:
    """Let the controller decide on `value`; return the state to go on with."""
    metrics = optax_meta.Metrics(
        value=jnp.where(jnp.isfinite(value), value, 0.0),
        cost=jnp.float32(0.0),
        grad_norm=jnp.float32(0.0),
        alignment=jnp.float32(0.0),
        update_norm=jnp.float32(0.0),
        param_norm=jnp.float32(0.0),
        value_change=jnp.float32(0.0),
        num_steps=jnp.float32(1.0),
        num_nonfinite=jnp.where(jnp.isfinite(value), 0.0, 1.0),
        step=opt_state.step,
        progress=jnp.float32(-1.0),
    )
    hyperparams, controller_state = CONTROLLER.update(
        metrics, opt_state.controller_state, opt_state.hyperparams
    )
    inner_state = opt_state.inner_state._replace(hyperparams=hyperparams)
    return opt_state._replace(controller_state=controller_state, inner_state=inner_state)


@jax.jit
def train_epoch(params: Any, opt_state: Any, train: Any, validation: Any) -> Any:
    """Train on every batch, then judge; return parameters, state and the validation loss."""

    def train_step(carry, batch):  # noqa: ANN001, ANN202
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = TX.update(grads, opt_state, params, value=loss)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, opt_state), _ = jax.lax.scan(train_step, (params, opt_state), train)
    loss = loss_fn(params, validation)
    return params, judge(opt_state, loss), loss


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
