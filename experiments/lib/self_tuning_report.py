"""The table and the figure of `experiments.self_tuning`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.figures import _INK, _plain_log_axis, _save, _style, _subplots
from experiments.lib.robust_report import over_seeds
from experiments.lib.self_tuning_inner import OBJECTIVES

LABELS = {
    "initial": "initial values",
    "training_cost": "tuned on training cost",
    "held_out_loss": "tuned on held-out loss",
    "without_l1": "the same, λ = 0",
}
_PANELS = (
    ("l1", "L1 strength λ"),
    ("learning_rate", "learning rate"),
    ("sigma", "σ"),
    ("training_cost", "training cost"),
    ("held_out_loss", "held-out loss"),
)


def table(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Returns the Markdown table: a row per setting, mean ± standard deviation over outer seeds.

    Args:
        seeds: One summary per outer seed.
    """
    head = ["hyperparameters", "λ", "learning rate", "σ", "training loss", "held-out loss"]
    head += ["held-out loss, episode mean", "test loss", "test accuracy (%)"]
    rows = [head, ["---"] * len(head)]
    for name, label in LABELS.items():
        found = [seed["settings"][name] for seed in seeds]
        row = [label]
        for number in ("l1", "learning_rate", "sigma"):
            values = sorted(entry["hyperparameters"][number] for entry in found)
            low, high = f"{values[0]:.2g}", f"{values[-1]:.2g}"
            row.append(low if low == high else f"{low} to {high}")
        for number in ("train_loss", "held_out_loss", "episode_held_out_loss", "test_loss"):
            row.append(_spread(found, number, 1, 3))
        row.append(_spread(found, "test_accuracy", 100, 1))
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def difference(
    seeds: Sequence[Mapping[str, Any]], first: str, second: str, number: str
) -> tuple[float, float]:
    """Returns the mean over outer seeds of a difference, and its standard error.

    Args:
        seeds: One summary per outer seed.
        first: The setting to subtract from.
        second: The setting to subtract.
        number: What of it.
    """
    values = [seed["settings"][first][number] - seed["settings"][second][number] for seed in seeds]
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(np.mean(values)), float(error)


def _spread(found: Sequence[Mapping[str, Any]], number: str, factor: float, digits: int) -> str:
    mean, spread = over_seeds(found, number)
    text = f"{factor * mean:.{digits}f}"
    return f"{text} ± {factor * spread:.{digits}f}" if len(found) > 1 else text


def draw(path: str | Path, seeds: Sequence[Mapping[str, Any]], smooth: int, title: str) -> None:
    """Draws the trajectories of both objectives, and held-out loss against λ.

    Args:
        path: The PNG to write.
        seeds: One summary per outer seed.
        smooth: Outer steps the losses are averaged over, an episode.
        title: Above the figure.
    """
    figure, axes = _subplots(2, 3, (13, 7))
    for axis, (name, label) in zip(axes.flat, _PANELS, strict=False):
        for color, objective in zip(("C3", "C0"), OBJECTIVES, strict=True):
            for i, seed in enumerate(seeds):
                values = np.asarray(seed["trajectories"][objective][name], float)
                num_steps = len(values)
                if name in OBJECTIVES:
                    window = min(smooth, len(values))
                    values = np.convolve(values, np.ones(window) / window, "valid")
                axis.plot(
                    np.arange(num_steps - len(values), num_steps),
                    values,
                    color=color,
                    linewidth=1.3,
                    alpha=0.8,
                    label=None if i else LABELS[objective],
                )
        if name != "held_out_loss":
            _plain_log_axis(axis, "y")
        _style(axis)
        axis.set_title(label, fontsize=10, color=_INK)
        axis.set_xlabel("outer step")
    axis = axes[1, 2]
    for i, seed in enumerate(seeds):
        sweep = sorted((float(f), v) for f, v in seed["l1_sweep"].items())
        factors, losses = np.array(sweep).T
        lowest = factors[factors > 0].min() / 3  # stands for zero
        axis.plot(np.where(factors > 0, factors, lowest), losses, "o-", color="C0", markersize=4)
        axis.axvline(1, color=_INK, linewidth=0.7, linestyle=":")
        if i == 0:
            axis.set_xscale("log")
            shown = [*factors[factors > 0]]
            axis.set_xticks([lowest, *shown], ["0", *(f"{x:g}" for x in shown)])
            axis.minorticks_off()
    _style(axis)
    axis.set_title("held-out loss (episode mean) of fresh networks", fontsize=10, color=_INK)
    axis.set_xlabel("λ in units of the tuned value")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    _save(figure, path, title)
