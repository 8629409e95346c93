"""Collects finished runs into one committed summary: mean and spread over seeds, per setting.

    python scripts/collect_results.py runs/mnist_es/* --output docs/results/mnist_es

Writes summary.json (every run with its configuration, and for each preset mean, standard deviation
and range over seeds), and the figures of each preset's first run.
"""

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

MEASURES = ("test_accuracy", "validation_accuracy", "seconds", "sample_forwards", "queries")


def load(folder: Path) -> dict[str, Any]:
    """Returns configuration, environment and summary of a finished run."""
    try:
        stored = json.loads((folder / "config.json").read_text())
        return {**stored, "summary": json.loads((folder / "summary.json").read_text())}
    except FileNotFoundError as error:
        sys.exit(f"error: {folder} is not a finished run: {error.filename} is missing")


def spread(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns mean, standard deviation, smallest and largest of every measure over runs."""
    result: dict[str, Any] = {"seeds": [run["config"]["seed"] for run in runs]}
    for name in MEASURES:
        values = [run["summary"][name] for run in runs]
        result[name] = {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "min": min(values),
            "max": max(values),
        }
    return result


def main() -> None:
    """Reads the runs, groups them by preset and writes the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--machine", default="", help="what they ran on, in words")
    arguments = parser.parse_args()

    presets: dict[str, list[dict[str, Any]]] = {}
    folders: dict[str, Path] = {}
    for folder in sorted(arguments.runs):
        run = load(folder)
        preset = run["config"]["preset"]
        presets.setdefault(preset, []).append(run)
        folders.setdefault(preset, folder)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for preset, folder in folders.items():
        for figure in (folder / "figures").glob("*.png"):
            shutil.copy(figure, arguments.output / f"{preset}-{figure.name}")
    summary = {
        "machine": arguments.machine,
        "presets": {name: spread(runs) for name, runs in presets.items()},
        "runs": [run for runs in presets.values() for run in runs],
    }
    path = arguments.output / "summary.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    for name, result in summary["presets"].items():
        accuracy = result["test_accuracy"]
        std = "" if accuracy["std"] is None else f" +- {accuracy['std']:.2%}"
        print(
            f"{name}: test accuracy {accuracy['mean']:.2%}{std} over {len(result['seeds'])} "
            f"seeds, {result['seconds']['mean']:.0f} s, {result['sample_forwards']['mean']:.3g} "
            "sample-forwards"
        )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
