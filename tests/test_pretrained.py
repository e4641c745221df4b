"""The policies that come with the package.

`python tests/test_pretrained.py` writes the golden trajectories anew, after a policy was replaced.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_meta
from optax_meta import checkpoints, families, tasks
from optax_meta.meta import runs as meta_runs

GOLDEN = Path(__file__).parent / "golden.json"
FOLDER = Path(optax_meta.__file__).parent / "pretrained"


def rates(name, total_steps, start=1e-3, factory=optax.adamw):
    """The learning rates of a fixed run, one a step, and its final loss."""
    policy = optax_meta.load_policy(name)
    task = tasks.quadratic(dim=20)
    tx = optax_meta.control_hyperparams(
        factory, optax_meta.learned(policy, total_steps=total_steps)
    )(learning_rate=start)

    def step(carry, key):
        params, state = carry
        loss, grads = jax.value_and_grad(task.loss)(params, task.sample(key))
        updates, state = tx.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), optax_meta.record(state)

    params = task.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 150)
    (params, _), rows = jax.jit(lambda c: jax.lax.scan(step, c, keys))((params, tx.init(params)))
    return rows.hyperparams["learning_rate"], task.evaluate(params)["loss"]


def fresh_golden():
    return {
        f"{name}, {total}": np.asarray(rates(name, total)[0], float).tolist()
        for name in optax_meta.available_policies()
        for total in (150, None)
    }


def test_there_are_policies_and_each_is_small():
    assert "any-lr-v2" in optax_meta.available_policies()
    for name in optax_meta.available_policies():
        assert (FOLDER / f"{name}.policy").stat().st_size <= 100_000
        assert name in meta_runs.RECIPES
        card = checkpoints.read_card(name)
        assert card["features"] == list(optax_meta.load_policy(name).encoder.features)
        notes = card["notes"]
        assert {"command", "updates", "seed", "inner_steps", "known_failures"} <= set(notes)
        assert {"jax", "optax", "flax"} <= set(notes["versions"])
        assert notes["results"]["test"]


def test_the_recipe_makes_a_policy_of_the_same_kind():
    for name in optax_meta.available_policies():
        shipped, trainer = optax_meta.load_policy(name), meta_runs.RECIPES[name]()
        made = trainer.policy(trainer.init(0))
        assert made.wrappers == shipped.wrappers
        assert (made.dense_steps, made.num_decisions) == (20, 100)
        assert (shipped.dense_steps, shipped.num_decisions) == (20, 100)
        assert made.action_space == shipped.action_space
        assert made.encoder.features == shipped.encoder.features
        assert made.network == shipped.network
        assert checkpoints.read_card(name)["notes"]["distribution"] == trainer.description


@pytest.mark.parametrize("total", [150, None])
@pytest.mark.parametrize("name", optax_meta.available_policies())
def test_golden_trajectories(name, total):
    expected = json.loads(GOLDEN.read_text())[f"{name}, {total}"]
    np.testing.assert_allclose(rates(name, total)[0], expected, rtol=1e-2)


@pytest.mark.parametrize("factory", [optax.adamw, optax.sgd, optax.lion, optax.rmsprop])
def test_any_start_ends_alike_and_none_is_lost(factory):
    starts = jnp.array([1e-5, 1e-3, 1.0, 10.0, 1e-6])
    finals = jax.vmap(lambda start: rates("any-lr-v2", 150, start, factory)[1])(starts)
    start = tasks.quadratic(dim=20)
    first = start.evaluate(start.init(jax.random.key(0)))["loss"]
    assert np.max(finals) < 0.2 * first
    np.testing.assert_allclose(finals, finals[0], rtol=1e-3)


def test_the_start_changes_no_bit():
    policy, family = optax_meta.load_policy("any-lr-v2"), families.FAMILIES["relu"]()

    def final(key, start):
        return optax_meta.rollout(
            policy,
            family.build(family.sample(key)),
            key,
            total_steps=40,
            optimizer=partial(optax.sgd, momentum=0.9),
            learning_rate=start,
        ).final["loss"]

    keys, starts = jax.random.split(jax.random.key(3), 8), jnp.array([1e-5, 1e-2, 1.0, 10.0])
    finals = np.array(jax.jit(jax.vmap(jax.vmap(final, (None, 0)), (0, None)))(keys, starts))
    np.testing.assert_array_equal(finals, np.tile(finals[:, :1], 4))


@pytest.mark.parametrize("batches", [1, 8])
def test_no_gradient_teaches_nothing(batches):
    # As behind frozen or masked layers, or under a loss that is flat at first.
    policy = optax_meta.load_policy("any-lr-v2")
    controller = optax_meta.learned(policy, total_steps=50)
    tx = optax_meta.control_hyperparams(optax.sgd, controller)(learning_rate=1e-3)
    params = jnp.ones(4)
    state = tx.init(params)
    for _ in range(batches):
        _, state = tx.update(jnp.zeros(4), state, params, value=1.0)
    largest_action = 2.0
    assert optax_meta.hyperparams(state)["learning_rate"] <= 1.01e-6 * largest_action**batches
    updates, _ = tx.update(params, state, params, value=1.0)
    assert np.abs(updates).max() < 0.1


@pytest.mark.parametrize("name", optax_meta.available_policies())
def test_it_keeps_learning_online(name):
    policy = optax_meta.load_policy(name)
    controller = optax_meta.reinforce(policy, total_steps=100, train_every=2)
    tx = optax_meta.control_hyperparams(optax.adamw, controller)(1e-3, weight_decay=1e-2)
    params = jnp.ones(4)
    state = tx.init(params)
    for _ in range(12):
        updates, state = tx.update(params, state, params, value=jnp.sum(params**2))
        params = optax.apply_updates(params, updates)
    taught = optax_meta.extract_policy(policy, state)
    head = taught.params["params"]["head"]["bias"]
    assert not np.array_equal(head, policy.params["params"]["head"]["bias"])
    assert np.all(np.isfinite(head))


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(fresh_golden()) + "\n")
