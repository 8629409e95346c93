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
from zojax.estimators.unrolled import (
    UnrolledEstimator,
    UnrolledState,
    nres,
    pes,
    truncated_es,
)

__all__ = [
    "FiniteDifferenceState",
    "UnrolledEstimator",
    "UnrolledState",
    "augmented_random_search",
    "control_variate",
    "coordinate_difference",
    "evolution_strategy",
    "finite_difference",
    "nres",
    "pes",
    "pgpe",
    "sparse_coordinate_difference",
    "spsa",
    "truncated_es",
    "value_baseline",
]
