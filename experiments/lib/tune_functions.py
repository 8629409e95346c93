"""Two closed forms with known minima, on which searchers are checked."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import FloatDistribution

from experiments.lib.tune_space import Space


class Function(NamedTuple):
    """A function to minimise.

    Attributes:
        space: Where it is searched.
        minimum: Its least value there.
        value: Maps a configuration to the value.
    """

    space: Space
    minimum: float
    value: Any

    def curve(self, params: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
        """Yields the only score of a configuration, which costs one evaluation."""
        yield 1, self.value(params)


def _branin(params: Mapping[str, float]) -> float:
    x, y = params["x0"], params["x1"]
    ridge = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return ridge**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


_HEIGHTS = np.array([1.0, 1.2, 3.0, 3.2])
_WIDTHS = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
_CENTERS = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def _hartmann6(params: Mapping[str, float]) -> float:
    x = np.array([params[f"x{i}"] for i in range(6)])
    exponents = -(_WIDTHS * (x - _CENTERS) ** 2).sum(1)
    return float(-(_HEIGHTS * np.exp(exponents)).sum())


FUNCTIONS = {
    "branin": Function(
        {"x0": FloatDistribution(-5.0, 10.0), "x1": FloatDistribution(0.0, 15.0)},
        0.397887,
        _branin,
    ),
    "hartmann6": Function(
        {f"x{i}": FloatDistribution(0.0, 1.0) for i in range(6)}, -3.32237, _hartmann6
    ),
}
"""Branin and Hartmann-6 (Dixon and Szego 1978, "The global optimization problem")."""
