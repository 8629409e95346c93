"""Tables and figures of the comparison of estimators."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib import figures
from experiments.lib.contenders import BACK_PROPAGATION, CONTENDERS

HIGHLIGHTED = (
    "gaussian",
    "orthogonal",
    "coordinate",
    "laplace",
    "one_point, leave_one_out",
    "evolution_strategy",
    "sign_of_difference",
    "control_variate",
    "guided(history)",
)
Row = Mapping[str, Any]


def write_tables(path: str | Path, results: Mapping[str, Any]) -> None:
    """Writes all tables as Markdown.

    Args:
        path: The file.
        results: As in `results.json`.
    """
    parts = [problem_table(results["problems"][name], rows) for name, rows in by_problem(results)]
    if results.get("sweep"):
        parts.append(sweep_table(results["sweep"]))
    if results.get("guided"):
        parts.append(guided_table(results["guided"]))
    if results.get("scale"):
        parts.append(scale_table(results["scale"]))
    Path(path).write_text("\n\n".join(parts) + "\n")


def by_problem(results: Mapping[str, Any]) -> list[tuple[str, list[Row]]]:
    """Returns the rows of every problem, in the order of the estimators' list."""
    order = [*CONTENDERS, BACK_PROPAGATION]
    rows = sorted(results["rows"], key=lambda row: order.index(row["label"]))
    return [(name, [r for r in rows if r["problem"] == name]) for name in results["problems"]]


def problem_table(problem: Row, rows: Sequence[Row]) -> str:
    """Returns the table of one problem."""
    has_accuracy = any("accuracy" in row["sgd"] for row in rows)
    heads = ["estimator", "queries", "error x queries, start", "trained", "cosine, start"]
    heads += ["trained", "law", "loss, SGD", "loss, Adam", "rate, SGD", "rate, Adam"]
    heads += ["accuracy, SGD / Adam"] if has_accuracy else []
    best = {
        name: min(
            (row for row in rows if row["label"] != BACK_PROPAGATION),
            key=lambda row: _order(row[name]["loss"]),
            default=None,
        )
        for name in ("sgd", "adam")
    }
    lines = []
    for row in rows:
        cells = [row["label"], str(row["queries"])]
        for place in ("start", "trained"):
            cells.append(_error(row, place))
        for place in ("start", "trained"):
            cells.append(_spread(row[place]["cosine"], ".3f"))
        cells.append("" if row["law"] is None else f"{(1 + row['law']) ** -0.5:.3f}")
        for name in ("sgd", "adam"):
            text = _spread(row[name]["loss"], ".3g")
            cells.append(f"**{text}**" if row is best[name] else text)
        for name in ("sgd", "adam"):
            edge = row[name]["place"] in (0, len(row[name]["validation"]) - 1)
            cells.append(f"{row[name]['rate']:.2g}{'*' if edge else ''}")
        if has_accuracy:
            pair = (np.median(row[name]["accuracy"]) for name in ("sgd", "adam"))
            cells.append(" / ".join(f"{100 * value:.1f} %" for value in pair))
        lines.append(cells)
    intro = (
        f"{problem['title']}: {problem['queries']} queries per step, {problem['num_steps']} steps, "
        f"{problem['queries'] * problem['num_steps']:,} queries, sigma {problem['sigma']:g}"
    )
    return f"{intro}\n\n{_table(heads, lines)}"


def sweep_table(rows: Sequence[Row]) -> str:
    """Returns relative mean squared error against the number of directions."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    numbers = list(dict.fromkeys(row["directions"] for row in rows))
    found = {(row["label"], row["directions"]): row for row in rows}
    lines = []
    for label in labels:
        cells = [label]
        for number in numbers:
            row = found[label, number]
            cells.append(f"{_spread(row['error'], '.3f')} ({row['law']:.3f})")
        lines.append(cells)
    return _table(["estimator", *(f"n = {n}" for n in numbers)], lines)


def guided_table(study: Row) -> str:
    """Returns cosines against the overlap of surrogate and gradient."""
    overlaps = list(dict.fromkeys(row["overlap"] for row in study["rows"]))
    lines = []
    for alpha in dict.fromkeys(row["alpha"] for row in study["rows"]):
        rows = [row for row in study["rows"] if row["alpha"] == alpha]
        cells = [f"{_spread(row['cosine'], '.3f')} ({row['law']:.3f})" for row in rows]
        lines.append([f"guided, alpha {alpha:g}", *cells])
    plain = f"{_spread(study['gaussian'], '.3f')} ({study['gaussian_law']:.3f})"
    lines.append(["gaussian", *([plain] * len(overlaps))])
    lines.append(["the surrogate itself, no query", *(f"{rho:.3f}" for rho in overlaps)])
    return _table(["directions", *(f"overlap {rho:g}" for rho in overlaps)], lines)


def scale_table(rows: Sequence[Row]) -> str:
    """Returns the ratio of mean estimate and gradient on a linear loss."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    settings = list(dict.fromkeys((row["sigma"], row["directions"]) for row in rows))
    settings.sort(key=lambda pair: (-pair[0], pair[1]))
    found = {(row["label"], row["sigma"], row["directions"]): row for row in rows}
    lines = []
    for label in labels:
        cells = [label]
        for setting in settings:
            row = found[label, *setting]
            cells.append(f"{row['ratio']:.3f} ± {3 * row['error']:.3f}")
        lines.append(cells)
    return _table(["estimator", *(f"sigma {s:g}, n = {n}" for s, n in settings)], lines)


