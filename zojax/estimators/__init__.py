"""Estimators: combinations of directions, stencil and shaping, and named presets."""

from zojax.estimators.baselines import control_variate, value_baseline
from zojax.estimators.finite_difference import FiniteDifferenceState, finite_difference
from zojax.estimators.pgpe import pgpe
from zojax.estimators.presets import (
    augmented_random_search,
    coordinate_difference,
    evolution_strategy,
    sparse_coordinate_difference,
    spsa,
)

__all__ = [
    "FiniteDifferenceState",
    "augmented_random_search",
    "control_variate",
    "coordinate_difference",
    "evolution_strategy",
    "finite_difference",
    "pgpe",
    "sparse_coordinate_difference",
    "spsa",
    "value_baseline",
]
