"""Named combinations of directions, stencil and shaping."""

from collections.abc import Callable
from typing import Any, TypeAlias

import chex

from zojax import trees
from zojax.directions import all_coordinates, gaussian, rademacher
from zojax.estimators.finite_difference import finite_difference
from zojax.shaping import centered_rank
from zojax.stencils import central
from zojax.types import Estimator, Stencil

Sigma: TypeAlias = float | chex.Array | Callable[[chex.Array], Any]


def evolution_strategy(
    *, num_directions: int = 64, sigma: Sigma = 0.02, mask: trees.Mask | None = None
) -> Estimator:
    """The evolution strategy of OpenAI: gaussian directions, central, centered ranks.

    Ranks make it scale-free and robust to outliers: the result points along the gradient of the
    smoothed loss in expectation only approximately, and its length says nothing about the loss.
    Queries: 2 n.

    Args:
      num_directions: antithetic pairs n.
      sigma: smoothing radius, in parameter units, or a schedule.
      mask: which leaves are perturbed.

    Raises:
      ValueError: for `num_directions` < 1 or `sigma` <= 0.

    Source: Salimans et al. 2017, arXiv 1703.03864.
    """
    return finite_difference(
        directions=gaussian(),
        stencil=central,
        shaping=centered_rank,
        num_directions=num_directions,
        sigma=sigma,
        mask=mask,
    )._replace(name="evolution_strategy")


def spsa(
    *, sigma: Sigma = 0.01, num_directions: int = 1, mask: trees.Mask | None = None
) -> Estimator:
    """Simultaneous perturbation: rademacher directions, central differences.

    Bias O(sigma^2) against grad f. Queries: 2 n. (In Spall's notation sigma is c_k.)

    Args:
      sigma: size of the simultaneous step in every coordinate, or a schedule.
      num_directions: n, averaged.
      mask: which leaves are perturbed.

    Raises:
      ValueError: for `num_directions` < 1 or `sigma` <= 0.

    Source: Spall 1992 (IEEE Trans. Autom. Control 37(3)).
    """
    return finite_difference(
        directions=rademacher(),
        stencil=central,
        num_directions=num_directions,
        sigma=sigma,
        mask=mask,
    )._replace(name="spsa")


def coordinate_difference(
    *, sigma: Sigma = 1e-3, stencil: Stencil = central, mask: trees.Mask | None = None
) -> Estimator:
    """Finite differences along every coordinate (CGE): no randomness, no variance.

    Each partial derivative on its own, with a step of exactly sigma; bias O(sigma^2) for `central`,
    O(sigma) for `forward`. A coordinate whose evaluation fails gets zero. Queries: 2 d (`central`),
    d + 1 (`forward`) for d perturbed parameters.

    Args:
      sigma: step along each axis, in parameter units, or a schedule.
      stencil: `zojax.central` or `zojax.forward`.
      mask: which leaves are perturbed.

    Raises:
      ValueError: for `sigma` <= 0 or a stencil that takes no difference.

    Source: Kiefer and Wolfowitz 1952; Chen et al. 2024 (DeepZero), arXiv 2310.02025.
    """
    return finite_difference(
        directions=all_coordinates(),
        stencil=stencil,
        num_directions=None,
        sigma=sigma,
        mask=mask,
    )._replace(name="coordinate_difference")
