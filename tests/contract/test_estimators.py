"""C2, C6 to C10 for every estimator: the public check, and that minus the estimate descends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from tests.contract.registry import ESTIMATORS
from tests.contract.replicates import PARAMS
from zojax import trees
from zojax.testing import check_estimator

# Presets and wrappers on every version of JAX, combinations on one.
CASES = [
    pytest.param(name, marks=pytest.mark.statistics if name.startswith("finite_diff") else ())
    for name in ESTIMATORS
]


@pytest.mark.parametrize("name", CASES)
def test_c2_c6_c7_c8_c9_c10_check_estimator(name):
    check_estimator(ESTIMATORS[name](), num_replicates=512)


def bowl(params):
    return jnp.sum((trees.ravel(params) - 2.0) ** 2)


@pytest.mark.parametrize("name", ["spsa", "evolution_strategy", "coordinate_difference"])
def test_c3_a_step_against_the_estimate_lowers_the_loss(name):
    est = ESTIMATORS[name]()
    result, _ = zojax.estimate(est, bowl, PARAMS, jax.random.key(0), est.init(PARAMS))
    # The best step along any descent direction g of a bowl is g.(x - 2) / |g|^2; take half of it.
    grad, away = trees.ravel(result.grad), trees.ravel(PARAMS) - 2.0
    step = 0.5 * float(grad @ away / (grad @ grad))
    assert step > 0
    moved = jax.tree.map(lambda p, g: p - step * g, PARAMS, result.grad)
    assert bowl(moved) < bowl(PARAMS)


def test_c2_plain_sgd_with_a_computed_step_converges_on_a_quadratic():
    """E|x'|^2 = (1 - 2 a + a^2 (1 + (d + 1) / n)) |x|^2 for f = |x|^2 / 2, any sigma, central."""
    d, n, steps, runs = 6, 4, 30, 256
    est = zojax.finite_difference(num_directions=n, sigma=0.1)
    rate = 1 / (1 + (d + 1) / n)
    shrink = (1 - rate) ** steps  # at the best rate the factor is 1 - rate

    def run(key):
        def step(x, k):
            grad = zojax.estimate(est, lambda p: 0.5 * jnp.sum(p**2), x, k, ())[0].grad
            return x - rate * grad, None

        x, _ = jax.lax.scan(step, jnp.ones(d), jax.random.split(key, steps))
        return jnp.sum(x**2) / d

    left = jax.jit(lambda keys: jax.lax.map(run, keys))(jax.random.split(jax.random.key(0), runs))
    left = np.log(np.asarray(left, np.float64))
    # The mean of a product of factors is log-convex: the typical run does better than the mean.
    assert left.mean() < np.log(shrink)
    assert left.mean() > 3 * np.log(shrink)
