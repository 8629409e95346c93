"""Small image generators, and the encoder and the critic that train them."""

import math
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.lib.errors import UserError

DecoderName = Literal["mlp", "dcgan"]
"""Generators: dense layers, or a dense one and two transposed convolutions."""

_TAPS = 4  # side of the kernel of a transposed convolution
_SHIFTS = ((0, 0), (0, 1), (1, 0), (1, 1))  # down, right
_SMALL = 16 * 16  # pixels of an image that a narrow network can draw
# Each output pixel of a stride-2 transposed convolution sees a quarter of the kernel.
_transposed_init = nn.initializers.variance_scaling(4.0, "fan_in", "truncated_normal")


def transposed_convolution(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """Doubles height and width; equals `jax.lax.conv_transpose` with strides 2, padding `SAME`.

    Each quarter of the kernel makes a 2x2 block from every pixel, and the blocks of four
    neighbours are added: one matrix product and shifts, because a convolution inside a loop is
    many times slower on a CPU.

    Args:
        images: (..., height, width, channels).
        kernel: (4, 4, channels, features).

    Returns:
        (..., 2 height, 2 width, features).
    """
    *lead, height, width, channels = images.shape
    features = kernel.shape[-1]
    none = [(0, 0)]
    # Row 2 a + b of the flipped kernel goes to row b of the block a pixels further down.
    quarters = kernel[::-1, ::-1].reshape(2, 2, 2, 2, channels, features)
    quarters = quarters.transpose(0, 2, 4, 1, 3, 5).reshape(4, channels, 4 * features)
    if 4 * features < channels:  # shift whichever is smaller: blocks here, pixels below
        products = images @ quarters.swapaxes(0, 1).reshape(channels, -1)
        blocks = sum(
            jnp.pad(
                products[..., 4 * features * index : 4 * features * (index + 1)],
                none * len(lead) + [(down, 1 - down), (right, 1 - right)] + none,
            )
            for index, (down, right) in enumerate(_SHIFTS)
        )
    else:
        padded = jnp.pad(images, none * len(lead) + [(1, 1), (1, 1)] + none)
        shifted = [
            padded[..., 1 - down : height + 2 - down, 1 - right : width + 2 - right, :]
            for down, right in _SHIFTS
        ]
        patches = jnp.concatenate(shifted, axis=-1)
        blocks = patches.reshape(-1, 4 * channels) @ quarters.reshape(4 * channels, -1)
    blocks = blocks.reshape(*lead, height + 1, width + 1, 2, 2, features)
    spread = jnp.swapaxes(blocks, -4, -3).reshape(*lead, 2 * height + 2, 2 * width + 2, features)
    return spread[..., 1:-1, 1:-1, :]


class TransposedConvolution(nn.Module):
    """A 4x4 transposed convolution with stride 2 and a bias.

    Attributes:
        features: Channels of the result.
    """

    features: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps (..., height, width, channels) to (..., 2 height, 2 width, features)."""
        shape = (_TAPS, _TAPS, images.shape[-1], self.features)
        kernel = self.param("kernel", _transposed_init, shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return transposed_convolution(images, kernel) + bias


class MLPDecoder(nn.Module):
    """Two hidden dense layers with ReLU.

    Attributes:
        image_shape: Height, width and 1.
        width: Units of a hidden layer.
    """

    image_shape: tuple[int, int, int]
    width: int

    @nn.compact
    def logits(self, latents: jax.Array) -> jax.Array:
        """Maps latents (..., k) to logits of pixels (..., height, width, 1)."""
        x = nn.relu(nn.Dense(self.width)(latents))
        x = nn.relu(nn.Dense(self.width)(x))
        x = nn.Dense(math.prod(self.image_shape))(x)
        return x.reshape(*x.shape[:-1], *self.image_shape)

    def __call__(self, latents: jax.Array) -> jax.Array:
        """Maps latents (..., k) to images (..., height, width, 1) in [0, 1]."""
        return nn.sigmoid(self.logits(latents))


class DCGANDecoder(nn.Module):
    """A dense layer and two transposed convolutions with ReLU; no batch normalisation.

    Attributes:
        image_shape: Height and width, multiples of 4, and 1.
        width: Channels after the dense layer; half as many after the first convolution.
    """

    image_shape: tuple[int, int, int]
    width: int

    @nn.compact
    def logits(self, latents: jax.Array) -> jax.Array:
        """Maps latents (..., k) to logits of pixels (..., height, width, 1)."""
        height, width, _ = self.image_shape
        start = (height // 4, width // 4, self.width)
        x = nn.relu(nn.Dense(math.prod(start))(latents))
        x = x.reshape(*x.shape[:-1], *start)
        x = nn.relu(TransposedConvolution(self.width // 2)(x))
        return TransposedConvolution(1)(x)

    def __call__(self, latents: jax.Array) -> jax.Array:
        """Maps latents (..., k) to images (..., height, width, 1) in [0, 1]."""
        return nn.sigmoid(self.logits(latents))


class Encoder(nn.Module):
    """The VAE's encoder: mean and log variance of each latent from an image.

    Attributes:
        latent_dim: Number of latents.
        width: Units of the two hidden layers.
    """

    latent_dim: int
    width: int

    @nn.compact
    def __call__(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps pixels (batch, n) to mean and log variance, each (batch, latent_dim)."""
        x = nn.relu(nn.Dense(self.width)(pixels))
        x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(self.latent_dim)(x), nn.Dense(self.latent_dim)(x)


class Critic(nn.Module):
    """The WGAN's critic: one unbounded number per image.

    Attributes:
        width: Units of the two hidden layers.
    """

    width: int

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Maps pixels (..., n) to scores (...)."""
        x = nn.leaky_relu(nn.Dense(self.width)(pixels), 0.2)
        x = nn.leaky_relu(nn.Dense(self.width)(x), 0.2)
        return nn.Dense(1)(x).squeeze(-1)


def hidden_width(image_shape: Sequence[int]) -> int:
    """Returns how many hidden units dense layers get: 128 for 8x8 pixels, 256 for 28x28.

    Args:
        image_shape: Height, width and 1.
    """
    return 128 if math.prod(image_shape) <= _SMALL else 256


def build_decoder(
    name: DecoderName, latent_dim: int, image_shape: Sequence[int], width: int | None = None
) -> nn.Module:
    """Builds a generator; `init` and `apply` take latents (..., latent_dim), with any leading axes.

    Args:
        name: `mlp` or `dcgan`.
        latent_dim: Number of latents, at most the number of pixels.
        image_shape: Height, width and 1.
        width: Hidden units of the `mlp` (default: `hidden_width`), or channels of the `dcgan`
            (default: 32).

    Raises:
        UserError: If the name is unknown or a size does not fit.
    """
    shape = tuple(image_shape)
    if len(shape) != 3 or shape[2] != 1:
        raise UserError(f"generators draw images of shape (height, width, 1), got {shape}")
    if not 1 <= latent_dim <= math.prod(shape):
        raise UserError(
            f"latent_dim must be from 1 to the number of pixels ({math.prod(shape)}), "
            f"got {latent_dim}"
        )
    if width is not None and width < 1:
        raise UserError(f"width must be >= 1, got {width}")
    if name == "mlp":
        return MLPDecoder(shape, width or hidden_width(shape))
    if name != "dcgan":
        raise UserError(f"unknown decoder '{name}'; the decoders are: mlp, dcgan")
    if shape[0] % 4 or shape[1] % 4:
        raise UserError(
            f"the dcgan decoder needs height and width divisible by 4, got {shape[0]}x{shape[1]}"
        )
    if width is not None and width % 2:
        raise UserError(f"width of the dcgan decoder (channels) must be even, got {width}")
    return DCGANDecoder(shape, width or 32)
