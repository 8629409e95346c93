"""The networks that random search was published with, as chains of Linen layers."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.lib.errors import UserError

ModelName = Literal["mlp", "one_conv", "two_conv", "six_conv", "nine_conv"]
"""mlp: 784-64-10 on MNIST. one_conv, two_conv: of a student's reimplementation. six_conv (12,016
parameters), nine_conv: the paper's for MNIST and CIFAR-10."""

_HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def build_network(
    name: ModelName, *, num_classes: int, is_training: bool, hidden: int = 64
) -> nn.Sequential:
    """Builds a network from centred images (batch, height, width, channels) to logits.

    Args:
        name: Which one.
        num_classes: Number of outputs.
        is_training: Whether batch normalisation uses the batch's own statistics; else the stored
            ones of `with_statistics`.
        hidden: Hidden units of the mlp.

    Raises:
        UserError: If the name is unknown.
    """
    if name not in get_args(ModelName):
        raise UserError(f"unknown model '{name}'; they are: {', '.join(get_args(ModelName))}")
    norm = _norms(is_training)
    if name == "mlp":
        layers = [_flatten, nn.Dense(hidden, kernel_init=_HE), nn.relu, _head(num_classes)]
    elif name == "one_conv":
        layers = [_conv(4, True), nn.relu, _max_pool, _flatten, _head(num_classes)]
    elif name == "two_conv":
        layers = [_conv(16, True), nn.relu, _max_pool, _conv(16, True), nn.relu, _max_pool]
        layers += [_flatten, _head(num_classes)]
    elif name == "six_conv":
        layers = []
        for number in range(6):
            layers += [nn.relu] * (number > 0) + [_conv(16)]
            layers += [_average_pool] * (number in (1, 3)) + [norm()]
        layers += [_global_max, _head(num_classes, use_bias=False)]
    else:
        layers = [_conv(16), norm()]
        for features, is_pooled in ((16, True), (32, True), (32, False), (32, False)):
            layers.append(Residual(features, is_pooled, norm))
        layers += [_global_max, _head(num_classes, use_bias=False)]
    return nn.Sequential(layers)


class Residual(nn.Module):
    """Two convolutions; the input is added to the second one's output, before pooling.

    Attributes:
        features: Channels.
        is_pooled: Whether the output is halved in size.
        norm: Makes a normalisation layer.
    """

    features: int
    is_pooled: bool
    norm: Callable[[], nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, height, width, features)."""
        y = self.norm()(_conv(self.features)(nn.relu(x)))
        y = _conv(self.features)(nn.relu(y))
        if x.shape[-1] != self.features:
            x = self.norm()(nn.Conv(self.features, (1, 1), use_bias=False, kernel_init=_HE)(x))
        y = y + x
        return self.norm()(_average_pool(y) if self.is_pooled else y)


def _norms(is_training: bool) -> Callable[[], nn.BatchNorm]:
    # Momentum 0: the statistics stored are those of one batch, chosen large.
    return lambda: nn.BatchNorm(use_running_average=not is_training, momentum=0.0)


def _conv(features: int, use_bias: bool = False) -> nn.Conv:
    return nn.Conv(features, (3, 3), use_bias=use_bias, kernel_init=_HE)


def _head(num_classes: int, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(num_classes, use_bias=use_bias, kernel_init=_HE)


def _flatten(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)


def _max_pool(x: jax.Array) -> jax.Array:
    corners = _corners(x)
    return jnp.maximum(jnp.maximum(*corners[:2]), jnp.maximum(*corners[2:]))


def _average_pool(x: jax.Array) -> jax.Array:
    return sum(_corners(x)) / 4


def _corners(x: jax.Array) -> list[jax.Array]:
    """The corners of 2x2 squares; on a CPU several times faster than a reduction of windows."""
    height, width = (size // 2 * 2 for size in x.shape[1:3])
    return [x[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]


def _global_max(x: jax.Array) -> jax.Array:
    return x.max(axis=(1, 2))


def with_statistics(module: nn.Sequential, params: Any, images: jax.Array) -> dict[str, Any]:
    """Returns variables for a network that is not training: statistics of one pass over images.

    Args:
        module: The training form.
        params: Its parameters.
        images: A large batch of training images; the published code takes 2,000.
    """
    _, stored = module.apply({"params": params}, images, mutable=["batch_stats"])
    return {"params": params, **stored}


def first_filters(params: Any, image_shape: Sequence[int]) -> jax.Array:
    """Returns the weights of the first layer as images, (filters, height, width)."""
    kernel = params[min(params, key=lambda name: int(name.split("_")[-1]))]["kernel"]
    if kernel.ndim == 4:
        return jnp.moveaxis(kernel.mean(axis=2), -1, 0)
    return jnp.moveaxis(kernel.reshape(*image_shape, -1).mean(axis=2), -1, 0)
