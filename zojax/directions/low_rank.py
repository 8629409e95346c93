"""Low-rank perturbations of matrices."""

from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax import trees
from zojax.errors import check_at_least
from zojax.implicit import LowRankArray
from zojax.types import Directions, Noise, Params, PRNGKey

_SAMPLERS = {"gaussian": jax.random.normal, "rademacher": jax.random.rademacher}


def low_rank(rank: int = 1, factors: Literal["gaussian", "rademacher"] = "gaussian") -> Directions:
    """Directions A B^T / sqrt(rank) per matrix with random factors; score s = eps.

    A leaf of two or more dimensions is a matrix of shape (product of the leading axes, last
    axis), as the kernels of dense and convolutional layers are; vectors and scalars get
    full-rank noise of the factors' kind. The covariance is the identity at every rank. There is no
    smoothed loss this is the exact gradient of; bias against grad f is O(sigma^2), with
    E[eps_i^4] = 3 + 6 / rank on matrices (9 at rank 1, Gaussian 3 as the rank grows). For a linear
    loss of one (m, k) matrix the relative mean squared error of n directions is
    (d + 1 + 2 (m + k + 1) / rank) / n. Rademacher factors have E[eps_i^4] = 3 - 2 / rank and,
    for a linear loss, (d + 1 - 2 / rank) / n: at rank 1 the variance and the bias of `rademacher`.

    The perturbed weight is never formed: an unmodified model multiplies by an array type that
    passes the product on to the weight and its factors (`zojax.implicit`). Noise for an (m, k)
    matrix takes rank (m + k) numbers instead of m k, and the estimate is assembled from the
    factors by one contraction per matrix.

    Args:
      rank: number of outer products per matrix.
      factors: how the entries of A and B are distributed, "gaussian" or "rademacher" (signs).

    Raises:
      ValueError: if `rank` < 1, or for other factors.

    Source: Sarkar et al. 2025 (EGGROLL), arXiv 2511.16652.
    """
    check_at_least("rank", rank, 1)
    if factors not in _SAMPLERS:
        raise ValueError(f"factors must be one of {sorted(_SAMPLERS)}, got {factors!r}")
    sample = _SAMPLERS[factors]

    def draw(key: PRNGKey, params: Params) -> Noise:
        shapes = [_factor_shapes(leaf.shape, rank) for leaf in jax.tree.leaves(params)]
        sizes = [int(np.prod(shape)) for pair in shapes for shape in pair]
        flat = sample(key, (sum(sizes),), dtype="float32")
        pieces = iter(jnp.split(flat, np.cumsum(sizes)[:-1]))
        return [tuple(next(pieces).reshape(shape) for shape in pair) for pair in shapes]

    def perturb(params: Params, noise: Noise, scale: Any) -> Params:
        leaves, treedef = jax.tree.flatten(params)
        moved = [_perturb_leaf(leaf, pair, scale) for leaf, pair in zip(leaves, noise, strict=True)]
        return jax.tree.unflatten(treedef, moved)

    def combine(coefficients: chex.Array, noises: Noise, params: Params) -> Params:
        weights = coefficients.astype(jnp.float32)
        leaves, treedef = jax.tree.flatten(params)
        sums = [
            _contract(weights, pair, rank).reshape(leaf.shape)
            for leaf, pair in zip(leaves, noises, strict=True)
        ]
        return jax.tree.unflatten(treedef, sums)

    name = f"low_rank({rank})" if factors == "gaussian" else f"low_rank({rank}, {factors})"
    return Directions(
        name,
        draw,
        perturb,
        combine,
        linear_error=lambda params, n: _linear_error(params, n, rank, factors),
    )


def _linear_error(params: Params, num_directions: int, rank: int, factors: str) -> float:
    """The law of every leaf, weighed by how much of the squared gradient it holds.

    That is not known before there is a gradient: coordinates are taken to share it evenly, which
    is exact for a single leaf.
    """
    dimension, excess = trees.size(params), 0.0
    for leaf in jax.tree.leaves(params):
        shapes = _factor_shapes(leaf.shape, rank)
        if factors == "rademacher":
            over = 2 - 2 / rank if len(shapes) == 2 else 0.0
        else:
            over = 2 + 2 * (shapes[0][0] + shapes[1][0] + 1) / rank if len(shapes) == 2 else 2.0
        excess += over * leaf.size / dimension
    return (dimension - 1 + excess) / num_directions


def _factor_shapes(shape: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], ...]:
    if len(shape) < 2:
        return ((int(np.prod(shape)),),)
    rows = int(np.prod(shape[:-1]))
    return ((rows, rank), (shape[-1], rank))


def _perturb_leaf(leaf: chex.Array, factors: tuple[chex.Array, ...], scale: Any) -> Any:
    if len(factors) == 1:
        return trees.add_scaled(leaf, factors[0].reshape(leaf.shape), scale)
    left, right = factors
    rank, dtype = right.shape[1], trees.point_dtype(leaf.dtype)
    return LowRankArray(
        base=leaf.astype(dtype),
        left=left.reshape(*leaf.shape[:-1], rank).astype(dtype),
        right=right.astype(dtype),
        scale=jnp.asarray(scale, dtype) * rank**-0.5,
    )


def _contract(weights: chex.Array, factors: tuple[chex.Array, ...], rank: int) -> chex.Array:
    if len(factors) == 1:
        return jnp.matmul(weights, factors[0], precision="highest")
    left, right = factors
    sum_ = jnp.einsum("i,imr,inr->mn", weights, left, right, precision="highest")
    return sum_ * rank**-0.5
