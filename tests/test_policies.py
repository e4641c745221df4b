import functools
import io
import json
import math
import re
import zipfile

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_metrics

import optax_meta
from optax_meta import (
    actions,
    checkpoints,
    init_policy,
    learned,
    load_policy,
    observations,
    save_policy,
)


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


@pytest.mark.parametrize(
    "space",
    [
        actions.classic(),
        actions.factored(*actions.classic().moves),
        actions.ordered(actions.level("learning_rate"), spread=0.2),
    ],
)
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
    version = re.escape(optax_meta.__version__)
    message = rf"other features than `classic` .*; new: cost, .* it came with, {version}"
    with pytest.raises(ValueError, match=message):
        load_policy(tmp_path / "own.policy", encoder=observations.classic())


def test_unreadable_and_unwritable_files(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the policy file .*: no such file"):
        load_policy(tmp_path / "none")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(checkpoints._LARGEST_FILE + 1)
    with pytest.raises(ValueError, match="it must not be larger than 64 MiB"):
        load_policy(tmp_path / "large")
    with pytest.raises(ValueError, match=r"cannot read the policy file .*: it is none that"):
        load_policy(tmp_path)
    with pytest.raises(ValueError, match="`policy` must be a Policy, got PosixPath"):
        save_policy(tmp_path / "swapped", optax_meta.load_policy("any-lr-v2"))
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match=r"cannot read the policy file .*: it is none that"):
        load_policy(tmp_path / "text")
    with pytest.raises(ValueError, match="cannot write the policy to"):
        save_policy(init_policy(jax.random.key(0)), tmp_path / "none" / "mine.policy")


def test_another_network_is_not_saved(tmp_path):
    policy = init_policy(jax.random.key(0))._replace(network=None)
    with pytest.raises(ValueError, match="only a PolicyNetwork can be saved, got NoneType"):
        save_policy(policy, tmp_path / "mine.policy")


@functools.cache
def saved_bytes(folder):
    wrappers = {"calibrated": {"steps": 4}, "annealed": {"power": 2.0}, "trust_region": {}}
    save_policy(init_policy(jax.random.key(0), wrappers=wrappers), folder / "good.policy")
    return (folder / "good.policy").read_bytes()


def refuse(path, data):
    """Load `data`: it is refused with an error that names the file, or it is a policy that acts."""
    path.write_bytes(data)
    try:
        policy = load_policy(path)
    except ValueError as error:
        assert "cannot read the policy file" in str(error)  # noqa: PT017 - either may happen
        assert str(path) in str(error)  # noqa: PT017
        return True
    assert np.all(np.isfinite(probabilities(policy)))
    controller = learned(policy)
    hyperparams = {name: jnp.float32(0.1) for name in controller.hyperparams}
    assert controller.is_due(jnp.int32(0))
    moved, _ = controller.update(make_metrics(), controller.init(hyperparams), hyperparams)
    assert not any(np.isnan(value) for value in moved.values())
    return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@hypothesis.settings(max_examples=200)
@hypothesis.given(data=st.data())
def test_a_truncated_or_corrupted_file_is_refused(folder, data):
    good = saved_bytes(folder)
    cut = data.draw(st.integers(0, len(good) - 1))
    assert refuse(folder / "cut.policy", good[:cut])
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    refuse(folder / "damaged.policy", bytes(damaged))
    refuse(folder / "noise.policy", data.draw(st.binary(max_size=300)))


def card_of(good):
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        return json.loads(archive.read("card.json"))


