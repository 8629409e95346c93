"""Figures of `experiments.attack`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.attack_report import Row, success_at
from experiments.lib.attack_runs import Task
from experiments.lib.attack_store import Record
from experiments.lib.attack_suite import SUITE, WHITE_BOX
from experiments.lib.figures import _INK, _plain_log_axis, _save, _style, _subplots

_COLORS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9", "#1b1b1b", "#b8860b", "#004d40")
_MOST_BANDS = 3  # more of them hide one another
_GREY = "#777777"
_TICKS = (1, 1.5, 2, 3, 4, 5, 6, 8)


def success(path: Path, records: Mapping[str, Record], task: Task, title: str) -> None:
    """Draws the share of successes against queries.

    Args:
        path: The PNG to write.
        records: By attack; white-box ones are left out.
        task: What was attacked.
        title: Above the figure.
    """
    figure, axes = _subplots(1, 1, (8.5, 4.2))
    axis = axes[0, 0]
    most = 1
    shown = {name: record for name, record in records.items() if name != WHITE_BOX}
    for (name, record), color in zip(shown.items(), _cycle(len(shown)), strict=True):
        entry = SUITE[name]
        radius = task.setting.eps if entry.norm == "linf" else task.setting.eps_l2
        if entry.minimises:
            succeeded, queries = success_at(task, record, radius)
        else:
            succeeded, queries = record.results.success, record.results.queries_to_success
        others = record.results.status != "already"
        points = np.sort(queries[succeeded])
        end = max(int(record.results.queries.max(initial=1)), 1)
        most = max(most, end)
        shares = 100 * np.arange(len(points) + 1) / max(int(others.sum()), 1)
        axis.step(
            [1, *points, max(end, *points, 1)],
            [*shares, shares[-1]],
            where="post",
            color=color,
            linestyle="--" if entry.minimises else "-",
            linewidth=1.8,
            label=name,
        )
    axis.set_ylim(-2, 103)
    axis.set_xlim(1, most * 1.05)
    _style(axis)
    _log_counts(axis)
    axis.set_xlabel("queries per image", color=_INK)
    axis.set_ylabel("success (% of images)", color=_INK)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    _save(figure, path, title)


def distortion(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draws the median distortion with its quartiles at milestones, a panel per norm.

    Draws nothing if no attack found inputs for half of the images.

    Args:
        path: The PNG to write.
        rows: Of attacks that minimise the distortion, a white-box one among them perhaps.
        title: Above the figure.
    """
    moving = [row for row in rows if any(np.isfinite(p["median"]) for p in row["at_milestones"])]
    if not moving:
        return
    norms = [norm for norm in ("l2", "linf") if any(row["norm"] == norm for row in moving)]
    from matplotlib.ticker import LogLocator

    figure, axes = _subplots(1, len(norms), (5.0 * len(norms) + 2.5, 4.2))
    colors = dict(zip((row["attack"] for row in moving), _cycle(len(moving)), strict=True))
    for axis, norm in zip(axes.flat, norms, strict=True):
        for row in moving:
            if row["norm"] != norm:
                continue
            points = [p for p in row["at_milestones"] if np.isfinite(p["median"])]
            places = [point["queries"] for point in points]
            color = colors[row["attack"]]
            axis.plot(places, [p["median"] for p in points], ".-", color=color, label=row["attack"])
            if len(moving) > _MOST_BANDS:
                continue
            lower = [point["lower"] for point in points]
            upper = [p["upper"] if np.isfinite(p["upper"]) else p["median"] for p in points]
            axis.fill_between(places, lower, upper, color=color, alpha=0.15, linewidth=0)
        for row in rows:
            if row["is_white_box"] and row["norm"] == norm and row["l2"]["median"] is not None:
                label = f"{row['attack']} (white box)"
                axis.axhline(row["l2"]["median"], color=_GREY, linestyle="--", label=label)
        _style(axis)
        _log_counts(axis)
        _plain_log_axis(axis, "y")
        axis.yaxis.set_major_locator(LogLocator(subs=_TICKS))  # seldom more than a decade
        axis.set_xlabel("queries per image", color=_INK)
        what = "median" if len(moving) > _MOST_BANDS else "median and quartiles"
        axis.set_ylabel(f"{norm} distortion, {what}", color=_INK)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    _save(figure, path, title)


