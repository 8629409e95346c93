"""Four losses of growing difficulty on which estimators are compared."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib.classifier import build_task, cross_entropy
from experiments.lib.contenders import Setting
from experiments.lib.data import Dataset, Split, load_dataset
from experiments.lib.errors import UserError
from experiments.lib.models import MLP

ProblemName = Literal["quadratic", "rosenbrock", "digits", "mnist"]

_DIMENSIONS = {"quadratic": 100, "rosenbrock": 20}
_CONDITION = 100.0


@dataclasses.dataclass(frozen=True)
class Problem:
    """A loss, where to start, and how long to train on it.

    Attributes:
        name: For tables.
        title: For figures.
        loss_fn: `loss_fn(params, batch) -> scalar`.
        init: `key -> params`.
        data: Arrays that travel as arguments of compiled functions, () where there are none.
        sample: `(key, data) -> batch`.
        scores: `(params, data) -> {"validation": loss, "test": loss}`, with "accuracy" on the test
            part for classifiers; without data both losses are the loss itself.
        queries: Evaluations per step.
        num_steps: Steps of an estimator that uses exactly `queries` per step.
        sigma: Smoothing radius of all estimators.
        sgd_center: Middle of the grid of first-step lengths under SGD.
        adam_center: Middle of the grid of learning rates under Adam.
        path_length: Length of the piece of gradient descent at whose end estimates are judged.
        examples: Examples per evaluation; 1 where a query is just a number.
        num_tuning_seeds: Seeds on which learning rates are chosen.
    """

    name: ProblemName
    title: str
    loss_fn: Callable[[Any, Any], jax.Array]
    init: Callable[[jax.Array], Any]
    data: Any
    sample: Callable[[jax.Array, Any], Any]
    scores: Callable[[Any, Any], dict[str, jax.Array]]
    queries: int
    num_steps: int
    sigma: float
    sgd_center: float
    adam_center: float
    path_length: float
    examples: int = 1
    num_tuning_seeds: int = 5

    @property
    def example(self) -> Any:
        """Parameters of the right shapes."""
        return jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(self.init, jax.random.key(0)),
        )

    @functools.cached_property
    def setting(self) -> Setting:
        """What estimators are built for."""
        starts = jax.vmap(self.init)(jax.random.split(jax.random.key(0), 16))
        batch = self.sample(jax.random.key(0), self.data)
        losses = jax.vmap(lambda params: self.loss_fn(params, batch))(starts)
        return Setting(self.queries, self.sigma, self.example, float(jnp.mean(losses)))

    @property
    def dimension(self) -> int:
        """Number of parameters d."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.example))

    def describe(self) -> dict[str, Any]:
        """Returns what a table has to say about it."""
        names = (
            "title",
            "dimension",
            "queries",
            "num_steps",
            "sigma",
            "examples",
            "num_tuning_seeds",
        )
        return {name: getattr(self, name) for name in names}


def build_problem(name: ProblemName, num_steps: int | None, data_dir: str | None) -> Problem:
    """Builds one of the problems.

    Args:
        name: Which.
        num_steps: Steps of the run; None for the problem's own number.
        data_dir: Folder with prepared data, for `mnist`.

    Raises:
        UserError: If MNIST is not prepared.
    """
    builders = {
        "quadratic": _quadratic,
        "rosenbrock": _rosenbrock,
        "digits": lambda: _classifier("digits", load_dataset("digits", None), (), 64, 1),
        "mnist": lambda: _classifier("mnist", _load_mnist(data_dir), (16,), 64, 4),
    }
    problem = builders[name]()
    return problem if num_steps is None else dataclasses.replace(problem, num_steps=num_steps)


def _load_mnist(data_dir: str | None) -> Dataset:
    try:
        return load_dataset("mnist", data_dir)
    except UserError as error:
        hint = "or leave it out: --problems quadratic rosenbrock digits"
        raise UserError(f"{error}; {hint}") from error


