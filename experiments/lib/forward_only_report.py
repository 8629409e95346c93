"""Tables and figure of the forward-only trainings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib import figures


def reached(rows: Sequence[Mapping[str, Any]], target: float) -> float | None:
    """Returns the sample-forwards at the first evaluation with the target accuracy.

    Args:
        rows: Of one training.
        target: Validation accuracy, a fraction.

    Returns:
        Interpolated between evaluations on a logarithmic scale; None if it is not reached.
    """
    before: Mapping[str, Any] | None = None
    for row in rows:
        if row["accuracy"] >= target:
            if before is None:
                return float(row["sample_forwards"])
            share = (target - before["accuracy"]) / (row["accuracy"] - before["accuracy"])
            ends = np.log([before["sample_forwards"], row["sample_forwards"]])
            return float(np.exp(ends[0] + share * (ends[1] - ends[0])))
        before = row
    return None


def summarise(runs: Sequence[Mapping[str, Any]], target: float) -> list[dict[str, Any]]:
    """Joins the seeds of each method.

    Args:
        runs: Trainings with `method`, `rate`, `test_accuracy` and `rows`.
        target: Validation accuracy that is to be reached.
    """
    result = []
    for method in dict.fromkeys(run["method"] for run in runs):
        mine = [run for run in runs if run["method"] == method]
        scores = [run["test_accuracy"] for run in mine]
        crossings = [reached(run["rows"], target) for run in mine]
        found = [c for c in crossings if c is not None]
        result.append(
            {
                "method": method,
                "learning_rate": mine[0]["rate"],
                "test_accuracy": float(np.mean(scores)),
                "lowest": min(scores),
                "highest": max(scores),
                "sample_forwards": mine[0]["rows"][-1]["sample_forwards"],
                "seconds": float(np.mean([run["rows"][-1]["seconds"] for run in mine])),
                "to_target": float(np.median(found)) if len(found) == len(mine) else None,
                "seeds": len(mine),
            }
        )
    return result


def write_table(path: Path, summary: Mapping[str, Any]) -> str:
    """Writes and returns the tables of a run.

    Args:
        path: The file.
        summary: What `summary.json` has.
    """
    target = f"{100 * summary['target']:g} %"
    lines = [
        f"| gradient from | learning rate | test accuracy (lowest to highest) | sample-forwards | "
        f"seconds | sample-forwards to {target} | temporaries |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in summary["methods"]:
        memory = summary["memory"].get(row["method"])
        cells = (
            row["method"].replace("_", " "),
            f"{row['learning_rate']:g}",
            f"{row['test_accuracy']:.2%} ({row['lowest']:.2%} to {row['highest']:.2%})",
            f"{row['sample_forwards']:.2g}",
            f"{row['seconds']:.0f}",
            "not reached" if row["to_target"] is None else f"{row['to_target']:.2g}",
            "" if memory is None else f"{memory / 2**20:.1f} MiB",
        )
        lines.append(f"| {' | '.join(cells)} |")
    inference = summary["memory"].get("inference")
    if inference is not None:
        lines += ["", f"Inference on the same images takes {inference / 2**20:.1f} MiB."]
    if summary["cosines"]:
        lines += [
            "",
            "| first-order steps | noise | pairs | predicted cosine | measured |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {r['steps']} | {r['method'].replace('_', ' ')} | {r['num_draws']} | "
            f"{r['predicted']:.3f} | {r['measured']:.3f} |"
            for r in summary["cosines"]
        ]
    text = "\n".join(lines) + "\n"
    path.write_text(text)
    return text


def draw(path: Path, runs: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draws the first seed of every method against sample-forwards and seconds.

    Args:
        path: The PNG to write.
        runs: Trainings.
        title: Above the figure.
    """
    curves: dict[str, Any] = {}
    for run in runs:
        name = "back-propagation" if run["method"] == "back_propagation" else run["method"]
        curves.setdefault(name.replace("_", " "), run["rows"])
    figures.learning_curves(path, curves, title)
