"""Policies on disk, and states from an older version.

A policy is stored as arrays and a JSON card in one file, never code: it is a zip archive with
`card.json`, which says what the policy sees and may do, and `params.npy`, its parameters as one
flat float32 vector. Nothing in it is executed. `graft` restores a state by the paths of its leaves.
"""

import hashlib
import io
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import optax_meta
from optax_meta import actions
from optax_meta.actions import ActionSpace
from optax_meta.base import Encoder
from optax_meta.guides import Guide
from optax_meta.observations import ENCODERS
from optax_meta.policies import Policy, PolicyNetwork, check_policy, init_policy

FORMAT = 1
_LARGEST_FILE = 64 * 2**20
_LARGEST_PARAM = 1e4
_LARGEST_LOGIT = 1e30
_LARGEST_COUNT = 10**6
_MOVES = {"scale": actions.scale, "add": actions.add, "log": actions.log_step}
_SHIPPED = Path(__file__).parent / "pretrained"
_SUFFIX = ".policy"


def available_policies() -> tuple[str, ...]:
    """Return the names of the policies that come with the package, for `load_policy`.

    Example:
        >>> "any-lr-v1" in optax_meta.available_policies()
        True
    """
    return tuple(sorted(path.stem for path in _SHIPPED.glob(f"*{_SUFFIX}")))


def save_policy(
    policy: Policy, path: str | os.PathLike[str], *, notes: Mapping[str, Any] | None = None
) -> None:
    """Write a policy to one file, whole or not at all.

    Args:
        policy: its network must be a `PolicyNetwork`.
        path: where to; an existing file is replaced.
        notes: kept in the card for people to read: how it was trained, results, known failures;
            JSON values.

    Raises:
        ValueError: `policy` is none, its network is of another class, a parameter is not finite or
            beyond ±10000, `load_policy` would refuse it, or the path cannot be written.

    Example:
        >>> policy = optax_meta.init_policy(jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     optax_meta.save_policy(policy, f"{folder}/mine.policy")
        ...     same = optax_meta.load_policy(f"{folder}/mine.policy")
        >>> same.action_space == policy.action_space
        True
    """
    check_policy(policy)
    if not isinstance(policy.network, PolicyNetwork):
        raise ValueError(
            f"only a PolicyNetwork can be saved, got {type(policy.network).__name__}: save the "
            "parameters of another network with Orbax"
        )
    params = np.asarray(ravel_pytree(policy.params)[0], np.float32)
    if not np.all(np.abs(params) <= _LARGEST_PARAM):
        raise ValueError(
            "the policy has parameters that are not finite or beyond ±10000: nothing was written; "
            "save an earlier state of it"
        )
    path = Path(path)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".policy-") as folder:
            whole = Path(folder) / "policy"
            card = {**_card(policy, policy.network, params), "notes": dict(notes or {})}
            try:
                _write(whole, card, params)
                load_policy(whole, encoder=policy.encoder)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"such a policy cannot be saved: {error.__cause__ or error}; nothing was "
                    "written: change the policy first"
                ) from error
            whole.replace(path)
    except OSError as error:
        raise ValueError(
            f"cannot write the policy to `{path}`: {error.strerror}; choose another path"
        ) from error


def load_policy(name_or_path: str | os.PathLike[str], *, encoder: Encoder | None = None) -> Policy:
    """Read a policy that comes with the package, or one that `save_policy` wrote.

    Args:
        name_or_path: one of `available_policies()`, or the path of a file.
        encoder: needed where the policy was trained with an encoder of one's own, which a file
            cannot hold; its features must be those of the card.

    Returns:
        A `Policy`, equal to the one saved.

    Raises:
        ValueError: there is no such file, it is no policy file, is damaged or too large, or its
            card does not fit this version's features.

    Example:
        >>> optax_meta.load_policy("missing.policy")
        Traceback (most recent call last):
        ValueError: cannot read the policy file `missing.policy`: no such file; pass a path, or \
one of adamw-lr-wd-v1, any-lr-v1
    """
    path = _path(name_or_path)
    try:
        card, params = _read(path)
        with jax.ensure_compile_time_eval():  # inside a trace too
            return _restore(card, params, encoder)
    except FileNotFoundError:
        shipped = ", ".join(available_policies())
        raise ValueError(
            f"cannot read the policy file `{path}`: no such file; pass a path, or one of {shipped}"
        ) from None
    except KeyError as error:
        raise ValueError(
            f"cannot read the policy file `{path}`: it has no {error.args[0]!r}; pass another file"
        ) from error
    except Exception as error:  # a hostile file may provoke any: one error for all
        raise ValueError(
            f"cannot read the policy file `{path}`: {error} (or pass another file)"
        ) from error


