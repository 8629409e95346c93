"""Steps that are taken only if they help."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from zojax.errors import check_positive, check_that
from zojax.transforms.as_gradient_transformation import saturating_add
from zojax.types import Params


class AcceptanceState(NamedTuple):
    """State of `accept_or_reject`.

    Attributes:
      radius: longest step now allowed, shape (); infinite without a trust region.
      num_rejected: steps not taken so far, int32 of shape ().
      num_queries: loss evaluations so far, 2 per step, int32 of shape ().
    """

    radius: chex.Array
    num_rejected: chex.Array
    num_queries: chex.Array


def accept_or_reject(
    tolerance: float = 0.0,
    *,
    radius: float | None = None,
    grow: float = 2.0,
    shrink: float = 0.5,
) -> optax.GradientTransformationExtraArgs:
    """Evaluates the loss before and after the step, and stays where it is if that got worse.

    The last link of a chain. Blocking: a step is rejected unless
    f(x + update) <= f(x) + tolerance (and finite). Trust region: with `radius` steps are cut to
    that Euclidean length, which grows after an accepted step and shrinks after a rejected one.
    Queries: 2 per step, both of `value_fn`.

    Args:
      tolerance: increase that passes, in loss units, >= 0; about twice the standard deviation of a
        noisy loss.
      radius: first length limit, in parameter units; None for no limit.
      grow: factor after an accepted step that used the whole radius, >= 1.
      shrink: factor after a rejected step, in (0, 1].

    Raises:
      ValueError: for numbers outside these ranges; in `update`, if `params` or `value_fn` is
        missing.
    """
    check_that("tolerance", tolerance, ">= 0", lambda x: x >= 0)
    if radius is not None:
        check_positive("radius", radius)
    check_that("grow", grow, ">= 1", lambda x: x >= 1)
    check_that("shrink", shrink, "in (0, 1]", lambda x: 0 < x <= 1)

    def init(params: Params) -> AcceptanceState:
        first = jnp.inf if radius is None else radius
        zero = jnp.zeros((), jnp.int32)
        return AcceptanceState(jnp.asarray(first, jnp.float32), zero, jnp.copy(zero))

    def update(
        updates: Params,
        state: AcceptanceState,
        params: Params | None = None,
        *,
        value_fn: Callable[[Params], Any] | None = None,
        **extra_args: Any,
    ) -> tuple[Params, AcceptanceState]:
        del extra_args
        if params is None or value_fn is None:
            raise ValueError(
                "accept_or_reject needs params and value_fn: "
                "tx.update(updates, state, params, value_fn=...)"
            )
        length = optax.tree.norm(updates).astype(jnp.float32)
        factor = jnp.minimum(1.0, state.radius / jnp.maximum(length, 1e-30))
        step = jax.tree.map(lambda u: factor.astype(u.dtype) * u, updates)
        before = value_fn(params)
        after = value_fn(optax.apply_updates(params, step))
        # Any finite loss is better than none.
        accepted = jnp.isfinite(after) & (~jnp.isfinite(before) | (after <= before + tolerance))
        step = jax.tree.map(lambda u: jnp.where(accepted, u, 0).astype(u.dtype), step)
        larger = jnp.where(length >= state.radius, grow * state.radius, state.radius)
        new = AcceptanceState(
            radius=jnp.where(accepted, larger, shrink * state.radius),
            num_rejected=state.num_rejected + jnp.where(accepted, 0, 1),
            num_queries=saturating_add(state.num_queries, jnp.asarray(2, jnp.int32)),
        )
        return step, new

    return optax.GradientTransformationExtraArgs(init, update)
