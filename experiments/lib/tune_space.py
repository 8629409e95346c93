"""The search space of `experiments.tune`, and its map to the unit cube."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

Space = Mapping[str, BaseDistribution]

TRAINING_SPACE: Space = {
    "sigma": FloatDistribution(1e-2, 100.0, log=True),
    "learning_rate": FloatDistribution(1e-6, 1.0, log=True),
    "log2_directions": IntDistribution(2, 6, step=2),
    "l1": FloatDistribution(1e-5, 10.0, log=True),
    "momentum": FloatDistribution(0.0, 0.98),
}
"""What a trial of training chooses: the smoothing radius, the learning rate, the base-2 logarithm
of the number of directions, the strength of the L1 penalty, and the heavy ball's momentum. The
ranges are those of somebody who knows no scale: four to six orders of magnitude, with good values
far from the middle."""


def to_unit(params: Mapping[str, Any], space: Space) -> np.ndarray:
    """Maps a configuration to the unit cube, shape (d,).

    A logarithmic range is mapped by its logarithm; the k values of an integer range go to the
    middles of k equal intervals.

    Args:
        params: A value for every name of the space.
        space: The search space, of floats and integers.
    """
    unit = []
    for name, distribution in space.items():
        low, high = _ends(distribution)
        value = _warp(params[name], distribution)
        unit.append((value - low) / (high - low))
    return np.clip(unit, 0.0, 1.0)


def from_unit(point: Sequence[float], space: Space) -> dict[str, Any]:
    """Maps a point of the unit cube to a configuration; the inverse of `to_unit`.

    Args:
        point: Coordinates in the order of the space, clipped to [0, 1].
        space: The search space.
    """
    params: dict[str, Any] = {}
    for (name, distribution), x in zip(space.items(), point, strict=True):
        low, high = _ends(distribution)
        value = low + min(max(float(x), 0.0), 1.0) * (high - low)
        if isinstance(distribution, IntDistribution):
            steps = round((value - distribution.low) / distribution.step)
            value = distribution.low + distribution.step * steps
            params[name] = int(min(max(value, distribution.low), distribution.high))
        else:
            value = math.exp(value) if distribution.log else value
            params[name] = min(max(value, distribution.low), distribution.high)
    return params


def _warp(value: float, distribution: Any) -> float:
    return math.log(value) if distribution.log else float(value)


def _ends(distribution: Any) -> tuple[float, float]:
    low, high = (_warp(end, distribution) for end in (distribution.low, distribution.high))
    if isinstance(distribution, IntDistribution):
        return low - distribution.step / 2, high + distribution.step / 2
    return low, high