def examples(
    path: Path,
    images: np.ndarray,
    labels: np.ndarray,
    found: Mapping[str, tuple[np.ndarray, np.ndarray]],
    title: str,
) -> None:
    """Draws images, what attacks made of them, and below each what they changed.

    Args:
        path: The PNG to write.
        images: (n, height, width, channels).
        labels: What the model says of them, (n,).
        found: For each attack adversarial inputs (n, ...) and the model's labels of them; -1 where
            there is none.
        title: Above the figure.
    """
    count, columns = len(images), 1 + len(found)
    figure, axes = _subplots(2 * count, columns, (1.15 * columns + 0.2, 2.3 * count + 0.6))
    for axis in axes.flat:
        axis.axis("off")
    axes[0, 0].set_title(f"original\n{labels[0]}", fontsize=8, color=_INK)
    for index in range(count):
        top, below = axes[2 * index], axes[2 * index + 1]
        _show(top[0], images[index], f"original\n{labels[index]}" if not index else labels[index])
        for column, (name, (adversarial, given)) in enumerate(found.items(), start=1):
            short = name.replace("_", "\n", 1).replace("_", " ")
            caption = "none" if given[index] < 0 else f"{labels[index]} → {given[index]}"
            _show(top[column], adversarial[index], caption if index else f"{short}\n{caption}")
            change = (adversarial[index] - images[index]).mean(axis=-1)
            limit = max(float(np.abs(change).max()), 1e-6)
            below[column].imshow(change, cmap="RdBu_r", vmin=-limit, vmax=limit)
            below[column].set_title(f"±{limit:.2f}" if given[index] >= 0 else "", fontsize=7)
    _save(figure, path, title)


def universal(path: Path, found: Mapping[str, Any], title: str) -> None:
    """Draws universal perturbations and a few images with each.

    Args:
        path: The PNG to write.
        found: Records by what they are called.
        title: Above the figure.
    """
    shown = 5
    figure, axes = _subplots(
        len(found), 1 + shown, (1.3 * (1 + shown) + 2.4, 1.6 * len(found) + 0.5)
    )
    for axis in axes.flat:
        axis.axis("off")
    for row, (name, record) in zip(axes, found.items(), strict=True):
        change = as_image(record.perturbation[None])[0].mean(axis=-1)
        limit = max(float(np.abs(change).max()), 1e-6)
        row[0].imshow(change, cmap="RdBu_r", vmin=-limit, vmax=limit)
        row[0].set_title(f"±{limit:.2f}", fontsize=8, color=_INK)
        label = name.replace(", ", "\n")
        row[0].text(-0.15, 0.5, label, ha="right", va="center", transform=row[0].transAxes)
        changed = as_image(np.clip(record.images + record.perturbation, 0, 1))
        for axis, image, works in zip(row[1:], changed, record.success, strict=False):
            _show(axis, image, "changed" if works else "not changed")
    _save(figure, path, title)


def as_image(x: np.ndarray) -> np.ndarray | None:
    """Returns inputs as images (n, height, width, channels), None if they cannot be shown.

    Args:
        x: (n, ...).
    """
    side = int(round(np.sqrt(x[0].size)))
    if x.ndim == 2 and side * side == x.shape[1]:
        return x.reshape(len(x), side, side, 1)
    if x.ndim == 3:
        return x[..., None]
    return x if x.ndim == 4 and x.shape[-1] in (1, 3) else None


def _show(axis: Any, image: np.ndarray, title: Any) -> None:
    if image.shape[-1] == 1:
        axis.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
    else:
        axis.imshow(image)
    axis.set_title(str(title), fontsize=8, color=_INK)


def _cycle(count: int) -> list[str]:
    return [_COLORS[number % len(_COLORS)] for number in range(count)]


def _log_counts(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 2_000 * low else (1,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.xaxis.set_minor_locator(NullLocator())
