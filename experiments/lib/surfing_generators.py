"""The generators of `experiments.surfing`: given ones, or trained when it is their turn."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from experiments import train_generator
from experiments.lib import generator_store
from experiments.lib.data import DatasetName
from experiments.lib.errors import UserError
from experiments.lib.generator_families import FamilyName
from experiments.lib.generator_store import Generator
from experiments.lib.generators import DecoderName
from experiments.lib.runs import RunDirectory

_SHARED = ("dataset", "family", "decoder", "kl_weight", "width", "num_steps", "num_snapshots")


class Settings(Protocol):
    """What is read from the experiment's configuration."""

    generators: tuple[str, ...]
    dataset: DatasetName
    data_dir: str | None
    family: FamilyName
    decoder: DecoderName
    kl_weight: float
    latent_dims: tuple[int, ...]
    generator_steps: int | None
    num_snapshots: int
    num_seeds: int
    seed: int


def load_given(folders: Sequence[str]) -> dict[str, Generator]:
    """Loads runs of experiments.train_generator.

    Args:
        folders: Of the runs; may be none.

    Raises:
        UserError: If one cannot be read, they differ in more than latents and seed, or two are of
            the same latents and seed.
    """
    given = {folder: generator_store.load(folder) for folder in folders}
    infos = [generator.info for generator in given.values()]
    for name in _SHARED:
        values = sorted({str(info[name]) for info in infos})
        if len(values) > 1:
            raise UserError(
                f"all generators must have the same {name}, got {' and '.join(values)}: results of "
                "different ones would be averaged"
            )
    kinds = [(info["latent_dim"], info["seed"]) for info in infos]
    names = [Path(folder).name for folder in folders]
    for found, what in ((kinds, "latents and seed"), (names, "folder name")):
        if len(set(found)) < len(folders):
            raise UserError(f"two of the generators have the same {what}")
    return given


def options_of(given: Mapping[str, Generator]) -> dict[str, Any]:
    """Returns what the configuration says about given generators.

    Args:
        given: At least one, see `load_given`.
    """
    infos = [generator.info for generator in given.values()]
    about = {name: infos[0][name] for name in ("dataset", "family", "decoder", "kl_weight")}
    about["generator_steps"] = infos[0]["num_steps"]
    about["num_snapshots"] = infos[0]["num_snapshots"]
    about["latent_dims"] = tuple(dict.fromkeys(info["latent_dim"] for info in infos))
    return about


def generators_of(config: Settings, run: RunDirectory) -> Iterator[tuple[int, Path]]:
    """Yields seed and folder of every generator, trained when it is its turn.

    Args:
        config: The configuration.
        run: The run's folder, where generators of an interrupted run are.
    """
    if config.generators:
        for folder in config.generators:
            for seed in range(config.seed, config.seed + config.num_seeds):
                yield seed, Path(folder)
        return
    output = run.path / "generators"
    finished = {}
    for path in (output / train_generator.NAME).glob("*/summary.json"):
        about = json.loads(path.read_text())
        finished[about["latent_dim"], about["seed"]] = path.parent
    for latent_dim in config.latent_dims:
        for seed in range(config.seed, config.seed + config.num_seeds):
            if (latent_dim, seed) not in finished:
                trained = train_generator.run_experiment(
                    training_config(config, latent_dim, seed, str(output))
                )
                finished[latent_dim, seed] = trained.path
            yield seed, finished[latent_dim, seed]


def training_config(
    config: Settings, latent_dim: int, seed: int, output: str
) -> train_generator.Config:
    """Returns how one generator is trained.

    Args:
        config: The configuration.
        latent_dim: Of the generator.
        seed: Of the generator.
        output: Where its run goes.
    """
    return train_generator.Config(
        dataset=config.dataset,
        data_dir=config.data_dir,
        family=config.family,
        decoder=config.decoder,
        kl_weight=config.kl_weight,
        latent_dim=latent_dim,
        num_steps=config.generator_steps,
        num_snapshots=config.num_snapshots,
        seed=seed,
        output=output,
    )


def title_of(generator: Generator) -> str:
    """Returns what the generators are.

    Args:
        generator: One of them.
    """
    info = generator.info
    return f"{info['dataset']}, {info['family']}, {info['decoder']} decoder"
