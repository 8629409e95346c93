"""What all studies of `experiments.surfing` share: a generator, its targets, learning rates."""

import dataclasses
import functools
from typing import Any, Protocol

import jax
import numpy as np

from experiments.lib.generator_store import Generator
from experiments.lib.surfing_problems import (
    Effort,
    MethodName,
    Problem,
    Solver,
    make_problem,
    only_active,
)
from zojax import inverse

Row = dict[str, Any]
IMAGES = "images"
"""Key of a row's images by name, (n, height, width, 1); not a metric."""

TARGETS, TUNING, SOLVING, OPERATOR, THRESHOLDS = range(5)
"""What a key is for."""

_PRIOR_WEIGHT = 1e-3


class Settings(Protocol):
    """What the studies read from the experiment's configuration."""

    num_targets: int
    num_tuning: int
    num_restarts: int
    num_steps: int
    polish_steps: int
    learning_rates: tuple[float, ...]
    measurement_factors: tuple[int, ...]
    num_images: int
    num_bits: int
    smoothing: tuple[float, ...]
    bit_steps: int


class Bench:
    """One generator with its targets, and the learning rates that were chosen."""

    def __init__(
        self, config: Settings, generator: Generator, test_images: np.ndarray, seed: int
    ) -> None:
        """Draws the targets.

        Args:
            config: The configuration.
            generator: A trained one.
            test_images: Of the data set.
            seed: Of everything drawn.
        """
        self.config, self.test_images = config, test_images
        self.steps = generator.steps
        self._key = jax.random.key(seed)
        self.problem = make_problem(
            generator, config.num_targets, self.key(TARGETS), config.num_restarts
        )
        tuning = make_problem(generator, config.num_tuning, self.key(TUNING), config.num_restarts)
        # One answer to which latents are active, for both.
        self.tuning = dataclasses.replace(tuning, sensitivity=self.problem.sensitivity)
        self._solved: dict[Any, tuple[inverse.Surfed, float, float]] = {}
        self.about = {"latent_dim": generator.info["latent_dim"], "seed": seed}

    def key(self, purpose: int) -> jax.Array:
        """Returns the key for a purpose.

        Args:
            purpose: One of the constants above.
        """
        return jax.random.fold_in(self._key, purpose)

    @property
    def effort(self) -> Effort:
        """The configured numbers of steps."""
        return Effort(self.config.num_steps, self.config.polish_steps)

    def tuned(self, solver: Solver, tuning: Problem, *targets: Any) -> float:
        """Returns the learning rate with most losses below the tolerance.

        Args:
            solver: Whose rate is chosen.
            tuning: The problem for tuning.
            *targets: What of it the loss compares with.
        """

        def merit_of(rate: float) -> tuple[float, float]:
            starts = tuning.starts_for(solver.method)
            return merit(solver(rate, starts, self.key(SOLVING), *targets)[0].value)

        return max(self.config.learning_rates, key=merit_of)

    def solved(self, method: MethodName, variant: str = "all") -> tuple[Any, float, float]:
        """Solves a variant of the problem by exact gradients, once.

        Args:
            method: By what.
            variant: "all" latents are searched, the "active" ones alone, or all with a weak "prior"
                on the way.

        Returns:
            What was found, the learning rate, and the seconds.
        """
        if (method, variant) not in self._solved:
            problem, tuning = self.variants[variant]
            loss_fn = inverse.reconstruction_loss(problem.generate)
            effort = self.effort
            if variant == "prior":
                effort = dataclasses.replace(effort, options={"prior_weight": _PRIOR_WEIGHT})
            solver = Solver(method, loss_fn, problem.snapshots, effort)
            rate = self.tuned(solver, tuning, tuning.images)
            starts = problem.starts_for(method)
            found, seconds = solver(rate, starts, self.key(SOLVING), problem.images)
            self._solved[method, variant] = found, rate, seconds
        return self._solved[method, variant]

    @functools.cached_property
    def variants(self) -> dict[str, tuple[Problem, Problem]]:
        """The problem and that for tuning, and what is reduced of them where latents are flat."""
        found = {"all": (self.problem, self.tuning)}
        if not self.problem.active.all():
            found["active"] = (only_active(self.problem), only_active(self.tuning))
            found["prior"] = found["all"]
        return found


def merit(values: np.ndarray) -> tuple[float, float]:
    """What learning rates are chosen by: the share of small losses, then the mean loss.

    Args:
        values: Losses, (n,).
    """
    finite = np.where(np.isfinite(values), values, 1e9)
    return round(float(np.mean(finite < 1e-5)), 3), -float(np.mean(finite))
