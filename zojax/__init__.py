"""zojax: zeroth-order optimisation for JAX.

Estimates gradients from function values alone and hands them to optax.
"""

from zojax import testing
from zojax.directions import (
    coordinate,
    flat_directions,
    gaussian,
    laplace,
    low_rank,
    orthogonal,
    rademacher,
    sparse,
    sphere,
)
from zojax.estimation import ask, choose_chunk, estimate, tell, value_and_grad
from zojax.estimators import (
    coordinate_difference,
    evolution_strategy,
    finite_difference,
    spsa,
)
from zojax.execution import chunked, vectorized
from zojax.shaping import centered_rank, identity, sign_of_difference, standardize
from zojax.sharding import sharded
from zojax.stencils import central, forward, one_point
from zojax.transforms import ZerothOrderState, as_gradient_transformation, mask_optimizer
from zojax.types import (
    Directions,
    Estimate,
    EstimateInfo,
    Estimator,
    Execution,
    Shaping,
    Stencil,
)

__version__ = "0.1.0"

__all__ = [
    "Directions",
    "Estimate",
    "EstimateInfo",
    "Estimator",
    "Execution",
    "Shaping",
    "Stencil",
    "ZerothOrderState",
    "as_gradient_transformation",
    "ask",
    "central",
    "centered_rank",
    "choose_chunk",
    "chunked",
    "coordinate",
    "coordinate_difference",
    "estimate",
    "evolution_strategy",
    "finite_difference",
    "flat_directions",
    "forward",
    "gaussian",
    "identity",
    "laplace",
    "low_rank",
    "mask_optimizer",
    "one_point",
    "orthogonal",
    "rademacher",
    "sharded",
    "sign_of_difference",
    "sparse",
    "spsa",
    "sphere",
    "standardize",
    "tell",
    "testing",
    "value_and_grad",
    "vectorized",
]