def _error(row: Row, place: str) -> str:
    if not row["preserves_scale"] or row["label"] == BACK_PROPAGATION:
        return "–"
    return _spread([value * row["queries"] for value in row[place]["error"]], ".3g")


def _order(values: Sequence[float | None]) -> float:
    finite = [np.inf if value is None or not np.isfinite(value) else value for value in values]
    return float(np.median(finite))


def _spread(values: Sequence[float | None], form: str) -> str:
    """Writes median [lowest, highest]."""
    numbers = [np.inf if value is None else value for value in values]
    texts = [format(float(x), form) for x in (np.median(numbers), min(numbers), max(numbers))]
    if texts[0] == texts[1] == texts[2]:
        return texts[0]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *lines))


def draw(folder: Path, results: Mapping[str, Any]) -> None:
    """Draws all figures for which there are results.

    Args:
        folder: Where the PNGs go.
        results: As in `results.json`.
    """
    problems = by_problem(results)
    _draw_cosines(folder / "cosine.png", results, problems)
    _draw_losses(folder / "final_loss.png", results, problems)
    if results.get("sweep"):
        _draw_sweep(folder / "directions.png", results["sweep"])
    if results.get("guided"):
        _draw_guided(folder / "guided.png", results["guided"])


def _draw_cosines(path: Path, results: Mapping[str, Any], problems: Any) -> None:
    columns = min(2, len(problems))
    count = -(-len(problems) // columns)
    figure, axes = figures._subplots(count, columns, (4.0 * columns, 2.8 * count + 0.9))
    for axis in axes.flat[len(problems) :]:
        axis.axis("off")
    for axis, (name, rows) in zip(axes.flat, problems, strict=False):
        estimators = [row for row in rows if row["label"] != BACK_PROPAGATION]
        for row in estimators:
            place = HIGHLIGHTED.index(row["label"]) if row["label"] in HIGHLIGHTED else None
            x, y = np.array(row["start"]["averaged"]).T
            axis.plot(
                x,
                y,
                color="#cccccc" if place is None else f"C{place}",
                linewidth=0.8 if place is None else 1.8,
                zorder=1 if place is None else 3,
                label="others" if place is None else row["label"],
            )
        queries = np.geomspace(*(f(rows[0]["start"]["averaged"])[0] for f in (min, max)), 50)
        d = results["problems"][name]["dimension"]
        axis.plot(
            queries,
            (1 + (d + 1) / (queries / 2)) ** -0.5,
            "k:",
            linewidth=1.2,
            zorder=4,
            label="law, gaussian",
        )
        axis.set_title(results["problems"][name]["title"], fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_xticks([size for size, _ in rows[0]["start"]["averaged"]])
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_ylim(bottom=0)
        figures._style(axis)
    for axis in axes[-1]:
        axis.set_xlabel("queries at one point")
    for axis in axes[:, 0]:
        axis.set_ylabel("cosine to the gradient")
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    handles = {label: handles[label] for label in sorted(handles, key=lambda x: x == "others")}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9)
    figures._save(figure, path, "")


def _draw_losses(path: Path, results: Mapping[str, Any], problems: Any) -> None:
    shown = {row["label"] for row in results["rows"]}
    labels = [label for label in CONTENDERS if label in shown]
    size = (2.9 * len(problems) + 2.0, 0.27 * len(labels) + 1.5)
    figure, axes = figures._subplots(1, len(problems), size, sharey=True)
    for axis, (name, rows) in zip(axes.flat, problems, strict=True):
        drawn: list[float] = []
        for index, (key, title) in enumerate((("sgd", "SGD"), ("adam", "Adam"))):
            for row in rows:
                losses = [np.nan if x is None else x for x in row[key]["loss"]]
                if row["label"] == BACK_PROPAGATION:
                    axis.axvline(np.median(losses), color=f"C{index}", linestyle="--", linewidth=1)
                    continue
                y = labels.index(row["label"]) + (index - 0.5) * 0.3
                axis.plot([min(losses), max(losses)], [y, y], color=f"C{index}", linewidth=1.2)
                axis.plot(np.median(losses), y, "os"[index], color=f"C{index}", markersize=4)
                drawn += [loss for loss in losses if np.isfinite(loss)]
            axis.plot([], [], "os"[index], color=f"C{index}", label=title)
        # A run that diverged must not press all others together: it is a triangle at the edge.
        low, high = min(drawn) / 1.5, min(max(drawn) * 1.5, 30 * float(np.median(drawn)))
        for mark in axis.lines:
            x = np.asarray(mark.get_xdata(), float)
            if mark.get_marker() in "os" and len(x) == 1 and not x[0] < high:
                mark.set(xdata=[high], marker=">", clip_on=False, zorder=5)
        # Back-propagation may be far below everything; then its line is off the axis.
        reference = [x for r in rows if r["label"] == BACK_PROPAGATION for x in r["sgd"]["loss"]]
        low = min([low, *(x / 1.3 for x in reference if x and low / 10 < x < high)])
        axis.set_xscale("log")
        if high / low < 300:
            figures._plain_log_axis(axis, "x")
        axis.set_xlim(low, high)
        axis.set_title(results["problems"][name]["title"].replace(", ", "\n", 1), fontsize=9)
        axis.set_xlabel("final loss")
        axis.set_yticks(range(len(labels)), labels)
        axis.set_ylim(len(labels) - 0.4, -0.6)
        figures._style(axis)
    axes.flat[0].plot([], [], "k--", linewidth=1, label="back-propagation, at the same budget")
    figure.legend(
        *axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9
    )
    figures._save(figure, path, "")


def _draw_sweep(path: Path, rows: Sequence[Row]) -> None:
    figure, axes = figures._subplots(1, 1, (6.0, 4.0))
    axis = axes[0, 0]
    for index, label in enumerate(dict.fromkeys(row["label"] for row in rows)):
        mine = [row for row in rows if row["label"] == label]
        x = [row["directions"] for row in mine]
        axis.plot(x, [row["law"] for row in mine], color=f"C{index}", linewidth=1)
        middle = [np.median(row["error"]) for row in mine]
        axis.plot(x, middle, "o", color=f"C{index}", markersize=5, label=label)
    axis.set_xlabel("directions n (d = 100)")
    axis.set_ylabel("relative mean squared error")
    axis.set_ylim(bottom=-0.2)
    axis.plot([], [], color="k", linewidth=1, label="laws")
    axis.legend(fontsize=9, frameon=False)
    figures._style(axis)
    figures._save(figure, path, "")


def _draw_guided(path: Path, study: Row) -> None:
    figure, axes = figures._subplots(1, 1, (6.0, 4.2))
    axis = axes[0, 0]
    for index, alpha in enumerate(dict.fromkeys(row["alpha"] for row in study["rows"])):
        rows = [row for row in study["rows"] if row["alpha"] == alpha]
        x = [row["overlap"] for row in rows]
        y = np.array([row["cosine"] for row in rows])
        middle = np.median(y, 1)
        axis.errorbar(
            x,
            middle,
            yerr=[middle - y.min(1), y.max(1) - middle],
            fmt="o-",
            color=f"C{index}",
            markersize=4,
            label=f"guided, alpha {alpha:g}",
        )
        axis.plot(x, [row["law"] for row in rows], "x", color="k", markersize=5)
    axis.plot([], [], "xk", markersize=5, label="law")
    level = np.median(study["gaussian"])
    axis.axhline(level, color="#555555", linestyle="--", linewidth=1.2, label="gaussian")
    axis.plot([0, 1], [0, 1], ":", color="#555555", linewidth=1.2, label="the surrogate itself")
    axis.set_xlabel("overlap: cosine of surrogate and gradient")
    axis.set_ylabel("cosine of the estimate to the gradient")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.legend(fontsize=9, frameon=False)
    figures._style(axis)
    figures._save(figure, path, "")
