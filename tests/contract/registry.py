"""Every component the contracts run over, with its closed forms. A new component is one line."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import beta, k1
from scipy.stats import t

import zojax


class DirectionsCase(NamedTuple):
    """A distribution and what is known about it in closed form.

    `step_gradient` is the density against which a unit step at 0 is smoothed, i.e. the estimand
    for the loss 1[x > 0] at a coordinate with value x, on vectors and (if given) on matrices.
    """

    make: Callable[[], zojax.Directions]
    cubic_bias: Callable[[int], float]  # d -> bias on sum x^3 over sigma^2, vector coordinates
    step_gradient: Callable[..., Any] | None  # (x, sigma, d)
    linear_error: Callable[[int, int], float] | None  # (d, n) -> relative mean squared error
    matrix_cubic_bias: float | None = None  # the same on matrices, where it differs
    matrix_step_gradient: Callable[..., Any] | None = None


def _normal(x, sigma, d):
    return np.exp(-0.5 * (x / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))


def _laplace(x, sigma, d):
    return np.exp(-np.sqrt(2) * np.abs(x) / sigma) / (np.sqrt(2) * sigma)


def _ball(x, sigma, d):
    """One coordinate of a uniform point in the ball of radius sigma sqrt(d)."""
    radius = sigma * np.sqrt(d)
    inside = np.maximum(1 - (x / radius) ** 2, 0)
    return inside ** ((d - 1) / 2) / (radius * beta((d + 1) / 2, 0.5))


def _student_t(df):
    """The marginal density of one coordinate."""
    spread = ((df - 2) / df) ** 0.5
    return lambda x, sigma, d: t.pdf(x / (sigma * spread), df) / (sigma * spread)


def _student_t_error(df):
    return lambda d, n: ((d + df) * (d + 2) / (d + df + 2) - 1) / n


def _hadamard_error(d, n):
    padded = 2 ** (d - 1).bit_length()
    return (d - 1) / n * (padded - n) / (padded - 1)


def _uniform(stretch):
    """Steps of +-sigma stretch(d) along a coordinate smooth uniformly over that interval."""
    return lambda x, sigma, d: (np.abs(x) < sigma * stretch(d)) / (2 * sigma * stretch(d))


def _outer_product(x, sigma, d):
    """The score times the step for a product of two normals: a K1(a) / pi."""
    a = np.abs(x) / sigma
    return a * k1(a) / (np.pi * sigma)


def _uniform_cube():
    """A user's own distribution, as in the docstring of `flat_directions`."""
    bound = 3**0.5
    return zojax.flat_directions(
        "uniform_cube",
        lambda key, d: jax.random.uniform(key, (d,), minval=-bound, maxval=bound, dtype="float32"),
    )


def _cube_step(x, sigma, d):
    return np.maximum(3 - (x / sigma) ** 2, 0) / (4 * 3**0.5 * sigma)


DIRECTIONS = {
    "gaussian": DirectionsCase(zojax.gaussian, lambda d: 3, _normal, lambda d, n: (d + 1) / n),
    "laplace": DirectionsCase(zojax.laplace, lambda d: 3, _laplace, lambda d, n: (2 * d - 1) / n),
    "rademacher": DirectionsCase(
        zojax.rademacher, lambda d: 1, _uniform(lambda d: 1), lambda d, n: (d - 1) / n
    ),
    "sphere": DirectionsCase(
        zojax.sphere, lambda d: 3 * d / (d + 2), _ball, lambda d, n: (d - 1) / n
    ),
    "orthogonal": DirectionsCase(
        zojax.orthogonal, lambda d: 3 * d / (d + 2), _ball, lambda d, n: d / n - 1
    ),
    "orthogonal(2)": DirectionsCase(
        lambda: zojax.orthogonal(2), lambda d: 3 * d / (d + 2), _ball, lambda d, n: (d - 2) / n
    ),
    "coordinate": DirectionsCase(
        zojax.coordinate, lambda d: d, _uniform(lambda d: d**0.5), lambda d, n: (d - 1) / n
    ),
    "sparse": DirectionsCase(
        lambda: zojax.sparse(0.25), lambda d: 4, _uniform(lambda d: 2), lambda d, n: (d + 2) / n
    ),
    "hadamard": DirectionsCase(zojax.hadamard, lambda d: 1, _uniform(lambda d: 1), _hadamard_error),
    "student_t": DirectionsCase(
        lambda: zojax.student_t(6), lambda d: 3, _student_t(6), _student_t_error(6)
    ),
    "guided": DirectionsCase(zojax.guided, lambda d: 3, _normal, lambda d, n: (d + 1) / n),
    "low_rank": DirectionsCase(zojax.low_rank, lambda d: 3, _normal, None, 9, _outer_product),
    "low_rank(3)": DirectionsCase(lambda: zojax.low_rank(3), lambda d: 3, None, None, 5),
    "low_rank(1, rademacher)": DirectionsCase(
        lambda: zojax.low_rank(1, "rademacher"),
        lambda d: 1,
        _uniform(lambda d: 1),
        lambda d, n: (d - 1) / n,
    ),
    "flat_directions": DirectionsCase(
        _uniform_cube, lambda d: 1.8, _cube_step, lambda d, n: (d - 0.2) / n
    ),
}

