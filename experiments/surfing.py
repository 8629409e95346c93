"""Inverts generators by following the surfaces of their training, beside direct descent.

    python -m experiments.surfing

Trains the generators it needs (or takes them, --generators RUN_DIR ...). Expected numbers: see
docs/results/surfing.
"""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import tyro

from experiments import train_generator
from experiments.lib import cli, generator_store, surfing_generators, surfing_report
from experiments.lib.compilation_cache import keep_compiled_programs
from experiments.lib.data import DatasetName, load_dataset
from experiments.lib.errors import UserError, run_cli
from experiments.lib.generator_families import FamilyName
from experiments.lib.generator_store import Generator
from experiments.lib.generators import DecoderName
from experiments.lib.runs import RunDirectory, check_same_config
from experiments.lib.surfing_bench import Bench
from experiments.lib.surfing_recorder import Recorder
from experiments.lib.surfing_studies import STUDIES, StudyName
from experiments.lib.surfing_surface import surface

NAME = "surfing"


@dataclasses.dataclass(frozen=True)
class Config:
    """Recovers latents from images: surfing beside direct descent on the trained generator.

    Surfing descends on every snapshot of the generator's training in turn, direct descent makes as
    many steps on the last, from one start or shared by eight. Learning rates are chosen for each on
    targets of their own. Writes runs/surfing/<time>-<seed>/ with config.json, metrics.jsonl,
    summary.json, table.md, figures/ and the generators it trained.
    """

    preset: Literal["default", "quick", "digits", "measurements", "fashion"] = "default"
    """default: a generator of two latents, its surfaces and one-bit measurements, a dozen minutes
    on two cores. quick: digits, a minute. digits, measurements, fashion: as reported, three seeds,
    a quarter of an hour to an hour each."""
    studies: tuple[StudyName, ...] = ("success", "one_bit")
    """success: latents of generated images. compressed: images from few linear measurements.
    values: by values alone. one_bit: from signs of measurements, where no gradient exists.
    options: surfing with each of its options."""

    generators: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN_DIR ...")] = ()
    """Runs of experiments.train_generator; the options up to --num-snapshots are then theirs."""
    dataset: DatasetName = "auto"
    """auto is mnist where it is prepared, else scikit-learn's digits."""
    data_dir: str | None = None
    """Folder with prepared data; then $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    family: FamilyName = "vae"
    """vae: evidence lower bound. wgan_gp: Wasserstein GAN with gradient penalty."""
    decoder: DecoderName = "mlp"
    """mlp: two hidden dense layers. dcgan: a dense layer and two transposed convolutions."""
    kl_weight: float = 1.0
    """Of the vae's divergence; below 1 fewer latents collapse."""
    latent_dims: tuple[int, ...] = (2,)
    """Numbers of latents, k; a generator is trained for each."""
    generator_steps: int | None = None
    """Updates of a generator; by default what train_generator takes."""
    num_snapshots: int = 40
    """Snapshots of each, from the initialisation to the end."""

    num_targets: int = 300
    """Targets that are reported."""
    num_tuning: int = 100
    """Other targets, on which learning rates are chosen."""
    num_restarts: int = 1
    """Starts per target, of which the lowest end counts."""
    num_steps: int = 100
    """Gradient steps per snapshot; direct descent makes as many in all."""
    polish_steps: int = 1500
    """Further steps on the trained generator, of both, with a rate that falls to 0."""
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    """Of Adam, from which each method takes its best."""

    measurement_factors: tuple[int, ...] = (1, 2, 3, 5, 10)
    """compressed: measurements per latent."""
    num_images: int = 100
    """compressed: test images that are recovered besides."""
    num_bits: int = 100
    """one_bit: measurements."""
    smoothing: tuple[float, ...] = (0.1, 0.3, 0.6)
    """one_bit: widths of the smoothing, in latents, from which each method takes its best."""
    bit_steps: int = 30
    """one_bit: steps per snapshot, each of 4 k queries; ten times as many polish."""

    num_seeds: int = 1
    """Repetitions: generators, targets and starts anew."""
    seed: int = 0
    """The first seed."""
    output: str = "runs"
    """Folder for runs."""
    resume: Annotated[str | None, tyro.conf.arg(metavar="RUN_DIR")] = None
    """Continue an interrupted run; other options keep what the run had."""

    def __post_init__(self) -> None:
        """Checks what no library below checks before training."""
        several = ("studies", "latent_dims", "learning_rates", "measurement_factors", "smoothing")
        for name in several:
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must name at least one, and each only once")
        for name in (
            "num_targets",
            "num_tuning",
            "num_restarts",
            "num_steps",
            "num_images",
            "num_bits",
            "bit_steps",
            "num_seeds",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if "compressed" in self.studies and self.num_images > self.num_targets:
            raise ValueError(
                f"num_images must be at most num_targets ({self.num_targets}), whose starts they "
                f"share, got {self.num_images}"
            )
        if self.polish_steps < 0:
            raise ValueError(f"polish_steps must be >= 0, got {self.polish_steps}")
        for name in ("learning_rates", "smoothing"):
            if not all(0 < value < float("inf") for value in getattr(self, name)):
                raise ValueError(f"every one of {name} must be > 0, got {getattr(self, name)}")
        if min(self.latent_dims + self.measurement_factors) < 1:
            raise ValueError("latent_dims and measurement_factors must be >= 1")
        if not 0 <= self.seed < 2**32 - self.num_seeds:
            raise ValueError(f"seed must be in [0, 2^32 - num_seeds), got {self.seed}")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "studies": ("success",),
        "dataset": "digits",
        "num_targets": 100,
        "num_tuning": 50,
        "num_steps": 50,
        "polish_steps": 500,
        "learning_rates": (0.05, 0.2),
    },
    "digits": {
        "dataset": "digits",
        "studies": ("success", "values"),
        "kl_weight": 0.3,
        "latent_dims": (2, 5, 10),
        "num_seeds": 3,
    },
    "measurements": {
        "dataset": "digits",
        "studies": ("compressed", "one_bit"),
        "kl_weight": 0.3,
        "latent_dims": (2, 5),
        "num_seeds": 3,
    },
    "fashion": {
        "studies": ("success",),
        "dataset": "fashion_mnist",
        "family": "wgan_gp",
        "latent_dims": (5,),
        "generator_steps": 10_000,
        "num_snapshots": 100,
        "num_steps": 24,
        "polish_steps": 1000,
        "num_seeds": 3,
    },
}


