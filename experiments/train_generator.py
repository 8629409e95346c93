"""Trains a small image generator and keeps snapshots of its parameters along the way.

    python -m experiments.train_generator

The snapshots run from the random initialisation to the end of training, denser early. Surfing
(`python -m experiments.surfing --generators RUN_DIR`) inverts the generator by following them.
Expected numbers: see docs/results/surfing.
"""

import dataclasses
from typing import Any, Literal

from experiments.lib import cli, generator_figures, generator_store
from experiments.lib.compilation_cache import keep_compiled_programs
from experiments.lib.data import Dataset, DatasetName, load_dataset
from experiments.lib.errors import run_cli
from experiments.lib.generator_families import FamilyName
from experiments.lib.generator_training import DEFAULTS, Settings, Trained, prepare, train_generator
from experiments.lib.generators import DecoderName
from experiments.lib.progress import Progress
from experiments.lib.runs import RunDirectory

NAME = "train_generator"
_DIGITS_STEPS = 4_000  # 400 epochs of a VAE
_NUM_STEPS = {
    ("vae", "mlp"): 6_500,  # 15 epochs
    ("vae", "dcgan"): 5_000,
    ("wgan_gp", "mlp"): 4_000,
    ("wgan_gp", "dcgan"): 3_000,
}
_ACTIVE = 0.05  # nats of KL divergence, below which a latent says nothing about the image
_NUM_LINES = 10  # of progress where there is no live bar


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a generator (VAE or WGAN-GP) and keeps geometrically spaced snapshots of it.

    Writes runs/train_generator/<time>-<seed>/ with config.json, metrics.jsonl, summary.json,
    figures/ and checkpoints/.
    """

    preset: Literal["default", "quick"] = "default"
    """default: a VAE on MNIST, a minute on two cores. quick: digits, seconds."""
    dataset: DatasetName = "auto"
    """auto is mnist where it is prepared, else scikit-learn's digits."""
    data_dir: str | None = None
    """Folder with prepared data; then $TFDS_DATA_DIR, then ~/tensorflow_datasets."""

    family: FamilyName = "vae"
    """vae: evidence lower bound. wgan_gp: Wasserstein GAN with gradient penalty."""
    decoder: DecoderName = "mlp"
    """mlp: two hidden dense layers. dcgan: a dense layer and two transposed convolutions."""
    latent_dim: int = 5
    """Number of latents, k; their prior is a standard normal distribution."""
    width: int | None = None
    """Hidden units of the mlp, by default 128 for digits and else 256; or channels of the dcgan
    after its dense layer, by default 32."""

    num_steps: int | None = None
    """Updates of the generator; by default what this family and decoder need for the data."""
    batch_size: int | None = None
    """Images per update; by default 128 for the vae and 64 for wgan_gp."""
    learning_rate: float | None = None
    """Of Adam; by default 1e-3 for the vae and 5e-4 for wgan_gp."""
    num_snapshots: int = 40
    """How many snapshots to keep, the initialisation and the end included."""

    kl_weight: float = 1.0
    """Of the vae's divergence in its loss; below 1 fewer latents collapse."""

    seed: int = 0
    """Seed of weights, mini-batches and latents."""
    output: str = "runs"
    """Folder for runs."""


PRESETS: dict[str, dict[str, Any]] = {"quick": {"dataset": "digits", "num_steps": 1_000}}


def settings_of(config: Config, dataset: Dataset) -> Settings:
    """Fills in what the command line left open.

    Args:
        config: The command line.
        dataset: The data.

    Returns:
        Settings without None, checked.
    """
    rate, batch_size = DEFAULTS[config.family]
    is_small = dataset.name == "digits"
    steps = _DIGITS_STEPS if is_small else _NUM_STEPS[config.family, config.decoder]
    settings = Settings(
        family=config.family,
        decoder=config.decoder,
        latent_dim=config.latent_dim,
        width=config.width,
        num_steps=steps if config.num_steps is None else config.num_steps,
        batch_size=batch_size if config.batch_size is None else config.batch_size,
        learning_rate=rate if config.learning_rate is None else config.learning_rate,
        num_snapshots=config.num_snapshots,
        kl_weight=config.kl_weight,
        seed=config.seed,
    )
    module = prepare(settings, dataset.train.images.shape)
    return dataclasses.replace(settings, width=module.width)


def summary_of(settings: Settings, dataset: Dataset, trained: Trained) -> dict[str, Any]:
    """Returns the content of summary.json.

    Args:
        settings: What was trained.
        dataset: The data.
        trained: The generator.
    """
    kl = trained.rows[-1].get("validation_kl_per_latent")  # of a VAE
    active = None if kl is None else [index for index, nats in enumerate(kl) if nats > _ACTIVE]
    return {
        "experiment": NAME,
        "dataset": dataset.name,
        **dataclasses.asdict(settings),
        "image_shape": dataset.train.images.shape[1:],
        "kl_per_latent": kl,
        "active_latents": active,
        "last": trained.rows[-1],
    }


def run_experiment(config: Config) -> RunDirectory:
    """Trains the generator and writes the run's folder.

    Args:
        config: The command line.
    """
    dataset = load_dataset(config.dataset, config.data_dir)
    if dataset.note:
        print(f"NOTE: {dataset.note}", flush=True)
    settings = settings_of(config, dataset)
    config = dataclasses.replace(config, dataset=dataset.name, **dataclasses.asdict(settings))
    run = RunDirectory.create(config.output, NAME, config.seed, config)
    images, validation = dataset.train.images, dataset.validation.images
    title = f"{dataset.name}, {settings.family}, {settings.decoder}, k = {settings.latent_dim}"
    print(f"{title}: {len(images):,} training images\nwriting {run.path}", flush=True)
    shown = 0
    with Progress(settings.num_steps, NAME) as progress:

        def report(row: dict[str, Any]) -> None:
            nonlocal shown
            run.append_metrics(row)
            # Most snapshots are early, and their lines would say little.
            if row["step"] in (0, settings.num_steps) or row["step"] > shown:
                progress.update(row["step"], loss=row["validation_loss"])
                shown = row["step"] + settings.num_steps // _NUM_LINES

        try:
            trained = train_generator(settings, images, validation, report, progress.advance)
        except KeyboardInterrupt:
            advice = f"no generator was saved in {run.path}; a smaller --num-steps is faster"
            raise KeyboardInterrupt(advice) from None
    summary = summary_of(settings, dataset, trained)
    generator_store.save(run, trained, summary)
    generator_figures.draw(run.figures_dir, trained, validation, title)
    print(_closing_lines(run, summary), flush=True)
    return run


def _closing_lines(run: RunDirectory, summary: dict[str, Any]) -> str:
    last = summary["last"]
    if summary["family"] == "vae":
        active = summary["active_latents"]
        found = (
            f"loss {last['validation_loss']:.1f} nats per validation image; "
            f"{len(active)} of {summary['latent_dim']} latents are active: {active}"
        )
    else:
        found = f"Wasserstein estimate {last['validation_wasserstein']:.2f} on validation images"
    return (
        f"{summary['num_snapshots']} snapshots in {last['seconds']:.0f} s of training; {found}\n"
        f"figures: {run.figures_dir}\nsummary: {run.path / 'summary.json'}\n"
        f"next: python -m experiments.surfing --generators {run.path}"
    )


def main() -> None:
    """Runs the command line."""
    config = cli.parse(Config, None, PRESETS)
    keep_compiled_programs()
    run_experiment(config)


if __name__ == "__main__":
    run_cli(main)
