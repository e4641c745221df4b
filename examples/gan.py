"""A GAN, each player with an optimizer and a controller of its own, against constant rates.

Each `update` gets the loss of its own player. These losses do not say whether training goes well:
the other player moves as well, and what one wins the other loses. So a policy that looks at a loss
has little to go by here; the distance rule, which reads gradients alone, does not look at it.

    python examples/gan.py
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import optax_meta

GENERATOR: Any = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(32), nn.relu, nn.Dense(2)])
CRITIC: Any = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(32), nn.relu, nn.Dense(1)])


def real(key: jax.Array) -> jax.Array:
    """Return 128 points on a ring of eight bumps, float32[128, 2]."""
    bump_key, noise_key = jax.random.split(key)
    angle = jax.random.randint(bump_key, (128,), 0, 8) * (2.0 * jnp.pi / 8.0)
    centres = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    return centres + 0.05 * jax.random.normal(noise_key, (128, 2))


def generator_loss(generator: Any, critic: Any, key: jax.Array) -> jax.Array:
    """Return how little the critic is taken in, float32[]."""
    made = GENERATOR.apply(generator, jax.random.normal(key, (128, 4)))
    return jax.nn.softplus(-CRITIC.apply(critic, made)).mean()


def critic_loss(critic: Any, generator: Any, key: jax.Array) -> jax.Array:
    """Return how badly the critic tells real points from made ones, float32[]."""
    made = GENERATOR.apply(generator, jax.random.normal(key, (128, 4)))
    wrong = jax.nn.softplus(CRITIC.apply(critic, made)).mean()
    return wrong + jax.nn.softplus(-CRITIC.apply(critic, real(key))).mean()


def energy_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return how far two samples' distributions are apart, float32[]; 0 where they are equal."""

    def mean(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum((x[:, None] - y[None]) ** 2, axis=-1) + 1e-12).mean()

    return 2.0 * mean(a, b) - mean(a, a) - mean(b, b)


def train(make: Any, steps: int, seed: int) -> tuple[float, Any]:
    """Train both players in turn; return the distance to the real points, and the states."""
    txs = [optax.with_extra_args_support(make()) for _ in range(2)]
    keys = jax.random.split(jax.random.key(seed), 2)
    players = GENERATOR.init(keys[0], jnp.zeros((1, 4))), CRITIC.init(keys[1], jnp.zeros((1, 2)))

    def train_step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        players, states = (list(x) for x in carry)
        for i, loss_fn in ((1, critic_loss), (0, generator_loss)):
            loss, grads = jax.value_and_grad(loss_fn)(players[i], players[1 - i], key)
            updates, states[i] = txs[i].update(grads, states[i], players[i], value=loss)
            players[i] = optax.apply_updates(players[i], updates)
        return (players, states), None

    carry = list(players), [tx.init(p) for tx, p in zip(txs, players, strict=True)]
    keys = jax.random.split(jax.random.key(seed + 1), steps)
    (generator, _), states = jax.jit(lambda c: jax.lax.scan(train_step, c, keys)[0])(carry)
    key = jax.random.key(seed + 2)
    made = GENERATOR.apply(generator, jax.random.normal(key, (1024, 4)))
    true = jax.vmap(real)(jax.random.split(key, 8)).reshape(-1, 2)
    return float(energy_distance(made, true)), states


def main(steps: int = 2000, seed: int = 0) -> dict[str, float]:
    """Train once each way; return the energy distances between made and real points."""
    found = {}
    for name, make in {
        "constant 1e-3, b1 = 0.5": lambda: optax.adam(1e-3, b1=0.5),
        "distance": lambda: controlled(optax_meta.distance(total_steps=steps)),
        "any-lr-v2": lambda: controlled(optax_meta.learned("any-lr-v2", total_steps=steps)),
    }.items():
        found[name], _ = train(make, steps, seed)
        print(f"{name}: energy distance to the real points {found[name]:.4f}")
    return found


def controlled(controller: optax_meta.Controller) -> Any:
    """Return Adam as GANs use it, without a rate of its own."""
    return optax_meta.control_hyperparams(optax.adam, controller)(b1=0.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    main(parser.parse_args().steps)
