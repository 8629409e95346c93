"""The studies of `experiments.surfing`: surfing beside direct descent on one generator.

Every study yields rows of metrics. Both methods make the same number of steps from the same starts;
the learning rate (and what else is named) is chosen for each of them, at equal effort, on other
targets than those that are reported.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

import zojax
from experiments.lib.generator_store import Generator
from experiments.lib.sparse_recovery import BASES, recover
from experiments.lib.surfing_problems import (
    METHODS,
    Effort,
    MethodName,
    Problem,
    Solver,
    make_problem,
    only_active,
    scores,
)
from zojax import inverse

Row = dict[str, Any]
StudyName = Literal["success", "compressed", "values", "one_bit"]

IMAGES = "images"
"""Key of a row's images by name, (n, height, width, 1); not a metric."""

_TARGETS, _TUNING, _SOLVING, _OPERATOR, _THRESHOLDS = range(5)  # what a key is for
_RECOVERED = 0.05  # an image counts as recovered from bits below this share of their variance
_PRIOR_WEIGHT = 1e-3
_SIGMA = 1e-3  # of coordinate-wise differences: small against a piece of the generator


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
            generator, config.num_targets, self.key(_TARGETS), config.num_restarts
        )
        self.tuning = make_problem(
            generator, config.num_tuning, self.key(_TUNING), config.num_restarts
        )
        self.about = {"latent_dim": generator.info["latent_dim"], "seed": seed}

    def key(self, purpose: int) -> jax.Array:
        """Returns the key for a purpose.

        Args:
            purpose: One of the constants above.
        """
        return jax.random.fold_in(self._key, purpose)

    def effort(self, prior_weight: float = 0.0) -> Effort:
        """Returns the configured numbers of steps.

        Args:
            prior_weight: See `zojax.inverse.surf`.
        """
        return Effort(self.config.num_steps, self.config.polish_steps, prior_weight)

    def tuned(self, solver: Solver, starts: jax.Array, *targets: Any) -> tuple[float, float]:
        """Returns the learning rate with most losses below the tolerance, and the seconds of that.

        Args:
            solver: Whose rate is chosen.
            starts: Of the targets for tuning.
            *targets: The same.
        """
        merits, seconds = [], 0.0
        for rate in self.config.learning_rates:
            found, taken = solver(rate, starts, self.key(_SOLVING), *targets)
            merits.append(merit(found.value))
            seconds += taken
        best = max(range(len(merits)), key=merits.__getitem__)
        return self.config.learning_rates[best], seconds


def merit(values: np.ndarray) -> tuple[float, float]:
    """What learning rates are chosen by: the share of small losses, then the mean loss.

    Args:
        values: Losses, (n,).
    """
    finite = np.where(np.isfinite(values), values, 1e9)
    return round(float(np.mean(finite < 1e-5)), 3), -float(np.mean(finite))


def success(bench: Bench) -> Iterator[Row]:
    """Recovers the latents of generated images.

    Where the generator ignores some latents it also searches the others alone (variant "active"),
    and with a weak prior on the way (variant "prior").

    Args:
        bench: The generator.
    """
    variants = {"all": (bench.problem, bench.tuning, 0.0)}
    if not bench.problem.active.all():
        variants["active"] = (only_active(bench.problem), only_active(bench.tuning), 0.0)
        variants["prior"] = (bench.problem, bench.tuning, _PRIOR_WEIGHT)
    for variant, (problem, tuning, prior_weight) in variants.items():
        loss_fn = inverse.reconstruction_loss(problem.generate)
        for method in METHODS:
            solver = Solver(method, loss_fn, problem.snapshots, bench.effort(prior_weight))
            rate, _ = bench.tuned(solver, tuning.starts, tuning.images)
            found, seconds = solver(rate, problem.starts, bench.key(_SOLVING), problem.images)
            yield {
                "study": "success",
                **bench.about,
                "variant": variant,
                "method": method,
                "learning_rate": rate,
                "num_active": int(bench.problem.active.sum()),
                **scores(problem, found),
                "seconds": seconds,
                IMAGES: {"target": problem.images, method: problem.images_of(found.x)},
            }


def values(bench: Bench) -> Iterator[Row]:
    """Recovers latents by values alone: coordinate-wise differences, 2 k queries a step.

    Args:
        bench: The generator.
    """
    problem, tuning = bench.problem, bench.tuning
    loss_fn = inverse.reconstruction_loss(problem.generate)
    est = zojax.coordinate_difference(sigma=_SIGMA)
    for method in METHODS:
        exact = Solver(method, loss_fn, problem.snapshots, bench.effort())
        rate, _ = bench.tuned(exact, tuning.starts, tuning.images)
        by_values = Solver(method, loss_fn, problem.snapshots, bench.effort(), est)
        for gradient, solver in (("exact", exact), ("values", by_values)):
            found, seconds = solver(rate, problem.starts, bench.key(_SOLVING), problem.images)
            yield {
                "study": "values",
                **bench.about,
                "variant": gradient,
                "method": method,
                "learning_rate": rate,
                **scores(problem, found),
                "seconds": seconds,
            }


