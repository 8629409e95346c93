"""Networks of unfinished trials of `experiments.tune`: one small file a trial.

A study saves thousands of times a few kilobytes, where Orbax would take most of the time.
"""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np


def save(folder: Path, number: int, state: Any, units: int) -> None:
    """Saves the state of a trial, whole or not at all.

    Args:
        folder: Of the run.
        number: Of the trial.
        state: A tree of arrays.
        units: How far it is trained.
    """
    path = _path(folder, number)
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, *jax.tree.leaves(state), units=units)
    os.replace(temporary, path)


def load(folder: Path, number: int) -> tuple[list[np.ndarray] | None, int]:
    """Returns the leaves of a trial's state and its units; None and 0 if nothing was saved."""
    path = _path(folder, number)
    if not path.exists():
        return None, 0
    with np.load(path, allow_pickle=False) as stored:
        leaves = [stored[f"arr_{i}"] for i in range(len(stored.files) - 1)]
        return leaves, int(stored["units"])


def remove(folder: Path, number: int) -> None:
    """Removes what was saved of a trial, if anything."""
    _path(folder, number).unlink(missing_ok=True)


def _path(folder: Path, number: int) -> Path:
    return folder / "checkpoints" / f"{number}.npz"
