"""First-order training of MNIST networks, its values-only twins, and what noise does to both.

    python -m experiments.mnist_study

Optimisers, penalties, dropout and batch norm under perturbation, learning rates, noise on pixels
and on weights, transfer: each part trains what it needs and adds its table and figure to one run.
Expected numbers: see docs/results/mnist_study.
"""

import dataclasses
import time
from typing import Any, Literal

import jax

from experiments.lib import cli
from experiments.lib.compilation_cache import keep_compiled_programs
from experiments.lib.data import DatasetName, load_dataset
from experiments.lib.errors import run_cli
from experiments.lib.runs import RunDirectory
from experiments.lib.study import Study
from experiments.lib.study_data import Data
from experiments.lib.study_networks import Network
from experiments.lib.study_noise import noise
from experiments.lib.study_optimizers import first_order, sensitivity, twins
from experiments.lib.study_recipes import RECIPES
from experiments.lib.study_regularization import perturbation, regularization
from experiments.lib.study_transfer import transfer

NAME = "mnist_study"
PARTS = {
    "first_order": first_order,
    "twins": twins,
    "sensitivity": sensitivity,
    "regularization": regularization,
    "perturbation": perturbation,
    "noise": noise,
    "transfer": transfer,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a CNN by back-propagation and small networks by values alone, and compares them.

    Writes runs/mnist_study/<time>-<seed>/ with config.json, summary.json, table.md and figures/.
    Budgets are in sample-forwards: images pushed through a network, where a backward pass counts as
    two more.
    """

    preset: Literal["default", "quick"] = "default"
    """default: an hour or two on two cores. quick: all parts, small, under three minutes."""
    dataset: DatasetName = "auto"
    """auto is mnist where it is prepared, else scikit-learn's digits."""
    data_dir: str | None = None
    """Folder with prepared data; then $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    num_train: int | None = None
    """The most training images to use; by default all."""
    parts: tuple[str, ...] = tuple(PARTS)
    """What to do, in this order."""
    recipes: tuple[str, ...] = RECIPES
    """Settings of the reference CNN that the part first_order trains."""

    epochs: float = 10
    """Of the reference CNN."""
    hidden: tuple[int, ...] = (32,)
    """Hidden sizes of the small network."""
    pool: int | None = None
    """Side of the average pooling in front of it; by default 2, and 1 for digits."""
    backprop_epochs: float = 10
    """Of the small network by back-propagation."""
    sample_forwards: float = 1.5e8
    """Budget of the small network by values alone."""
    num_directions: int = 64
    """Antithetic pairs per step of the small network."""
    sigma: float = 0.05
    """Its smoothing radius, in parameter units."""
    batch_size: int = 512
    """Its images per step by values alone (back-propagation has 64)."""
    sensitivity_share: float = 1 / 15
    """Part of sample_forwards for one learning rate; of backprop_epochs three times this part."""
    rate_factors: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    """Learning rates of the sensitivity curves, in units of the usual ones."""
    regularization_share: float = 1 / 3
    """Part of sample_forwards for one training of the parts regularization and perturbation."""
    l1: float = 1e-4
    """Strength of the penalties that are compared."""
    input_noise: float = 0.3
    """Noise on pixels in the training of networks for it."""
    num_chips: int = 10
    """Simulated devices per level of noise on weights."""
    noise_images: int = 2_000
    """Test images per device."""

    transfer_features: tuple[int, ...] = (8, 16)
    """Channels of the network that is pretrained on Fashion-MNIST."""
    transfer_hidden: tuple[int, ...] = (64,)
    """Its hidden sizes."""
    pretrain_epochs: float = 5
    """Of pretraining."""
    transfer_epochs: float = 3
    """Of adaptation by back-propagation."""
    transfer_forwards: tuple[float, float, float] = (6e7, 1e7, 3e6)
    """Budgets of adaptation by values alone: last layer, last two, all; each about a minute or
    two, because frozen layers are computed once per step."""

    num_evals: int = 20
    """Evaluations on the validation part per training."""
    num_seeds: int = 3
    """Networks per setting."""
    seed: int = 0
    """The first seed."""
    output: str = "runs"
    """Folder for runs."""

    def __post_init__(self) -> None:
        """Checks what no library below checks."""
        for field, allowed in (("parts", tuple(PARTS)), ("recipes", RECIPES)):
            names = getattr(self, field)
            for name in names:
                if name not in allowed:
                    raise ValueError(f"unknown {field[:-1]} '{name}'; the {field} are: {allowed}")
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{field} must name at least one, and each only once")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "seed":
                if not 0 <= value < 2**32:
                    raise ValueError(f"seed must be in [0, 2^32), got {value}")
            elif isinstance(value, int | float) and not 0 < value < float("inf"):
                raise ValueError(f"{field.name} must be > 0 and finite, got {value}")
            elif isinstance(value, tuple) and field.name not in ("parts", "recipes"):
                _check_numbers(field.name, value)


def _check_numbers(name: str, values: tuple[float, ...]) -> None:
    if not values or not all(0 < value < float("inf") for value in values):
        raise ValueError(f"{name} must be one or more numbers > 0 and finite, got {values}")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "num_train": 8_000,
        "recipes": ("cnn_sgd_dropout", "cnn_adam_bn"),
        "epochs": 1,
        "backprop_epochs": 1,
        "sample_forwards": 8e6,
        "sensitivity_share": 0.05,
        "rate_factors": (0.3, 1.0, 3.0),
        "num_chips": 3,
        "noise_images": 500,
        "pretrain_epochs": 1,
        "transfer_epochs": 1,
        "transfer_forwards": (1e5, 1e5, 1e5),
        "num_evals": 3,
        "num_seeds": 1,
    },
}


def check_networks(config: Config, data: Data) -> None:
    """Refuses sizes that do not fit the images, before anything is trained.

    Args:
        config: The configuration.
        data: The images.

    Raises:
        UserError: If a network is too deep for them.
    """
    images = data.train.images[:1]
    small = Network(features=(), hidden=config.hidden, pool=config.pool or 1)
    adapted = Network(features=config.transfer_features, hidden=config.transfer_hidden)
    for network in (small, adapted) if "transfer" in config.parts else (small,):
        jax.eval_shape(network.init, jax.random.key(0), images)


def run_experiment(config: Config) -> RunDirectory:
    """Runs every part, and writes the run's folder after each.

    Args:
        config: The configuration.
    """
    dataset = load_dataset(config.dataset, config.data_dir)
    if dataset.note:
        print(f"NOTE: {dataset.note}", flush=True)
    pool = config.pool or (1 if dataset.name == "digits" else 2)
    config = dataclasses.replace(config, dataset=dataset.name, pool=pool)
    data = Data.of(dataset, config.num_train)
    check_networks(config, data)
    run = RunDirectory.create(config.output, NAME, config.seed, config)
    print(f"{dataset.name}: {len(data.train.labels):,} training images\nwriting {run.path}")
    study, tables, seconds = Study(config, data, run), [], {}
    for name in config.parts:
        part, began = PARTS[name], time.perf_counter()
        title = (part.__doc__ or "").splitlines()[0]
        print(f"\n{name}: {title}", flush=True)
        text = part(study)
        seconds[name] = round(time.perf_counter() - began, 1)
        print(text, flush=True)
        tables.append(f"## {name}\n\n{title}\n\n{text}")
        (run.path / "table.md").write_text("\n".join(tables))
        run.write_summary(
            {
                "experiment": NAME,
                "dataset": dataset.name,
                "note": dataset.note,
                "seconds": seconds,
                "parts": study.results,
            }
        )
    print(f"figures: {run.figures_dir}\ntables: {run.path / 'table.md'}", flush=True)
    return run


def main() -> None:
    """Runs the command line."""
    config = cli.parse(Config, None, PRESETS)
    keep_compiled_programs()
    run_experiment(config)


if __name__ == "__main__":
    run_cli(main)