def rewritten(good, card, params=None):
    """Return the archive with another card, or other parameters."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(out, "w") as new:
        new.writestr("card.json", json.dumps(card) if card is not None else old.read("card.json"))
        new.writestr("params.npy", old.read("params.npy") if params is None else params)
    return out.getvalue()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**7, 10**30, 10**400])
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@hypothesis.settings(max_examples=300)
@hypothesis.given(data=st.data())
def test_a_hostile_card_is_refused(folder, data):
    good = saved_bytes(folder)
    card = card_of(good)
    places = [(card, key) for key in card if key != "jax_version"]
    places += [(part, key) for part in (card["encoder"], *card["wrappers"]) for key in part]
    places += [(card["action_space"], "moves"), (card["action_space"]["moves"], 0)]
    places += [(card["action_space"]["moves"][0], key) for key in card["action_space"]["moves"][0]]
    inside, key = data.draw(st.sampled_from(places))
    inside[key] = data.draw(JSON)
    refuse(folder / "hostile.policy", rewritten(good, card))


@pytest.mark.parametrize("key", ["format", "encoder", "features", "action_space", "sha256"])
def test_a_card_without_a_key_is_refused(folder, key):
    good = saved_bytes(folder)
    card = card_of(good)
    del card[key]
    assert refuse(folder / "poor.policy", rewritten(good, card))


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("card", {"dense_steps": 10**30}),
        ("card", {"num_decisions": True}),
        ("card", {"wrappers": {"annealed": {}}}),
        ("wrapper", {"steps": 10**6 + 1}),
        ("wrapper", {"probe_rate": 10**400}),
        ("wrapper", {"max_growth": 2.0}),
        ("wrapper", {"name": "os.system"}),
        ("wrapper", {"name": "annealed"}),  # there already
        ("wrapper", {"steps": None}),
        ("wrapper", {"total_steps": 5}),
        ("move", {"amounts": [-2.0, 1.0, 2.0]}),
        ("move", {"amounts": [0.5, 1.0, 1e300]}),
        ("move", {"kind": "set"}),
        ("space", {"spread": 0.35}),  # one of its moves adds
        *(("steps", {"spread": x}) for x in ("x", True, [1], math.nan, -1.0, 10**400)),
    ],
)
def test_a_hostile_entry_is_refused(folder, part, changes):
    good = saved_bytes(folder)
    card = card_of(good)
    space = card["action_space"]
    if part == "steps":  # a space that might have a spread
        space["moves"] = space["moves"][:1]
    parts = {"card": card, "wrapper": card["wrappers"][0], "move": space["moves"][0]}
    parts |= {"space": space, "steps": space}
    parts[part].update(changes)
    assert refuse(folder / "hostile.policy", rewritten(good, card))


@pytest.mark.parametrize(("hidden_sizes", "size"), [((32, 32), 3e38), ((4,) * 12, 9e3)])
def test_parameters_that_overflow_are_refused(folder, hidden_sizes, size):
    policy = init_policy(jax.random.key(0), hidden_sizes=hidden_sizes)
    save_policy(policy, folder / "deep.policy")
    good = (folder / "deep.policy").read_bytes()
    card, params = card_of(good), io.BytesIO()
    huge = np.full(card["num_params"], size, np.float32)
    np.save(params, huge)
    card["sha256"] = checkpoints._digest(huge)
    assert refuse(folder / "huge.policy", rewritten(good, card, params.getvalue()))


def test_huge_parameters_are_not_saved(tmp_path):
    policy = init_policy(jax.random.key(0))
    huge = jax.tree.map(lambda x: x + 2e4, policy.params)
    with pytest.raises(ValueError, match="must be finite and within ±10000: nothing was written"):
        save_policy(policy._replace(params=huge), tmp_path / "huge.policy")


def test_code_and_bombs_are_refused(folder):
    good = saved_bytes(folder)
    pickled = io.BytesIO()
    np.save(pickled, np.array([print], object), allow_pickle=True)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    )
    for params in (pickled.getvalue(), header.getvalue(), b"cos\nsystem\n(S'true'\ntR."):
        assert refuse(folder / "code.policy", rewritten(good, None, params))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("card.json", "{}")
        archive.writestr("params.npy", bytes(80 * 2**20))
    assert refuse(folder / "bomb.policy", bomb.getvalue())
    assert refuse(
        folder / "nested.policy", rewritten(good, functools.reduce(lambda x, _: [x], range(900), 0))
    )


def test_a_policy_can_be_loaded_inside_a_trace():
    inside = jax.jit(lambda: optax_meta.load_policy("any-lr-v2").params)()
    jax.tree.map(np.testing.assert_array_equal, inside, optax_meta.load_policy("any-lr-v2").params)


@pytest.mark.parametrize(
    ("options", "notes", "message"),
    [
        ({"dense_steps": 10**7}, {}, "its `dense_steps` must be at most 1000000"),
        ({"wrappers": {"annealed": {"power": -1.0}}}, {}, "`power` must be a number ≥ 0, got -1.0"),
        ({}, {"seeds": {1, 2}}, "its card cannot hold {1, 2}"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, options, notes, message):
    policy = optax_meta.init_policy(jax.random.key(0), **options)
    with pytest.raises(ValueError, match=f"cannot be saved: {message}; nothing was written"):
        optax_meta.save_policy(policy, tmp_path / "mine.policy", notes=notes)
    assert not list(tmp_path.iterdir())


def test_scalars_of_numpy_and_jax_are_saved_as_numbers(tmp_path):
    wrappers = {"calibrated": {"steps": np.int64(4), "share": np.float32(0.5)}}
    policy = optax_meta.init_policy(jax.random.key(0), wrappers=wrappers)
    optax_meta.save_policy(policy, tmp_path / "mine.policy", notes={"score": jnp.float32(0.5)})
    assert optax_meta.load_policy(tmp_path / "mine.policy").wrappers == wrappers
    assert checkpoints.read_card(tmp_path / "mine.policy")["notes"]["score"] == 0.5


def test_the_scale_free_encoder_says_what_it_watches():
    space = optax_meta.actions.joint(optax_meta.actions.scale("b1", (0.5, 1.0)))
    policy = optax_meta.init_policy(
        jax.random.key(0), encoder=optax_meta.observations.scale_free(), action_space=space
    )
    tx = optax_meta.control_hyperparams(optax.adam, optax_meta.learned(policy))(1e-3)
    with pytest.raises(ValueError, match="watches `learning_rate`, which is not steered"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), value=1.0)


@pytest.mark.parametrize("name", ["dense_steps", "num_decisions"])
@pytest.mark.parametrize("count", [-4, 2.5])
def test_a_bad_count_of_decisions(name, count):
    message = f"`{name}` must be a whole number ≥ 0, got {count}"
    with pytest.raises(ValueError, match=message):
        optax_meta.init_policy(jax.random.key(0), **{name: count})


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, np.int64(-1), np.uint64(2**40)])
def test_a_bad_seed(seed):
    with pytest.raises(ValueError, match="`seed` must be an integer in"):
        optax_meta.learned(optax_meta.init_policy(jax.random.key(0)), seed=seed)
