"""Table and figures of `experiments.rso`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib.figures import _INK, _column, _plain_log_axis, _save, _style, _subplots
from zojax import search

PUBLISHED = {
    ("one_conv", 32): (0.8075, 212),
    ("one_conv", 64): (0.8353, 345),
    ("one_conv", 256): (0.8929, 1_641),
    ("one_conv", 512): (0.9152, 2_834),
    ("one_conv", 1024): (0.9148, 5_046),
    ("two_conv", 32): (0.8504, 1_457),
    ("two_conv", 512): (0.9397, 19_186),
    ("two_conv", 1000): (0.9604, 36_464),
    ("six_conv", 5000): (0.9912, None),
}
"""(model, batch) -> accuracy on MNIST, seconds: a student's reimplementation in Julia (10 rounds,
one batch per weight), and the paper's network after 50 rounds."""


def table(rows: Sequence[Mapping[str, Any]], dataset: str) -> str:
    """Returns the Markdown table: the last row of every contest, beside what was published.

    Args:
        rows: Metrics.
        dataset: Published numbers are for MNIST.
    """
    head = ["network", "batch", "by", "rounds", "test accuracy", "seconds", "weights tried"]
    head += ["queries", "sample-forwards", "FLOPs", "published", "its seconds"]
    lines = [head, ["---"] * len(head)]
    for last in _by_contest(rows).values():
        row = last[-1]
        is_search = row["by"] == "search"
        known = PUBLISHED.get((row["model"], row["batch_size"])) if dataset == "mnist" else None
        accuracy, seconds = known if known and is_search else (None, None)
        lines.append(
            [
                row["model"],
                str(row["batch_size"]),
                "random search" if is_search else "SGD",
                str(row["round"]),
                f"{100 * row['test_accuracy']:.2f}" if row.get("test_accuracy") else "",
                f"{row['seconds']:.0f}",
                f"{row['updates']:.3g}",
                f"{row['queries']:.3g}",
                f"{row['sample_forwards']:.2g}",
                f"{row['flops']:.2g}" if row.get("flops") else "",
                f"{100 * accuracy:.2f}" if accuracy else "",
                f"{seconds:,}" if seconds else "",
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _by_contest(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["contest"], []).append(row)
    return found


def curves(path: str | Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draws accuracy against rounds, weight updates and seconds.

    Args:
        path: The PNG to write.
        rows: Metrics.
        title: Above the figure.
    """
    figure, axes = _subplots(1, 3, (14, 4.6), sharey=True)
    columns = (
        ("round", "rounds over all weights (SGD: epochs)"),
        ("updates", "weight updates"),
        ("seconds", "training time (s)"),
    )
    for axis, (key, label) in zip(axes[0], columns, strict=True):
        for index, (contest, points) in enumerate(_by_contest(rows).items()):
            is_search = points[0]["by"] == "search"
            axis.plot(
                _column(points, key),
                100 * _column(points, "accuracy"),
                label=contest,
                color=f"C{index % 10}",
                linestyle="-" if is_search else "--",
                marker="o",
                markersize=3,
            )
        _style(axis)
        axis.set_xlabel(label)
        if key == "updates":
            axis.set_xscale("log")
        if key == "seconds":
            _plain_log_axis(axis, "x")
    axes[0, 0].set_ylabel("validation accuracy (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    _save(figure, path, title)


def filters(path: str | Path, over_rounds: Mapping[int, np.ndarray], title: str) -> None:
    """Draws first-layer filters, a row per round.

    Args:
        path: The PNG to write.
        over_rounds: Round -> filters (count, height, width); 0 is the initialisation.
        title: Above the figure.
    """
    shown = {number: images[:16] for number, images in sorted(over_rounds.items())}
    count = max(map(len, shown.values()))
    figure, axes = _subplots(len(shown), count, (0.62 * count + 1.2, 0.66 * len(shown) + 0.5))
    limit = max(float(np.abs(images).max()) for images in shown.values())
    for row, (number, images) in zip(axes, shown.items(), strict=True):
        for axis in row:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for axis, image in zip(row, images, strict=False):
            axis.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
        label = "start" if number == 0 else f"round {number}"
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", color=_INK, fontsize=9)
    _save(figure, path, title)


def method(path: str | Path) -> None:
    """Draws what the method does: a gradient step beside moves of one weight at a time.

    Args:
        path: The PNG to write.
    """
    tried: list[np.ndarray] = []

    def loss_fn(params: Any) -> jax.Array:
        x, y = params["w"]
        jax.debug.callback(lambda point: tried.append(np.asarray(point)), params["w"])
        return (x - 1.0) ** 2 + 3.0 * (y + 0.3 * x) ** 2

    start = jnp.array([-1.6, 1.3])
    descent = [start]
    for _ in range(12):
        slope = jax.grad(loss_fn)({"w": descent[-1]})["w"]
        descent.append(descent[-1] - 0.12 * slope)
    kernel = search.rso(loss_fn, num_rounds=12, weight_decay=0.0)
    state = kernel.init({"w": start}, {"w": 0.9})
    visited = [start]
    tried.clear()  # of what the slope was computed from
    for _ in range(24):
        state, _ = kernel.step(state, jax.random.key(5))
        visited.append(state.params["w"])
    jax.effects_barrier()
    grid = np.stack(np.meshgrid(np.linspace(-2.2, 2.2, 200), np.linspace(-1.6, 1.8, 200)))
    surface = (grid[0] - 1) ** 2 + 3 * (grid[1] + 0.3 * grid[0]) ** 2
    figure, axes = _subplots(1, 2, (10, 4.2), sharey=True)
    titles = (
        "gradient descent: every weight moves at once, along the slope",
        "random search: one weight, three values, the best is kept",
    )
    for axis, points, title in zip(axes[0], (descent, visited), titles, strict=True):
        axis.contour(grid[0], grid[1], surface, levels=np.geomspace(0.05, 20, 12), colors="#bbbbbb")
        points = np.array(points)
        axis.plot(points[:, 0], points[:, 1], color="C0", marker="o", markersize=4)
        axis.plot(*points[0], color="C3", marker="s", markersize=7)
        axis.set_title(title, fontsize=10, color=_INK)
        axis.set_xlabel("weight 1")
    samples = np.array(tried)
    axes[0, 1].plot(samples[:, 0], samples[:, 1], "o", color="C1", markersize=2.5, zorder=0)
    axes[0, 1].set(xlim=(-2.2, 2.2), ylim=(-1.6, 1.8))
    axes[0, 0].set_ylabel("weight 2")
    _save(figure, path, "")
