"""The folder of one run: configuration, metrics, summary, figures and checkpoints."""

import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

from experiments.lib.errors import UserError, describe_disk_error

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "zojax")


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """`ROOT/NAME/<time>-<seed>/`: every file is either whole or absent, whenever the run dies.

    Attributes:
        path: The folder itself.
    """

    path: Path

    @classmethod
    def create(cls, root: str | Path, name: str, seed: int, config: Any) -> Self:
        """Makes a new folder, never an existing one, and writes `config.json` into it.

        Args:
            root: Where all runs live, usually `runs`.
            name: The experiment.
            seed: Becomes part of the folder's name.
            config: A dataclass; written with versions, devices and matmul precision.

        Raises:
            UserError: If the folder cannot be written.
        """
        stamp = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{seed}"
        content = {"config": dataclasses.asdict(config), "environment": _environment()}
        try:
            run = cls(_make_new(Path(root) / name, stamp))
            run._write("config.json", _dump(content, indent=2))
        except OSError as error:
            message = describe_disk_error(error)
            raise UserError(f"{message}; choose another output folder") from error
        return run

    @classmethod
    def open_existing(cls, path: str | Path) -> Self:
        """Opens the folder of an earlier run.

        Raises:
            UserError: If this is not the folder of a run.
        """
        path = Path(path)
        if not (path / "config.json").is_file():
            raise UserError(f"{path} is not the folder of a run: it has no config.json")
        return cls(path)

    @property
    def figures_dir(self) -> Path:
        """Where figures go; made on first use."""
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def checkpoints_dir(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    def read_config(self) -> dict[str, Any]:
        """Returns the stored configuration; lists become tuples, as in a frozen dataclass."""
        try:
            stored = json.loads((self.path / "config.json").read_text())["config"]
            return {name: as_tuple(value) for name, value in stored.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path / 'config.json'} is damaged") from error

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds one line to `metrics.jsonl` and makes sure that it is on the disk."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(_dump(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns all rows; a line torn by a killed process is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        rows = []
        for line in path.read_text(errors="replace").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def truncate_metrics(self, step: int) -> None:
        """Drops rows later than `step`, and a torn line: a resumed run writes them again."""
        rows = [row for row in self.read_metrics() if row["step"] <= step]
        self._write("metrics.jsonl", "".join(_dump(row) + "\n" for row in rows))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes `summary.json`."""
        self._write("summary.json", _dump(summary, indent=2))

    def _write(self, name: str, text: str) -> None:
        temporary = self.path / f".{name}.tmp"
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path / name)


def check_same_config(
    stored: Mapping[str, Any], requested: Mapping[str, Any], ignore: Collection[str]
) -> None:
    """Refuses to resume a run with another configuration than it was started with.

    Args:
        stored: The configuration of the run, as read from its `config.json`.
        requested: The configuration asked for now, as a dict.
        ignore: Fields that may differ.

    Raises:
        UserError: Naming the first differing fields and both values.
    """
    stored, requested = json.loads(_dump(stored)), json.loads(_dump(requested))
    differing = [
        f"{name} was {stored.get(name, 'absent')} and is now {requested.get(name, 'absent')}"
        for name in {**stored, **requested}
        if name not in ignore and stored.get(name, "absent") != requested.get(name, "absent")
    ]
    if differing:
        more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
        raise UserError(
            f"cannot resume with a different configuration: {', '.join(differing[:3])}{more}"
        )


def _make_new(parent: Path, stamp: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        path = parent / (f"{stamp}-{number}" if number else stamp)
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1


def _environment() -> dict[str, Any]:
    import jax

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "devices": [device.device_kind for device in jax.devices()],
        "default_matmul_precision": jax.config.jax_default_matmul_precision,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _dump(value: Any, indent: int | None = None) -> str:
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    """Turns arrays, paths and tuples into JSON values; JSON has no NaN, so that becomes null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def as_tuple(value: Any) -> Any:
    """Turns lists, at any depth, into tuples: JSON has none."""
    return tuple(as_tuple(item) for item in value) if isinstance(value, list) else value
