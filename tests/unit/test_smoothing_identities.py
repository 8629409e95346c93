"""What each estimate is the gradient of: every smoothing against quadrature, at 4 standard errors.

The truth is a central difference of the smoothed objective, which is integrated numerically in
float64: it shares nothing with the estimate. Rows that the library has no part for are checked by
their formula.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import ndtr

import zojax
from zojax import robustness, trees

THETA = np.array([0.4, -0.7])
SIGMA = 0.6
KEY = jax.random.key(0)


def slope_of(objective, theta, step=1e-3):
    """Central differences of a float64 function."""
    axes = step * np.eye(len(theta))
    return np.array([objective(theta + e) - objective(theta - e) for e in axes]) / (2 * step)


def standard_errors(samples, truth, bias=0.0):
    """How many standard errors the worst coordinate of the mean is off, a bias allowed for."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    off = np.maximum(np.abs(samples.mean(axis=0) - truth) - bias, 0)
    return float((off / (error + 1e-6 * np.abs(truth).max())).max())


def assert_exact(samples, truth, bias=0.0):
    """At 4 standard errors, which are small enough to mean something."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    assert error.max() < 0.05 * np.abs(truth).max(), "too few samples to tell"
    assert standard_errors(samples, truth, bias) < 4, (samples.mean(axis=0), truth, error)


def estimates(loss, theta=THETA, *, n=256, num=200, sigma=SIGMA, args=(), chip_keys=False, **parts):
    """Gradients (num, d) of independent estimates by the library."""
    est = zojax.finite_difference(num_directions=n, sigma=sigma, **parts)
    value_and_grad = zojax.value_and_grad(loss, est)
    params = jnp.asarray(theta, jnp.float32)

    def one(key):
        key, chip_key = jax.random.split(key)
        return value_and_grad(params, key, *((chip_key,) if chip_keys else ()), *args)[1]

    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(KEY, num)))


def normal(num, d=2, seed=0):
    return np.random.default_rng(seed).standard_normal((num, d))


def smooth(w):
    """A loss with curvature and a third derivative, for both numpy and JAX."""
    xp = np if isinstance(w, np.ndarray) else jnp
    return xp.sin(1.5 * w[..., 0] + w[..., 1]) + 0.5 * w[..., 0] ** 2 * w[..., 1]


def jumpy(w):
    """No derivative that means anything: a step, a kink and a staircase."""
    xp = np if isinstance(w, np.ndarray) else jnp
    x, y = w[..., 0], w[..., 1]
    return xp.where(x + y > 0.1, 1.0, 0.0) + xp.abs(x) + 0.5 * xp.floor(2 * y)


def gauss_hermite(values, theta, scale=SIGMA, nodes=40):
    """E values(theta + scale g) in two dimensions, for smooth values; `scale` may be a matrix."""
    x, weight = np.polynomial.hermite_e.hermegauss(nodes)
    g = np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
    z = g @ np.asarray(scale).T if np.ndim(scale) == 2 else g * scale
    return np.outer(weight, weight).ravel() @ values(theta + z) / (2 * np.pi)


def on_grid(values, theta, side=901, reach=6.0):
    """`t -> E values(t + SIGMA g)` near theta, for jumps: the density moves, not the values."""
    axes = [np.linspace(c - reach * SIGMA, c + reach * SIGMA, side) for c in theta]
    table = values(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2))
    table = table.reshape(side, side)

    def objective(t):
        one, other = (np.exp(-0.5 * ((a - c) / SIGMA) ** 2) for a, c in zip(axes, t, strict=True))
        return one / one.sum() @ table @ other / other.sum()

    return objective


# Smoothings the library has.


@pytest.mark.parametrize("stencil", [zojax.central, zojax.forward], ids=lambda s: s.name)
def test_gaussian_is_exact_for_a_loss_without_derivatives(stencil):
    truth = slope_of(on_grid(jumpy, THETA), THETA)
    assert_exact(estimates(jumpy, stencil=stencil), truth)


def test_gaussian_one_point_takes_any_baseline():
    truth = slope_of(lambda t: gauss_hermite(smooth, t), THETA)
    parts = {"stencil": zojax.one_point, "shaping": zojax.leave_one_out}
    assert_exact(estimates(smooth, **parts), truth)
    shifted = estimates(lambda w: smooth(w) + 5.0, **parts)
    assert_exact(shifted, truth)


def test_sphere_directions_give_the_gradient_of_the_ball_smoothed_loss():
    radius = SIGMA * 2**0.5
    x, weight = np.polynomial.legendre.leggauss(30)
    angles = np.arange(64) * 2 * np.pi / 64

    def ball(t):
        r, mass = radius * (x + 1) / 2, weight * (x + 1) / 2
        around = np.stack([np.cos(angles), np.sin(angles)], -1)
        return np.mean([mass @ smooth(t + r[:, None] * u) for u in around])

    def circle(t):
        return smooth(t + radius * np.stack([np.cos(angles), np.sin(angles)], -1)).mean()

    found = estimates(smooth, directions=zojax.sphere())
    assert_exact(found, slope_of(ball, THETA))
    # The points are on the sphere, but its average is another loss.
    assert standard_errors(found, slope_of(circle, THETA)) > 20


def test_laplace_has_a_sign_for_a_score():
    scale = SIGMA / 2**0.5
    x, weight = np.polynomial.laguerre.laggauss(40)
    x, weight = np.concatenate([-x, x]) * scale, np.concatenate([weight, weight]) / 2
    z = np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)

    def smoothed(t):
        return np.outer(weight, weight).ravel() @ smooth(t + z)

    assert_exact(estimates(smooth, directions=zojax.laplace()), slope_of(smoothed, THETA))


def bounded(w):
    xp = np if isinstance(w, np.ndarray) else jnp
    return xp.sin(w[..., 0] + 0.5 * w[..., 1]) + 0.5 * xp.cos(w[..., 1])


def test_student_t_is_multivariate():
    df = 4
    # |z|^2 / (2 scale^2) of the multivariate law is F(2, df), whose quantiles are explicit.
    u = (np.arange(4000) + 0.5) / 4000
    scale = SIGMA * ((df - 2) / df) ** 0.5
    r = scale * np.sqrt(df * ((1 - u) ** (-2 / df) - 1))
    angles = np.arange(64) * 2 * np.pi / 64
    around = np.stack([np.cos(angles), np.sin(angles)], -1)
    z = (r[:, None, None] * around).reshape(-1, 2)
    truth = slope_of(lambda t: bounded(t + z).mean(), THETA)
    assert_exact(estimates(bounded, directions=zojax.student_t(df)), truth)


def test_rademacher_is_not_the_gradient_of_the_rademacher_smoothed_loss():
    theta, sigma = np.array([0.3, -0.5, 0.8]), 1.0
    slopes = np.array([[1.5, 1.0, -0.7], [-0.4, 1.2, 0.9]])

    def loss(w):
        xp = np if isinstance(w, np.ndarray) else jnp
        return xp.sin(w @ slopes.T).sum(-1) + 0.3 * w[..., 0] * w[..., 1] * w[..., 2]

    signs = sigma * np.array(list(itertools.product([-1.0, 1.0], repeat=3)))
    x, weight = np.polynomial.legendre.leggauss(30)

    def mixed(t, i):
        """Uniform on [-sigma, sigma] in coordinate i, a sign times sigma in the others."""
        points = np.repeat(signs[None], 30, axis=0)
        points[:, :, i] = sigma * x[:, None]
        return weight @ loss(t + points).mean(1) / 2

    truth = np.array([slope_of(lambda t, i=i: mixed(t, i), theta)[i] for i in range(3)])
    wrong = slope_of(lambda t: loss(t + signs).mean(), theta)
    slopes = jnp.asarray(slopes, jnp.float32)
    found = estimates(loss, theta, sigma=sigma, directions=zojax.rademacher())
    assert_exact(found, truth)
    assert standard_errors(found, wrong) > 20
    assert np.linalg.norm(wrong - truth) > 0.2 * np.linalg.norm(truth)


# Objectives beyond the mean: shapings. Their bias is O(1 / n), so n is large and it is bounded.


def risky(w):
    """Linear in the first coordinate: given the second, its distribution is normal."""
    xp = np if isinstance(w, np.ndarray) else jnp
    return w[..., 0] + 0.7 * xp.sin(2.0 * w[..., 1])


RISKY_AT = np.array([0.4, 0.3])
X, WEIGHT = np.polynomial.hermite_e.hermegauss(60)
WEIGHT = WEIGHT / WEIGHT.sum()


def given_second(t):
    """Mean of the risky loss given each node of the second coordinate's noise."""
    return t[0] + 0.7 * np.sin(2 * (t[1] + SIGMA * X))


