"""Tables and figures of `experiments.surfing`, made of the rows of its studies."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.figures import _INK, _plain_log_axis, _save, _style, _subplots
from experiments.lib.surfing_problems import NUM_STARTS

Row = Mapping[str, Any]
_COLORS = {"direct": "#d1495b", "restarts": "#8d6a9f", "surfing": "#00798c"}
_LASSO = {"lasso_pixel": "#999999", "lasso_dct": "#edae49"}
_NAMES = {
    "direct": "direct",
    "restarts": f"direct, {NUM_STARTS} starts",
    "surfing": "surfing",
    "lasso_pixel": "lasso (pixels)",
    "lasso_dct": "lasso (DCT)",
}
_NUM_IMAGES = 10


def line(row: Row) -> str:
    """Returns a line for the terminal.

    Args:
        row: Of a study.
    """
    what = [row["study"], str(row.get("variant", "")), _NAMES[row["method"]]]
    if "num_measurements" in row:
        what.append(f"m = {row['num_measurements']}")
    parts = []
    if "x_success" in row:
        parts.append(f"|x - x*| < 0.01: {row['x_success']:.1%}, f < 1e-5: {row['f_success']:.1%}")
    if "recovered" in row:
        parts.append(f"wrong bits {row['wrong_bits']:.2%}, recovered {row['recovered']:.1%}")
    parts.append(f"pixel error {row['pixel_mse']:.2g}")
    if "learning_rate" in row:
        parts.append(f"learning rate {row['learning_rate']}, {row['seconds']:.0f} s")
    return "  " + " ".join(filter(None, what)) + ": " + "; ".join(parts)


def table(rows: Sequence[Row]) -> str:
    """Returns one Markdown table per study; where there are several seeds, mean (lowest-highest).

    Args:
        rows: Of all studies.
    """
    parts = []
    for study, head, columns in _TABLES:
        chosen = [row for row in rows if row["study"] == study]
        if not chosen:
            continue
        lines = [head, ["---"] * len(head)]
        for group in _grouped(chosen, _identity).values():
            lines.append([column(group) for column in columns])
        parts.append("\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n")
    return "\n".join(parts)


def draw(folder: Path, rows: Sequence[Row], images: Path, title: str) -> None:
    """Draws every figure for which there are rows.

    Args:
        folder: Where figures go.
        rows: Of all studies.
        images: Folder of the kept images.
        title: Above the figures.
    """
    by_study = _grouped(rows, lambda row: row["study"])
    if "success" in by_study:
        success(folder / "success.png", by_study["success"], title)
    if "compressed" in by_study:
        measurements(folder / "measurements.png", by_study["compressed"], title)
    for study, of_study in by_study.items():
        for latent_dim in sorted({row["latent_dim"] for row in of_study}):
            same = [row for row in of_study if row["latent_dim"] == latent_dim]
            first = same[0]["generator"]
            problems = _grouped([row for row in same if row["generator"] == first], _problem)
            # Of several numbers of measurements the largest; of several variants all latents.
            chosen = list(problems.values())[-1 if study == "compressed" else 0]
            measured = f", m = {chosen[0]['num_measurements']}" if study == "compressed" else ""
            path = folder / f"images-{study}-{latent_dim}.png"
            reconstructions(path, chosen, images, f"{title}, k = {latent_dim}{measured}")


def success(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draws the share of recovered latents and of small losses against k, every seed a dot.

    Args:
        path: The PNG to write.
        rows: Of the study "success".
        title: Above the figure.
    """
    figure, axes = _subplots(1, 2, (11.5, 4.0), sharey=True)
    criteria = (("x_success", "|x − x*| < 0.01"), ("f_success", "f < 1e-5"))
    styles = {"all": "-", "active": "--", "prior": ":"}
    markers = {"all": "o", "active": "D", "prior": "^"}  # where there is one k
    dims = sorted({row["latent_dim"] for row in rows})
    for axis, (key, label) in zip(axes.flat, criteria, strict=True):
        for (variant, method), group in _grouped(
            rows, lambda row: (row["variant"], row["method"])
        ).items():
            name = _NAMES[method] + ("" if variant == "all" else f" ({variant})")
            shift = 0.06 * (list(_COLORS).index(method) - 1)  # so that dots of seeds stay apart
            places = [dims.index(row["latent_dim"]) + shift for row in group]
            values = [100 * row[key] for row in group]
            axis.plot(places, values, ".", color=_COLORS[method], alpha=0.4)
            known = sorted(set(places))
            means = [
                np.mean([v for p, v in zip(places, values, strict=True) if p == k]) for k in known
            ]
            style = (styles if len(known) > 1 else markers)[variant]
            axis.plot(known, means, style, color=_COLORS[method], label=name)
        axis.set_title(label, color=_INK, fontsize=11)
        axis.set_xlabel("latents k", color=_INK)
        axis.set_xticks(range(len(dims)), dims)
        axis.set_ylim(0, 103)
        _style(axis)
    axes[0, 0].set_ylabel("targets recovered (%)", color=_INK)
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    _save(figure, path, title)


