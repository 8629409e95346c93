"""Tables and figures of searchers that were compared over seeds, for `experiments.tune`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.figures import _plain_log_axis, _save, _style, _subplots
from experiments.lib.tune_searchers import contestants
from experiments.lib.tune_training import NUM_UNITS

_COLORS = [f"C{i}" for i in (8, 7, 0, 1, 2, 4, 5, 3, 6, 9, 0)]  # random itself is grey


def summarize(
    results: Mapping[str, Mapping[str, Any]], optimum: float, grid: np.ndarray
) -> dict[str, Any]:
    """Turns best scores into regrets over seeds, and compares each searcher with random search.

    Args:
        results: From `contest`.
        optimum: What regret is measured from.
        grid: Units at which the best scores were noted.

    Returns:
        For every name its mean regret on the grid, its final regret (mean, standard error, per
        seed), and where `random` is among the names: the final difference to it (paired by seed,
        mean and standard error) and the share of random's budget after which the mean regret is
        below random's final one (None if never).
    """
    summary = {}
    random = results["random"]["best"] - optimum if "random" in results else None
    for name, result in results.items():
        regret = result["best"] - optimum
        final = regret[:, -1]
        entry = {
            "regret": regret.mean(0).tolist(),
            "final": _mean_and_error(final),
            "final_per_seed": final.tolist(),
            **{key: result[key] for key in ("trials", "complete", "seconds")},
        }
        if random is not None:
            entry["minus_random"] = _mean_and_error(final - random[:, -1])
            reached = np.flatnonzero(regret.mean(0) <= random[:, -1].mean())
            entry["share_of_budget"] = float(grid[reached[0]] / grid[-1]) if len(reached) else None
        summary[name] = entry
    return summary


def _mean_and_error(values: np.ndarray) -> list[float]:
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return [float(values.mean()), float(error)]


def table(summary: Mapping[str, Any], grid: np.ndarray, unit: str, marks: Sequence[int]) -> str:
    """Returns a Markdown table: a row per searcher, regrets at some budgets.

    Args:
        summary: From `summarize`.
        grid: Units of its regrets.
        unit: What the budgets are called.
        marks: Budgets to show, points of the grid.
    """
    head = ["searcher", "trials", *(f"{_budget(mark, unit)}" for mark in marks)]
    head += ["final ± se", "minus random ± se", "share of random's budget"]
    rows = [head, ["---"] * len(head)]
    for name, entry in summary.items():
        columns = [entry["regret"][int(np.searchsorted(grid, mark))] for mark in marks]
        row = [name, f"{entry['trials']:.0f}", *(_number(value) for value in columns)]
        row.append("{} ± {}".format(*map(_number, entry["final"])))
        difference, share = entry.get("minus_random"), entry.get("share_of_budget")
        is_other = difference is not None and name != "random"
        row.append("{:+.2g} ± {:.1g}".format(*difference) if is_other else "")
        row.append(f"{share:.2f}" if is_other and share else "" if not is_other else "not reached")
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _number(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "none"


def _budget(mark: int, unit: str) -> str:
    return f"{mark // NUM_UNITS} {unit}" if unit == "trainings" else f"{mark} {unit}"


def draw(
    path: Path,
    results: Mapping[str, Mapping[str, Any]],
    optimum: float,
    budgets: np.ndarray,
    x_label: str,
    title: str,
) -> None:
    """Draws mean regret with its standard error, searchers on the left, schedulers on the right.

    Args:
        path: The PNG to write.
        results: From `contest`.
        optimum: What regret is measured from.
        budgets: What the noted best scores had cost.
        x_label: The unit of the budgets.
        title: Above the figure.
    """
    panels = [[n for n in results if "+" not in n], [n for n in results if "+" in n]]
    panels = [names for names in panels if names]
    figure, axes = _subplots(1, len(panels), (6.5 * len(panels), 5.2), sharey=True)
    for axis, names in zip(axes[0], panels, strict=True):
        compared = [n for n in ("random", "tpe") if n in results and n not in names]
        for name in [*names, *compared]:
            regret = results[name]["best"] - optimum
            # A mean exists once every seed has a complete trial.
            shown = np.isfinite(regret).all(0)
            mean = regret[:, shown].mean(0)
            error = regret[:, shown].std(0, ddof=min(1, len(regret) - 1)) / np.sqrt(len(regret))
            color = "#777777" if name == "random" else _COLORS[list(contestants()).index(name)]
            style = "--" if name in ("random", "tpe") and name in compared else "-"
            width = 2.2 if name in ("random", "zojax_es") or "+" in name else 1.5
            x = budgets[shown]
            axis.plot(x, mean, label=name, color=color, linestyle=style, linewidth=width)
            axis.fill_between(x, mean - error, mean + error, color=color, alpha=0.12, linewidth=0)
        _style(axis)
        axis.set_xscale("log")
        axis.set_xlabel(x_label)
        axis.legend(fontsize=9, frameon=False)
    _plain_log_axis(axes[0, 0], "y")
    lowest = min((r["best"] - optimum).mean(0).min() for r in results.values())
    axes[0, 0].set_ylim(bottom=lowest / 2 if lowest > 0 else None)
    axes[0, 0].set_ylabel("regret")
    _save(figure, path, title)