def quantile_of(t, level):
    return brentq(lambda q: WEIGHT @ ndtr((q - given_second(t)) / SIGMA) - level, -9, 9, xtol=1e-13)


def cvar_of(t, level):
    q = quantile_of(t, level)
    a = (given_second(t) - q) / SIGMA
    density = np.exp(-0.5 * a**2) / (2 * np.pi) ** 0.5
    return q + WEIGHT @ (SIGMA * (density + a * ndtr(a))) / (1 - level)


def entropic_of(t, temperature):
    powers = gauss_hermite(lambda w: np.exp(risky(w) / temperature), t, nodes=60)
    return temperature * np.log(powers)


@pytest.mark.parametrize(
    ("shaping", "objective", "bias"),
    [
        (robustness.cvar(0.8), lambda t: cvar_of(t, 0.8), 0.005),
        (robustness.entropic_risk(0.7), lambda t: entropic_of(t, 0.7), 0.005),
        (robustness.local_entropy(1.5), lambda t: entropic_of(t, -1 / 1.5), 0.005),
        # The kernel that estimates the density is wide: 2 % of scale.
        (robustness.quantile(0.8), lambda t: quantile_of(t, 0.8), 0.02),
    ],
    ids=lambda x: x.name if isinstance(x, zojax.Shaping) else "",
)
def test_objectives_over_the_smoothed_loss(shaping, objective, bias):
    truth = slope_of(objective, RISKY_AT)
    found = estimates(risky, RISKY_AT, n=2048, num=50, shaping=shaping)
    size = np.abs(truth).max()
    assert_exact(found, truth, bias * size)
    # The mean would be something else.
    mean = slope_of(lambda t: gauss_hermite(risky, t), RISKY_AT)
    assert standard_errors(found, mean, bias * size) > 8


