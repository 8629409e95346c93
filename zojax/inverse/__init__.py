"""Inverse problems: find the latent a generator made an image of, from values or gradients."""

from zojax.inverse.activity import active_latents, latent_sensitivity, on_active
from zojax.inverse.descent import Advance, Descended, Descent, descend
from zojax.inverse.operators import (
    LinearOperator,
    Operator,
    SubsamplingOperator,
    black_box_operator,
    gaussian_operator,
    linear_operator,
    one_bit,
    quantized,
    reconstruction_loss,
    subsampling_operator,
)
from zojax.inverse.snapshots import (
    geometric_steps,
    interpolate_snapshots,
    num_snapshots,
    stack_snapshots,
)
from zojax.inverse.surfing import Neighbourhood, Surfed, direct, restarted, surf

__all__ = [
    "Advance",
    "Descended",
    "Descent",
    "LinearOperator",
    "Neighbourhood",
    "Operator",
    "SubsamplingOperator",
    "Surfed",
    "active_latents",
    "black_box_operator",
    "descend",
    "direct",
    "gaussian_operator",
    "geometric_steps",
    "interpolate_snapshots",
    "latent_sensitivity",
    "linear_operator",
    "num_snapshots",
    "on_active",
    "one_bit",
    "quantized",
    "reconstruction_loss",
    "restarted",
    "stack_snapshots",
    "subsampling_operator",
    "surf",
]
