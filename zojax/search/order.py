"""In which order weights are visited, in blocks that share a mini-batch, and how far they move."""

import re
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax import trees
from zojax.types import Params

Order = Literal["last_first", "first_first"]


class WeightOrder(NamedTuple):
    """One round over all weights, cut into blocks; all fields but the last have shape (blocks,).

    Attributes:
      leaf: index of the block's leaf among `jax.tree.leaves(params)`.
      start: the block's first position in that leaf.
      length: how many positions it visits.
      group: how many of them are tried at once.
      largest: the largest of all lengths.
    """

    leaf: np.ndarray
    start: np.ndarray
    length: np.ndarray
    group: np.ndarray
    largest: int

    @property
    def num_blocks(self) -> int:
        """Blocks in a round."""
        return len(self.leaf)

    @property
    def visits(self) -> int:
        """Weights tried in a round: all of them once, a few twice where groups do not fit."""
        return int(self.length.sum())


def weight_order(params: Params, block_size: int, group_size: int, order: Order) -> WeightOrder:
    """Returns the blocks of one round.

    Leaves follow the natural order of their paths ("Dense_2" before "Dense_10"), reversed for
    `last_first`, so name layers in the order in which they act; within a leaf the last axis, the
    output channel, is the outer loop. A block stays within a leaf. Where a leaf is no multiple of
    the group, its last group reaches back.

    Args:
      params: pytree of floating-point arrays.
      block_size: weights that share a mini-batch.
      group_size: weights tried at once.
      order: which layer comes first.
    """
    paths, leaves = zip(*jax.tree_util.tree_flatten_with_path(params)[0], strict=True)
    names = [_natural(trees.path_name(path)) for path in paths]
    visited = sorted(range(len(leaves)), key=lambda i: names[i], reverse=order == "last_first")
    rows = []
    for number in visited:
        size = int(np.prod(np.shape(leaves[number])))
        group = min(group_size, size)
        length = min(block_size // group, size // group) * group
        for start in range(0, size, length):
            own = -(-min(length, size - start) // group) * group
            rows.append((number, min(start, size - own), own, group))
    leaf, start, length, group = np.array(rows, np.int32).T
    return WeightOrder(leaf, start, length, group, int(length.max()))


def _natural(path: str) -> list[Any]:
    return [(1, int(x), "") if x.isdigit() else (0, 0, x) for x in re.split(r"(\d+)", path)]


def position(index: Any, inner: Any, channels: Any) -> Any:
    """Returns the flat index of the weight visited at `index`: channel outside, the rest inside.

    Args:
      index: 0 ... size - 1, may be traced.
      inner: weights per channel.
      channels: length of the leaf's last axis; 1 for a vector.
    """
    return (index % inner) * channels + index // inner


def initial_scales(params: Params, vector_scale: float) -> Params:
    """Returns the standard deviation of each leaf's first step: that of its initial weights.

    Biases and the parameters of normalisation start out constant; theirs is `vector_scale`.

    Args:
      params: freshly initialised.
      vector_scale: for leaves of fewer than two dimensions.
    """

    def scale(leaf: chex.Array) -> chex.Array:
        leaf = jnp.asarray(leaf)
        return jnp.std(leaf) if leaf.ndim > 1 else jnp.full((), vector_scale, leaf.dtype)

    return jax.tree.map(scale, params)


def check_scales(params: Params, scales: Params) -> None:
    """Raises unless there is one finite positive number per leaf; traced values pass.

    Args:
      params: the parameters.
      scales: their scales.

    Raises:
      ValueError: naming the leaf.
    """
    structures = {jax.tree.structure(tree) for tree in (scales, params)}
    if len(structures) > 1:
        raise ValueError("scales must hold one number for every leaf of params")
    for path, scale in jax.tree_util.tree_flatten_with_path(scales)[0]:
        if isinstance(scale, jax.core.Tracer):
            continue
        if np.ndim(scale) or not 0 < float(scale) < np.inf:
            raise ValueError(
                f"the scale of {trees.path_name(path)} must be finite and > 0, got {scale}: the "
                "default is the standard deviation of the initial weights, so initialise them "
                "at random or pass scales"
            )