def test_the_bias_of_a_ratio_falls_with_n():
    truth = slope_of(lambda t: entropic_of(t, 0.7), RISKY_AT)
    few, many = (
        estimates(risky, RISKY_AT, n=n, num=num, shaping=robustness.entropic_risk(0.7)).mean(0)
        - truth
        for n, num in ((4, 8000), (64, 2000))
    )
    assert np.linalg.norm(many) < 0.25 * np.linalg.norm(few)


def test_cvar_with_one_point_and_forward_has_the_same_expectation():
    truth = slope_of(lambda t: cvar_of(t, 0.8), RISKY_AT)
    for stencil in (zojax.one_point, zojax.forward):
        found = estimates(
            risky, RISKY_AT, n=4096, num=40, shaping=robustness.cvar(0.8), stencil=stencil
        )
        assert_exact(found, truth, 0.005 * np.abs(truth).max())


def test_device_noise_inside_gaussian_smoothing_needs_no_straight_through_estimator():
    bits, p = 3, 0.1
    device = (robustness.bit_errors(bits, p),)

    def decoded(w):
        """E over all 64 flip patterns of the loss of two 3-bit numbers with a common step."""
        step = np.abs(w).max(-1, keepdims=True) / 3
        codes = np.round(w / step).astype(int) & 7
        total = 0.0
        for flips in itertools.product(range(8), repeat=2):
            word = codes ^ np.array(flips)
            number = np.where(word >= 4, word - 8, word) * step
            changed = sum(f.bit_count() for f in flips)
            total = total + p**changed * (1 - p) ** (2 * bits - changed) * bounded(number)
        return total

    truth = slope_of(on_grid(decoded, THETA, side=600), THETA)
    loss = robustness.device_loss(bounded, *device)
    assert_exact(estimates(loss, num=800, chip_keys=True), truth)
    # A derivative through the device sees the staircase only.
    inside = robustness.device_loss(bounded, robustness.quantized(bits))
    params = jnp.asarray(THETA, jnp.float32)
    assert float(jax.grad(inside)(params, KEY)[0]) == 0  # the smaller weight is rounded away


# Smoothings by formula: no part of the library, but documented.


def test_gaussian_covariance_by_its_factor():
    factor = np.array([[0.5, 0.0], [0.3, 0.8]])
    truth = slope_of(lambda t: gauss_hermite(smooth, t, factor), THETA)
    g = normal(400_000)
    found = (smooth(THETA + g @ factor.T) - smooth(THETA))[:, None] * (g @ np.linalg.inv(factor))
    assert_exact(found, truth)


