"""Moves of single weights in a chain of stages: only what a weight changes is computed anew.

A weight of a dense or convolutional kernel, a bias and an entry of a normalisation change one
channel of their layer. It stays alone through what is channelwise; the next linear layer adds one
channel's share; behind that everything is recomputed. All of it is exact.
"""

import dataclasses
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
    of_leaf = _LeafMoves(tuple(stages), criterion, place, np.shape(leaf), lanes)
    return Moves(
        lanes=lanes,
        is_incremental=True,
        open=of_leaf.open,
        value=of_leaf.value,
        get=of_leaf.get,
        alone=of_leaf.alone,
        put=of_leaf.put,
        close=lambda context: context.params,
    )


@dataclasses.dataclass(frozen=True)
class _LeafMoves:
    """The evaluations around a point, for the weights of one leaf; see `Moves`."""

    stages: tuple[Stage, ...]
    criterion: Callable[[chex.Array, Any], chex.Array]
    place: _Place
    shape: tuple[int, ...]
    lanes: int

    @property
    def stage(self) -> Stage:
        return self.stages[self.place.stage]

    @property
    def is_linear(self) -> bool:
        return self.stage.kind in ("dense", "conv")

    @property
    def between(self) -> tuple[Stage, ...]:
        """What is channelwise, from `first` to what does not keep channels apart."""
        return self.stages[self.place.stage + self.is_linear : self.place.behind]

    @property
    def channels(self) -> int:
        return self.shape[-1] if len(self.shape) > 1 else 1

    @property
    def inner(self) -> int:
        """Weights per channel."""
        return int(np.prod(self.shape)) // self.channels

    def split(self, index: chex.Array) -> tuple[chex.Array, chex.Array]:
        """The channel, and which weight of it."""
        if len(self.shape) > 1:
            return index // self.inner, index % self.inner
        return index, jnp.zeros_like(index)

    def loss(self, outputs: chex.Array, context: _Context, params: Params) -> chex.Array:
        """From the reader's output on, or, without a reader, from what `between` returns."""
        reader = self.place.reader
        rest = self.stages[(self.place.behind if reader < 0 else reader + 1) :]
        return as_loss(self.criterion(chain.run(rest, params, outputs), context.targets))

    def open(self, params: Params, batch: tuple[Any, Any]) -> _Context:
        inputs, targets = batch
        entry = chain.run(self.stages[: self.place.stage], params, inputs)
        return self.opened(params, entry, targets)

    def opened(self, params: Params, entry: chex.Array, targets: Any) -> _Context:
        first, read = entry, ()
        if self.is_linear:
            first = self.stage.apply(chain.own(self.stage, params), entry)
        if self.place.reader >= 0:
            begin = self.place.stage + self.is_linear
            read = chain.run(self.stages[begin : self.place.reader + 1], params, first)
        parts = (jnp.moveaxis(entry, -1, 0), jnp.moveaxis(first, -1, 0), read)
        return _Context(params, *parts, targets)

    def value(self, context: _Context) -> chex.Array:
        if self.place.reader >= 0:
            return self.loss(context.read, context, context.params)
        outputs = chain.run(self.between, context.params, jnp.moveaxis(context.first, 0, -1))
        return self.loss(outputs, context, context.params)

    def get(self, context: _Context, indices: chex.Array) -> chex.Array:
        weights = jax.tree.leaves(context.params)[self.place.leaf].ravel()
        return weights[position(indices, self.inner, self.channels)]

    def changed(self, params: Params, indices: chex.Array, weights: chex.Array) -> Params:
        """Parameters with other weights."""
        leaves, treedef = jax.tree.flatten(params)
        old, where = leaves[self.place.leaf], position(indices, self.inner, self.channels)
        new = old.ravel().at[where].set(weights.astype(old.dtype))
        leaves[self.place.leaf] = new.reshape(self.shape)
        return jax.tree.unflatten(treedef, leaves)

    def alone(
        self, context: _Context, indices: chex.Array, weights: chex.Array, count: chex.Array
    ) -> chex.Array:
        del count  # there is no lane without a weight
        one = lambda index, weight: self.moved(context, index, weight)  # noqa: E731
        return jax.vmap(jax.vmap(one, (None, 0)))(indices, weights)

    def moved(self, context: _Context, index: chex.Array, weight: chex.Array) -> chex.Array:
        """The loss with one weight changed."""
        params = self.changed(context.params, index[None], weight[None])
        if self.stage.kind == "mixing":
            return self.loss(jnp.moveaxis(context.first, 0, -1), context, params)
        old = self.column(context, index)
        new = self.shifted(context, index, weight, old)
        if self.place.reader >= 0:
            outputs = context.read + self.share(context, params, index, old, new)
        else:
            first = jnp.moveaxis(self.replaced(context, index, new), 0, -1)
            outputs = chain.run(self.between, params, first)
        return self.loss(outputs, context, params)

    def put(self, context: _Context, indices: chex.Array, weights: chex.Array) -> _Context:
        params = self.changed(context.params, indices, weights)
        if self.stage.kind == "mixing" or self.lanes > 1:
            return self.opened(params, jnp.moveaxis(context.entry, 0, -1), context.targets)
        index, read = indices[0], ()
        old = self.column(context, index)
        new = self.shifted(context, index, weights[0], old)
        if self.place.reader >= 0:
            read = context.read + self.share(context, params, index, old, new)
        first = self.replaced(context, index, new)
        return context._replace(params=params, first=first, read=read)

    def column(self, context: _Context, index: chex.Array) -> chex.Array:
        """The channel of `first` that a weight changes."""
        # Read once, before it is written: otherwise XLA copies `first` to keep the old one.
        return jax.lax.optimization_barrier(_channel(context.first, self.split(index)[0]))

    def shifted(
        self, context: _Context, index: chex.Array, weight: chex.Array, column: chex.Array
    ) -> chex.Array:
        """That channel with the weight changed."""
        if not self.is_linear:
            return column
        before, inside = self.get(context, index[None])[0], self.split(index)[1]
        step = (weight.astype(before.dtype) - before).astype(column.dtype)
        if len(self.shape) > 1:
            inputs = self.shape[-2]
            source = _channel(context.entry, inside % inputs)
            step *= self.stage.patches(source, inside // inputs, self.shape[:-2])
        return column + step

    def share(
        self,
        context: _Context,
        params: Params,
        index: chex.Array,
        old: chex.Array,
        new: chex.Array,
    ) -> chex.Array:
        """What the reader's output changes by where one channel of `first` does."""
        channel = self.split(index)[0]
        before, after = old, new
        for link in self.between:
            before = link.apply(_cut(chain.own(link, context.params), channel), before)
            after = link.apply(_cut(chain.own(link, params), channel), after)
        reader, change = self.stages[self.place.reader], after - before
        kernel = chain.own(reader, params)["kernel"]
        if self.place.reader > self.place.behind:  # a flatten stage in between
            count = change[0].size
            kernel = kernel.reshape(count, -1, kernel.shape[-1])
            kernel = jax.lax.dynamic_index_in_dim(kernel, channel, 1, keepdims=False)
            return reader.linear(kernel, change.reshape(len(change), count))
        return reader.linear(jax.lax.dynamic_slice_in_dim(kernel, channel, 1, axis=-2), change)

    def replaced(self, context: _Context, index: chex.Array, column: chex.Array) -> chex.Array:
        """All of `first` with that channel."""
        if not self.is_linear:
            return context.first
        column, channel = jnp.moveaxis(column, -1, 0), self.split(index)[0]
        return jax.lax.dynamic_update_slice_in_dim(context.first, column, channel, axis=0)


def _channel(x: chex.Array, channel: chex.Array) -> chex.Array:
    """One of the channels that come first, as the last axis."""
    return jnp.moveaxis(jax.lax.dynamic_slice_in_dim(x, channel, 1, axis=0), 0, -1)


def _cut(params: Params, channel: chex.Array) -> Params:
    """What belongs to one channel."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, channel, 1, axis=-1), params)
