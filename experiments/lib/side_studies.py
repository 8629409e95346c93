"""Three smaller questions: number of directions, guided directions, and the scale of estimates."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import zojax
from experiments.lib import comparison
from experiments.lib.contenders import CONTENDERS, Contender, Setting
from experiments.lib.problems import Problem
from zojax.trees import ravel

SWEEP = ("gaussian", "sphere", "orthogonal", "hadamard", "coordinate_difference(n)")
OVERLAPS = (0.0, 0.1, 0.3, 0.6, 0.9)
ALPHAS = (0.5, 0.9, 0.99)
SCALE_SIGMAS = (0.1, 0.01)
SCALE_NUMBERS = (8, 64, 256)
_SCALE_SHAPE = (16, 20)


def sweep_directions(
    problem: Problem, seeds: Sequence[int], replicates: int, fractions: Sequence[float]
) -> list[dict[str, Any]]:
    """Relative mean squared error against the number of directions, central stencil.

    Args:
        problem: Best a quadratic: there a central difference is exact.
        seeds: Of the points.
        replicates: Estimates per point.
        fractions: Numbers of directions over d.
    """
    paths = comparison.make_paths(problem)(comparison.initial_params(problem, seeds), seeds)
    d, rows = problem.dimension, []
    for label in SWEEP:
        for number in (max(2, round(fraction * d)) for fraction in fractions):
            contender = CONTENDERS[label]
            est = contender.build(problem.setting._replace(queries=2 * number))
            source = comparison.from_estimator(est, problem)
            trainer = comparison.Trainer(problem, source, width=len(seeds) * replicates)
            estimates = trainer.measure(paths, replicates)
            found = comparison.judge(estimates, paths.gradient, source.queries)
            law = contender.law(d, number, paths.tree)  # type: ignore[misc]
            rows.append(
                {
                    "label": label,
                    "directions": number,
                    "queries": source.queries,
                    "error": found["error"],
                    "cosine": found["cosine"],
                    "law": law,
                }
            )
    return rows


def study_guides(problem: Problem, seeds: Sequence[int], replicates: int) -> dict[str, Any]:
    """Cosine of guided directions against how well the surrogate knows the gradient.

    The surrogate is a unit vector with cosine rho to the true gradient, otherwise random.

    Args:
        problem: Where.
        seeds: Of the points.
        replicates: Estimates per point.
    """
    paths = comparison.make_paths(problem)(comparison.initial_params(problem, seeds), seeds)
    d, number = problem.dimension, problem.queries // 2

    def one(index: Any, key: jax.Array, rho: Any, alpha: Any, is_guided: Any, data: Any) -> Any:
        params = jax.tree.map(lambda x: x[index, -1], paths.params)
        batch_key = jax.random.fold_in(paths.batch_keys[index], comparison.PATH_STEPS)
        batch = problem.sample(batch_key, data)
        truth = jnp.asarray(paths.gradient, "float32")[index]
        truth = truth / jnp.linalg.norm(truth)
        random = jax.random.normal(jax.random.fold_in(key, 0), (d,))
        random = random - jnp.vdot(random, truth) * truth
        surrogate = rho * truth + jnp.sqrt(1 - rho**2) * random / jnp.linalg.norm(random)
        # Without a usable surrogate the directions are Gaussian.
        surrogate = zojax.trees.split(jnp.where(is_guided, surrogate, 0), params)
        est = zojax.finite_difference(
            directions=zojax.guided(1, alpha, "updates"),
            num_directions=number,
            sigma=problem.sigma,
        )
        state = est.guide(est.init(params), surrogate)  # type: ignore[misc]
        result, _ = zojax.estimate(
            est, problem.loss_fn, params, jax.random.fold_in(key, 1), state, args=(batch,)
        )
        grad = ravel(result.grad)
        return jnp.vdot(grad, truth) / jnp.linalg.norm(grad)

    @jax.jit
    def cosines(rho: Any, alpha: Any, is_guided: Any, data: Any) -> Any:
        keys = jax.random.split(jax.random.key(2), replicates)

        def at_seed(index: Any) -> Any:
            run = lambda key: one(index, key, rho, alpha, is_guided, data)  # noqa: E731
            return jnp.mean(jax.lax.map(run, keys, batch_size=16))

        return jax.lax.map(at_seed, jnp.arange(len(seeds)))

    def measure(rho: float, alpha: float, is_guided: bool) -> list[float]:
        return np.asarray(cosines(rho, alpha, is_guided, problem.data), float).tolist()

    rows = [
        {
            "alpha": alpha,
            "overlap": rho,
            "cosine": measure(rho, alpha, True),
            "law": guided_cosine(d, number, rho, alpha),
        }
        for alpha in ALPHAS
        for rho in OVERLAPS
    ]
    return {
        "problem": problem.title,
        "queries": 2 * number,
        "rows": rows,
        "gaussian": measure(0.0, 0.5, False),
        "gaussian_law": (1 + (d + 1) / number) ** -0.5,
    }


def guided_cosine(d: int, n: int, rho: float, alpha: float) -> float:
    """Expected cosine of guided directions with one guide, on a linear loss.

    With M = E[s eps^T] and a the unit gradient it is a.Ma over the root of
    E|estimate|^2 = (d a.Ma + 2 |Ma|^2) / n + (1 - 1/n) |Ma|^2.

    Args:
        d: Dimension.
        n: Directions.
        rho: Cosine of guide and gradient.
        alpha: Share of the variance that is spread over all dimensions.
    """
    along = alpha + (1 - alpha) * d * rho**2
    square = alpha**2 + ((1 - alpha) ** 2 * d**2 + 2 * alpha * (1 - alpha) * d) * rho**2
    return along / ((d * along + 2 * square) / n + (1 - 1 / n) * square) ** 0.5


def scale_contenders() -> list[Contender]:
    """The estimators of the gradient itself."""
    example = {"w": jnp.zeros(_SCALE_SHAPE)}
    setting = Setting(16, 0.1, example, 1.0)
    return [c for c in CONTENDERS.values() if c.build(setting).preserves_scale]


def check_scale(samples: int, numbers: Sequence[int] = SCALE_NUMBERS) -> list[dict[str, Any]]:
    """Ratio of the mean estimate to the gradient of a linear loss, for each estimator.

    The ratio is (estimate . gradient) / |gradient|^2, averaged over independent estimates, with
    its standard error. An estimator with a memory is measured at its second step.

    Args:
        samples: Directions in all for each ratio; n of them go into one estimate.
        numbers: Directions per estimate n.
    """
    shape = _SCALE_SHAPE
    slope = jax.random.normal(jax.random.key(3), shape)
    params = {"w": jax.random.normal(jax.random.key(4), shape)}

    def loss_fn(params: Any) -> jax.Array:
        return jnp.sum(slope * (params["w"] - jax.random.normal(jax.random.key(4), shape))) + 1

    rows = []
    for contender in scale_contenders():
        for number in numbers:
            replicates = max(16, samples // number)
            ratio = jax.jit(_make_ratio(contender, number, loss_fn, params, slope, replicates))
            for sigma in SCALE_SIGMAS:
                values = np.asarray(ratio(sigma), np.float64)
                rows.append(
                    {
                        "label": contender.label,
                        "directions": number,
                        "sigma": sigma,
                        "ratio": float(values.mean()),
                        "error": float(values.std(ddof=1) / len(values) ** 0.5),
                    }
                )
    return rows


def _make_ratio(
    contender: Contender, number: int, loss_fn: Any, params: Any, slope: Any, replicates: int
) -> Any:
    def one(key: jax.Array, sigma: Any) -> jax.Array:
        est = _with_directions(contender, number, sigma, params)
        state = est.init(params)
        for index in range(2 if est.is_stateful else 1):
            step_key = jax.random.fold_in(key, index)
            result, state = zojax.estimate(est, loss_fn, params, step_key, state)
        return jnp.sum(result.grad["w"] * slope) / jnp.sum(slope**2)

    def all_(sigma: Any) -> jax.Array:
        keys = jax.random.split(jax.random.key(5), replicates)
        return jax.lax.map(lambda key: one(key, sigma), keys, batch_size=8)

    return all_


def _with_directions(contender: Contender, number: int, sigma: Any, params: Any) -> Any:
    """Builds the contender with exactly `number` directions."""
    for queries in (2 * number, number + 1, number):
        est = contender.build(Setting(queries, sigma, params, 1.0))
        if est.num_directions(params) == number:
            return est
    raise ValueError(f"{contender.label} cannot have {number} directions")
