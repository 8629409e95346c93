"""What a round of a search over single weights costs: queries, and the work behind them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax.search.moves import Moves
from zojax.search.order import WeightOrder
from zojax.types import Params


def queries(length: Any, group: Any, decays: bool) -> Any:
    """Returns the evaluations of blocks: both signs, what was kept, and joint changes.

    Args:
      length: weights of a block.
      group: how many of them are tried at once.
      decays: whether weight decay changes what is kept, so that its loss is not known.
    """
    groups = length // group
    return 2 * length + (groups if decays else 1) + groups * (group > 1).astype(np.int32)


def flops(
    moves_of: Callable[[Params, int], Moves],
    order: WeightOrder,
    params: Params,
    batch: Any,
    decays: bool,
) -> float:
    """Returns the additions and multiplications of a round, as XLA counts them.

    Args:
      moves_of: `(params, leaf) -> moves`.
      order: the blocks.
      params: the weights.
      batch: of a block, or its shapes.
      decays: whether there is weight decay.
    """
    total, whole = 0.0, None
    for leaf in np.unique(order.leaf):
        own = order.leaf == leaf
        lengths, groups = order.length[own], order.length[own] // order.group[own]
        moves = moves_of(params, int(leaf))
        context = jax.eval_shape(moves.open, params, batch)
        if moves.is_incremental:
            one = _count(moves.value, context)
            opening = _count(moves.open, params, batch) + (0 if decays else one)
            total += len(lengths) * opening + groups.sum() * _visit(moves, context, one, decays)
        else:
            whole = _count(moves.value, context) if whole is None else whole
            total += whole * queries(lengths, order.group[own], decays).sum()
    return float(total)


def _visit(moves: Moves, context: Any, one: float, decays: bool) -> float:
    """The work of one group."""
    is_joint = moves.lanes > 1
    indices = jax.ShapeDtypeStruct((moves.lanes,), jnp.int32)
    weights = jax.eval_shape(moves.get, context, indices)
    tried = 3 if decays and not is_joint else 2
    candidates = jax.ShapeDtypeStruct((moves.lanes, tried), weights.dtype)
    put = _count(moves.put, context, indices, weights)
    total = _count(moves.alone, context, indices, candidates, indices) + put
    if is_joint:
        total += (put + one) * (2 if decays else 1)
    return total


def _count(function: Callable[..., Any], *args: Any) -> float:
    analysis = jax.jit(function).lower(*args).cost_analysis()
    return np.nan if analysis is None else float(analysis.get("flops", 0.0))
