import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax

KEY = jax.random.key(0)
PARAMS = {"w": jnp.array([0.5, -1.0, 2.0])}


def build(stencil=zojax.central, n=4, **kwargs):
    return zojax.finite_difference(stencil=stencil, num_directions=n, sigma=0.1, **kwargs)


def loss(params, shift=0.0):
    return jnp.sum((params["w"] - shift) ** 3)


def losses_at_points(est):
    points = zojax.ask(est, PARAMS, KEY, ())["w"]
    return np.sum(np.asarray(points, np.float64) ** 3, axis=1)


@pytest.mark.parametrize("stencil", [zojax.central, zojax.one_point, zojax.forward])
def test_value_is_the_mean_of_the_losses_or_the_centre(stencil):
    est = build(stencil)
    result, _ = zojax.estimate(est, loss, PARAMS, KEY, ())
    values = losses_at_points(est)
    expected = values[0] if stencil.has_center else values.mean()
    np.testing.assert_allclose(result.value, expected, rtol=1e-5)
    around = values[1:] if stencil.has_center else values
    np.testing.assert_allclose(result.info.loss_std, around.std(), rtol=1e-4)


def test_estimate_is_the_formula_written_out():
    est = build()
    points = np.asarray(zojax.ask(est, PARAMS, KEY, ())["w"], np.float64)
    values = losses_at_points(est)
    directions = (points[::2] - points[1::2]) / 0.2
    quotients = (values[::2] - values[1::2]) / 0.2
    expected = (quotients[:, None] * directions).mean(0)
    result, _ = zojax.estimate(est, loss, PARAMS, KEY, ())
    np.testing.assert_allclose(result.grad["w"], expected, rtol=1e-4)
    rounding = np.sqrt((values**2).mean()) * np.finfo(np.float32).eps
    ratio = np.sqrt(((0.1 * quotients) ** 2).mean()) / rounding
    np.testing.assert_allclose(result.info.signal_to_noise, ratio, rtol=1e-3)


def test_args_reach_the_loss():
    value_and_grad = zojax.value_and_grad(loss, build(zojax.forward))
    value, _ = value_and_grad(PARAMS, KEY, jnp.float32(0.5))
    np.testing.assert_allclose(value, loss(PARAMS, 0.5), rtol=1e-6)
    result, _ = zojax.estimate(build(zojax.forward), loss, PARAMS, KEY, (), args=(0.5,))
    assert result.value == value


def test_value_and_grad_agrees_with_estimate():
    value, grad = zojax.value_and_grad(loss, build())(PARAMS, KEY)
    result, state = zojax.estimate(build(), loss, PARAMS, KEY, ())
    assert state == ()
    np.testing.assert_allclose(value, result.value, rtol=1e-6)
    np.testing.assert_allclose(grad["w"], result.grad["w"], rtol=1e-5)


def test_has_aux_returns_the_aux_of_the_centre():
    def with_aux(params):
        return loss(params), {"seen": params["w"]}

    est = build(zojax.forward)
    for execution in (None, zojax.chunked(3)):
        run = zojax.value_and_grad(with_aux, est, has_aux=True, execution=execution)
        (value, aux), grad = run(PARAMS, KEY)
        np.testing.assert_array_equal(aux["seen"], PARAMS["w"])
        np.testing.assert_allclose(value, loss(PARAMS), rtol=1e-6)
    np.testing.assert_allclose(
        grad["w"], zojax.value_and_grad(loss, est)(PARAMS, KEY)[1]["w"], rtol=1e-4
    )


@pytest.mark.parametrize("stencil", [zojax.central, zojax.one_point])
def test_has_aux_is_refused_without_a_centre(stencil):
    with pytest.raises(ValueError, match=r"has_aux .*zojax.forward"):
        zojax.value_and_grad(loss, build(stencil), has_aux=True)


def test_value_and_grad_refuses_estimators_with_state():
    est = zojax.finite_difference(sigma=lambda count: 0.1)
    with pytest.raises(ValueError, match=r"state or a step count.*zojax.estimate"):
        zojax.value_and_grad(loss, est)