def _quadratic() -> Problem:
    """Half the sum of h_i (Q x)_i^2, h from 1 down to 1 / condition, Q a fixed random rotation."""
    dimension = _DIMENSIONS["quadratic"]
    random = np.random.RandomState(0)
    rotation = np.linalg.qr(random.normal(size=(dimension, dimension)))[0]
    curvatures = np.geomspace(1, 1 / _CONDITION, dimension)
    root = jnp.asarray(np.sqrt(curvatures)[:, None] * rotation, jnp.float32)

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        del batch
        return 0.5 * jnp.sum(jnp.matmul(root, params["x"], precision="highest") ** 2)

    return _analytic(
        "quadratic",
        f"quadratic, d = {dimension}, condition {_CONDITION:g}",
        loss_fn,
        lambda key: {"x": jax.random.normal(key, (dimension,), "float32")},
        queries=dimension // 2,
        num_steps=300,
        sigma=0.01,
        sgd_center=2.0,
        adam_center=0.1,
        path_length=1.0,
    )


def _rosenbrock() -> Problem:
    """The chained Rosenbrock function, from near the usual start (-1.2, 1, -1.2, 1, ...)."""
    dimension = _DIMENSIONS["rosenbrock"]

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        del batch
        x = params["x"]
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    def init(key: jax.Array) -> Any:
        usual = jnp.tile(jnp.asarray([-1.2, 1.0], "float32"), dimension // 2)
        return {"x": usual + 0.1 * jax.random.normal(key, (dimension,), "float32")}

    return _analytic(
        "rosenbrock",
        f"Rosenbrock, d = {dimension}",
        loss_fn,
        init,
        queries=16,
        num_steps=1000,
        sigma=0.01,
        sgd_center=0.5,
        adam_center=0.1,
        path_length=0.1,
    )


def _analytic(name: ProblemName, title: str, loss_fn: Any, init: Any, **settings: Any) -> Problem:
    def scores(params: Any, data: Any) -> dict[str, jax.Array]:
        value = loss_fn(params, data)
        return {"validation": value, "test": value}

    return Problem(
        name=name,
        title=title,
        loss_fn=loss_fn,
        init=init,
        data=(),
        sample=lambda key, data: data,
        scores=scores,
        **settings,
    )


def _classifier(
    name: ProblemName, dataset: Dataset, hidden: tuple[int, ...], batch_size: int, pool: int
) -> Problem:
    """Mean cross-entropy of a perceptron (without hidden layers: logistic regression)."""
    module = MLP(hidden=hidden, num_classes=dataset.num_classes)
    task = build_task(module, _pooled(dataset, pool))
    data = {"train": task.train, "validation": task.validation, "test": task.test}

    def sample(key: jax.Array, data: Any) -> Any:
        images, labels = data["train"]
        chosen = jax.random.randint(key, (batch_size,), 0, labels.shape[0])
        return images[chosen], labels[chosen]

    def scores(params: Any, data: Any) -> dict[str, jax.Array]:
        images, labels = data["test"]
        logits = module.apply({"params": params}, images)
        return {
            "validation": task.loss_fn(params, data["validation"]),
            "test": cross_entropy(logits, labels),
            "accuracy": jnp.mean(jnp.argmax(logits, -1) == labels),
        }

    def init(key: jax.Array) -> Any:
        return module.init(key, jnp.zeros((1, *task.train[0].shape[1:])))["params"]

    inputs = int(np.prod(task.train[0].shape[1:]))
    sizes = "-".join(str(size) for size in (inputs, *hidden, dataset.num_classes))
    count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, jax.random.key(0))))
    kind = f"{sizes} perceptron" if hidden else f"{sizes} logistic regression"
    return Problem(
        name=name,
        title=f"{name}, {kind}, d = {count:,}",
        loss_fn=task.loss_fn,
        init=init,
        data=data,
        sample=sample,
        scores=scores,
        queries=64,
        num_steps=200,
        sigma=0.05,
        sgd_center=1.0,
        adam_center=0.03,
        path_length=0.2,
        examples=batch_size,
        num_tuning_seeds=1,
    )


def _pooled(dataset: Dataset, side: int) -> Dataset:
    """Averages squares of pixels once, instead of in every evaluation."""
    if side == 1:
        return dataset

    def pool(split: Split) -> Split:
        count, height, width, _ = split.images.shape
        cut = split.images.reshape(count, height // side, side, width // side, side, 1)
        return Split(cut.mean(axis=(2, 4)), split.labels)

    return dataclasses.replace(
        dataset,
        train=pool(dataset.train),
        validation=pool(dataset.validation),
        test=pool(dataset.test),
    )
