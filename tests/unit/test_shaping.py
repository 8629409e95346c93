import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zojax

SETTINGS = settings(max_examples=20, deadline=None, derandomize=True)


def on_values(shaping, values, center=None, valid=None):
    values = jnp.asarray(values, jnp.float32)
    center = None if center is None else jnp.float32(center)
    valid = jnp.all(jnp.isfinite(values), axis=1) if valid is None else jnp.asarray(valid)
    return shaping.on_values(values, center, valid)


def test_identity_keeps_values_and_centre():
    values, center = on_values(zojax.identity, [[1.0], [2.0]], 3.0)
    np.testing.assert_array_equal(values, [[1.0], [2.0]])
    assert center == 3.0


def test_centered_rank_spreads_over_minus_half_to_half():
    ranks, _ = on_values(zojax.centered_rank, [[10.0, -3.0], [0.5, 99.0], [7.0, 1.0]])
    np.testing.assert_allclose(ranks, [[0.3, -0.5], [-0.3, 0.5], [0.1, -0.1]], atol=1e-7)


def test_centered_rank_gives_ties_the_mean_of_their_ranks():
    ranks, _ = on_values(zojax.centered_rank, [[1.0], [2.0], [2.0], [3.0], [2.0]])
    np.testing.assert_allclose(ranks[:, 0], [-0.5, 0.0, 0.0, 0.5, 0.0], atol=1e-7)


def test_centered_rank_ranks_the_centre_among_the_others():
    ranks, center = on_values(zojax.centered_rank, [[1.0], [3.0]], 2.0)
    np.testing.assert_allclose(ranks[:, 0], [-0.5, 0.5])
    assert center == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_centered_rank_puts_failures_last_and_ignores_them_otherwise(bad):
    ranks, _ = on_values(zojax.centered_rank, [[1.0], [bad], [3.0], [2.0]])
    np.testing.assert_allclose(ranks[:, 0], [-0.5, 0.5, 0.5, 0.0], atol=1e-7)


def test_centered_rank_does_not_count_the_partner_of_a_failure():
    ranks, _ = on_values(zojax.centered_rank, [[1.0, 2.0], [-5.0, np.nan]])
    np.testing.assert_allclose(ranks[0], [-0.5, 0.5])


@pytest.mark.parametrize("shaping", [zojax.centered_rank, zojax.standardize])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_equal_values_carry_no_information(shaping, value):
    for count in (1, 7):
        shaped, center = on_values(shaping, np.full((count, 1), value), value)
        np.testing.assert_array_equal(shaped, 0)
        assert center == 0


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=8))
@SETTINGS
def test_centered_rank_is_invariant_under_monotone_maps(numbers):
    values = np.array(numbers, np.float32)[:, None]
    plain, _ = on_values(zojax.centered_rank, values)
    for mapped in (values**3 + 5, np.arctan(values), np.exp(values / 20)):
        np.testing.assert_array_equal(plain, on_values(zojax.centered_rank, mapped)[0])
    flipped, _ = on_values(zojax.centered_rank, -values)
    np.testing.assert_allclose(plain, -flipped, atol=1e-7)


def test_standardize_has_mean_zero_and_unit_spread_over_finite_values():
    values = np.array([[1.0, 4.0], [2.0, np.nan], [7.0, -2.0]])
    kept = values[[0, 2]]
    shaped, center = on_values(zojax.standardize, values, 5.0)
    expected = (kept - kept.mean()) / kept.std()
    np.testing.assert_allclose(shaped[jnp.array([0, 2])], expected, rtol=1e-6)
    np.testing.assert_allclose(center, (5.0 - kept.mean()) / kept.std(), rtol=1e-6)


def test_sign_of_difference_takes_signs_of_derivatives_only():
    valid = jnp.ones(3, bool)
    signs = zojax.sign_of_difference.on_derivatives(jnp.array([2.0, -0.1, 0.0]), valid)
    np.testing.assert_array_equal(signs, [1, -1, 0])
    values, _ = on_values(zojax.sign_of_difference, [[5.0, 2.0]])
    np.testing.assert_array_equal(values, [[5.0, 2.0]])
