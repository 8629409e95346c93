"""What explanations found and cost: rows of numbers, a table, and a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.explain_white_box import WhiteBox
from experiments.lib.figures import _save, _subplots
from zojax.explain import Explanations

Row = Mapping[str, Any]
NUM_TOP = 20
"""Pixels that are compared with those of the white-box method."""
_MOST_COLUMNS = 10
_KEEPS_BLANK = "already"  # of a positive: the blank image has the class as well


def row_of(
    name: str, keeps: bool, found: Explanations, white: WhiteBox | None, seconds: float
) -> dict[str, Any]:
    """Returns all numbers of one kind of explanation.

    Args:
        name: Of the kind.
        keeps: Whether it is a positive.
        found: From values alone.
        white: With gradients, None if the model has none that we know.
        seconds: That it took.
    """
    blank = (found.status == _KEEPS_BLANK) & keeps
    row = {
        "kind": name,
        "num_images": len(found.success),
        "success": int(found.success.sum()),
        "blank_suffices": int(blank.sum()),
        "verified": int(_verified(keeps, found).sum()),
        "status": dict(zip(*np.unique(found.status, return_counts=True), strict=True)),
        "l0": _mean(found.l0),
        "l1": _mean(found.l1),
        "l2": _mean(found.l2),
        "queries_mean": float(found.queries.mean()),
        "queries_most": int(found.queries.max()),
        "loss_queries": int(found.loss_queries.sum()),
        "check_queries": int(found.check_queries.sum()),
        "seconds": round(seconds, 1),
    }
    return row if white is None else row | agreement(found, white)


def agreement(found: Explanations, white: WhiteBox) -> dict[str, Any]:
    """Compares with the white-box method, over the images where both succeeded.

    Args:
        found: From values alone.
        white: With gradients.
    """
    both = found.success & white.success
    ours, theirs = (_flat(changes)[both] for changes in (found.change, white.change))
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = (ours * theirs).sum(axis=1) / np.maximum(lengths, 1e-12)
    sums = np.abs(theirs).sum(axis=1)
    overlaps = [_overlap(a, b) for a, b in zip(ours, theirs, strict=True)]
    return {
        "white_box_success": int(white.success.sum()),
        "white_box_l1": _mean(sums),
        "l1_ratio": float(np.abs(ours).sum() / max(sums.sum(), 1e-12)),
        "cosine": _mean(cosines),
        "top_overlap": _mean(np.asarray(overlaps)),
    }


def table(rows: Sequence[Row]) -> str:
    """Returns the table in Markdown.

    Args:
        rows: One per kind of explanation.
    """
    columns = {
        "explanation": lambda r: r["kind"],
        "success": _success,
        "L0": lambda r: _number(r["l0"], 1),
        "L1": lambda r: _number(r["l1"], 2),
        "L2": lambda r: _number(r["l2"], 2),
        "queries, mean (most)": lambda r: f"{r['queries_mean']:,.0f} ({r['queries_most']:,})",
        "L1 / white-box L1": lambda r: _number(r.get("l1_ratio"), 3),
        "cosine": lambda r: _number(r.get("cosine"), 2),
        f"top {NUM_TOP} pixels shared": lambda r: _number(r.get("top_overlap"), 2),
        "seconds": lambda r: f"{r['seconds']:.0f}",
    }
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(cell(row) for cell in columns.values()) for row in rows]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def draw(
    path: Path,
    images: np.ndarray,
    found: Mapping[str, tuple[bool, Explanations]],
    class_names: Sequence[str],
    title: str,
) -> None:
    """Draws the originals and, below, what each kind of explanation adds or keeps.

    Args:
        path: The PNG to write.
        images: (n, height, width, 1).
        found: For each name whether it is a positive, and the explanations.
        class_names: One per class.
        title: Above the figure.
    """
    count = min(len(images), _MOST_COLUMNS)
    names = ["original"]
    for name, (keeps, _) in found.items():
        names += [name] if keeps else [name, f"with {name}"]
    size = (1.25 * count + 1.2, 1.45 * len(names) + 0.6)
    figure, axes = _subplots(len(names), count, size)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(name.replace(" ", "\n"), fontsize=9)
    before = next(iter(found.values()))[1].class_before

    def show(row: int, column: int, image: np.ndarray, label: int) -> None:
        axes[row, column].imshow(image.squeeze(-1), cmap="gray_r", vmin=0, vmax=1)
        axes[row, column].set_title(_class_name(class_names, label), fontsize=9)

    for column in range(count):
        show(0, column, images[column], before[column])
        row = 1
        for keeps, explanations in found.values():
            # A blank image that has the class already is a positive of nothing.
            is_blank = keeps and explanations.status[column] == _KEEPS_BLANK
            after = (explanations.class_before if is_blank else explanations.class_after)[column]
            if not keeps:
                axes[row, column].imshow(
                    explanations.change[column].squeeze(-1), cmap="RdBu_r", vmin=-1, vmax=1
                )
                row += 1
            show(row, column, explanations.shown[column], after)
            row += 1
    _save(figure, path, title)


def _class_name(class_names: Sequence[str], label: int) -> str:
    """A number where a user's model has other classes than the data set."""
    if label < 0:
        return "none found"
    return class_names[label] if label < len(class_names) else str(label)


def _verified(keeps: bool, found: Explanations) -> np.ndarray:
    """Where the class of what was found, asked for once more, is as it should be."""
    same = found.class_after == found.class_before
    return found.success & (found.class_after >= 0) & (same == keeps)


def _flat(changes: np.ndarray) -> np.ndarray:
    return changes.reshape(len(changes), -1).astype(np.float64)


def _overlap(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Which share of the largest entries of either are among those of both."""
    count = max(1, min(NUM_TOP, np.count_nonzero(ours), np.count_nonzero(theirs)))
    tops = [set(np.argsort(-np.abs(values), kind="stable")[:count]) for values in (ours, theirs)]
    return len(tops[0] & tops[1]) / len(tops[0] | tops[1])


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _success(row: Row) -> str:
    blank = f" and {row['blank_suffices']} blank" if row["blank_suffices"] else ""
    return f"{row['success']}{blank} of {row['num_images']}"
