"""The network of DeepZero's comparison, as a loss that stays fast where it is evaluated often."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.lib.classifier import cross_entropy


class AdjustableCNN(nn.Module):
    """The network of DeepZero's comparison of random and coordinate-wise estimates.

    A convolution is one matrix product with the image's 3x3 patches, ordered by their place in the
    2x2 pooling window: on a CPU several times as fast as a convolution under vmap.

    Attributes:
        depth: Layers of 3x3 convolution (padding 1), batch norm, ReLU and 2x2 max pooling.
        channels: Channels of every layer.
        num_classes: Number of outputs.

    Source: Chen et al. 2024 (DeepZero), arXiv 2310.02025.
    """

    depth: int
    channels: int = 18
    num_classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = True) -> jax.Array:
        """Maps images (batch, height, width, channels) to logits (batch, num_classes).

        Args:
            images: Height and width must be multiples of 2^depth.
            train: Normalise with the statistics of this batch (and store them in `batch_stats`,
                in place of older ones); else with the stored ones.
        """
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's
        exact = jax.lax.Precision.HIGHEST  # fewer bits would drown a difference of two losses
        x = jnp.moveaxis(images, -1, 0)
        for index in range(self.depth):
            shape = (3, 3, x.shape[0], self.channels)
            kernel = self.param(f"kernel_{index}", init, shape)
            bias = self.param(f"bias_{index}", nn.initializers.zeros, (self.channels,))
            patches = _patches(x)
            flat = patches.reshape(math.prod(shape[:3]), -1)
            x = jnp.matmul(kernel.reshape(-1, self.channels).T, flat, precision=exact)
            # Two axes until the pooling: XLA makes slower loops on a CPU where there are more.
            x = nn.BatchNorm(use_running_average=not train, axis=0, momentum=0.0)(x + bias[:, None])
            x = nn.relu(x.reshape(self.channels, 4, -1).max(axis=1))
            x = x.reshape(self.channels, *patches.shape[3:])
        return nn.Dense(self.num_classes, kernel_init=init, precision=exact)(x.mean((2, 3)).T)


def _patches(x: jax.Array) -> jax.Array:
    """Returns 3x3 neighbourhoods with zero padding, by tap and place in the pooling window.

    Args:
        x: (channels, batch, height, width).

    Returns:
        (9, channels, 4, batch, height / 2, width / 2).
    """
    height, width = x.shape[2:]
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    taps = [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    windows = jnp.stack(taps).reshape(9, *x.shape[:2], height // 2, 2, width // 2, 2)
    places = windows.transpose(0, 1, 4, 6, 2, 3, 5)
    return places.reshape(9, x.shape[0], 4, x.shape[1], height // 2, width // 2)


def batch_loss(module: nn.Module) -> Callable[[Any, Any], jax.Array]:
    """Returns `loss_fn(params, (images, labels))`, normalised with the batch's own statistics.

    Args:
        module: The network.
    """

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        images, labels = batch
        logits, _ = module.apply({"params": params}, images, mutable=["batch_stats"])
        return cross_entropy(logits, labels)

    return loss_fn


def evaluated_in_chunks(
    loss_fn: Callable[[Any, Any], jax.Array], size: int
) -> Callable[[Any, Any], jax.Array]:
    """Returns the same loss, evaluated for `size` parameters at a time where it is vmapped.

    `zojax.chunked` would draw an orthogonal block once per chunk. Here the estimator draws all
    directions of a step once (n d numbers, few for these networks) and only the network, which
    needs the memory, goes in chunks.

    Args:
        loss_fn: `(params, batch) -> scalar`.
        size: Parameters per chunk.
    """
    loss = jax.custom_batching.custom_vmap(loss_fn)

    @loss.def_vmap
    def _rule(axis_size: int, in_batched: Any, params: Any, batch: Any) -> tuple[jax.Array, bool]:
        if axis_size <= 2:  # the points of one direction: the loop is over the directions

            def at(i: int) -> Any:
                return jax.tree.map(lambda mapped, x: x[i] if mapped else x, in_batched[0], params)

            return jnp.stack([loss(at(i), batch) for i in range(axis_size)]), True

        def repeat(is_batched: bool, leaf: jax.Array) -> jax.Array:
            return leaf if is_batched else jnp.broadcast_to(leaf, (axis_size, *leaf.shape))

        params = jax.tree.map(repeat, in_batched[0], params)
        return jax.lax.map(lambda point: loss_fn(point, batch), params, batch_size=size), True

    return loss
