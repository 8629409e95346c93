"""The networks of the MNIST study: convolutions or none, dropout, batch normalisation."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.lib.errors import UserError

KERNEL = 3


class Network(nn.Module):
    """3x3 convolutions with ReLU and 2x2 max pooling, then dense layers with ReLU.

    With the default sizes and dropout 0.4 it is the study's reference network: 409,034 parameters
    on 28x28x1 images. Without `features` it is a perceptron on averaged pixels.

    Attributes:
        num_classes: Number of outputs.
        features: Channels of each convolution.
        hidden: Sizes of the hidden dense layers.
        dropout: Share of the activations in front of the first dense layer (of a perceptron: the
            last one, because dropping pixels is augmentation) that is zeroed in training.
        batch_norm: Normalise in front of every ReLU.
        pool: Side of the average pooling in front of everything; 1 leaves the image as it is.
        native_convolution: Use XLA's convolution instead of one matrix product. Slow inside a loop
            on a CPU; see docs/performance.md.
    """

    num_classes: int = 10
    features: tuple[int, ...] = (16, 32)
    hidden: tuple[int, ...] = (256,)
    dropout: float = 0.0
    batch_norm: bool = False
    pool: int = 1
    native_convolution: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images (batch, height, width, channels) to logits (batch, num_classes)."""
        x = images
        if min(images.shape[1:3]) < self.pool * 2 ** len(self.features):
            height, width = images.shape[1:3]
            raise UserError(
                f"images of {height}x{width} are too small for pool {self.pool} and "
                f"{len(self.features)} convolutions, each of which halves them"
            )
        if self.pool > 1:
            x = nn.avg_pool(x, (self.pool, self.pool), (self.pool, self.pool))
        for number, channels in enumerate(self.features):
            x = Convolution(channels, self.native_convolution, name=f"Conv_{number}")(x)
            x = max_pool(nn.relu(self._norm(x, train)))
        x = x.reshape((x.shape[0], -1))
        widths = (*self.hidden, self.num_classes)
        dropped = 0 if self.features else len(self.hidden)
        for number, width in enumerate(widths):
            if self.dropout and number == dropped:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = nn.Dense(width, name=f"Dense_{number}")(x)
            if number < len(self.hidden):
                x = nn.relu(self._norm(x, train))
        return x

    def _norm(self, x: jax.Array, train: bool) -> jax.Array:
        # Momentum 0: running statistics are those of the last batch that was written back.
        return nn.BatchNorm(not train, momentum=0.0)(x) if self.batch_norm else x


class Convolution(nn.Module):
    """A 3x3 convolution that keeps height and width.

    Attributes:
        features: Output channels.
        is_native: XLA's convolution; else the nine shifted images side by side, times a matrix.
    """

    features: int
    is_native: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, height, width, features)."""
        shape = (KERNEL, KERNEL, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.is_native:
            dimensions = ("NHWC", "HWIO", "NHWC")
            product = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=dimensions
            )
            return product + bias
        height, width = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        return jnp.concatenate(shifts, axis=-1) @ kernel.reshape(-1, self.features) + bias


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 max pooling of (batch, height, width, channels); odd borders are cut.

    A maximum of four corners: the gradient of XLA's window reduction is slow on a CPU.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = x[:, :height, :width]
    top, bottom = x[:, ::2], x[:, 1::2]
    rows = jnp.maximum(top, bottom)
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def initial_variables(network: Network, key: jax.Array, images: jax.Array) -> tuple[Any, Any]:
    """Returns parameters and, of batch normalisation, collections of statistics (or nothing).

    Args:
        network: The module.
        key: A typed key.
        images: A batch; only its shape matters.
    """
    variables = dict(jax.jit(network.init)(key, images[:1]))
    return variables.pop("params"), variables


def with_statistics(network: Network, params: Any, collections: Any, images: jax.Array) -> Any:
    """Returns variables for prediction: the statistics are those of `images`.

    Args:
        network: The module.
        params: Its parameters.
        collections: From `initial_variables`.
        images: Prepared training images, a few thousand.
    """
    if not collections:
        return {"params": params}
    variables = {"params": params, **collections}
    rngs = {"dropout": jax.random.key(0)}
    _, written = network.apply(variables, images, True, mutable=list(collections), rngs=rngs)
    return {"params": params, **written}
