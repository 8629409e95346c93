"""Fits networks by random search: one weight at a time, three values, the best is kept.

    python -m experiments.rso

No gradient is computed or estimated. Expected numbers: see docs/results/rso.
"""

import dataclasses
import time
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from experiments.lib import cli, rso_report
from experiments.lib.checkpoint import CheckpointStore
from experiments.lib.classifier import build_task
from experiments.lib.compilation_cache import keep_compiled_programs
from experiments.lib.data import ColorName, Dataset, DatasetName, load_dataset
from experiments.lib.errors import UserError, run_cli
from experiments.lib.progress import Progress
from experiments.lib.report import digest
from experiments.lib.rso_models import ModelName, build_network, first_filters
from experiments.lib.rso_runs import Contest, Searcher, train_twin
from experiments.lib.runs import RunDirectory, check_same_config

NAME = "rso"


@dataclasses.dataclass(frozen=True)
class Config:
    """Fits networks by random search over single weights, and shows how well it went.

    Writes runs/rso/<time>-<seed>/ with config.json, metrics.jsonl, summary.json, table.md, figures/
    and checkpoints/. Every network is trained with every batch size, one after the other. Queries
    are loss evaluations of the whole network, or what replaces them.
    """

    preset: Literal["default", "quick", "two_conv", "study", "paper", "cifar"] = "default"
    """default: 95 % on MNIST in a minute on two cores. quick: digits, less than a minute. two_conv:
    96 % on MNIST in eight minutes. study: batch sizes compared, beside SGD. paper, cifar: the
    published networks and rounds, with a mini-batch for 16 weights, for an accelerator."""
    dataset: DatasetName | ColorName = "auto"
    """auto is mnist where it is prepared, else scikit-learn's digits."""
    data_dir: str | None = None
    """Folder with prepared data; then $TFDS_DATA_DIR, then ~/tensorflow_datasets."""

    models: tuple[ModelName, ...] = ("one_conv",)
    """Networks."""
    hidden: int = 64
    """Hidden units of the mlp."""
    batch_sizes: tuple[int, ...] = (1024,)
    """Images per mini-batch."""
    num_rounds: int = 20
    """How often every weight is visited."""
    block_size: int = 256
    """Weights that share a mini-batch; 1 draws a new one for every weight, as published."""
    group_size: int = 1
    """Weights tried at once: 1 is the published search, more an approximation (batched search)."""
    final_scale: float = 0.1
    """The size of the changes falls linearly, from 1 in the first round towards this."""
    weight_decay: float = 0.0
    """A weight is multiplied by 1 - weight_decay before it is tried; published: 1e-4. Without it
    two evaluations per weight are enough where a mini-batch is shared."""
    order: Literal["last_first", "first_first"] = "last_first"
    """Which layer is visited first."""
    black_box: bool = False
    """Evaluate the whole network every time: the same decisions, slower."""

    twin: bool = False
    """Also train every network by SGD with momentum and back-propagation, drawn dashed."""
    twin_batch_size: int = 64
    """Images per step of the twin."""
    twin_learning_rate: float = 0.01
    """First learning rate of the twin (cosine to zero)."""

    seed: int = 0
    """Seed of weights, changes and batches."""
    output: str = "runs"
    """Folder for runs."""
    resume: Annotated[str | None, tyro.conf.arg(metavar="RUN_DIR")] = None
    """Continue an interrupted run to the same bits; other options keep what the run had."""

    def __post_init__(self) -> None:
        """Checks what no library below checks."""
        for name in ("num_rounds", "hidden", "twin_batch_size", "block_size", "group_size"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        for name in ("models", "batch_sizes"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must name at least one, and each only once")
        if any(size < 1 for size in self.batch_sizes):
            raise ValueError(f"every batch size must be >= 1, got {self.batch_sizes}")
        if not 0 < self.twin_learning_rate < float("inf"):
            raise ValueError(f"twin_learning_rate must be > 0, got {self.twin_learning_rate}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in [0, 2^32), got {self.seed}")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "dataset": "digits",
        "models": ("mlp",),
        "hidden": 32,
        "batch_sizes": (512,),
        "block_size": 16,
        "weight_decay": 0.03,
    },
    "two_conv": {"models": ("two_conv",)},
    "study": {"batch_sizes": (32, 64, 256, 512, 1024), "num_rounds": 10, "twin": True},
    "paper": {
        "dataset": "mnist",
        "models": ("six_conv",),
        "batch_sizes": (5_000,),
        "num_rounds": 50,
        "block_size": 16,
        "weight_decay": 1e-4,
    },
    "cifar": {
        "dataset": "cifar10",
        "models": ("nine_conv",),
        "batch_sizes": (5_000,),
        "num_rounds": 50,
        "block_size": 16,
        "weight_decay": 1e-4,
    },
}


