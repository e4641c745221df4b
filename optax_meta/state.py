"""The state of a controlled optimizer: what it is made of, how to read and restore it."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optax_meta.base import Hyperparams, State, Tree
from optax_meta.metrics import LARGEST


class ByHand(NamedTuple):
    """What holds hyperparameters whatever the controller decides, float32[H] each.

    Of the H names in alphabetical order.

    Attributes:
        is_frozen: 1 where the value does not move.
        low: smallest value allowed.
        high: largest value allowed.
    """

    is_frozen: jax.Array
    low: jax.Array
    high: jax.Array

    @classmethod
    def nothing(cls, count: int) -> "ByHand":
        """Return what holds nothing.

        Args:
            count: H.
        """
        largest = jnp.full(count, LARGEST, jnp.float32)
        return cls(jnp.zeros(count, jnp.float32), -largest, largest)

    def pack(self) -> jax.Array:
        """Return float32[3, H]."""
        return jnp.stack(self)

    def bounds(self, hyperparams: Hyperparams) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Return smallest and largest values by name, float32[] each.

        Args:
            hyperparams: of which the names are read.
        """
        return {name: (self.low[i], self.high[i]) for i, name in enumerate(sorted(hyperparams))}

    def hold(self, old: Hyperparams, new: Hyperparams) -> Hyperparams:
        """Return new values, but the old ones where these are frozen.

        Args:
            old: by name.
            new: by name.
        """
        return {
            name: jnp.where(self.is_frozen[i] > 0.0, old[name], new[name])
            for i, name in enumerate(sorted(old))
        }


class ControlState(NamedTuple):
    """State of a controlled optimizer.

    Attributes:
        statistics: `tracking.Statistics`, packed, float32[53].
        controller_state: what the controller carries.
        last_samples: strided samples of the parameters one step ago, two steps ago and at the
            start, and of all gradients so far, weighted, float32[4, k], for a controller that asks
            for alignment; else an empty tuple.
        by_hand: `ByHand`, packed, float32[3, H].
        inner_state: an `optax.InjectStatefulHyperparamsState`, which holds the hyperparameters,
            the step and the state of the inner optimizer.
        snapshot: a `snapshots.Snapshot` where spikes roll back; else an empty tuple.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.plateau())(0.5)
        >>> state = tx.init(jnp.zeros(2))
        >>> print(state.step, state.hyperparams["learning_rate"])
        0 0.5
    """

    statistics: jax.Array
    controller_state: State
    last_samples: Tree
    by_hand: jax.Array
    inner_state: Any
    snapshot: Any = ()

    @property
    def hyperparams(self) -> Hyperparams:
        """Current values of the steered hyperparameters, float[] each."""
        return self.inner_state.hyperparams

    @property
    def step(self) -> jax.Array:
        """Number of updates so far, int32[]."""
        return self.inner_state.count

    def with_hyperparams(self, hyperparams: Hyperparams) -> "ControlState":
        """Return the state with other values for the next update.

        Args:
            hyperparams: by name, all of them.
        """
        return self._replace(inner_state=self.inner_state._replace(hyperparams=hyperparams))

    def with_arrays(self) -> "ControlState":
        """Return the state with arrays for hyperparameters that were set as Python numbers.

        `optax.tree.set` puts in what it is given. Such a number takes the dtype that `init` would
        have chosen: float64 where the optimizer keeps any, else float32.
        """
        if all(isinstance(value, jax.Array) for value in self.hyperparams.values()):
            return self
        dtype = widest([*self.hyperparams.values(), self.inner_state.inner_state])
        return self.with_hyperparams(
            {name: jnp.asarray(value, dtype) for name, value in self.hyperparams.items()}
        )


def widest(tree: Tree) -> Any:
    """Return the dtype of hyperparameters: float64 where any leaf has 64 bits, else float32.

    Args:
        tree: parameters, or what an optimizer keeps of them.

    >>> widest({"w": jnp.ones(3), "key": jax.random.key(0)}).__name__
    'float32'
    """
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    real = [jax.dtypes.canonicalize_dtype(d) for d in dtypes if jnp.issubdtype(d, jnp.inexact)]
    return jnp.float64 if any(jnp.finfo(d).bits == 64 for d in real) else jnp.float32


