"""Zeroth-order estimates and optimisers as optax transformations."""

from zojax.transforms.as_gradient_transformation import (
    ZerothOrderState,
    as_gradient_transformation,
)
from zojax.transforms.mask_optimizer import mask_optimizer

__all__ = ["ZerothOrderState", "as_gradient_transformation", "mask_optimizer"]
