"""Task families to meta-train on: small, cheap, and as unlike each other as they can be.

None shares its data, its architecture and its loss with a task that controllers are compared on,
though one of the three may be alike: cross-entropy is cross-entropy. What is
drawn for each task: its data, label noise, conditioning, initial scale, the scale of the loss and
the units in which the parameters are stored.

A run is trained on noisy targets and, where these are known, judged against those without noise:
the loss above the irreducible one. Noise would hide what the last steps of a run are worth.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_meta.meta.tasks import Task, TaskFamily

Activation = Callable[[jax.Array], jax.Array]
_EVALUATION_SIZE = 256


class Scales(NamedTuple):
    """What is drawn alike for every family, float32[] each.

    Attributes:
        loss: the loss is multiplied by it, 1e-2 … 1e2.
        params: parameters are stored divided by it, 1e-3 … 1e3; 1 for half of the tasks.
        init: initial parameters are multiplied by it, 0.4 … 2.5; 0.03 … 2.5 for one task in eight.

    Example:
        >>> family = optax_meta.families.quadratics(dim=4)
        >>> family.sample(jax.random.key(0))["scales"].loss.shape
        ()
    """

    loss: jax.Array
    params: jax.Array
    init: jax.Array


def networks(
    *,
    sizes: Sequence[int] = (12, 32, 32, 6),
    activation: Activation = jax.nn.relu,
    batch_size: int = 32,
    classify: bool = True,
    normalize: bool = False,
    heavy_tailed: bool = False,
    rows: int | None = None,
    name: str = "network",
) -> TaskFamily:
    """Fit a random two-layer network with a deeper one, from an endless noisy stream.

    Args:
        sizes: widths of the student, inputs and outputs included.
        activation: of the student; the teacher's is tanh.
        batch_size: fresh samples a step.
        classify: cross-entropy on classes drawn from the teacher's softmax, else squared error
            with additive noise, 3 to 100 % of the targets' own deviation.
        normalize: normalize every hidden layer and add it to the last one of the same width.
        heavy_tailed: inputs and noise follow Student's t with 3 degrees of freedom, so that single
            gradients are a hundred times larger than most.
        rows: for tasks to overfit: batches are drawn with replacement from a table whose length is
            drawn log-uniformly, an eighth of `rows` to `rows`, and the final loss is taken on fresh
            data; None for an endless stream.
        name: of the family.

    Returns:
        A `TaskFamily`.

    Example:
        >>> optax_meta.families.networks(sizes=(4, 8, 2), classify=False).name
        'network'
    """
    inputs, outputs = sizes[0], sizes[-1]
    noise = partial(jax.random.t, df=3.0) if heavy_tailed else jax.random.normal

    def build(drawn: dict[str, Any]) -> Task:
        def teach(count: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = drawn["spectrum"][None] * noise(key, shape=(count, inputs))
            target = jnp.tanh(x @ drawn["hidden"]) @ drawn["head"]
            target = target / (0.1 + drawn["noise"]) if classify else target
            return x + drawn["input_shift"][None], target

        def scale(target: jax.Array) -> jax.Array:
            return drawn["target_scale"] * (target + drawn["target_shift"][None])

        def draw(count: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            x_key, y_key = jax.random.split(key)
            x, target = teach(count, x_key)
            if classify:
                return x, jax.random.categorical(y_key, target)
            # Over teachers the median deviation of an output is 0.65 of its head's norm.
            deviation = 0.65 * jnp.linalg.norm(drawn["head"], axis=0)
            added = drawn["noise"] * deviation[None] * noise(y_key, shape=target.shape)
            return x, scale(target + added)

        def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
            x, y = batch
            out = _network(params, x, activation, normalize=normalize)
            return jnp.mean(_cross_entropy(out, y) if classify else jnp.square(out - y))

        init = partial(_init_network, sizes)
        size = _EVALUATION_SIZE if rows is None else 4 * _EVALUATION_SIZE
        x, target = teach(size, jax.random.key(drawn["evaluation"]))
        exact = x, jax.nn.softmax(target) if classify else scale(target)
        if rows is None:
            return _task(name, init, draw, loss, batch_size, drawn, exact=exact)
        table = draw(rows, jax.random.key(drawn["evaluation"] + 1))
        count = jnp.ceil(rows * drawn["rows"]).astype(jnp.int32)

        def pick(size: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            row = jax.random.randint(key, (size,), 0, count)
            return jax.tree.map(lambda column: column[row], table)

        return _task(name, init, pick, loss, batch_size, drawn, exact=exact)

    kind = "classification" if classify else "regression"
    sample = partial(_draw_teacher, inputs, outputs)
    return TaskFamily(name, f"{kind} by a network {'-'.join(map(str, sizes))}", sample, build)


def quadratics(*, dim: int = 40) -> TaskFamily:
    """Minimize ill-conditioned, rotated, noisy quadratics.

    Args:
        dim: number of parameters.

    Returns:
        A `TaskFamily`; the loss has a floor of 1e-4 of its first value.

    Example:
        >>> optax_meta.families.quadratics(dim=5).sample(jax.random.key(0))["curvature"].shape
        (5,)
    """

    def sample(key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, 6)
        decades = jax.random.uniform(keys[0], minval=0.0, maxval=3.5)
        axis = jax.random.normal(keys[1], (dim,))
        rotated = jax.random.bernoulli(keys[2])
        return {
            "curvature": 10.0 ** jnp.linspace(-decades, 0.0, dim),
            "axis": rotated * axis / jnp.linalg.norm(axis),
            "noise": 10.0 ** jax.random.uniform(keys[3], minval=-2.0, maxval=0.3),
            "optimum": jax.random.normal(keys[4], (dim,)),
            "scales": _scales(keys[5]),
            "evaluation": jax.random.bits(keys[5]),
        }

    def build(drawn: dict[str, Any]) -> Task:
        def draw(count: int, key: jax.Array) -> jax.Array:
            return drawn["noise"] * jax.random.normal(key, (count, dim)) / jnp.sqrt(8.0)

        def loss(params: jax.Array, batch: jax.Array) -> jax.Array:
            shifted = params - drawn["optimum"]
            turned = shifted - 2.0 * drawn["axis"] * jnp.dot(drawn["axis"], shifted)
            noisy = turned - jnp.mean(batch, axis=0)
            return 0.5 * jnp.mean(drawn["curvature"] * noisy**2) + 1e-4

        def init(key: jax.Array) -> jax.Array:
            return jax.random.normal(key, (dim,))

        return _task("quadratic", init, draw, loss, 8, drawn, exact=jnp.zeros((1, dim)))

    return TaskFamily("quadratic", f"noisy quadratics in {dim} dimensions", sample, build)


def products(*, dim: int = 12, depth: int = 4, batch_size: int = 16) -> TaskFamily:
    """Fit a linear map whose every coefficient is a product of several parameters.

    Curvature grows with a power of the parameters, so that a rate that was harmless at first throws
    a run far away later; between signs lie saddles.

    Args:
        dim: number of coefficients.
        depth: parameters of each.
        batch_size: fresh samples a step.

    Returns:
        A `TaskFamily` of `depth`·`dim` parameters.

    Example:
        >>> optax_meta.families.products().name
        'product'
    """

    def sample(key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, 4)
        size = 10.0 ** jax.random.uniform(keys[0], minval=-0.5, maxval=1.5)
        return {
            "target": size * jax.random.normal(keys[1], (dim,)),
            "noise": 0.3 * size * jax.random.uniform(keys[2]),
            "scales": _scales(keys[3]),
            "evaluation": jax.random.bits(keys[3]),
        }

    def build(drawn: dict[str, Any]) -> Task:
        def draw(count: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            x_key, noise_key = jax.random.split(key)
            x = jax.random.normal(x_key, (count, dim))
            noise = drawn["noise"] * jax.random.normal(noise_key, (count,))
            return x, x @ drawn["target"] + noise

        def loss(params: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
            x, y = batch
            return jnp.mean(jnp.square(x @ jnp.prod(params, axis=0) - y)) + 1e-4

        def init(key: jax.Array) -> jax.Array:
            return 1.0 + 0.3 * jax.random.normal(key, (depth, dim))

        x = jax.random.normal(jax.random.key(drawn["evaluation"]), (_EVALUATION_SIZE, dim))
        exact = x, x @ drawn["target"]
        return _task("product", init, draw, loss, batch_size, drawn, exact=exact)

    return TaskFamily("product", f"{dim} products of {depth} parameters", sample, build)


def bigrams(*, tokens: int = 24, width: int = 12, batch_size: int = 64) -> TaskFamily:
    """Learn the transitions of a random Markov chain with an embedding and a linear head.

    Args:
        tokens: size of the vocabulary.
        width: of the embedding.
        batch_size: fresh transitions a step.

    Returns:
        A `TaskFamily`.

    Example:
        >>> optax_meta.families.bigrams().name
        'bigram'
    """

    def sample(key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, 4)
        sharpness = jax.random.uniform(keys[0], minval=0.5, maxval=3.0)
        frequent = -jax.random.uniform(keys[1], maxval=1.5) * jnp.log(jnp.arange(1.0, tokens + 1))
        return {
            "frequency": frequent,
            "transition": sharpness * jax.random.normal(keys[2], (tokens, tokens)) + frequent[None],
            "scales": _scales(keys[3]),
            "evaluation": jax.random.bits(keys[3]),
        }

    def build(drawn: dict[str, Any]) -> Task:
        def see(count: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            first = _categorical(key, jnp.tile(drawn["frequency"], (count, 1)))
            return first, drawn["transition"][first]

        def draw(count: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            first_key, next_key = jax.random.split(key)
            first, logits = see(count, first_key)
            return first, _categorical(next_key, logits)

        def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
            first, after = batch
            hidden = jax.nn.one_hot(first, tokens) @ params["embedding"]
            return jnp.mean(_cross_entropy(_affine(params["head"], hidden), after))

        def init(key: jax.Array) -> Any:
            embed_key, head_key = jax.random.split(key)
            embedding = jax.random.normal(embed_key, (tokens, width))
            return {"embedding": embedding, "head": _init_affine(head_key, width, tokens)}

        first, logits = see(_EVALUATION_SIZE, jax.random.key(drawn["evaluation"]))
        exact = first, jax.nn.softmax(logits)
        return _task("bigram", init, draw, loss, batch_size, drawn, exact=exact)

    return TaskFamily("bigram", f"bigrams of {tokens} tokens", sample, build)


def drifting(*, sizes: Sequence[int] = (10, 32, 1), batch_size: int = 16) -> TaskFamily:
    """Follow a network whose last layer turns while the student learns.

    Two tasks out of three also jump once, by an eighth of a turn up to a half.

    Args:
        sizes: widths of the student, inputs and outputs included.
        batch_size: fresh samples a step.

    Returns:
        A `TaskFamily`; a full turn takes between 200 and 60 000 steps, and the jump comes at one of
        the first 30 to 1600.

    Example:
        >>> family = optax_meta.families.drifting()
        >>> family.build(family.sample(jax.random.key(0))).shift is None
        False
    """
    inputs, outputs = sizes[0], sizes[-1]

    def sample(key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, 8)
        jump = jnp.pi * jax.random.uniform(keys[5], minval=0.25)
        return {
            "jump": jnp.where(jax.random.bernoulli(keys[6], 2.0 / 3.0), jump, 0.0),
            "jump_step": 10.0 ** jax.random.uniform(keys[7], minval=1.5, maxval=3.2),
            "hidden": 1.5 * jax.random.normal(keys[0], (inputs, 16)) / jnp.sqrt(inputs),
            "heads": jax.random.normal(keys[1], (16, 2 * outputs)) / 2.0,
            "radians_per_step": 10.0 ** jax.random.uniform(keys[2], minval=-4.0, maxval=-1.5),
            "noise": jax.random.uniform(keys[3], minval=0.05, maxval=0.5),
            "scales": _scales(keys[4]),
            "evaluation": jax.random.bits(keys[4]),
        }

    def build(drawn: dict[str, Any]) -> Task:
        def draw(count: int, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            x_key, noise_key = jax.random.split(key)
            x = jax.random.normal(x_key, (count, inputs))
            targets = jnp.tanh(x @ drawn["hidden"]) @ drawn["heads"]
            targets = targets.reshape(count, 2, outputs)
            targets += drawn["noise"] * jax.random.normal(noise_key, (count, 1, outputs))
            return x, targets, jnp.zeros(())

        def shift(batch: tuple[jax.Array, ...], step: jax.Array) -> tuple[jax.Array, ...]:
            jump = jnp.where(step >= drawn["jump_step"], drawn["jump"], 0.0)
            return *batch[:2], drawn["radians_per_step"] * step + jump

        def loss(params: Any, batch: tuple[jax.Array, ...]) -> jax.Array:
            x, targets, angle = batch
            y = jnp.cos(angle) * targets[:, 0] + jnp.sin(angle) * targets[:, 1]
            return jnp.mean(jnp.square(_network(params, x, jnp.tanh) - y))

        init = partial(_init_network, sizes)
        task = _task("drifting", init, draw, loss, batch_size, drawn)
        return task._replace(shift=shift)

    return TaskFamily("drifting", "regression on targets that turn", sample, build)


def transformers(
    *, tokens: int = 16, length: int = 8, width: int = 16, batch_size: int = 4
) -> TaskFamily:
    """Predict classes that depend on a token and on another one some places before it.

    One block of attention and a hidden layer, both behind layer normalization, with embeddings of
    tokens, some of them rare, and of positions. Attention looks both ways, and the places form a
    ring.

    Args:
        tokens: size of the vocabulary, and number of classes.
        length: tokens of a sequence, ≥ 2.
        width: of the embeddings.
        batch_size: fresh sequences a step.

    Returns:
        A `TaskFamily`.

    Example:
        >>> optax_meta.families.transformers().name
        'transformer'
    """

    def sample(key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, 6)
        sharpness = jax.random.uniform(keys[0], minval=1.0, maxval=4.0)
        decay = jax.random.uniform(keys[1], maxval=1.5)
        return {
            "frequency": -decay * jnp.log(jnp.arange(1.0, tokens + 1)),
            "lag": jax.random.randint(keys[2], (), 1, length),
            "own": sharpness * jax.random.normal(keys[3], (tokens, tokens)),
            "other": sharpness * jax.random.normal(keys[4], (tokens, tokens)),
            "scales": _scales(keys[5]),
            "evaluation": jax.random.bits(keys[5]),
        }

    def build(drawn: dict[str, Any]) -> Task:
        def see(count: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = _categorical(key, jnp.tile(drawn["frequency"], (count, length, 1)))
            other = x[:, (jnp.arange(length) - drawn["lag"]) % length]
            return x, drawn["own"][x] + drawn["other"][other]

        def draw(count: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            x_key, y_key = jax.random.split(key)
            x, logits = see(count, x_key)
            return x, _categorical(y_key, logits)

        def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
            x, y = batch
            hidden = jax.nn.one_hot(x, tokens) @ params["tokens"] + params["positions"][None]
            return jnp.mean(_cross_entropy(_transformer(params, hidden), y))

        init = partial(_init_transformer, tokens, length, width)
        x, logits = see(_EVALUATION_SIZE, jax.random.key(drawn["evaluation"]))
        exact = x, jax.nn.softmax(logits)
        return _task("transformer", init, draw, loss, batch_size, drawn, exact=exact)

    return TaskFamily("transformer", f"attention over {length} of {tokens} tokens", sample, build)


def tables(*, hidden_size: int = 24, batch_size: int = 32) -> TaskFamily:
    """Classify scikit-learn's breast cancer, wine and iris tables with fresh label noise.

    The three tables share one shape: columns beyond a table's own are zero. Needs scikit-learn.

    Args:
        hidden_size: of the two hidden layers.
        batch_size: rows a step, drawn with replacement.

    Returns:
        A `TaskFamily`.

    Example:
        >>> optax_meta.families.tables().name
        'table'
    """
    from sklearn import datasets

    loaded = [f(return_X_y=True) for f in (datasets.load_breast_cancer, datasets.load_wine)]
    loaded.append(datasets.load_iris(return_X_y=True))
    columns, classes, rows = 30, 3, 150
    xs, ys = [], []
    for table, y in loaded:
        x = np.asarray(table)
        x = (x - x.mean(0)) / x.std(0)
        picked = jax.random.permutation(jax.random.key(0), len(x))[:rows]
        xs.append(jnp.pad(jnp.asarray(x, jnp.float32), ((0, 0), (0, columns - x.shape[1])))[picked])
        ys.append(jnp.asarray(y, jnp.int32)[picked])
    all_x, all_y = jnp.stack(xs), jnp.stack(ys)
    sizes = (columns, hidden_size, hidden_size, classes)

    def sample(key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, 4)
        return {
            "table": jax.random.randint(keys[0], (), 0, len(loaded)),
            "noise": jax.random.uniform(keys[1], minval=0.05, maxval=0.3),
            "columns": 10.0 ** jax.random.uniform(keys[2], (columns,), minval=-0.7, maxval=0.7),
            "scales": _scales(keys[3]),
            "evaluation": jax.random.bits(keys[3]),
        }

    def build(drawn: dict[str, Any]) -> Task:
        def draw(count: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            row_key, flip_key, label_key = jax.random.split(key, 3)
            row = jax.random.randint(row_key, (count,), 0, rows)
            x, y = all_x[drawn["table"], row], all_y[drawn["table"], row]
            is_flipped = jax.random.bernoulli(flip_key, drawn["noise"], (count,))
            other = jax.random.randint(label_key, (count,), 0, classes)
            return x * drawn["columns"][None], jnp.where(is_flipped, other, y)

        def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
            x, y = batch
            return jnp.mean(_cross_entropy(_network(params, x, jnp.tanh), y))

        x, y = all_x[drawn["table"]] * drawn["columns"][None], all_y[drawn["table"]]
        shares = (1.0 - drawn["noise"]) * jax.nn.one_hot(y, classes) + drawn["noise"] / classes
        init = partial(_init_network, sizes)
        return _task("table", init, draw, loss, batch_size, drawn, exact=(x, shares))

    return TaskFamily("table", "small tables with label noise", sample, build)


FAMILIES: dict[str, Callable[[], TaskFamily]] = {
    "relu": partial(networks, name="relu"),
    "tanh": partial(
        networks, sizes=(8, 24, 24, 1), activation=jnp.tanh, classify=False, name="tanh"
    ),
    "deep": partial(
        networks,
        sizes=(16, 16, 16, 16, 16, 8),
        activation=jax.nn.gelu,
        batch_size=16,
        normalize=True,
        name="deep",
    ),
    "linear": partial(networks, sizes=(24, 10), batch_size=8, name="linear"),
    "narrow": partial(networks, sizes=(6, 48, 3), batch_size=64, classify=False, name="narrow"),
    "heavy": partial(
        networks, sizes=(10, 24, 4), batch_size=16, classify=False, heavy_tailed=True, name="heavy"
    ),
    "quadratic": quadratics,
    "product": products,
    "bigram": bigrams,
    "transformer": transformers,
    "drifting": drifting,
    "table": tables,
}
"""Families that `any-lr-v1` was trained on, by name."""

OVERFITTED: dict[str, Callable[[], TaskFamily]] = {
    "few-relu": partial(networks, sizes=(12, 48, 48, 4), rows=256, name="few-relu"),
    "few-tanh": partial(
        networks,
        sizes=(8, 64, 1),
        activation=jnp.tanh,
        classify=False,
        batch_size=16,
        rows=128,
        name="few-tanh",
    ),
    "few-deep": partial(
        networks,
        sizes=(16, 24, 24, 24, 6),
        activation=jax.nn.gelu,
        normalize=True,
        rows=512,
        name="few-deep",
    ),
    "few-linear": partial(networks, sizes=(48, 5), batch_size=16, rows=192, name="few-linear"),
    "few-wide": partial(networks, sizes=(24, 96, 1), classify=False, rows=256, name="few-wide"),
}
"""Families of few noisy rows, judged on fresh ones, that `adamw-lr-wd-v1` was trained on."""


def _draw_teacher(inputs: int, outputs: int, key: jax.Array) -> dict[str, Any]:
    keys = jax.random.split(key, 10)
    decay = jax.random.uniform(keys[0], maxval=1.5)
    # Half of the tasks have inputs that nobody has centred.
    is_shifted, shift_key = jax.random.bernoulli(keys[8]), jax.random.fold_in(keys[8], 1)
    spectrum = jnp.arange(1.0, inputs + 1.0) ** -decay
    sharpness = 10.0 ** jax.random.uniform(keys[1], minval=0.0, maxval=1.0)
    return {
        "spectrum": spectrum / jnp.sqrt(jnp.mean(spectrum**2)),
        "hidden": jax.random.normal(keys[2], (inputs, 16)) * 1.5 / jnp.sqrt(inputs),
        "head": sharpness * jax.random.normal(keys[3], (16, outputs)) / 4.0,
        "noise": 10.0 ** jax.random.uniform(keys[4], minval=-1.5, maxval=0.0),
        "target_scale": 10.0 ** jax.random.uniform(keys[6], minval=-0.5, maxval=1.0),
        "target_shift": _wide(keys[7]) * jax.random.normal(keys[7], (outputs,)),
        "input_shift": is_shifted * _wide(shift_key) * jax.random.normal(shift_key, (inputs,)),
        "rows": 2.0 ** -jax.random.uniform(keys[9], maxval=3.0),
        "scales": _scales(keys[5]),
        "evaluation": jax.random.bits(keys[5]),
    }


def _wide(key: jax.Array) -> jax.Array:
    return 10.0 ** jax.random.uniform(jax.random.fold_in(key, 0), minval=-0.5, maxval=0.6)


def _scales(key: jax.Array) -> Scales:
    keys = jax.random.split(key, 5)
    units = 10.0 ** jax.random.uniform(keys[1], minval=-3.0, maxval=3.0)
    smallest = jnp.where(jax.random.bernoulli(keys[4], 0.125), -1.5, -0.4)
    return Scales(
        loss=10.0 ** jax.random.uniform(keys[0], minval=-2.0, maxval=2.0),
        params=jnp.where(jax.random.bernoulli(keys[2]), units, 1.0),
        init=10.0 ** jax.random.uniform(keys[3], minval=smallest, maxval=0.4),
    )


def _task(
    name: str,
    init: Callable[[jax.Array], Any],
    draw: Callable[[int, jax.Array], Any],
    loss: Callable[[Any, Any], jax.Array],
    batch_size: int,
    drawn: dict[str, Any],
    *,
    exact: Any = None,
) -> Task:
    """Return the task in the drawn units of parameters and loss, judged by the `exact` batch."""
    scales: Scales = drawn["scales"]

    def scaled_loss(params: Any, batch: Any) -> jax.Array:
        return scales.loss * loss(jax.tree.map(lambda p: scales.params * p, params), batch)

    def evaluate(params: Any) -> dict[str, jax.Array]:
        key = jax.random.key(drawn["evaluation"])
        batch = draw(_EVALUATION_SIZE, key) if exact is None else exact
        return {"loss": scaled_loss(params, batch)}

    def scaled_init(key: jax.Array) -> Any:
        return jax.tree.map(lambda p: p * (scales.init / scales.params), init(key))

    return Task(name, name, scaled_init, partial(draw, batch_size), scaled_loss, evaluate)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return that of integer labels; of probabilities, what is above their own entropy."""
    if jnp.issubdtype(labels.dtype, jnp.integer):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.kl_divergence(jax.nn.log_softmax(logits), labels)


