"""What a search over single weights asks of a loss, and the black-box answer.

A `Moves` evaluates a loss with one weight changed. The black-box kind below changes the parameter
vector and calls the loss; `zojax.search.layered` has one that recomputes only what changes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from zojax.search.order import position
from zojax.types import LossFn, Params

Context = Any
"""Parameters, and whatever an evaluation on this batch can start from."""


class Moves(NamedTuple):
    """Evaluations of a loss around a point, for weights of one leaf on one batch.

    An index is a position in the order of `zojax.search.order.position`.

    Attributes:
      lanes: the largest group, as the arrays below are shaped.
      is_incremental: False if every evaluation is one of the whole network.
      open: `(params, batch) -> context`.
      value: `context -> loss` of the parameters as they are.
      get: `(context, indices (k,)) -> weights (k,)`.
      alone: `(context, indices (k,), weights (k, m), count) -> losses (k, m)`, each of the first
        `count` weights changed alone.
      put: `(context, indices (k,), weights (k,)) -> context`, all changed together.
      close: `context -> params`.
    """

    lanes: int
    is_incremental: bool
    open: Callable[[Params, Any], Context]
    value: Callable[[Context], chex.Array]
    get: Callable[[Context, chex.Array], chex.Array]
    alone: Callable[[Context, chex.Array, chex.Array, chex.Array], chex.Array]
    put: Callable[[Context, chex.Array, chex.Array], Context]
    close: Callable[[Context], Params]


def black_box(loss_fn: LossFn, lanes: int) -> Callable[[Params, chex.Array], Moves]:
    """Calls the loss for every evaluation, one after the other.

    Args:
      loss_fn: `loss_fn(params, *batch) -> scalar`.
      lanes: the largest group.

    Returns:
      `(params, leaf) -> moves` for the weights of one leaf, whose index may be traced.
    """

    def moves(params: Params, leaf: chex.Array) -> Moves:
        unravel = jax.flatten_util.ravel_pytree(params)[1]
        shapes = [jnp.shape(x) for x in jax.tree.leaves(params)]
        sizes = np.array([int(np.prod(shape)) for shape in shapes], np.int32)
        last = np.array([shape[-1] if len(shape) > 1 else 1 for shape in shapes], np.int32)
        channels = jnp.asarray(last)[leaf]
        offset = jnp.asarray(np.cumsum(sizes, dtype=np.int32) - sizes)[leaf]
        inner = jnp.asarray(sizes)[leaf] // channels

        def where(indices: chex.Array) -> chex.Array:
            return offset + position(indices, inner, channels)

        def value(context: Context) -> chex.Array:
            flat, batch = context
            return as_loss(loss_fn(unravel(flat), *batch))

        def put(context: Context, indices: chex.Array, weights: chex.Array) -> Context:
            return context[0].at[where(indices)].set(weights), context[1]

        def alone(
            context: Context, indices: chex.Array, weights: chex.Array, count: chex.Array
        ) -> chex.Array:
            def at_weight(i: chex.Array, losses: chex.Array) -> chex.Array:
                single = jax.lax.dynamic_slice_in_dim(indices, i, 1)
                row = jax.lax.map(lambda w: value(put(context, single, w[None])), weights[i])
                return losses.at[i].set(row)

            none = jnp.full(weights.shape, jnp.inf, loss_dtype())
            return jax.lax.fori_loop(0, count, at_weight, none)

        return Moves(
            lanes=lanes,
            is_incremental=False,
            open=lambda params, batch: (jax.flatten_util.ravel_pytree(params)[0], batch),
            value=value,
            get=lambda context, indices: context[0][where(indices)],
            alone=alone,
            put=put,
            close=lambda context: unravel(context[0]),
        )

    return moves


def as_loss(value: Any) -> chex.Array:
    """The mean of per-example losses, or a scalar as it is.

    Small differences of large sums decide, so the sum is made in float64 where JAX has it
    (`jax_enable_x64`), and in float32 elsewhere.
    """
    return jnp.mean(jnp.asarray(value), dtype=loss_dtype())


def loss_dtype() -> Any:
    """Float64 where JAX has it, else float32."""
    return jax.dtypes.canonicalize_dtype(np.float64)
