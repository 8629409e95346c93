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
    """Checks that x is a batch within [0, 1]; returns it as float32.

    Args:
      x: inputs, (b, ...).
    """
    inputs = np.asarray(x, np.float32)
    check_that("x", inputs.shape, "a batch, of shape (b, ...)", lambda shape: len(shape) > 1)
    if not np.all((inputs >= 0) & (inputs <= 1)):
        raise ValueError(
            f"x must be finite and within [0, 1], got values from {inputs.min()} to {inputs.max()}"
        )
    return inputs


def read_classes(name: str, values: Any, oracle: Oracle, size: int) -> np.ndarray:
    """Checks that values are one class per input; returns them as int32.

    Args:
      name: of the argument, for the message.
      values: integers (size,).
      oracle: that may know how many classes there are.
      size: number of inputs.
    """
    classes = np.asarray(values)
    is_integer = np.issubdtype(classes.dtype, np.integer) or classes.size == 0
    if classes.shape != (size,) or not is_integer or classes.min(initial=0) < 0:
        raise ValueError(f"{name} must be integers >= 0 of shape ({size},), got {values!r}")
    if oracle.num_classes is not None and classes.max(initial=0) >= oracle.num_classes:
        raise ValueError(
            f"{name} must be below {oracle.num_classes}, the number of classes, got {classes.max()}"
        )
    return classes.astype(np.int32)