def hyperparams(opt_state: Tree) -> Hyperparams:
    """Return the current hyperparameters from any state that holds a controlled optimizer.

    Args:
        opt_state: the state itself, or any pytree around it: `optax.chain`, `optax.partition`,
            `optax.MultiSteps`, a Flax `TrainState`, an `nnx.Optimizer`.

    Returns:
        float32[] by name; they stay when the state is donated. Where the state holds several
        controlled optimizers, the names are prefixed by what tells these apart, for instance the
        label of `optax.partition`.

    Raises:
        ValueError: the state holds none.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.plateau())(0.5)
        >>> state = optax.chain(optax.clip(1.0), tx).init(jnp.zeros(2))
        >>> print(optax_meta.hyperparams(state)["learning_rate"])
        0.5
    """
    return {
        full_name(label, name): detach(value)
        for label, state in find_control_states(opt_state).items()
        for name, value in state.hyperparams.items()
    }


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
    found = {_path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(saved)}
    unused, missing, leaves = set(found), [], []
    flat, structure = jax.tree.flatten_with_path(target)
    for path, leaf in flat:
        name, here = _path_name(path), _type(leaf)
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


def find_control_states(opt_state: Any) -> dict[str, ControlState]:
    """Return every `ControlState` in a pytree, by the shortest label that tells them apart.

    Args:
        opt_state: any pytree, or an object with an `opt_state` such as `nnx.Optimizer`.

    Returns:
        States by label; the label of a single one is "".

    Raises:
        ValueError: there is none.

    Example:
        >>> tx = optax_meta.control_hyperparams(optax.sgd, optax_meta.constant())(0.1)
        >>> list(optax_meta.state.find_control_states(tx.init(jnp.zeros(2))))
        ['']
    """
    opt_state = getattr(opt_state, "opt_state", opt_state)
    flat, _ = jax.tree.flatten_with_path(opt_state, is_leaf=_is_control_state)
    found = [(path, state) for path, state in flat if _is_control_state(state)]
    if not found:
        raise ValueError(
            "no controlled optimizer in this state: pass the state of a transformation made with "
            "`optax_meta.control_hyperparams`, or one that contains it; under NNX the optimizer, "
            "not its `nnx.state`"
        )
    names = [[jax.tree_util.keystr((key,), simple=True) for key in path] for path, _ in found]
    shared = [set(level) for level in itertools.zip_longest(*names)]
    labels = [
        "/".join(k for k, keys in zip(n, shared, strict=False) if len(keys) > 1) for n in names
    ]
    return dict(zip(labels, (read_variables(state) for _, state in found), strict=True))


def replace_control_states(
    opt_state: Any, change: Callable[[str, ControlState], ControlState]
) -> Any:
    """Return a pytree with each `ControlState` in it changed.

    Args:
        opt_state: any pytree with at least one; an `nnx.Optimizer` is a pytree, too.
        change: (label, state) → state, labels as `find_control_states` has them.
    """
    leaves, structure = jax.tree.flatten(opt_state, is_leaf=_is_control_state)
    positions = [i for i, leaf in enumerate(leaves) if _is_control_state(leaf)]
    found = find_control_states(opt_state)
    for i, (label, state) in zip(positions, found.items(), strict=True):
        new = change(label, state)
        leaves[i] = jax.tree.map(_write_variable, leaves[i], new, is_leaf=_is_variable)
    return structure.unflatten(leaves)


def full_name(label: str, name: str) -> str:
    """Return the name of a hyperparameter among those of several controlled optimizers.

    Args:
        label: as `find_control_states` has it.
        name: of the hyperparameter.

    >>> full_name("", "learning_rate"), full_name("a", "learning_rate")
    ('learning_rate', 'a/learning_rate')
    """
    return f"{label}/{name}" if label else name


def detach(tree: Any) -> Any:
    """Return copies of arrays, which outlive a state that is donated to the next step.

    Args:
        tree: any pytree of arrays; traced ones are returned as they are.

    >>> x = jnp.ones(2)
    >>> detach(x).unsafe_buffer_pointer() == x.unsafe_buffer_pointer()
    False
    """
    return jax.tree.map(lambda x: x if isinstance(x, Tracer) else jnp.array(x, copy=True), tree)


def _is_control_state(x: object) -> bool:
    return isinstance(x, ControlState)


def _is_variable(x: object) -> bool:
    from flax import nnx

    return isinstance(x, nnx.Variable)


def read_variables(state: Any) -> Any:
    """Unwrap the variables that `nnx.Optimizer` makes of every leaf.

    Args:
        state: any part of its `opt_state`; one without variables is returned as it is.
    """
    return jax.tree.map(lambda x: x[...] if _is_variable(x) else x, state, is_leaf=_is_variable)


def _write_variable(x: Any, value: Any) -> Any:
    return x.replace(value) if _is_variable(x) else value


def _path_name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _type(leaf: Any) -> str:
    return f"{np.shape(leaf)} {jnp.result_type(leaf)}"
