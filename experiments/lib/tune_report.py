"""What a live study of `experiments.tune` leaves: the result grid, plots, and the best setting."""

import csv
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from experiments.lib.classifier import Evaluator
from experiments.lib.data import Dataset
from experiments.lib.report import digest
from experiments.lib.runs import RunDirectory
from experiments.lib.tune_live import REASON, is_counted
from experiments.lib.tune_space import TRAINING_SPACE
from experiments.lib.tune_training import NUM_UNITS, Trainable, build_final_task

_TARGET = "held-out cross-entropy"
_SHOWN = 15  # rows of the Markdown table


def result_grid(study: optuna.Study, unit_forwards: int) -> list[dict[str, Any]]:
    """Returns a row per trial, best first: configuration, score, cost, and why it failed.

    Args:
        study: The study.
        unit_forwards: Sample-forwards of a unit of training.
    """
    rows = []
    for trial in filter(is_counted, study.get_trials(deepcopy=False)):
        units = trial.last_step or 0
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                "score": trial.value,
                "units": units,
                "sample_forwards": units * unit_forwards,
                **{name: trial.params.get(name) for name in TRAINING_SPACE},
                "reason": trial.user_attrs.get(REASON, ""),
            }
        )
    # Scores after less training are not comparable, so complete trials come first.
    return sorted(rows, key=lambda r: (-r["units"], r["score"] is None, r["score"] or 0.0))


def write(config: Any, run: RunDirectory, study: optuna.Study, dataset: Dataset) -> None:
    """Writes the result grid, the plots and `summary.json`, and trains the best setting anew.

    Args:
        config: The configuration.
        run: The run's folder.
        study: The finished study.
        dataset: The data, whose test part is scored once per retraining.
    """
    task = build_final_task(dataset, config.hidden, config.pool)
    seeds = range(config.seed + 1, config.seed + 1 + config.num_retrainings)
    trainables = [Trainable(task, config.batch_size, config.steps_per_unit, s) for s in seeds]
    grid = result_grid(study, trainables[0].unit_forwards)
    _write_grid(run.path, grid)
    states = Counter(row["state"] for row in grid)
    summary: dict[str, Any] = {
        "experiment": "tune",
        "study": "live",
        "dataset": dataset.name,
        "note": dataset.note,
        "sampler": config.sampler,
        "pruner": config.pruner,
        "trials": dict(states),
        "reasons": Counter(row["reason"] for row in grid if row["reason"]),
        "sample_forwards": sum(row["sample_forwards"] for row in grid),
        "sample_forwards_per_training": NUM_UNITS * trainables[0].unit_forwards,
        "best": None,
    }
    if states["complete"]:
        best = next(row for row in grid if row["state"] == "complete")
        summary["best"] = best
        params = study.trials[best["trial"]].params
        print(f"training the best setting, trial {best['trial']}, with {len(seeds)} new seeds")
        summary["retrained"] = [
            {"seed": seed, **_retrain(trainable, params, task)}
            for seed, trainable in zip(seeds, trainables, strict=True)
        ]
        accuracies = [entry["test_accuracy"] for entry in summary["retrained"]]
        deviation = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0
        summary["test_accuracy"] = [float(np.mean(accuracies)), deviation]
    run.write_summary(summary)
    summary["plots"] = plot(study, run.figures_dir)
    run.write_summary(summary)
    _print(summary, run)


def _retrain(trainable: Trainable, params: dict[str, Any], task: Any) -> dict[str, Any]:
    state = trainable.advance(trainable.init(1), [params], 0, NUM_UNITS)
    weights = {k: {n: x[0] for n, x in leaves.items()} for k, leaves in state[0].items()}
    accuracy, loss = Evaluator(task.module).score(weights, task.test)
    return {"test_accuracy": accuracy, "test_loss": loss, "params_sha256": digest(weights)}


def _print(summary: dict[str, Any], run: RunDirectory) -> None:
    counts = ", ".join(f"{count} {state}" for state, count in summary["trials"].items())
    print(f"{counts}; {summary['sample_forwards']:.3g} sample-forwards")
    if summary["best"] is None:
        print("no trial was trained to the end, so there is no best setting: see table.md")
    else:
        mean, deviation = summary["test_accuracy"]
        print(
            f"best {_TARGET} {summary['best']['score']:.4f}; retrained with "
            f"{len(summary['retrained'])} new seeds: test accuracy {mean:.2%} ± {deviation:.2%}"
        )
    print(f"result grid: {run.path / 'results.csv'}\nplots: {run.figures_dir}", flush=True)


def _write_grid(folder: Path, grid: list[dict[str, Any]]) -> None:
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(grid[0]))
        writer.writeheader()
        writer.writerows(grid)
    rows = [list(grid[0]), ["---"] * len(grid[0])]
    rows += [[_cell(value) for value in row.values()] for row in grid[:_SHOWN]]
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    (folder / "table.md").write_text(f"{text}\n\nThe first {_SHOWN} of {len(grid)} trials.\n")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def plot(study: optuna.Study, folder: Path) -> dict[str, str]:
    """Draws Optuna's plots of a study.

    Args:
        study: The study.
        folder: Where the PNGs go.

    Returns:
        For every plot `drawn`, or why it was not: importances, for instance, need two trials.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as plots

    kinds = {
        "history": plots.plot_optimization_history,
        "importances": plots.plot_param_importances,
        "slice": plots.plot_slice,
        "parallel_coordinate": plots.plot_parallel_coordinate,
    }
    outcome = {}
    for name, draw in kinds.items():
        try:
            with warnings.catch_warnings():  # about few trials, and axes of a single value
                warnings.simplefilter("ignore", UserWarning)
                axes = draw(study, target_name=_TARGET)
            figure = np.ravel(axes)[0].figure
            if name in ("slice", "parallel_coordinate"):
                figure.set_size_inches(2.8 * len(TRAINING_SPACE), 4.5)
            figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
            outcome[name] = "drawn"
        except (ValueError, RuntimeError) as error:
            outcome[name] = str(error)
        plt.close("all")
    return outcome
