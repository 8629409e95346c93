"""The checks themselves: each must fail on a mistake that has shipped elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from tests.contract.replicates import DIMENSION, estimates
from zojax import trees
from zojax.testing import assert_unbiased, check_directions, check_estimator

SLOPE = np.linspace(0.5, 1.5, DIMENSION)
SIGMA = 0.1


def linear(params):
    return jnp.vdot(trees.ravel(params), jnp.asarray(SLOPE, jnp.float32))


@functools.cache
def right(num_directions, num_replicates):
    def make(sigma):
        return zojax.finite_difference(num_directions=num_directions, sigma=sigma)

    return estimates(make, linear, [SIGMA], num_replicates)[0]


@pytest.mark.parametrize(
    ("bug", "factor"), [("half", 0.5), ("double", 2.0), ("a factor sigma", SIGMA)]
)
def test_a_wrong_factor_is_found_with_256_replicates(bug, factor):
    with pytest.raises(AssertionError, match=f"{bug} is biased"):
        assert_unbiased(factor * right(8, 256), SLOPE, bug)


def test_the_message_names_the_scale():
    with pytest.raises(AssertionError, match=r"biased: scale 0\.50, coordinate"):
        assert_unbiased(0.5 * right(8, 16384), SLOPE, "half")


@pytest.mark.parametrize(("n", "num_replicates"), [(2, 256), (8, 4096)])
def test_n_minus_1_for_n_is_found(n, num_replicates):
    assert_unbiased(right(n, num_replicates), SLOPE, "right")
    with pytest.raises(AssertionError, match="is biased"):
        assert_unbiased(right(n, num_replicates) * n / (n - 1), SLOPE, "n - 1")


def shared_by_all_coordinates():
    def draw(key, dimension):
        return jnp.broadcast_to(jax.random.normal(key, (), dtype="float32"), (dimension,))

    return zojax.flat_directions("shared", draw)


def same_for_same_shapes():
    """One key for every leaf: leaves of the same shape move together."""
    gaussian = zojax.gaussian()

    def draw(key, params):
        leaves = jax.tree.leaves(params)
        return jnp.concatenate(
            [jax.random.normal(key, (leaf.size,), dtype="float32") for leaf in leaves]
        )

    return gaussian._replace(name="leafwise", draw=draw)


def unscaled_sphere():
    def draw(key, dimension):
        normal = jax.random.normal(key, (dimension,), dtype="float32")
        return normal / jnp.linalg.norm(normal)

    return zojax.flat_directions("unscaled sphere", draw)


def uncentred():
    def draw(key, dimension):
        return jnp.abs(jax.random.normal(key, (dimension,), dtype="float32"))

    return zojax.flat_directions("uncentred", draw)


def dependent_on_dtype():
    gaussian = zojax.gaussian()

    def draw(key, params):
        return jax.random.normal(key, (trees.size(params),), jax.tree.leaves(params)[0].dtype)

    return gaussian._replace(name="low precision", draw=draw)


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (shared_by_all_coordinates, r"E\[s eps\^T\]"),
        (same_for_same_shapes, r"E\[s eps\^T\]"),
        (unscaled_sphere, r"E\[s eps\^T\] is biased: scale 0.07"),
        (uncentred, r"E\[s\]"),
        (dependent_on_dtype, "dtype of the parameters"),
    ],
)
def test_check_directions_names_the_broken_promise(broken, promise):
    with pytest.raises(AssertionError, match=promise):
        check_directions(broken(), num_replicates=1024)


def with_changed(field, change):
    est = zojax.finite_difference(num_directions=4, sigma=SIGMA)
    return est._replace(name="broken", **{field: change(getattr(est, field))})


def halved(coefficients):
    return lambda *args: (0.5 * coefficients(*args)[0], coefficients(*args)[1])


def local_index(draw):
    return lambda key, params, state, start, *rest: draw(key, params, state, 0, *rest)


def one_too_many(num_queries):
    return lambda params: num_queries(params) + 1


def sign_flipped(coefficients):
    return lambda *args: (-coefficients(*args)[0], coefficients(*args)[1])


@pytest.mark.parametrize(
    ("field", "change", "complaint"),
    [
        ("coefficients", halved, r"scale 0\.[45]"),
        ("coefficients", sign_flipped, r"scale -[01]\."),
        ("draw", local_index, "differs"),
        ("num_queries", one_too_many, "plans 9 queries, asks for"),
    ],
)
def test_check_estimator_names_the_broken_promise(field, change, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_estimator(with_changed(field, change), num_replicates=256)
