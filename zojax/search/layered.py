"""Moves of single weights in a chain of stages: only what a weight changes is computed anew.

A weight of a dense or convolutional kernel, a bias and an entry of a normalisation change one
channel of their layer. It stays alone through what is channelwise; the next linear layer adds one
channel's share; behind that everything is recomputed. All of it is exact.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax.search import stages as chain
from zojax.search.moves import Moves, as_loss
from zojax.search.order import position
from zojax.search.stages import Stage
from zojax.types import Params


class _Place(NamedTuple):
    """Where a leaf is in the chain.

    Attributes:
      leaf: its number among `jax.tree.leaves(params)`.
      stage: number of its stage.
      behind: number of the first stage that does not keep channels apart.
      reader: number of the linear stage that reads the changed channel; -1 if there is none.
    """

    leaf: int
    stage: int
    behind: int
    reader: int


class _Context(NamedTuple):
    """What evaluations of one block start from.

    Attributes:
      params: as they are now.
      entry: input of the stage, which does not change; channels first, so that one of them lies
        together in memory.
      first: what the changed channel is cut from: output of a linear stage, or `entry`; likewise.
      read: output of the reader; () where there is none.
      targets: of the batch.
    """

    params: Params
    entry: chex.Array
    first: chex.Array
    read: Any
    targets: Any


def places(stages: Sequence[Stage], params: Params) -> list[_Place]:
    """Returns a place for every leaf, in the order of `jax.tree.leaves(params)`."""
    chain.check_names(stages, params)
    numbers = {stage.name: i for i, stage in enumerate(stages) if stage.name is not None}
    found = []
    for leaf, (path, _) in enumerate(jax.tree_util.tree_flatten_with_path(params)[0]):
        number = numbers[path[0].key]
        behind = number if stages[number].kind == "mixing" else number + 1
        while behind < len(stages) and stages[behind].kind == "channelwise":
            behind += 1
        reader = behind
        if reader < len(stages) and stages[reader].kind == "flatten":
            reader += 1
        is_linear = reader < len(stages) and stages[reader].kind in ("dense", "conv")
        found.append(_Place(leaf, number, behind, reader if is_linear else -1))
    return found


def layered_moves(
    stages: Sequence[Stage],
    criterion: Callable[[chex.Array, Any], chex.Array],
    place: _Place,
    leaf: Any,
    lanes: int,
) -> Moves:
    """Returns the moves of one leaf.

    Args:
      stages: the chain.
      criterion: `(outputs, targets) -> losses`.
      place: where the leaf is.
      leaf: the leaf, for its shape.
      lanes: how many of its weights are tried at once.
    """
    stage, shape = stages[place.stage], np.shape(leaf)
    channels = shape[-1] if len(shape) > 1 else 1
    inner = int(np.prod(shape)) // channels
    is_linear = stage.kind in ("dense", "conv")
    between = stages[place.stage + is_linear : place.behind]  # channelwise
    rest = stages[(place.behind if place.reader < 0 else place.reader + 1) :]

    def split(index: chex.Array) -> tuple[chex.Array, chex.Array]:
        """The channel, and which weight of it."""
        return (index // inner, index % inner) if len(shape) > 1 else (index, jnp.zeros_like(index))

    def loss(outputs: chex.Array, params: Params, targets: Any) -> chex.Array:
        return as_loss(criterion(chain.run(rest, params, outputs), targets))

    def read(params: Params, first: chex.Array) -> Any:
        if place.reader < 0:
            return ()
        upto = chain.run(stages[place.stage + is_linear : place.reader], params, first)
        return stages[place.reader].apply(chain.own(stages[place.reader], params), upto)

    def opened(params: Params, entry: chex.Array, targets: Any) -> _Context:
        first = stage.apply(chain.own(stage, params), entry) if is_linear else entry
        parts = (jnp.moveaxis(entry, -1, 0), jnp.moveaxis(first, -1, 0), read(params, first))
        return _Context(params, *parts, targets)

    def open_(params: Params, batch: tuple[Any, Any]) -> _Context:
        inputs, targets = batch
        return opened(params, chain.run(stages[: place.stage], params, inputs), targets)

    def set_weights(params: Params, indices: chex.Array, weights: chex.Array) -> Params:
        leaves, treedef = jax.tree.flatten(params)
        old, where = leaves[place.leaf], position(indices, inner, channels)
        new = old.ravel().at[where].set(weights.astype(old.dtype))
        leaves[place.leaf] = new.reshape(shape)
        return jax.tree.unflatten(treedef, leaves)

    def get(context: _Context, indices: chex.Array) -> chex.Array:
        weights = jax.tree.leaves(context.params)[place.leaf].ravel()
        return weights[position(indices, inner, channels)]

    def value(context: _Context) -> chex.Array:
        if place.reader >= 0:
            return loss(context.read, context.params, context.targets)
        outputs = chain.run(between, context.params, jnp.moveaxis(context.first, 0, -1))
        return loss(outputs, context.params, context.targets)

    def cut(tree: Any, channel: chex.Array) -> Any:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, channel, 1, axis=-1), tree)

    def between_on(params: Params, channel: chex.Array, x: chex.Array) -> chex.Array:
        """What is channelwise, on one channel."""
        for link in between:
            x = link.apply(cut(chain.own(link, params), channel), x)
        return x

    def channel_of(x: chex.Array, channel: chex.Array) -> chex.Array:
        return jnp.moveaxis(jax.lax.dynamic_slice_in_dim(x, channel, 1, axis=0), 0, -1)

    def here(context: _Context, index: chex.Array) -> chex.Array:
        """The channel of `first` that a weight changes."""
        # Read once, before it is written: otherwise XLA copies `first` to keep the old one.
        return jax.lax.optimization_barrier(channel_of(context.first, split(index)[0]))

    def shifted(
        context: _Context, index: chex.Array, weight: chex.Array, column: chex.Array
    ) -> tuple[Any, chex.Array]:
        """Parameters with one weight changed, and the channel of `first` that goes with them."""
        params = set_weights(context.params, index[None], weight[None])
        inside = split(index)[1]
        if is_linear:
            before = get(context, index[None])[0]
            step = (weight.astype(before.dtype) - before).astype(column.dtype)
            if len(shape) > 1:
                inputs = shape[-2]
                source = channel_of(context.entry, inside % inputs)
                step *= stage.patches(source, inside // inputs, shape[:-2])
            column += step
        return params, column

    def share(
        context: _Context, params: Params, index: chex.Array, old: chex.Array, new: chex.Array
    ) -> Any:
        """What the reader's output changes by where one channel of `first` does."""
        channel = split(index)[0]
        before = between_on(context.params, channel, old)
        change = between_on(params, channel, new) - before
        link = stages[place.reader]
        kernel = chain.own(link, params)["kernel"]
        if place.reader > place.behind:  # a flatten stage in between
            count = change[0].size
            kernel = kernel.reshape(count, -1, kernel.shape[-1])
            kernel = jax.lax.dynamic_index_in_dim(kernel, channel, 1, keepdims=False)
            return link.linear(kernel, change.reshape(len(change), count))
        return link.linear(jax.lax.dynamic_slice_in_dim(kernel, channel, 1, axis=-2), change)

    def replaced(context: _Context, index: chex.Array, column: chex.Array) -> chex.Array:
        if not is_linear:
            return context.first
        column = jnp.moveaxis(column, -1, 0)
        return jax.lax.dynamic_update_slice_in_dim(context.first, column, split(index)[0], axis=0)

    def moved(context: _Context, index: chex.Array, weight: chex.Array) -> chex.Array:
        """The loss with one weight changed."""
        if stage.kind == "mixing":
            params = set_weights(context.params, index[None], weight[None])
            return loss(jnp.moveaxis(context.first, 0, -1), params, context.targets)
        old = here(context, index)
        params, new = shifted(context, index, weight, old)
        if place.reader < 0:
            first = jnp.moveaxis(replaced(context, index, new), 0, -1)
            outputs = chain.run(between, params, first)
            return loss(outputs, params, context.targets)
        outputs = context.read + share(context, params, index, old, new)
        return loss(outputs, params, context.targets)

    def alone(
        context: _Context, indices: chex.Array, weights: chex.Array, count: chex.Array
    ) -> chex.Array:
        del count  # there is no lane without a weight
        of_candidates = jax.vmap(lambda index, weight: moved(context, index, weight), (None, 0))
        return jax.vmap(of_candidates)(indices, weights)

    def put(context: _Context, indices: chex.Array, weights: chex.Array) -> _Context:
        if stage.kind == "mixing" or lanes > 1:
            params = set_weights(context.params, indices, weights)
            return opened(params, jnp.moveaxis(context.entry, 0, -1), context.targets)
        index, weight = indices[0], weights[0]
        old = here(context, index)
        params, new = shifted(context, index, weight, old)
        total = ()
        if place.reader >= 0:
            total = context.read + share(context, params, index, old, new)
        first = replaced(context, index, new)
        return context._replace(params=params, first=first, read=total)

    return Moves(lanes, True, open_, value, get, alone, put, lambda context: context.params)
