"""Structured orthogonal directions: rows of a Hadamard matrix with random signs."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from zojax import trees
from zojax.directions.base import block_error, over_dimension, unpack_signs
from zojax.errors import check_at_least
from zojax.types import Directions, Noise, Params, PRNGKey

MAX_BLOCK_WORDS = 2**26
"""Largest block, in 32-bit words (256 MiB), that `hadamard` will draw."""


def hadamard(block_size: int | None = None) -> Directions:
    """Blocks of orthogonal sign vectors: random rows of H D, padded to a power of two; s = eps.

    H is the Hadamard matrix of size p, the next power of two from d, D a random diagonal of
    signs; of every row the first d entries are used. All p rows together reproduce the gradient
    of a linear loss exactly, with d a power of two they are orthogonal; b of them, drawn without
    replacement, have relative mean squared error (d - 1) / b (p - b) / (p - 1). As for
    `rademacher` there is no smoothed loss this is the exact gradient of; bias against grad f is
    O(sigma^2).

    A direction takes O(d) time where `orthogonal` takes O(d b), and d bits of memory: the signs
    of the block and the number of the row.

    Args:
      block_size: directions per block, at most p; None for min(n, p), one block for the whole
        estimate where possible.

    Raises:
      ValueError: if `block_size` < 1; when used, if it exceeds p or the block would hold more than
        `MAX_BLOCK_WORDS` words.

    Source: Choromanski et al. 2018, arXiv 1804.02395.
    """
    if block_size is not None:
        check_at_least("block_size", block_size, 1)

    def size(dimension: int, num_directions: int) -> int:
        padded = _padded(dimension)
        block = min(num_directions, padded) if block_size is None else block_size
        if block > padded:
            raise ValueError(
                f"block_size must be at most {padded}, the number of perturbed parameters padded "
                f"to a power of two, got {block}"
            )
        if block * _num_words(dimension) > MAX_BLOCK_WORDS:
            raise ValueError(
                f"a Hadamard block of {block} x {_num_words(dimension)} words is over the limit "
                f"of {MAX_BLOCK_WORDS}: pass a smaller block_size to hadamard()"
            )
        return block

    def linear_error(dimension: int, num_directions: int) -> float:
        padded = _padded(dimension)
        overlap = (padded - dimension) / max(padded - 1, 1)  # of rows cut to d of p entries
        return block_error(dimension, num_directions, size(dimension, num_directions), overlap)

    law = over_dimension(linear_error)
    return Directions("hadamard", _draw, _perturb, _combine, block_size=size, linear_error=law)


def _padded(dimension: int) -> int:
    return 1 << (dimension - 1).bit_length()


def _num_words(dimension: int) -> int:
    return -(-dimension // 32)


def _draw(key: PRNGKey, params: Params, block: int) -> Noise:
    dimension = trees.size(params)
    num_rows, num_words = _padded(dimension), _num_words(dimension)
    bits = jax.random.bits(key, (num_rows + num_words,), dtype="uint32")
    rows = jnp.argsort(bits[:num_rows])[:block].astype(jnp.uint32)  # without replacement
    words = bits[num_rows:]
    return rows, jnp.broadcast_to(words, (block, *words.shape))


def _directions(noise: Noise, dimension: int) -> chex.Array:
    """(..., d) signs of rows (...) and packed signs (..., words)."""
    rows, words = noise
    columns = jnp.arange(dimension, dtype=jnp.uint32)
    columns = jnp.broadcast_to(columns, (*rows.shape, dimension))
    odd = jax.lax.population_count(rows[..., None] & columns) & jnp.uint32(1)
    entries = 1 - 2 * odd.astype(jnp.float32)
    return entries * unpack_signs(words, dimension)


def _perturb(params: Params, noise: Noise, scale: Any) -> Params:
    signs = trees.split(_directions(noise, trees.size(params)), params)
    return trees.add_scaled(params, signs, scale)


def _combine(coefficients: chex.Array, noises: Noise, params: Params) -> Params:
    signs = _directions(noises, trees.size(params))
    total = jnp.matmul(coefficients.astype(jnp.float32), signs, precision="highest")
    return trees.split(total, params)