STENCILS = {
    "one_point": zojax.one_point,
    "forward": zojax.forward,
    "central": zojax.central,
}

SHAPINGS = {
    "identity": zojax.identity,
    "leave_one_out": zojax.leave_one_out,
    "standardize": zojax.standardize,
    "centered_rank": zojax.centered_rank,
    "sign_of_difference": zojax.sign_of_difference,
}

EXECUTIONS = {
    "vectorized": zojax.vectorized,
    "chunked(1)": lambda: zojax.chunked(1),
    "chunked(3)": lambda: zojax.chunked(3),
    "chunked(4)": lambda: zojax.chunked(4),
    "chunked(100)": lambda: zojax.chunked(100),
    "chunked(auto)": lambda: zojax.chunked("auto"),
    "chunked(3, keep_noise=True)": lambda: zojax.chunked(3, keep_noise=True),
    "sharded": lambda: zojax.sharded(_mesh()),
    "sharded(chunk_size=1)": lambda: zojax.sharded(_mesh(), chunk_size=1),
}


def _mesh():
    """As many simulated devices as there are directions: a share is one direction."""
    return jax.make_mesh((NUM_DIRECTIONS,), ("directions",), devices=jax.devices()[:NUM_DIRECTIONS])


# Estimators at a small, odd number of directions, which no chunk size above 1 divides.
NUM_DIRECTIONS = 7


def _finite_difference(stencil="central", shaping="identity", directions="gaussian"):
    return lambda: zojax.finite_difference(
        directions=DIRECTIONS[directions].make(),
        stencil=STENCILS[stencil],
        shaping=SHAPINGS[shaping],
        num_directions=NUM_DIRECTIONS,
        sigma=0.1,
    )


# Presets stand for their own combination; directions come with one stencil and shaping.
ESTIMATORS = {
    "evolution_strategy": lambda: zojax.evolution_strategy(num_directions=NUM_DIRECTIONS),
    "spsa": lambda: zojax.spsa(num_directions=NUM_DIRECTIONS),
    "augmented_random_search": lambda: zojax.augmented_random_search(
        num_directions=NUM_DIRECTIONS, num_top=3
    ),
    "pgpe": lambda: zojax.pgpe(num_directions=NUM_DIRECTIONS),
    "pgpe(centered_rank)": lambda: zojax.pgpe(
        num_directions=NUM_DIRECTIONS, shaping=zojax.centered_rank
    ),
    "value_baseline": lambda: zojax.value_baseline(_finite_difference("one_point")(), 10.0),
    "control_variate": lambda: zojax.control_variate(_finite_difference()()),
    "control_variate(forward)": lambda: zojax.control_variate(_finite_difference("forward")()),
    "coordinate_difference": lambda: zojax.coordinate_difference(sigma=0.1),
    "coordinate_difference(num_coordinates=5)": lambda: zojax.coordinate_difference(
        sigma=0.1, num_coordinates=5
    ),
    "sparse_coordinate_difference": lambda: zojax.sparse_coordinate_difference(
        1.0, key=jax.random.key(7), sigma=0.1
    ),
    "coordinate_difference(forward)": lambda: zojax.coordinate_difference(
        sigma=0.1, stencil=zojax.forward
    ),
    **{
        f"finite_difference({stencil}, {shaping})": _finite_difference(stencil, shaping)
        for stencil in STENCILS
        for shaping in SHAPINGS
        if not (SHAPINGS[shaping].needs_difference and not STENCILS[stencil].is_difference)
        and (stencil, shaping) != ("central", "centered_rank")
        and (stencil == "central" or shaping in ("identity", "standardize"))
    },
    **{
        f"finite_difference({name})": _finite_difference(directions=name)
        for name in DIRECTIONS
        if name not in ("gaussian", "rademacher") and "(" not in name
    },
}
