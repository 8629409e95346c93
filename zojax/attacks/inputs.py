"""Inputs and their classes: checked where they come in, asked for where they are not known."""

from typing import Any

import numpy as np

from zojax.blackbox import Oracle
from zojax.errors import check_that

PATIENCE = 3
"""How often in a row a sample may get no answer at all before it is given up."""


def ask_labels(
    oracle: Oracle, points: np.ndarray, samples: np.ndarray, reserve: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Asks for the labels of points as checks, again where there is no answer.

    Args:
      oracle: to be asked.
      points: (b, ...).
      samples: which to ask about, (n,).
      reserve: queries of each sample's budget to be left unspent.

    Returns:
      Labels int64 (n,), -1 without an answer, and whether the budget covered asking, bool (n,).
    """
    labels = np.full(samples.size, -1, np.int64)
    is_covered = np.ones(samples.size, bool)
    for _ in range(PATIENCE):
        is_covered &= (labels >= 0) | (oracle.remaining(samples) > reserve)
        places = np.flatnonzero(is_covered & (labels < 0))
        labels[places] = oracle.labels(points[samples[places]], samples[places], purpose="check")
    return labels, is_covered


def read_inputs(x: Any) -> np.ndarray:
    """Inputs as float32.

    Args:
      x: a batch (b, ...) within [0, 1].

    Raises:
      ValueError: for anything else.
    """
    images = np.asarray(x, np.float32)
    check_that("x", images.shape, "a batch, of shape (b, ...)", lambda shape: len(shape) > 1)
    if not np.all((images >= 0) & (images <= 1)):
        hint = "; divide bytes by 255" if images.max() <= 255 and images.min() >= 0 else ""
        raise ValueError(
            f"x must be finite and within [0, 1], "
            f"got values from {images.min()} to {images.max()}{hint}"
        )
    return images


def read_classes(name: str, values: Any, oracle: Oracle, size: int) -> np.ndarray:
    """Classes as int32.

    Args:
      name: of the argument.
      values: one integer >= 0 per input.
      oracle: says how many classes there are, if it knows.
      size: the number of inputs.

    Raises:
      ValueError: for anything else.
    """
    classes = np.asarray(values)
    is_integer = np.issubdtype(classes.dtype, np.integer) or classes.size == 0
    if classes.shape != (size,) or not is_integer or classes.min(initial=0) < 0:
        raise ValueError(f"{name} must be integers >= 0 of shape ({size},), got {values!r}")
    check_known(name, classes, oracle)
    return classes.astype(np.int32)


def check_known(name: str, classes: np.ndarray, oracle: Oracle) -> None:
    """Refuses classes beyond those the oracle knows, which it may only do once it has answered.

    Args:
      name: of the argument.
      classes: integers (b,).
      oracle: says how many classes there are, if it knows.

    Raises:
      ValueError: if there is no such class.
    """
    if oracle.num_classes is not None and classes.max(initial=0) >= oracle.num_classes:
        raise ValueError(
            f"{name} must be below {oracle.num_classes}, the number of classes, got {classes.max()}"
        )
