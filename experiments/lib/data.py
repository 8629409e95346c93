"""Image data sets with fixed splits, read from disk and kept decoded for the next run."""

import contextlib
import dataclasses
import importlib.util
import logging
import os
import re
import stat
import zipfile
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from experiments.lib.errors import UserError

DatasetName = Literal["auto", "mnist", "fashion_mnist", "digits"]
"""Grey images."""
ColorName = Literal["cifar10"]
"""Colour images, for the experiments that take them."""

_NUM_VALIDATION = 5_000
_READ_BATCH = 10_000


@dataclasses.dataclass(frozen=True)
class Split:
    """Images, float32 (n, height, width, channels) in [0, 1], and their labels, int32 (n,)."""

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set with fixed splits: tune on `validation`, touch `test` once per reported run.

    Attributes:
        name: The data set that was loaded, never `auto`.
        train: What the loss is computed on.
        validation: Carved from the training images with a fixed seed.
        test: The published test images.
        class_names: One name per label.
        note: Not empty when the data are not the ones one would expect; show it to the user.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    note: str = ""

    @property
    def num_pixels(self) -> int:
        """Numbers per image."""
        return int(np.prod(self.train.images.shape[1:]))

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.class_names)


def load_dataset(name: DatasetName | ColorName, data_dir: str | None) -> Dataset:
    """Loads a data set from disk; nothing is ever downloaded.

    Prepared data are searched in `data_dir`, then `$TFDS_DATA_DIR`, then `~/tensorflow_datasets`.
    `auto` is MNIST where it is prepared, and scikit-learn's embedded digits elsewhere.

    Args:
        name: One of `DatasetName` or `ColorName`.
        data_dir: A folder that `tensorflow_datasets` prepared, searched first.

    Raises:
        UserError: If the name is unknown, or the data are missing or unreadable.
    """
    names = get_args(DatasetName) + get_args(ColorName)
    if name not in names:
        raise UserError(f"unknown dataset '{name}'; the datasets are: {', '.join(names)}")
    if name == "digits":
        return _load_digits()
    if name != "auto":
        return _load_prepared(name, data_dir)
    try:
        return _load_prepared("mnist", data_dir)
    except UserError as error:
        note = f"using the 8x8 digits of scikit-learn instead of MNIST, because {error}"
        return dataclasses.replace(_load_digits(), note=note)


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    train, validation = train_test_split(
        train, test_size=0.1, stratify=labels[train], random_state=0
    )
    return Dataset(
        name="digits",
        train=Split(images[train], labels[train]),
        validation=Split(images[validation], labels[validation]),
        test=Split(images[test], labels[test]),
        class_names=tuple(str(label) for label in digits.target_names),
    )


def _load_prepared(name: str, data_dir: str | None) -> Dataset:
    folder = _find_prepared(name, data_dir)
    arrays = None
    caches = _cache_files(name, folder)
    for cache in caches:
        arrays = arrays or _read_cache(cache)
    if arrays is None:
        arrays = _decode(name, folder)
        _write_cache(arrays, caches)
    train, validation = _carve(len(arrays["train_labels"]), _NUM_VALIDATION)
    images, labels = arrays["train_images"], arrays["train_labels"].astype(np.int32)
    return Dataset(
        name=name,
        train=Split(_to_float(images[train]), labels[train]),
        validation=Split(_to_float(images[validation]), labels[validation]),
        test=Split(_to_float(arrays["test_images"]), arrays["test_labels"].astype(np.int32)),
        class_names=tuple(arrays["class_names"].tolist()),
    )


def _find_prepared(name: str, data_dir: str | None) -> Path:
    """Returns the folder NAME/VERSION of the newest prepared version.

    TFDS is not asked, because importing it takes longer than reading the cache, and because its
    error for a missing data set speaks of TFRecord files instead.
    """
    roots = [data_dir, os.environ.get("TFDS_DATA_DIR"), "~/tensorflow_datasets"]
    for root in (Path(root).expanduser() for root in roots if root):
        versions = [
            path.parent
            for path in root.glob(f"{name}/*/dataset_info.json")
            if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
        ]
        if versions:
            return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))
    raise UserError(
        f"{name} is not on this machine: prepare it with `python scripts/prepare_data.py {name}` "
        "(or point --data-dir or $TFDS_DATA_DIR at it), or use `--dataset digits`"
    )


def _decode(name: str, folder: Path) -> dict[str, np.ndarray]:
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise UserError(
            f"reading {name} needs the package tensorflow-datasets: install it, "
            "or use `--dataset digits`"
        )
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS warns about optional packages.
    import tensorflow_datasets as tfds

    arrays = {}
    try:
        for split in ("train", "test"):
            source = tfds.data_source(
                f"{name}:{folder.name}", split=split, data_dir=folder.parents[1], download=False
            )
            images, labels = [], []
            for start in range(0, len(source), _READ_BATCH):
                stop = min(start + _READ_BATCH, len(source))
                for record in source.__getitems__(range(start, stop)):
                    images.append(record["image"])
                    labels.append(record["label"])
            arrays[f"{split}_images"] = np.stack(images)
            arrays[f"{split}_labels"] = np.array(labels, dtype=np.uint8)
            arrays["class_names"] = np.array(source.dataset_info.features["label"].names)
    except Exception as error:  # TFDS and its readers raise every kind for damaged files.
        raise UserError(
            f"{name} in {folder} cannot be read ({type(error).__name__}): delete that folder and "
            f"prepare it again with `python scripts/prepare_data.py {name}`"
        ) from error
    return arrays


def _carve(num_train: int, num_validation: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits indices into training and validation ones, the same on every machine."""
    # RandomState, unlike Generator, promises the same stream in every version of NumPy.
    order = np.random.RandomState(0).permutation(num_train)
    return np.sort(order[num_validation:]), np.sort(order[:num_validation])


def _to_float(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / np.float32(255)


def _cache_files(name: str, folder: Path) -> list[Path]:
    """Where decoded arrays may be kept: beside the data, else in the user's cache folder."""
    file_name = f"zojax-{name}-{folder.name}.npz"
    cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return [folder / file_name, Path(cache_home).expanduser() / "zojax" / file_name]


def _read_cache(path: Path) -> dict[str, np.ndarray] | None:
    """Reads decoded arrays; None if there are none or they are damaged (zip keeps checksums)."""
    keys = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in keys}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write_cache(arrays: dict[str, np.ndarray], paths: list[Path]) -> None:
    """Keeps decoded arrays in the first place that can be written; none is fine too."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            # A folder whose permissions say read-only is left alone even by root, who could write.
            if path.parent.stat().st_mode & stat.S_IWUSR:
                _save_atomically(arrays, path)
                return


def _save_atomically(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Saves uncompressed, which reads ten times faster, and never leaves half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
