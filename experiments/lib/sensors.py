"""Sensor selection: the problem, its convex relaxation, greedy choice and local search."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Sensors(NamedTuple):
    """Measurement vectors a[t, i], the same instance for NumPy and for the black box.

    Attributes:
        vectors: (T, m, n), float64.
        loss: The black box, `x -> -(1/T) sum_t log det(sum_i x_i a_it a_it')`; NaN where a matrix
            is not positive definite.
    """

    vectors: np.ndarray
    loss: Callable[[jax.Array], jax.Array]


def make_sensors(num_sensors: int, dimension: int, num_times: int, seed: int) -> Sensors:
    """Draws measurement vectors; some sensors are better than others.

    Args:
        num_sensors: m.
        dimension: n, unknowns to be estimated.
        num_times: T.
        seed: Of the draw.
    """
    random = np.random.RandomState(seed)
    quality = random.uniform(0.5, 1.5, (1, num_sensors, 1))
    vectors = quality * random.randn(num_times, num_sensors, dimension)
    a = jnp.asarray(vectors, float)  # float64 where that is enabled

    def loss(x: jax.Array) -> jax.Array:
        information = jnp.einsum("tmi,m,tmj->tij", a, x, a)
        diagonal = jnp.diagonal(jnp.linalg.cholesky(information), axis1=-2, axis2=-1)
        return -2 * jnp.mean(jnp.sum(jnp.log(diagonal), axis=-1))

    return Sensors(vectors, loss)


def exact_value(sensors: Sensors, x: np.ndarray, ridge: float = 0.0) -> float:
    """Returns the mean log det in float64; minus infinity where a matrix is singular."""
    a = sensors.vectors
    information = np.einsum("tmi,m,tmj->tij", a, x, a) + ridge * np.eye(a.shape[2])
    signs, values = np.linalg.slogdet(information)
    return float(values.mean()) if (signs > 0).all() else -np.inf


def relaxation(sensors: Sensors, count: int) -> tuple[float, np.ndarray, float]:
    """Solves the convex relaxation with true gradients in float64.

    Args:
        sensors: The instance.
        count: m0.

    Returns:
        A certified upper bound on every choice (value plus duality gap), the relaxed solution, and
        the duality gap.
    """
    import scipy.optimize

    a = sensors.vectors

    def value_and_slope(x: np.ndarray) -> tuple[float, np.ndarray]:
        information = np.einsum("tmi,m,tmj->tij", a, x, a)
        inverse = np.linalg.inv(information)
        slope = np.einsum("tmi,tij,tmj->m", a, inverse, a) / len(a)
        return -np.linalg.slogdet(information)[1].mean(), -slope

    num_sensors = a.shape[1]
    result = scipy.optimize.minimize(
        value_and_slope,
        np.full(num_sensors, count / num_sensors),
        jac=True,
        bounds=[(0, 1)] * num_sensors,
        constraints={"type": "eq", "fun": lambda x: x.sum() - count, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 500},
    )
    x = np.clip(result.x, 0, 1)
    x *= count / x.sum()
    value, slope = value_and_slope(x)
    gap = slope @ x - np.sort(slope)[:count].sum()  # of Frank and Wolfe: f(x) - f* is no larger
    return float(-value + gap), x, float(gap)


def greedy(sensors: Sensors, count: int) -> tuple[float, np.ndarray, int]:
    """Adds the sensor that helps most, `count` times (with a ridge while matrices are singular).

    Args:
        sensors: The instance.
        count: m0.

    Returns:
        The value, the choice as zeros and ones, and the evaluations it took.
    """
    a = sensors.vectors
    num_times, num_sensors, dimension = a.shape
    choice = np.zeros(num_sensors)
    information = np.tile(1e-6 * np.eye(dimension), (num_times, 1, 1))
    for _ in range(count):
        inverse = np.linalg.inv(information)
        # det(M + a a') = det(M) (1 + a' M^-1 a): the same choices as by evaluating log det.
        gain = np.log1p(np.einsum("tmi,tij,tmj->tm", a, inverse, a)).mean(0)
        best = int(np.argmax(np.where(choice > 0, -np.inf, gain)))
        choice[best] = 1
        information += np.einsum("ti,tj->tij", a[:, best], a[:, best])
    evaluations = sum(num_sensors - taken for taken in range(count))
    return exact_value(sensors, choice), choice, evaluations


def round_to_choice(x: np.ndarray, count: int) -> np.ndarray:
    """Returns ones at the `count` largest entries."""
    choice = np.zeros(len(x))
    choice[np.argsort(-x, kind="stable")[:count]] = 1
    return choice


def improve_by_swaps(
    sensors: Sensors, choice: np.ndarray, x: np.ndarray, width: int = 10, passes: int = 20
) -> tuple[float, np.ndarray, int]:
    """Swaps one chosen sensor against one that is not, as long as a value improves.

    Args:
        sensors: The instance.
        choice: Zeros and ones.
        x: The relaxed solution: the `width` chosen sensors with the smallest entries are tried
            against the `width` others with the largest.
        width: Candidates on either side.
        passes: The best swap is taken at most so many times.

    Returns:
        The value, the choice and the evaluations.
    """
    value, choice, evaluations = exact_value(sensors, choice), choice.copy(), 1
    for _ in range(passes):
        order = np.argsort(x, kind="stable")
        outgoing = [i for i in order if choice[i] > 0][:width]
        incoming = [i for i in order[::-1] if choice[i] == 0][:width]
        trials: list[tuple[float, int, int]] = []
        for i in outgoing:
            for j in incoming:
                choice[i], choice[j] = 0, 1
                trials.append((exact_value(sensors, choice), i, j))
                choice[i], choice[j] = 1, 0
        evaluations += len(trials)
        best, i, j = max(trials)
        if not best > value:
            break
        value, choice[i], choice[j] = best, 0, 1
    return value, choice, evaluations


def kl_projection(v: Any, total: float) -> jax.Array:
    """Projects positive weights onto {0 <= x <= 1, sum x = total} in the entropy's geometry.

    x = min(1, c v): after a step of `zojax.mirror_descent`, which knows no upper bound, this makes
    the pair mirror descent on the capped simplex.

    Args:
        v: Positive weights.
        total: The sum, below the number of weights.
    """
    logs = jnp.log(jnp.maximum(v, 1e-30))

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        is_large = jnp.sum(jnp.exp(jnp.minimum(logs + middle, 0))) > total
        return jnp.where(is_large, low, middle), jnp.where(is_large, middle, high)

    start = (-jnp.max(logs) - 10, -jnp.min(logs))
    low, high = jax.lax.fori_loop(0, 60, halve, start)
    x = jnp.exp(jnp.minimum(logs + 0.5 * (low + high), 0))
    free = x < 1  # rounding leaves a little, which they share in proportion
    wanted = total - jnp.sum(~free)
    return jnp.where(free, x * wanted / jnp.maximum(jnp.sum(x * free), 1e-30), 1)