def test_cube_by_differences_of_opposite_faces():
    a = 0.8
    x, weight = np.polynomial.legendre.leggauss(30)
    z = a * np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
    cube = lambda t: np.outer(weight, weight).ravel() @ smooth(t + z) / 4  # noqa: E731
    drawn = np.random.default_rng(0).uniform(-a, a, (100_000, 2))
    faces = []
    for i in range(2):
        high, low = drawn.copy(), drawn.copy()
        high[:, i], low[:, i] = a, -a
        faces.append((smooth(THETA + high) - smooth(THETA + low)) / (2 * a))
    assert_exact(np.stack(faces, -1), slope_of(cube, THETA))


def test_cauchy_has_a_bounded_score():
    gamma = 0.5
    # In one dimension E sin(t + z) = exp(-gamma) sin t.
    truth = np.exp(-gamma) * np.cos(THETA[:1])
    z = gamma * np.random.default_rng(0).standard_cauchy((400_000, 1))
    score = 2 * z / (gamma**2 + z**2)
    assert np.abs(score).max() <= 1 / gamma + 1e-12
    assert_exact((np.sin(THETA[0] + z) - np.sin(THETA[0])) * score, truth)


def test_multiplicative_noise_has_a_score_with_a_square():
    sigma = 0.4
    truth = slope_of(lambda t: gauss_hermite(lambda e: smooth(t * (1 + e)), 0.0, sigma), THETA)
    g = normal(1_000_000)
    excess = (smooth(THETA * (1 + sigma * g)) - smooth(THETA))[:, None]
    assert_exact(excess * (g + sigma * (g**2 - 1)) / (sigma * THETA), truth)
    without = excess * g / (sigma * THETA)  # as if the noise did not grow with the weight
    assert standard_errors(without, truth) > 10


def test_bernoulli_mask_by_the_score_of_its_logits():
    logits, weights = np.array([0.5, -1.0, 0.2]), np.array([1.0, -2.0, 0.7])
    masks = np.array(list(itertools.product([0.0, 1.0], repeat=3)))

    def loss(m):
        return np.abs(m @ weights - 0.5) + (m.sum(-1) > 1)

    def expected(t):
        p = 1 / (1 + np.exp(-t))
        return np.prod(np.where(masks == 1, p, 1 - p), axis=1) @ loss(masks)

    p = 1 / (1 + np.exp(-logits))
    m = (np.random.default_rng(0).random((200_000, 3)) < p).astype(float)
    assert_exact((loss(m) - 1.0)[:, None] * (m - p), slope_of(expected, logits))


def test_hessian_of_the_smoothed_loss_from_three_values():
    smoothed = lambda t: gauss_hermite(smooth, t)  # noqa: E731
    truth = slope_of(lambda t: slope_of(smoothed, t), THETA).ravel()
    g = normal(1_000_000)
    second = smooth(THETA + SIGMA * g) - 2 * smooth(THETA) + smooth(THETA - SIGMA * g)
    products = g[:, :, None] * g[:, None, :] - np.eye(2)
    assert_exact((second / (2 * SIGMA**2))[:, None] * products.reshape(-1, 4), truth)


def test_the_smoothed_loss_penalises_the_trace_of_the_hessian():
    hessian = np.array([[2.0, 0.5], [0.5, 1.0]])
    quadratic = lambda w: 0.5 * np.einsum("...i,ij,...j", w, hessian, w)  # noqa: E731
    gap = gauss_hermite(quadratic, THETA) - quadratic(THETA)
    assert gap == pytest.approx(SIGMA**2 / 2 * np.trace(hessian))


def test_dropping_the_sigma_would_be_seen():
    """The formula E[L g] that some papers print is sigma times the gradient."""
    truth = slope_of(lambda t: gauss_hermite(smooth, t), THETA)
    found = estimates(smooth)
    assert_exact(found, truth)
    assert standard_errors(SIGMA * found, truth) > 20


def test_layers_may_have_radii_of_their_own():
    """Covariance A A^T with A diagonal: scale a layer inside the loss, and its gradient back."""
    factor = np.diag([0.3, 0.9])
    truth = slope_of(lambda t: gauss_hermite(smooth, t, factor), THETA)
    scales = jnp.asarray(np.diag(factor), jnp.float32)
    unscaled = lambda w: smooth(w * scales)  # noqa: E731
    found = estimates(unscaled, THETA / np.diag(factor), sigma=1.0) / np.diag(factor)
    assert_exact(found, truth)
    assert trees.size(scales) == 2
