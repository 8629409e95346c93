"""How many weights of each layer deserve an evaluation, found from values alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax import trees
from zojax.directions import rademacher
from zojax.errors import check_at_least, check_positive
from zojax.estimation import value_and_grad
from zojax.estimators.finite_difference import finite_difference
from zojax.execution import vectorized
from zojax.types import Execution, LossFn, Params, PRNGKey


def grasp_ratios(
    loss_fn: LossFn,
    params: Params,
    key: PRNGKey,
    *,
    keep: float = 0.1,
    num_directions: int = 192,
    sigma: float = 5e-3,
    args: tuple[Any, ...] = (),
    execution: Execution | None = None,
) -> Params:
    """Returns which fraction of every leaf to keep: gradient-flow pruning at initialisation.

    Scores every weight by -w (H g), with g the estimated gradient and H g the difference of two
    estimates along the same directions, at w + sigma g and at w. Weights with the lowest scores
    preserve the flow of the gradient; of all weights the fraction `keep` with the lowest scores is
    kept, and what is returned is how they spread over the leaves. The ratios go into
    `zojax.sparse_coordinate_difference`. Queries: 4 `num_directions`.

    Args:
      loss_fn: `loss_fn(params, *args) -> scalar`.
      params: the parameters, all leaves floating point.
      key: typed key.
      keep: fraction of all weights to keep, in (0, 1].
      num_directions: n of either estimate.
      sigma: smoothing radius, and step along the gradient, in parameter units.
      args: further arguments of the loss.
      execution: how the evaluations are run; all at once by default.

    Returns:
      A pytree like `params` of Python floats in [0, 1].

    Raises:
      TypeError: if `key` is not a typed key.
      ValueError: for `keep` outside (0, 1], `num_directions` < 1, `sigma` <= 0, leaves that are not
        floating point, or a loss that does not change.

    Source: Wang et al. 2020 (GraSP), arXiv 2002.07376; by values: Chen et al. 2024 (DeepZero),
    arXiv 2310.02025.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {keep!r}")
    check_at_least("num_directions", num_directions, 1)
    check_positive("sigma", sigma)
    if not all(map(trees.is_float, jax.tree.leaves(params))):
        raise ValueError("params must have floating-point leaves only: leave the others out")
    est = finite_difference(directions=rademacher(), num_directions=num_directions, sigma=sigma)
    gradient = value_and_grad(loss_fn, est, execution=execution or vectorized())
    _, grad = gradient(params, key, *args)
    _, moved = gradient(trees.add_scaled(params, grad, sigma), key, *args)
    scores = jax.tree.map(lambda w, g, h: -w * (h - g) / sigma, params, grad, moved)
    flat = np.asarray(trees.ravel(scores))
    if not np.any(flat):
        raise ValueError("every score is zero: the loss does not change within sigma of params")
    threshold = np.sort(flat)[max(1, round(keep * flat.size)) - 1]
    return jax.tree.map(lambda score: float(jnp.mean(score <= threshold)), scores)