def read_card(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the card of a policy file: what it sees, may do, and how it was trained.

    Args:
        name_or_path: as for `load_policy`.

    Returns:
        JSON values.

    Raises:
        ValueError: there is no such file, or it is damaged.

    Example:
        >>> optax_meta.checkpoints.read_card("any-lr-v1")["encoder"]["name"]
        'scale_free'
    """
    path = _path(name_or_path)
    try:
        return _read(path)[0]
    except Exception as error:
        raise ValueError(
            f"cannot read the policy file `{path}`: {error} (or pass another file)"
        ) from error


def _path(name_or_path: str | os.PathLike[str]) -> Path:
    if str(name_or_path) in available_policies():
        return _SHIPPED / f"{name_or_path}{_SUFFIX}"
    return Path(name_or_path)


class Graft(NamedTuple):
    """What `graft` made.

    Attributes:
        state: the target's structure, with the saved leaves that fit.
        missing: paths of the leaves kept from the target, and why where shape or dtype differ.
        unused: paths of the saved leaves that found no place.
    """

    state: Any
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def graft(target: Any, saved: Any) -> Graft:
    """Put the leaves of a saved state into a fresh one, matched by path.

    For a state that was saved before a field existed, or without its structure: Orbax restores
    NamedTuples as dicts where no target is given.

    Args:
        target: a state from `init`, whose leaves stay where the saved state has none that fits.
        saved: any pytree of arrays with the same names: nested dicts, lists and NamedTuples.

    Returns:
        A `Graft`: the state, and the paths that were missing or left over. Leaves are placed like
        the target's, on the same devices.

    Raises:
        ValueError: no leaf fits at all.

    Example:
        >>> fresh = {"a": jnp.zeros(2), "b": jnp.ones(1)}
        >>> grafted = optax_meta.graft(fresh, {"a": jnp.ones(2)})
        >>> grafted.missing
        ('b',)
    """
    found = {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(saved)}
    unused, missing, leaves = set(found), [], []
    flat, structure = jax.tree.flatten_with_path(target)
    for path, leaf in flat:
        name, here = _name(path), _type(leaf)
        there = _type(found[name]) if name in found else None
        if there == here:
            unused.discard(name)
            leaves.append(jax.device_put(found[name], getattr(leaf, "sharding", None)))
        else:
            missing.append(f"{name}: {there}, not {here}" if there else name)
            leaves.append(leaf)
    if flat and len(missing) == len(flat):
        raise ValueError(
            f"nothing in the saved state fits: it has {sorted(found)[:5]}, the target "
            f"{missing[:5]}; pass the part of the checkpoint that holds this state"
        )
    return Graft(structure.unflatten(leaves), tuple(missing), tuple(sorted(unused)))


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _type(leaf: Any) -> str:
    return f"{np.shape(leaf)} {jnp.result_type(leaf)}"


def _card(policy: Policy, network: PolicyNetwork, params: np.ndarray) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "encoder": {"name": policy.encoder.name, "config": dict(policy.encoder.config)},
        "features": list(policy.encoder.features),
        "action_space": {
            "factored": policy.action_space.factored,
            "moves": [move._asdict() for move in policy.action_space.moves],
        },
        "guide": {
            name: None if value == math.inf else value
            for name, value in policy.guide._asdict().items()
        },
        "hidden_sizes": list(network.hidden_sizes),
        "num_params": params.size,
        "sha256": _digest(params),
        "jax_version": jax.__version__,
        "optax_meta_version": optax_meta.__version__,
    }


def _write(path: Path, card: dict[str, Any], params: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, params, allow_pickle=False)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("card.json", json.dumps(card, indent=1, default=_plain))
        archive.writestr("params.npy", buffer.getvalue())


def _plain(x: Any) -> Any:
    """Return the Python number of a NumPy or JAX scalar."""
    if np.shape(x) != () or not hasattr(x, "item"):
        raise TypeError(f"its card cannot hold {x!r}")
    return x.item()


def _read(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"it is larger than {_LARGEST_FILE >> 20} MiB")
    if not zipfile.is_zipfile(path):
        raise ValueError("it is none that `save_policy` wrote, or damaged")
    with zipfile.ZipFile(path) as archive:
        if sum(item.file_size for item in archive.infolist()) > _LARGEST_FILE:
            raise ValueError(f"it would unpack to more than {_LARGEST_FILE >> 20} MiB")
        card = json.loads(archive.read("card.json"))
        params = np.load(io.BytesIO(archive.read("params.npy")), allow_pickle=False)
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    is_vector = isinstance(params, np.ndarray) and params.dtype == np.float32 and params.ndim == 1
    if not is_vector or not np.all(np.abs(params) <= _LARGEST_PARAM):
        raise ValueError("its parameters are no float32 vector within ±10000")
    if _digest(params) != card["sha256"]:
        raise ValueError("its parameters do not match the checksum of its card")
    return card, params


def _restore(card: dict[str, Any], params: np.ndarray, encoder: Encoder | None) -> Policy:
    if encoder is None:
        name = card["encoder"]["name"]
        if name not in ENCODERS:
            raise ValueError(f"its encoder {name!r} is not built in: pass it as `encoder=`")
        config = card["encoder"]["config"]
        if not all(isinstance(number, int) and number <= 10_000 for number in config.values()):
            raise ValueError(f"its encoder's configuration {config} is not sensible")
        encoder = ENCODERS[name](**config)
    if list(encoder.features) != card["features"]:
        needed, got = list(map(str, card["features"])), list(encoder.features)
        gone = ", ".join(sorted(set(needed) - set(got))) or "none"
        new = ", ".join(sorted(set(got) - set(needed))) or "none"
        version = card.get("optax_meta_version", "unknown")
        raise ValueError(
            f"it has learned with other features than `{encoder.name}` has here (gone: {gone}; "
            f"new: {new}; else their order): train it anew, or install the version that it came "
            f"with, {version}"
        )
    sizes = card["hidden_sizes"]
    if len(sizes) > 100 or sum(sizes) > _LARGEST_FILE**0.5:
        raise ValueError("its network is too large")
    blank = init_policy(
        jax.random.key(0),
        encoder=encoder,
        action_space=_action_space(card["action_space"]),
        guide=_guide(card["guide"]),
        hidden_sizes=sizes,
        start="uniform",
    )
    flat, unravel = ravel_pytree(blank.params)
    if flat.size != params.size:
        raise ValueError(f"its card asks for {flat.size} parameters, the file has {params.size}")
    policy = blank._replace(params=unravel(jnp.asarray(params)))
    # ReLU keeps order: absolute weights bound the logits of all observations, which lie in [-1, 1].
    weights, ones = jax.tree.map(jnp.abs, policy.params), jnp.ones(len(encoder.features))
    if not np.all(np.asarray(policy.network.apply(weights, ones)) < _LARGEST_LOGIT):
        raise ValueError("its network may overflow")
    return policy


def _action_space(card: dict[str, Any]) -> ActionSpace:
    moves = [
        _MOVES[move["kind"]](move["hyperparam"], move["amounts"], bounds=move["bounds"])
        for move in card["moves"]
    ]
    space = (actions.factored if card["factored"] else actions.joint)(*moves)
    if space.num_actions > 10_000:
        raise ValueError("its action space is too large")
    return space


def _guide(card: dict[str, Any]) -> Guide:
    values: dict[str, Any] = {
        name: math.inf if value is None else value for name, value in card.items()
    }
    guide = Guide(**values).check()
    if large := [k for k, v in values.items() if isinstance(v, int) and v > _LARGEST_COUNT]:
        raise ValueError(f"the guide's `{large[0]}` must be at most {_LARGEST_COUNT}")
    return guide


def _digest(params: np.ndarray) -> str:
    return hashlib.sha256(params.astype("<f4").tobytes()).hexdigest()
