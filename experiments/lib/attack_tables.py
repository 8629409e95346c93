"""Tables of `experiments.attack`, in Markdown and on the terminal, made of rows of numbers."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.lib.attack_report import Row

HEAD = (
    "attack",
    "norm",
    "success",
    "queries (median)",
    "found",
    "first found at",
    "l2 (median)",
    "linf (median)",
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


def cells_of(row: Row) -> list[str]:
    """Returns a row of the table.

    Args:
        row: From `row_of`.
    """
    white = row["is_white_box"]
    name = row["attack"] + (" (white box)" if white else "")
    return [
        name + ("*" if row["minimises_distortion"] else ""),
        row["norm"],
        _percent(row["success"], row["attacked"]),
        "–" if white else _center(row["queries_to_success"], ",.1f", ",.0f"),
        _percent(row["found"], row["attacked"]),
        "–" if white else _center(row["queries_to_first_found"], ",.1f", ",.0f"),
        _center(row["l2"], ".3f", ".3f"),
        _center(row["linf"], ".3f", ".3f"),
        "–" if white else f"{row['loss_queries']:,}",
        "–" if white else f"{row['check_queries']:,}",
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
            f"{first['attacked']}. Success: an adversarial input within {radii}, after so many "
            "queries, mean and median. Found: an adversarial input at any distance, over which l2 "
            "and linf are taken. Loss queries and checks: all rows sent."
        )
    if any(row["minimises_distortion"] for row in rows):
        lines.append(
            "\\* minimises the distortion without a bound; its queries to success are the first "
            "milestone at which it was within."
        )
    lost = [row for row in (*rows, *universal) if row["lost_queries"]]
    if lost:
        parts = ", ".join(f"{row['attack']} {row['lost_queries']:,}" for row in lost)
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


def _center(values: Row, of_mean: str, of_median: str) -> str:
    if values["mean"] is None:
        return "–"
    return f"{values['mean']:{of_mean}} ({values['median']:{of_median}})"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:{form}}"