def contests_of(config: Config) -> list[Contest]:
    """Returns what the run trains, in order.

    Args:
        config: The configuration.
    """
    found = [Contest(model, size) for model in config.models for size in config.batch_sizes]
    if config.twin:
        found += [
            Contest(model, config.twin_batch_size, is_search=False) for model in config.models
        ]
    return found


class Recorder:
    """Metrics, filters and checkpoints of all contests; steps count rounds over all of them."""

    def __init__(self, config: Config, run: RunDirectory, image_shape: tuple[int, ...]) -> None:
        """Opens the run's files.

        Args:
            config: The configuration.
            run: The run's folder.
            image_shape: Of the data.
        """
        self._config, self._run, self._shape = config, run, image_shape
        self._folder = run.path / "filters"
        self._folder.mkdir(exist_ok=True)
        self.store = CheckpointStore(run.checkpoints_dir)

    def record(self, number: int, contest: Contest, round_: int, row: dict[str, Any]) -> None:
        """Adds a row of metrics."""
        about = {
            "step": number * self._config.num_rounds + round_,
            "contest": contest.label,
            "model": contest.model,
            "batch_size": contest.batch_size,
            "by": "search" if contest.is_search else "sgd",
            "round": round_,
        }
        self._run.append_metrics(about | row)

    def keep_filters(self, number: int, round_: int, params: Any) -> None:
        """Keeps the first layer's filters of a round."""
        images = np.asarray(first_filters(params, self._shape))
        np.save(self._folder / f"{number}-{round_}.npy", images)

    def write(self, dataset: str) -> None:
        """Writes summary, table and figures from what was recorded."""
        rows, folder = self._run.read_metrics(), self._run.figures_dir
        contests = contests_of(self._config)
        last = {row["contest"]: row for row in rows}
        self._run.write_summary({"experiment": NAME, "dataset": dataset, "contests": last})
        (self._run.path / "table.md").write_text(rso_report.table(rows, dataset))
        rso_report.curves(folder / "curves.png", rows, f"{dataset}, seed {self._config.seed}")
        for number, contest in enumerate(contests):
            files = self._folder.glob(f"{number}-*.npy")
            images = {int(file.stem.split("-")[1]): np.load(file) for file in files}
            if images:
                name = f"filters-{contest.model}-{contest.batch_size}.png"
                rso_report.filters(folder / name, images, f"First layer: {contest.label}")
        rso_report.method(folder / "method.png")


