"""The trainable of `experiments.tune`: many networks with hyperparameters of their own."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
from experiments.lib.classifier import Task, build_task, cross_entropy
from experiments.lib.data import Dataset, Split
from experiments.lib.models import build_model

NUM_UNITS = 81
"""A full training is cut into this many equal units of sample-forwards."""
RUNGS = (1, 2, 3, 5, 9, 16, 27, 47, 81)
"""Units after which a score is reported; schedulers decide at the first from 1, 4 and 16 on."""
MAX_DIRECTIONS = 64
WORST_SCORE = 2 * float(np.log(10))
"""Scores are clipped at twice the cross-entropy of guessing: how bad is bad does not matter."""
_MIN_HELD_OUT = 500
_CHUNK = 16  # directions at once, of every network


def build_tuning_task(dataset: Dataset, hidden: tuple[int, ...], pool: int) -> Task:
    """Makes the task; where the validation part is too small to rank by, a half is held out.

    Args:
        dataset: The data; its test part is carried along, unused.
        hidden: Hidden sizes of the perceptron.
        pool: Side of the average pooling in front of it.
    """
    if len(dataset.validation.labels) < _MIN_HELD_OUT:
        everything = merge(dataset.train, dataset.validation)
        order = np.random.RandomState(0).permutation(len(everything.labels))
        halves = [
            Split(*(x[i] for x in vars(everything).values())) for i in np.array_split(order, 2)
        ]
        dataset = dataclasses.replace(dataset, train=halves[0], validation=halves[1])
    return build_task(_module(dataset, hidden, pool), dataset)


def build_final_task(dataset: Dataset, hidden: tuple[int, ...], pool: int) -> Task:
    """Makes the task of the final training: all that is not test is trained on.

    Args:
        dataset: The data.
        hidden: Hidden sizes of the perceptron.
        pool: Side of the average pooling in front of it.
    """
    everything = merge(dataset.train, dataset.validation)
    dataset = dataclasses.replace(dataset, train=everything)
    return build_task(_module(dataset, hidden, pool), dataset)


def merge(first: Split, second: Split) -> Split:
    """Puts two splits together."""
    return Split(
        np.concatenate([first.images, second.images]), np.concatenate([first.labels, second.labels])
    )


def _module(dataset: Dataset, hidden: tuple[int, ...], pool: int) -> Any:
    return build_model(
        "mlp", hidden=hidden, features=(1,), num_classes=dataset.num_classes, pool=pool
    )


def choose_pool(config: Any, dataset: Dataset) -> int:
    """Returns the side of the pooling: the configuration's, or one for a CPU-sized network."""
    return config.pool or (1 if dataset.name == "digits" else 4)


class Trainable:
    """Values-only training of a population, one network per configuration.

    A step estimates the gradient of cross-entropy plus L1 penalty by central differences along
    Rademacher directions (2 n queries on one batch) and hands it to heavy-ball SGD. Batches, noise
    and the initial network depend on the seed and the step alone, not on who else is trained: a
    configuration has one learning curve, whichever trials share its program.
    """

    def __init__(self, task: Task, batch_size: int, steps_per_unit: int, seed: int) -> None:
        """Prepares the compiled steps.

        Args:
            task: The loss and its data.
            batch_size: Images per step.
            steps_per_unit: Steps in a unit with `MAX_DIRECTIONS`; fewer directions get more steps.
            seed: Of the initial network, the batches and the noise.
        """
        self._task, self._batch_size, self._steps = task, batch_size, steps_per_unit
        self._key = jax.random.key(seed)
        self.unit_forwards = 2 * MAX_DIRECTIONS * batch_size * steps_per_unit
        self._advance = jax.jit(self._advance_all, static_argnames="num_directions")
        self._score = jax.jit(jax.vmap(self._score_one, (0, None)))

    def init(self, count: int) -> Any:
        """Returns the state of `count` untrained networks, leaves with that leading axis."""
        params = self._task.init(jax.random.fold_in(self._key, 0))
        state = (params, optax.sgd(0.0, 0.0).init(params))
        return jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], count, 0), state)

    def advance(
        self, state: Any, configurations: Sequence[Mapping[str, Any]], start: int, stop: int
    ) -> Any:
        """Trains from one unit to another.

        Args:
            state: Of all networks, from `init` or from here.
            configurations: One per network, all with the same number of directions.
            start: Units done so far.
            stop: Units done afterwards.
        """
        (log2_directions,) = {c["log2_directions"] for c in configurations}
        names = ("sigma", "learning_rate", "l1", "momentum")
        hypers = {k: np.array([c[k] for c in configurations], np.float32) for k in names}
        n, count = 2**log2_directions, len(configurations)
        per_unit = self._steps * MAX_DIRECTIONS // n
        state = self._advance(
            *_fill_up((state, hypers), count),
            start * per_unit,
            stop * per_unit,
            self._key,
            self._task.train,
            num_directions=n,
        )
        return jax.tree.map(lambda x: np.asarray(x)[:count], state)

    def score(self, state: Any) -> np.ndarray:
        """Returns the clipped held-out cross-entropy, shape (networks,); NaN is kept."""
        count = len(jax.tree.leaves(state)[0])
        params = _fill_up(state[0], count)
        return np.asarray(self._score(params, self._task.validation))[:count]

    def _score_one(self, params: Any, data: Any) -> jax.Array:
        logits = self._task.module.apply({"params": params}, data[0])
        return jnp.minimum(cross_entropy(logits, data[1]), WORST_SCORE)

    def _advance_all(
        self,
        state: Any,
        hypers: Any,
        start: Any,
        stop: Any,
        key: Any,
        data: Any,
        num_directions: int,
    ) -> Any:
        def step(state: Any, h: Any, key: jax.Array, batch: Any) -> Any:
            def loss_fn(params: Any) -> jax.Array:
                penalty = sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(params))
                return self._task.loss_fn(params, batch) + h["l1"] * penalty

            params, opt_state = state
            est = zojax.finite_difference(
                directions=zojax.rademacher(), num_directions=num_directions, sigma=h["sigma"]
            )
            execution = zojax.chunked(min(_CHUNK, num_directions))
            estimate, _ = zojax.estimate(est, loss_fn, params, key, (), execution=execution)
            tx = optax.sgd(h["learning_rate"], h["momentum"])
            updates, opt_state = tx.update(estimate.grad, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        def body(count: jax.Array, state: Any) -> Any:
            # Drawn once for the whole population: common random numbers, and nearly free.
            batch_key, noise_key = jax.random.split(jax.random.fold_in(key, 1 + count))
            chosen = jax.random.randint(batch_key, (self._batch_size,), 0, len(data[1]))
            batch = jax.tree.map(lambda x: x[chosen], data)
            return jax.vmap(step, (0, 0, None, None))(state, hypers, noise_key, batch)

        return jax.lax.fori_loop(start, stop, body, state)


def _fill_up(tree: Any, count: int) -> Any:
    """Repeats the last network up to a power of two, so that all populations need few programs."""
    rows = np.minimum(np.arange(1 << (count - 1).bit_length()), count - 1)
    return jax.tree.map(lambda x: np.asarray(x)[rows], tree)
