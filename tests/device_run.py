"""The program of `test_devices.py`: the same training on however many devices this process has.

python device_run.py OUT [--modes MODE[:CONTROLLER,…] …] [--recorded CONTROLLER …]
                     [--save DIR] [--resume DIR]
"""

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_meta

HALF, BATCH, INPUTS, HIDDEN, OUTPUTS = 6, 64, 32, 128, 32  # 8352 parameters: sampled, not whole
SPECS = {"w1": P(None, "model"), "w2": P("model", None), "b": P()}
MESHES = {8: (2, 4), 4: (2, 2), 1: (1, 1)}


def policy():
    """Return one whose head is not zero, so that it answers to what it sees."""
    policy = optax_meta.init_policy(jax.random.key(1), hidden_sizes=(8,), start="uniform")
    bent = jax.tree.map(lambda x: x + jnp.cos(jnp.arange(x.size)).reshape(x.shape), policy.params)
    return policy._replace(params=bent)


CONTROLLERS = {
    "constant": lambda: optax_meta.constant(guards_nonfinite=True),
    "plateau": lambda: optax_meta.plateau(factor=0.5, patience=0),
    "hypergradient": optax_meta.hypergradient,
    "reinforce": lambda: optax_meta.reinforce(
        hidden_sizes=(8,), decision_interval=2, train_every=2
    ),
    "learned": lambda: optax_meta.learned(policy(), decision_interval=2),
}


def params():
    rng = np.random.default_rng(0)
    shapes = {"w1": (INPUTS, HIDDEN), "w2": (HIDDEN, OUTPUTS), "b": (OUTPUTS,)}
    return {k: np.float32(0.1 * rng.standard_normal(shape)) for k, shape in shapes.items()}


def batches():
    """Return inputs and targets of every step; the fourth holds one example that is not finite."""
    rng = np.random.default_rng(1)
    x = np.float32(rng.standard_normal((2 * HALF, BATCH, INPUTS)))
    y = np.float32(rng.standard_normal((2 * HALF, BATCH, OUTPUTS)))
    y[3, 5] = np.nan
    return x, y


def loss_fn(params, batch, sharding=None):
    x, y = batch
    hidden = jnp.tanh(x @ params["w1"])
    output = jnp.einsum("bh,ho->bo", hidden, params["w2"], out_sharding=sharding)
    return jnp.mean((output + params["b"] - y) ** 2)


def train(tx, value_and_grad, carry, batches):
    """Scan over the steps; return the carry, and losses, rates and skipped steps, one each."""

    def step(carry, batch):
        params, state = carry
        value, grads = value_and_grad(params, batch)
        updates, state = tx.update(grads, state, params, value=value)
        row = optax_meta.record(state)
        seen = {"loss": row.value, "rate": row.hyperparams["learning_rate"]}
        return (optax.apply_updates(params, updates), state), {**seen, "bad": row.num_nonfinite}

    return lax.scan(step, carry, batches)


def make(name, axis_name=None):
    factory = optax_meta.control_hyperparams(optax.adamw, CONTROLLERS[name](), axis_name=axis_name)
    return factory(learning_rate=1e-2)


def on_mesh(tree, mesh):
    """Replicate what lies on one device: a restored array stays where its target was."""
    everywhere = NamedSharding(mesh, P())
    return jax.tree.map(
        lambda x: x if isinstance(x.sharding, NamedSharding) else jax.device_put(x, everywhere),
        tree,
    )


def global_view(name, axis_type):
    """Return a jitted run of half the steps, its first carry, and the batches: all on a mesh."""
    mesh = jax.make_mesh(
        MESHES[jax.device_count()], ("data", "model"), axis_types=(axis_type, axis_type)
    )
    is_explicit = axis_type is AxisType.Explicit
    tx = make(name)
    shardings = {k: NamedSharding(mesh, spec) for k, spec in SPECS.items()}
    sharded = jax.device_put(params(), shardings)
    carry = on_mesh((sharded, tx.init(sharded)), mesh)
    output = NamedSharding(mesh, P("data", None)) if is_explicit else None
    value_and_grad = jax.value_and_grad(partial(loss_fn, sharding=output))
    data = jax.device_put(batches(), NamedSharding(mesh, P(None, "data")))
    return jax.jit(partial(train, tx, value_and_grad)), carry, data


