"""One perturbation for ten images, of one class or of all, and what it does to others."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.lib import attack_store
from experiments.lib.attack_oracles import Timed, build_oracle
from experiments.lib.attack_runs import Task, Ticker
from zojax import attacks
from zojax.attacks import Universal
from zojax.blackbox import OracleError

NUM_IMAGES = 10
NUM_UNSEEN = 200
_MOST_STEPS = 2_000  # without a budget
_NUM_DIRECTIONS = 10


class UniversalRecord(NamedTuple):
    """A universal perturbation, and what it does.

    Attributes:
        perturbation: Of the shape of an image.
        success: For which images it was made and works, bool (n,).
        l2: Its length.
        losses: The objective along the way.
        images: What it was made for, (n, ...).
        loss_queries: Rows sent for values.
        check_queries: Rows sent to check.
        unseen_success: Share of other images, classified correctly, whose goal it reaches.
        num_unseen: How many these are.
        unseen_queries: Rows sent to find out.
        seconds: Of the attack, with compilation and oracle.
        oracle_seconds: Within the attacked function.
        lost_queries: Rows sent by attempts that were interrupted.
    """

    perturbation: np.ndarray
    success: np.ndarray
    l2: float
    losses: np.ndarray
    images: np.ndarray
    loss_queries: int
    check_queries: int
    unseen_success: float
    num_unseen: int
    unseen_queries: int
    seconds: float
    oracle_seconds: float
    lost_queries: int


def image_sets(labels: np.ndarray, label: int) -> dict[str, np.ndarray]:
    """Returns for each set its places: first those of the attack, then the unseen ones.

    Args:
        labels: Of all test images.
        label: The class of the set that has one class.
    """
    every = np.arange(len(labels))
    sets = {f"class {label}": np.flatnonzero(labels == label), "all classes": every}
    return {name: places[: NUM_IMAGES + NUM_UNSEEN] for name, places in sets.items()}


def run(
    name: str, task: Task, places: np.ndarray, target: int | None, path: Path
) -> UniversalRecord:
    """Makes one perturbation, unless it was made before.

    Args:
        name: universal_adamm or universal_svrg.
        task: With all test images.
        places: From `image_sets`.
        target: The class to be reached; None if untargeted.
        path: The record's file.

    Raises:
        OracleError: If the oracle raises; nothing is kept but the number of queries.
    """
    stored = attack_store.load(path)
    if stored is not None:
        values = {key: value if value.ndim else value.item() for key, value in stored.items()}
        return UniversalRecord(**values)
    images, labels = task.images[places], task.labels[places]
    if target is not None:
        labels = np.full_like(labels, target)
    timed, began = Timed(task.function), time.perf_counter()
    oracle = build_oracle(timed, task.limits, task.budget)
    chosen = slice(NUM_IMAGES)
    ticker = Ticker(name)
    timed.listener = lambda: ticker(0, timed.rows)
    lost_path = path.with_suffix(".lost.npz")
    lost = int((attack_store.load(lost_path) or {"queries": 0})["queries"])
    rest = slice(NUM_IMAGES, None)
    try:
        found = _attack(name, oracle, images[chosen], labels[chosen], target, task)
        seconds = time.perf_counter() - began
        share, count, asked = _on_unseen(task, found, images[rest], labels[rest], target)
    except (OracleError, KeyboardInterrupt):
        attack_store.save(lost_path, queries=lost + timed.rows)
        raise
    finally:
        ticker.stop()
    counts = oracle.counts
    record = UniversalRecord(
        *found,
        images=images[chosen],
        loss_queries=int(counts.loss.sum()),
        check_queries=int(counts.check.sum()),
        unseen_success=share,
        num_unseen=count,
        unseen_queries=asked,
        seconds=seconds,
        oracle_seconds=timed.seconds,
        lost_queries=lost,
    )
    attack_store.save(path, **record._asdict())
    return record


def _attack(
    name: str, oracle: Any, images: np.ndarray, labels: np.ndarray, target: int | None, task: Task
) -> Universal:
    steps = _MOST_STEPS
    if task.budget is not None:
        steps = max(1, task.budget // (_NUM_DIRECTIONS + 1))
    common = {"is_targeted": target is not None, "num_directions": _NUM_DIRECTIONS}
    key = jax.random.key(task.seed)
    if name == "universal_adamm":
        return attacks.universal_adamm(oracle, images, labels, key, num_steps=steps, **common)
    # More steps than ZO-AdaMM at the same budget, which ends the attack: most are of five images.
    return attacks.universal_svrg(oracle, images, labels, key, num_steps=2 * steps, **common)


def _on_unseen(
    task: Task, found: Universal, images: np.ndarray, labels: np.ndarray, target: int | None
) -> tuple[float, int, int]:
    """Share of images that reach the goal with the perturbation and not without, and queries."""
    if not len(images):
        return float("nan"), 0, 0
    oracle = build_oracle(task.function, task.limits, None)
    owners = np.arange(len(images))
    before = oracle.labels(images, owners, purpose="check")
    after = oracle.labels(np.clip(images + found.perturbation, 0, 1), owners, purpose="check")
    reached = [(found_now == labels) == (target is not None) for found_now in (before, after)]
    others = ~reached[0]
    share = float(reached[1][others].mean()) if others.any() else float("nan")
    return share, int(others.sum()), int(oracle.counts.total.sum())
