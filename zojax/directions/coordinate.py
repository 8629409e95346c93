"""One coordinate at a time: at random, or all of them."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from zojax import trees
from zojax.directions.base import block_error, over_dimension
from zojax.types import Directions, Noise, Params, PRNGKey


def coordinate() -> Directions:
    """Directions +-sqrt(d) e_i with i and the sign uniform, with replacement; score s = eps.

    A step is sigma sqrt(d) along one axis. There is no smoothed loss this is the exact gradient
    of; bias against grad f is O(d sigma^2). For a linear loss the relative mean squared error of n
    directions is (d - 1) / n. Noise is one integer per direction.
    """

    def draw(key: PRNGKey, params: Params) -> Noise:
        # Beyond d: the same axes with the other sign, so that E[s] = 0.
        return jax.random.randint(key, (), 0, 2 * trees.size(params))

    axes = axis_directions("coordinate", draw, step=lambda d: d**0.5, score=lambda d: d**0.5)
    return axes._replace(linear_error=over_dimension(lambda d, n: (d - 1) / n))


def all_coordinates() -> Directions:
    """All d coordinate directions e_1 ... e_d, once each; a step is exactly sigma.

    The set behind `coordinate_difference`. The score d e_i makes the mean over the set a sum of
    partial derivatives: E[s eps^T] = I without any randomness, so the estimate has no variance;
    bias against grad f is O(sigma^2) for a central stencil and O(sigma) for a forward one.
    """

    def draw(key: PRNGKey, params: Params, block: int) -> Noise:
        del key, params
        return jnp.arange(block)

    axes = axis_directions("all_coordinates", draw, step=lambda d: 1.0, score=float)
    return axes._replace(
        block_size=lambda dimension, _: dimension,
        fixed_number=trees.size,
        linear_error=lambda params, n: 0.0,
    )


def random_coordinates() -> Directions:
    """Coordinate directions e_i, a block of n at most d without replacement; steps exactly sigma.

    The score d e_i makes the estimate unbiased on a linear loss, with relative mean squared error
    d / n - 1; bias against grad f is O(sigma^2) for a central stencil. Not centred: for stencils
    that take a difference.
    """

    def draw(key: PRNGKey, params: Params, block: int) -> Noise:
        return jax.random.permutation(key, trees.size(params))[:block]

    axes = axis_directions("random_coordinates", draw, step=lambda d: 1.0, score=float)
    return axes._replace(
        block_size=lambda dimension, n: min(n, dimension),
        linear_error=over_dimension(lambda d, n: block_error(d, n, min(n, d))),
    )


def axis_directions(name: str, draw: Any, step: Any, score: Any) -> Directions:
    """Builds a distribution over axes: noise i < d is the axis e_i, noise d + i its opposite.

    Args:
      name: for messages and tables.
      draw: as in `Directions`, returns such integers.
      step: d -> length of a step along the axis, in units of sigma.
      score: d -> length of the score.
    """

    def sign(noise: chex.Array, dimension: int) -> chex.Array:
        return jnp.where(noise < dimension, 1.0, -1.0).astype(jnp.float32)

    def perturb(params: Params, noise: Noise, scale: Any) -> Params:
        dimension = trees.size(params)
        axis = (jnp.arange(dimension) == noise % dimension).astype(jnp.float32)
        move = axis * (sign(noise, dimension) * step(dimension))
        return trees.add_scaled(params, trees.split(move, params), scale)

    def combine(coefficients: chex.Array, noises: Noise, params: Params) -> Params:
        dimension = trees.size(params)
        weights = coefficients.astype(jnp.float32) * (sign(noises, dimension) * score(dimension))
        total = jnp.zeros((dimension,), jnp.float32).at[noises % dimension].add(weights)
        return trees.split(total, params)

    return Directions(name, draw, perturb, combine)
