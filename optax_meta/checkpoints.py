"""Policies on disk.

A policy is stored as arrays and a JSON card in one file, never code: it is a zip archive with
`card.json`, which says what the policy sees and may do, and `params.npy`, its parameters as one
flat float32 vector. Nothing in it is executed.
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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import optax_meta
from optax_meta import actions
from optax_meta.actions import ActionSpace
from optax_meta.base import Encoder
from optax_meta.controllers.constant import constant
from optax_meta.controllers.wrapping import OPTIONS, wrapped
from optax_meta.observations import ENCODERS
from optax_meta.policies import Policy, PolicyNetwork, Wrappers, check_policy, init_policy

FORMAT = 1
_LARGEST_FILE = 64 * 2**20
_LARGEST_PARAM = 1e4
_LARGEST_LOGIT = 1e30
_LARGEST_COUNT = 10**6
_SHIPPED = Path(__file__).parent / "pretrained"
_SUFFIX = ".policy"


def available_policies() -> tuple[str, ...]:
    """Return the names of the policies that come with the package, for `load_policy`.

    Example:
        >>> "any-lr-v2" in optax_meta.available_policies()
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
            "the parameters of a policy must be finite and within ±10000: nothing was written"
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
                why = str(error).removeprefix(f"cannot read the policy file `{whole}`: ")
                raise ValueError(
                    f"such a policy cannot be saved: {why}; nothing was written"
                ) from error
            whole.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write the policy to `{path}`: {error.strerror}") from error


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
        ValueError: cannot read the policy file `missing.policy`: no such file; choose from \
adamw-lr-wd-v2, any-lr-v2
    """
    path = _path(name_or_path)
    try:
        card, params = _read(path)
        with jax.ensure_compile_time_eval():  # inside a trace too
            return _restore(card, params, encoder)
    except FileNotFoundError:
        shipped = ", ".join(available_policies())
        raise ValueError(
            f"cannot read the policy file `{path}`: no such file; choose from {shipped}"
        ) from None
    except KeyError as error:
        raise ValueError(
            f"cannot read the policy file `{path}`: it must have {error.args[0]!r}"
        ) from error
    except Exception as error:  # a hostile file may provoke any: one error for all
        raise ValueError(f"cannot read the policy file `{path}`: {error}") from error


def as_policy(policy: Policy | str | os.PathLike[str]) -> Policy:
    """Return a policy that is given itself, by the name of a shipped one, or as a path.

    Args:
        policy: one of these.

    Raises:
        ValueError: it is something else, or cannot be read.

    Example:
        >>> optax_meta.checkpoints.as_policy("any-lr-v2").num_decisions
        100
    """
    if isinstance(policy, (str, os.PathLike)):
        return load_policy(policy)
    if not isinstance(policy, Policy):
        raise ValueError(
            f"`policy` must be a Policy, a name or a path, got {type(policy).__name__}"
        )
    return policy


def read_card(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the card of a policy file: what it sees, may do, and how it was trained.

    Args:
        name_or_path: as for `load_policy`.

    Returns:
        JSON values.

    Raises:
        ValueError: there is no such file, or it is damaged.

    Example:
        >>> optax_meta.checkpoints.read_card("any-lr-v2")["encoder"]["name"]
        'scale_free'
    """
    path = _path(name_or_path)
    try:
        return _read(path)[0]
    except Exception as error:
        raise ValueError(f"cannot read the policy file `{path}`: {error}") from error


def _path(name_or_path: str | os.PathLike[str]) -> Path:
    if str(name_or_path) in available_policies():
        return _SHIPPED / f"{name_or_path}{_SUFFIX}"
    return Path(name_or_path)


