"""The kernel of a search over single weights: blocks, decisions and counts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax import trees
from zojax.errors import check_at_least, check_that
from zojax.keys import check_key, noise_key
from zojax.search import costs
from zojax.search.moves import Moves, loss_dtype
from zojax.search.order import Order, WeightOrder, check_scales, initial_scales, weight_order
from zojax.types import Params, PRNGKey

_KEPT, _UNUSED = 0, -1


class RSOState(NamedTuple):
    """State of a search.

    Attributes:
      params: the weights.
      scales: one number per leaf, the standard deviation of a change in the first round.
      step: blocks done, int32 of shape ().
    """

    params: Params
    scales: Params
    step: chex.Array


class RSOInfo(NamedTuple):
    """What a step did. Shapes are () but that of `choices`.

    Attributes:
      value: loss of the block's last point on its mini-batch; infinite if none was finite.
      choices: (largest block,) int8, for each weight in order 0 kept, 1 plus, 2 minus; -1 beyond
        the block's end.
      num_queries: loss evaluations of the block, counted from the plan.
      num_nonfinite: how many of them were NaN or infinite; such a candidate is never taken.
    """

    value: chex.Array
    choices: chex.Array
    num_queries: chex.Array
    num_nonfinite: chex.Array


class RSO(NamedTuple):
    """A search over single weights.

    Attributes:
      init: `(params, scales=None) -> state`.
      step: `(state, key, *data) -> (state, info)`: one block of weights. Block t draws its changes
        and its batch from `fold_in(key, t)`: pass the same key at every step.
      steps_per_round: `params -> int`, blocks in a round.
      num_queries: `(params, num_rounds=1) -> int`, exact: evaluations of the whole network, or what
        replaces them.
      flops: `(params, *data) -> float`, additions and multiplications of a round as XLA counts
        them: what a round really costs.
      order: `params -> WeightOrder`, the blocks.
    """

    init: Callable[..., RSOState]
    step: Callable[..., tuple[RSOState, RSOInfo]]
    steps_per_round: Callable[[Params], int]
    num_queries: Callable[..., int]
    flops: Callable[..., float]
    order: Callable[[Params], WeightOrder]


class Options(NamedTuple):
    """The options of `zojax.search.rso`."""

    num_rounds: int = 50
    block_size: int = 1
    batch_size: int | None = None
    group_size: int = 1
    final_scale: float = 0.1
    weight_decay: float = 1e-4
    vector_scale: float = 0.167
    order: Order = "last_first"


def _check(options: Options) -> None:
    for name in ("num_rounds", "block_size", "group_size"):
        check_at_least(name, getattr(options, name), 1)
    if options.batch_size is not None:
        check_at_least("batch_size", options.batch_size, 1)
    if options.group_size > options.block_size:
        raise ValueError(
            f"group_size must be at most block_size={options.block_size}, got {options.group_size}"
        )
    check_that("final_scale", options.final_scale, "in (0, 1]", lambda x: 0 < x <= 1)
    check_that("weight_decay", options.weight_decay, "in [0, 1)", lambda x: 0 <= x < 1)
    check_that("vector_scale", options.vector_scale, "finite and > 0", lambda x: 0 < x < np.inf)
    if options.order not in ("last_first", "first_first"):
        raise ValueError(f"order must be 'last_first' or 'first_first', got {options.order!r}")


def build(
    dispatch: Callable[..., Any], moves_of: Callable[[Params, int], Moves], options: Options
) -> RSO:
    """Returns the kernel for one way of evaluating.

    Args:
      dispatch: `(params, leaf, batch, run) -> run(moves of that leaf)`.
      moves_of: `(params, leaf) -> moves`.
      options: of `rso`.

    Raises:
      ValueError: for an option outside its range.
    """
    _check(options)
    decays = options.weight_decay > 0

    def order_of(params: Params) -> WeightOrder:
        return weight_order(params, options.block_size, options.group_size, options.order)

    def init(params: Params, scales: Params | None = None) -> RSOState:
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
            if not trees.is_float(leaf) or np.size(leaf) == 0:
                raise ValueError(
                    f"{trees.path_name(path)} must hold floating-point weights, got "
                    f"{jnp.result_type(leaf)} of shape {np.shape(leaf)}"
                )
        if not jax.tree.leaves(params):
            raise ValueError("params hold no weights")
        if scales is None:
            scales = initial_scales(params, options.vector_scale)
        check_scales(params, scales)
        scales = jax.tree.map(lambda s, p: jnp.asarray(s, jnp.result_type(p)), scales, params)
        return RSOState(jax.tree.map(jnp.asarray, params), scales, jnp.zeros((), jnp.int32))

    def step(state: RSOState, key: PRNGKey, *data: Any) -> tuple[RSOState, RSOInfo]:
        check_key(key)
        table = order_of(state.params)
        batch_key, change_key = jax.random.split(jax.random.fold_in(noise_key(key), state.step))
        batch = _batch(batch_key, data, options.batch_size)
        block = state.step % table.num_blocks
        leaf, start, length, group = (jnp.asarray(column)[block] for column in table[:4])
        scales = jax.tree.leaves(state.scales)
        scale = jnp.stack([s.astype(jnp.result_type(*scales)) for s in scales])[leaf]
        rounds = jnp.minimum(state.step // table.num_blocks, options.num_rounds)
        done = rounds.astype(scale.dtype) / options.num_rounds
        scale *= options.final_scale + (1 - options.final_scale) * (1 - done)
        drawn = jax.random.normal(change_key, (table.largest,), trees.point_dtype(scale.dtype))
        changes = scale * drawn.astype(scale.dtype)

        def run(moves: Moves) -> tuple[Params, RSOInfo]:
            return _search(moves, state.params, batch, changes, start, length, group, options)

        params, info = dispatch(state.params, leaf, batch, run)
        return RSOState(params, state.scales, state.step + 1), info

    def num_queries(params: Params, num_rounds: int = 1) -> int:
        table = order_of(params)
        return num_rounds * int(costs.queries(table.length, table.group, decays).sum())

    def flops(params: Params, *data: Any) -> float:
        batch = jax.eval_shape(
            lambda data: _batch(jax.random.key(0), data, options.batch_size), data
        )
        return costs.flops(moves_of, order_of(params), params, batch, decays)

    return RSO(
        init,
        jax.jit(step),
        lambda params: order_of(params).num_blocks,
        num_queries,
        flops,
        order_of,
    )


def _batch(key: PRNGKey, data: tuple[Any, ...], batch_size: int | None) -> tuple[Any, ...]:
    if batch_size is None:
        return data
    shapes = [jnp.shape(x) for x in jax.tree.leaves(data)]
    counts = {shape[0] for shape in shapes if shape}
    if len(counts) != 1 or () in shapes:
        raise ValueError(
            f"with batch_size, data must be arrays with one leading axis of examples, got {shapes}"
        )
    (count,) = counts
    if batch_size > count:
        raise ValueError(f"batch_size is {batch_size}, larger than the data ({count} examples)")
    chosen = (jax.random.randint(key, (), 0, count) + jnp.arange(batch_size)) % count
    return jax.tree.map(lambda x: jnp.asarray(x)[chosen], data)


def _search(
    moves: Moves,
    params: Params,
    batch: tuple[Any, ...],
    changes: chex.Array,
    start: chex.Array,
    length: chex.Array,
    group: chex.Array,
    options: Options,
) -> tuple[Params, RSOInfo]:
    """Visits the weights of one block, group by group."""
    lanes = jnp.arange(moves.lanes, dtype=jnp.int32)
    signs = jnp.array([[0, 1, -1]], changes.dtype)
    decays, is_joint = options.weight_decay > 0, len(lanes) > 1
    is_known = not decays or is_joint  # the loss of the first candidate, before it is tried

    def visit(i: chex.Array, carry: Any) -> Any:
        context, value, choices, bad = carry
        # A lane beyond the group repeats the first one: it is not evaluated and changes nothing.
        used = lanes < group
        lane = i * group + jnp.where(used, lanes, 0)
        before = moves.get(context, start + lane)
        weights = before * (1 - options.weight_decay)
        candidates = weights[:, None] + changes[lane][:, None] * signs
        if decays and is_joint:
            context = moves.put(context, start + lane, weights)
            value, bad = _evaluated(moves, context, bad)
        losses = moves.alone(context, start + lane, candidates[:, int(is_known) :], group)
        bad += jnp.sum(~jnp.isfinite(losses) & used[:, None], dtype=jnp.int32)
        losses = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
        if is_known:
            losses = jnp.concatenate([jnp.broadcast_to(value, (len(lanes), 1)), losses], axis=1)
        choice = _argmin(losses)
        choice, value = jnp.where(used, choice, choice[0]), jnp.min(losses)
        if is_joint:
            together, bad = jax.lax.cond(
                group > 1,
                lambda: _evaluated(
                    moves, moves.put(context, start + lane, _take(candidates, choice)), bad
                ),
                lambda: (value, bad),
            )
            # All improvements together, or the best of them alone.
            best = _argmin(jnp.where(used, jnp.min(losses, axis=1), jnp.inf))
            is_best = jnp.where(used, lanes, 0) == best
            choice = jnp.where((together < value) | is_best, choice, _KEPT)
            value = jnp.minimum(together, value)
        taken = jnp.where(jnp.isfinite(value), _take(candidates, choice), before)
        context = moves.put(context, start + lane, taken)
        return context, value, choices.at[lane].set(choice.astype(jnp.int8)), bad

    context, zero = moves.open(params, batch), jnp.zeros((), jnp.int32)
    unknown = (jnp.array(jnp.inf, loss_dtype()), zero)
    value, bad = unknown if decays else _evaluated(moves, context, zero)
    unused = jnp.full(changes.shape, _UNUSED, jnp.int8)
    context, value, choices, bad = jax.lax.fori_loop(
        0, length // group, visit, (context, value, unused, bad)
    )
    count = jnp.asarray(costs.queries(length, group, decays), jnp.int32)
    return moves.close(context), RSOInfo(value, choices, count, bad)


def _evaluated(moves: Moves, context: Any, bad: chex.Array) -> tuple[chex.Array, chex.Array]:
    """The loss, infinite if it is no number, and the count of such losses."""
    value = moves.value(context)
    is_finite = jnp.isfinite(value)
    return jnp.where(is_finite, value, jnp.inf), bad + jnp.where(is_finite, 0, 1)


def _take(candidates: chex.Array, choice: chex.Array) -> chex.Array:
    return jnp.take_along_axis(candidates, choice[:, None], axis=1)[:, 0]


def _argmin(losses: chex.Array) -> chex.Array:
    """Over the last axis; the first of equals, so that nothing moves for nothing."""
    return jnp.argmin(losses, axis=-1).astype(jnp.int32)
