"""Where a gradient attack searches: in the pixels, or in a small grid that is up-sampled."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from zojax.errors import check_that


class Latent(NamedTuple):
    """A space of latent variables z that stand for perturbations of an input x.

    Attributes:
      zeros: `x -> z`, the variable of no perturbation.
      perturbation: `(z, x) -> (...)`, of the shape of x, linear in z.
      limits: `x -> (low, high)`, of the shape of z, beyond which no z has anything to gain.
    """

    zeros: Callable[[chex.Array], chex.Array]
    perturbation: Callable[[chex.Array, chex.Array], chex.Array]
    limits: Callable[[chex.Array], tuple[chex.Array, chex.Array]]


def perturbed(latent: Latent, z: chex.Array, x: chex.Array) -> chex.Array:
    """The input that z stands for: x plus the perturbation, clipped to [0, 1].

    Args:
      latent: the space.
      z: a variable.
      x: the input that is attacked.
    """
    return jnp.clip(x + latent.perturbation(z, x), 0.0, 1.0)


pixels = Latent(
    zeros=jnp.zeros_like,
    perturbation=lambda z, x: z,
    limits=lambda x: (-x, 1 - x),
)
"""The perturbation itself."""


def upsampled(latent_shape: tuple[int, int]) -> Latent:
    """A grid of one number per coarse pixel and channel, up-sampled bilinearly.

    An estimate's error grows with the number of variables, so fewer of them need fewer queries; the
    perturbation that is found is smooth, and its distortion may be larger. Pass it to any gradient
    attack: `nes(0.3, latent=upsampled((14, 14)))`. For inputs (h, w) or (h, w, channels). The
    queries per step are those of the attack.

    Args:
      latent_shape: height and width of the grid, at least 1 and at most those of the input
        (published: (14, 14) for MNIST, (8, 8) for CIFAR).

    Raises:
      ValueError: for a shape that is not two integers >= 1; in the attack's `init`, for an input
        that is no image or smaller than the grid.

    Source: Tu et al. 2019 (AutoZOOM), arXiv 1805.11770.
    """
    check_that("latent_shape", latent_shape, "two integers >= 1", _is_shape)

    def zeros(x: chex.Array) -> chex.Array:
        fits = x.ndim in (2, 3) and all(
            small <= large for small, large in zip(latent_shape, x.shape, strict=False)
        )
        if not fits:
            raise ValueError(
                f"latent_shape must be at most the height and width of an image (h, w) or "
                f"(h, w, channels), got {latent_shape!r} for an input of shape {x.shape}"
            )
        return jnp.zeros((*latent_shape, *x.shape[2:]), x.dtype)

    def perturbation(z: chex.Array, x: chex.Array) -> chex.Array:
        return jax.image.resize(z, x.shape, "bilinear", precision="highest")

    def limits(x: chex.Array) -> tuple[chex.Array, chex.Array]:
        ones = jnp.ones((*latent_shape, *x.shape[2:]), x.dtype)
        return -ones, ones  # inputs lie in [0, 1], so no perturbation is longer

    return Latent(zeros, perturbation, limits)


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in value)
    )
