"""Figures of a run, as PNG files."""

# matplotlib takes most of a second to import, so the functions import it when they draw.
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_FILTERS = 64
_INK = "#333333"


def learning_curves(
    path: str | Path,
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    title: str = "",
) -> None:
    """Draws accuracy and loss against sample-forwards and against seconds.

    Args:
        path: The PNG to write.
        curves: For each label the rows of a run, with the keys `sample_forwards`, `seconds`,
            `accuracy` (a fraction) and `loss`. The label `back-propagation` is drawn dashed.
        title: Above the figure.
    """
    figure, axes = _subplots(2, 2, (9.5, 6.5), sharex="col", sharey="row")
    columns = (("sample_forwards", "sample-forwards"), ("seconds", "training time (s)"))
    rows = (("accuracy", "validation accuracy (%)", 100.0), ("loss", "validation loss", 1.0))
    for column, (x_key, x_label) in enumerate(columns):
        for row, (y_key, y_label, factor) in enumerate(rows):
            axis = axes[row, column]
            for index, (label, points) in enumerate(curves.items()):
                baseline = label == "back-propagation"
                axis.plot(
                    _column(points, x_key),
                    factor * _column(points, y_key),
                    label=label,
                    color="#777777" if baseline else f"C{index}",
                    linestyle="--" if baseline else "-",
                    linewidth=1.8,
                )
            _style(axis)
            if row == len(rows) - 1:
                axis.set_xlabel(x_label)
            if column == 0:
                axis.set_ylabel(y_label)
    # Budgets of methods differ by orders of magnitude, so only a logarithm shows them all.
    if _any_positive(curves, "sample_forwards"):
        axes[1, 0].set_xscale("log")
    if _any_positive(curves, "seconds"):
        _plain_log_axis(axes[1, 1], "x")
    if _any_positive(curves, "loss"):
        _plain_log_axis(axes[1, 0], "y")
    figure.align_ylabels()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    _save(figure, path, title)


def weight_images(
    path: str | Path,
    weights: np.ndarray,
    image_shape: Sequence[int],
    title: str = "",
    limit: float | None = None,
) -> None:
    """Draws first-layer weights as images, blue negative, white zero, red positive.

    Args:
        path: The PNG to write.
        weights: A dense kernel (inputs, hidden), or a convolution kernel (height, width, channels,
            features), which is averaged over its input channels.
        image_shape: Height and width of the dense kernel's input, perhaps with a channel axis of 1.
        title: Above the figure.
        limit: Weight of the deepest colours; by default the largest magnitude.
    """
    weights = np.asarray(weights, dtype=np.float32)
    if weights.ndim == 4:
        filters = np.moveaxis(weights.mean(axis=2), -1, 0)
    else:
        filters = weights.T.reshape(-1, *image_shape[:2])
    filters = filters[:_MAX_FILTERS]
    limit = limit or float(np.abs(filters).max()) or 1.0
    rows, columns = _grid(len(filters))
    figure, axes = _subplots(rows, columns, (1.0 * columns + 1.2, 1.0 * rows + 0.5))
    for axis in axes.flat:
        axis.axis("off")
    for axis, image in zip(axes.flat, filters, strict=False):
        drawn = axis.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.7, aspect=25, pad=0.02)
    bar.set_label("weight", color=_INK)
    bar.ax.tick_params(colors=_INK, labelsize=9)
    bar.outline.set_visible(False)
    _save(figure, path, title)


def misclassified(
    path: str | Path,
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    class_names: Sequence[str],
    limit: int = 25,
) -> None:
    """Draws the first wrongly classified images, each titled `true → predicted`.

    Args:
        path: The PNG to write.
        images: (n, height, width, 1).
        labels: True classes, (n,).
        predictions: Predicted classes, (n,).
        class_names: One name per class.
        limit: The most images to draw.
    """
    wrong = np.flatnonzero(np.asarray(labels) != np.asarray(predictions))
    shown = wrong[:limit]
    rows, columns = _grid(max(len(shown), 1))
    longest = max(len(name) for name in class_names)
    width = max(1.2, 0.17 * longest)
    size = (width * columns + 0.3, (1.45 if longest < 4 else 1.6) * rows + 0.6)
    figure, axes = _subplots(rows, columns, size if len(shown) else (6.0, 2.0))
    for axis in axes.flat:
        axis.axis("off")
    for axis, index in zip(axes.flat, shown, strict=False):
        axis.imshow(images[index].squeeze(-1), cmap="gray_r", vmin=0, vmax=1)
        arrow = " → " if longest < 4 else "\n→ "
        axis.set_title(
            f"{class_names[labels[index]]}{arrow}{class_names[predictions[index]]}", fontsize=9
        )
    if not len(shown):
        axes[0, 0].text(
            0.5, 0.5, f"all {len(labels):,} images are classified correctly", ha="center"
        )
        _save(figure, path, "")
        return
    _save(figure, path, f"{len(wrong):,} of {len(labels):,} wrong: true → predicted")


def _subplots(rows: int, columns: int, size: tuple[float, float], **options: Any) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A Figure of its own needs no pyplot, which would keep it alive and look for a display.
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _grid(count: int) -> tuple[int, int]:
    columns = int(np.ceil(np.sqrt(count)))
    return int(np.ceil(count / columns)), columns


def _column(points: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    # JSON has no NaN: a value that was not finite was written as null.
    values = (point[key] for point in points)
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _any_positive(curves: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> bool:
    return any((_column(points, key) > 0).any() for points in curves.values())


def _style(axis: "Axes") -> None:
    axis.grid(True, which="major", color="#dddddd", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=_INK, labelsize=9)


def _plain_log_axis(axis: "Axes", which: str) -> None:
    """Makes an axis logarithmic, with ticks such as 0.2, 0.5, 1, 2 instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set(**{f"{which}scale": "log"})
    ticks = axis.xaxis if which == "x" else axis.yaxis
    ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ticks.set_minor_locator(NullLocator())


def _save(figure: "Figure", path: str | Path, title: str) -> None:
    if title:
        figure.suptitle(title, color=_INK, fontsize=12)
    figure.savefig(path, dpi=150)
