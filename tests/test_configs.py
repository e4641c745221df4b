"""Controllers named by JSON values: there and back, and what is refused."""

import collections.abc
import functools
import inspect
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import optax_meta
from optax_meta import actions, from_config, observations, rewards, to_config
from optax_meta.configs import CONTROLLERS
from optax_meta.controllers.wrapping import WRAPPERS

CASES = {
    "constant": optax_meta.constant(hyperparams=["learning_rate", "b1"], guards_nonfinite=True),
    "plateau": optax_meta.plateau(factor=0.5, mode="max", hyperparam="b1"),
    "warmup": optax_meta.warmup(5, init_scale=0.5),
    "warmup_plateau": optax_meta.warmup_plateau(5, init_scale=0.5, patience=3),
    "join": optax_meta.join(
        [optax_meta.warmup(5), optax_meta.annealed(optax_meta.plateau(), total_steps=9)], [5]
    ),
    "hypergradient": optax_meta.hypergradient(bounds=(1e-6, 1.0)),
    "distance": optax_meta.distance(total_steps=np.int64(9), power=2.0),
    "reinforce": optax_meta.reinforce(
        action_space=actions.factored(
            actions.scale("learning_rate"), actions.add("b1", (0.0, 0.1), bounds=(0, 0.99))
        ),
        encoder=observations.scale_free(),
        reward=rewards.log_improvement(bound=2.0),
        hidden_sizes=(8,),
        seed=jnp.uint32(3),
        decision_interval=math.inf,
        total_steps=9,
    ),
    "learned": optax_meta.learned("any-lr-v2", total_steps=9),
    "annealed": optax_meta.annealed(
        optax_meta.learned("any-lr-v2", wrappers={}), total_steps=9, power=2.0
    ),
    "calibrated": optax_meta.calibrated(optax_meta.hypergradient(), span=4.0, steps=7),
    "trust_region": optax_meta.trust_region(
        optax_meta.annealed(optax_meta.plateau(), last_raise=math.inf, total_steps=9)
    ),
}


def through(config, write, read):
    return read(write(config))


TEXTS = {
    "json": functools.partial(
        through, write=functools.partial(json.dumps, allow_nan=False), read=json.loads
    ),
    "yaml": functools.partial(
        through, write=functools.partial(yaml.safe_dump, sort_keys=False), read=yaml.safe_load
    ),
}


class Frozen(collections.abc.Mapping):
    """A mapping and its lists, neither of them a dict or a list, as those of OmegaConf."""

    def __init__(self, values):
        self.values_ = values

    def __getitem__(self, key):
        return frozen(self.values_[key])

    def __iter__(self):
        return iter(self.values_)

    def __len__(self):
        return len(self.values_)


class FrozenList(collections.abc.Sequence):
    def __init__(self, values):
        self.values_ = values

    def __getitem__(self, i):
        return frozen(self.values_[i])

    def __len__(self):
        return len(self.values_)


def frozen(value):
    kinds = {dict: Frozen, list: FrozenList}
    return kinds.get(type(value), lambda x: x)(value)


def static(controller):
    """Return what of a controller can be compared: all but functions and the call."""
    fields = {**controller._asdict(), "origin": None}
    return {name: value for name, value in fields.items() if not callable(value)}


def returns_a_controller(name):
    value = getattr(optax_meta, name)
    return (
        inspect.isfunction(value)
        and inspect.signature(value).return_annotation is optax_meta.Controller
    )


def test_every_public_factory_has_a_config():
    factories = {name for name in dir(optax_meta) if returns_a_controller(name)}
    # The classic agent is `reinforce` with other arguments, and says so.
    assert factories - {"from_config", "classic_reinforce"} == {*CONTROLLERS, *WRAPPERS} == {*CASES}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name, text):
    controller = CASES[name]
    config = to_config(controller)
    read = TEXTS[text](config)
    assert read == config
    for mapping in (read, Frozen(read)):
        again = from_config(mapping)
        assert to_config(again) == config
        assert str(static(again)) == str(static(controller))
        start = {h: jnp.float32(0.1) for h in controller.hyperparams}
        same = [jax.eval_shape(c.init, start) for c in (again, controller)]
        assert same[0] == same[1]


def test_a_config_says_what_the_call_said():
    config = {
        "controller": "learned",
        "policy": "any-lr-v2",
        "total_steps": 1000,
        "wrappers": [{"name": "calibrated", "span": 2.0}, {"name": "trust_region"}],
    }
    wrappers = {"calibrated": {"span": 2.0}, "trust_region": {}}
    controller = optax_meta.learned("any-lr-v2", total_steps=1000, wrappers=wrappers)
    assert to_config(controller) == to_config(from_config(config)) == config
    own = optax_meta.load_policy("any-lr-v2").wrappers
    del config["wrappers"]
    listed = to_config(from_config(config))["wrappers"]
    assert [entry["name"] for entry in listed] == [*own]
    assert to_config(from_config({**config, "wrappers": []}))["wrappers"] == []


def test_the_decision_interval_of_any_controller_can_be_said():
    every_ten = optax_meta.plateau()._replace(decision_interval=10)
    config = {"controller": "plateau", "decision_interval": 10}
    assert to_config(every_ten) == config
    assert from_config(config).decision_interval == 10
    around = optax_meta.annealed(every_ten, total_steps=9)
    assert to_config(from_config(to_config(around))) == to_config(around)
    assert from_config({**config, "decision_interval": "inf"}).only_asked


