"""Models to attack: trained here once, kept on disk, asked through padded batches."""

import functools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import attack_store
from experiments.lib.data import Dataset
from experiments.lib.errors import UserError
from experiments.lib.study_data import Data, score
from experiments.lib.study_networks import KERNEL, Network, max_pool
from experiments.lib.study_training import FIRST_ORDER_FORWARDS, Recipe, train

VictimName = Literal["mlp", "cnn", "conv"]
_EPOCHS = {"mlp": 3, "cnn": 3, "conv": 5}
_DIGITS_EPOCHS = 100  # of 1,293 images
_BATCH = 64
_MOST_ROWS = {"mlp": 4096, "cnn": 1024, "conv": 256}  # per pass; bounds the memory
_FEWEST_ROWS = 8
_CONV_CHANNELS = ((32, 32), (64, 64))
_SMALLEST_CONV = 16  # pixels per axis, of which two blocks of convolutions leave one


class Victim(NamedTuple):
    """A trained classifier.

    Attributes:
        name: mlp, cnn or conv.
        apply: Images (b, height, width, 1) in [0, 1] to logits (b, classes), for JAX to trace.
        answer: The same for NumPy, through batches padded to powers of two.
        num_classes: Number of logits.
        test_accuracy: A fraction.
    """

    name: VictimName
    apply: Callable[[jax.Array], jax.Array]
    answer: Callable[[np.ndarray], np.ndarray]
    num_classes: int
    test_accuracy: float


class ValidNetwork(nn.Module):
    """conv32-32-pool-conv64-64-pool-fc200-200: what hard-label attacks are published on.

    Attributes:
        num_classes: Number of outputs.
        hidden: Sizes of the hidden dense layers.
        is_native: XLA's convolutions, slow inside a loop on a CPU; else a matrix product each.
    """

    num_classes: int = 10
    hidden: tuple[int, ...] = (200, 200)
    is_native: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images (batch, height, width, channels) to logits (batch, num_classes)."""
        del train
        x = images
        for block in _CONV_CHANNELS:
            for channels in block:
                x = nn.relu(self._convolution(x, channels))
            x = max_pool(x)
        x = x.reshape((x.shape[0], -1))
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)

    def _convolution(self, x: jax.Array, features: int) -> jax.Array:
        dot = None if self.is_native else _matrix_convolution
        return nn.Conv(features, (KERNEL, KERNEL), padding="VALID", conv_general_dilated=dot)(x)


def _matrix_convolution(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """The shifted images side by side, times a matrix."""
    height, width = x.shape[1] - KERNEL + 1, x.shape[2] - KERNEL + 1
    shifts = [x[:, i : i + height, j : j + width] for i in range(KERNEL) for j in range(KERNEL)]
    return jnp.concatenate(shifts, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def num_epochs(name: VictimName, dataset: Dataset, given: int | None) -> int:
    """Returns how long a victim is trained.

    Args:
        name: Of the victim.
        dataset: Its data.
        given: What the user asked for, None for the default.
    """
    if given is not None:
        return given
    return _DIGITS_EPOCHS if dataset.name == "digits" else _EPOCHS[name]


def check_size(name: VictimName, dataset: Dataset) -> None:
    """Refuses images that are too small.

    Args:
        name: Of the victim.
        dataset: Its data.

    Raises:
        UserError: If the convolutions leave nothing of them.
    """
    height, width = dataset.test.images.shape[1:3]
    if name == "conv" and min(height, width) < _SMALLEST_CONV:
        raise UserError(
            f"the victim 'conv' needs images of at least {_SMALLEST_CONV}x{_SMALLEST_CONV}, "
            f"{dataset.name} has {height}x{width}; choose mlp or cnn"
        )


def load_or_train(
    name: VictimName, dataset: Dataset, seed: int, epochs: int, folder: Path
) -> Victim:
    """Returns the victim; trains it if it is not in the folder.

    Args:
        name: Which network.
        dataset: What it classifies.
        seed: Of its parameters and batches.
        epochs: Passes over the training part.
        folder: Where victims are kept.
    """
    path = folder / f"{dataset.name}-{name}-{seed}-{epochs}.npz"
    stored = _read(path)
    if stored is None:
        stored = _train(name, dataset, seed, epochs)
        attack_store.save(path, **stored)
    else:
        print(f"victim {path}", flush=True)
    victim = _build(name, dataset.num_classes, stored)
    print(f"{name}: test accuracy {victim.test_accuracy:.2%}", flush=True)
    return victim


def _network(name: VictimName, num_classes: int, is_native: bool) -> Any:
    if name == "conv":
        return ValidNetwork(num_classes, is_native=is_native)
    if name == "cnn":
        return Network(num_classes, native_convolution=is_native)
    return Network(num_classes, features=(), hidden=(256, 128))


def _train(name: VictimName, dataset: Dataset, seed: int, epochs: int) -> dict[str, np.ndarray]:
    network = _network(name, dataset.num_classes, is_native=False)
    data = Data.of(dataset)
    budget = epochs * FIRST_ORDER_FORWARDS * len(dataset.train.labels)
    label = f"victim {name}, {epochs} epochs"
    recipe = Recipe(label, network, "adam", 1e-3, budget, batch_size=_BATCH)
    trained = train(recipe, data, seed, num_evals=min(epochs, 5))
    accuracy, _ = score(network, trained.variables, data, data.test)
    flat = flax.traverse_util.flatten_dict(trained.params, sep="/")
    about = {"mean": data.mean, "deviation": data.deviation, "test_accuracy": accuracy}
    return {key: np.asarray(value) for key, value in (flat | about).items()}


def _build(name: VictimName, num_classes: int, stored: dict[str, np.ndarray]) -> Victim:
    network = _network(name, num_classes, is_native=True)
    about = ("mean", "deviation", "test_accuracy")
    flat = {key: jnp.asarray(value) for key, value in stored.items() if key not in about}
    variables = {"params": flax.traverse_util.unflatten_dict(flat, sep="/")}
    mean, deviation = jnp.asarray(stored["mean"]), jnp.asarray(stored["deviation"])

    def apply(images: jax.Array) -> jax.Array:
        return network.apply(variables, (images - mean) / deviation)

    answer = functools.partial(_padded, jax.jit(apply), _MOST_ROWS[name])
    return Victim(name, apply, answer, num_classes, float(stored["test_accuracy"]))


def _padded(function: Callable[..., Any], most: int, batch: np.ndarray) -> np.ndarray:
    """Answers rows in passes whose sizes are powers of two, so that few are compiled."""
    answers = []
    for start in range(0, len(batch), most):
        rows = batch[start : start + most]
        size = max(_FEWEST_ROWS, 1 << (len(rows) - 1).bit_length())
        padded = np.zeros((size, *rows.shape[1:]), np.float32)
        padded[: len(rows)] = rows
        answers.append(np.asarray(function(padded))[: len(rows)])
    return np.concatenate(answers)


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """None if there is none, or a damaged one."""
    try:
        return attack_store.load(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