def search_network(
    config: Config, task: Any, recorder: Recorder, number: int, contest: Contest, searcher: Searcher
) -> None:
    """Trains one network by random search, from where it stopped.

    Args:
        config: The configuration.
        task: The data.
        recorder: Of the run.
        number: Of the contest.
        contest: What is trained.
        searcher: At its start.
    """
    base, done, seconds = number * config.num_rounds, 0, 0.0
    latest = recorder.store.latest()
    if latest is not None and latest > base:
        like = {"carry": searcher.carry, "seconds": 0.0}
        stored = recorder.store.restore(latest, like)
        searcher.carry, seconds, done = stored["carry"], stored["seconds"], latest - base
    print(
        f"{contest.label}: {searcher.num_parameters:,} weights, "
        f"{searcher.queries_per_round:,} queries and {searcher.flops_per_round:.2g} FLOPs a round",
        flush=True,
    )
    if done == 0:
        recorder.keep_filters(number, 0, searcher.carry.state.params)
    seconds += searcher.compile()
    kept = np.unique(np.geomspace(1, config.num_rounds, 5).astype(int))
    with Progress(config.num_rounds * searcher.steps, contest.label) as progress:
        for round_ in range(done + 1, config.num_rounds + 1):
            since = time.perf_counter()

            def show(steps: int, passed: int = (round_ - 1) * searcher.steps) -> None:
                progress.advance(passed + steps)

            row = searcher.round(round_, show)
            seconds += time.perf_counter() - since
            params = searcher.carry.state.params
            accuracy, loss = searcher.scorer.score(params, task.validation)
            row |= {"seconds": seconds, "accuracy": accuracy, "loss": loss}
            row["params_sha256"] = digest(params)
            if round_ == config.num_rounds:
                row["test_accuracy"] = searcher.scorer.score(params, task.test)[0]
            recorder.record(number, contest, round_, row)
            if round_ in kept:
                recorder.keep_filters(number, round_, params)
            stored = {"carry": searcher.carry, "seconds": seconds}
            recorder.store.save(base + round_, stored)
            progress.update(
                round_ * searcher.steps,
                loss=loss,
                accuracy=accuracy,
                queries_per_second=searcher.queries_per_round / (time.perf_counter() - since),
            )


def run_experiment(config: Config) -> RunDirectory:
    """Runs all contests that are not finished.

    Args:
        config: The command line.
    """
    run = None
    if config.resume:
        run = RunDirectory.open_existing(config.resume)
        config = stored_config(run)
    dataset: Dataset = load_dataset(config.dataset, config.data_dir)
    if dataset.note:
        print(f"NOTE: {dataset.note}", flush=True)
    config = dataclasses.replace(config, dataset=dataset.name)
    module = build_network(
        config.models[0], num_classes=dataset.num_classes, is_training=True, hidden=config.hidden
    )
    task, contests = build_task(module, dataset), contests_of(config)
    searchers = {  # all of them first, so that a bad combination is found before training
        contest: Searcher(config, task, contest, dataset.num_classes)
        for contest in contests
        if contest.is_search
    }
    if config.twin and config.twin_batch_size > len(dataset.train.labels):
        raise UserError(
            f"twin_batch_size is {config.twin_batch_size}, larger than the data "
            f"({len(dataset.train.labels)} examples)"
        )
    if run is None:
        run = RunDirectory.create(config.output, NAME, config.seed, config)
    print(f"{dataset.name}: {len(dataset.train.labels):,} training images\nwriting {run.path}")
    recorder = Recorder(config, run, dataset.train.images.shape[1:])
    done = recorder.store.latest() or 0
    run.truncate_metrics(done)
    advice = f"continue with python -m experiments.{NAME} --resume {run.path}"
    try:
        for number, contest in enumerate(contests):
            if not contest.is_search:
                train_twin(
                    config,
                    task,
                    contest,
                    dataset.num_classes,
                    lambda epoch, row, _, n=number, c=contest: recorder.record(n, c, epoch, row),
                )
            elif done < (number + 1) * config.num_rounds:
                search_network(config, task, recorder, number, contest, searchers[contest])
            recorder.write(dataset.name)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(advice) from None
    print((run.path / "table.md").read_text())
    print(f"figures: {run.figures_dir}\nsummary: {run.path / 'summary.json'}", flush=True)
    return run


def stored_config(run: RunDirectory) -> Config:
    """Returns the configuration of a run to resume, checked against the command line.

    Args:
        run: The folder of the run.
    """
    stored = run.read_config()
    try:
        config = Config(**stored)
    except (TypeError, ValueError) as error:
        raise UserError(f"{run.path} is a run of another version: {error}") from error
    requested = cli.parse(Config, None, PRESETS, defaults=config)
    ignored = {"resume", "output", "data_dir"}
    check_same_config(stored, dataclasses.asdict(requested), ignore=ignored)
    return requested


def main() -> None:
    """Runs the command line."""
    config = cli.parse(Config, None, PRESETS)
    keep_compiled_programs()
    run_experiment(config)


if __name__ == "__main__":
    run_cli(main)
