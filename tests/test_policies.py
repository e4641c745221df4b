import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_meta
from optax_meta import actions, init_policy, load_policy, observations, save_policy


def probabilities(policy, seed=0):
    observation = jax.random.uniform(jax.random.key(seed), (8,), minval=-1.0)
    return jnp.exp(policy.log_probs(policy.params, observation))


def test_layers_are_8_32_32_9():
    shapes = [
        leaf.shape
        for leaf in jax.tree.leaves(init_policy(jax.random.key(0)).params)
        if leaf.ndim == 2
    ]
    assert sorted(shapes) == [(8, 32), (32, 9), (32, 32)]


def test_sizes_are_configurable():
    space = actions.learning_rate()
    policy = init_policy(jax.random.key(0), hidden_sizes=(5,), action_space=space)
    shapes = [leaf.shape for leaf in jax.tree.leaves(policy.params) if leaf.ndim == 2]
    assert sorted(shapes) == [(5, 3), (8, 5)]


def test_a_fresh_policy_holds_whatever_it_sees():
    for seed in range(3):
        probs = probabilities(init_policy(jax.random.key(seed), hold_probability=0.8), seed)
        np.testing.assert_allclose(probs[4], 0.8, rtol=1e-5)


def test_uniform_start():
    policy = init_policy(jax.random.key(0), start="uniform")
    np.testing.assert_allclose(probabilities(policy), 1 / 9, rtol=1e-5)


@pytest.mark.parametrize("space", [actions.classic(), actions.factored(*actions.classic().moves)])
def test_a_saved_policy_comes_back_exactly(tmp_path, space):
    encoder = observations.classic(history=4)
    policy = init_policy(
        jax.random.key(3), encoder=encoder, action_space=space, hidden_sizes=(7, 6)
    )
    noise = jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(1), x.shape), policy.params)
    policy = policy._replace(params=noise)
    save_policy(policy, tmp_path / "mine.policy")
    same = load_policy(tmp_path / "mine.policy")
    jax.tree.map(np.testing.assert_array_equal, same.params, policy.params)
    assert same.network == policy.network
    assert same.action_space == policy.action_space
    assert same.encoder.features == policy.encoder.features
    assert same.encoder.config == {"history": 4}
    assert [path.name for path in tmp_path.iterdir()] == ["mine.policy"]


def test_an_encoder_of_ones_own_is_passed_again(tmp_path):
    def encode(metrics, state, hyperparams):
        del hyperparams
        return jnp.stack([metrics.value]), state

    own = optax_meta.Encoder(lambda: (), encode, ("loss",), "own")
    save_policy(init_policy(jax.random.key(0), encoder=own), tmp_path / "own.policy")
    assert load_policy(tmp_path / "own.policy", encoder=own).encoder is own
    with pytest.raises(
        ValueError, match="its encoder 'own' is not built in: pass it as `encoder=`"
    ):
        load_policy(tmp_path / "own.policy")
    with pytest.raises(ValueError, match=r"it needs the features \['loss'\]"):
        load_policy(tmp_path / "own.policy", encoder=observations.classic())


def test_unreadable_and_unwritable_files(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the policy file .*: no such file"):
        load_policy(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match=r"cannot read the policy file .*: File is not a zip file"):
        load_policy(tmp_path / "text")
    with pytest.raises(ValueError, match="cannot write the policy to"):
        save_policy(init_policy(jax.random.key(0)), tmp_path / "none" / "mine.policy")


def test_another_network_is_not_saved(tmp_path):
    policy = init_policy(jax.random.key(0))._replace(network=None)
    with pytest.raises(ValueError, match="only a PolicyNetwork can be saved, got NoneType"):
        save_policy(policy, tmp_path / "mine.policy")