def measurements(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draws success and errors against the number of measurements, a row per k.

    Args:
        path: The PNG to write.
        rows: Of the study "compressed".
        title: Above the figure.
    """
    dims = sorted({row["latent_dim"] for row in rows})
    figure, axes = _subplots(len(dims), 3, (12.5, 3.4 * len(dims) + 0.4))
    panels = (
        ("x_success", "latents recovered (%)", 100.0),
        ("pixel_mse", "error per pixel, generated images", 1.0),
        ("real_mse", "error per pixel, test images", 1.0),
    )
    for line_, latent_dim in zip(axes, dims, strict=True):
        same = [row for row in rows if row["latent_dim"] == latent_dim]
        for axis, (key, label, factor) in zip(line_, panels, strict=True):
            for method, group in _grouped(same, lambda row: row["method"]).items():
                if key not in group[0]:
                    continue
                by_count = _grouped(group, lambda row: row["num_measurements"])
                counts = sorted(by_count)
                spread = [[factor * row[key] for row in by_count[count]] for count in counts]
                color = (_COLORS | _LASSO)[method]
                axis.plot(
                    counts, [np.mean(v) for v in spread], "o-", color=color, label=_NAMES[method]
                )
                for count, values in zip(counts, spread, strict=True):
                    axis.plot([count] * len(values), values, ".", color=color, alpha=0.4)
            axis.axvline(2 * latent_dim, color="#bbbbbb", linewidth=1, linestyle="--", zorder=0)
            _style(axis)
            _plain_log_axis(axis, "x")
            if key != "x_success":
                _plain_log_axis(axis, "y")
            axis.set_title(f"k = {latent_dim}: {label}", color=_INK, fontsize=10)
            axis.set_xlabel("measurements m (dashed: 2 k)", color=_INK)
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    _save(figure, path, title)


def reconstructions(path: Path, rows: Sequence[Row], images: Path, title: str) -> None:
    """Draws targets above what each method made of them; first those where the methods differ.

    Args:
        path: The PNG to write.
        rows: Of one problem, a row per method.
        images: Folder of the kept images.
        title: Above the figure.
    """
    names = ["target", *dict.fromkeys(row["method"] for row in rows)]
    found = {}
    for name in names:
        file = images / f"{stem(rows[0])}-{name}.npy"
        if file.is_file():
            found[name] = np.load(file)
    if not {"target", "direct", "surfing"} <= found.keys():
        return
    errors = {n: np.mean((found[n] - found["target"]) ** 2, axis=(1, 2, 3)) for n in found}
    apart = np.abs(errors["surfing"] - errors["direct"])
    order = np.argsort(-apart, kind="stable")[:_NUM_IMAGES]
    figure, axes = _subplots(len(found), len(order), (len(order) + 1.2, len(found) + 0.6))
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for line_, (name, values) in zip(axes, found.items(), strict=True):
        for axis, index in zip(line_, order, strict=True):
            axis.imshow(np.squeeze(values[index], -1), cmap="gray_r", vmin=0, vmax=1)
        line_[0].set_ylabel(_NAMES.get(name, name), color=_INK, fontsize=9)
    _save(figure, path, f"{title}: by difference between direct descent and surfing, largest first")


def stem(row: Row) -> str:
    """Returns how the files of a row's images begin, with the row's `generator`.

    Args:
        row: Of a study.
    """
    kind = str(row.get("variant", row.get("num_measurements", ""))).replace(" ", "-")
    return f"{row['generator']}-{row['study']}-{kind}"


def _identity(row: Row) -> tuple[Any, ...]:
    """What rows of different seeds share."""
    return (
        row["latent_dim"],
        row.get("num_measurements", 0),
        row.get("variant", ""),
        row["method"],
    )


def _problem(row: Row) -> tuple[Any, ...]:
    """What rows of different methods share."""
    return row.get("num_measurements", 0), row.get("variant", "")


def _grouped(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _spread(key: str, write: Callable[[float], str]) -> Callable[[Sequence[Row]], str]:
    def column(rows: Sequence[Row]) -> str:
        values = [row[key] for row in rows if row.get(key) is not None]
        if not values:
            return ""
        text = write(float(np.mean(values)))
        if len(values) > 1 and write(min(values)) != write(max(values)):
            text += f" ({write(min(values))}–{write(max(values))})"
        return text

    return column


def _shared(key: str) -> Callable[[Sequence[Row]], str]:
    def column(rows: Sequence[Row]) -> str:
        values = dict.fromkeys(str(row.get(key, "")) for row in rows)
        return ", ".join(_NAMES.get(value, value) for value in values)

    return column


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _short(value: float) -> str:
    return f"{value:.2g}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


_COST = (
    ("steps", _spread("steps_per_target", _whole)),
    ("queries", _spread("queries_per_target", _whole)),
    ("learning rate", _shared("learning_rate")),
    ("seconds", _spread("seconds", _whole)),
    ("seeds", lambda rows: str(len(rows))),
)
_WHO = (("k", _shared("latent_dim")), ("method", _shared("method")))
_FOUND = (
    ("‖x − x*‖ < 0.01 (%)", _spread("x_success", _percent)),
    ("f < 1e-5 (%)", _spread("f_success", _percent)),
)


def _table(study: str, *columns: Any) -> tuple[str, list[str], list[Any]]:
    columns = tuple(itertools.chain(*columns))
    return study, [name for name, _ in columns], [write for _, write in columns]


_TABLES = (
    _table(
        "success",
        _WHO[:1],
        [("latents searched", _shared("variant")), ("active", _spread("num_active", _whole))],
        _WHO[1:],
        _FOUND,
        [
            ("active latents within 0.1 (%)", _spread("active_success", _percent)),
            ("median f", _spread("median_f", _short)),
            ("flat part of x on the way", _spread("flat_norm", _short)),
        ],
        _COST,
    ),
    _table("options", _WHO[:1], [("option", _shared("variant"))], _FOUND, _COST),
    _table("values", _WHO[:1], [("gradient", _shared("variant"))], _WHO[1:], _FOUND, _COST),
    _table(
        "compressed",
        _WHO[:1],
        [("m", _shared("num_measurements"))],
        _WHO[1:],
        _FOUND[:1],
        [
            ("error per pixel, generated", _spread("pixel_mse", _short)),
            ("error per pixel, test images", _spread("real_mse", _short)),
        ],
        _COST,
    ),
    _table(
        "one_bit",
        _WHO[:1],
        [("bits", _shared("num_bits"))],
        _WHO[1:],
        [
            ("wrong bits (%)", _spread("wrong_bits", _percent)),
            ("images recovered (%)", _spread("recovered", _percent)),
            ("median distance of latents", _spread("median_distance", _short)),
            ("error per pixel", _spread("pixel_mse", _short)),
            ("smoothing", _shared("sigma")),
        ],
        _COST,
    ),
)
