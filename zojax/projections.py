"""Sets and penalties: projections, proximal operators and linear oracles that optax lacks.

Projections onto boxes, balls and the simplex are optax's (`optax.projections`): they take a pytree
as one vector. Everything here does, too, unless it says otherwise.
"""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp

from zojax import trees
from zojax.errors import check_at_least, check_positive
from zojax.types import Params

_BISECTIONS = 60


def projection_capped_simplex(params: Params, total: float) -> Params:
    """Projects onto {0 <= x <= 1, sum x = total}, the convex hull of the choices of `total` items.

    x = clip(v - tau, 0, 1) with tau found by bisection, to the precision of the dtype.

    Args:
      params: a pytree v, taken as one vector of length d.
      total: the sum, in [0, d].

    Raises:
      ValueError: if the set is empty (`total` outside [0, d], or a vector of length 0).
    """
    flat = trees.ravel(params)
    if flat.size == 0 or not 0 <= total <= flat.size:
        raise ValueError(f"total must be in [0, {flat.size}], the length of params, got {total!r}")

    # The projection does not change with a common shift; this one puts tau near zero, where
    # floating-point numbers are close together.
    flat = flat - jnp.sort(flat)[-max(1, math.ceil(total))]

    def halve(_: int, bounds: tuple[chex.Array, chex.Array]) -> tuple[chex.Array, chex.Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        is_large = jnp.sum(jnp.clip(flat - middle, 0, 1)) > total
        return jnp.where(is_large, middle, low), jnp.where(is_large, high, middle)

    start = (jnp.min(flat) - 1, jnp.max(flat))
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, start)
    x = jnp.clip(flat - 0.5 * (low + high), 0, 1)
    # What rounding left over is shared by the coordinates that are free to move.
    free = ((x > 0) & (x < 1)).astype(x.dtype)
    x = x + free * (total - jnp.sum(x)) / jnp.maximum(jnp.sum(free), 1)
    return trees.split(jnp.clip(x, 0, 1), params)


def prox_l1(params: Params, step: Any) -> Params:
    """argmin_x step |x|_1 + |x - v|^2 / 2: soft thresholding.

    Args:
      params: a pytree v.
      step: threshold, >= 0: step size times the weight of the penalty.
    """
    return jax.tree.map(
        lambda v: jnp.sign(v) * jnp.maximum(jnp.abs(v) - jnp.asarray(step, v.dtype), 0), params
    )


def prox_group_l2(params: Params, step: Any) -> Params:
    """argmin_x step sum_leaves |x_leaf|_2 + |x - v|^2 / 2: every leaf is a group that may vanish.

    Args:
      params: a pytree v.
      step: threshold, >= 0: step size times the weight of the penalty.
    """

    def shrink(v: chex.Array) -> chex.Array:
        norm = jnp.sqrt(jnp.sum(v**2))
        kept = jnp.maximum(norm - jnp.asarray(step, v.dtype), 0)
        return v * jnp.where(norm > 0, kept / jnp.where(norm > 0, norm, 1), 0)

    return jax.tree.map(shrink, params)


def oracle_l1(grad: Params, radius: float) -> Params:
    """argmin_{|s|_1 <= radius} <grad, s>: one signed vertex.

    Args:
      grad: a pytree, one vector.
      radius: of the ball, > 0.
    """
    check_positive("radius", radius)
    flat = trees.ravel(grad)
    best = jnp.argmax(jnp.abs(flat))
    vertex = jnp.zeros_like(flat).at[best].set(-radius * jnp.sign(flat[best]))
    return trees.split(vertex, grad)


def oracle_l2(grad: Params, radius: float) -> Params:
    """argmin_{|s|_2 <= radius} <grad, s>; zero for a zero gradient.

    Args:
      grad: a pytree, one vector.
      radius: of the ball, > 0.
    """
    check_positive("radius", radius)
    flat = trees.ravel(grad)
    norm = jnp.sqrt(jnp.sum(flat**2))
    return trees.split(-radius * flat / jnp.where(norm > 0, norm, 1), grad)


def oracle_linf(grad: Params, radius: float) -> Params:
    """argmin_{|s|_inf <= radius} <grad, s>: a corner of the cube.

    Args:
      grad: a pytree.
      radius: half the side of the cube, > 0.
    """
    check_positive("radius", radius)
    return jax.tree.map(lambda g: -radius * jnp.sign(g), grad)


def oracle_simplex(grad: Params, scale: float = 1.0) -> Params:
    """Argmin over {s >= 0, sum s = scale} of <grad, s>: all on the smallest coordinate.

    Args:
      grad: a pytree, one vector.
      scale: the sum, > 0.
    """
    check_positive("scale", scale)
    flat = trees.ravel(grad)
    return trees.split(jnp.zeros_like(flat).at[jnp.argmin(flat)].set(scale), grad)


def oracle_capped_simplex(grad: Params, total: int) -> Params:
    """Argmin over {0 <= s <= 1, sum s = total} of <grad, s>: ones at the smallest coordinates.

    Args:
      grad: a pytree, one vector of length d.
      total: how many ones, an integer in [1, d].

    Raises:
      ValueError: if there are not so many coordinates.
    """
    check_at_least("total", total, 1)
    flat = trees.ravel(grad)
    if total > flat.size:
        raise ValueError(f"total must be at most {flat.size}, the length of params, got {total!r}")
    chosen = jnp.argsort(flat)[:total]
    return trees.split(jnp.zeros_like(flat).at[chosen].set(1), grad)
