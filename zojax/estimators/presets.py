"""Named combinations of directions, stencil and shaping."""

from collections.abc import Callable
from typing import Any, TypeAlias

import chex
import jax

from zojax import trees
from zojax.directions import (
    all_coordinates,
    coordinate_subset,
    gaussian,
    rademacher,
    random_coordinates,
)
from zojax.errors import check_at_least
from zojax.estimators.finite_difference import finite_difference
from zojax.keys import check_key
from zojax.shaping import centered_rank, top_directions
from zojax.stencils import central
from zojax.types import Estimator, Params, PRNGKey, Stencil

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
    *,
    sigma: Sigma = 1e-3,
    num_coordinates: int | None = None,
    stencil: Stencil = central,
    mask: trees.Mask | None = None,
) -> Estimator:
    """Finite differences along coordinates (CGE): all of them, or a random block in every step.

    Each partial derivative on its own, with a step of exactly sigma; bias O(sigma^2) for `central`,
    O(sigma) for `forward`. All d coordinates give an estimate without variance, in which a
    coordinate whose evaluation fails gets zero. A block of n, drawn without replacement in every
    step and scaled by d / n, has relative mean squared error d / n - 1 on a linear loss. Queries:
    2 d or 2 n (`central`), d + 1 or n + 1 (`forward`).

    Args:
      sigma: step along each axis, in parameter units, or a schedule.
      num_coordinates: n, coordinates per step; None for all d.
      stencil: `zojax.central` or `zojax.forward`.
      mask: which leaves are perturbed.

    Raises:
      ValueError: for `sigma` <= 0, `num_coordinates` < 1 or a stencil that takes no difference.

    Source: Kiefer and Wolfowitz 1952; Chen et al. 2024 (DeepZero), arXiv 2310.02025.
    """
    if num_coordinates is not None:
        check_at_least("num_coordinates", num_coordinates, 1)
        if not stencil.is_difference:  # coordinates are not centred
            raise ValueError(f"stencil must be zojax.central or zojax.forward, got {stencil.name}")
    return finite_difference(
        directions=all_coordinates() if num_coordinates is None else random_coordinates(),
        stencil=stencil,
        num_directions=num_coordinates,
        sigma=sigma,
        mask=mask,
    )._replace(name="coordinate_difference")


def sparse_coordinate_difference(
    ratios: Params,
    *,
    key: PRNGKey,
    every: int = 1,
    sigma: Sigma = 5e-3,
    stencil: Stencil = central,
    mask: trees.Mask | None = None,
) -> Estimator:
    """Finite differences along a random subset of the coordinates, redrawn every few steps.

    Partial derivatives on the subset, zero elsewhere: no variance, and at any one step the
    gradient of the other coordinates is not seen, so E[grad] is the masked gradient. Stateful.
    Queries: 2 m (`central`) or m + 1 (`forward`) for a subset of m.

    Args:
      ratios: fraction of the coordinates in the subset, in [0, 1]: one number, or a pytree with one
        per perturbed leaf, e.g. from `zojax.pruning.grasp_ratios`.
      key: typed key of the subsets (the estimate's own key is not used).
      every: steps between two draws, at least 1.
      sigma: step along each axis, in parameter units, or a schedule.
      stencil: `zojax.central` or `zojax.forward`.
      mask: which leaves are perturbed.

    Raises:
      TypeError: if `key` is not a typed key.
      ValueError: for ratios outside [0, 1] or that leave no coordinate, `every` < 1, `sigma` <= 0,
        or a stencil that takes no difference.

    Source: Chen et al. 2024 (DeepZero), arXiv 2310.02025.
    """
    check_key(key)
    check_at_least("every", every, 1)
    for ratio in jax.tree.leaves(ratios):
        if not 0 <= float(ratio) <= 1:
            raise ValueError(f"ratios must be in [0, 1], got {ratio!r}")
    return finite_difference(
        directions=coordinate_subset(ratios, key, every),
        stencil=stencil,
        num_directions=None,
        sigma=sigma,
        mask=mask,
    )._replace(name="sparse_coordinate_difference")


def augmented_random_search(
    *,
    num_directions: int = 64,
    num_top: int = 16,
    sigma: Sigma = 0.03,
    mask: trees.Mask | None = None,
) -> Estimator:
    """Augmented random search: gaussian, central, the best directions over the spread of losses.

    Points along the gradient in expectation to first order; like ranks it does not depend on the
    unit of the loss. Queries: 2 n.

    Args:
      num_directions: antithetic pairs n.
      num_top: directions that are kept, at most n.
      sigma: smoothing radius, in parameter units, or a schedule.
      mask: which leaves are perturbed.

    Raises:
      ValueError: for `num_directions` < 1, `num_top` outside [1, n] or `sigma` <= 0.

    Source: Mania et al. 2018 (ARS), arXiv 1803.07055.
    """
    shaping = top_directions(num_top)
    check_at_least("num_directions", num_directions, 1)
    if num_top > num_directions:
        raise ValueError(
            f"num_top must be at most num_directions={num_directions}, got {num_top!r}"
        )
    return finite_difference(
        directions=gaussian(),
        stencil=central,
        shaping=shaping,
        num_directions=num_directions,
        sigma=sigma,
        mask=mask,
    )._replace(name="augmented_random_search")
