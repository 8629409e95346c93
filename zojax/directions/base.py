"""What all direction distributions share: flat draws, and drawing a range of directions."""

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from zojax import trees
from zojax.keys import noise_key
from zojax.types import Adaptation, Directions, Noise, Params, PRNGKey


def flat_directions(
    name: str,
    draw: Callable[..., chex.Array],
    score: Callable[[chex.Array], chex.Array] = lambda noise: noise,
    block_size: Callable[[int, int], int] | None = None,
    linear_error: Callable[[int, int], float] | None = None,
) -> Directions:
    """Builds a distribution whose direction is one flat vector, cut into the leaves.

    The shortest way to a distribution of your own:

    >>> def uniform_cube():
    ...     bound = 3**0.5  # unit variance
    ...     draw = lambda key, dimension: jax.random.uniform(
    ...         key, (dimension,), minval=-bound, maxval=bound)
    ...     return flat_directions("uniform_cube", draw)

    Args:
      name: for messages and tables.
      draw: `(key, dimension) -> (dimension,)` float32, from one random draw; with `block_size`
        `(key, dimension, block) -> (block, dimension)`.
      score: the map eps -> s(eps) on arrays whose last axis is the dimension, with
        E[s eps^T] = I. The identity, the default, is right when E[eps eps^T] = I; for a density
        p the choice s = -grad log p makes the estimate the exact gradient of the loss smoothed
        by p.
      block_size: see `Directions`.
      linear_error: `(dimension, num_directions) -> relative mean squared error` on a linear loss;
        None if it is not known.

    Returns:
      The distribution.
    """

    def draw_noise(key: PRNGKey, params: Params, *block: int) -> Noise:
        return draw(key, trees.size(params), *block)

    def perturb(params: Params, noise: Noise, scale: Any) -> Params:
        return trees.add_scaled(params, trees.split(noise, params), scale)

    def combine(coefficients: chex.Array, noises: Noise, params: Params) -> Params:
        weights = coefficients.astype(jnp.float32)
        total = jnp.matmul(weights, score(noises), precision="highest")
        return trees.split(total, params)

    law = None if linear_error is None else over_dimension(linear_error)
    return Directions(name, draw_noise, perturb, combine, block_size, linear_error=law)


def over_dimension(
    linear_error: Callable[[int, int], float],
) -> Callable[[Params, int], float]:
    """Turns a law in the dimension into one in the parameters, as `Directions` wants it.

    Args:
      linear_error: `(dimension, num_directions) -> relative mean squared error`.
    """
    return lambda params, n: linear_error(trees.size(params), n)


def block_error(dimension: int, num_directions: int, block: int, overlap: float = 0.0) -> float:
    """Relative mean squared error on a linear loss of directions of length sqrt(d) in blocks.

    Blocks are independent; the last one is cut where they do not divide the directions.

    Args:
      dimension: d.
      num_directions: n.
      block: directions per block.
      overlap: E[(e_i . g)(e_j . g)(e_i . e_j)] / |g|^2 for two directions of one block: 0 where
        they are orthogonal, 1 where they are independent.
    """
    num_full, rest = divmod(num_directions, block)
    pairs = num_full * block**2 + rest**2  # of directions in the same block, each with itself too
    second_moment = dimension * num_directions + overlap * (pairs - num_directions)
    return (second_moment - pairs) / num_directions**2


def adaptive_directions(
    name: str,
    adaptation: Adaptation,
    block_size: Callable[[int, int], int] | None = None,
    fixed_number: Callable[[Params], int] | None = None,
) -> Directions:
    """Builds a distribution that changes from step to step.

    Args:
      name: for messages and tables.
      adaptation: how it changes.
      block_size: see `Directions`; the same at every step.
      fixed_number: see `Directions`; the same at every step.

    Returns:
      The distribution; its own `draw`, `perturb` and `combine` are those of the first step.
    """

    def first(params: Params) -> Directions:
        return adaptation.bind(adaptation.init(params))

    def moment(params: Params) -> chex.Array:
        known = first(params).moment
        return jnp.eye(trees.size(params)) if known is None else known(params)

    return Directions(
        name,
        draw=lambda key, params, *block: first(params).draw(key, params, *block),
        perturb=lambda params, noise, scale: first(params).perturb(params, noise, scale),
        combine=lambda weights, noises, params: first(params).combine(weights, noises, params),
        block_size=block_size,
        fixed_number=fixed_number,
        moment=moment,
        adaptation=adaptation,
    )


def unpack_signs(words: chex.Array, dimension: int) -> chex.Array:
    """Turns random words into signs.

    Args:
      words: shape (..., ceil(dimension / 32)), uint32.
      dimension: how many signs.

    Returns:
      (..., dimension), float32.
    """
    words = jnp.broadcast_to(words[..., None], (*words.shape, 32))
    positions = jax.lax.broadcasted_iota(jnp.uint32, words.shape, words.ndim - 1)
    bits = (words >> positions) & jnp.uint32(1)
    bits = bits.reshape(*words.shape[:-2], -1)[..., :dimension]
    # The barrier keeps XLA from unpacking again for every activation that a sign touches.
    return jax.lax.optimization_barrier(2 * bits.astype(jnp.float32) - 1)


def draw_range(
    directions: Directions,
    key: PRNGKey,
    params: Params,
    start: Any,
    count: int,
    num_directions: int,
    alignment: int = 1,
) -> Noise:
    """Draws directions start ... start+count-1 of an estimate, the same for every chunking.

    Direction i is drawn from `fold_in(noise_key(key), i)` with i the global index; jointly drawn
    directions from `fold_in(noise_key(key), b)` with b the index of their block, which is drawn
    whole and cut.

    Args:
      directions: the distribution.
      key: the estimate's key.
      params: the perturbed part of the parameters.
      start: index of the first direction, may be traced.
      count: how many; static.
      num_directions: n, all directions of the estimate.
      alignment: a known divisor of a traced `start`; saves drawing blocks that cannot be met.

    Returns:
      Noise stacked on a leading axis of length `count`.
    """
    base = noise_key(key)
    if directions.block_size is None:
        noises = _draw_singly(directions, base, params, start, count)
    else:
        block = directions.block_size(trees.size(params), num_directions)
        noises = _draw_blocks(directions, base, params, start, count, block, alignment)
    # Without the barrier XLA fuses the random numbers into whatever reads them, and computes a
    # number again for every activation that its weight touches.
    return jax.lax.optimization_barrier(noises)


def _draw_singly(
    directions: Directions, base: PRNGKey, params: Params, start: Any, count: int
) -> Noise:
    if count == 1:  # without vmap, so that a draw may do anything
        noise = directions.draw(jax.random.fold_in(base, start), params)
        return jax.tree.map(lambda x: x[None], noise)
    indices = start + jnp.arange(count)
    return jax.vmap(lambda i: directions.draw(jax.random.fold_in(base, i), params))(indices)


def _draw_blocks(
    directions: Directions,
    base: PRNGKey,
    params: Params,
    start: Any,
    count: int,
    block: int,
    alignment: int,
) -> Noise:
    num_blocks = _blocks_touched(block, count, start, alignment)
    first = start // block
    noises = [
        directions.draw(jax.random.fold_in(base, first + b), params, block)
        for b in range(num_blocks)
    ]
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *noises)
    offset = start - first * block
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, offset, count, axis=0), joined)


def _blocks_touched(block: int, count: int, start: Any, alignment: int) -> int:
    """How many blocks the window of `count` directions from `start` can overlap."""
    worst_offset = start % block if isinstance(start, int) else block - math.gcd(block, alignment)
    return (worst_offset + count - 1) // block + 1
