"""Uniform directions on a sphere of radius sqrt(d)."""

import chex
import jax
import jax.numpy as jnp

from zojax.directions.base import flat_directions
from zojax.types import Directions, PRNGKey


def sphere() -> Directions:
    """Directions uniform on the sphere of radius sqrt(d), score s = eps.

    The estimate is the exact gradient of the loss smoothed uniformly over the *ball* of radius
    sigma sqrt(d); bias against grad f is O(sigma^2). For a linear loss the relative mean squared
    error of n directions is (d - 1) / n. (Where a paper writes (d / mu) f(x + mu u) u with |u| = 1,
    its mu is sigma sqrt(d) here.)

    Source: Flaxman, Kalai and McMahan 2005, arXiv cs/0408007.
    """

    def draw(key: PRNGKey, dimension: int) -> chex.Array:
        normal = jax.random.normal(key, (dimension,), dtype="float32")
        return normal * (jnp.sqrt(jnp.float32(dimension)) / jnp.linalg.norm(normal))

    return flat_directions("sphere", draw, linear_error=lambda d, n: (d - 1) / n)
