"""Random against coordinate-wise gradient estimates, on a small convolutional network.

    python -m experiments.rge_cge

Trains one network several times with the same optimiser, batches and number of steps; only the
source of the gradient differs. Results of the default settings: docs/results/rge_cge.
"""

import dataclasses
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

# Before NumPy is imported: the QR decompositions of orthogonal directions are small, and on busy
# cores OpenBLAS's waiting threads make them a hundred times slower.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

import zojax  # noqa: E402
from experiments.lib import cli  # noqa: E402
from experiments.lib.adjustable_cnn import AdjustableCNN, batch_loss, evaluated_in_chunks  # noqa: E402
from experiments.lib.classifier import Task, cross_entropy  # noqa: E402
from experiments.lib.compilation_cache import keep_compiled_programs
from experiments.lib.data import Dataset, Split, load_dataset  # noqa: E402
from experiments.lib.errors import UserError, run_cli  # noqa: E402
from experiments.lib.progress import Progress  # noqa: E402
from experiments.lib.runs import RunDirectory, check_same_config  # noqa: E402
from experiments.lib.training import Carry, make_chunk  # noqa: E402

NAME = "rge_cge"
FIRST_ORDER_FORWARDS = 3  # a backward pass is counted as two forward passes

MethodName = Literal[
    "first_order",
    "cge",
    "orthogonal",
    "gaussian",
    "block_part",
    "orthogonal_part",
    "gaussian_part",
]

LABELS: dict[str, str] = {
    "first_order": "back-propagation",
    "cge": "all coordinates (CGE)",
    "orthogonal": "orthogonal directions",
    "gaussian": "i.i.d. Gaussian directions",
    "block_part": "random coordinates",
    "orthogonal_part": "orthogonal directions",
    "gaussian_part": "i.i.d. Gaussian directions",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains one network with gradients from several sources, and compares them.

    The network has `depth` layers of 3x3 convolution, batch normalisation, ReLU and 2x2 max
    pooling, then a global average and a linear layer. The methods are back-propagation
    (first_order), one difference per coordinate (cge), as many orthogonal or i.i.d. Gaussian
    directions as there are parameters (orthogonal, gaussian), and a fraction of that number
    (block_part: coordinates; orthogonal_part; gaussian_part). Every step along a direction has the
    same length mu.

    Writes runs/rge_cge/<time>-<seed>/ with config.json, metrics.jsonl (one line per finished
    training), summary.json, table.md and figures/.
    """

    preset: Literal["default", "quick", "cifar10"] = "default"
    """quick: digits, under a minute. cifar10: the source's sizes at depth 1, for an accelerator."""
    dataset: Literal["fashion_mnist", "mnist", "digits", "cifar10"] = "fashion_mnist"
    """Images to classify."""
    data_dir: str | None = None
    """Folder with prepared data; then $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    size: int = 16
    """Side that the images are resized to (linear, with antialiasing)."""

    depth: int = 1
    """Convolutional layers, 1 to 5; each halves the side."""
    channels: int = 18
    """Channels of every convolution."""

    methods: tuple[MethodName, ...] = tuple(LABELS)  # type: ignore[assignment]
    """Sources of the gradient to compare."""
    fraction: float = 0.25
    """Directions of the *_part methods, as a fraction of the number of parameters."""
    stencil: Literal["forward", "central"] = "forward"
    """Points per direction: central evaluates both sides."""
    mu: float = 5e-3
    """Length of the step along a direction, in parameter units (for Gaussian directions the root
    mean square of the length)."""

    steps: int = 240
    """Steps of every training."""
    batch_size: int = 64
    """Images per step, shared by all points of the step."""
    learning_rate: float = 0.1
    """Highest learning rate: a linear warm-up, then a cosine to zero. The same for all methods."""
    warmup: float = 0.06
    """Warm-up as a fraction of the steps."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay, added to the gradient."""

    first_seed: int = 0
    """The first seed; a seed sets parameters, batches and directions."""
    num_seeds: int = 3
    """Seeds per method, counted up from the first."""
    num_evals: int = 10
    """Evaluations on the validation part in a training."""
    statistics_images: int = 1_000
    """Training images whose batch statistics normalise at evaluation."""
    chunk: int = 4
    """Points evaluated at once."""

    output: str = "runs"
    """Folder for runs."""
    resume: Annotated[str | None, tyro.conf.arg(metavar="RUN_DIR")] = None
    """Continue a run: trainings that are finished are not done again."""

    def __post_init__(self) -> None:
        """Checks the values."""
        counts = ("size", "channels", "steps", "num_seeds", "num_evals", "chunk")
        for name in (*counts, "statistics_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be >= 2 for batch norm, got {self.batch_size}")
        for name in ("mu", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, got {getattr(self, name)}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {self.fraction}")
        if not 0 <= self.warmup < 1 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"warmup and momentum must be in [0, 1), got {self.warmup} and {self.momentum}"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be >= 0 and finite, got {self.weight_decay}")
        if not 1 <= self.depth <= 5:
            raise ValueError(f"depth must be 1 to 5, got {self.depth}")
        if self.size % 2**self.depth:
            raise ValueError(
                f"size must be a multiple of {2**self.depth} for depth {self.depth}, "
                f"got {self.size}"
            )
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods must be one or more different names, got {self.methods}")
        if not 0 <= self.first_seed <= 2**32 - self.num_seeds:
            raise ValueError(f"first_seed must be in [0, 2^32 - num_seeds], got {self.first_seed}")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"dataset": "digits", "size": 8, "steps": 100, "num_seeds": 1, "num_evals": 5},
    # 50 epochs of 50,000 images would be 9,766 steps; 5,000 of those images are for validation.
    "cifar10": {
        "dataset": "cifar10",
        "size": 32,
        "steps": 9_800,
        "batch_size": 256,
        "chunk": 128,
        "num_evals": 50,
    },
}


