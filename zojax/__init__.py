"""zojax: zeroth-order optimisation for JAX.

Estimates gradients from function values alone and hands them to optax.
"""

from zojax import activations, projections, pruning, testing  # noqa: F401
from zojax.activations import activation_noise
from zojax.diagnostics import diagnose
from zojax.directions import (
    coordinate,
    flat_directions,
    gaussian,
    guided,
    hadamard,
    laplace,
    low_rank,
    orthogonal,
    rademacher,
    sparse,
    sphere,
    student_t,
)
from zojax.estimation import ask, choose_chunk, estimate, tell, value_and_grad
from zojax.estimators import (
    augmented_random_search,
    control_variate,
    coordinate_difference,
    evolution_strategy,
    finite_difference,
    pgpe,
    sparse_coordinate_difference,
    spsa,
    value_baseline,
)
from zojax.execution import chunked, vectorized
from zojax.shaping import (
    centered_rank,
    identity,
    leave_one_out,
    sign_of_difference,
    standardize,
)
from zojax.sharding import sharded
from zojax.stencils import central, forward, one_point
from zojax.transforms import (
    ZerothOrderState,
    accept_or_reject,
    admm,
    as_gradient_transformation,
    frank_wolfe,
    mask_optimizer,
    minimax,
    mirror_descent,
    projected,
    proximal,
    scale_by_adamm,
    spider,
    svrg,
    with_estimate,
)
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
    "accept_or_reject",
    "activation_noise",
    "admm",
    "as_gradient_transformation",
    "ask",
    "augmented_random_search",
    "centered_rank",
    "central",
    "choose_chunk",
    "chunked",
    "control_variate",
    "coordinate",
    "coordinate_difference",
    "diagnose",
    "estimate",
    "evolution_strategy",
    "finite_difference",
    "flat_directions",
    "forward",
    "frank_wolfe",
    "gaussian",
    "guided",
    "hadamard",
    "identity",
    "laplace",
    "leave_one_out",
    "low_rank",
    "mask_optimizer",
    "minimax",
    "mirror_descent",
    "one_point",
    "orthogonal",
    "pgpe",
    "projected",
    "proximal",
    "rademacher",
    "scale_by_adamm",
    "sharded",
    "sign_of_difference",
    "sparse",
    "sparse_coordinate_difference",
    "sphere",
    "spider",
    "spsa",
    "standardize",
    "student_t",
    "svrg",
    "tell",
    "value_and_grad",
    "value_baseline",
    "vectorized",
    "with_estimate",
]
