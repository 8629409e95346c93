"""Random signs on a random subset of the coordinates."""

import chex
import jax
import jax.numpy as jnp

from zojax.directions.base import flat_directions
from zojax.errors import is_traced
from zojax.types import Directions, PRNGKey


def sparse(fraction: float) -> Directions:
    """Directions that are zero except, with probability `fraction` each, for random signs.

    eps_i = b_i r_i / sqrt(fraction) with b_i ~ Bernoulli(fraction), r_i a fair sign; score
    s = eps. There is no smoothed loss this is the exact gradient of; bias against grad f is
    O(sigma^2), growing as 1 / fraction. For a linear loss the relative mean squared error is
    (d - 2 + 1 / fraction) / n. A fresh subset for every direction; to train a fixed
    subset use `mask`. A touched coordinate moves by sigma / sqrt(fraction).

    Args:
      fraction: expected fraction of coordinates that a direction touches, in (0, 1].

    Raises:
      ValueError: if `fraction` is outside (0, 1].
    """
    if not is_traced(fraction) and not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction!r}")

    def draw(key: PRNGKey, dimension: int) -> chex.Array:
        bits = jax.random.bits(key, (dimension,), dtype="uint32")
        # One word serves both: its lowest bit is the sign, the other 31 decide about the subset.
        sign = 2 * (bits & jnp.uint32(1)).astype(jnp.float32) - 1
        uniform = (bits >> 8).astype(jnp.float32) * jnp.float32(2**-24)
        chosen = uniform < jnp.asarray(fraction, jnp.float32)
        return jnp.where(chosen, sign / jnp.sqrt(jnp.asarray(fraction, jnp.float32)), 0)

    return flat_directions(
        "sparse", draw, linear_error=lambda d, n: (d - 2 + 1 / float(fraction)) / n
    )
