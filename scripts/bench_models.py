"""What `bench_population.py` measures: networks, and the programs that are timed on them."""

import importlib.util
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
from flax import linen as nn

import zojax
import zojax.flax

SIGMA = 0.01
DIRECTIONS = (zojax.gaussian(), zojax.rademacher(), zojax.low_rank(1), zojax.low_rank(4))


class Mlp(nn.Module):
    """Dense layers with ReLU between them."""

    widths: tuple[int, ...] = (128, 128)
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, features) -> (batch, classes)."""
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.classes)(x)


class Cnn(nn.Module):
    """Two 3x3 convolutions, each halved in size by max-pooling, and a dense layer."""

    channels: tuple[int, ...] = (16, 32)
    width: int = 128
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, height, width, channels) -> (batch, classes)."""
        for channels in self.channels:
            x = nn.max_pool(nn.relu(nn.Conv(channels, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(self.width)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.classes)(x)


class Transformer(nn.Module):
    """Embedding, one pre-norm causal block, next-token logits."""

    width: int = 256
    heads: int = 4
    classes: int = 128

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(batch, length) -> (batch, length, classes)."""
        x = nn.Embed(self.classes, self.width)(tokens)
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads)(h, h, mask=nn.make_causal_mask(tokens))
        h = nn.LayerNorm()(x)
        x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(h)))
        return nn.Dense(self.classes)(nn.LayerNorm()(x))


class Spec(NamedTuple):
    """One workload before anything is allocated.

    Attributes:
      module: the unmodified Flax model.
      input_shape: of one example.
      pairs: antithetic pairs, half the number of evaluations.
      batch: examples per evaluation.
      chunks: chunk sizes to try, in pairs.
      has_tokens: whether the inputs are token indices, with one target each.
    """

    module: Any
    input_shape: tuple[int, ...]
    pairs: int
    batch: int
    chunks: tuple[int, ...]
    has_tokens: bool = False


SPECS = {
    "mlp": Spec(Mlp(), (784,), 128, 256, (1, 4, 8, 16, 32)),
    "cnn": Spec(Cnn(), (28, 28, 1), 32, 128, (1, 2, 4, 8)),
    "transformer": Spec(Transformer(), (128,), 32, 1, (1, 2, 4, 8), has_tokens=True),
    "wide": Spec(Mlp((4096, 4096)), (4096,), 32, 1024, (1, 4, 8)),
}


class Workload(NamedTuple):
    """A network with its data on the device.

    Attributes:
      spec: what it was made from.
      params: the parameters.
      loss_fn: `(params, batch) -> scalar`.
      inputs: as many examples as one estimate pushes through the network.
      batch: `(inputs, targets)` of one evaluation.
      inference_batches: batch sizes of plain inference, in examples.
      exact: the gradient by back-propagation.
    """

    spec: Spec
    params: Any
    loss_fn: Callable[..., Any]
    inputs: jax.Array
    batch: tuple[jax.Array, jax.Array]
    inference_batches: tuple[int, ...]
    exact: Any


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of integer labels."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def build(spec: Spec, quick: bool) -> Workload:
    """Allocates a workload.

    Args:
      spec: what to build.
      quick: a few evaluations of small batches, to see that everything runs.
    """
    if quick:
        spec = spec._replace(pairs=8, batch=min(spec.batch, 32), chunks=spec.chunks[:2])
    examples = 2 * spec.pairs * spec.batch
    keys = jax.random.split(jax.random.key(0), 3)
    shape, classes = (examples, *spec.input_shape), spec.module.classes
    if spec.has_tokens:
        inputs = jax.random.randint(keys[0], shape, 0, classes)
    else:
        inputs = jax.random.normal(keys[0], shape)
    label_shape = (spec.batch, *spec.input_shape) if spec.has_tokens else (spec.batch,)
    batch = (inputs[: spec.batch], jax.random.randint(keys[1], label_shape, 0, classes))
    params = spec.module.init(keys[2], batch[0])["params"]
    loss_fn = zojax.flax.linen_loss(spec.module, cross_entropy)

    # 256 to 65,536 rows; a row of a transformer is a token, so an example has many.
    rows = math.prod(spec.input_shape) if spec.has_tokens else 1
    sizes = [2**k // rows for k in range(8, 17)]
    sizes = tuple(size for size in sizes if size and examples % size == 0) or (examples,)
    exact = jax.jit(jax.grad(loss_fn))(params, batch)
    return Workload(spec, params, loss_fn, inputs, batch, sizes, exact)


def evosax_step(workload: Workload) -> tuple[Callable[..., Any], Callable[[Any], Any]]:
    """Open_ES with its defaults: ask, evaluate the population under `vmap`, tell.

    Args:
      workload: what to evaluate.

    Returns:
      `(step, gradient)`: `step(key, params, batch)` returns the new state, from which `gradient`
      reads off the descent direction.

    Raises:
      ImportError: if evosax is not installed.
    """
    from evosax.algorithms import Open_ES

    strategy = Open_ES(
        2 * workload.spec.pairs,
        workload.params,
        optimizer=optax.sgd(1.0),
        std_schedule=optax.constant_schedule(SIGMA),
    )
    settings = strategy.default_params

    def step(key: jax.Array, params: Any, batch: Any) -> Any:
        state = strategy.init(key, params, settings)
        population, state = strategy.ask(key, state, settings)
        losses = jax.vmap(workload.loss_fn, in_axes=(0, None))(population, batch)
        return strategy.tell(key, population, losses, state, settings)[0]

    start = jax.flatten_util.ravel_pytree(workload.params)[0]
    return step, lambda state: start - state.mean


def shardes_step(workload: Workload, rank: int) -> tuple[Callable[..., Any], Any, Any, Any]:
    """Low-rank noise in shardes, on the MLP rewritten for it; pairs, centred ranks.

    Args:
      workload: an MLP; no other model is rewritten here.
      rank: of the perturbations.

    Returns:
      `(step, state, gradient, exact)`: `step(key, state, batch)` returns the new parameters in its
      layout, from which `gradient` reads off the estimate; the exact gradient in the same layout.

    Raises:
      ImportError: if shardes is not installed.
    """
    import shardes

    depth = len(workload.spec.module.widths) + 1

    def rewrite(tree: Any) -> Any:
        layers = [tree[f"Dense_{i}"] for i in range(depth)]
        return [{"w": layer["kernel"].T, "b": layer["bias"]} for layer in layers]

    def loss(params: Any, batch: Any) -> jax.Array:
        x, labels = batch
        for layer in params[:-1]:
            x = nn.relu(shardes.nn.dense(x, layer["w"]) + layer["b"])
        return cross_entropy(shardes.nn.dense(x, params[-1]["w"]) + params[-1]["b"], labels)

    strategy = shardes.ShardedES(
        shardes.Mirrored(shardes.LowRank(r=rank)),
        n=2 * workload.spec.pairs,
        sigma=SIGMA,
        lr=1.0,
        mesh=shardes.make_mesh(1),
    )

    def step(key: jax.Array, state: Any, batch: Any) -> Any:
        noise, state = strategy.ask(state._replace(key=key))
        return strategy.tell(state, noise, strategy.apply(loss, state, noise)(batch)).params

    params = rewrite(workload.params)
    gradient = lambda new: jax.tree.map(jnp.subtract, params, new)  # noqa: E731
    return step, strategy.init(jax.random.key(0), params), gradient, rewrite(workload.exact)


class Program(NamedTuple):
    """Something to time.

    Attributes:
      label: unique within a workload.
      kind: inference, noise, zojax, evosax or shardes.
      function: `(key, *args) -> output`, not compiled.
      args: arrays.
      directions: name of the direction distribution, if any.
      gradient: reads the gradient estimate off the output; None if there is none.
      exact: what the estimate is compared with.
    """

    label: str
    kind: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    directions: str | None = None
    gradient: Callable[[Any], Any] | None = None
    exact: Any = None


def programs_of(workload: Workload) -> Iterator[Program]:
    """Yields everything that is timed on a workload."""
    yield from _inference(workload)
    for directions in DIRECTIONS:
        yield from _zojax(workload, directions)
    yield from _peers(workload)


def _inference(workload: Workload) -> Iterator[Program]:
    """The forward pass alone, on as many examples, at every batch size."""
    module, shape = workload.spec.module, workload.spec.input_shape
    for size in workload.inference_batches:

        def infer(key: Any, params: Any, inputs: Any, size: int = size) -> Any:
            del key
            apply = lambda x: module.apply({"params": params}, x)  # noqa: E731
            if size == inputs.shape[0]:
                return apply(inputs)
            return jax.lax.map(apply, inputs.reshape(-1, size, *shape))

        yield Program(
            f"inference, batch {size}", "inference", infer, (workload.params, workload.inputs)
        )


def _zojax(workload: Workload, directions: Any) -> Iterator[Program]:
    """The noise alone, and value and gradient under every execution."""
    pairs, name = workload.spec.pairs, directions.name
    est = zojax.finite_difference(directions=directions, num_directions=pairs, sigma=SIGMA)
    draw = lambda key, params: est.draw(key, params, (), 0, pairs, pairs)  # noqa: E731
    yield Program(f"noise alone, {name}", "noise", draw, (workload.params,), name)
    for execution in _executions(workload):
        run = zojax.value_and_grad(workload.loss_fn, est, execution=execution)
        yield Program(
            f"zojax {name} {execution.name}",
            "zojax",
            lambda key, params, batch, run=run: run(params, key, batch),
            (workload.params, workload.batch),
            name,
            gradient=lambda output: output[1],
            exact=workload.exact,
        )


def _executions(workload: Workload) -> list[Any]:
    """All at once, in chunks of several sizes, and in chunks of a size that zojax finds."""
    sizes = [size for size in workload.spec.chunks if size < workload.spec.pairs]
    executions = [zojax.vectorized(), *map(zojax.chunked, sizes)]
    try:
        executions.append(zojax.chunked("auto"))
    except (TypeError, ValueError) as error:
        print(f'chunked("auto") is not there, skipped: {error}')
    return executions


def _peers(workload: Workload) -> Iterator[Program]:
    """The same step in other libraries, where they are installed."""
    args = (workload.params, workload.batch)
    if importlib.util.find_spec("evosax") is None:
        print("evosax is not installed, skipped (pip install -e '.[peers]')")
    else:
        step, gradient = evosax_step(workload)
        yield Program("evosax Open_ES", "evosax", step, args, "gaussian", gradient, workload.exact)
    if not hasattr(workload.spec.module, "widths"):
        return  # shardes needs a rewritten model, and only the MLP is
    if importlib.util.find_spec("shardes") is None:
        print("shardes is not installed, skipped (Python >= 3.12, pip install -e '.[peers]')")
        return
    for rank in (1, 4):
        step, state, gradient, exact = shardes_step(workload, rank)
        label, args = f"shardes LowRank({rank}), rewritten model", (state, workload.batch)
        yield Program(label, "shardes", step, args, f"low_rank({rank})", gradient, exact)
