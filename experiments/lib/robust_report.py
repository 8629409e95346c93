"""The table and the figure of `experiments.robust_training`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.figures import _INK, _save, _style, _subplots
from experiments.lib.robust_chips import Condition
from experiments.lib.runs import RunDirectory

_COLORS = [f"C{i}" for i in (0, 1, 2, 3, 4, 5, 6, 8, 9)]  # without grey


def write(
    run: RunDirectory,
    config: Any,
    results: Mapping[str, Any],
    conditions: Sequence[Condition],
) -> None:
    """Writes `summary.json`, `table.md` and the figure, and prints the newest row.

    Args:
        run: The run's folder.
        config: The run's configuration.
        results: A summary per method.
        conditions: What the chips did.
    """
    summary = {
        "experiment": run.path.parent.name,
        "dataset": config.dataset,
        "pool": config.pool,
        "split": config.split,
        "num_chips": config.num_chips,
        "methods": results,
    }
    run.write_summary(summary)
    tables = f"{table(results, conditions)}\n{device_table(results)}"
    (run.path / "table.md").write_text(tables)
    title = (
        f"{config.dataset}: means over chips and seeds; bands reach down to the 5th-percentile chip"
    )
    draw(run.figures_dir / "robustness.png", results, conditions, config.split, title)
    newest = list(results.values())[-1]
    reported = ", ".join(
        f"{c.name} {c.reported:g}: {_percent(newest['seeds'], c.name, 'at_reported', 'mean')}"
        for c in conditions
    )
    print(f"  clean {_percent(newest['seeds'], 'clean')}, {reported}", flush=True)


def over_seeds(seeds: Sequence[Mapping[str, Any]], *path: str) -> tuple[float, float]:
    """Returns mean and standard deviation over seeds of one number.

    Args:
        seeds: One summary per seed.
        *path: Keys that lead to the number.
    """
    values = []
    for value in seeds:
        for key in path:
            value = value[key]
        values.append(float(value))
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def table(results: Mapping[str, Any], conditions: Sequence[Condition]) -> str:
    """Returns the Markdown table: a row per method, accuracies in per cent.

    Args:
        results: The `methods` of the summary.
        conditions: What the columns show.
    """
    head = ["trained by", "sample-forwards", "clean"]
    for c in conditions:
        title = {"absolute": "σ {:g}", "relative": "{:g} rms", "bit_errors": "bits {:.2%}"}[c.name]
        title = title.format(c.reported).replace("%", " %")
        head += [title, "5th pct", "worst"]
    head += ["σ90", "area", "σ90 rms", "area rms", "rms weight"]
    rows = [head, ["---"] * len(head)]
    for entry in results.values():
        seeds = entry["seeds"]
        row = [entry["label"], f"{entry['sample_forwards']:.2g}", _percent(seeds, "clean")]
        for c in conditions:
            for number in ("mean", "fifth_percentile", "worst"):
                row.append(_percent(seeds, c.name, "at_reported", number))
        for name in ("absolute", "relative"):
            row.append(f"{over_seeds(seeds, name, 'sigma90')[0]:.3f}")
            row.append(f"{over_seeds(seeds, name, 'area')[0]:.3f}")
        row.append(f"{over_seeds(seeds, 'rms_weight')[0]:.3f}")
        rows.append(row)
    return _markdown(rows)


def device_table(results: Mapping[str, Any]) -> str:
    """Returns the Markdown table of accuracy after rounding, pruning, drift, and of sharpness.

    Args:
        results: The `methods` of the summary.
    """
    devices = list(next(iter(results.values()))["seeds"][0]["devices"])
    head = ["trained by", *devices, "tr H", "PAC-Bayes radius"]
    rows = [head, ["---"] * len(head)]
    for entry in results.values():
        seeds = entry["seeds"]
        row = [entry["label"], *(_percent(seeds, "devices", name) for name in devices)]
        row.append("{:.3g} ± {:.2g}".format(*over_seeds(seeds, "hessian_trace")))
        row.append(f"{over_seeds(seeds, 'pac_bayes_radius')[0]:.3f}")
        rows.append(row)
    return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _percent(seeds: Sequence[Mapping[str, Any]], *path: str) -> str:
    mean, spread = over_seeds(seeds, *path)
    return f"{100 * mean:.1f} ± {100 * spread:.1f}" if len(seeds) > 1 else f"{100 * mean:.1f}"


def draw(
    path: str | Path,
    results: Mapping[str, Any],
    conditions: Sequence[Condition],
    split: str,
    title: str,
) -> None:
    """Draws accuracy against noise: first-order methods above, values only below.

    Args:
        path: The PNG to write.
        results: The `methods` of the summary.
        conditions: One column each.
        split: The part that was scored.
        title: Above the figure.
    """
    figure, axes = _subplots(2, len(conditions), (16, 8), sharex="col", sharey=True)
    for row, is_first_order in enumerate((True, False)):
        shown = [n for n, e in results.items() if e["is_first_order"] == is_first_order]
        if "backprop" in results and not is_first_order:
            shown = ["backprop", *shown]  # to compare with
        for column, condition in enumerate(conditions):
            axis = axes[row, column]
            for color, name in zip(
                ["#777777"] * ("backprop" in shown) + _COLORS, shown, strict=False
            ):
                style = {"color": color, "linestyle": "--" if name == "backprop" else "-"}
                levels, label = condition.levels, results[name]["label"]
                rows = [seed[condition.name] for seed in results[name]["seeds"]]
                middle, low = (
                    100 * np.mean([row[number] for row in rows], axis=0)
                    for number in ("mean", "fifth_percentile")
                )
                axis.plot(levels, middle, linewidth=1.8, label=label, **style)
                axis.fill_between(levels, low, middle, color=color, alpha=0.12, linewidth=0)
            axis.axvline(condition.reported, color=_INK, linewidth=0.7, linestyle=":")
            _style(axis)
            if row:
                axis.set_xlabel(condition.label)
            axis.set_ylim(30, 101)
        axes[row, 0].set_ylabel(f"{split} accuracy (%)")
        axes[row, -1].legend(
            fontsize=8.5, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False
        )
    _save(figure, path, title)