def _card(policy: Policy, network: PolicyNetwork, params: np.ndarray) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "encoder": {"name": policy.encoder.name, "config": dict(policy.encoder.config)},
        "features": list(policy.encoder.features),
        "action_space": actions.card_of(policy.action_space),
        # A list, since their order is part of what they do, and JSON objects have none.
        "wrappers": [
            {"name": name, **{k: None if v == math.inf else v for k, v in options.items()}}
            for name, options in policy.wrappers.items()
        ],
        "dense_steps": policy.dense_steps,
        "num_decisions": policy.num_decisions,
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
        raise ValueError(f"it must not be larger than {_LARGEST_FILE >> 20} MiB")
    if not zipfile.is_zipfile(path):
        raise ValueError("it is none that `save_policy` wrote, or damaged")
    with zipfile.ZipFile(path) as archive:
        if sum(item.file_size for item in archive.infolist()) > _LARGEST_FILE:
            raise ValueError(f"it must not unpack to more than {_LARGEST_FILE >> 20} MiB")
        card = json.loads(archive.read("card.json"))
        params = np.load(io.BytesIO(archive.read("params.npy")), allow_pickle=False)
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}; write it again with `save_policy`")
    is_vector = isinstance(params, np.ndarray) and params.dtype == np.float32 and params.ndim == 1
    if not is_vector or not np.all(np.abs(params) <= _LARGEST_PARAM):
        raise ValueError("its parameters must be a float32 vector within ±10000")
    if _digest(params) != card["sha256"]:
        raise ValueError("its parameters must match the checksum of its card: it is damaged")
    return card, params


def _restore(card: dict[str, Any], params: np.ndarray, encoder: Encoder | None) -> Policy:
    if encoder is None:
        name = card["encoder"]["name"]
        if name not in ENCODERS:
            raise ValueError(f"its encoder {name!r} is not built in: pass it as `encoder=`")
        config = card["encoder"]["config"]
        if not all(isinstance(number, int) and number <= 10_000 for number in config.values()):
            raise ValueError(f"its encoder's configuration must be small integers, got {config}")
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
        raise ValueError("its network must be smaller")
    blank = init_policy(
        jax.random.key(0),
        encoder=encoder,
        action_space=_action_space(card["action_space"]),
        wrappers=_wrappers(card["wrappers"]),
        dense_steps=_count(card, "dense_steps"),
        num_decisions=_count(card, "num_decisions"),
        hidden_sizes=sizes,
        start="uniform",
    )
    flat, unravel = ravel_pytree(blank.params)
    if flat.size != params.size:
        raise ValueError(f"its card asks for {flat.size} parameters, the file has {params.size}")
    policy = blank._replace(params=unravel(jnp.asarray(params)))
    # What the wrappers refuse is refused here, not where the policy is used.
    wrapped(constant(hyperparams=policy.action_space.hyperparams), policy.wrappers)
    # ReLU keeps order: absolute weights bound the logits of all observations, which lie in [-1, 1].
    weights, ones = jax.tree.map(jnp.abs, policy.params), jnp.ones(len(encoder.features))
    if not np.all(np.asarray(policy.network.apply(weights, ones)) < _LARGEST_LOGIT):
        raise ValueError("its network must not overflow: its parameters are too large")
    return policy


def _action_space(card: dict[str, Any]) -> ActionSpace:
    space = actions.space_of(card)
    if space.num_actions > 10_000:
        raise ValueError("its action space must have at most 10000 actions")
    return space


def _wrappers(card: list[dict[str, Any]]) -> Wrappers:
    wrappers = {}
    for entry in card:
        name = entry["name"]
        options = {k: v for k, v in entry.items() if k != "name"}
        if name in wrappers or name not in OPTIONS:
            raise ValueError(f"its wrappers must be {', '.join(OPTIONS)}, each once, got {name!r}")
        # JSON has no infinity: null stands for it, where it is what turns a number off.
        off = [k for k, v in options.items() if v is None and OPTIONS[name].get(k) == math.inf]
        options |= dict.fromkeys(off, math.inf)
        if large := [k for k, v in options.items() if isinstance(v, int) and v > _LARGEST_COUNT]:
            raise ValueError(f"the `{large[0]}` of `{name}` must be at most {_LARGEST_COUNT}")
        wrappers[name] = options
    return wrappers


def _count(card: dict[str, Any], name: str) -> int:
    if isinstance(card[name], int) and card[name] > _LARGEST_COUNT:
        raise ValueError(f"its `{name}` must be at most {_LARGEST_COUNT}")
    return card[name]


def digest(policy: Policy) -> str:
    """Return what tells the parameters of a policy from others, as its card holds it.

    Args:
        policy: any.

    Example:
        >>> optax_meta.checkpoints.digest(optax_meta.load_policy("any-lr-v2"))[:8] == (
        ...     optax_meta.checkpoints.read_card("any-lr-v2")["sha256"][:8]
        ... )
        True
    """
    return _digest(np.asarray(ravel_pytree(policy.params)[0], np.float32))


def _digest(params: np.ndarray) -> str:
    return hashlib.sha256(params.astype("<f4").tobytes()).hexdigest()
