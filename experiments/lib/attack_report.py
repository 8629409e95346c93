"""What attacks cost and found, as rows of numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.lib.attack_runs import Task
from experiments.lib.attack_store import Record
from experiments.lib.attack_suite import SUITE, WHITE_BOX
from experiments.lib.attack_universal import UniversalRecord

Row = Mapping[str, Any]
_ROUNDING = 1 + 1e-6  # of float32, in distances
_FAR = 1e30


def row_of(name: str, task: Task, record: Record) -> dict[str, Any]:
    """Returns all numbers of one attack.

    Success means within the radius of the attack's norm, also for attacks that minimise the
    distortion without a bound; their queries to success are the first milestone at which it was.

    Args:
        name: In the suite.
        task: What was attacked.
        record: What was found.
    """
    entry, results = SUITE[name], record.results
    radius = task.setting.eps if entry.norm == "linf" else task.setting.eps_l2
    others = results.status != "already"
    found = results.success
    succeeded, queries = _successes(entry.minimises and name != WHITE_BOX, radius, task, record)
    if name == WHITE_BOX:
        succeeded = found & (results.l2 <= radius * _ROUNDING)
    at = _at_milestones(entry.norm, task, record, others) if entry.minimises else []
    return {
        "attack": name,
        "norm": entry.norm,
        "radius": radius,
        "minimises_distortion": entry.minimises,
        "is_white_box": name == WHITE_BOX,
        "num_images": len(others),
        "already": int(np.sum(~others)),
        "oracle_failed": int(np.sum(results.status == "oracle_failed")),
        "unfinished": int(record.unfinished.sum()),
        "attacked": int(others.sum()),
        "found": int(found.sum()),
        "success": int(succeeded.sum()),
        "queries_to_success": spread(queries[succeeded]),
        "queries_to_first_found": spread(results.queries_to_success[found]),
        "queries_spent": spread(results.queries[others]),
        "l2": spread(results.l2[found]),
        "linf": spread(results.linf[found]),
        "at_milestones": at,
        "loss_queries": int(results.loss_queries.sum()),
        "check_queries": int(results.check_queries.sum()),
        "lost_queries": record.lost_queries,
        "seconds": round(record.seconds, 2),
        "oracle_seconds": round(record.oracle_seconds, 2),
    }


def _successes(
    minimises: bool, radius: float, task: Task, record: Record
) -> tuple[np.ndarray, np.ndarray]:
    """Which images are successes, and at how many queries they were."""
    results = record.results
    if not minimises:
        return results.success, results.queries_to_success
    return success_at(task, record, radius)


def success_at(task: Task, record: Record, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """For an attack without a ball: which images come within a radius, and at which milestone.

    Args:
        task: What was attacked.
        record: What was found.
        radius: In the norm of the setting that it is compared with.
    """
    results = record.results
    is_linf = radius == task.setting.eps
    final, at = (results.linf, results.linf_at) if is_linf else (results.l2, results.l2_at)
    inside = at <= radius * _ROUNDING
    milestones = np.asarray(task.milestones, np.int64)
    first = milestones[inside.argmax(axis=0)] if len(milestones) else results.queries
    first = np.where(inside.any(axis=0), first, results.queries)
    return results.success & (final <= radius * _ROUNDING), first


def _at_milestones(
    norm: str, task: Task, record: Record, others: np.ndarray
) -> list[dict[str, Any]]:
    """Quartiles of the distortion; images for which nothing was found count as infinitely far."""
    at = record.results.linf_at if norm == "linf" else record.results.l2_at
    rows = []
    for queries, values in zip(task.milestones, at, strict=False):
        distances = np.where(np.isnan(values), np.inf, values)[others]
        low, middle, high = _quartiles(distances)
        rows.append({"queries": queries, "lower": low, "median": middle, "upper": high})
    return rows


def universal_row(name: str, images: str, record: UniversalRecord) -> dict[str, Any]:
    """Returns all numbers of one universal perturbation.

    Args:
        name: Of the attack.
        images: Name of the set of images.
        record: What was found.
    """
    return {
        "attack": name,
        "images": images,
        "num_images": len(record.success),
        "success": int(record.success.sum()),
        "l2": record.l2,
        "linf": float(np.abs(record.perturbation).max()),
        "loss_queries": record.loss_queries,
        "check_queries": record.check_queries,
        "num_unseen": record.num_unseen,
        "unseen_success": record.unseen_success,
        "unseen_queries": record.unseen_queries,
        "lost_queries": record.lost_queries,
        "losses": record.losses[:: max(1, len(record.losses) // 200)],
        "seconds": round(record.seconds, 2),
        "oracle_seconds": round(record.oracle_seconds, 2),
    }


def spread(values: np.ndarray) -> dict[str, Any]:
    """Returns mean, standard deviation, quartiles and range; None each if there are no values.

    Args:
        values: (n,).
    """
    names = ("mean", "deviation", "lower", "median", "upper", "least", "most")
    if not len(values):
        return dict.fromkeys(names)
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    numbers = (values.mean(), deviation, *_quartiles(values), values.min(), values.max())
    return dict(zip(names, map(float, numbers), strict=True))


def _quartiles(values: np.ndarray) -> tuple[float, float, float]:
    """Of values that may be infinite, which interpolation would turn into NaN."""
    if not len(values):
        return (float("nan"),) * 3
    found = np.quantile(np.minimum(values, _FAR), (0.25, 0.5, 0.75))
    return tuple(float(value) if value < _FAR / 1e6 else float("inf") for value in found)
