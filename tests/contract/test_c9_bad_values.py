"""C9: bad values are data, counted and dropped; bad configuration is a ValueError at once."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from tests.contract.registry import SHAPINGS, STENCILS

PARAMS = jnp.array([0.5, -1.0, 0.3])
KEY = jax.random.key(0)
N = 5
COMBINATIONS = [
    (stencil, shaping)
    for stencil, shaping in itertools.product(STENCILS, SHAPINGS)
    if STENCILS[stencil].is_difference or not SHAPINGS[shaping].needs_difference
]


def build(stencil, shaping, n=N):
    return zojax.finite_difference(
        num_directions=n, sigma=0.1, stencil=STENCILS[stencil], shaping=SHAPINGS[shaping]
    )


def values_at(est):
    return np.array(jnp.sum(zojax.ask(est, PARAMS, KEY, ()) ** 3, axis=1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("stencil", "shaping"), COMBINATIONS)
def test_c9_a_failed_point_is_dropped_with_its_partner(stencil, shaping, bad):
    """The failure is the last point, so the others are an estimate with one direction less."""
    est = build(stencil, shaping)
    values = values_at(est)
    values[-1] = bad
    result, _ = zojax.tell(est, PARAMS, KEY, (), values)

    fewer = build(stencil, shaping, N - 1)
    expected, _ = zojax.tell(fewer, PARAMS, KEY, (), values[: fewer.num_queries(PARAMS)])
    np.testing.assert_allclose(result.grad, expected.grad, rtol=1e-5)
    assert np.isfinite(result.value)
    assert result.info.num_nonfinite == 1
    assert result.info.num_queries == len(values)


@pytest.mark.parametrize(("stencil", "shaping"), COMBINATIONS)
def test_c9_if_everything_fails_the_gradient_is_zero_and_info_says_so(stencil, shaping):
    est = build(stencil, shaping)
    failed = np.full(est.num_queries(PARAMS), np.nan)
    result, _ = zojax.tell(est, PARAMS, KEY, (), failed)
    np.testing.assert_array_equal(result.grad, 0)
    assert np.isnan(result.value)
    assert result.info.num_nonfinite == len(failed)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("shaping", SHAPINGS)
def test_c9_a_failed_centre_gives_a_zero_gradient(shaping, bad):
    est = build("forward", shaping)
    values = values_at(est)
    values[0] = bad
    result, _ = zojax.tell(est, PARAMS, KEY, (), values)
    np.testing.assert_array_equal(result.grad, 0)
    assert not np.isfinite(result.value)
    assert result.info.num_nonfinite == 1


def test_c9_a_failed_coordinate_gets_zero_and_leaves_the_others_alone():
    est = zojax.coordinate_difference(sigma=0.1)
    values = values_at(est)
    whole, _ = zojax.tell(est, PARAMS, KEY, (), values)
    values[2] = np.nan
    result, _ = zojax.tell(est, PARAMS, KEY, (), values)
    np.testing.assert_array_equal(result.grad, whole.grad * jnp.array([1.0, 0.0, 1.0]))


@pytest.mark.parametrize(("stencil", "shaping"), COMBINATIONS)
def test_c9_equal_losses_give_a_zero_gradient(stencil, shaping):
    est = build(stencil, shaping)
    result, _ = zojax.tell(est, PARAMS, KEY, (), np.full(est.num_queries(PARAMS), 0.1))
    if stencil == "one_point" and shaping == "identity":
        assert np.all(np.isfinite(result.grad))
    else:
        np.testing.assert_array_equal(result.grad, 0)


FD = zojax.finite_difference


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda: FD(num_directions=0), ["num_directions", "0", ">= 1"]),
        (lambda: FD(num_directions=2.5), ["num_directions", "2.5"]),
        (lambda: FD(num_directions=None), ["num_directions", "None"]),
        (lambda: FD(num_directions=True), ["num_directions", "True"]),
        (lambda: FD(sigma=0), ["sigma", "0", "> 0"]),
        (lambda: FD(sigma=-0.1), ["sigma", "-0.1"]),
        (lambda: FD(sigma=np.nan), ["sigma", "nan"]),
        (lambda: FD(sigma="big"), ["sigma", "big"]),
        (lambda: FD(directions="gaussian"), ["directions", "gaussian"]),
        (lambda: FD(directions=zojax.gaussian), ["directions", "zojax.gaussian()"]),
        (lambda: FD(stencil="central"), ["stencil", "central"]),
        (lambda: FD(shaping=None), ["shaping", "None"]),
        (
            lambda: FD(stencil=zojax.one_point, shaping=zojax.sign_of_difference),
            ["sign_of_difference", "one_point", "zojax.central"],
        ),
        (lambda: zojax.evolution_strategy(num_directions=-1), ["num_directions", "-1"]),
        (lambda: zojax.spsa(sigma=0.0), ["sigma", "0.0"]),
        (
            lambda: zojax.coordinate_difference(stencil=zojax.one_point),
            ["stencil", "one_point", "zojax.forward"],
        ),
        (lambda: zojax.chunked(0), ["size", "0"]),
        (lambda: zojax.low_rank(0), ["rank", "0"]),
        (lambda: zojax.orthogonal(0), ["block_size", "0"]),
        (lambda: zojax.sparse(0.0), ["fraction", "0.0", "(0, 1]"]),
        (lambda: zojax.sparse(1.5), ["fraction", "1.5"]),
    ],
)
def test_c9_bad_configuration_names_argument_value_and_what_is_allowed(build, names):
    with pytest.raises(ValueError) as caught:
        build()
    for name in names:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("params", "mask", "reason"),
    [
        ({"steps": jnp.arange(3)}, None, "no floating-point leaf"),
        ({}, None, "no leaves"),
        ({"w": jnp.ones(2)}, {"w": False}, "mask selects no floating-point leaf"),
        ({"w": jnp.ones(2)}, {"v": True}, "mask does not fit"),
    ],
)
def test_c9_nothing_to_perturb_is_refused(params, mask, reason):
    est = zojax.spsa(mask=mask)
    with pytest.raises(ValueError, match=reason):
        est.init(params)
    with pytest.raises(ValueError, match=reason):
        zojax.estimate(est, lambda p: jnp.float32(0), params, KEY, ())


def test_c9_traced_sigma_and_schedules_are_not_checked():
    def run(sigma):
        est = zojax.finite_difference(num_directions=2, sigma=sigma)
        return zojax.estimate(est, jnp.sum, PARAMS, KEY, ())[0].grad

    assert np.all(np.isfinite(jax.jit(run)(0.1)))
    zojax.finite_difference(sigma=optax.constant_schedule(0.0))
