"""Data of the MNIST study on the device, and what a network says of them."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib.classifier import cross_entropy
from experiments.lib.data import Dataset, Split
from experiments.lib.study_networks import Network, with_statistics

_STATISTICS = 2_000  # training images behind the statistics of batch normalisation


class Pixels(NamedTuple):
    """Images with their labels on the device; pixels in [0, 1]."""

    images: jax.Array
    labels: jax.Array


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set on the device, and how its images enter a network.

    Attributes:
        name: Of the data set.
        train: Training part.
        validation: What everything is chosen by.
        test: Scored once, at the end.
        mean: Per pixel, over the training part.
        deviation: One number.
        class_names: One per label.
    """

    name: str
    train: Pixels
    validation: Pixels
    test: Pixels
    mean: jax.Array
    deviation: jax.Array
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, dataset: Dataset, limit: int | None = None) -> "Data":
        """Moves a data set to the device.

        Args:
            dataset: From `load_dataset`.
            limit: The most training images to keep.
        """

        def pixels(split: Split, count: int | None = None) -> Pixels:
            return Pixels(jnp.asarray(split.images[:count]), jnp.asarray(split.labels[:count]))

        images = dataset.train.images[:limit]
        return cls(
            dataset.name,
            pixels(dataset.train, limit),
            pixels(dataset.validation),
            pixels(dataset.test),
            jnp.asarray(images.mean(axis=0)),
            jnp.asarray(images.std()),
            dataset.class_names,
        )

    def prepare(self, images: jax.Array) -> jax.Array:
        """Centres every pixel and divides by one standard deviation."""
        return (images - self.mean) / self.deviation


def with_prediction(network: Network, params: Any, collections: Any, data: Data) -> Any:
    """Returns variables for prediction, with statistics of the first training images."""
    return _with_statistics(
        network, params, collections, data.prepare(data.train.images[:_STATISTICS])
    )


_with_statistics = jax.jit(with_statistics, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(network: Network, variables: Any, images: jax.Array) -> jax.Array:
    """Returns logits (n, classes) of prepared images."""
    return network.apply(variables, images)


def score(
    network: Network, variables: Any, data: Data, split: Pixels, batch: int = 2_500
) -> tuple[float, float]:
    """Returns accuracy (a fraction) and mean cross-entropy.

    Args:
        network: The module.
        variables: From `with_prediction`.
        data: How images are prepared.
        split: What is scored.
        batch: Images per pass; bounds the memory.
    """
    logits = predict(network, variables, data, split.images, batch)
    labels = np.asarray(split.labels)
    accuracy = float((logits.argmax(-1) == labels).mean())
    return accuracy, float(cross_entropy(jnp.asarray(logits), split.labels))


def predict(
    network: Network, variables: Any, data: Data, images: jax.Array, batch: int = 2_500
) -> np.ndarray:
    """Returns logits (n, classes) of images with pixels in [0, 1]."""
    starts = range(0, len(images), batch)
    parts = [logits_of(network, variables, data.prepare(images[i : i + batch])) for i in starts]
    return np.concatenate([np.asarray(part) for part in parts])
