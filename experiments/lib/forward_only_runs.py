"""Trainings that differ only in where the gradient comes from, at what rate, and their memory."""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
import zojax.flax
from experiments.lib.classifier import Evaluator, Task, build_task
from experiments.lib.data import Dataset
from experiments.lib.models import MLP
from experiments.lib.training import Carry, Plan, Trainer, make_chunk

MethodName = Literal[
    "back_propagation",
    "activation_noise",
    "activations_only",
    "example_weights",
    "low_rank",
    "gaussian",
]
SITES = {
    "activation_noise": "auto",
    "activations_only": "activations",
    "example_weights": "example_weights",
}
"""Methods that see losses of examples and inputs of layers, and their choice of sites."""


class StridedCNN(nn.Module):
    """Convolutions with stride 2 and ReLU, then a linear layer.

    Attributes:
        num_classes: Number of outputs.
        features: Channels of each convolution.
    """

    num_classes: int
    features: tuple[int, ...]

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images (batch, height, width, channels) to logits (batch, num_classes)."""
        x = images
        for i, channels in enumerate(self.features):
            size = 5 if i == 0 else 3
            x = nn.relu(nn.Conv(channels, (size, size), strides=(2, 2))(x))
        return nn.Dense(self.num_classes)(x.reshape((x.shape[0], -1)))


@dataclasses.dataclass(frozen=True)
class Bench:
    """One network on one data set.

    Attributes:
        config: The command line.
        task: The mean loss and the data.
        per_example: The same with one loss per example.
    """

    config: Any
    task: Task
    per_example: Task

    @classmethod
    def of(cls, config: Any, dataset: Dataset) -> "Bench":
        """Builds the network and prepares the images.

        Args:
            config: The command line.
            dataset: The data.
        """
        num_classes = len(dataset.class_names)
        module: nn.Module = MLP(hidden=config.hidden, num_classes=num_classes)
        if config.model == "cnn":
            module = StridedCNN(num_classes, config.features)
        task = build_task(module, dataset)
        losses = zojax.flax.linen_loss(module, optax.softmax_cross_entropy_with_integer_labels)
        return cls(config, task, dataclasses.replace(task, loss_fn=losses))

    def estimator(self, method: MethodName) -> zojax.Estimator | None:
        """Returns the source of gradients; None for back-propagation.

        Args:
            method: Its name.
        """
        config = self.config
        if method in SITES:
            return zojax.activation_noise(config.num_draws, config.sigma, sites=SITES[method])
        if method == "back_propagation":
            return None
        directions = zojax.low_rank(1) if method == "low_rank" else zojax.gaussian()
        return zojax.finite_difference(
            directions=directions, num_directions=config.num_directions, sigma=config.es_sigma
        )

    def loss_of(self, method: MethodName) -> Task:
        """Returns the task that a method trains on."""
        return self.per_example if method in SITES else self.task

    def batch_size(self, method: MethodName) -> int:
        """Returns the examples per step of a method."""
        return (
            self.config.es_batch_size
            if method in ("low_rank", "gaussian")
            else (self.config.batch_size)
        )

    def budget(self, method: MethodName) -> float:
        """Returns the sample-forwards of a method."""
        return {
            "back_propagation": self.config.backprop_forwards,
            "low_rank": self.config.es_forwards,
            "gaussian": self.config.gaussian_forwards,
        }.get(method, self.config.sample_forwards)

    def init(self, seed: int) -> Any:
        """Returns the parameters that all methods of a seed start from."""
        return self.task.init(jax.random.fold_in(jax.random.key(seed), 1))

    def train(
        self, method: MethodName, rate: float, budget: float, seed: int
    ) -> tuple[Any, list[dict[str, Any]]]:
        """Trains once, with Adam and a learning rate that falls to 0.

        Args:
            method: Where the gradient comes from.
            rate: The first learning rate.
            budget: Sample-forwards; a first-order step counts as three.
            seed: Of network, batches and noise.

        Returns:
            `(parameters, rows at every evaluation)`.
        """
        est, batch = self.estimator(method), self.batch_size(method)
        params, key = self.init(seed), jax.random.key(seed)
        queries = 1 if est is None else est.num_queries(params)
        forwards = batch * (3 if est is None else queries)
        num_steps = max(1, round(budget / forwards))
        plan = Plan(num_steps, -(-num_steps // self.config.num_evals), queries, forwards)
        adam = optax.adam(optax.cosine_decay_schedule(rate, num_steps))
        tx: Any = adam
        if est is not None:
            execution = zojax.chunked(min(8, self.config.num_directions))
            source = zojax.as_gradient_transformation(
                est,
                jax.random.fold_in(key, 2),
                execution=execution if method in ("low_rank", "gaussian") else None,
            )
            tx = optax.chain(source, adam)
        task = self.loss_of(method)
        chunk = make_chunk(task, tx, batch, est is None)
        trainer = Trainer(task, chunk, jax.random.fold_in(key, 3), plan, method)
        carry = Carry(params, tx.init(params), jnp.zeros((), jnp.int32))
        rows: list[dict[str, Any]] = []
        carry, _ = trainer.run(carry, 0.0, rows.append, lambda *_: None)
        return carry.params, rows

    def tune(self, method: MethodName) -> tuple[float, dict[str, float]]:
        """Chooses a learning rate by validation accuracy after short trainings of another seed.

        Args:
            method: Where the gradient comes from.

        Returns:
            `(the best, accuracy of each)`; without trainings where there is one to choose from.
        """
        if len(self.config.learning_rates) == 1:
            return self.config.learning_rates[0], {}
        budget = self.budget(method) * self.config.tuning_share
        scores: dict[str, float] = {}
        for rate in self.config.learning_rates:
            _, rows = self.train(method, rate, budget, self.config.seed + 1_000)
            scores[f"{rate:g}"] = rows[-1]["accuracy"]
        best = max(self.config.learning_rates, key=lambda rate: scores[f"{rate:g}"])
        return best, scores

    def test_accuracy(self, params: Any) -> float:
        """Returns the accuracy on the test part."""
        return Evaluator(self.task.module).score(params, self.task.test)[0]

    def memory(self, method: MethodName | Literal["inference"]) -> int:
        """Returns the bytes of temporaries that XLA plans for one gradient on `batch_size` images.

        Args:
            method: Where the gradient comes from; `inference` is one mean loss.
        """
        params = self.init(self.config.seed)
        images, labels = (x[: self.config.batch_size] for x in self.task.train)
        key = jax.random.key(0)
        if method == "inference":
            run: Any = lambda p, k, b: self.task.loss_fn(p, b)  # noqa: E731
        elif (est := self.estimator(method)) is None:
            run = lambda p, k, b: jax.grad(self.task.loss_fn)(p, b)  # noqa: E731
        else:
            one = zojax.value_and_grad(
                self.loss_of(method).loss_fn, est, execution=_one_at_a_time(method)
            )
            run = lambda p, k, b: one(p, k, b)[1]  # noqa: E731
        compiled = jax.jit(run).lower(params, key, (images, labels)).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    def cosines(self) -> list[dict[str, Any]]:
        """Predicts and measures cosines on 128 images, at the start and after Adam steps.

        Returns:
            Rows with `steps`, `method` (of those that see losses of examples), `num_draws`,
            `predicted` (from forward passes and the gradient's length) and `measured` (mean of
            16 estimates).
        """
        batch = tuple(x[:128] for x in self.task.train)
        loss, losses = self.task.loss_fn, self.per_example.loss_fn
        params, rows, done = self.init(self.config.seed), [], 0
        tx = optax.adam(1e-3)
        state = tx.init(params)

        def step(i: Any, carry: Any) -> Any:
            params, state = carry
            chosen = jax.random.randint(
                jax.random.fold_in(jax.random.key(7), i), (128,), 0, len(self.task.train[1])
            )
            grad = jax.grad(loss)(params, tuple(x[chosen] for x in self.task.train))
            updates, state = tx.update(grad, state, params)
            return optax.apply_updates(params, updates), state

        advance = jax.jit(lambda *carry, start, stop: jax.lax.fori_loop(start, stop, step, carry))
        for steps in self.config.cosine_steps:
            params, state = advance(params, state, start=done, stop=steps)
            done, grad = steps, jax.grad(loss)(params, batch)
            for method in (m for m in self.config.methods if m in SITES):
                for num_draws in self.config.cosine_draws:
                    est = zojax.activation_noise(
                        num_draws, self.config.sigma, sites=SITES[method], chunk_size=8
                    )
                    expected = zojax.activations.expected_cosine(
                        est,
                        losses,
                        params,
                        jax.random.key(1),
                        args=(batch,),
                        grad=grad,
                        num_probes=256,
                    )
                    one = zojax.value_and_grad(losses, est)
                    drawn = [one(params, jax.random.key(i), batch)[1] for i in range(2, 18)]
                    measured = float(np.mean([cosine(g, grad) for g in drawn]))
                    row = {"steps": steps, "method": method, "num_draws": num_draws}
                    rows.append(row | {"predicted": expected.total, "measured": measured})
        return rows


def _one_at_a_time(method: str) -> zojax.Execution | None:
    return None if method in SITES else zojax.chunked(1)


def cosine(a: Any, b: Any) -> float:
    """Returns the cosine of two pytrees."""
    x, y = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)]) for t in (a, b))
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
