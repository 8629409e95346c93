"""The inner problem of `experiments.self_tuning`: a small network trained by function values."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
from experiments.lib.classifier import build_task
from experiments.lib.data import Dataset
from experiments.lib.models import build_model

OBJECTIVES = ("training_cost", "held_out_loss")
"""What hyperparameters can be tuned on."""


class Hyperparameters(NamedTuple):
    """What is tuned: natural logarithms, each of shape ().

    Attributes:
        log_sigma: Of the smoothing radius of the inner estimates.
        log_learning_rate: Of Adam's step size.
        log_l1: Of the strength lambda of the L1 penalty.
    """

    log_sigma: Any
    log_learning_rate: Any
    log_l1: Any

    @classmethod
    def of(cls, sigma: float, learning_rate: float, l1: float) -> "Hyperparameters":
        """Takes logarithms; an L1 strength of 0 becomes minus infinity."""
        with np.errstate(divide="ignore"):
            return cls(*(jnp.asarray(np.log(x), jnp.float32) for x in (sigma, learning_rate, l1)))


class Inner(NamedTuple):
    """A network in training.

    Attributes:
        params: Weights and biases.
        opt_state: Adam's moments.
        scores: The objectives (training cost, held-out loss) when its last truncation ended, (2,).
        age: Truncations it has been trained for, shape ().
    """

    params: Any
    opt_state: Any
    scores: Any
    age: Any


class Data(NamedTuple):
    """Images and labels of the three parts.

    Attributes:
        train: What the network sees, a small part of the training images.
        held_out: The other training images and the validation part, up to `num_held_out`.
        test: The test part; only networks trained afresh are scored on it.
    """

    train: tuple[jax.Array, jax.Array]
    held_out: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]


class Settings(Protocol):
    """What the inner problem reads from the experiment's configuration."""

    hidden: tuple[int, ...]
    pool: int | None
    num_train: int
    num_held_out: int
    batch_size: int
    inner_directions: int
    inner_steps: int
    num_truncations: int


@dataclasses.dataclass(frozen=True)
class InnerProblem:
    """Training of one network, cut into truncations.

    Attributes:
        init: `key -> Inner`, a fresh network.
        unroll: `(outer, inner, key, data, objective) -> (loss, inner)`, a truncated loss for
            `zojax.estimators.pes`: it trains for `inner_steps` steps, and the loss is the objective
            of that index in `OBJECTIVES` at the network it ends with.
        measure: `(params, split) -> (loss, accuracy)`.
        cut: `seed -> Data`, with another training subset for every seed.
    """

    init: Callable[[jax.Array], Inner]
    unroll: Callable[..., tuple[Any, Inner]]
    measure: Callable[..., tuple[Any, Any]]
    cut: Callable[[int], Data]


def build_problem(config: Settings, dataset: Dataset) -> InnerProblem:
    """Makes the network, its loss and its training steps.

    The training cost is the mean cross-entropy plus lambda times the sum of all magnitudes. An
    inner step estimates its gradient from values at antithetic points along random signs and hands
    it to Adam; nothing is differentiated.

    Args:
        config: Sizes.
        dataset: The data.
    """
    pool = config.pool or (1 if dataset.name == "digits" else 4)
    module = build_model(
        "mlp", hidden=config.hidden, features=(1,), num_classes=dataset.num_classes, pool=pool
    )
    task = build_task(module, dataset)
    adam = optax.scale_by_adam()
    decay = optax.cosine_decay_schedule(1.0, config.num_truncations)

    def cost(params: Any, l1: Any, batch: Any) -> Any:
        size = sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(params))
        return task.loss_fn(params, batch) + l1 * size

    def init(key: jax.Array) -> Inner:
        params = module.init(key, task.train[0][:1])["params"]
        return Inner(params, adam.init(params), jnp.zeros(len(OBJECTIVES)), jnp.zeros((), int))

    def train_step(outer: Hyperparameters, inner: Inner, key: jax.Array, train: Any) -> Inner:
        batch_key, noise_key = jax.random.split(key)
        chosen = jax.random.choice(batch_key, len(train[1]), (config.batch_size,), replace=False)
        batch = (train[0][chosen], train[1][chosen])
        est = zojax.finite_difference(
            directions=zojax.rademacher(),
            num_directions=config.inner_directions,
            sigma=jnp.exp(outer.log_sigma),
        )
        found, _ = zojax.estimate(
            est, cost, inner.params, noise_key, (), args=(jnp.exp(outer.log_l1), batch)
        )
        updates, opt_state = adam.update(found.grad, inner.opt_state)
        rate = jnp.exp(outer.log_learning_rate) * decay(inner.age)
        params = jax.tree.map(lambda w, u: w - rate * u, inner.params, updates)
        return inner._replace(params=params, opt_state=opt_state)

    def unroll(
        outer: Hyperparameters, inner: Inner, key: jax.Array, data: Data, objective: Any
    ) -> tuple[Any, Inner]:
        keys = jax.random.split(key, config.inner_steps)
        inner, _ = jax.lax.scan(
            lambda state, k: (train_step(outer, state, k, data.train), None), inner, keys
        )
        training_cost = cost(inner.params, jnp.exp(outer.log_l1), data.train)
        held_out_loss = task.loss_fn(inner.params, data.held_out)
        scores = jnp.stack([training_cost, held_out_loss])
        return scores[objective], inner._replace(scores=scores, age=inner.age + 1)

    def measure(params: Any, split: Any) -> tuple[Any, Any]:
        logits = module.apply({"params": params}, split[0])
        return task.loss_fn(params, split), jnp.mean(logits.argmax(-1) == split[1])

    def cut(seed: int) -> Data:
        images, labels = (
            jnp.concatenate(parts) for parts in zip(task.train, task.validation, strict=True)
        )
        order = np.random.RandomState(seed).permutation(len(labels))
        train, rest = np.split(order, [config.num_train])
        held_out = rest[: config.num_held_out]
        parts = [(images[i], labels[i]) for i in (train, held_out)]
        return Data(*parts, task.test)

    return InnerProblem(init, unroll, measure, cut)