def data_parallel(name, *, axis_name, check_vma):
    """Return the same under `shard_map`; the rate of every device is kept."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    tx = make(name, axis_name)

    def value_and_grad(params, batch):
        if check_vma:  # the gradient of an averaged loss is averaged already
            return jax.value_and_grad(lambda p: lax.pmean(loss_fn(p, batch), "data"))(params)
        value, grads = jax.value_and_grad(loss_fn)(params, batch)
        return value, lax.pmean(grads, "data")

    def run(carry, batches):
        carry, rows = train(tx, value_and_grad, carry, batches)
        return carry, {**rows, "rate": rows["rate"][:, None]}

    rows = {"loss": P(), "rate": P(None, "data"), "bad": P()}
    run = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(P(), P(None, "data")),
        out_specs=(P(), rows),
        check_vma=check_vma,
    )
    carry = on_mesh(jax.tree.map(jnp.asarray, (params(), tx.init(params()))), mesh)
    return jax.jit(run), carry, jax.device_put(batches(), NamedSharding(mesh, P(None, "data")))


def apart_recorded(name):
    """Return what devices record, by field float[HALF, devices], and what each saw of its own.

    Gradients are not averaged, and costs differ: only the controller reduces over the devices.
    """
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    tx = make(name, "data")

    def step(carry, batch):
        params, state = carry
        value, grads = jax.value_and_grad(loss_fn)(params, batch)
        cost = 1.0 + lax.axis_index("data")
        updates, state = tx.update(grads, state, params, value=value, cost=cost)
        row = optax_meta.record(state)
        own = {"value": value, "cost": cost, "grad_norm": optax.tree.norm(grads)}
        seen = {"alignment": row.alignment, **{field: getattr(row, field) for field in own}}
        rows = {f"own_{field}": x for field, x in own.items()} | seen
        return (optax.apply_updates(params, updates), state), rows

    def run(carry, batches):
        return jax.tree.map(lambda x: x[:, None], lax.scan(step, carry, batches)[1])

    specs = {"in_specs": (P(), P(None, "data")), "out_specs": P(None, "data")}
    run = jax.jit(jax.shard_map(run, mesh=mesh, **specs, check_vma=False))
    carry = jax.tree.map(jnp.asarray, (params(), tx.init(params())))
    return run(carry, jax.tree.map(lambda x: x[:3], batches()))  # the finite ones


MODES = {
    "jit": partial(global_view, axis_type=AxisType.Auto),
    "explicit": partial(global_view, axis_type=AxisType.Explicit),
    "shard_map": partial(data_parallel, axis_name="data", check_vma=False),
    "checked": partial(data_parallel, axis_name="data", check_vma=True),
    "apart": partial(data_parallel, axis_name=None, check_vma=False),
}


def is_replicated(state):
    """Return whether all devices hold all that decides; the sample of the parameters may be split.

    Under automatic sharding XLA may leave it as it comes from parameters that are split themselves.
    """
    kept = state.inner_state._replace(inner_state=())
    leaves = jax.tree.leaves(state._replace(inner_state=kept, last_samples=()))
    return all(leaf.sharding.is_fully_replicated for leaf in leaves)


def run(mode, name, save=None, resume=None):
    """Yield what half the steps twice give, saved in between; then the second half as resumed."""
    half, first, data = MODES[mode](name)
    halves = [jax.tree.map(lambda x, i=i: x[i * HALF : (i + 1) * HALF], data) for i in range(2)]
    carry, rows = half(first, halves[0])
    with ocp.StandardCheckpointer() as checkpointer:
        if save:
            checkpointer.save(save / name, carry)
        (weights, state), more = half(carry, halves[1])
        rows = jax.tree.map(lambda *x: np.concatenate(x), rows, more)
        yield f"{mode}/{name}", {**rows, **weights, "replicated": is_replicated(state)}
        if resume:
            target = jax.tree.map(ocp.utils.to_shape_dtype_struct, first)
            (weights, _), rows = half(checkpointer.restore(resume / name, target), halves[1])
            yield f"resumed/{name}", {**rows, **weights}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--modes", nargs="+", default=["jit"])
    parser.add_argument("--recorded", nargs="*", default=[], choices=CONTROLLERS)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--resume", type=Path)
    args = parser.parse_args()
    results = {}
    for name in args.recorded:
        recorded = apart_recorded(name)
        results |= {f"recorded/{name}/{key}": np.asarray(x) for key, x in recorded.items()}
    for choice in args.modes:
        mode, _, names = choice.partition(":")
        for name in names.split(",") if names else CONTROLLERS:
            save = args.save if mode == "jit" else None
            for label, arrays in run(mode, name, save, args.resume):
                results |= {f"{label}/{key}": np.asarray(value) for key, value in arrays.items()}
    np.savez(args.out, **results)


if __name__ == "__main__":
    main()