PLATEAU = {"controller": "plateau"}
BAD = {
    "unknown controller None: choose from constant, plateau, warmup": {},
    "unknown controller 'annealed': choose from constant": {"controller": "annealed"},
    r"`plateau` has no argument `patiance`: choose from factor, patience.*wrappers": {
        **PLATEAU,
        "patiance": 3,
    },
    "`warmup` needs `steps`": {"controller": "warmup"},
    "unknown wrapper 'anneal': choose from calibrated, annealed, trust_region": {
        **PLATEAU,
        "wrappers": [{"name": "anneal"}],
    },
    "`annealed` has no argument `force`: choose from total_steps, power": {
        **PLATEAU,
        "wrappers": [{"name": "annealed", "force": 2.0}],
    },
    "`wrappers` must be a list": {**PLATEAU, "wrappers": {"annealed": {}}},
    "`wrappers` must be as in": {**PLATEAU, "wrappers": ["annealed"]},
    "`threshold` must be a number, got '1e-3': YAML reads": {**PLATEAU, "threshold": "1e-3"},
    "`patience` must be a number, got True": {**PLATEAU, "patience": True},
    "`factor` must be a number, got None": {**PLATEAU, "factor": None},
    r"`factor` must lie in \(0, 1\), got 2": {**PLATEAU, "factor": 2},
    '`mode` must be "min" or "max", got \'least\'': {**PLATEAU, "mode": "least"},
    "`mode` must be a text, got 1": {**PLATEAU, "mode": 1},
    "`guards_nonfinite` must be true or false": {"controller": "constant", "guards_nonfinite": 1},
    "`hyperparams` must be a list, got 'b1'": {"controller": "constant", "hyperparams": "b1"},
    "no such file; choose from adamw-lr-wd-v2, any-lr-v2": {
        "controller": "learned",
        "policy": "any-lr",
    },
    "unknown controller 'warmu'": {
        "controller": "join",
        "controllers": [{"controller": "warmu"}],
        "boundaries": [],
    },
    "unknown encoder 'classy': choose from classic, scale_free": {
        "controller": "reinforce",
        "encoder": {"name": "classy"},
    },
    "unknown reward 'fall': choose from improvement, log_imp": {
        "controller": "reinforce",
        "reward": {"name": "fall"},
    },
    "`action_space` needs `moves`": {"controller": "reinforce", "action_space": {}},
    "`action_space` has no argument `factord`: choose from moves, factored, spread": {
        "controller": "reinforce",
        "action_space": {"factord": True, "moves": []},
    },
    "`moves` has no argument `amuont`: choose from hyperparam, kind, amounts, bounds": {
        "controller": "reinforce",
        "action_space": {
            "moves": [
                {"hyperparam": "b1", "kind": "add", "amounts": [1], "bounds": [0, 1], "amuont": 3}
            ]
        },
    },
    "unknown move 'shift': choose from scale, add, log": {
        "controller": "reinforce",
        "action_space": {
            "moves": [{"hyperparam": "b1", "kind": "shift", "amounts": [1], "bounds": [0, 1]}]
        },
    },
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_unknown_is_refused_with_what_there_is(message):
    with pytest.raises(ValueError, match=message):
        from_config(BAD[message])


def test_no_mapping_is_no_config():
    with pytest.raises(ValueError, match="`config` must be as in"):
        from_config("plateau")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optax_meta.plateau()._replace(bounds={}), "`bounds` of this controller was"),
        (lambda: optax_meta.learned(optax_meta.load_policy("any-lr-v2")), "save it with"),
        (lambda: optax_meta.reinforce(reward=lambda before, after: 0.0), "`reward` must be a JSON"),
        (
            lambda: optax_meta.annealed(optax_meta.plateau()._replace(origin=None), total_steps=2),
            "written by hand",
        ),
    ],
)
def test_what_no_config_can_say_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        to_config(make())


def test_an_ordered_space_and_an_agent_that_never_stops_learning_have_a_config():
    space = actions.ordered(actions.level("learning_rate", (0.5, 1.0)), spread=0.2)
    made = optax_meta.reinforce(
        action_space=space,
        anchor=0.5,
        explore_until=math.inf,
        reward=rewards.trend(annealing_gain=0.2),
    )
    config = json.loads(json.dumps(to_config(made), allow_nan=False))
    assert config["action_space"]["spread"] == 0.2
    assert (config["anchor"], config["explore_until"]) == (0.5, "inf")
    assert config["reward"] == {"name": "trend", "annealing_gain": 0.2, "bound": 3.0}
    again = from_config(config)
    assert again.action_labels == ("learning_rate at ×0.5", "hold")
    assert to_config(again) == to_config(made)


def test_the_classic_agent_has_a_config():
    made = optax_meta.classic_reinforce(seed=3)
    config = json.loads(json.dumps(to_config(made), allow_nan=False))
    again = from_config(config)
    assert len(again.action_labels) == 9
    assert (again.default_start, to_config(again)) == ({}, to_config(made))


def test_a_traced_number_has_no_config():
    def f(seed):
        with pytest.raises(ValueError, match="`seed` must be a JSON value"):
            to_config(optax_meta.reinforce(seed=seed))
        return seed

    jax.jit(f)(jnp.uint32(0))
