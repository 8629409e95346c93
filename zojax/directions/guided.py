"""Directions that prefer a subspace in which the gradient is expected."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from zojax import trees
from zojax.directions.base import adaptive_directions, flat_directions
from zojax.errors import check_at_least, is_traced
from zojax.types import Adaptation, Directions, Params, PRNGKey, State

_PARALLEL = 1e-3  # a guide with less than this left after projection adds no direction of its own


def guided(
    num_guides: int = 1, alpha: float = 0.5, source: Literal["history", "updates"] = "history"
) -> Directions:
    """Gaussian directions stretched along a few guiding vectors; score s = eps, biased by design.

    eps = sqrt(alpha) z + sqrt((1 - alpha) d / r) U h with z, h Gaussian and U an orthonormal basis
    of the r (at most `num_guides`) guides at hand, so the total variance is that of `gaussian`.
    E[s eps^T] = M = alpha I + (1 - alpha) (d / r) U U^T: the estimate is of M grad f_sigma, not of
    the gradient, and C1 does not hold on purpose. A share of the gradient inside the subspace is
    seen as if there were few dimensions; a share outside shrinks by alpha. It hurts where the
    guides say nothing about the gradient. Before there is any guide it is `gaussian`.

    Args:
      num_guides: how many of the latest guides span the subspace.
      alpha: share of the variance spread over all dimensions, in (0, 1].
      source: where guides come from. "history": the latest estimates themselves. "updates": a
        surrogate gradient given before each step, the incoming updates of an optax chain
        (`tx.update(surrogate, state, params, value_fn=...)`) or `est.guide(state, surrogate)`.

    Raises:
      ValueError: if `num_guides` < 1, `alpha` is outside (0, 1], or for another source.

    Source: Maheswaranathan et al. 2019 (Guided ES), arXiv 1806.10230.
    """
    check_at_least("num_guides", num_guides, 1)
    if not is_traced(alpha) and not 0 < alpha <= 1:
        raise ValueError(f"alpha must be in (0, 1], got {alpha!r}")
    if source not in ("history", "updates"):
        raise ValueError(f"source must be 'history' or 'updates', got {source!r}")

    def init(params: Params) -> State:
        return jnp.zeros((num_guides, trees.size(params)), jnp.float32)

    def push(guides: State, vector: Params) -> State:
        flat = trees.ravel(vector).astype(jnp.float32)
        if flat.size != guides.shape[1]:
            raise ValueError(
                f"the surrogate gradient must be like the perturbed parameters ({guides.shape[1]} "
                f"numbers), got {flat.size}"
            )
        shifted = jnp.concatenate([flat[None], guides[:-1]])
        usable = jnp.all(jnp.isfinite(flat)) & jnp.any(flat != 0)  # a failed step guides nowhere
        return jnp.where(usable, shifted, guides)

    def bind(guides: State) -> Directions:
        basis, rank = _orthonormal(guides)
        share = jnp.where(rank > 0, jnp.asarray(alpha, jnp.float32), 1.0)

        def stretch(dimension: int) -> chex.Array:
            return (1 - share) * dimension / jnp.maximum(rank, 1.0)

        def draw(key: PRNGKey, dimension: int) -> chex.Array:
            normal = jax.random.normal(key, (dimension + num_guides,), dtype="float32")
            # A sum, not a matrix product, whose rounding depends on how many are drawn at once.
            inside = jnp.sum(normal[dimension:, None] * basis, axis=0)
            return jnp.sqrt(share) * normal[:dimension] + jnp.sqrt(stretch(dimension)) * inside

        def moment(params: Params) -> chex.Array:
            dimension = trees.size(params)
            projector = jnp.matmul(basis.T, basis, precision="highest")
            return share * jnp.eye(dimension) + stretch(dimension) * projector

        return flat_directions("guided", draw)._replace(moment=moment)

    from_history = source == "history"
    return adaptive_directions(
        "guided",
        Adaptation(
            init,
            bind,
            update=push if from_history else lambda guides, grad: guides,
            guide=None if from_history else push,
        ),
    )


def _orthonormal(vectors: chex.Array) -> tuple[chex.Array, chex.Array]:
    """Gram-Schmidt on rows (k, d); rows that add no direction become zero. Also their number."""
    lengths = jnp.max(jnp.abs(vectors), axis=1, keepdims=True)
    vectors = vectors / jnp.where(lengths > 0, lengths, 1)  # tiny gradients are directions, too
    rows: list[chex.Array] = []
    for vector in vectors:
        length = jnp.linalg.norm(vector)
        rest = vector
        for row in rows * 2:  # twice: once leaves rounding behind
            rest = rest - jnp.vdot(row, rest, precision="highest") * row
        left = jnp.linalg.norm(rest)
        rows.append(jnp.where(left > _PARALLEL * length, rest / jnp.where(left > 0, left, 1), 0))
    basis = jnp.stack(rows)
    return basis, jnp.sum(jnp.any(basis != 0, axis=1), dtype=jnp.float32)
