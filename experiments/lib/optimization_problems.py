"""Small problems with known solutions, on which optimisers are compared."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Problem(NamedTuple):
    """What an optimiser sees (losses) and how it is judged (`measure`).

    Attributes:
        init: `key -> params`.
        sample: `(key, data) -> batch`.
        loss: `(params, batch) -> scalar`.
        full: `(params, data) -> scalar`, the loss of all the data.
        measure: `(params, data) -> {name: array}`, taken along a run; not counted.
        data: Passed to the compiled programs as an argument.
    """

    init: Callable[[jax.Array], Any]
    sample: Callable[[jax.Array, Any], Any]
    loss: Callable[[Any, Any], jax.Array]
    full: Callable[[Any, Any], jax.Array]
    measure: Callable[[Any, Any], dict[str, Any]]
    data: Any


def deterministic(loss: Callable[[Any], jax.Array], start: Any, **measures: Any) -> Problem:
    """Makes a problem of a loss without data.

    Args:
        loss: `params -> scalar`.
        start: Initial parameters.
        **measures: `params -> array` each.
    """
    return Problem(
        init=lambda key: start,
        sample=lambda key, data: (),
        loss=lambda params, batch: loss(params),
        full=lambda params, data: loss(params),
        measure=lambda params, data: {name: f(params) for name, f in measures.items()},
        data=(),
    )


class FiniteSum(NamedTuple):
    """Logistic regression, mean over N examples.

    Attributes:
        problem: Measures `gap`, the loss above its minimum.
        num_examples: N.
    """

    problem: Problem
    num_examples: int


def logistic_regression(
    num_examples: int = 500, dimension: int = 30, batch_size: int = 10, seed: int = 0
) -> FiniteSum:
    """Makes a logistic regression with correlated features and labels that cannot be separated.

    Args:
        num_examples: N.
        dimension: d.
        batch_size: Examples per batch, drawn with replacement.
        seed: Of the data.
    """
    random = np.random.RandomState(seed)
    position = np.arange(dimension)
    factor = np.linalg.cholesky(0.7 ** np.abs(position[:, None] - position[None, :]))
    features = random.randn(num_examples, dimension) @ factor.T
    truth = random.randn(dimension) / np.sqrt(dimension) * 2
    labels = np.where(random.rand(num_examples) < 1 / (1 + np.exp(-features @ truth)), 1.0, -1.0)
    weight_decay = 0.01
    optimum = _newton(features, labels, weight_decay)

    def loss(w: jax.Array, batch: Any) -> jax.Array:
        a, y = batch
        return jnp.mean(jax.nn.softplus(-y * (a @ w))) + weight_decay / 2 * jnp.sum(w**2)

    def sample(key: jax.Array, data: Any) -> Any:
        chosen = jax.random.randint(key, (batch_size,), 0, num_examples)
        return data[0][chosen], data[1][chosen]

    problem = Problem(
        init=lambda key: jnp.zeros(dimension),
        sample=sample,
        loss=loss,
        full=loss,
        measure=lambda w, data: {"gap": loss(w, data) - optimum},
        data=(jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.float32)),
    )
    return FiniteSum(problem, num_examples)


def _newton(features: np.ndarray, labels: np.ndarray, weight_decay: float) -> float:
    w = np.zeros(features.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(labels * (features @ w)))
        gradient = -features.T @ (labels * p) / len(labels) + weight_decay * w
        curvature = (features.T * (p * (1 - p))) @ features / len(labels)
        w = w - np.linalg.solve(curvature + weight_decay * np.eye(len(w)), gradient)
    values = np.logaddexp(0, -labels * (features @ w))
    return float(values.mean() + weight_decay / 2 * w @ w)


class Lasso(NamedTuple):
    """|A x - b|^2 / (2 n) + weight |x|_1.

    Attributes:
        smooth: The black box: the squared error alone.
        weight: Of the penalty.
        solution: scikit-learn's coefficients.
        dimension: d.
    """

    smooth: Callable[[jax.Array], jax.Array]
    weight: float
    solution: np.ndarray
    dimension: int


def lasso(num_examples: int = 100, dimension: int = 40, seed: int = 0) -> Lasso:
    """Makes a sparse regression and solves it with scikit-learn.

    Args:
        num_examples: n.
        dimension: d, 6 of which matter.
        seed: Of the data.
    """
    from sklearn.linear_model import Lasso as Reference

    random = np.random.RandomState(seed)
    features = random.randn(num_examples, dimension)
    truth = np.zeros(dimension)
    truth[:6] = [2, -1.5, 1, -1, 0.7, 0.5]
    targets = features @ truth + 0.3 * random.randn(num_examples)
    weight = 0.1
    reference = Reference(weight, fit_intercept=False, tol=1e-12, max_iter=100_000)
    reference.fit(features, targets)
    a, b = jnp.asarray(features, jnp.float32), jnp.asarray(targets, jnp.float32)
    return Lasso(lambda x: jnp.mean((a @ x - b) ** 2) / 2, weight, reference.coef_, dimension)


class Portfolio(NamedTuple):
    """Mean and variance with a cost of trading, on the simplex.

    Attributes:
        loss: The black box, not differentiable at the holdings.
        holdings: Weights before trading.
        optimum: The smallest loss.
        solution: Where it is.
    """

    loss: Callable[[jax.Array], jax.Array]
    holdings: jax.Array
    optimum: float
    solution: np.ndarray


def portfolio(dimension: int = 30, seed: int = 0) -> Portfolio:
    """Makes a portfolio problem: x' S x - mu' x + 0.2 sum |x - holdings|, returns in percent.

    Args:
        dimension: Number of assets.
        seed: Of the data.
    """
    import scipy.optimize

    random = np.random.RandomState(seed)
    factors = random.randn(dimension, 4)
    covariance = 0.5 * factors @ factors.T + np.diag(random.uniform(0.5, 2, dimension))
    returns, holdings, cost = random.randn(dimension), np.full(dimension, 1 / dimension), 0.2

    # The absolute value is split into purchases and sales, which makes a smooth problem.
    def split(z: np.ndarray) -> tuple[float, np.ndarray]:
        x = holdings + z[:dimension] - z[dimension:]
        slope = 2 * covariance @ x - returns
        value = x @ covariance @ x - returns @ x + cost * z.sum()
        return value, np.concatenate([slope + cost, cost - slope])

    constraints = (
        {"type": "eq", "fun": lambda z: z[:dimension].sum() - z[dimension:].sum()},
        {"type": "ineq", "fun": lambda z: holdings + z[:dimension] - z[dimension:]},
    )
    start, bounds = np.full(2 * dimension, 1e-3), [(0, None)] * (2 * dimension)
    options = {"ftol": 1e-12, "maxiter": 500}
    result = scipy.optimize.minimize(
        split, start, jac=True, bounds=bounds, constraints=constraints, options=options
    )  # by SLSQP
    solution = holdings + result.x[:dimension] - result.x[dimension:]
    s, mu, x0 = (jnp.asarray(v, jnp.float32) for v in (covariance, returns, holdings))

    def loss(x: jax.Array) -> jax.Array:
        return x @ (s @ x) - mu @ x + cost * jnp.sum(jnp.abs(x - x0))

    return Portfolio(loss, x0, float(result.fun), solution)


class Saddle(NamedTuple):
    """x' A x / 2 + x' B y - y' C y / 2 + a' x + b' y.

    Attributes:
        loss: `(x, y) -> scalar`.
        x, y: The saddle: the minimising and the maximising player.
    """

    loss: Callable[[jax.Array, jax.Array], jax.Array]
    x: jax.Array
    y: jax.Array


def saddle(dimension: int = 10, seed: int = 0) -> Saddle:
    """Makes a saddle and solves it.

    Args:
        dimension: Of either player.
        seed: Of the data.
    """
    random = np.random.RandomState(seed)
    a, c = (_positive(random, dimension) for _ in range(2))
    b = random.randn(dimension, dimension) / np.sqrt(dimension)
    p, q = random.randn(2, dimension)
    matrix = np.block([[a, b], [b.T, -c]])
    x, y = np.split(-np.linalg.solve(matrix, np.concatenate([p, q])), 2)
    a, b, c, p, q, x, y = (jnp.asarray(v, jnp.float32) for v in (a, b, c, p, q, x, y))

    def loss(u: jax.Array, v: jax.Array) -> jax.Array:
        return u @ (a @ u) / 2 + u @ (b @ v) - v @ (c @ v) / 2 + p @ u + q @ v

    return Saddle(loss, x, y)


def _positive(random: Any, dimension: int) -> np.ndarray:
    basis, _ = np.linalg.qr(random.randn(dimension, dimension))
    return (basis * np.linspace(0.5, 2, dimension)) @ basis.T


def rosenbrock(x: jax.Array) -> jax.Array:
    """Returns the value of Rosenbrock's valley, whose minimum is 0 at ones."""
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def quadratic(x: jax.Array) -> jax.Array:
    """Returns the value of a quadratic of condition 100, whose minimum is 0 at zeros."""
    return jnp.sum(jnp.geomspace(0.1, 10, x.size) * x**2) / 2
