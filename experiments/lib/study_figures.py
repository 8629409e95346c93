"""The figures of `experiments.mnist_study`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.figures import _INK, _column, _plain_log_axis, _save, _style, _subplots

_COLORS = {"sgd": "C0", "momentum": "C1", "adagrad": "C2", "adam": "C3"}
_STYLES = {"backprop": "--", "values": "-"}
_CNN_STYLES = (":", "-.", (0, (1, 3)), (0, (4, 1, 1, 1, 1, 1)))  # settings of one optimiser


def optimizers(study: Any) -> None:
    """Draws every optimiser so far: the CNN dotted, back-propagation dashed, values only solid.

    Args:
        study: A `Study`.
    """
    found = [study.results.get(name, {}) for name in ("first_order", "twins")]
    curves = {name: curve for part in found for name, curve in part.get("curves", {}).items()}
    colors = {name: _COLORS[name.split("_")[1]] for name in curves}
    title = f"{study.data.name}: mean over seeds; a first-order step counts as three forwards"
    _errors(study.run.figures_dir / "optimizers.png", curves, colors, title)


def transfer(path: str | Path, curves: Mapping[str, Any]) -> None:
    """Draws the adaptation of a pretrained network.

    Args:
        path: The PNG to write.
        curves: Labels and rows per seed.
    """
    shades = {"last": "C0", "last_two": "C1", "all": "C2"}
    shades |= {f"{name}_equal": color for name, color in (("last", "C9"), ("last_two", "C8"))}
    colors = {name: shades[name.split("_", 1)[1]] for name in curves}
    _errors(path, curves, colors, "Fashion-MNIST → MNIST: layers trained after pretraining")


def _errors(
    path: str | Path, curves: Mapping[str, Any], colors: Mapping[str, str], title: str
) -> None:
    figure, axes = _subplots(1, 2, (13, 5.6), sharey=True)
    columns = (("sample_forwards", "sample-forwards"), ("seconds", "training time (s)"))
    for axis, (key, label) in zip(axes[0], columns, strict=True):
        for name, curve in curves.items():
            x = np.mean([_column(rows, key) for rows in curve["rows"]], axis=0)
            errors = [100 * (1 - _column(rows, "accuracy")) for rows in curve["rows"]]
            axis.plot(
                x,
                np.mean(errors, axis=0),
                color=colors[name],
                linestyle=_style_of(name, list(curves)),
                label=curve["label"],
                linewidth=1.3 if name.startswith("cnn") else 1.8,
            )
        axis.set_xlabel(label)
        _plain_log_axis(axis, "y")
        _style(axis)
    axes[0, 0].set_xscale("log")
    _plain_log_axis(axes[0, 1], "x")
    axes[0, 0].set_ylabel("validation error (%)")
    axes[0, 1].legend(fontsize=8.5, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _save(figure, path, title)


def _style_of(name: str, names: Sequence[str]) -> Any:
    kind, optimizer = name.split("_")[:2]
    if kind != "cnn":
        return _STYLES[kind]
    alike = [n for n in names if n.split("_")[:2] == [kind, optimizer]]
    return _CNN_STYLES[alike.index(name) % len(_CNN_STYLES)]


def sensitivity(path: str | Path, found: Mapping[str, Any]) -> None:
    """Draws validation accuracy against the learning rate.

    Args:
        path: The PNG to write.
        found: Per optimiser its learning rates and accuracies; None where the loss diverged.
    """
    figure, axes = _subplots(1, 2, (11, 4.6), sharey=True)
    panels = (("backprop", "back-propagation"), ("values", "values only"))
    for axis, (kind, title) in zip(axes[0], panels, strict=True):
        for name, entry in found.items():
            if name.startswith(kind):
                accuracy = [np.nan if a is None else 100 * a for a in entry["accuracy"]]
                optimizer = name.partition("_")[2]
                axis.plot(
                    entry["rates"],
                    accuracy,
                    marker="o",
                    markersize=4,
                    color=_COLORS[optimizer],
                    label=entry["label"].split(", ", 1)[1],
                )
        axis.set_xscale("log")
        axis.set_xlabel("first learning rate")
        axis.set_title(title, fontsize=11, color=_INK)
        _style(axis)
    axes[0, 0].set_ylabel("validation accuracy (%)")
    axes[0, 0].legend(fontsize=9, frameon=False, loc="lower left")
    _save(figure, path, "")


def noise(path: str | Path, found: Mapping[str, Any]) -> None:
    """Draws accuracy against noise on pixels and against noise on weights.

    Args:
        path: The PNG to write.
        found: Levels, and per network its curves.
    """
    figure, axes = _subplots(1, 2, (12, 4.8), sharey=True)
    panels = (
        ("input", "noise on pixels (standard deviation; their range is 1)"),
        ("weight", "noise on weights (in units of each layer's rms)"),
    )
    for axis, (kind, label) in zip(axes[0], panels, strict=True):
        for name, curve in found["curves"].items():
            axis.plot(found[f"{kind}_levels"], 100 * np.asarray(curve[kind]), label=name)
        axis.set_xlabel(label)
        _style(axis)
    axes[0, 0].set_ylabel("test accuracy (%)")
    axes[0, 1].legend(fontsize=8.5, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _save(figure, path, "")


def flips(path: str | Path, found: Sequence[Mapping[str, Any]]) -> None:
    """Draws images, the same with small noise, and the noise alone, with the decisions.

    Args:
        path: The PNG to write; nothing is drawn if no decision was flipped.
        found: The image, the noisy one, and what the network says of both, a row each.
    """
    rows = [flip for flip in found if flip["found"]]
    if not rows:
        return
    figure, axes = _subplots(len(rows), 3, (8.5, 3.2 * len(rows)))
    for line, flip in zip(axes, rows, strict=True):
        before, after = flip["confidence_before"], flip["confidence_after"]
        pictures = (
            (flip["image"], f"“{flip['was']}” ({before:.0%})", "gray_r", (0, 1)),
            (flip["noisy"], f"“{flip['becomes']}” ({after:.0%})", "gray_r", (0, 1)),
            (
                flip["noisy"] - flip["image"],
                f"noise, σ {flip['level']:g} (colours: ±0.1)",
                "RdBu_r",
                (-0.1, 0.1),
            ),
        )
        for axis, (image, title, colors, (low, high)) in zip(line, pictures, strict=True):
            axis.imshow(image.squeeze(-1), cmap=colors, vmin=low, vmax=high)
            axis.set_title(title, fontsize=11, color=_INK)
            axis.axis("off")
    _save(figure, path, "")
