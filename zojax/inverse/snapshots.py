"""Snapshots of a network's training: one pytree whose leaves have a leading time axis."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax import trees
from zojax.errors import check_at_least
from zojax.types import Params


def geometric_steps(num_steps: int, num_snapshots: int) -> tuple[int, ...]:
    """Training steps at which to keep a snapshot: 0, 1, ..., num_steps, dense at first.

    The surface changes most in the first steps of training. Where equal ratios would be closer
    than one step the steps are consecutive, and the ratio is that of what is left.

    Args:
      num_steps: of the training, at least 1.
      num_snapshots: in [2, num_steps + 1], counting step 0 (the random initialisation) and the
        last.

    Raises:
      ValueError: for numbers outside these ranges.
    """
    check_at_least("num_steps", num_steps, 1)
    check_at_least("num_snapshots", num_snapshots, 2)
    if num_snapshots > num_steps + 1:
        raise ValueError(
            f"num_snapshots must be at most num_steps + 1 = {num_steps + 1}, got {num_snapshots}"
        )
    if num_snapshots == 2:
        return 0, num_steps
    steps = [0.0, 1.0]
    for left in range(num_snapshots - 2, 0, -1):
        ratio = (num_steps / steps[-1]) ** (1 / left)
        steps.append(max(steps[-1] + 1, steps[-1] * ratio))
    # Half up: to even, two of them could become one.
    return tuple(math.floor(step + 0.5) for step in steps)


def stack_snapshots(snapshots: Sequence[Params]) -> Params:
    """Joins parameter pytrees, oldest first, into one with a leading axis of length T + 1.

    Args:
      snapshots: pytrees of the same structure, shapes and dtypes.

    Raises:
      ValueError: if there are none, or one differs from the first, naming the leaf.
    """
    if len(snapshots) == 0:
        raise ValueError("snapshots must have at least one entry, got an empty list")
    first = _described(snapshots[0])
    if not first:
        raise ValueError("snapshots must have at least one leaf, got pytrees without any")
    for number, snapshot in enumerate(snapshots):
        found = _described(snapshot)
        for name in [*first, *found]:
            if first.get(name) != found.get(name):
                raise ValueError(
                    f"all snapshots must have the same leaves, but {name} is "
                    f"{first.get(name, 'absent')} in the first and "
                    f"{found.get(name, 'absent')} in number {number}"
                )
        structures: list[Any] = [jax.tree.structure(tree) for tree in (snapshots[0], snapshot)]
        if structures[0] != structures[1]:
            raise ValueError(
                f"all snapshots must have the same structure, but number {number} differs from "
                "the first in its containers"
            )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *snapshots)


def interpolate_snapshots(snapshots: Params, num_parts: int) -> Params:
    """Puts num_parts - 1 equally spaced points between each snapshot and the next.

    theta_t + s (theta_{t+1} - theta_t): smaller changes of the surface, for more steps. Leaves that
    are not floating point keep the value of the snapshot before.

    Args:
      snapshots: stacked pytree, (T + 1, ...).
      num_parts: at least 1; 1 changes nothing.

    Returns:
      Stacked pytree, (T num_parts + 1, ...).

    Raises:
      ValueError: for fewer parts than 1, or snapshots that are not stacked.
    """
    check_at_least("num_parts", num_parts, 1)
    count = num_snapshots(snapshots)
    positions = np.arange((count - 1) * num_parts + 1)
    before, part = positions // num_parts, (positions % num_parts) / num_parts
    after = np.minimum(before + 1, count - 1)

    def between(leaf: Any) -> Any:
        if not trees.is_float(leaf):
            return leaf[before]
        weight = jnp.asarray(part, leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))
        # Exact at the snapshots themselves, where the weight is 0.
        return leaf[before] + weight * (leaf[after] - leaf[before])

    return jax.tree.map(between, snapshots)


def num_snapshots(snapshots: Params) -> int:
    """Length of the leading axis, T + 1.

    Args:
      snapshots: stacked pytree.

    Raises:
      ValueError: if there is no leaf, no leading axis, no entry, or the lengths differ.
    """
    leaves = jax.tree_util.tree_leaves_with_path(snapshots)
    if not leaves:
        raise ValueError("snapshots must be a pytree of stacked parameters, got one without leaves")
    lengths = {}
    for path, leaf in leaves:
        shape = jnp.shape(leaf)
        if not shape:
            raise ValueError(
                f"snapshots must be stacked on a leading axis, but {trees.path_name(path)} has "
                "shape (): see inverse.stack_snapshots"
            )
        lengths[trees.path_name(path)] = shape[0]
    if len(set(lengths.values())) > 1:
        raise ValueError(f"snapshots must have one length, got leading axes {lengths}")
    count = next(iter(lengths.values()))
    if count == 0:
        raise ValueError("snapshots must have at least one entry, got leading axes of length 0")
    return count


def _described(tree: Params) -> dict[str, str]:
    return {
        trees.path_name(path): f"{jnp.result_type(leaf)}{jnp.shape(leaf)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