def build_task(config: Config, dataset: Dataset) -> Task:
    """Resizes and standardises the images and makes the loss.

    Args:
        config: The configuration.
        dataset: The data.
    """

    @jax.jit
    def resize(images: jax.Array) -> jax.Array:
        shape = (images.shape[0], config.size, config.size, images.shape[3])
        return jax.image.resize(images, shape, "linear", antialias=True)

    def resized(images: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [np.asarray(resize(images[i : i + 5_000])) for i in range(0, len(images), 5_000)]
        )

    train = resized(dataset.train.images)
    mean, deviation = train.mean((0, 1, 2)), train.std((0, 1, 2))

    def prepare(split: Split, images: np.ndarray | None = None) -> tuple[jax.Array, jax.Array]:
        images = resized(split.images) if images is None else images
        return jnp.asarray((images - mean) / deviation), jnp.asarray(split.labels)

    module = AdjustableCNN(config.depth, config.channels, dataset.num_classes)
    return Task(
        module=module,
        loss_fn=evaluated_in_chunks(batch_loss(module), config.chunk),
        train=prepare(dataset.train, train),
        validation=prepare(dataset.validation),
        test=prepare(dataset.test),
    )


def count_directions(config: Config, method: str, dimension: int) -> int:
    """Returns the number of directions per step, 0 for back-propagation.

    Args:
        config: The configuration.
        method: One of `LABELS`.
        dimension: Number of parameters.
    """
    if method == "first_order":
        return 0
    return max(1, round(config.fraction * dimension)) if method.endswith("_part") else dimension


def build_estimator(config: Config, method: str, dimension: int) -> zojax.Estimator:
    """Builds the estimator of a method; every step along a direction has length `mu`.

    Args:
        config: The configuration.
        method: One of `LABELS`, but not first_order.
        dimension: Number of parameters.
    """
    stencil = getattr(zojax, config.stencil)
    count = count_directions(config, method, dimension)
    if method == "cge":
        return zojax.coordinate_difference(sigma=config.mu, stencil=stencil)
    if method == "block_part":
        return zojax.coordinate_difference(sigma=config.mu, stencil=stencil, num_coordinates=count)
    directions = zojax.orthogonal() if method.startswith("orthogonal") else zojax.gaussian()
    return zojax.finite_difference(
        directions=directions,
        stencil=stencil,
        num_directions=count,
        sigma=config.mu / dimension**0.5,
    )


def build_transformation(
    config: Config, method: str, dimension: int, key: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Chains a source of gradients with the optimiser that all methods share.

    Args:
        config: The configuration.
        method: One of `LABELS`.
        dimension: Number of parameters.
        key: Key of the directions.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, round(config.warmup * config.steps), config.steps
    )
    optimizer = optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(schedule, momentum=config.momentum),
    )
    if method == "first_order":
        return optax.with_extra_args_support(optimizer)
    est = build_estimator(config, method, dimension)
    return optax.chain(zojax.as_gradient_transformation(est, key), optimizer)


