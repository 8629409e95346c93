"""A random subset of the coordinates, redrawn every few steps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax import trees
from zojax.directions.base import adaptive_directions
from zojax.directions.coordinate import axis_directions
from zojax.keys import noise_key
from zojax.types import Adaptation, Directions, Params, PRNGKey, State


def coordinate_subset(ratios: Params, key: PRNGKey, every: int) -> Directions:
    """Coordinate directions e_i of a random subset; a step is exactly sigma.

    The set behind `sparse_coordinate_difference`. At any one step it looks only at its subset:
    E[s eps^T] = diag(chosen).

    Args:
      ratios: fraction of the coordinates in the subset, a number or a pytree with one number per
        leaf.
      key: key of the subsets.
      every: steps between two draws.
    """

    def sizes(params: Params) -> list[int]:
        leaves = jax.tree.leaves(params)
        if isinstance(ratios, (int, float, np.number)):
            fractions = [ratios] * len(leaves)
        else:  # leaves that are not perturbed are None in `params`, and may have a ratio
            chosen = lambda leaf, ratio: None if leaf is None else ratio  # noqa: E731
            kept = jax.tree.map(chosen, params, ratios, is_leaf=lambda x: x is None)
            fractions = jax.tree.leaves(kept)
        return [round(float(r) * leaf.size) for r, leaf in zip(fractions, leaves, strict=True)]

    def number(params: Params) -> int:
        if sum(sizes(params)) < 1:
            raise ValueError(f"ratios leave no coordinate to perturb, got {ratios!r}")
        return sum(sizes(params))

    def subset(params: Params, count: chex.Array) -> chex.Array:
        leaves = jax.tree.leaves(params)
        starts = np.cumsum([0, *(leaf.size for leaf in leaves[:-1])])
        base = jax.random.fold_in(noise_key(key), count // every)
        pieces = [
            start + jax.random.permutation(jax.random.fold_in(base, i), leaf.size)[:chosen]
            for i, (start, leaf, chosen) in enumerate(
                zip(starts, leaves, sizes(params), strict=True)
            )
        ]
        return jnp.concatenate(pieces).astype(jnp.int32)

    def init(params: Params) -> State:
        number(params)
        count = jnp.zeros((), jnp.int32)
        return count, subset(params, count)

    def update(state: State, grad: Params) -> State:
        count = state[0] + 1
        is_time = count % every == 0
        return count, jax.lax.cond(is_time, lambda: subset(grad, count), lambda: state[1])

    def bind(state: State) -> Directions:
        _, chosen = state
        axes = axis_directions(
            "coordinate_subset",
            lambda key, params, block: chosen,
            step=lambda d: 1.0,
            score=lambda d: float(len(chosen)),
        )
        return axes._replace(
            block_size=lambda dimension, n: n,
            fixed_number=number,
            moment=lambda params: jnp.diag(jnp.zeros(trees.size(params)).at[chosen].set(1)),
        )

    return adaptive_directions(
        "coordinate_subset",
        Adaptation(init, bind, update),
        block_size=lambda dimension, n: n,
        fixed_number=number,
    )
