"""Keeps a whole optimiser away from leaves that are not perturbed."""

import optax

from zojax import trees
from zojax.types import Params


def mask_optimizer(
    tx: optax.GradientTransformation, mask: trees.Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    """Restricts an optimiser to the leaves an estimator with the same `mask` perturbs.

    An estimator gives the other leaves zero gradients, but that alone does not keep them still:
    weight decay moves them, and integer leaves have no moments. Wrap what follows the estimator:

    `optax.chain(zojax.as_gradient_transformation(est, key), zojax.mask_optimizer(adamw, mask))`

    Args:
      tx: the optimiser.
      mask: as given to the estimator; None for every floating-point leaf.

    Returns:
      The masked transformation (`optax.masked`).
    """

    def chosen(params: Params) -> Params:
        return trees.resolve_mask(params, mask)

    return optax.with_extra_args_support(optax.masked(tx, chosen))
