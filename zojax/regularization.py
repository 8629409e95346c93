"""Penalties on the size of the weights, as wrappers around a loss."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from zojax import trees
from zojax.errors import check_that
from zojax.types import LossFn, Params


def l1(loss_fn: LossFn, strength: Any, *, mask: trees.Mask | None = None) -> LossFn:
    """Adds `strength * sum |w|` to a loss.

    The penalty has a kink where a weight is zero, so a step along its (estimated) gradient makes
    weights small and hardly ever zero. For weights that are exactly zero take the penalty out of
    the loss and put `zojax.proximal(zojax.projections.prox_l1, learning_rate, strength)` behind the
    optimiser; an estimate then does not have to find the penalty's gradient by differences either.

    Args:
      loss_fn: `loss_fn(params, *args) -> scalar`, or `(scalar, aux)`.
      strength: lambda >= 0, loss units per unit of weight; may be traced.
      mask: which leaves are penalised; see `zojax.trees.resolve_mask`. None for all of them.

    Raises:
      ValueError: for a negative `strength`.
    """
    # Not jnp.abs, whose derivative at zero (a fresh bias) is one instead of zero.
    return _penalised(loss_fn, strength, mask, lambda w: jnp.maximum(w, -w))


def l2(loss_fn: LossFn, strength: Any, *, mask: trees.Mask | None = None) -> LossFn:
    """Adds `strength / 2 * sum w^2` to a loss, whose gradient is `strength * w`.

    With plain gradient descent this is weight decay; with Adam it is not, and `optax.adamw` decays
    without spending the estimate's variance on a gradient that is known.

    Args:
      loss_fn: `loss_fn(params, *args) -> scalar`, or `(scalar, aux)`.
      strength: lambda >= 0, loss units per squared unit of weight; may be traced.
      mask: which leaves are penalised; see `zojax.trees.resolve_mask`. None for all of them.

    Raises:
      ValueError: for a negative `strength`.
    """
    return _penalised(loss_fn, strength, mask, lambda w: w**2 / 2)


def _penalised(
    loss_fn: LossFn,
    strength: Any,
    mask: trees.Mask | None,
    penalty: Callable[[chex.Array], chex.Array],
) -> LossFn:
    check_that("strength", strength, ">= 0 and finite", lambda x: 0 <= x < float("inf"))

    def penalised(params: Params, *args: Any, **kwargs: Any) -> Any:
        out = loss_fn(params, *args, **kwargs)
        value, *aux = out if isinstance(out, tuple) else (out,)
        chosen = jax.tree.leaves(trees.partition(params, mask)[0])
        sizes = [jnp.sum(penalty(w.astype(value.dtype))) for w in chosen]
        total = sum(sizes, jnp.zeros_like(value))
        value = value + jnp.asarray(strength, value.dtype) * total
        return (value, *aux) if isinstance(out, tuple) else value

    return penalised
