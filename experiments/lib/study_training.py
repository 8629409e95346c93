"""Training of the MNIST study: one recipe, by back-propagation or by values alone."""

import dataclasses
import functools
import math
import time
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
import zojax.flax
from experiments.lib.classifier import cross_entropy
from experiments.lib.errors import UserError
from experiments.lib.optimizers import OptimizerName, build_optimizer, build_schedule
from experiments.lib.progress import Progress
from experiments.lib.study_data import Data, score, with_prediction
from experiments.lib.study_networks import Network, initial_variables
from zojax import projections, regularization, trees

FIRST_ORDER_FORWARDS = 3  # a backward pass is counted as two forward passes
Trainable = Literal["all", "last", "last_two"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train a network.

    Attributes:
        label: For tables and figures.
        network: What is trained.
        optimizer: By name.
        learning_rate: The first one.
        sample_forwards: Budget; a first-order step counts as three forward passes per image.
        num_directions: Antithetic Rademacher pairs per step; 0 for back-propagation.
        sigma: Smoothing radius, in parameter units.
        batch_size: Images per step, without replacement within an epoch.
        momentum: Of the heavy ball.
        schedule: `constant`, or `cosine` to 1 %.
        l1: Strength of the penalty on |w| in the loss.
        l2: Strength of the penalty on w^2 / 2 in the loss.
        prox_l1: Strength of the penalty on |w| as a proximal step behind the optimiser.
        shift: Random shifts of up to so many pixels in training.
        flip: Random horizontal flips in training.
        input_noise: Standard deviation of Gaussian noise on the pixels (which are in [0, 1]).
        trainable: Which dense layers are trained.
        chunk: Directions evaluated at once; 0 for all.
    """

    label: str
    network: Network
    optimizer: OptimizerName
    learning_rate: float
    sample_forwards: float
    num_directions: int = 0
    sigma: float = 0.05
    batch_size: int = 64
    momentum: float = 0.9
    schedule: Literal["constant", "cosine"] = "cosine"
    l1: float = 0.0
    l2: float = 0.0
    prox_l1: float = 0.0
    shift: int = 0
    flip: bool = False
    input_noise: float = 0.0
    trainable: Trainable = "all"
    chunk: int = 0

    @property
    def forwards_per_step(self) -> int:
        """Sample-forwards per step."""
        passes = 2 * self.num_directions if self.num_directions else FIRST_ORDER_FORWARDS
        return passes * self.batch_size

    @property
    def num_steps(self) -> int:
        """Steps within the budget, at least one."""
        return max(1, int(self.sample_forwards // self.forwards_per_step))


class DivergedError(UserError):
    """A loss that is no number."""


class Trained(NamedTuple):
    """A trained network.

    Attributes:
        recipe: How it was trained.
        variables: For prediction.
        rows: Metrics on the validation part at every evaluation.
        seconds: Training time, with compilation and evaluation.
    """

    recipe: Recipe
    variables: Any
    rows: list[dict[str, float]]
    seconds: float

    @property
    def params(self) -> Any:
        """The parameters."""
        return self.variables["params"]


def train(
    recipe: Recipe, data: Data, seed: int, num_evals: int = 20, params: Any = None
) -> Trained:
    """Trains one network.

    Args:
        recipe: How.
        data: On what.
        seed: Of parameters, batches, augmentation and directions.
        num_evals: Evaluations on the validation part.
        params: Where to start; None for fresh ones.

    Raises:
        DivergedError: If the loss stops being finite.
    """
    began = time.perf_counter()
    print(f"{recipe.label}, learning rate {recipe.learning_rate:g}, seed {seed}", flush=True)
    init_key, run_key, order_key = jax.random.split(jax.random.key(seed), 3)
    fresh, collections = initial_variables(recipe.network, init_key, data.train.images)
    params = fresh if params is None else params
    advance = _program(dataclasses.replace(recipe, label="", learning_rate=1.0))
    carry = (params, build_transformation(recipe).init(params))
    per_epoch = max(1, len(data.train.labels) // recipe.batch_size)
    stops = {*np.linspace(0, recipe.num_steps, num_evals + 1).astype(int)[1:].tolist()}
    epochs = range(math.ceil(recipe.num_steps / per_epoch))
    rows: list[dict[str, float]] = []
    with Progress(recipe.num_steps, recipe.label) as progress:
        for epoch in epochs:
            order = _shuffled(jax.random.fold_in(order_key, epoch), len(data.train.labels))
            first, last = epoch * per_epoch, min((epoch + 1) * per_epoch, recipe.num_steps)
            here = [first, *sorted(s for s in stops if first < s < last), last]
            for start, stop in zip(here[:-1], here[1:], strict=True):
                given = (recipe.learning_rate, order, run_key, collections, _arrays(data))
                carry = advance(carry, start, stop, first, *given)
                if stop not in stops:
                    continue
                variables = with_prediction(recipe.network, carry[0], collections, data)
                accuracy, loss = score(recipe.network, variables, data, data.validation)
                if not math.isfinite(loss):
                    raise DivergedError(
                        f"the loss of '{recipe.label}' became {loss} by step {stop}: more "
                        "--num-directions or a larger --batch-size make estimates less noisy"
                    )
                rows.append(
                    {
                        "step": stop,
                        "sample_forwards": stop * recipe.forwards_per_step,
                        "seconds": time.perf_counter() - began,
                        "accuracy": accuracy,
                        "loss": loss,
                    }
                )
                progress.update(stop, loss=loss, accuracy=accuracy)
    variables = with_prediction(recipe.network, carry[0], collections, data)
    return Trained(recipe, variables, rows, time.perf_counter() - began)


def initial(recipe: Recipe, data: Data, seed: int) -> Any:
    """Returns the parameters that `train` starts from with this seed."""
    init_key = jax.random.split(jax.random.key(seed), 3)[0]
    return initial_variables(recipe.network, init_key, data.train.images)[0]


def build_transformation(recipe: Recipe) -> optax.GradientTransformation:
    """Returns the optimiser of a recipe, with its mask and its proximal step.

    Args:
        recipe: How to train.
    """
    name = recipe.schedule
    rate = build_schedule(name, recipe.learning_rate, recipe.num_steps, 0.01)
    tx = build_optimizer(recipe.optimizer, rate, recipe.momentum)
    tx = zojax.mask_optimizer(tx, mask_of(recipe))
    if recipe.prox_l1:
        tx = optax.chain(tx, zojax.proximal(projections.prox_l1, rate, recipe.prox_l1))
    return tx


def mask_of(recipe: Recipe) -> Any:
    """Returns the mask of the trained leaves, for estimators and `zojax.mask_optimizer`."""
    if recipe.trainable == "all":
        return None
    count = {"last": 1, "last_two": 2}[recipe.trainable]
    total = len(recipe.network.hidden) + 1
    names = {f"Dense_{i}" for i in range(max(0, total - count), total)}
    return lambda path: path.split("/")[0] in names


def loss_of(recipe: Recipe, collections: Any) -> Any:
    """Returns `loss_fn(params, batch, dropout_key)`, in training mode, with its penalties."""
    loss_fn = zojax.flax.linen_loss(
        recipe.network, cross_entropy, collections=collections, train=True
    )
    for wrapper, strength in ((regularization.l1, recipe.l1), (regularization.l2, recipe.l2)):
        loss_fn = wrapper(loss_fn, strength) if strength else loss_fn
    return loss_fn


def _arrays(data: Data) -> tuple[jax.Array, ...]:
    return (*data.train, data.mean, data.deviation)


@functools.partial(jax.jit, static_argnums=1)
def _shuffled(key: jax.Array, count: int) -> jax.Array:
    return jax.random.permutation(key, count)


@functools.lru_cache(maxsize=64)  # seeds and learning rates share a program
def _program(recipe: Recipe) -> Any:
    return jax.jit(functools.partial(_advance, recipe))


def _advance(
    recipe: Recipe,
    carry: Any,
    start: Any,
    stop: Any,
    epoch_start: Any,
    learning_rate: Any,
    order: jax.Array,
    run_key: jax.Array,
    collections: Any,
    arrays: Any,
) -> Any:
    """Runs steps start ... stop-1 of an epoch; every array is an argument of the program."""
    images, labels, mean, deviation = arrays
    tx = build_transformation(dataclasses.replace(recipe, learning_rate=learning_rate))
    loss_fn, mask = loss_of(recipe, collections), mask_of(recipe)
    est = _estimator(recipe, mask)
    size = recipe.batch_size

    def body(step: Any, carry: Any) -> Any:
        params, state = carry
        keys = jax.random.split(jax.random.fold_in(run_key, step), 3)
        place = (step - epoch_start) * size
        chosen = jax.lax.dynamic_slice_in_dim(order, place, size)
        pixels = augment(recipe, keys[0], images[chosen])
        args = (((pixels - mean) / deviation, labels[chosen]), keys[1])
        if est is None:
            grad = _gradient(loss_fn, params, mask, args)
        else:
            execution = zojax.chunked(recipe.chunk) if recipe.chunk else None
            found, _ = zojax.estimate(
                est, loss_fn, params, keys[2], (), args=args, execution=execution
            )
            grad = found.grad
        updates, state = tx.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(start, stop, body, carry)


def _estimator(recipe: Recipe, mask: Any) -> zojax.Estimator | None:
    if not recipe.num_directions:
        return None
    return zojax.finite_difference(
        directions=zojax.rademacher(),
        num_directions=recipe.num_directions,
        sigma=recipe.sigma,
        mask=mask,
    )


def _gradient(loss_fn: Any, params: Any, mask: Any, args: Any) -> Any:
    """By back-propagation, no further down than the lowest trained layer."""
    chosen, rest = trees.partition(params, mask)
    grad = jax.grad(lambda part: loss_fn(trees.merge(part, rest), *args))(chosen)
    return trees.merge(grad, jax.tree.map(jnp.zeros_like, rest))


def augment(recipe: Recipe, key: jax.Array, images: jax.Array) -> jax.Array:
    """Shifts, flips and disturbs a batch of images with pixels in [0, 1].

    Args:
        recipe: How much of it.
        key: Of this step.
        images: (batch, height, width, channels).
    """
    shift_key, flip_key, noise_key = jax.random.split(key, 3)
    if recipe.shift:
        border = (recipe.shift, recipe.shift)
        padded = jnp.pad(images, ((0, 0), border, border, (0, 0)))
        corners = jax.random.randint(shift_key, (len(images), 2), 0, 2 * recipe.shift + 1)

        def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

        images = jax.vmap(crop)(padded, corners)
    if recipe.flip:
        is_flipped = jax.random.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
        images = jnp.where(is_flipped, images[:, :, ::-1], images)
    if recipe.input_noise:
        images = images + recipe.input_noise * jax.random.normal(noise_key, images.shape)
    return images
