"""Each planted fault is named with what to change, and a healthy run is not accused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax.diagnostics import expected_cosine
from zojax.diagnostics.sigma_window import Ladder, usable_window

KEY = jax.random.key(0)
PARAMS = {"bias": jnp.zeros(4), "kernel": jnp.linspace(-1.0, 1.0, 28).reshape(4, 7)}
INPUTS = jax.random.normal(jax.random.key(1), (24, 4))
EST = zojax.finite_difference(num_directions=16, sigma=0.01)


def smooth(params, inputs):
    outputs = jnp.tanh(inputs @ params["kernel"] + params["bias"].sum())
    return jnp.mean((outputs - 0.5) ** 2)


def diagnose(loss_fn=smooth, est=EST, params=PARAMS, **options):
    return zojax.diagnose(est, loss_fn, params, KEY, args=(INPUTS,), num_estimates=16, **options)


def test_a_healthy_run_has_no_warning_and_the_expected_cosine(capsys):
    found = diagnose(learning_rate=0.1)
    assert found.warnings == ()
    assert found.expected_cosine == expected_cosine((32 + 1) / 16, 16)
    allowed = 0.1 * found.expected_cosine + 3 * found.cosine_error
    assert abs(found.measured_cosine - found.expected_cosine) < allowed
    assert abs(found.split_half_cosine - found.expected_cosine) < 0.15
    np.testing.assert_allclose(found.noise, ((32 + 1) / 16) ** 0.5, rtol=0.2)
    assert found.bias < 0.3  # the mean of 16 estimates is known to 0.36
    assert found.sigma == 0.01 and 0 < found.sigma_floor < 1e-3 and 0.05 < found.sigma_ceiling < 5
    assert found.moved_fraction > 0.9
    np.testing.assert_allclose(
        found.sample_forwards_per_second, len(INPUTS) * found.queries_per_second
    )
    printed = capsys.readouterr().out
    assert printed.strip() == str(found).strip()
    for name in ("cosine, expected", "usable sigma", "queries/s"):
        assert name in printed


def test_sigma_below_the_rounding_floor_is_found():
    found = diagnose(est=zojax.finite_difference(num_directions=16, sigma=1e-8))
    assert found.warnings[0].startswith("sigma=1e-08 is below the rounding floor")
    assert "raise sigma" in found.warnings[0]


def test_a_constant_loss_is_found():
    found = diagnose(lambda params, inputs: jnp.mean(inputs**2))
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("the loss is the same at every point: check that loss_fn")


def test_a_learning_rate_that_moves_nothing_in_bfloat16_is_found():
    low = jax.tree.map(lambda x: (x + 2).astype(jnp.bfloat16), PARAMS)

    def loss(params, inputs):
        return smooth(jax.tree.map(lambda x: x.astype(jnp.float32) - 2, params), inputs)

    found = diagnose(loss, params=low, learning_rate=1e-3)
    assert found.moved_fraction == 0
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("learning_rate=0.001 moves only 0%")
    assert "float32" in found.warnings[0]


def test_noise_that_differs_from_point_to_point_is_found():
    def loss(params, inputs):
        bits = jax.lax.bitcast_convert_type(params["kernel"], jnp.uint32)
        return smooth(params, inputs) + jax.random.normal(jax.random.key(bits.sum()))

    found = diagnose(loss)
    assert len(found.warnings) == 1
    assert "however small sigma is" in found.warnings[0]
    assert "common random numbers" in found.warnings[0]


def test_a_loss_that_draws_noise_of_its_own_is_found():
    generator = np.random.default_rng(0)

    def loss(params, inputs):
        noise = jax.pure_callback(
            lambda: generator.normal(size=()).astype(np.float32),
            jax.ShapeDtypeStruct((), jnp.float32),
            vmap_method="sequential",
        )
        return smooth(params, inputs) + noise

    # No vmap: it would draw the noise of a loss that does not depend on the point only once.
    found = diagnose(loss, execution=zojax.chunked(1))
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("the loss gives two values at the same point")
    assert "common random numbers" in found.warnings[0]


def test_shared_noise_is_no_fault():
    def loss(params, inputs):
        noise = jax.random.normal(jax.random.key(3), inputs.shape)
        return smooth(params, inputs + noise)

    assert diagnose(loss).warnings == ()


def test_a_loss_without_derivative_is_judged_by_halves():
    def loss(params, inputs):
        outputs = inputs @ params["kernel"] + params["bias"].sum()
        return jnp.mean(outputs > 0.5)

    est = zojax.finite_difference(num_directions=16, sigma=0.3)
    found = diagnose(loss, est)
    assert np.isnan(found.measured_cosine) and np.isnan(found.bias)
    assert abs(found.split_half_cosine - found.expected_cosine) < 0.2
    assert found.warnings == ()

    flat = diagnose(loss, est=zojax.finite_difference(num_directions=16, sigma=1e-6))
    assert flat.warnings[0].startswith("the loss is flat within sigma=1e-06: raise sigma")


def test_the_loss_is_differentiated_only_where_that_is_allowed():
    @jax.custom_jvp
    def underivable(x):
        return x

    @underivable.defjvp
    def _(primals, tangents):
        raise AssertionError("differentiated")

    def loss(params, inputs):
        return underivable(smooth(params, inputs))

    assert np.isnan(diagnose(loss).measured_cosine)
    assert np.isnan(diagnose(differentiable=False).measured_cosine)
    with pytest.raises(AssertionError, match="differentiated"):
        diagnose(loss, differentiable=True)


def test_curvature_within_sigma_is_found():
    def loss(params, inputs):
        return jnp.mean(jnp.sin(40 * (params["kernel"] + 0.1)))

    found = diagnose(loss, est=zojax.finite_difference(num_directions=16, sigma=0.5))
    assert found.sigma_ceiling < 0.1
    assert found.warnings[0].startswith("the cosine") and "lower it" in found.warnings[0]


def test_failing_evaluations_are_found():
    def loss(params, inputs):
        return smooth(params, inputs) + jnp.log(params["bias"][0])  # NaN for half of the points

    found = diagnose(loss)
    assert any("NaN or infinite" in sentence for sentence in found.warnings)


@pytest.mark.parametrize(
    ("est", "expected"),
    [
        (zojax.coordinate_difference(sigma=0.01), 1.0),
        (zojax.control_variate(zojax.finite_difference(num_directions=16, sigma=0.01)), None),
        (zojax.pgpe(num_directions=16, sigma=0.01), None),
        (
            zojax.finite_difference(
                stencil=zojax.forward,
                num_directions=16,
                sigma=lambda count: 0.01 / (count.astype(jnp.float32) + 1),
                mask={"bias": False, "kernel": True},
            ),
            expected_cosine((28 + 1) / 16, 16),
        ),
    ],
    ids=["coordinate", "control_variate", "pgpe", "forward, schedule, mask"],
)
def test_other_estimators_are_measured_too(est, expected):
    found = diagnose(est=est)
    assert found.warnings == ()
    np.testing.assert_allclose(found.sigma, 0.01, rtol=0.5)
    if expected is None:
        assert np.isnan(found.expected_cosine) and found.measured_cosine > 0.3
    else:
        assert abs(found.measured_cosine - expected) < 0.1 * expected + 3 * found.cosine_error


def test_the_window_of_a_cubic_is_where_its_slope_is_right():
    sigmas = np.geomspace(1e-8, 1e2, 31)
    rounding = 1e-7 * np.array([1, -1] * 15 + [1])
    differences = (sigmas + sigmas**3 + rounding)[:, None] * np.array([1.0, 2.0])
    floor, ceiling = usable_window(Ladder(0.01, sigmas, differences, 1.0, 1e-7, False))
    assert 3e-7 < floor < 3e-6 and 0.2 < ceiling < 0.4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_estimates": 3}, "num_estimates must be an integer >= 4"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number > 0"),
        ({"differentiable": "maybe"}, "differentiable must be True, False or 'auto'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        zojax.diagnose(EST, smooth, PARAMS, KEY, args=(INPUTS,), **options)
