"""Adaptive steps that never grow: Adam with the largest second moment so far."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax import trees
from zojax.errors import check_positive, check_that
from zojax.types import Params


class AdaMMState(NamedTuple):
    """State of `scale_by_adamm`.

    Attributes:
      mu: first moment, like the parameters.
      nu: second moment.
      largest: the largest second moment so far, by coordinate.
    """

    mu: Params
    nu: Params
    largest: Params


def scale_by_adamm(
    b1: float = 0.9, b2: float = 0.9, initial: float = 1e-7, *, refined: bool = False
) -> optax.GradientTransformation:
    """M / sqrt(v_max) with v_max = max(v_max, v): ZO-AdaMM, behind an estimator.

    The variance of a zeroth-order estimate is about the same everywhere, so a second moment that
    forgets makes steps too long where the gradient happened to be small; the maximum does not.
    There is no bias correction. With `refined` it is R-AdaZO instead: m / sqrt(v) with v the second
    moment of m, not of g, and no maximum, since m has already averaged the noise of the estimates.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      initial: first value of v and v_max, > 0.
      refined: take the second moment of m, and no maximum.

    Raises:
      ValueError: for decays outside [0, 1) or `initial` <= 0.

    Source: Chen et al. 2019 (ZO-AdaMM), arXiv 1910.06513; Shu et al. 2025 (R-AdaZO),
    arXiv 2502.01014.
    """
    for name, value in (("b1", b1), ("b2", b2)):
        check_that(name, value, "in [0, 1)", lambda x: 0 <= x < 1)
    check_positive("initial", initial)

    def init(params: Params) -> AdaMMState:
        moving, _ = trees.partition(params, None)
        zeros = jax.tree.map(jnp.zeros_like, moving)
        start = jax.tree.map(lambda x: jnp.full_like(x, initial), moving)
        return AdaMMState(zeros, start, jax.tree.map(jnp.copy, start))

    def update(updates: Params, state: AdaMMState, params: Any = None) -> tuple[Params, AdaMMState]:
        del params
        grads, rest = trees.partition(updates, None)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(mu if refined else grads, state.nu, b2, 2)
        largest = nu if refined else jax.tree.map(jnp.maximum, state.largest, nu)
        scaled = jax.tree.map(lambda m, v: m / jnp.sqrt(v), mu, largest)
        return trees.merge(scaled, rest), AdaMMState(mu, nu, largest)

    return optax.GradientTransformation(init, update)
