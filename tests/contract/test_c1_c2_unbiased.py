"""C1 scale and C2 the gradient itself: linear -> quadratic -> cubic -> discontinuous."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from tests.contract.registry import DIRECTIONS, STENCILS
from tests.contract.replicates import DIMENSION, ON_MATRIX, PARAMS, POINT, estimates, rounding
from zojax import trees
from zojax.directions import all_coordinates
from zojax.testing import assert_unbiased, check_directions

pytestmark = pytest.mark.statistics

SLOPE = np.linspace(0.5, 1.5, DIMENSION)
SIGMAS = (0.01, 0.1, 1.0)
ROOT = np.random.default_rng(0).normal(size=(DIMENSION, DIMENSION)) / DIMENSION**0.5
HESSIAN = jnp.asarray(ROOT + ROOT.T, jnp.float32)
each_directions = pytest.mark.parametrize("name", DIRECTIONS)


def linear(params):
    return jnp.vdot(trees.ravel(params), jnp.asarray(SLOPE, jnp.float32))


def estimator(name, num_directions, stencil=zojax.central):
    directions = DIRECTIONS[name].make()

    def at(sigma):
        return zojax.finite_difference(
            directions=directions, stencil=stencil, num_directions=num_directions, sigma=sigma
        )

    return at


@each_directions
def test_c1_moments_and_draws(name):
    check_directions(DIRECTIONS[name].make())


def test_c1_moments_of_the_set_of_all_coordinates():
    check_directions(all_coordinates(), num_replicates=2)


def ladder(params, rung):
    """Linear, quadratic, cubic, discontinuous."""
    x = trees.ravel(params)
    losses = [linear(params), 0.5 * x @ HESSIAN @ x + linear(params), jnp.sum(x**3), jnp.sum(x > 0)]
    return jnp.stack([loss.astype(jnp.float32) for loss in losses])[rung]


# A number of directions that blocks do not fill, too, where there are blocks.
LADDERS = [(name, 8) for name in DIRECTIONS] + [
    (name, 2) for name in ("gaussian", "orthogonal", "orthogonal(2)", "hadamard")
]


@pytest.mark.parametrize(("name", "num_directions"), LADDERS)
def test_c2_linear_quadratic_cubic_and_step_have_their_closed_form_means(name, num_directions):
    case, sigma = DIRECTIONS[name], 0.6
    linears = list(SIGMAS)
    found = estimates(
        estimator(name, num_directions),
        ladder,
        [*linears, sigma, sigma, sigma],
        2048,
        choices=[0] * len(linears) + [1, 2, 3],
    )
    *on_linear, on_quadratic, on_cubic, on_step = found
    for radius, grads in zip(linears, on_linear, strict=True):
        allowed = rounding(np.abs(POINT * SLOPE).sum(), radius)
        assert_unbiased(grads, SLOPE, f"{name}, linear, sigma {radius}", rounding=allowed)
    if case.linear_error is not None:
        squares = ((on_linear[-1] - SLOPE) ** 2).sum(-1, keepdims=True) / (SLOPE @ SLOPE)
        expected = case.linear_error(DIMENSION, num_directions)
        assert_unbiased(squares, np.array([expected]), f"{name}: mean squared error")

    gradient = np.asarray(HESSIAN, np.float64) @ POINT + SLOPE
    assert_unbiased(on_quadratic, gradient, f"{name}, quadratic", rounding=rounding(10, sigma))

    on_matrix = case.matrix_cubic_bias or case.cubic_bias(DIMENSION)
    bias = np.where(ON_MATRIX, on_matrix, case.cubic_bias(DIMENSION)) * sigma**2
    allowed = rounding(10, sigma)
    assert_unbiased(on_cubic, 3 * POINT**2 + bias, f"{name}, cubic", rounding=allowed)

    if case.step_gradient is not None:
        on_matrix = case.matrix_step_gradient or case.step_gradient
        both = [smoothed(POINT, sigma, DIMENSION) for smoothed in (on_matrix, case.step_gradient)]
        assert_unbiased(on_step, np.where(ON_MATRIX, *both), f"{name}, step")


@pytest.mark.parametrize("stencil", STENCILS)
@pytest.mark.parametrize("num_directions", [2, 8])
def test_c2_every_stencil_is_unbiased_on_a_linear_loss(stencil, num_directions):
    make = estimator("gaussian", num_directions, STENCILS[stencil])
    for sigma, grads in zip(SIGMAS, estimates(make, linear, SIGMAS, 4096), strict=True):
        allowed = rounding(np.abs(POINT * SLOPE).sum(), sigma)
        assert_unbiased(grads, SLOPE, f"{stencil}, sigma {sigma}", rounding=allowed)


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_c2_coordinate_difference_has_bias_sigma_squared_on_a_cubic(sigma):
    def cubic(params):
        return jnp.sum(trees.ravel(params) ** 3)

    found = zojax.value_and_grad(cubic, zojax.coordinate_difference(sigma=sigma))
    _, grad = found(PARAMS, jax.random.key(0))
    np.testing.assert_allclose(
        trees.ravel(grad), 3 * POINT**2 + sigma**2, atol=rounding(np.abs(POINT**3).sum(), sigma)
    )


def test_c1_a_full_orthogonal_block_reproduces_a_linear_gradient():
    grads = estimates(estimator("orthogonal", DIMENSION), linear, [1.0], 4)[0]
    np.testing.assert_allclose(grads, np.broadcast_to(SLOPE, grads.shape), atol=1e-5)


def test_c2_sign_of_difference_has_the_stated_scale():
    def make(sigma):
        return zojax.finite_difference(
            num_directions=8, sigma=sigma, shaping=zojax.sign_of_difference
        )

    grads = estimates(make, linear, [0.1], 2048)[0]
    expected = np.sqrt(2 / np.pi) * SLOPE / np.linalg.norm(SLOPE)
    assert_unbiased(grads, expected, "sign_of_difference")


def test_c2_standardize_divides_by_the_standard_deviation_of_the_losses():
    def make(sigma):
        return zojax.finite_difference(num_directions=512, sigma=sigma, shaping=zojax.standardize)

    sigma = 0.5
    grads = estimates(make, linear, [sigma], 256)[0]
    # Of 2n values the sample spread is within O(1 / n) of sigma |a|; the error is far larger.
    expected = SLOPE / (sigma * np.linalg.norm(SLOPE))
    assert_unbiased(grads, expected, "standardize", rounding=2 / 512)
