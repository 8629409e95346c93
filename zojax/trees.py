"""Parameter pytrees: which leaves are perturbed, and flat vectors cut into leaves."""

from collections.abc import Callable
from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np
import quax

from zojax.types import Params

Mask: TypeAlias = Any
"""A pytree of bools (or a prefix of one), or a predicate on a leaf's path `"layer/kernel"`."""


def size(tree: Params) -> int:
    """Returns the number of scalars in a pytree of arrays.

    Args:
      tree: a pytree whose leaves have a shape.
    """
    return sum(int(np.prod(jnp.shape(leaf))) for leaf in jax.tree.leaves(tree))


def split(flat: chex.Array, like: Params) -> Params:
    """Cuts a flat vector into leaves, in the order of `jax.tree.leaves`.

    Args:
      flat: shape (size(like),), any dtype, which is kept.
      like: the pytree that gives structure and shapes.

    Returns:
      A pytree with the structure and shapes of `like`.
    """
    leaves, treedef = jax.tree.flatten(like)
    pieces, start = [], 0
    for leaf in leaves:
        stop = start + int(np.prod(leaf.shape))
        pieces.append(flat[start:stop].reshape(leaf.shape))
        start = stop
    return jax.tree.unflatten(treedef, pieces)


def ravel(tree: Params) -> chex.Array:
    """Joins all leaves into one flat float32 vector (float64 if a leaf is), inverse of `split`.

    Args:
      tree: a pytree of floating-point arrays.
    """
    leaves = jax.tree.leaves(tree)
    wide = any(leaf.dtype == jnp.float64 for leaf in leaves)
    dtype = jnp.float64 if wide else jnp.float32
    return jnp.concatenate([jnp.ravel(leaf).astype(dtype) for leaf in leaves])


def point_dtype(dtype: Any) -> Any:
    """Returns the dtype in which a leaf is perturbed: its own, but at least float32.

    In bfloat16 and float16 a small perturbation is lost to rounding, so points are evaluated
    in float32.

    Args:
      dtype: a floating-point dtype.
    """
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def add_scaled(params: Params, direction: Params, scale: Any) -> Params:
    """Returns `params + scale * direction`, each leaf in its `point_dtype`.

    Args:
      params: pytree of floating-point leaves.
      direction: the same structure and shapes, float32.
      scale: shape ().
    """

    def add(leaf: chex.Array, step: chex.Array) -> chex.Array:
        dtype = point_dtype(leaf.dtype)
        return leaf.astype(dtype) + jnp.asarray(scale, dtype) * step.astype(dtype)

    return jax.tree.map(add, params, direction)


def is_float(leaf: Any) -> bool:
    """Returns whether a leaf is a real floating-point array (or Python float).

    Args:
      leaf: a pytree leaf.
    """
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


def resolve_mask(params: Params, mask: Mask | None) -> Params:
    """Returns the pytree of Python bools that says which leaves are perturbed.

    Args:
      params: the parameters.
      mask: None for every floating-point leaf; a pytree of bools with the structure of
        `params` or of a prefix; or a predicate on the path, e.g.
        `lambda path: path.endswith("kernel")` for paths like `"params/Dense_0/kernel"`.
        Leaves that are not floating point are never perturbed.

    Returns:
      A pytree of bools with the structure of `params`.

    Raises:
      ValueError: if the mask does not fit `params`, or selects no floating-point leaf.
    """
    if mask is None:
        chosen = jax.tree.map(lambda _: True, params)
    elif callable(mask):
        chosen = _mask_from_predicate(params, mask)
    else:
        if any(np.ndim(m) for m in jax.tree.leaves(mask)):
            raise ValueError("mask must hold one bool per leaf, not one per element")
        try:
            chosen = jax.tree.map(lambda m, sub: jax.tree.map(lambda _: bool(m), sub), mask, params)
        except (ValueError, TypeError) as error:
            raise ValueError(f"mask does not fit params: {error}") from error
    result = jax.tree.map(lambda leaf, m: m and is_float(leaf), params, chosen)
    if not any(jax.tree.leaves(result)):
        leaves = jax.tree_util.tree_leaves_with_path(params)
        listed = [f"{path_name(path)} ({jnp.result_type(leaf)})" for path, leaf in leaves[:6]]
        more = ", ..." if len(leaves) > 6 else ""
        reason = "params have no" if mask is None else "mask selects no"
        raise ValueError(
            f"nothing to perturb: {reason} floating-point leaf among "
            f"{', '.join(listed) or 'no leaves at all'}{more}"
        )
    return result


def _mask_from_predicate(params: Params, predicate: Callable[[str], bool]) -> Params:
    def choose(path: Any, _: Any) -> bool:
        return bool(predicate(path_name(path)))

    return jax.tree_util.tree_map_with_path(choose, params)


def path_name(path: Any) -> str:
    """`"layer/kernel"`; the `.value` that NNX variables end in is left out."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def partition(params: Params, mask: Mask | None) -> tuple[Params, Params]:
    """Splits parameters into perturbed leaves and the rest.

    Args:
      params: the parameters.
      mask: see `resolve_mask`.

    Returns:
      `(selected, rest)`, each with None in place of the other's leaves.
    """
    chosen = resolve_mask(params, mask)
    selected = jax.tree.map(lambda leaf, m: jnp.asarray(leaf) if m else None, params, chosen)
    rest = jax.tree.map(lambda leaf, m: None if m else leaf, params, chosen)
    return selected, rest


def merge(selected: Params, rest: Params) -> Params:
    """Puts the two results of `partition` together again.

    Args:
      selected: perturbed leaves, None elsewhere.
      rest: the other leaves, None elsewhere.
    """

    def is_leaf(x: Any) -> bool:
        return x is None or isinstance(x, quax.ArrayValue)  # perturbed leaves may be implicit

    return jax.tree.map(lambda a, b: b if a is None else a, selected, rest, is_leaf=is_leaf)
