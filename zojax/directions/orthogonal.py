"""Blocks of mutually orthogonal directions."""

import chex
import jax
import jax.numpy as jnp

from zojax.directions.base import block_error, flat_directions
from zojax.errors import check_at_least
from zojax.types import Directions, PRNGKey

MAX_BLOCK_ELEMENTS = 2**26
"""Largest block, in float32 elements (256 MiB), that `orthogonal` will draw."""


def orthogonal(block_size: int | None = None) -> Directions:
    """Blocks of orthogonal directions of length sqrt(d), each uniform on the sphere; s = eps.

    Within a block the directions share no component, so on a linear loss one block of b
    directions has relative mean squared error d / b - 1 instead of (d - 1) / b, and a block of d
    directions reproduces the gradient exactly. The gain is large only when n is close to d. Like
    `sphere`, the estimate is the exact gradient of the loss smoothed over the ball of radius
    sigma sqrt(d).

    Drawing a block costs a QR decomposition, O(d b^2) time and d b floats of memory.

    Args:
      block_size: directions per block, at most d; None for min(n, d), one block for the whole
        estimate where possible.

    Raises:
      ValueError: if `block_size` < 1; when used, if it exceeds d or the block would hold more
        than `MAX_BLOCK_ELEMENTS` numbers.

    Source: Choromanski et al. 2018, arXiv 1804.02395.
    """
    if block_size is not None:
        check_at_least("block_size", block_size, 1)

    def size(dimension: int, num_directions: int) -> int:
        block = min(num_directions, dimension) if block_size is None else block_size
        if block > dimension:
            raise ValueError(
                f"block_size must be at most the number of perturbed parameters ({dimension}), "
                f"got {block}"
            )
        if block * dimension > MAX_BLOCK_ELEMENTS:
            raise ValueError(
                f"an orthogonal block of {block} x {dimension} numbers is over the limit of "
                f"{MAX_BLOCK_ELEMENTS}: pass a smaller block_size to orthogonal()"
            )
        return block

    def draw(key: PRNGKey, dimension: int, block: int) -> chex.Array:
        normal = jax.random.normal(key, (dimension, block), dtype="float32")
        q, r = jnp.linalg.qr(normal)
        # The sign convention of QR is undone: the block is then Haar distributed.
        return (q * jnp.sign(jnp.diagonal(r))[None, :]).T * jnp.sqrt(jnp.float32(dimension))

    return flat_directions(
        "orthogonal",
        draw,
        block_size=size,
        linear_error=lambda d, n: block_error(d, n, size(d, n)),
    )
