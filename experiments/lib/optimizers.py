"""Optimisers and schedules by name."""

from typing import Literal

import optax

OptimizerName = Literal["adam", "adagrad", "sgd", "momentum"]
ScheduleName = Literal["constant", "cosine", "exponential"]


def build_schedule(
    name: ScheduleName, start: float, num_steps: int, final_fraction: float
) -> optax.Schedule:
    """Builds a schedule from `start` down to `start * final_fraction`.

    Args:
        name: `constant`, `cosine` or `exponential`.
        start: Value at step 0.
        num_steps: Steps until the final value.
        final_fraction: Final value, as a fraction of the first.
    """
    if name == "cosine":
        return optax.cosine_decay_schedule(start, num_steps, final_fraction)
    if name == "exponential":
        return optax.exponential_decay(start, num_steps, final_fraction)
    return optax.constant_schedule(start)


def build_optimizer(
    name: OptimizerName, learning_rate: optax.ScalarOrSchedule, momentum: float = 0.9
) -> optax.GradientTransformation:
    """Builds an optimiser.

    Args:
        name: `adam`, `adagrad`, `sgd`, or `momentum` (heavy ball).
        learning_rate: A number or a schedule.
        momentum: Of the heavy ball.
    """
    if name == "adam":
        return optax.adam(learning_rate)
    if name == "adagrad":
        return optax.adagrad(learning_rate)
    return optax.sgd(learning_rate, momentum=momentum if name == "momentum" else None)
