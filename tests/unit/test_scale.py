"""C1, C2: the ratio to the textbook estimator is 1.00, where published code is off by up to 10^4.

Lost factors 1/4 (foolbox), sigma^2 (TorchOpt), 1/2 (ZO-AdaMM), q/2 (BlackboxBench), mu and d
(DeepZero), d (R-AdaZO), 1/r (LOZO), sigma (optax, fixed in 2025) would each fail here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from tests.contract.registry import DIRECTIONS
from tests.contract.replicates import DIMENSION, PARAMS, estimates, rounding
from zojax import trees

SLOPE = np.linspace(0.5, 1.5, DIMENSION)
SIGMAS = (0.1, 0.01)


def linear(params):
    return jnp.vdot(trees.ravel(params), jnp.asarray(SLOPE, jnp.float32))


def combination(name, stencil="central", shaping="identity", wrap=lambda est: est):
    def make(num_directions, sigma):
        return wrap(
            zojax.finite_difference(
                directions=DIRECTIONS[name].make(),
                stencil=getattr(zojax, stencil),
                shaping=getattr(zojax, shaping),
                num_directions=num_directions,
                sigma=sigma,
            )
        )

    return make


ESTIMATORS = {
    **{name: combination(name) for name in DIRECTIONS},
    "forward": combination("gaussian", "forward"),
    "one_point": combination("gaussian", "one_point"),
    "leave_one_out": combination("gaussian", "one_point", "leave_one_out"),
    "value_baseline": combination("gaussian", "one_point", wrap=zojax.value_baseline),
    "control_variate": combination("gaussian", wrap=zojax.control_variate),
    "pgpe": lambda n, sigma: zojax.pgpe(num_directions=n, sigma=sigma),
}


# Factors that depend on n would show in a few estimators; `compare_estimators` runs all of them.
MANY = ("gaussian", "sphere", "low_rank", "forward", "one_point", "pgpe")
CASES = [(name, 8) for name in ESTIMATORS] + [(name, n) for name in MANY for n in (64, 256)]


@pytest.mark.parametrize(("name", "num_directions"), CASES)
def test_c1_the_ratio_to_the_gradient_is_one(name, num_directions):
    make = lambda sigma: ESTIMATORS[name](num_directions, sigma)  # noqa: E731
    for sigma, grads in zip(SIGMAS, estimates(make, linear, SIGMAS, 256), strict=True):
        ratios = grads @ SLOPE / (SLOPE @ SLOPE)
        error = ratios.std(ddof=1) / np.sqrt(len(ratios))
        # All coordinates' rounding, of the loss at the parameters or of the points, adds up.
        size = float(np.abs(np.asarray(trees.ravel(PARAMS)) * SLOPE).sum())
        assert abs(ratios.mean() - 1) <= 3 * error + rounding(size, sigma), (
            f"{name}, sigma {sigma}: ratio {ratios.mean():.4f} +- {error:.4f}"
        )


def test_c1_coordinate_differences_have_ratio_one():
    for est in (
        zojax.coordinate_difference(sigma=0.1),
        zojax.coordinate_difference(sigma=0.1, num_coordinates=DIMENSION),
        zojax.sparse_coordinate_difference(1.0, key=jax.random.key(0), sigma=0.1),
    ):
        state = est.init(PARAMS)
        grad = zojax.estimate(est, linear, PARAMS, jax.random.key(1), state)[0].grad
        np.testing.assert_allclose(trees.ravel(grad), SLOPE, rtol=1e-4)
