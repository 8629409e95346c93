"""What a device does to weights: pure functions (key, params) -> params, and their order."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import chex
import jax
import numpy as np

from zojax import trees
from zojax.keys import check_key
from zojax.types import Params, PRNGKey

Scope = Literal["chip", "read"]


@dataclasses.dataclass(frozen=True, eq=False)
class WeightNoise:
    """What happens to weights on a device.

    Not a NamedTuple: it is a function that `jax.jit` takes, which needs an identity of its own.

    Attributes:
      name: for messages and tables.
      apply: `(key, weight) -> weight` on one leaf in at least float32.
      mask: which leaves it acts on, as for an estimator.
      scope: "chip" if it is drawn once per device, "read" if at every evaluation.
    """

    name: str
    apply: Callable[[PRNGKey, chex.Array], chex.Array]
    mask: trees.Mask | None = None
    scope: Scope = "chip"

    def __call__(self, key: PRNGKey, params: Params) -> Params:
        """Returns the weights as the device has them; other leaves are passed through.

        Args:
          key: typed key; one per chip, or per read.
          params: the weights.

        Raises:
          TypeError: if `key` is not a typed key.
          ValueError: for a key that is not threefry, or a mask that covers no leaf.
        """
        check_key(key)
        selected, rest = trees.partition(params, self.mask)
        leaves, treedef = jax.tree.flatten(selected)
        moved = [
            self.apply(jax.random.fold_in(key, i), leaf.astype(trees.point_dtype(leaf.dtype)))
            for i, leaf in enumerate(leaves)
        ]
        return trees.merge(jax.tree.unflatten(treedef, moved), rest)


def scoped(noise: WeightNoise, scope: Scope) -> WeightNoise:
    """Returns the model with another scope.

    Args:
      noise: a model.
      scope: "chip" or "read".

    Raises:
      ValueError: for another scope.
    """
    if scope not in ("chip", "read"):
        raise ValueError(f"scope must be 'chip' or 'read', got {scope!r}")
    return dataclasses.replace(noise, scope=scope)


def composed(*models: WeightNoise) -> Callable[[PRNGKey, PRNGKey, Params], Params]:
    """Applies models in the order written.

    Args:
      *models: at least one, e.g. quantisation and then bit errors.

    Returns:
      `(chip_key, read_key, params) -> params`: models of scope "chip" draw from the first key,
      those of scope "read" from the second, each from a key of its own.

    Raises:
      ValueError: for no model, or what is not one.
    """
    if not models:
        raise ValueError("composed needs at least one weight-noise model")
    for model in models:
        if not isinstance(model, WeightNoise):
            raise ValueError(f"models must be weight-noise models, got {model!r}")

    def apply(chip_key: PRNGKey, read_key: PRNGKey, params: Params) -> Params:
        for i, model in enumerate(models):
            key = chip_key if model.scope == "chip" else read_key
            params = model(jax.random.fold_in(key, i), params)
        return params

    return apply


def coverage(params: Params, *models: WeightNoise) -> str:
    """Returns a table: for every leaf which models change it, or why none does.

    Args:
      params: the weights.
      *models: in the order in which they act.

    Raises:
      ValueError: if a model covers no leaf.
    """
    masks = [jax.tree.leaves(trees.resolve_mask(params, model.mask)) for model in models]
    rows = []
    for i, (path, leaf) in enumerate(jax.tree_util.tree_flatten_with_path(params)[0]):
        names = [m.name for m, mask in zip(models, masks, strict=True) if mask[i]]
        shape = "x".join(map(str, np.shape(leaf))) or "scalar"
        reason = "outside every mask" if trees.is_float(leaf) else "not floating point"
        rows.append((trees.path_name(path), shape, ", then ".join(names) or f"- ({reason})"))
    widths = [max(len(row[k]) for row in rows) for k in range(2)]
    return "\n".join(f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}" for a, b, c in rows)


def check_finite(model: WeightNoise, key: PRNGKey, params: Params) -> None:
    """Raises if a model makes weights that are not finite; call it once before a long run.

    Args:
      model: the model.
      key: typed key.
      params: the weights, finite themselves.

    Raises:
      ValueError: naming the leaves.
    """
    made = jax.tree_util.tree_flatten_with_path(model(key, params))[0]
    bad = [
        trees.path_name(path)
        for path, leaf in made
        if trees.is_float(leaf) and not np.all(np.isfinite(np.asarray(leaf, np.float64)))
    ]
    if bad:
        raise ValueError(f"{model.name} makes weights that are not finite in {', '.join(bad)}")