def compressed(bench: Bench) -> Iterator[Row]:
    """Recovers images from m Gaussian measurements: generated ones, and real test images.

    Args:
        bench: The generator.
    """
    problem, tuning = bench.problem, bench.tuning
    num_pixels = problem.images[0].size
    real = jnp.asarray(bench.test_images[: bench.config.num_images])
    for factor in bench.config.measurement_factors:
        count = factor * bench.about["latent_dim"]
        if count > num_pixels:
            continue
        key = jax.random.fold_in(bench.key(_OPERATOR), count)
        operator = inverse.gaussian_operator(key, count, num_pixels)
        loss_fn = inverse.reconstruction_loss(problem.generate, operator)
        measure = jax.jit(jax.vmap(operator))
        about = {"study": "compressed", **bench.about, "num_measurements": count, "factor": factor}
        for method in METHODS:
            solver = Solver(method, loss_fn, problem.snapshots, bench.effort())
            rate, _ = bench.tuned(solver, tuning.starts, measure(tuning.images))
            found, seconds = solver(
                rate, problem.starts, bench.key(_SOLVING), measure(problem.images)
            )
            on_real, _ = solver(
                rate, problem.starts[: len(real)], bench.key(_SOLVING), measure(real)
            )
            errors = (problem.images_of(on_real.x) - np.asarray(real)) ** 2
            yield {
                **about,
                "method": method,
                "learning_rate": rate,
                **scores(problem, found),
                "real_mse": float(errors.mean()),
                "seconds": seconds,
                IMAGES: {"target": real, method: problem.images_of(on_real.x)},
            }
        for basis in BASES:
            found = recover(basis, np.asarray(operator.matrix), np.asarray(measure(problem.images)))
            real_found = recover(basis, np.asarray(operator.matrix), np.asarray(measure(real)))
            yield {
                **about,
                "method": f"lasso_{basis}",
                "pixel_mse": _mean_error(found, problem.images),
                "real_mse": _mean_error(real_found, real),
                IMAGES: {f"lasso_{basis}": real_found.reshape(real.shape)},
            }


def one_bit(bench: Bench) -> Iterator[Row]:
    """Recovers images from signs of measurements, where no gradient exists.

    The loss is the share of wrong bits. Gaussian smoothing of the latents makes descent possible;
    its width is chosen with the learning rate. As many queries for both methods.

    Args:
        bench: The generator.
    """
    config, problem, tuning = bench.config, bench.problem, bench.tuning
    operator = dithered_operator(bench)
    squared = inverse.reconstruction_loss(problem.generate, operator)

    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return squared(params, x, y) / (2 * config.num_bits)  # the share of wrong bits

    measure = jax.jit(jax.vmap(operator))
    bits, tuning_bits = measure(problem.images), measure(tuning.images)
    for method in METHODS:
        tried = {
            sigma: bit_solver(method, loss_fn, problem, config, sigma) for sigma in config.smoothing
        }
        merits = {}
        for sigma, rate in itertools.product(tried, config.learning_rates):
            found, _ = tried[sigma](rate, tuning.starts, bench.key(_SOLVING), tuning_bits)
            merits[sigma, rate] = -float(np.mean(found.value))
        sigma, rate = max(merits, key=merits.__getitem__)
        found, seconds = tried[sigma](rate, problem.starts, bench.key(_SOLVING), bits)
        images = problem.images_of(found.x)
        reference = np.asarray(problem.images)
        error = np.mean((images - reference) ** 2, axis=(1, 2, 3))
        spread = np.mean((reference - reference.mean(axis=0)) ** 2)
        yield {
            "study": "one_bit",
            **bench.about,
            "method": method,
            "learning_rate": rate,
            "sigma": sigma,
            "num_bits": config.num_bits,
            "wrong_bits": float(np.mean(found.value)),
            **scores(problem, found),
            "recovered": float(np.mean(error < _RECOVERED * spread)),
            "seconds": seconds,
            IMAGES: {"target": problem.images, method: images},
        }


def dithered_operator(bench: Bench) -> inverse.Operator:
    """One-bit measurements with thresholds spread as the measurements themselves are.

    Args:
        bench: The generator.
    """
    count, images = bench.config.num_bits, bench.tuning.images
    pixels = images.reshape(len(images), -1)
    key = bench.key(_OPERATOR)
    matrix = jax.random.normal(key, (count, pixels.shape[1])) / jnp.sqrt(count)
    seen = pixels @ matrix.T
    noise = jax.random.normal(bench.key(_THRESHOLDS), (count,))
    thresholds = jnp.mean(seen) + jnp.std(seen) * noise
    return inverse.one_bit(lambda image: matrix @ jnp.ravel(image), thresholds)


def bit_solver(
    method: MethodName,
    loss_fn: Callable[..., Any],
    problem: Problem,
    config: Settings,
    sigma: float,
) -> Solver:
    """Returns a solver by values with Gaussian smoothing.

    Args:
        method: Which.
        loss_fn: Share of wrong bits.
        problem: With the snapshots.
        config: The configuration.
        sigma: Width of the smoothing, in latents.
    """
    latent_dim = problem.latents.shape[1]
    est = zojax.finite_difference(
        directions=zojax.gaussian(), num_directions=2 * latent_dim, sigma=sigma
    )
    effort = Effort(config.bit_steps, config.bit_steps * 10)
    return Solver(method, loss_fn, problem.snapshots, effort, est)


STUDIES: dict[StudyName, Callable[[Bench], Iterator[Row]]] = {
    "success": success,
    "values": values,
    "compressed": compressed,
    "one_bit": one_bit,
}


def _mean_error(found: np.ndarray, images: Any) -> float:
    reference = np.asarray(images).reshape(len(images), -1)
    return float(np.mean((found.reshape(reference.shape) - reference) ** 2))