class Evaluator:
    """Accuracy with batch-norm statistics from a fixed part of the training images."""

    def __init__(self, config: Config, task: Task) -> None:
        """Prepares the compiled forward passes.

        Args:
            config: The configuration.
            task: The network and its data.
        """
        module, images = task.module, task.train[0][: config.statistics_images]

        @jax.jit
        def statistics(params: Any, images: jax.Array) -> Any:
            _, stored = module.apply({"params": params}, images, mutable=["batch_stats"])
            return stored

        @jax.jit
        def forward(variables: Any, images: jax.Array) -> jax.Array:
            return module.apply(variables, images, train=False)

        self._images, self._statistics, self._forward = images, statistics, forward

    def score(self, params: Any, split: tuple[jax.Array, jax.Array]) -> tuple[float, float]:
        """Returns accuracy (a fraction) and mean cross-entropy on a split."""
        variables = {"params": params, **self._statistics(params, self._images)}
        images, labels = split
        starts = range(0, len(images), 1_000)
        logits = np.concatenate(
            [np.asarray(self._forward(variables, images[i : i + 1_000])) for i in starts]
        )
        accuracy = float((logits.argmax(-1) == np.asarray(labels)).mean())
        return accuracy, float(cross_entropy(jnp.asarray(logits), labels))


class Keys(NamedTuple):
    """The keys of a seed."""

    init: jax.Array
    directions: jax.Array
    data: jax.Array


def keys_of(seed: int) -> Keys:
    """Returns the keys of a seed: parameters and batches are the same for all methods."""
    return Keys(*jax.random.split(jax.random.key(seed), 3))


