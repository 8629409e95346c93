"""Figures that compare optimisers, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_INK = "#333333"


def loss_curves(
    path: str | Path,
    panels: Mapping[str, Mapping[str, Mapping[str, Any]]],
    labels: Mapping[str, str],
    *,
    x_label: str = "queries",
    log_x: Sequence[str] = (),
    linear_y: Sequence[str] = (),
    columns: int = 2,
) -> None:
    """Draws one panel per problem: the median over seeds, and the range as a shade.

    Args:
        path: The PNG to write.
        panels: For each title the rows of a contest, with `curve_queries` and `curve`.
        labels: For each title what the y axis shows.
        x_label: Under the lowest panels.
        log_x: Titles of panels whose x axis is logarithmic.
        linear_y: Titles of panels whose y axis is not logarithmic.
        columns: Panels side by side.
    """
    from matplotlib.ticker import EngFormatter, MaxNLocator

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = _subplots(rows, columns, (5.0 * columns, 3.9 * rows))
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, results) in zip(axes.flat, panels.items(), strict=False):
        drawn = {name: row for name, row in results.items() if "curve" in row}
        for index, (name, row) in enumerate(drawn.items()):
            queries, curve = np.array(row["curve_queries"]), np.array(row["curve"], float)
            curve = curve if title in linear_y else np.maximum(curve, 1e-8)
            color, dashes = f"C{index % 10}", "-" if index < 10 else "--"
            axis.plot(queries, np.median(curve, 0), dashes, color=color, label=name, linewidth=1.6)
            axis.fill_between(
                queries, curve.min(0), curve.max(0), color=color, alpha=0.18, linewidth=0
            )
        axis.set_title(title, fontsize=10, color=_INK)
        axis.set_ylabel(labels[title])
        axis.set_xlabel(x_label)
        if title in log_x:
            _log_axis(axis, "x")
        else:
            axis.xaxis.set_major_locator(MaxNLocator(6))
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        if title not in linear_y:
            _log_axis(axis, "y")
        axis.grid(True, which="major", color="#dddddd", linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=_INK, labelsize=9)
        # Below the panel: inside, some curve would always be covered.
        axis.legend(
            fontsize=7.5,
            ncols=2 if max(map(len, drawn)) <= 28 else 1,
            frameon=False,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
        )
    figure.savefig(path, dpi=95)


def choices(path: str | Path, rows: Mapping[str, np.ndarray], title: str) -> None:
    """Draws which sensors are chosen: a line per method, a column per sensor, white is not chosen.

    Args:
        path: The PNG to write.
        rows: For each method x in [0, 1], all of one length.
        title: Above the figure.
    """
    figure, axes = _subplots(1, 1, (10.0, 0.33 * len(rows) + 1.5))
    axis = axes[0, 0]
    image = np.stack(list(rows.values()))
    drawn = axis.pcolormesh(image, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=0.4)
    axis.invert_yaxis()
    axis.set_yticks(np.arange(len(rows)) + 0.5, list(rows), fontsize=9)
    axis.set_xlabel("sensor, in the order of the relaxed optimum")
    axis.spines[:].set_visible(False)
    axis.tick_params(colors=_INK, length=0)
    bar = figure.colorbar(drawn, ax=axes, pad=0.01, aspect=12)
    bar.set_label("x", color=_INK)
    bar.outline.set_visible(False)
    figure.suptitle(title, fontsize=11, color=_INK)
    figure.savefig(path, dpi=95)


def _log_axis(axis: Any, which: str) -> None:
    """Makes an axis logarithmic, labelled 1, 2, 5 where it is short and by powers of ten else."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set(**{f"{which}scale": "log"})
    ticks, (low, high) = getattr(axis, f"{which}axis"), getattr(axis, f"get_{which}lim")()
    if high / low < 100:
        ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    ticks.set_minor_formatter(NullFormatter())


def _subplots(rows: int, columns: int, size: tuple[float, float]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)
