"""A Flax classifier as a black-box loss, with its data prepared for training."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax.flax
from experiments.lib.data import Dataset, Split


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained: a loss of (params, batch), and arrays on the device.

    Attributes:
        module: The Flax model, from centred images to logits.
        loss_fn: `loss_fn(params, (images, labels))`, the mean cross-entropy.
        train: Centred images and labels of the training part.
        validation: The same of the validation part.
        test: The same of the test part.
    """

    module: nn.Module
    loss_fn: Any
    train: tuple[jax.Array, jax.Array]
    validation: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]

    def init(self, key: jax.Array) -> Any:
        """Returns freshly initialised parameters."""
        return jax.jit(self.module.init)(key, self.train[0][:1])["params"]


def build_task(module: nn.Module, dataset: Dataset) -> Task:
    """Centres the images and makes the loss.

    Every pixel has its mean over the training images subtracted, and all are divided by one
    standard deviation. A zeroth-order estimate spreads its noise evenly over all parameters, so it
    suffers more than back-propagation from inputs that share a large mean.

    Args:
        module: Maps images (batch, height, width, 1) to logits.
        dataset: The data.
    """
    mean = dataset.train.images.mean(axis=0)
    deviation = dataset.train.images.std()

    def prepare(split: Split) -> tuple[jax.Array, jax.Array]:
        images = ((split.images - mean) / deviation).astype(np.float32)
        return jnp.asarray(images), jnp.asarray(split.labels)

    return Task(
        module=module,
        loss_fn=zojax.flax.linen_loss(module, cross_entropy),
        train=prepare(dataset.train),
        validation=prepare(dataset.validation),
        test=prepare(dataset.test),
    )


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of integer labels, shape ()."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class Evaluator:
    """Accuracy, loss and predictions of a classifier on whole splits."""

    def __init__(self, module: nn.Module, batch: int = 5_000) -> None:
        """Prepares the compiled forward pass.

        Args:
            module: The model.
            batch: Images per pass; bounds the memory.
        """
        self._batch = batch
        self._forward = jax.jit(lambda params, images: module.apply({"params": params}, images))

    def logits(self, params: Any, images: jax.Array) -> np.ndarray:
        """Returns logits (n, classes) of all images."""
        starts = range(0, len(images), self._batch)
        parts = [self._forward(params, images[i : i + self._batch]) for i in starts]
        return np.concatenate([np.asarray(part) for part in parts])

    def score(self, params: Any, split: tuple[jax.Array, jax.Array]) -> tuple[float, float]:
        """Returns accuracy (a fraction) and mean cross-entropy."""
        images, labels = split
        logits = self.logits(params, images)
        accuracy = float((logits.argmax(-1) == np.asarray(labels)).mean())
        return accuracy, float(cross_entropy(jnp.asarray(logits), labels))
