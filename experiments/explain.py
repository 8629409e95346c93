"""Explains decisions by the model's values alone: what suffices, and what must be absent.

    python -m experiments.explain

Explains a network that it trains (and keeps), your own function (--oracle mymodels.api:predict),
or a random forest (--studies forest). What the words mean: docs/explanations.md.
"""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from experiments.lib import (
    attack_oracles,
    attack_victims,
    cli,
    explain_forest,
    explain_latent,
    explain_report,
    explain_white_box,
)
from experiments.lib.attack_oracles import Function, Limits
from experiments.lib.attack_victims import Victim, VictimName
from experiments.lib.compilation_cache import keep_compiled_programs
from experiments.lib.data import Dataset, DatasetName, Split, load_dataset
from experiments.lib.errors import UserError, run_cli
from experiments.lib.runs import RunDirectory
from zojax import blackbox, explain
from zojax.attacks import AttackInterrupted

NAME = "explain"
StudyName = Literal["pixels", "latent", "forest"]
NEGATIVE, POSITIVE = "pertinent negative", "pertinent positive"
_NUM_LINES = 5  # of progress per kind of explanation


@dataclasses.dataclass(frozen=True)
class Config:
    """Explains decisions of a model that only answers.

    A pertinent negative is the least that, added, changes the class; a pertinent positive is the
    least part that keeps it. The first images of the test part are explained, whatever the model
    makes of them. Writes runs/explain/<time>-<seed>/ with config.json, table.md, summary.json,
    sentences.md, figures/ and the explanations.
    """

    preset: Literal["default", "quick", "reported", "fashion"] = "default"
    """default: 20 images and the forest, some minutes on two cores. quick: digits of 8x8 pixels.
    reported, fashion: 100 images of MNIST or Fashion-MNIST."""
    studies: tuple[StudyName, ...] = ("pixels", "forest")
    """pixels: negatives and positives of images. latent: negatives that a generator draws. forest:
    a random forest on the breast cancer data of scikit-learn, in sentences."""

    dataset: DatasetName = "auto"
    """auto is mnist where it is prepared, else scikit-learn's digits."""
    data_dir: str | None = None
    """Folder with prepared data; then $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    victim: VictimName = "mlp"
    """The network that is trained and explained: mlp, cnn or conv."""
    victim_epochs: int | None = None
    """Of its training; by default 3 to 5, 100 for digits. It is kept in OUTPUT/attack-victims."""

    oracle: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """A function of your own instead: float32 (b, ...) in [0, 1] to logits or log-probabilities
    (b, classes)."""
    images: Annotated[str | None, tyro.conf.arg(metavar="FILE.npz")] = None
    """Images to explain instead of the data set's: x (n, height, width, 1) in [0, 1], integers y
    (n,)."""
    batch_size: int | None = None
    """Rows per call of the model at most; None for no bound."""

    num_images: int = 20
    """Images to explain."""
    budget: int = 50_000
    """Queries per image and kind of explanation at most."""
    beta: float = 1.0
    """Weight of the l1 norm: the larger, the fewer pixels."""
    kappa: float = 1.0
    """Margin of the new, or the kept, class over the others, in the model's scores."""
    num_rows: int = 10
    """forest: patients to explain."""

    seed: int = 0
    """Of the victim and of the explanations."""
    output: str = "runs"
    """Folder for runs."""

    def __post_init__(self) -> None:
        """Checks what no library below checks before training."""
        if not self.studies or len(set(self.studies)) < len(self.studies):
            raise ValueError("studies must name at least one, and each only once")
        for name in ("num_images", "num_rows", "budget", "batch_size", "victim_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        for name in ("beta", "kappa"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be >= 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in [0, 2^32), got {self.seed}")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"dataset": "digits", "num_images": 10, "num_rows": 4},
    "reported": {"dataset": "mnist", "num_images": 100},
    "fashion": {"dataset": "fashion_mnist", "num_images": 100, "studies": ("pixels",)},
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What is explained.

    Attributes:
        dataset: Of the victim, or of the images.
        split: The images there are.
        function: Of a batch, to scores.
        victim: The network behind it, None for a function of the user's.
    """

    dataset: Dataset
    split: Split
    function: Function
    victim: Victim | None


def read_task(config: Config) -> Task:
    """Imports, loads and trains what is needed.

    Args:
        config: The command line.

    Raises:
        UserError: For what does not fit together, before anything is trained.
    """
    function = attack_oracles.import_function(config.oracle) if config.oracle else None
    dataset = load_dataset(config.dataset, config.data_dir)
    if dataset.note:
        print(f"NOTE: {dataset.note}", flush=True)
    split = attack_oracles.load_images(config.images) if config.images else dataset.test
    needed = dataset.test.images.shape[1:]
    shape = split.images.shape[1:]
    if len(shape) != 3 or shape[2] != 1:
        raise UserError(f"--images {config.images}: need shape (n, height, width, 1), got {shape}")
    if shape != needed and (function is None or "latent" in config.studies):
        raise UserError(
            f"--images {config.images}: what is trained on {dataset.name} takes images of shape "
            f"{needed}, got {shape}; name a model of your own with --oracle, without latent"
        )
    if config.num_images > len(split.labels):
        raise UserError(
            f"num_images must be at most {len(split.labels):,}, the images there are, got "
            f"{config.num_images:,}"
        )
    if function is not None:
        return Task(dataset, split, function, None)
    attack_victims.check_size(config.victim, dataset)
    epochs = attack_victims.num_epochs(config.victim, dataset, config.victim_epochs)
    folder = Path(config.output) / "attack-victims"
    victim = attack_victims.load_or_train(config.victim, dataset, config.seed, epochs, folder)
    return Task(dataset, split, victim.answer, victim)


def explain_images(
    config: Config, task: Task, name: str, explainer: explain.Explainer
) -> tuple[explain.Explanations, dict[str, Any]]:
    """Explains the images in one way; returns the explanations and their numbers.

    Args:
        config: The command line.
        task: What is explained.
        name: Of the kind of explanation.
        explainer: That kind.
    """
    images = task.split.images[: config.num_images]
    classes = None if task.victim is None else task.victim.num_classes
    limits = Limits("scores", classes, batch_size=config.batch_size)
    oracle = attack_oracles.build_oracle(task.function, limits, config.budget)
    key = jax.random.key(config.seed)
    found, seconds = run_with_lines(name, explainer, oracle, images, key, config)
    white = None
    if task.victim is not None and name in (NEGATIVE, POSITIVE):
        white = explain_white_box.run(
            task.victim.apply,
            images,
            found.class_before,
            explainer.keeps,
            config.beta,
            config.kappa,
        )
    return found, explain_report.row_of(name, explainer.keeps, found, white, seconds)


def run_with_lines(
    name: str,
    explainer: explain.Explainer,
    oracle: blackbox.Oracle,
    images: np.ndarray,
    key: jax.Array,
    config: Config,
) -> tuple[explain.Explanations, float]:
    """Runs an explainer and prints how far it is; returns explanations and seconds.

    Args:
        name: Of the kind of explanation.
        explainer: That kind.
        oracle: A fresh one.
        images: To explain.
        key: Of the run.
        config: The command line.
    """
    began = time.perf_counter()
    most = config.budget * len(images)
    shown = 0

    def report(finished: int, sent: int) -> None:
        nonlocal shown
        if sent - shown > most / _NUM_LINES:
            shown = sent
            seconds = time.perf_counter() - began
            print(f"{name}: {sent:,} queries, {finished} done, {seconds:.0f} s", flush=True)

    try:
        found = explain.run(explainer, oracle, images, key, progress=report)
    except AttackInterrupted as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            advice = f"{name} is not finished; fewer --num-images are faster"
            raise KeyboardInterrupt(advice) from None
        raise UserError(f"{name}: {error.__cause__}") from error
    seconds = time.perf_counter() - began
    print(f"{name}: {int(found.success.sum())} of {len(images)}, {seconds:.0f} s", flush=True)
    return found, seconds


def explainers_of(config: Config, task: Task, run: RunDirectory) -> dict[str, explain.Explainer]:
    """Returns the kinds of explanation that the studies ask for.

    Args:
        config: The command line.
        task: What is explained.
        run: Where a generator that has to be trained goes.
    """
    kinds = {}
    if "pixels" in config.studies:
        settings = {"beta": config.beta, "kappa": config.kappa}
        kinds[NEGATIVE] = explain.pertinent_negative(**settings)
        kinds[POSITIVE] = explain.pertinent_positive(**settings)
    if "latent" in config.studies:
        kinds["latent negative"] = explain_latent.explainer(task.dataset, config, run)
    return kinds


def run_experiment(config: Config) -> RunDirectory:
    """Runs every study and writes the run's folder.

    Args:
        config: The command line.
    """
    needs_images = set(config.studies) != {"forest"}
    task = read_task(config) if needs_images else None
    if task is not None:
        config = dataclasses.replace(config, dataset=task.dataset.name)
    run = RunDirectory.create(config.output, NAME, config.seed, config)
    print(f"writing {run.path}", flush=True)
    summary: dict[str, Any] = {"experiment": NAME, "dataset": config.dataset}
    if task is not None:
        summary |= image_studies(config, task, run)
    if "forest" in config.studies:
        forest = explain_forest.run(config.num_rows, config.budget, config.seed)
        (run.path / "sentences.md").write_text(explain_forest.text(forest))
        summary["forest"] = forest
        print(explain_forest.text(forest), flush=True)
    run.write_summary(summary)
    print(f"summary: {run.path / 'summary.json'}", flush=True)
    return run


def image_studies(config: Config, task: Task, run: RunDirectory) -> dict[str, Any]:
    """Explains images in every way that is asked for, and writes table and figure.

    Args:
        config: The command line.
        task: What is explained.
        run: The run's folder.
    """
    rows, drawn = [], {}
    for name, explainer in explainers_of(config, task, run).items():
        found, row = explain_images(config, task, name, explainer)
        np.savez_compressed(run.path / f"{name.replace(' ', '-')}.npz", **found._asdict())
        drawn[name] = (explainer.keeps, found)
        rows.append(row)
        (run.path / "table.md").write_text(explain_report.table(rows))
    print(explain_report.table(rows), flush=True)
    model = config.oracle or f"{config.victim}, test accuracy {task.victim.test_accuracy:.1%}"
    title = f"{config.dataset}, {model}"
    path = run.figures_dir / "explanations.png"
    explain_report.draw(path, task.split.images, drawn, task.dataset.class_names, title)
    print(f"figure: {path}", flush=True)
    return {"model": model, "rows": rows}


def main() -> None:
    """Runs the command line."""
    config = cli.parse(Config, None, PRESETS)
    keep_compiled_programs()
    run_experiment(config)


if __name__ == "__main__":
    run_cli(main)
