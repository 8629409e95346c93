"""Results of attacks on disk: one file per attack, whole or absent."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.lib.errors import UserError
from zojax.attacks import Results

_OF_MILESTONES = ("l2_at", "linf_at")


class Record(NamedTuple):
    """What an attack has cost and found so far.

    Attributes:
        results: of every image.
        unfinished: images that an interruption left, bool (b,).
        seconds: of the attack, with compilation and oracle.
        oracle_seconds: within the attacked function.
        lost_queries: spent on images that were interrupted and had to be attacked again.
    """

    results: Results
    unfinished: np.ndarray
    seconds: float
    oracle_seconds: float
    lost_queries: int = 0


def merge(old: Record, new: Record) -> Record:
    """Puts the results of the images that were attacked again in their places.

    Args:
        old: of all images.
        new: of those that `old` left unfinished, in order.
    """
    places = np.flatnonzero(old.unfinished)
    merged = {}
    for name, values in old.results._asdict().items():
        changed = values.copy()
        changed[(slice(None), places) if name in _OF_MILESTONES else places] = getattr(
            new.results, name
        )
        merged[name] = changed
    unfinished = np.zeros_like(old.unfinished)
    unfinished[places] = new.unfinished
    return Record(
        results=Results(**merged),
        unfinished=unfinished,
        seconds=old.seconds + new.seconds,
        oracle_seconds=old.oracle_seconds + new.oracle_seconds,
        lost_queries=old.lost_queries + int(old.results.queries[places].sum()),
    )


def save(path: Path, **content: Any) -> None:
    """Writes arrays and numbers.

    Args:
        path: an npz file; its folder is made.
        **content: by name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, **content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path) -> dict[str, np.ndarray] | None:
    """Reads what `save` wrote.

    Args:
        path: an npz file.

    Returns:
        Arrays by name, None if there is no file.
    """
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def save_record(path: Path, record: Record) -> None:
    """Writes the record of an attack.

    Args:
        path: an npz file.
        record: what to write.
    """
    content = record._asdict()
    save(path, **content.pop("results")._asdict(), **content)


def load_record(path: Path) -> Record | None:
    """Reads the record of an attack.

    Args:
        path: an npz file.

    Raises:
        UserError: If another version wrote it.
    """
    stored = load(path)
    if stored is None:
        return None
    missing = set(Results._fields) - set(stored)
    if missing:
        raise UserError(f"{path} is of another version: it has no {', '.join(sorted(missing))}")
    results = Results(**{name: stored[name] for name in Results._fields})
    return Record(
        results=results,
        unfinished=stored["unfinished"],
        seconds=float(stored["seconds"]),
        oracle_seconds=float(stored["oracle_seconds"]),
        lost_queries=int(stored["lost_queries"]),
    )
