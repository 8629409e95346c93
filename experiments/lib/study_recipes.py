"""What the MNIST study trains: the published settings, their values-only twins, and variations."""

import dataclasses
from typing import Any, Protocol

from experiments.lib.optimizers import OptimizerName
from experiments.lib.study_networks import Network
from experiments.lib.study_training import FIRST_ORDER_FORWARDS, Recipe

OPTIMIZERS: tuple[OptimizerName, ...] = ("sgd", "momentum", "adagrad", "adam")
BACKPROP_RATES = {"sgd": 0.3, "momentum": 0.1, "adagrad": 0.3, "adam": 0.01}
VALUES_RATES = {"sgd": 0.3, "momentum": 0.03, "adagrad": 0.1, "adam": 0.01}
"""First learning rates (cosine to 1 %) of the small network, from sensitivity curves at a part of
the budget, one seed, on the validation part."""
PUBLISHED = {
    "cnn_sgd_dropout": 99.22,
    "cnn_adam": 99.41,
    "cnn_sgd": 98.92,
    "cnn_momentum": 99.05,
    "cnn_adagrad": 99.09,
    "cnn_adam_bn": 99.21,
}
"""Test accuracy in per cent that a student's study reports for these settings."""

RECIPES = (*PUBLISHED, "cnn_adam_shift", "cnn_momentum_shift", "cnn_adam_long")


class Settings(Protocol):
    """What the recipes read from the experiment's configuration."""

    epochs: float
    sample_forwards: float
    backprop_epochs: float
    num_directions: int
    sigma: float
    batch_size: int
    hidden: tuple[int, ...]
    pool: int | None


def cnn_recipes(settings: Settings, num_images: int, num_classes: int) -> dict[str, Recipe]:
    """Returns the recipes of the reference network, by back-propagation.

    The first six are the published settings (constant learning rate; batches of 64, which the study
    does not say). The last three are ours.

    Args:
        settings: The lengths.
        num_images: Of the training part.
        num_classes: Number of outputs.
    """
    plain = Network(num_classes)
    dropout = dataclasses.replace(plain, dropout=0.4)
    norm = dataclasses.replace(plain, batch_norm=True)
    budget = settings.epochs * FIRST_ORDER_FORWARDS * num_images

    def recipe(label: str, network: Network, optimizer: Any, rate: float, **more: Any) -> Recipe:
        more = {"schedule": "constant", "sample_forwards": budget} | more
        more["batch_size"] = min(64, num_images)
        return Recipe(f"CNN, {label}", network, optimizer, rate, **more)

    ours = {"schedule": "cosine", "shift": 2}
    return {
        "cnn_sgd_dropout": recipe("SGD, dropout, L2", dropout, "sgd", 0.022, l2=5e-4),
        "cnn_sgd": recipe("SGD, L1", plain, "sgd", 0.025, l1=1e-6),
        "cnn_momentum": recipe("momentum, L1", plain, "momentum", 0.025, momentum=0.7, l1=1e-6),
        "cnn_adagrad": recipe("AdaGrad, L1", plain, "adagrad", 0.25, l1=1e-6),
        "cnn_adam": recipe("Adam, L1", plain, "adam", 1e-3, l1=1e-6),
        "cnn_adam_bn": recipe("Adam, batch norm", norm, "adam", 1e-3),
        "cnn_adam_shift": recipe("Adam, dropout, shifts, cosine", dropout, "adam", 2e-3, **ours),
        "cnn_momentum_shift": recipe(
            "momentum, dropout, shifts, cosine", dropout, "momentum", 0.05, **ours
        ),
        "cnn_adam_long": recipe(
            "Adam, dropout, shifts, cosine, three times as long",
            dropout,
            "adam",
            2e-3,
            sample_forwards=3 * budget,
            **ours,
        ),
    }


def perceptron(settings: Settings, num_classes: int, **options: Any) -> Network:
    """Returns the small network that values alone train.

    Args:
        settings: Its sizes.
        num_classes: Number of outputs.
        **options: Such as `dropout`.
    """
    pool = settings.pool or 1
    return Network(num_classes, features=(), hidden=settings.hidden, pool=pool, **options)


def twin(
    settings: Settings,
    network: Network,
    optimizer: OptimizerName,
    num_images: int,
    *,
    values_only: bool,
    share: float = 1.0,
    **options: Any,
) -> Recipe:
    """Returns a recipe for the small network, by back-propagation or by values alone.

    Args:
        settings: Lengths and the estimator.
        network: What is trained.
        optimizer: By name.
        num_images: Of the training part.
        values_only: Estimate the gradient instead of computing it.
        share: Of the usual budget.
        **options: Fields of the recipe to set, such as `l1`.
    """
    names = {"sgd": "SGD", "momentum": "momentum", "adagrad": "AdaGrad", "adam": "Adam"}
    label = options.pop("label", names[optimizer])
    if not values_only:
        budget = settings.backprop_epochs * FIRST_ORDER_FORWARDS * num_images
        options = {
            "learning_rate": BACKPROP_RATES[optimizer],
            "batch_size": min(64, num_images),
        } | options
        return Recipe(
            f"back-propagation, {label}",
            network,
            optimizer,
            sample_forwards=share * budget,
            **options,
        )
    options = {
        "learning_rate": VALUES_RATES[optimizer],
        "batch_size": min(settings.batch_size, num_images),
        "num_directions": settings.num_directions,
        "sigma": settings.sigma,
    } | options
    budget = share * settings.sample_forwards
    return Recipe(f"values only, {label}", network, optimizer, sample_forwards=budget, **options)
