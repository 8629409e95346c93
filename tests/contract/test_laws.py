"""The laws of the directions: the closed forms, and the cosine that they predict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from tests.contract.registry import DIRECTIONS, SHAPINGS
from tests.contract.replicates import DIMENSION, PARAMS
from zojax.diagnostics import expected_cosine
from zojax.directions import all_coordinates, random_coordinates

pytestmark = pytest.mark.statistics

GRID = (((8, 8), 4), ((16, 16), 4), ((16, 16), 64))  # shape of the parameters, n
WIDE_GRID = (((16, 16), 4), ((32, 32), 4), ((32, 32), 64))
# Its law holds until there is a first guide; a distribution need not have one.
WITHOUT_LAW = {"guided", "flat_directions"}
WITH_LAW = {
    **{name: {"directions": case.make()} for name, case in DIRECTIONS.items()},
    "random_coordinates": {"directions": random_coordinates()},
    "forward": {"stencil": zojax.forward},
    "centered_rank": {"shaping": zojax.centered_rank},
    "sign_of_difference": {"shaping": zojax.sign_of_difference},
}
# Blocks of two are slow to compile, and their error is measured where the closed forms are.
for name in (*WITHOUT_LAW, "orthogonal(2)"):
    del WITH_LAW[name]


@pytest.mark.parametrize("num_directions", [2, 8])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_laws_are_the_closed_forms(name, num_directions):
    law, closed_form = DIRECTIONS[name].make().linear_error, DIRECTIONS[name].linear_error
    assert (law is None) == (name in WITHOUT_LAW)
    if law is not None and closed_form is not None:
        np.testing.assert_allclose(
            law(PARAMS, num_directions), closed_form(DIMENSION, num_directions), atol=1e-12
        )


def linear(params, slope):
    return jnp.sum(params["w"] * slope)


def measured_cosine(est, params, num_replicates):
    """Mean over replicates, each with a gradient of its own."""

    def one(key):
        slope = jax.random.normal(jax.random.fold_in(key, 1), params["w"].shape)
        grad = zojax.estimate(est, linear, params, key, (), args=(slope,))[0].grad["w"]
        return jnp.sum(grad * slope) / (jnp.linalg.norm(grad) * jnp.linalg.norm(slope))

    keys = jax.random.split(jax.random.key(0), num_replicates)
    return float(jnp.mean(jax.jit(lambda keys: jax.lax.map(one, keys))(keys)))


@pytest.mark.parametrize("name", WITH_LAW)
def test_predicted_and_measured_cosine_agree_within_ten_percent(name):
    # Of few directions of very different length the longest count most: then the mean square says
    # less about the cosine, 14 % for four outer products of size 8 x 8.
    for shape, n in WIDE_GRID if name == "low_rank" else GRID:
        params = {"w": jnp.zeros(shape)}
        est = zojax.finite_difference(**WITH_LAW[name], num_directions=n, sigma=0.1)
        predicted = expected_cosine(est.linear_error(params), n)
        # A cosine scatters by about 1 / sqrt(d), or half of itself for four directions: 1 to 2 %.
        measured = measured_cosine(est, params, max(64, 4096 // n))
        assert abs(measured / predicted - 1) < 0.1, f"{name}, {shape}, n {n}: {measured}"


def test_all_coordinates_are_expected_to_be_exact():
    est = zojax.coordinate_difference(sigma=0.1)
    assert expected_cosine(est.linear_error(PARAMS), DIMENSION) == 1
    signs = zojax.finite_difference(
        directions=all_coordinates(), num_directions=None, shaping=zojax.sign_of_difference
    )
    # The cosine of normal numbers to their signs.
    found = expected_cosine(signs.linear_error(PARAMS), DIMENSION)
    np.testing.assert_allclose(found, (2 / np.pi) ** 0.5, rtol=0.1)


def test_a_mask_leaves_only_what_is_perturbed():
    masked = zojax.finite_difference(num_directions=4, mask={"bias": True, "kernel": False})
    assert masked.linear_error(PARAMS) == (2 + 1) / 4


@pytest.mark.parametrize(
    "est",
    [
        zojax.finite_difference(stencil=zojax.one_point),
        zojax.control_variate(zojax.finite_difference()),
        zojax.augmented_random_search(),
        zojax.pgpe(),
    ],
    ids=lambda est: est.name,
)
def test_no_law_where_the_error_depends_on_more_than_the_dimension(est):
    assert est.linear_error is None


def test_known_efficiencies_are_those_of_shaped_normal_numbers():
    normal = jax.random.normal(jax.random.key(0), (20_000,))
    for name, shaping in SHAPINGS.items():
        valid = jnp.ones(normal.shape, bool)
        values, _ = shaping.on_values(jnp.stack([normal, -normal], axis=1), None, valid)
        shaped = shaping.on_derivatives((values[:, 0] - values[:, 1]) / 2, valid)
        found = np.corrcoef(normal, shaped)[0, 1] ** 2
        np.testing.assert_allclose(found, shaping.efficiency, rtol=0.01, err_msg=name)
