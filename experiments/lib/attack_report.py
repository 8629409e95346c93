"""What attacks cost and found: rows of numbers, a Markdown table, a table on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.lib.attack_runs import Task
from experiments.lib.attack_store import Record
from experiments.lib.attack_suite import SUITE, WHITE_BOX
from experiments.lib.attack_universal import UniversalRecord

Row = Mapping[str, Any]
_ROUNDING = 1 + 1e-6  # of float32, in distances
HEAD = (
    "attack",
    "norm",
    "success",
    "found",
    "queries mean",
    "median",
    "l2 mean",
    "median",
    "linf mean",
    "median",
    "loss queries",
    "checks",
    "seconds",
    "in oracle",
)
UNIVERSAL_HEAD = (
    "attack",
    "images",
    "success",
    "l2",
    "queries per image",
    "unseen images",
    "success",
    "seconds",
    "in oracle",
)


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
    """By a method that keeps infinity where it is, instead of making NaN of it."""
    if not len(values):
        return (float("nan"),) * 3
    found = np.quantile(values, (0.25, 0.5, 0.75), method="lower")
    middle = values[np.isfinite(values)]
    if len(middle) == len(values):
        found = np.quantile(values, (0.25, 0.5, 0.75))
    return tuple(float(value) for value in found)


def cells_of(row: Row) -> list[str]:
    """Returns a row of the table.

    Args:
        row: From `row_of`.
    """
    queries = row["queries_to_success"]
    counts = [_number(queries["mean"], ",.1f"), _number(queries["median"], ",.1f")]
    asked = [f"{row['loss_queries']:,}", f"{row['check_queries']:,}"]
    if row["is_white_box"]:
        counts, asked = ["–", "–"], ["–", "–"]
    name = row["attack"] + (" (white box)" if row["is_white_box"] else "")
    return [
        name + ("*" if row["minimises_distortion"] else ""),
        row["norm"],
        _percent(row["success"], row["attacked"]),
        _percent(row["found"], row["attacked"]),
        *counts,
        *(_number(row[norm][key], ".3f") for norm in ("l2", "linf") for key in ("mean", "median")),
        *asked,
        f"{row['seconds']:.1f}",
        f"{row['oracle_seconds']:.1f}",
    ]


def universal_cells(row: Row) -> list[str]:
    """Returns a row of the table of universal perturbations.

    Args:
        row: From `universal_row`.
    """
    queries = (row["loss_queries"] + row["check_queries"]) / row["num_images"]
    unseen = row["unseen_success"]
    return [
        row["attack"],
        row["images"],
        _percent(row["success"], row["num_images"]),
        f"{row['l2']:.3f}",
        f"{queries:,.0f}",
        str(row["num_unseen"]),
        "–" if unseen is None or np.isnan(unseen) else f"{100 * unseen:.0f} %",
        f"{row['seconds']:.1f}",
        f"{row['oracle_seconds']:.1f}",
    ]


def notes(rows: Sequence[Row], universal: Sequence[Row]) -> str:
    """Returns what a reader of the tables must know.

    Args:
        rows: Of attacks on single images.
        universal: Of universal perturbations.
    """
    lines = []
    if rows:
        first = rows[0]
        balls = sorted({(row["norm"], row["radius"]) for row in rows}, reverse=True)
        radii = " and ".join(f"{norm} {radius:g}" for norm, radius in balls)
        lines.append(
            f"{first['num_images']} images, {first['already']} of them already as the attack "
            "wants them, which costs one query each; success and found are of the other "
            f"{first['attacked']}. Success: an adversarial input within {radii}. Queries are those "
            "to success; distortions are over all images for which an input was found. Loss "
            "queries and checks: all rows sent."
        )
    if any(row["minimises_distortion"] for row in rows):
        lines.append(
            "\\* minimises the distortion: an input found may lie further away, and queries to "
            "success are the first milestone at which it was within."
        )
    lost = {row["attack"]: row["lost_queries"] for row in rows if row["lost_queries"]}
    if lost:
        parts = ", ".join(f"{name} {count:,}" for name, count in lost.items())
        lines.append(f"Queries lost by interruptions, besides: {parts}.")
    if universal:
        lines.append(
            "Universal: success on the images that it was made for (misclassified ones included), "
            "and on unseen images that are classified correctly without it."
        )
    return "\n\n".join(lines)


def milestone_table(rows: Sequence[Row]) -> list[list[str]]:
    """Returns the distortion at milestones, median (quartiles); a head, then a row per attack.

    Args:
        rows: Of attacks on single images.
    """
    chosen = [row for row in rows if row["at_milestones"]]
    if not chosen:
        return []
    head = ["median (quartiles)", "norm"]
    head += [f"{point['queries']:,}" for point in chosen[0]["at_milestones"]]
    return [
        head,
        *([row["attack"], row["norm"], *map(_band, row["at_milestones"])] for row in chosen),
    ]


def _band(point: Row) -> str:
    values = [_number(point[key], ".2f") for key in ("median", "lower", "upper")]
    return f"{values[0]} ({values[1]}–{values[2]})"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table.

    Args:
        head: Of the columns.
        lines: The cells of each row.
    """
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"


def show(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Prints a table on the terminal.

    Args:
        head: Of the columns.
        lines: The cells of each row.
    """
    table = Table()
    for number, title in enumerate(head):
        table.add_column(title, justify="left" if number < 2 else "right", no_wrap=number == 0)
    for cells in lines:
        table.add_row(*cells)
    console = Console()
    if not console.is_terminal:  # a file or a log has no width of its own
        console.width = 160
    console.print(table)


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.0f} %" if total else "–"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:{form}}"
