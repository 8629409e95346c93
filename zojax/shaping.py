"""Shapings: what is done to the returned values before they weigh the directions.

Only `identity` and `leave_one_out` estimate the gradient itself. The others trade scale for
robustness: their results point along the gradient in expectation (exactly so only to first order),
with a length that does not follow the loss.
"""

import math
from typing import Any

import chex
import jax.numpy as jnp

from zojax.errors import check_at_least
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


def _leave_one_out(values: chex.Array, center: Any, valid: chex.Array) -> tuple[chex.Array, Any]:
    if center is not None:  # the centre is the baseline
        return values, center
    weights = jnp.broadcast_to(valid[:, None], values.shape).astype(values.dtype)
    kept = jnp.where(valid[:, None], values, 0)
    # Over directions, not over points: the points of one direction share its noise.
    sums, num_points = jnp.sum(kept, axis=1, keepdims=True), values.shape[1]
    others = jnp.maximum(jnp.sum(weights) - num_points, 1)
    return values - (jnp.sum(kept) - sums) / others, center


def top_directions(count: int) -> Shaping:
    """Keeps the `count` directions with the lowest of their losses, over the losses' spread.

    The shaping of augmented random search: directions that found nothing good are left out, the
    mean is over those that are kept, and the values are divided by the standard deviation of the
    losses that entered. Failures may leave fewer.

    Args:
      count: directions to keep, at least 1.

    Raises:
      ValueError: if `count` < 1.

    Source: Mania et al. 2018 (ARS), arXiv 1803.07055.
    """
    check_at_least("count", count, 1)

    def on_values(
        values: chex.Array, center: Any, valid: chex.Array
    ) -> tuple[chex.Array, chex.Array | None]:
        best = jnp.where(valid, jnp.min(values, axis=1), jnp.inf)
        places = jnp.argsort(jnp.argsort(best))
        kept = valid & (places < count)
        scaled, center = _standardize(values, center, kept)
        # The estimate divides by all valid directions; only the kept ones count.
        factor = jnp.sum(valid) / jnp.maximum(jnp.sum(kept), 1)
        if center is None:
            return jnp.where(kept[:, None], scaled * factor, 0), None
        # What equals the centre differs from it by nothing.
        return jnp.where(kept[:, None], scaled * factor, center * factor), center * factor

    return Shaping(f"top_directions({count})", on_values, _keep_derivatives, is_global=True)


identity = Shaping(
    "identity",
    _keep_values,
    _keep_derivatives,
    is_global=False,
    preserves_scale=True,
    efficiency=1.0,
)
"""Values as they are: the estimate is of the gradient itself."""

leave_one_out = Shaping(
    "leave_one_out",
    _leave_one_out,
    _keep_derivatives,
    is_global=True,
    preserves_scale=True,
    efficiency=1.0,
)
"""Each loss less the mean of the losses of the *other* directions: a baseline that costs no query
and keeps the estimate unbiased, for `one_point` above all (with n = 1 it is nothing). For a linear
loss the relative mean squared error of Gaussian directions is about (d + 1) / n n / (n - 1); where
a stencil takes a difference, the baseline cancels or is the centre."""

standardize = Shaping(
    "standardize", _standardize, _keep_derivatives, is_global=True, efficiency=1.0
)
"""(f - mean) / std over all finite values of the step (a forward stencil's centre is mapped the
same way but does not enter mean and std). The gradient is divided by the population std of the
losses, so it does not depend on their unit; equal losses give zero."""

centered_rank = Shaping(
    "centered_rank", _centered_rank, _keep_derivatives, is_global=True, efficiency=3 / math.pi
)
"""Values replaced by their ranks, spread over [-1/2, 1/2]; ties share the mean of their ranks,
non-finite values come last, a forward stencil's centre is ranked among the others. Invariant
under monotone transformations of the loss (Salimans et al. 2017, arXiv 1703.03864)."""

sign_of_difference = Shaping(
    "sign_of_difference",
    _keep_values,
    _sign,
    is_global=False,
    needs_difference=True,
    efficiency=2 / math.pi,
)
"""Only which of two points is better (a comparison oracle): the mean of sign(D) s. For gaussian
directions and a linear loss with gradient g its expectation is sqrt(2/pi) g / |g|."""
