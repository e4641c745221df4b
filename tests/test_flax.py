"""Flax: the shortest correct training steps, which are the scripts in `examples/`."""

import contextlib
import functools
import importlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training import train_state as flax_train_state

import optax_meta
from optax_meta.train_state import TrainState

STEPS = {"linen_train_state": 40, "nnx_optimizer": 25, "mixed_precision": 50}
STEPS["validation_plateau"] = 240


@functools.cache
def run(name):
    """Run an example once; return what it returned, and the lines that it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        result = importlib.import_module(name).main(steps=STEPS[name])
    return result, out.getvalue().splitlines()


def make_tx(controller=None, rate=0.1):
    controller = optax_meta.plateau(factor=0.5, patience=1) if controller is None else controller
    return optax_meta.control_hyperparams(optax.adamw, controller)(learning_rate=rate)


def make_state(cls, tx, **fields):
    return cls.create(apply_fn=None, params={"w": jnp.ones(3)}, tx=tx, **fields)


def make_optimizer(tx, cls=nnx.Optimizer):
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    return model, cls(model, tx, wrt=nnx.Param)


def loss_fn(params):
    return jnp.sum(params["w"] ** 2)


@pytest.mark.parametrize("name", STEPS)
def test_an_example_prints_loss_and_learning_rate(name):
    _, lines = run(name)
    assert len(lines) >= 5
    assert all("loss " in line and "learning rate " in line for line in lines)
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in lines]
    assert losses[-1] < losses[0]


def test_both_train_states_give_the_same_numbers():
    import linen_train_state

    stock, _ = run("linen_train_state")
    ours = linen_train_state.main(steps=STEPS["linen_train_state"], ours=True)
    assert isinstance(ours, TrainState)
    first, second = ((s.step, s.params, s.opt_state) for s in (stock, ours))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_the_stock_apply_gradients_fails_with_the_way_out():
    state = make_state(flax_train_state.TrainState, make_tx())
    with pytest.raises(ValueError, match=r"tx\.update\(grads, state, params, value=loss\)"):
        state.apply_gradients(grads=state.params)


def multi_steps(tx):
    return optax.MultiSteps(tx, 1)


@pytest.mark.parametrize(
    "wrap", [lambda tx: tx, multi_steps, lambda tx: multi_steps(tx).gradient_transformation()]
)
def test_train_state_passes_value_and_cost_on_and_replaces_fields(wrap):
    class Mine(TrainState):
        batch_stats: dict

    tx = wrap(make_tx())
    state = make_state(Mine, tx, batch_stats={"mean": jnp.zeros(())})
    new = state.apply_gradients(
        grads=state.params, value=2.0, cost=3.0, batch_stats={"mean": jnp.ones(())}
    )
    row = optax_meta.record(new)
    assert (row.value, row.cost, new.step, new.batch_stats["mean"]) == (2.0, 3.0, 1, 1.0)
    assert isinstance(new, Mine)
    assert new.tx is tx
    assert np.all(new.params["w"] != state.params["w"])


def test_train_state_traces_once():
    traces = 0

    @jax.jit
    def step(state):
        nonlocal traces
        traces += 1
        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads, value=loss)

    state = make_state(TrainState, make_tx())
    state = state.replace(step=jnp.int32(0))  # Flax starts it as a Python number
    for _ in range(4):
        state = step(state)
    assert (traces, state.step) == (1, 4)


def test_train_state_spares_an_optimizer_that_takes_no_loss():
    state = make_state(TrainState, optax.scale(-0.1))
    new = state.apply_gradients(grads=state.params, value=1.0)
    np.testing.assert_allclose(new.params["w"], 0.9)


def test_train_state_keeps_parameters_that_are_overwritten_by_their_gradients():
    fp8 = "_overwrite_with_gradient"
    params = {"params": {"w": jnp.ones(3)}, fp8: {"scale": jnp.ones(())}}
    state = TrainState.create(apply_fn=None, params=params, tx=make_tx())
    grads = {**params, fp8: {"scale": jnp.float32(7.0)}}
    assert state.apply_gradients(grads=grads, value=1.0).params[fp8]["scale"] == 7.0


STATES = {
    "stock TrainState": lambda tx: make_state(flax_train_state.TrainState, tx),
    "our TrainState": lambda tx: make_state(TrainState, tx),
    "nnx.Optimizer": lambda tx: make_optimizer(tx)[1],
    "its opt_state": lambda tx: make_optimizer(tx)[1].opt_state,
    "its pure opt_state": lambda tx: nnx.as_pure(make_optimizer(tx)[1].opt_state),
    "split and merged": lambda tx: nnx.merge(*nnx.split(make_optimizer(tx)[1])),
    "nnx.ModelAndOptimizer": lambda tx: make_optimizer(tx, nnx.ModelAndOptimizer)[1],
}


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.MultiSteps(optax.chain(tx), 2)])
@pytest.mark.parametrize("kind", STATES)
def test_hyperparams_and_record_read_any_state(kind, wrap):
    state = STATES[kind](wrap(make_tx()))
    (rate,) = optax_meta.hyperparams(state).values()
    row = optax_meta.record(state)
    assert isinstance(rate, jax.Array)
    np.testing.assert_array_equal([rate, row.hyperparams["learning_rate"]], jnp.float32(0.1))
    assert row.step == 0
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(row))


@pytest.mark.filterwarnings("ignore")  # Orbax's own
def test_a_restored_nnx_state_goes_on_with_the_same_bits(tmp_path):
    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: jnp.sum(m(jnp.ones((1, 2))) ** 2))(model)
        optimizer.update(model, grads, value=loss)
        return optax_meta.record(optimizer)

    tx = make_tx(optax_meta.reinforce(decision_interval=1, train_every=2))
    whole, resumed = make_optimizer(tx), make_optimizer(tx)
    for _ in range(3):
        step(*whole)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", nnx.state(whole))
        checkpointer.wait_until_finished()
        nnx.update(resumed, checkpointer.restore(tmp_path / "run", nnx.state(resumed)))
    rows = step(*whole), step(*resumed)
    assert rows[0].step == 4
    jax.tree.map(np.testing.assert_array_equal, *rows)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(whole), nnx.state(resumed))


def test_an_nnx_state_is_not_read():
    with pytest.raises(ValueError, match=r"under NNX the optimizer, not its `nnx\.state`"):
        optax_meta.hyperparams(nnx.state(make_optimizer(make_tx())))


def test_nnx_scan_gives_the_numbers_of_single_steps():
    (optimizer, rows), _ = run("nnx_optimizer")
    assert rows.value.shape == (STEPS["nnx_optimizer"],)
    jax.tree.map(
        lambda one, many: np.testing.assert_allclose(one, many[-1], rtol=1e-4, atol=1e-6),
        optax_meta.record(optimizer),
        rows,
    )


def test_a_policy_learns_under_nnx_jit():
    controller = optax_meta.reinforce(
        decision_interval=1, hidden_sizes=(8,), train_every=2, explore_from=0.0
    )
    model, optimizer = make_optimizer(make_tx(controller))

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: jnp.sum(m(jnp.ones((1, 2))) ** 2))(model)
        optimizer.update(model, grads, value=loss)
        return optax_meta.record(optimizer)

    def policy_params():
        return jnp.array(optax.tree.get(nnx.as_pure(optimizer.opt_state), "policy_params"))

    before = policy_params()
    rows = [step(model, optimizer) for _ in range(8)]
    assert len({float(row.hyperparams["learning_rate"]) for row in rows}) > 1
    assert rows[-1].decision.action >= 0
    assert not np.array_equal(before, policy_params())


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32():
    import mixed_precision

    (params, opt_state, rows), _ = run("mixed_precision")
    leaves = jax.tree.leaves((params, opt_state, rows.value))
    floats = {leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert floats == {jnp.dtype(jnp.float32)}
    batch = mixed_precision.sample(jax.random.key(0))
    lines = str(jax.make_jaxpr(mixed_precision.loss_fn)(params, *batch)).splitlines()
    products = [line for line in lines if "dot_general" in line]
    assert products
    assert all(":bf16" in line for line in products)


def test_a_validation_loss_decides_as_if_it_were_fed_step_by_step(feed):
    (losses, rates), _ = run("validation_plateau")
    rows, _, _ = feed(make_tx(rate=3e-2), losses)
    np.testing.assert_allclose(rates, rows.hyperparams["learning_rate"], rtol=1e-6)
    assert len(set(rates)) > 1