class Study:
    """Trains with each method and seed; a method is compiled once for all seeds."""

    def __init__(self, config: Config, task: Task) -> None:
        """Collects the parts.

        Args:
            config: The configuration.
            task: The loss and its data.
        """
        self._config, self._task = config, task
        self._init_module = jax.jit(task.module.init)
        params = jax.eval_shape(task.module.init, jax.random.key(0), task.train[0][:2])["params"]
        self.dimension = sum(leaf.size for leaf in jax.tree.leaves(params))
        self._evaluator = Evaluator(config, task)
        self._chunks: dict[str, Any] = {}
        self._gradients: dict[str, Any] = {}

    def num_queries(self, method: str) -> int:
        """Returns loss evaluations per step; a back-propagation counts as three."""
        if method == "first_order":
            return FIRST_ORDER_FORWARDS
        return build_estimator(self._config, method, self.dimension).num_queries(self._init(0))

    def check(self) -> None:
        """Traces a step of every method, so that what cannot work is found at the start.

        Raises:
            UserError: If a method does not fit the network.
        """
        for method in self._config.methods:
            tx = self._transformation(method, 0)
            batch = jax.tree.map(lambda x: x[:2], self._task.train)

            def step(batch: Any, tx: Any = tx) -> Any:
                params = self._task.module.init(jax.random.key(0), batch[0])["params"]
                value_fn = lambda p: self._task.loss_fn(p, batch)  # noqa: E731
                return tx.update(None, tx.init(params), params, value_fn=value_fn)

            if method == "first_order":
                continue
            try:
                jax.eval_shape(step, batch)
            except ValueError as error:
                raise UserError(f"the method {method} does not work here: {error}") from error

    def run(self, method: str, seed: int) -> dict[str, Any]:
        """Trains once.

        Args:
            method: One of `LABELS`.
            seed: Sets parameters, batches and directions.

        Returns:
            What the training gave, with `curve`, the scores on the validation part on the way.

        Raises:
            UserError: If the loss stops being finite.
        """
        config, keys = self._config, keys_of(seed)
        tx, params = self._transformation(method, seed), self._init(seed)
        if method not in self._chunks:
            loss = batch_loss(self._task.module) if method == "first_order" else self._task.loss_fn
            task = dataclasses.replace(self._task, loss_fn=loss)
            self._chunks[method] = make_chunk(
                task, tx, config.batch_size, first_order=method == "first_order"
            )
        chunk, (images, labels) = self._chunks[method], self._task.train
        carry = Carry(params, tx.init(params), jnp.zeros((), jnp.int32))
        jax.block_until_ready(chunk(carry, jnp.asarray(0, jnp.int32), images, labels, keys.data))
        cosine_start = self._cosine(method, params, seed)
        curve, seconds, interval = [], 0.0, -(-config.steps // config.num_evals)
        with Progress(config.steps, f"{method}, seed {seed}") as progress:
            for done in [*range(interval, config.steps, interval), config.steps]:
                since = time.perf_counter()
                count = jnp.asarray(done - int(carry.step), jnp.int32)
                carry, value = chunk(carry, count, images, labels, keys.data)
                train_loss = float(value)
                seconds += time.perf_counter() - since
                if not math.isfinite(train_loss):
                    raise UserError(
                        f"the training loss of {method} became {train_loss} by step {done}: lower "
                        "--learning-rate or change --mu in a new run"
                    )
                accuracy, loss = self._evaluator.score(carry.params, self._task.validation)
                curve.append(
                    {"step": done, "train_loss": train_loss, "loss": loss, "accuracy": accuracy}
                )
                progress.update(done, loss=loss, accuracy=accuracy)
        test_accuracy, test_loss = self._evaluator.score(carry.params, self._task.test)
        return {
            "method": method,
            "seed": seed,
            "step": config.steps,
            "queries_per_step": self.num_queries(method),
            "validation_accuracy": curve[-1]["accuracy"],
            "test_accuracy": test_accuracy,
            "test_loss": test_loss,
            "cosine_start": cosine_start,
            "cosine_end": self._cosine(method, carry.params, seed),
            "seconds": round(seconds, 2),
            "curve": curve,
        }

    def _init(self, seed: int) -> Any:
        return self._init_module(keys_of(seed).init, self._task.train[0][:2])["params"]

    def _transformation(self, method: str, seed: int) -> optax.GradientTransformationExtraArgs:
        key = keys_of(seed).directions
        return build_transformation(self._config, method, self.dimension, key)

    def _cosine(self, method: str, params: Any, seed: int) -> float:
        """Returns the cosine between the estimate and the gradient on one batch of the seed."""
        if method == "first_order":
            return 1.0
        if method not in self._gradients:
            est = build_estimator(self._config, method, self.dimension)
            exact = jax.grad(batch_loss(self._task.module))

            @jax.jit
            def cosine(params: Any, batch: Any, key: jax.Array) -> jax.Array:
                _, estimated = zojax.value_and_grad(self._task.loss_fn, est)(params, key, batch)
                first = jax.flatten_util.ravel_pytree(estimated)[0]
                second = jax.flatten_util.ravel_pytree(exact(params, batch))[0]
                return first @ second / (jnp.linalg.norm(first) * jnp.linalg.norm(second))

            self._gradients[method] = cosine
        images, labels = self._task.train
        key = jax.random.fold_in(keys_of(seed).data, self._config.steps)  # a batch of no step
        chosen = jax.random.randint(key, (self._config.batch_size,), 0, len(labels))
        batch = (images[chosen], labels[chosen])
        return float(self._gradients[method](params, batch, key))


def describe(method: str, count: int, dimension: int) -> str:
    """Returns the name of a method with its number of directions.

    Args:
        method: One of `LABELS`.
        count: Directions per step.
        dimension: Number of parameters.
    """
    if count == 0:
        return LABELS[method]
    return f"{LABELS[method]}, n = {'d' if count == dimension else count}"


def summarize(config: Config, study: Study, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns mean and spread over seeds for every method.

    Args:
        config: The configuration.
        study: The study.
        rows: What `Study.run` returned.
    """
    methods = {}
    for method in config.methods:
        runs = [row for row in rows if row["method"] == method]
        accuracies = np.array([row["test_accuracy"] for row in runs])
        count = count_directions(config, method, study.dimension)
        methods[method] = {
            "label": describe(method, count, study.dimension),
            "num_directions": count,
            "queries_per_step": study.num_queries(method),
            "test_accuracy_mean": accuracies.mean(),
            "test_accuracy_deviation": accuracies.std(ddof=1) if len(runs) > 1 else None,
            "test_accuracies": accuracies,
            "validation_accuracies": [row["validation_accuracy"] for row in runs],
            "cosine_start_mean": np.mean([row["cosine_start"] for row in runs]),
            "cosine_end_mean": np.mean([row["cosine_end"] for row in runs]),
            "seconds_mean": round(float(np.mean([row["seconds"] for row in runs])), 2),
        }
    return {
        "experiment": NAME,
        "dataset": config.dataset,
        "parameters": study.dimension,
        "steps": config.steps,
        "seeds": [config.first_seed + i for i in range(config.num_seeds)],
        "seconds": round(sum(row["seconds"] for row in rows), 2),
        "methods": methods,
    }


def make_table(summary: Mapping[str, Any]) -> str:
    """Returns the results as a Markdown table.

    Args:
        summary: From `summarize`.
    """
    lines = [
        f"| source of the gradient (d = {summary['parameters']:,}) | queries per step | "
        "test accuracy | each seed | cosine to the gradient, start / end | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in summary["methods"].items():
        spread = row["test_accuracy_deviation"]
        mean = f"{100 * row['test_accuracy_mean']:.2f}"
        mean += " %" if spread is None else f" ± {100 * spread:.2f} %"
        each = ", ".join(f"{100 * value:.2f}" for value in row["test_accuracies"])
        cosines = f"{row['cosine_start_mean']:.3f} / {row['cosine_end_mean']:.3f}"
        queries = "1 gradient" if name == "first_order" else f"{row['queries_per_step']:,}"
        cells = (row["label"], queries, mean, each, cosines, f"{row['seconds_mean']:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw_curves(
    path: Path, config: Config, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Draws validation accuracy against steps and against queries, mean and range over seeds.

    Args:
        path: The PNG to write.
        config: The configuration.
        summary: From `summarize`.
        rows: What `Study.run` returned.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    colors = dict(zip(LABELS, ("#777777", "C0", "C1", "C2", "C0", "C1", "C2"), strict=True))
    for method, entry in summary["methods"].items():
        curves = [row["curve"] for row in rows if row["method"] == method]
        steps = np.array([point["step"] for point in curves[0]])
        values = 100 * np.array([[point["accuracy"] for point in curve] for curve in curves])
        style: Any = ":" if method == "first_order" else "--" if method.endswith("_part") else "-"
        for axis, x in ((left, steps), (right, steps * entry["queries_per_step"])):
            options = {"color": colors[method], "linestyle": style, "linewidth": 1.6}
            axis.plot(x, values.mean(0), label=entry["label"], **options)
            axis.fill_between(
                x, values.min(0), values.max(0), color=colors[method], alpha=0.15, linewidth=0
            )
    for axis in (left, right):
        axis.grid(True, color="#dddddd", linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
    left.set(xlabel="step", ylabel="validation accuracy (%)")
    right.set(xlabel="queries (loss evaluations; a gradient counts as 3)", xscale="log")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    title = f"{config.dataset} {config.size}x{config.size}, d = {summary['parameters']:,}"
    figure.suptitle(f"{title}, mean and range of {len(summary['seeds'])} seeds")
    figure.savefig(path, dpi=150)


def open_run(config: Config) -> tuple[Config, RunDirectory | None]:
    """Returns the configuration and, where one is resumed, the folder of the run.

    Args:
        config: What the command line says.

    Raises:
        UserError: If the folder is not that of a run, or its configuration differs.
    """
    if config.resume is None:
        return config, None
    run = RunDirectory.open_existing(config.resume)
    stored = run.read_config()
    try:
        requested = cli.parse(Config, None, PRESETS, defaults=Config(**stored))
    except TypeError as error:
        raise UserError(f"{run.path} is a run of another version: {error}") from error
    free = {"resume", "output", "data_dir"}
    check_same_config(stored, dataclasses.asdict(requested), ignore=free)
    return requested, run


def run_experiment(config: Config) -> None:
    """Runs the study.

    Args:
        config: The configuration.
    """
    config, run = open_run(config)
    keep_compiled_programs()
    study = Study(config, build_task(config, load_dataset(config.dataset, config.data_dir)))
    study.check()
    if run is None:
        run = RunDirectory.create(config.output, NAME, config.first_seed, config)
    print(f"d = {study.dimension:,} parameters; writing {run.path}", flush=True)
    finished = {(row["method"], row["seed"]): row for row in run.read_metrics()}
    try:
        for seed in range(config.first_seed, config.first_seed + config.num_seeds):
            for method in config.methods:
                if (method, seed) in finished:
                    continue
                print(f"{method}, {study.num_queries(method):,} queries per step, seed {seed}")
                row = study.run(method, seed)
                run.append_metrics(row)
                finished[method, seed] = row
    except KeyboardInterrupt:
        advice = f"continue with python -m experiments.{NAME} --resume {run.path}"
        raise KeyboardInterrupt(advice) from None
    rows = list(finished.values())
    summary = summarize(config, study, rows)
    run.write_summary(summary)
    table = make_table(summary)
    (run.path / "table.md").write_text(table)
    draw_curves(run.figures_dir / "accuracy.png", config, summary, rows)
    print(
        f"\n{table}\nfigures: {run.figures_dir}\nsummary: {run.path / 'summary.json'}", flush=True
    )


def main() -> None:
    """Runs the experiment."""
    run_experiment(cli.parse(Config, None, PRESETS))


if __name__ == "__main__":
    run_cli(main)
