"""PPO on gymnax's CartPole, against the linear fall that PPO is used with.

`pip install gymnax six && python examples/ppo.py`
"""

import argparse
import importlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import optax_meta

ENVS, LENGTH, UPDATES, DISCOUNT, LAMBDA, CLIP = 16, 64, 16, 0.99, 0.95, 0.2
ENV, _ = importlib.import_module("gymnax").make("CartPole-v1")  # it asks for jax < 0.12
NET: Any = nn.Sequential([nn.Dense(64), nn.tanh, nn.Dense(64), nn.tanh, nn.Dense(3)])


def ask(params: Any, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return log-probabilities of both actions, and the value."""
    out = NET.apply(params, seen)
    return jax.nn.log_softmax(out[..., :2]), out[..., 2]


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """Return PPO's loss, float32[]: clipped ratio, error of the critic, entropy bonus."""
    seen, action, old, adv, target = batch
    log_probs, value = ask(params, seen)
    ratio = jnp.exp(jnp.take_along_axis(log_probs, action, axis=1) - old)[:, 0]
    adv = jax.nn.standardize(adv)
    gain = jnp.minimum(ratio * adv, jnp.clip(ratio, 1.0 - CLIP, 1.0 + CLIP) * adv).mean()
    order = jnp.sum(jnp.exp(log_probs) * log_probs, axis=1).mean()
    return 0.5 * jnp.square(value - target).mean() - gain + 0.01 * order


def train(optimizer: Any, rounds: int, seed: int) -> float:
    """Return the mean reward between two falls, over the last tenth of the rounds."""
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.with_extra_args_support(optimizer))

    def learn(carry: Any, batch: Any) -> tuple[Any, None]:
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        return (optax.apply_updates(params, updates), opt_state), None

    def one_round(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        params, opt_state, games = carry

        def play(games: Any, key: jax.Array) -> tuple[Any, Any]:
            log_probs, _ = ask(params, games[0])
            action = jax.random.categorical(key, log_probs)[:, None]
            keys = jax.random.split(key, ENVS)
            *after, reward, fell, cut, _ = jax.vmap(ENV.step)(keys, games[1], action[:, 0])
            old = jnp.take_along_axis(log_probs, action, axis=1)
            return after, (games[0], action, old, reward, fell | cut)

        play_key, learn_key = jax.random.split(key)
        keys = jax.random.split(play_key, LENGTH)
        games, (seen, action, old, reward, done) = jax.lax.scan(play, games, keys)
        values = ask(params, jnp.concatenate([seen, games[0][None]]))[1]
        goes_on = DISCOUNT * (1.0 - done)
        steps = (reward + goes_on * values[1:] - values[:-1], LAMBDA * goes_on)
        # Generalized advantage estimates, backwards.
        _, adv = jax.lax.scan(lambda a, x: 2 * (x[0] + x[1] * a,), 0 * reward[0], steps, None, True)
        data = seen, action, old, adv, adv + values[:-1]
        order = jax.random.randint(learn_key, (UPDATES, 256), 0, LENGTH * ENVS)
        data = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[order], data)
        carry, _ = jax.lax.scan(learn, (params, opt_state), data)
        return (*carry, games), reward.sum() / jnp.maximum(done.sum(), 1)

    start, init, run = jax.random.split(jax.random.key(seed), 3)
    games = [*jax.vmap(ENV.reset)(jax.random.split(start, ENVS))]
    params = NET.init(init, games[0])
    carry, keys = (params, tx.init(params), games), jax.random.split(run, rounds)
    scores = jax.jit(lambda c, keys: jax.lax.scan(one_round, c, keys)[1])(carry, keys)
    return float(scores[-max(rounds // 10, 1) :].mean())


def main(steps: int = 100, seed: int = 0) -> dict[str, float]:
    """Train once each way; return the scores, 1024 where nothing falls in a round."""
    linear = optax.linear_schedule(2.5e-4, 0.0, steps * UPDATES)
    optimizers = {"linear 2.5e-4": optax.adam(linear, eps=1e-5)}
    learned = optax_meta.learned("any-lr-v2", total_steps=steps * UPDATES)
    # A policy that fails early gathers nothing to learn from: shorter moves are safer.
    careful = optax_meta.distance(share=0.05, total_steps=steps * UPDATES)
    for name, rule in {"any-lr-v2": learned, "distance, share=0.05": careful}.items():
        optimizers[name] = optax_meta.control_hyperparams(optax.adam, rule)(eps=1e-5)
    scores = {name: train(optimizer, steps, seed) for name, optimizer in optimizers.items()}
    print(*(f"{name}: score {score:.0f}" for name, score in scores.items()), sep="\n")
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100, help="rounds of games")
    main(parser.parse_args().steps)
