"""The classifiers that the experiments train: a small perceptron and a small CNN."""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax

from experiments.lib.errors import UserError


class MLP(nn.Module):
    """A multi-layer perceptron on flattened images.

    Attributes:
        hidden: Sizes of the hidden layers; empty for a linear classifier.
        num_classes: Number of outputs.
        activation: Applied after every hidden layer.
        pool: Side of the square that is averaged before flattening; 1 leaves the image as it is.
            Fewer inputs mean fewer parameters, which is what a zeroth-order estimate pays for.
    """

    hidden: tuple[int, ...]
    num_classes: int
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    pool: int = 1

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images (batch, height, width, channels) to logits (batch, num_classes)."""
        if self.pool > min(images.shape[1:3]):
            height, width = images.shape[1:3]
            raise UserError(f"pool is {self.pool}, larger than the images ({height}x{width})")
        if self.pool > 1:
            images = nn.avg_pool(images, (self.pool, self.pool), (self.pool, self.pool))
        x = images.reshape((images.shape[0], -1))
        for size in self.hidden:
            x = self.activation(nn.Dense(size)(x))
        return nn.Dense(self.num_classes)(x)


class CNN(nn.Module):
    """5x5 convolutions with ReLU and 2x2 max pooling, then a linear layer.

    With the default features it has 11,274 parameters on 28x28x1 images: the network that EvoJAX's
    MNIST benchmark trains (Tang, Tian and Ha 2022, "EvoJAX: Hardware-Accelerated Neuroevolution").

    Attributes:
        num_classes: Number of outputs.
        features: Channels of each convolution.
    """

    num_classes: int
    features: tuple[int, ...] = (8, 16)

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images (batch, height, width, channels) to logits (batch, num_classes)."""
        x = images
        for channels in self.features:
            x = nn.relu(nn.Conv(channels, (5, 5), padding="SAME")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(self.num_classes)(x.reshape((x.shape[0], -1)))


def build_model(
    kind: Literal["mlp", "cnn"],
    *,
    hidden: tuple[int, ...],
    features: tuple[int, ...],
    num_classes: int,
    pool: int,
) -> nn.Module:
    """Builds the model that the command line asks for.

    Args:
        kind: `mlp` or `cnn`.
        hidden: Hidden sizes of the `mlp`.
        features: Channels of the `cnn`.
        num_classes: Number of outputs.
        pool: Side of the average pooling in front of the `mlp`.

    Raises:
        UserError: If the kind is unknown or a size is smaller than 1.
    """
    for name, sizes in (("hidden", hidden), ("features", features), ("pool", (pool,))):
        if any(size < 1 for size in sizes):
            raise UserError(f"every size in {name} must be at least 1, got {sizes}")
    if kind == "mlp":
        return MLP(hidden=hidden, num_classes=num_classes, pool=pool)
    if kind == "cnn":
        return CNN(num_classes=num_classes, features=features)
    raise UserError(f"unknown model '{kind}'; the models are: mlp, cnn")