def _categorical(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Draw classes by one uniform number each, far cheaper than one for each class."""
    cumulative = jnp.cumsum(jax.nn.softmax(logits), axis=-1)
    uniform = jax.random.uniform(key, (*logits.shape[:-1], 1))
    return jnp.sum(uniform > cumulative[..., :-1], axis=-1)


def _init_affine(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    kernel = jax.random.normal(key, (inputs, outputs)) / jnp.sqrt(inputs)
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def _affine(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ params["kernel"] + params["bias"][None]


def _init_network(sizes: Sequence[int], key: jax.Array) -> list[dict[str, jax.Array]]:
    keys = jax.random.split(key, len(sizes) - 1)
    pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [_init_affine(key, inputs, outputs) for key, inputs, outputs in pairs]


def _network(
    params: list[Any], x: jax.Array, activation: Activation, *, normalize: bool = False
) -> jax.Array:
    *hidden, head = params
    for layer in hidden:
        y = activation(_affine(layer, x))
        if normalize:
            y = _standardize(y)
            y = x + y if x.shape == y.shape else y
        x = y
    return _affine(head, x)


def _init_transformer(tokens: int, length: int, width: int, key: jax.Array) -> dict[str, Any]:
    keys = jax.random.split(key, 9)
    names = ("query", "key", "value", "out", "up", "down", "head")
    shapes = (*[(width, width)] * 4, (width, 2 * width), (2 * width, width), (width, tokens))
    affine = {
        name: _init_affine(k, *shape) for name, k, shape in zip(names, keys, shapes, strict=False)
    }
    norms = {"gain": jnp.ones((3, 1, 1, width)), "shift": jnp.zeros((3, 1, 1, width))}
    return {
        "tokens": jax.random.normal(keys[7], (tokens, width)) / jnp.sqrt(width),
        "positions": jax.random.normal(keys[8], (length, width)) / jnp.sqrt(width),
        "norms": norms,
        **affine,
    }


def _transformer(params: dict[str, Any], x: jax.Array) -> jax.Array:
    def norm(index: int, x: jax.Array) -> jax.Array:
        norms = params["norms"]
        return norms["gain"][index] * _standardize(x) + norms["shift"][index]

    def affine(name: str, x: jax.Array) -> jax.Array:
        return x @ params[name]["kernel"] + params[name]["bias"][None, None]

    normed = norm(0, x)
    query, key, value = (affine(name, normed) for name in ("query", "key", "value"))
    weights = jax.nn.softmax(query @ key.mT / query.shape[-1] ** 0.5)
    x = x + affine("out", weights @ value)
    x = x + affine("down", jax.nn.gelu(affine("up", norm(1, x))))
    return affine("head", norm(2, x))


def _standardize(x: jax.Array) -> jax.Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-3)
