"""Studies of `experiments.surfing` in which little is seen of the image."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import zojax
from experiments.lib.sparse_recovery import BASES, BasisName, recover
from experiments.lib.surfing_bench import (
    IMAGES,
    OPERATOR,
    SOLVING,
    THRESHOLDS,
    Bench,
    Row,
    Settings,
)
from experiments.lib.surfing_problems import METHODS, Effort, MethodName, Problem, Solver, scores
from zojax import inverse

_PENALTIES = (0.3, 0.1, 0.03, 0.01, 0.003)  # of the lasso, from which each basis takes its best
_RECOVERED = 0.05  # an image counts as recovered from bits below this share of their variance


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
        key = jax.random.fold_in(bench.key(OPERATOR), count)
        operator = inverse.gaussian_operator(key, count, num_pixels)
        loss_fn = inverse.reconstruction_loss(problem.generate, operator)
        measure = jax.jit(jax.vmap(operator))
        about = {"study": "compressed", **bench.about, "num_measurements": count, "factor": factor}
        for method in METHODS:
            solver = Solver(method, loss_fn, problem.snapshots, bench.effort)
            rate = bench.tuned(solver, tuning, measure(tuning.images))
            starts = problem.starts_for(method)
            found, seconds = solver(rate, starts, bench.key(SOLVING), measure(problem.images))
            on_real, _ = solver(rate, starts[: len(real)], bench.key(SOLVING), measure(real))
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
        matrix = np.asarray(operator.matrix)
        seen, seen_real = np.asarray(measure(problem.images)), np.asarray(measure(real))
        for basis in BASES:
            penalty = _tuned_penalty(basis, matrix, np.asarray(measure(tuning.images)), tuning)
            found = recover(basis, matrix, seen, penalty)
            real_found = recover(basis, matrix, seen_real, penalty)
            yield {
                **about,
                "method": f"lasso_{basis}",
                "penalty": penalty,
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
            starts = tuning.starts_for(method)
            found, _ = tried[sigma](rate, starts, bench.key(SOLVING), tuning_bits)
            merits[sigma, rate] = -float(np.mean(found.value))
        sigma, rate = max(merits, key=merits.__getitem__)
        starts = problem.starts_for(method)
        found, seconds = tried[sigma](rate, starts, bench.key(SOLVING), bits)
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
    key = bench.key(OPERATOR)
    matrix = jax.random.normal(key, (count, pixels.shape[1])) / jnp.sqrt(count)
    seen = pixels @ matrix.T
    noise = jax.random.normal(bench.key(THRESHOLDS), (count,))
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


def _mean_error(found: np.ndarray, images: Any) -> float:
    reference = np.asarray(images).reshape(len(images), -1)
    return float(np.mean((found.reshape(reference.shape) - reference) ** 2))


def _tuned_penalty(
    basis: BasisName, matrix: np.ndarray, seen: np.ndarray, tuning: Problem
) -> float:
    def error(penalty: float) -> float:
        return _mean_error(recover(basis, matrix, seen, penalty), tuning.images)

    return min(_PENALTIES, key=error)
