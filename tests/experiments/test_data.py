import os
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.lib import data
from experiments.lib.errors import UserError


@pytest.fixture(autouse=True)
def empty_machine(monkeypatch, tmp_path):
    """No prepared data and no cache, wherever the tests run."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


@pytest.fixture
def prepared(tmp_path):
    """A folder that looks as if TFDS had prepared MNIST, newest version 3.0.1."""
    for version in ("3.0.1", "2.9.9", "3.0.1.incomplete"):
        folder = tmp_path / "tfds" / "mnist" / version
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")
    return tmp_path / "tfds"


@pytest.fixture
def decoded(monkeypatch):
    """Replaces the reading of ArrayRecord files; counts how often it happens."""
    calls = []

    def decode(name, folder):
        calls.append((name, folder.name))
        rng = np.random.default_rng(0)
        return {
            "train_images": rng.integers(0, 256, (60, 28, 28, 1), dtype=np.uint8),
            "train_labels": np.arange(60, dtype=np.uint8) % 10,
            "test_images": rng.integers(0, 256, (20, 28, 28, 1), dtype=np.uint8),
            "test_labels": np.arange(20, dtype=np.uint8) % 10,
            "class_names": np.array([str(label) for label in range(10)]),
        }

    monkeypatch.setattr(data, "_decode", decode)
    monkeypatch.setattr(data, "_NUM_VALIDATION", 10)
    return calls


def _check_split(split, count, shape):
    assert split.images.shape == (count, *shape)
    assert split.images.dtype == np.float32
    assert split.images.min() >= 0
    assert split.images.max() <= 1
    assert split.labels.shape == (count,)
    assert split.labels.dtype == np.int32


def test_digits():
    dataset = data.load_dataset("digits", None)
    for split, count in ((dataset.train, 1293), (dataset.validation, 144), (dataset.test, 360)):
        _check_split(split, count, (8, 8, 1))
        assert np.bincount(split.labels, minlength=10).min() >= 0.08 * count
    assert dataset.num_classes == 10
    assert dataset.note == ""


def test_auto_falls_back_loudly():
    dataset = data.load_dataset("auto", None)
    assert dataset.name == "digits"
    assert "digits" in dataset.note
    assert "prepare_data.py mnist" in dataset.note


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_missing_data_name_both_ways_out(name):
    with pytest.raises(UserError) as error:
        data.load_dataset(name, "/nowhere")
    assert f"python scripts/prepare_data.py {name}" in str(error.value)
    assert "--dataset digits" in str(error.value)


def test_unknown_name():
    with pytest.raises(UserError, match="'cifar'.*auto, mnist, fashion_mnist, digits"):
        data.load_dataset("cifar", None)


def test_prepared_data_are_decoded_once(prepared, decoded):
    first = data.load_dataset("mnist", str(prepared))
    again = data.load_dataset("auto", str(prepared))
    assert decoded == [("mnist", "3.0.1")]
    assert again.name == "mnist"
    assert again.class_names == tuple("0123456789")
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(first, split).images, getattr(again, split).images)
        np.testing.assert_array_equal(getattr(first, split).labels, getattr(again, split).labels)
    _check_split(again.train, 50, (28, 28, 1))
    _check_split(again.validation, 10, (28, 28, 1))
    _check_split(again.test, 20, (28, 28, 1))


def test_search_order(prepared, decoded, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert data.load_dataset("mnist", "/nowhere").name == "mnist"


def test_a_damaged_cache_is_rebuilt(prepared, decoded):
    data.load_dataset("mnist", str(prepared))
    [cache] = prepared.rglob("*.npz")
    os.truncate(cache, cache.stat().st_size // 2)
    data.load_dataset("mnist", str(prepared))
    data.load_dataset("mnist", str(prepared))
    assert len(decoded) == 2


def test_read_only_data_are_cached_for_the_user(prepared, decoded, tmp_path):
    (prepared / "mnist" / "3.0.1").chmod(0o555)
    for _ in range(2):
        data.load_dataset("mnist", str(prepared))
    assert len(decoded) == 1
    assert [path.name for path in (tmp_path / "cache" / "zojax").iterdir()] == [
        "zojax-mnist-3.0.1.npz"
    ]
    assert not list(prepared.rglob("*.npz"))


def test_nowhere_to_keep_the_cache(prepared, decoded, tmp_path):
    (prepared / "mnist" / "3.0.1").chmod(0o555)
    (tmp_path / "cache").write_text("a file, not a folder")
    assert data.load_dataset("mnist", str(prepared)).name == "mnist"


def test_damaged_records_are_a_user_error(prepared):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(UserError, match="cannot be read.*prepare it again"):
        data.load_dataset("mnist", str(prepared))


def test_validation_is_carved_the_same_everywhere():
    train, validation = data._carve(60_000, 5_000)
    assert len(np.union1d(train, validation)) == 60_000
    assert validation[:5].tolist() == [17, 28, 50, 66, 72]


@pytest.mark.data
def test_real_mnist(tfds_data_dir, tmp_path):
    start = time.perf_counter()
    dataset = data.load_dataset("mnist", str(tfds_data_dir))
    first = time.perf_counter() - start
    _check_split(dataset.train, 55_000, (28, 28, 1))
    _check_split(dataset.validation, 5_000, (28, 28, 1))
    _check_split(dataset.test, 10_000, (28, 28, 1))
    assert np.bincount(dataset.test.labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009
    ]  # fmt: skip
    program = (
        "import sys; from experiments.lib.data import load_dataset;"
        f"load_dataset('mnist', {str(tfds_data_dir)!r});"
        "assert 'tensorflow_datasets' not in sys.modules"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    assert time.perf_counter() - start < max(10, first)
