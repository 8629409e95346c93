"""Estimators: combinations of directions, stencil and shaping, and named presets."""

from zojax.estimators.finite_difference import FiniteDifferenceState, finite_difference
from zojax.estimators.presets import coordinate_difference, evolution_strategy, spsa

__all__ = [
    "FiniteDifferenceState",
    "coordinate_difference",
    "evolution_strategy",
    "finite_difference",
    "spsa",
]
