"""Contests of `experiments.rso`: one network trained by random search, or by its SGD twin."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax.flax
from experiments.lib.classifier import Task
from experiments.lib.errors import UserError
from experiments.lib.progress import Progress
from experiments.lib.rso_models import ModelName, build_network, with_statistics
from zojax import search

_PARTS = 20  # of a round, between which progress is shown
_EVALUATED_AT_ONCE = 2_500
_STATISTICS = 2_000  # images behind the statistics of batch normalisation, as published
_FORWARDS_OF_A_STEP = 3  # a backward pass is counted as two forward passes


@dataclasses.dataclass(frozen=True)
class Contest:
    """What is trained, and how.

    Attributes:
        model: The network.
        batch_size: Images per mini-batch.
        is_search: Random search; otherwise SGD by back-propagation.
    """

    model: ModelName
    batch_size: int
    is_search: bool = True

    @property
    def label(self) -> str:
        """For tables and files."""
        return f"{self.model}, {'batch' if self.is_search else 'SGD, batch'} {self.batch_size}"


class Carry(NamedTuple):
    """State of a search and its counts so far.

    Attributes:
        state: Of the kernel.
        accepted: Changes taken, int32; of this round.
        nonfinite: Evaluations that were not finite, int32; of this round.
    """

    state: search.RSOState
    accepted: jax.Array
    nonfinite: jax.Array


def cross_entropies(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns one loss per example."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


class Scorer:
    """Accuracy and loss of a network as it would be used: with stored statistics."""

    def __init__(self, config: Any, task: Task, model: ModelName, num_classes: int) -> None:
        """Prepares the forward pass.

        Args:
            config: For the size of the network.
            task: The data.
            model: The network.
            num_classes: Number of outputs.
        """
        build = lambda training: build_network(  # noqa: E731
            model, num_classes=num_classes, is_training=training, hidden=config.hidden
        )
        self.training, used = build(True), build(False)
        self._task = task

        @jax.jit
        def forward(params: Any, statistics: jax.Array, images: jax.Array) -> jax.Array:
            return used.apply(with_statistics(self.training, params, statistics), images)

        self._forward = forward

    def score(self, params: Any, part: tuple[jax.Array, jax.Array]) -> tuple[float, float]:
        """Returns accuracy and mean cross-entropy.

        Args:
            params: The weights.
            part: Images and labels.
        """
        images, labels = part
        statistics = self._task.train[0][:_STATISTICS]
        starts = range(0, len(images), _EVALUATED_AT_ONCE)
        logits = jnp.concatenate(
            [self._forward(params, statistics, images[i : i + _EVALUATED_AT_ONCE]) for i in starts]
        )
        accuracy = float((logits.argmax(-1) == labels).mean())
        return accuracy, float(cross_entropies(logits, labels).mean())


def build_kernel(
    config: Any, batch_size: int, network: nn.Sequential, variables: Any, task: Task
) -> search.RSO:
    """Returns the search that the configuration describes.

    Args:
        config: The configuration.
        batch_size: Images per mini-batch.
        network: In its training form.
        variables: What its `init` returned.
        task: The data.
    """
    options = {
        "num_rounds": config.num_rounds,
        "block_size": config.block_size,
        "batch_size": batch_size,
        "group_size": config.group_size,
        "final_scale": config.final_scale,
        "weight_decay": config.weight_decay,
        "order": config.order,
    }
    if not config.black_box:
        stages = zojax.flax.linen_stages(network, variables, task.train[0][:2])
        return search.layered_rso(stages, cross_entropies, **options)

    def loss_fn(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits, _ = network.apply({"params": params}, images, mutable=["batch_stats"])
        return cross_entropies(logits, labels)

    return search.rso(loss_fn, **options)


class Searcher:
    """Rounds of random search on one network."""

    def __init__(self, config: Any, task: Task, contest: Contest, num_classes: int) -> None:
        """Initialises the network and prepares the program.

        Args:
            config: The configuration.
            task: The data.
            contest: What is trained.
            num_classes: Number of outputs.

        Raises:
            UserError: If network, data and options do not go together.
        """
        self.scorer = Scorer(config, task, contest.model, num_classes)
        init_key, self._key = jax.random.split(jax.random.key(config.seed))
        self._task, self._contest = task, contest
        try:
            variables = jax.jit(self.scorer.training.init)(init_key, task.train[0][:2])
            params = variables["params"]
            self._kernel = build_kernel(
                config, contest.batch_size, self.scorer.training, variables, task
            )
            zero = jnp.zeros((), jnp.int32)
            self.carry = Carry(self._kernel.init(params), zero, zero)
            jax.eval_shape(self._kernel.step, self.carry.state, self._key, *task.train)
            self.flops_per_round = self._kernel.flops(params, *task.train)
        except (ValueError, ZeroDivisionError) as error:
            raise UserError(f"{contest.label} does not work here: {error}") from error
        self.steps = self._kernel.steps_per_round(params)
        self.queries_per_round = self._kernel.num_queries(params)
        self.updates_per_round = self._kernel.order(params).visits
        self.num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        self._advance = self._compile()

    def _compile(self) -> Callable[..., Carry]:
        @jax.jit
        def advance(carry: Carry, count: Any, key: Any, images: Any, labels: Any) -> Carry:
            def one(_: Any, carry: Carry) -> Carry:
                state, info = self._kernel.step(carry.state, key, images, labels)
                taken = jnp.sum(info.choices > 0, dtype=jnp.int32)
                return Carry(state, carry.accepted + taken, carry.nonfinite + info.num_nonfinite)

            return jax.lax.fori_loop(0, count, one, carry)

        return advance

    def compile(self) -> float:
        """Compiles; returns the seconds it took."""
        since = time.perf_counter()
        none = jnp.zeros((), jnp.int32)
        jax.block_until_ready(self._advance(self.carry, none, self._key, *self._task.train))
        return time.perf_counter() - since

    def round(self, number: int, show: Callable[[int], None]) -> dict[str, Any]:
        """Visits every weight once; returns the metrics.

        Args:
            number: Of the round, from 1.
            show: Receives the number of steps done of this round.
        """
        zero = jnp.zeros((), jnp.int32)
        self.carry = self.carry._replace(accepted=zero, nonfinite=zero)
        stops = np.unique(np.linspace(0, self.steps, _PARTS + 1).astype(int))
        for start, stop in zip(stops[:-1], stops[1:], strict=True):
            count = jnp.asarray(stop - start, jnp.int32)
            self.carry = self._advance(self.carry, count, self._key, *self._task.train)
            jax.block_until_ready(self.carry)
            show(int(stop))
        queries = number * self.queries_per_round
        return {
            "updates": number * self.updates_per_round,
            "accepted": int(self.carry.accepted),
            "nonfinite": int(self.carry.nonfinite),
            "queries": queries,
            "sample_forwards": queries * self._contest.batch_size,
            "flops": number * self.flops_per_round,
        }


def train_twin(
    config: Any,
    task: Task,
    contest: Contest,
    num_classes: int,
    record: Callable[[int, dict[str, Any], Any], None],
) -> None:
    """Trains the same network by SGD and back-propagation, one epoch for every round.

    Args:
        config: The configuration.
        task: The data.
        contest: What is trained.
        num_classes: Number of outputs.
        record: Receives `(epoch, metrics, params)`.
    """
    scorer = Scorer(config, task, contest.model, num_classes)
    init_key, key = jax.random.split(jax.random.key(config.seed))
    network = scorer.training
    params = jax.jit(network.init)(init_key, task.train[0][:2])["params"]
    steps = len(task.train[1]) // contest.batch_size
    schedule = optax.cosine_decay_schedule(config.twin_learning_rate, steps * config.num_rounds)
    tx = optax.sgd(schedule, momentum=0.9)

    def loss_fn(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits, _ = network.apply({"params": params}, images, mutable=["batch_stats"])
        return cross_entropies(logits, labels).mean()

    @jax.jit
    def epoch(params: Any, state: Any, key: Any, images: Any, labels: Any) -> Any:
        order = jax.random.permutation(key, len(labels))

        def one(i: Any, carry: Any) -> Any:
            params, state = carry
            chosen = jax.lax.dynamic_slice_in_dim(order, i * contest.batch_size, contest.batch_size)
            grads = jax.grad(loss_fn)(params, images[chosen], labels[chosen])
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, steps, one, (params, state))

    state, seconds = tx.init(params), 0.0
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    with Progress(config.num_rounds, contest.label) as progress:
        for number in range(1, config.num_rounds + 1):
            since = time.perf_counter()
            params, state = epoch(params, state, jax.random.fold_in(key, number), *task.train)
            jax.block_until_ready(params)
            seconds += time.perf_counter() - since
            accuracy, loss = scorer.score(params, task.validation)
            row = {
                "updates": number * steps * size,
                "queries": number * steps,
                "sample_forwards": _FORWARDS_OF_A_STEP * number * steps * contest.batch_size,
                "seconds": seconds,
                "accuracy": accuracy,
                "loss": loss,
            }
            if number == config.num_rounds:
                row["test_accuracy"] = scorer.score(params, task.test)[0]
            record(number, row, params)
            progress.update(number, loss=loss, accuracy=accuracy)