def test_a_schedule_counts_steps_in_the_state():
    est = zojax.finite_difference(num_directions=1, sigma=lambda count: 0.1 * (count + 1.0))
    state = est.init(PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        spreads = []
        for _ in range(2):
            points = zojax.ask(est, PARAMS, KEY, state)["w"]
            spreads.append(points[0] - points[1])
            _, state = zojax.tell(est, PARAMS, KEY, state, [1.0, 2.0])
    np.testing.assert_allclose(spreads[1], 2 * spreads[0], rtol=1e-5)
    assert state.count == 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda p: p["w"], r"scalar of shape \(\), got shape \(3,\)"),
        (lambda p: (loss(p), 1.0), "has_aux=True"),
        (lambda p: loss(p) + 0j, "complex64"),
        (lambda p: None, "got NoneType"),
        (lambda p: {"loss": loss(p)}, "got dict"),
    ],
)
def test_a_loss_that_is_not_a_real_scalar_is_refused(bad, message):
    with jax.numpy_dtype_promotion("standard"), pytest.raises(ValueError, match=message):
        zojax.estimate(build(), bad, PARAMS, KEY, ())


def test_has_aux_needs_a_pair():
    with pytest.raises(ValueError, match=r"\(loss, aux\)"):
        zojax.value_and_grad(loss, build(zojax.forward), has_aux=True)(PARAMS, KEY)


@pytest.mark.parametrize("dtype", ["int32", "bool", "float16", "bfloat16"])
def test_losses_of_other_dtypes_are_read_as_float32(dtype):
    result, _ = zojax.estimate(build(), lambda p: loss(p).astype(dtype), PARAMS, KEY, ())
    assert result.value.dtype == result.grad["w"].dtype == "float32"


@pytest.mark.parametrize(
    "outside",
    [
        lambda p: float(loss(p)),
        lambda p: np.sum(np.array(p["w"])),
        lambda p: 1 if loss(p) > 0 else 0,
    ],
)
def test_a_loss_outside_jax_gets_a_note_about_ask_and_tell(outside):
    with pytest.raises(jax.errors.JAXTypeError) as caught:
        zojax.estimate(build(), outside, PARAMS, KEY, ())
    assert any("zojax.ask" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("values", [np.zeros(7), np.zeros((8, 1)), 0.0, []])
def test_tell_refuses_a_wrong_number_of_values(values):
    with pytest.raises(ValueError, match=r"values must have shape \(8,\), one loss per point"):
        zojax.tell(build(), PARAMS, KEY, (), values)


@pytest.mark.parametrize("call", ["estimate", "value_and_grad", "transformation"])
def test_what_is_not_an_estimator_or_execution_is_refused(call):
    calls = {
        "estimate": lambda est, run: zojax.estimate(est, loss, PARAMS, KEY, (), execution=run),
        "value_and_grad": lambda est, run: zojax.value_and_grad(loss, est, execution=run),
        "transformation": lambda est, run: zojax.as_gradient_transformation(
            est, KEY, execution=run
        ),
    }
    with pytest.raises(ValueError, match="est must be an estimator"):
        calls[call](zojax.gaussian(), None)
    with pytest.raises(ValueError, match="execution must be"):
        calls[call](build(), zojax.chunked)


def test_a_loss_on_the_host_works_in_chunks_of_one():
    """And sees one point at a time, although it cannot be batched."""
    shapes = set()

    def host(w):
        shapes.add(w.shape)
        return np.float32(np.sum(np.asarray(w, np.float64) ** 3))

    def outside(params):
        return jax.pure_callback(host, jax.ShapeDtypeStruct((), jnp.float32), params["w"])

    result, _ = zojax.estimate(build(), outside, PARAMS, KEY, (), execution=zojax.chunked(1))
    expected, _ = zojax.estimate(build(), loss, PARAMS, KEY, ())
    np.testing.assert_allclose(result.grad["w"], expected.grad["w"], rtol=1e-4)
    assert shapes == {(3,)}


def test_float64_losses_keep_their_precision():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        params = jnp.array([1.0, 2.0], jnp.float64)
        est = zojax.finite_difference(num_directions=4, sigma=1e-6)
        slope = jnp.array([3.0, -1.0])
        result, _ = zojax.estimate(est, lambda p: p @ slope, params, KEY, ())
        points = np.asarray(zojax.ask(est, params, KEY, ()))
        directions = (points[::2] - points[1::2]) / 2e-6
        expected = np.mean((directions @ np.asarray(slope))[:, None] * directions, 0)
        assert result.grad.dtype == "float64"
        # Noise and sums are float32; the differences themselves are not.
        np.testing.assert_allclose(result.grad, expected, rtol=1e-5)


def test_closed_over_tracers_work_with_concrete_params():
    """As in a scan over batches whose parameters are still concrete numbers."""

    def run(shift):
        return zojax.estimate(build(), lambda p: loss(p, shift), PARAMS, KEY, ())[0].value

    np.testing.assert_allclose(
        jax.jit(run)(0.5),
        zojax.estimate(build(), loss, PARAMS, KEY, (), args=(0.5,))[0].value,
        rtol=1e-5,
    )
