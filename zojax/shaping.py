"""Shapings: what is done to the returned values before they weigh the directions.

Only `identity` estimates the gradient itself. The others trade scale for robustness: their
results point along the gradient in expectation (exactly so only to first order), with a length
that does not follow the loss.
"""

from typing import Any

import chex
import jax.numpy as jnp

from zojax.types import Shaping


def _keep_values(values: chex.Array, center: Any, valid: chex.Array) -> tuple[chex.Array, Any]:
    del valid
    return values, center


def _keep_derivatives(derivatives: chex.Array, valid: chex.Array) -> chex.Array:
    del valid
    return derivatives


def _sign(derivatives: chex.Array, valid: chex.Array) -> chex.Array:
    del valid
    return jnp.sign(derivatives)


def _standardize(values: chex.Array, center: Any, valid: chex.Array) -> tuple[chex.Array, Any]:
    weights = jnp.broadcast_to(valid[:, None], values.shape).astype(values.dtype)
    count = jnp.maximum(jnp.sum(weights), 1)
    kept = jnp.where(valid[:, None], values, 0)
    mean = jnp.sum(kept) / count
    # Without this, rounding of the mean of equal losses would pass for a spread.
    mean = mean + jnp.sum(weights * (kept - mean)) / count
    variance = jnp.sum(weights * (kept - mean) ** 2) / count
    # Equal losses carry no information: scale 0 gives a zero gradient instead of 0/0.
    scale = jnp.where(variance > 0, 1 / jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    center = None if center is None else (center - mean) * scale
    return (values - mean) * scale, center


def _centered_rank(values: chex.Array, center: Any, valid: chex.Array) -> tuple[chex.Array, Any]:
    usable = jnp.broadcast_to(valid[:, None], values.shape)
    population = jnp.where(usable, values, jnp.inf).ravel()
    count = jnp.sum(usable)
    if center is not None:
        population = jnp.append(population, jnp.where(jnp.isfinite(center), center, jnp.inf))
        count = count + jnp.sum(jnp.isfinite(center))
    ordered = jnp.sort(population)

    def rank(x: chex.Array) -> chex.Array:
        below = jnp.searchsorted(ordered, x, side="left")
        not_above = jnp.searchsorted(ordered, x, side="right")
        # Twice the mean position less the middle one, in integers: ties of all are exactly 0.
        twice = (below + not_above - count).astype(values.dtype)
        spread = jnp.maximum(count - 1, 1).astype(values.dtype)
        # Alone there is nothing to compare with; failed values share the last place.
        centred = jnp.where(count > 1, twice / (2 * spread), 0)
        return jnp.where(jnp.isfinite(x), centred, 0.5)

    ranks = rank(jnp.where(usable, values, jnp.inf))
    return ranks, None if center is None else rank(center)


identity = Shaping(
    "identity", _keep_values, _keep_derivatives, is_global=False, preserves_scale=True
)
"""Values as they are: the estimate is of the gradient itself."""

standardize = Shaping("standardize", _standardize, _keep_derivatives, is_global=True)
"""(f - mean) / std over all finite values of the step (a forward stencil's centre is mapped the
same way but does not enter mean and std). The gradient is divided by the population std of the
losses, so it does not depend on their unit; equal losses give zero."""

centered_rank = Shaping("centered_rank", _centered_rank, _keep_derivatives, is_global=True)
"""Values replaced by their ranks, spread over [-1/2, 1/2]; ties share the mean of their ranks,
non-finite values come last, a forward stencil's centre is ranked among the others. Invariant
under monotone transformations of the loss (Salimans et al. 2017, arXiv 1703.03864)."""

sign_of_difference = Shaping(
    "sign_of_difference", _keep_values, _sign, is_global=False, needs_difference=True
)
"""Only which of two points is better (a comparison oracle): the mean of sign(D) s. For gaussian
directions and a linear loss with gradient g its expectation is sqrt(2/pi) g / |g|."""