def run_studies(
    config: Config, recorder: Recorder, generator: Generator, folder: str, images: Any, seed: int
) -> None:
    """Runs the studies of one generator that are not finished.

    Args:
        config: The configuration.
        recorder: Of the run.
        generator: The generator.
        folder: Its name in the metrics.
        images: Test images of its data.
        seed: Of targets and starts.
    """
    done = recorder.finished()
    missing = [study for study in config.studies if (f"{folder}-{seed}", study) not in done]
    if not missing:
        return
    bench = Bench(config, generator, images, seed)
    active = int(bench.problem.active.sum())
    print(f"k = {len(bench.problem.active)} ({active} active), seed {seed}", flush=True)
    for study in missing:
        rows = list_with_lines(STUDIES[study](bench))
        for number, row in enumerate(rows):
            recorder.record(row, number, f"{folder}-{seed}", row is rows[-1])


def list_with_lines(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Collects rows and prints a line for each as it comes.

    Args:
        rows: Of a study.
    """
    found = []
    for row in rows:
        print(surfing_report.line(row), flush=True)
        found.append(row)
    return found


def run_experiment(config: Config) -> RunDirectory:
    """Runs everything that is not finished.

    Args:
        config: The command line.
    """
    run = None
    if config.resume:
        run = RunDirectory.open_existing(config.resume)
        config = stored_config(run)
    given = surfing_generators.load_given(config.generators)
    if given:
        config = dataclasses.replace(config, **surfing_generators.options_of(given))
    dataset = load_dataset(config.dataset, config.data_dir)
    if dataset.note:
        print(f"NOTE: {dataset.note}", flush=True)
    config = dataclasses.replace(config, dataset=dataset.name)
    if not given:  # bad combinations are found before the first is trained
        for latent_dim in config.latent_dims:
            training = surfing_generators.training_config(config, latent_dim, 0, "")
            train_generator.settings_of(training, dataset)
        for latent_dim in config.latent_dims if "compressed" in config.studies else ():
            if (count := min(config.measurement_factors) * latent_dim) > dataset.num_pixels:
                raise UserError(
                    f"k = {latent_dim} would need {count} measurements of {dataset.num_pixels} "
                    "pixels; choose smaller measurement_factors"
                )
    if run is None:
        run = RunDirectory.create(config.output, NAME, config.seed, config)
    print(f"writing {run.path}", flush=True)
    recorder = Recorder(run)
    recorder.drop_unfinished()
    title, first = "", None
    try:
        for seed, folder in surfing_generators.generators_of(config, run):
            generator = given.get(str(folder)) or generator_store.load(folder)
            title = title or surfing_generators.title_of(generator)
            run_studies(config, recorder, generator, folder.name, dataset.test.images, seed)
            if first is None and generator.info["latent_dim"] == 2:
                first = generator
                path = run.figures_dir / "surface.png"
                surface(path, Bench(config, generator, dataset.test.images, seed))
            recorder.write(title)
    except KeyboardInterrupt:
        advice = f"continue with python -m experiments.{NAME} --resume {run.path}"
        raise KeyboardInterrupt(advice) from None
    recorder.draw(title)
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
