"""Weight-noise models, their order, and how a network is scored on simulated devices."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax import robustness as rb
from zojax.testing import assert_unbiased

KEY = jax.random.key(0)
PARAMS = {
    "dense": {"kernel": jnp.linspace(-2.0, 1.0, 4000).reshape(40, 100), "bias": jnp.ones(500)},
    "steps": jnp.arange(3),
}


def moved(model, params=PARAMS, key=KEY):
    return jax.jit(model)(key, params)


def kernel_change(model, key=KEY):
    kernel = PARAMS["dense"]["kernel"]
    return np.asarray(moved(model, key=key)["dense"]["kernel"] - kernel, np.float64).ravel()


def flat(*numbers):
    return {"w": jnp.asarray(numbers, jnp.float32)}


RMS, MAX = 1.0, 2.0  # of the kernel: the mean square of U[-2, 1] is 1


@pytest.mark.parametrize(("relative_to", "unit"), [("absolute", 1.0), ("rms", RMS), ("max", MAX)])
@pytest.mark.parametrize(
    ("make", "variance", "fourth"),
    [(rb.gaussian_noise, 1.0, 3.0), (rb.uniform_noise, 1 / 3, 1 / 5)],
)
def test_additive_noise_has_its_moments_in_its_unit(make, variance, fourth, relative_to, unit):
    change = kernel_change(make(0.1, relative_to)) / (0.1 * unit)
    powers = np.stack([change, change**2, change**4], -1)
    assert_unbiased(powers, np.array([0, variance, fourth]), "noise", rounding=2e-3)
    if make is rb.uniform_noise:
        assert np.abs(change).max() <= 1.001


def test_multiplicative_noise_is_in_proportion_to_the_weight():
    kernel = np.asarray(PARAMS["dense"]["kernel"]).ravel()
    relative = kernel_change(rb.multiplicative_noise(0.2)) / kernel
    powers = np.stack([relative, relative**2], -1)
    assert_unbiased(powers, np.array([0, 0.04]), "relative noise", rounding=1e-3)
    assert np.all(moved(rb.multiplicative_noise(0.2), flat(0.0, 0.0))["w"] == 0)


@pytest.mark.parametrize("df", [1.0, 3.0])
def test_student_t_noise_has_its_quartiles_and_tails(df):
    change = kernel_change(rb.student_t_noise(0.5, df, "max")) / (0.5 * MAX)
    quartile = {1.0: 1.0, 3.0: 0.7649}[df]  # half of the mass is inside
    far = {1.0: 0.0635, 3.0: 0.00193}[df]  # P(|t| > 10) is 0.0635 and 0.0021
    inside = np.stack([np.abs(change) < quartile, np.abs(change) > 10], -1)
    assert_unbiased(inside, np.array([0.5, far]), f"student_t({df})", rounding=1e-3)


def test_quantised_codes_are_exact():
    weights = (-1.0, -0.5, -0.2, 0.0, 0.1, 0.17, 0.6, 0.9)
    three = moved(rb.quantized(3), flat(*weights))["w"] * 3  # levels -3 ... 3
    np.testing.assert_allclose(three, [-3, -2, -1, 0, 0, 1, 2, 3], atol=1e-6)
    two = moved(rb.quantized(2), flat(*weights))["w"]
    np.testing.assert_array_equal(two, [-1, 0, 0, 0, 0, 0, 1, 1])  # round(-0.5) is even
    one = moved(rb.quantized(1), flat(-3.0, 0.5, 1.0, 1.5))["w"]
    np.testing.assert_array_equal(one, [-1.5, 1.5, 1.5, 1.5])
    assert np.all(moved(rb.quantized(4), flat(0.0, 0.0))["w"] == 0)


@pytest.mark.parametrize("bits", [2, 8, 32])
def test_quantised_has_its_number_of_levels_and_error(bits):
    values = moved(rb.quantized(bits))["dense"]["kernel"]
    step = MAX / (2 ** (bits - 1) - 1)
    error = np.abs(np.asarray(values - PARAMS["dense"]["kernel"])).max()
    assert error <= step / 2 + 1e-6
    assert len(np.unique(values)) <= min(2**bits - 1, 4000)


def test_a_channel_is_quantised_by_its_own_scale():
    weights = {"w": jnp.array([[1.0, 100.0], [0.3, -30.0]])}
    together = moved(rb.quantized(2), weights)["w"]
    apart = moved(rb.quantized(2, per_channel=True), weights)["w"]
    np.testing.assert_array_equal(together, [[0, 100], [0, 0]])
    np.testing.assert_array_equal(apart, [[1, 100], [0, 0]])
    signs = moved(rb.quantized(1, per_channel=True), weights)["w"]
    np.testing.assert_allclose(signs, [[0.65, 65], [0.65, -65]])
    flips = rb.bit_errors(4, 0.0, per_channel=True)
    fine = moved(rb.quantized(4, per_channel=True), weights)["w"]
    np.testing.assert_array_equal(moved(flips, weights)["w"], fine)


@pytest.mark.parametrize("bits", [2, 16])
def test_bit_errors_without_errors_are_quantisation(bits):
    found, expected = moved(rb.bit_errors(bits, 0.0)), moved(rb.quantized(bits))
    np.testing.assert_array_equal(found["dense"]["kernel"], expected["dense"]["kernel"])


def test_every_bit_flips_with_its_probability():
    bits, p = 4, 0.2
    codes = jnp.resize(jnp.arange(-7.0, 8.0), (15000,)).at[0].set(7.0)  # the step is 1
    found = np.asarray(moved(rb.bit_errors(bits, p), {"w": codes})["w"]).astype(int)
    changed = (found ^ np.asarray(codes).astype(int)) & 15
    flips = (changed[:, None] >> np.arange(bits)) & 1
    pairs = np.stack([flips[:, i] * flips[:, j] for i, j in itertools.combinations(range(4), 2)])
    samples = np.concatenate([flips, pairs.T], -1)
    assert_unbiased(samples, np.array([p] * bits + [p**2] * 6), "flips of bits, and of two at once")
    assert found.min() == -8  # two's complement has one code more below
    everything = moved(rb.bit_errors(bits, 1.0), {"w": codes})["w"]
    np.testing.assert_array_equal(everything, -codes - 1)


@pytest.mark.parametrize("values", ["zero", "extremes"])
def test_stuck_cells(values):
    kernel = np.asarray(PARAMS["dense"]["kernel"])
    found = np.asarray(moved(rb.stuck_at(0.3, values))["dense"]["kernel"])
    broken = found != kernel
    assert_unbiased(broken.reshape(-1, 1), np.array([0.3]), "share of broken cells")
    if values == "zero":
        assert np.all(found[broken] == 0)
    else:
        assert set(np.unique(found[broken])) == {-MAX, MAX}
        up = (found[broken] > 0).reshape(-1, 1)
        assert_unbiased(up, np.array([0.5]), "shorted up", rounding=1e-2)
    assert np.all(moved(rb.stuck_at(1.0))["dense"]["kernel"] == 0)
    assert not np.any(kernel_change(rb.stuck_at(0.0, values)))


def test_exactly_the_smallest_are_pruned_ties_or_not():
    found = moved(rb.pruned(0.5), flat(0.1, -0.4, 0.3, -0.2))["w"]
    np.testing.assert_allclose(found, [0, -0.4, 0.3, 0])
    for fraction in (0.0, 0.25, 0.6, 1.0):
        tied = moved(rb.pruned(fraction))["dense"]["bias"]
        assert np.sum(np.asarray(tied) == 0) == round(500 * fraction)
    # Not random: any key, any chip.
    a, b = (moved(rb.pruned(0.5), key=jax.random.key(i))["dense"]["kernel"] for i in (0, 1))
    np.testing.assert_array_equal(a, b)


def test_drift_follows_its_power_law():
    without_spread = moved(rb.drift(1000.0, 0.05, 0.0, start=10.0), flat(1.0, -2.0))["w"]
    np.testing.assert_allclose(without_spread, np.array([1, -2]) * 100**-0.05, rtol=1e-5)
    kernel = np.asarray(PARAMS["dense"]["kernel"])
    found = np.asarray(moved(rb.drift(1e4, 0.06, 0.01))["dense"]["kernel"])
    nu = (-np.log(found / kernel) / np.log(1e4)).reshape(-1, 1)
    assert_unbiased(np.concatenate([nu, (nu - 0.06) ** 2], -1), np.array([0.06, 1e-4]), "exponent")
    assert np.abs(found / kernel).max() <= 1  # nothing grows
    np.testing.assert_array_equal(moved(rb.drift(1.0), flat(1.0, 2.0))["w"], [1.0, 2.0])


MODELS = [
    rb.gaussian_noise(0.1),
    rb.uniform_noise(0.1, "rms"),
    rb.multiplicative_noise(0.1),
    rb.student_t_noise(0.1, relative_to="max"),
    rb.stuck_at(0.5),
    rb.stuck_at(0.5, "extremes"),
    rb.pruned(0.5),
    rb.drift(100.0),
    rb.quantized(3),
    rb.bit_errors(4, 0.3),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_a_model_touches_what_it_covers_and_is_a_function_of_its_key(model):
    params = {
        "kernel": jnp.linspace(-1, 1, 30).reshape(5, 6),
        "low": jnp.linspace(-1, 1, 7, dtype=jnp.bfloat16),
        "steps": jnp.arange(3),
    }
    only_low = dataclasses.replace(model, mask=lambda path: path == "low")
    keys = (KEY, jax.random.key(1))

    @jax.jit
    def run(keys, params):
        return model(keys[0], params), only_low(keys[0], params), model(keys[1], params)

    first, masked, other = run(keys, params)
    assert {name: x.dtype.name for name, x in first.items()} == {
        "kernel": "float32",
        "low": "float32",  # half precision would round small noise away
        "steps": "int32",
    }
    np.testing.assert_array_equal(first["steps"], params["steps"])
    assert not np.array_equal(first["kernel"], params["kernel"])
    np.testing.assert_array_equal(masked["kernel"], params["kernel"])
    assert not np.array_equal(masked["low"], params["low"].astype(jnp.float32))
    is_random = not model.name.startswith(("pruned", "quantized"))
    assert np.array_equal(other["kernel"], first["kernel"]) != is_random


def test_leaves_of_one_shape_get_noise_of_their_own():
    found = moved(rb.gaussian_noise(1.0), {"a": jnp.zeros(9), "b": jnp.zeros(9)})
    assert not np.array_equal(found["a"], found["b"])


def test_a_level_may_be_traced():
    def change(level):
        models = [rb.gaussian_noise(level), rb.stuck_at(level), rb.bit_errors(4, level)]
        return rb.composed(*models)(KEY, KEY, flat(1.0, 2.0))["w"]

    np.testing.assert_allclose(jax.jit(change)(jnp.float32(0.3)), change(0.3), rtol=1e-6)


def test_models_act_in_the_order_written():
    weights = flat(*np.linspace(-1, 1, 9))
    coarse, noise = rb.quantized(2), rb.uniform_noise(0.2)
    last_noise = rb.composed(coarse, noise)(KEY, KEY, weights)["w"]
    last_coarse = rb.composed(noise, coarse)(KEY, KEY, weights)["w"]
    assert len(np.unique(last_coarse)) <= 3 < len(np.unique(last_noise))
    # The second of two equal models draws anew.
    twice = rb.composed(noise, noise)(KEY, KEY, flat(0.0, 0.0))["w"]
    once = rb.composed(noise)(KEY, KEY, flat(0.0, 0.0))["w"]
    assert not np.allclose(twice, 2 * once)


def test_a_scope_says_which_key_a_model_draws_from():
    chip, read = rb.gaussian_noise(0.1), rb.scoped(rb.gaussian_noise(0.1), "read")
    keys, weights = jax.random.split(KEY, 3), flat(1.0, 2.0, 3.0)
    for model, own in ((chip, 0), (read, 1)):
        apply = rb.composed(model)
        base = apply(keys[0], keys[1], weights)["w"]
        same = apply(*[keys[2 if i != own else i] for i in range(2)], weights)["w"]
        other = apply(*[keys[2 if i == own else i] for i in range(2)], weights)["w"]
        np.testing.assert_array_equal(base, same)
        assert not np.array_equal(base, other)


def accuracy(params, inputs):
    return jnp.mean((inputs @ params["w"] > 0) == (inputs @ jnp.ones(4) > 0))


NET = {"w": jnp.ones(4), "steps": jnp.arange(2)}
INPUTS = jax.random.normal(jax.random.key(5), (200, 4))


def test_chips_do_not_depend_on_how_they_are_grouped():
    models = [rb.gaussian_noise(0.5), rb.scoped(rb.bit_errors(4, 0.1), "read")]
    scores = [
        rb.chip_scores(accuracy, NET, models, KEY, num_chips=num, chunk_size=size, args=(INPUTS,))
        for num, size in ((7, 1), (7, 3), (9, 25))
    ]
    assert scores[0].shape == (7,)
    assert len(np.unique(scores[0])) > 3
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-6)
    # The same key has the same chips; more of them begin with these.
    np.testing.assert_allclose(scores[2][:7], scores[0], rtol=1e-6)
    others = rb.chip_scores(accuracy, NET, models, jax.random.key(1), args=(INPUTS,))
    assert not np.array_equal(others[:7], scores[0])


def test_a_curve_falls_and_its_chips_are_the_same_at_every_level():
    curve = rb.noise_curve(accuracy, NET, rb.gaussian_noise, [0.0, 0.5, 2.0], KEY, args=(INPUTS,))
    assert curve.scores.shape == (3, 25)
    assert curve.clean == 1 == curve.mean[0]
    assert np.all(np.diff(curve.mean) < 0)


def test_a_curve_compiles_once_where_the_level_may_be_traced():
    traces = []

    def score(params):
        traces.append(0)
        return jnp.mean(params["w"])

    def row(make, levels):
        traces.clear()
        return rb.noise_curve(score, NET, make, levels, KEY, num_chips=2).scores

    traced = row(rb.stuck_at, [0.1, 0.5, 0.9])
    assert len(traces) <= 3  # two for chips, one for the clean score
    alone = rb.chip_scores(score, NET, [rb.stuck_at(0.5)], KEY, num_chips=2)
    np.testing.assert_array_equal(traced[1], alone)
    assert row(lambda bits: rb.quantized(int(bits)), [2, 4]).shape == (2, 2)
    with pytest.raises(ValueError, match="sigma must be >= 0"):
        row(rb.gaussian_noise, [-0.1, 0.1])


def test_a_grown_network_fools_an_absolute_level_and_no_relative_one():
    grown = {**NET, "w": 10 * NET["w"]}
    absolute, *relative = (
        rb.chip_scores(accuracy, net, [rb.gaussian_noise(1.0, unit)], KEY, args=(INPUTS,))
        for net, unit in ((grown, "absolute"), (grown, "rms"), (NET, "rms"))
    )
    np.testing.assert_allclose(relative[0], relative[1], atol=0.02)
    assert absolute.mean() > relative[0].mean() + 0.1


def test_what_a_curve_says_about_made_up_scores():
    scores = np.array([[1.0, 1.0], [0.9, 0.7], [0.5, 0.1]])
    curve = rb.NoiseCurve(np.array([0.0, 1.0, 3.0]), scores, 1.0)
    np.testing.assert_allclose(curve.mean, [1.0, 0.8, 0.3])
    np.testing.assert_allclose(curve.worst, [1.0, 0.7, 0.1])
    np.testing.assert_allclose(curve.fifth_percentile, [1.0, 0.71, 0.12])
    assert curve.area == pytest.approx((0.9 + 2 * 0.55) / 3)
    assert curve.largest_level(0.9) == pytest.approx(0.5)
    assert curve.largest_level(0.8) == pytest.approx(1.0)
    assert curve.largest_level(0.55) == pytest.approx(2.0)
    assert curve.largest_level(0.2) == 3.0
    assert curve._replace(clean=2.0).largest_level(0.9) == 0.0
    # It ends where the mean first fails, though it may recover.
    wavy = rb.NoiseCurve(np.arange(3.0), np.array([[1.0], [0.5], [1.0]]), 1.0)
    assert wavy.largest_level(0.75) == pytest.approx(0.5)


HESSIAN = jnp.array([1.0, 2.0, 3.0])


def quadratic(params, scale=1.0):
    return 0.5 * scale * jnp.sum(HESSIAN * params["w"] ** 2) + 5.0


def test_sharpness_of_a_quadratic_is_its_trace():
    for weights in (flat(0.0, 0.0, 0.0), flat(1.0, -2.0, 0.5)):
        found = jax.device_get(
            [rb.sharpness(quadratic, weights, jax.random.key(i), sigma=0.1) for i in range(20)]
        )
        gaps, traces, errors = np.array(found).T
        np.testing.assert_allclose(traces, 2 * gaps / 0.01, rtol=1e-6)
        assert_unbiased(traces[:, None], np.array([6.0]), "trace", rounding=1e-3)
        # var(sum h g^2 / 2) = sum h^2 / 2: pairs, of which each is one sample.
        stated = 0.01 * (14 / 2) ** 0.5 / 128**0.5
        assert errors.mean() == pytest.approx(stated, rel=0.1)
        assert gaps.std(ddof=1) == pytest.approx(stated, rel=0.5)


def test_a_linear_loss_is_flat_without_error():
    linear = lambda p, c: c * jnp.sum(p["w"])  # noqa: E731
    found = rb.sharpness(linear, flat(1.0, 2.0), KEY, sigma=0.1, args=(3.0,))
    assert abs(found.smoothed_gap) < 1e-6
    assert found.standard_error < 1e-6


def test_pac_bayes_radius_of_a_quadratic_has_a_closed_form():
    radius = rb.pac_bayes_radius(
        quadratic, flat(1.0, -2.0, 0.5), KEY, rise=0.3, num_directions=2000, args=(2.0,)
    )
    # sigma^2 / 2 tr H = rise, the error of a mean over 2,000.
    exact = (2 * 0.3 / 12) ** 0.5
    assert radius == pytest.approx(exact, rel=4 * 0.5 * (14 / 2) ** 0.5 / 3 / 2000**0.5 + 2**-12)
    assert rb.pac_bayes_radius(quadratic, flat(0.0), KEY, rise=1e9, highest=2) == 2.0


def test_losses_that_are_not_finite_are_not_left_out():
    def fenced(params):
        return jnp.where(jnp.abs(params["w"][0]) < 0.3, 0.0, jnp.nan)

    radius = rb.pac_bayes_radius(fenced, flat(0.0), KEY)
    assert 0.05 < radius < 0.3
    assert np.isnan(rb.sharpness(fenced, flat(0.0), KEY, sigma=1.0).smoothed_gap)


def test_coverage_says_who_changes_what():
    models = (
        rb.quantized(4, mask=lambda path: path.endswith("kernel")),
        rb.gaussian_noise(0.1, mask=lambda path: path == "dense/kernel"),
    )
    assert rb.coverage(PARAMS, *models).splitlines() == [
        "dense/bias       500  - (outside every mask)",
        "dense/kernel  40x100  quantized(4, per tensor), then gaussian(0.1, absolute)",
        "steps              3  - (not floating point)",
    ]
    with pytest.raises(ValueError, match="mask selects no floating-point leaf"):
        rb.coverage(PARAMS, rb.gaussian_noise(0.1, mask=lambda path: "conv" in path))


def test_weights_that_are_not_finite_are_named():
    broken = rb.WeightNoise("broken", lambda key, w: w / 0, mask=lambda path: "kernel" in path)
    rb.check_finite(rb.gaussian_noise(0.1), KEY, PARAMS)
    with pytest.raises(ValueError, match="broken makes .* not finite in dense/kernel"):
        rb.check_finite(broken, KEY, PARAMS)
    # An accuracy computed from such weights is a number like any other.
    score = lambda p: jnp.mean(p["dense"]["kernel"] > 0)  # noqa: E731
    with pytest.raises(ValueError, match=r"pruned\(0.5\), then broken .* in dense/kernel"):
        rb.chip_scores(score, PARAMS, [rb.pruned(0.5), broken], KEY, num_chips=2)
    overflow = rb.multiplicative_noise(1e38)
    with pytest.raises(ValueError, match="multiplicative"):
        rb.check_finite(overflow, KEY, {"w": jnp.full(4, 1e3)})


@pytest.mark.parametrize("model", [rb.bit_errors(4, 0.1), rb.quantized(4), rb.pruned(0.1)])
def test_integers_do_not_hide_a_nan(model):
    with pytest.raises(ValueError, match="not finite in w"):
        rb.check_finite(model, KEY, flat(1.0, jnp.nan, 2.0))


def test_device_loss_is_the_risk_over_chips():
    models = (rb.gaussian_noise(0.5), rb.quantized(4))
    loss = lambda p, c: c * jnp.sum(p["w"] ** 2)  # noqa: E731
    params = flat(1.0, -2.0)
    each = jnp.stack(
        [rb.device_loss(loss, *models)(params, key, 3.0) for key in jax.random.split(KEY, 4)]
    )
    assert len(np.unique(each)) == 4
    for risk in (jnp.mean, jnp.max):
        many = rb.device_loss(loss, *models, num_chips=4, risk=risk)
        np.testing.assert_allclose(many(params, KEY, 3.0), risk(each), rtol=1e-6)
    constant = rb.device_loss(lambda p: 1, rb.quantized(4))
    assert constant(params, KEY) == 1


@pytest.mark.parametrize("directions", [zojax.gaussian(), zojax.low_rank(2)], ids=lambda d: d.name)
def test_device_loss_goes_with_directions_and_executions(directions):
    params = {"w": jnp.linspace(-1, 1, 20).reshape(4, 5)}
    loss = rb.device_loss(lambda p: jnp.sum(jnp.tanh(p["w"]) ** 2), *MODELS[-3:], num_chips=2)
    est = zojax.finite_difference(directions=directions, num_directions=6, sigma=0.3)
    all_at_once, one_by_one = (
        zojax.value_and_grad(loss, est, execution=execution)(params, KEY, jax.random.key(1))
        for execution in (zojax.vectorized(), zojax.chunked(1))
    )
    np.testing.assert_allclose(all_at_once[0], one_by_one[0], rtol=1e-5)
    np.testing.assert_allclose(all_at_once[1]["w"], one_by_one[1]["w"], rtol=1e-3, atol=1e-4)
    assert np.any(all_at_once[1]["w"])


SHAPINGS = [rb.cvar(0.5), rb.quantile(0.5), rb.entropic_risk(0.5), rb.local_entropy(2.0)]


def fenced_cube(params, scale, shift, fence):
    return jnp.where(params["w"][0] < fence, scale * jnp.sum(params["w"] ** 3) + shift, jnp.nan)


@pytest.mark.parametrize(
    ("shaping", "stencil"),
    [
        *((shaping, zojax.central) for shaping in SHAPINGS),
        (SHAPINGS[0], zojax.forward),
        (SHAPINGS[0], zojax.one_point),
    ],
    ids=lambda part: part.name,
)
def test_objectives_leave_out_failures_and_survive_nothing(shaping, stencil):
    est = zojax.finite_difference(shaping=shaping, stencil=stencil, num_directions=16, sigma=0.5)

    def run(scale=1.0, shift=0.0, fence=9.0):
        args = tuple(jnp.float32(x) for x in (scale, shift, fence))
        return zojax.estimate(est, fenced_cube, flat(0.1, 0.2), KEY, (), args=args)[0].grad["w"]

    plain = run()
    assert np.any(plain)
    np.testing.assert_allclose(run(shift=100.0), plain, rtol=2e-3, atol=2e-3)
    some = run(fence=0.2)
    assert np.all(np.isfinite(some))
    assert not np.array_equal(some, plain)
    assert not np.any(run(fence=-9.0))  # all of them failed
    np.testing.assert_allclose(run(scale=0.0, shift=7.0), 0, atol=1e-5)
    assert np.all(np.isfinite(run(scale=1e4)))  # exponents that would overflow


def test_a_shaping_passes_the_checks_of_an_estimator():
    zojax.testing.check_estimator(
        zojax.finite_difference(shaping=rb.quantile(0.5), num_directions=16, sigma=0.1),
        num_replicates=64,
    )


BAD = {
    "sigma": [
        lambda: rb.gaussian_noise(-0.1),
        lambda: rb.gaussian_noise(float("nan")),
        lambda: rb.gaussian_noise(float("inf")),
        lambda: rb.gaussian_noise(None),
        lambda: rb.gaussian_noise([0.1, 0.2]),
        lambda: rb.multiplicative_noise(-1),
        lambda: rb.sharpness(quadratic, flat(0.0), KEY, sigma=0.0),
    ],
    "half_width": [lambda: rb.uniform_noise(-0.1)],
    "scale": [lambda: rb.student_t_noise(-0.1)],
    "df": [lambda: rb.student_t_noise(0.1, 0), lambda: rb.student_t_noise(0.1, float("inf"))],
    "relative_to": [
        lambda: rb.gaussian_noise(0.1, "std"),
        lambda: rb.uniform_noise(0.1, "std"),
        lambda: rb.student_t_noise(0.1, relative_to="std"),
    ],
    "probability": [
        lambda: rb.stuck_at(-0.1),
        lambda: rb.stuck_at(1.1),
        lambda: rb.stuck_at("often"),
        lambda: rb.bit_errors(8, -0.1),
        lambda: rb.bit_errors(8, 1.1),
        lambda: rb.bit_errors(8, float("nan")),
    ],
    "values": [lambda: rb.stuck_at(0.1, "one")],
    "fraction": [lambda: rb.pruned(-0.1), lambda: rb.pruned(1.1)],
    "time": [
        lambda: rb.drift(0.5),
        lambda: rb.drift(float("inf")),
        lambda: rb.drift(float("nan")),
        lambda: rb.drift(1.0, start=0.0),
    ],
    "exponent": [lambda: rb.drift(2.0, -0.1)],
    "spread": [lambda: rb.drift(2.0, spread=-0.1)],
    "bits": [
        lambda: rb.quantized(0),
        lambda: rb.quantized(2.5),
        lambda: rb.quantized(33),
        lambda: rb.bit_errors(1, 0.1),
        lambda: rb.bit_errors(17, 0.1),
    ],
    "scope": [lambda: rb.scoped(rb.pruned(0.1), "day")],
    "weight-noise model": [
        lambda: rb.composed(),
        lambda: rb.composed(lambda key, params: params),
        lambda: rb.device_loss(quadratic),
        lambda: rb.chip_scores(quadratic, flat(0.0), [], KEY),
    ],
    "nothing to perturb": [
        lambda: rb.gaussian_noise(0.1)(KEY, {"steps": jnp.arange(3)}),
        lambda: rb.quantized(4, mask=lambda path: False)(KEY, PARAMS),
        lambda: rb.chip_scores(
            quadratic, flat(0.0), [rb.pruned(0.1, mask=lambda path: False)], KEY
        ),
    ],
    "level": [
        lambda: rb.cvar(0.0),
        lambda: rb.cvar(1.0),
        lambda: rb.quantile(-0.1),
        lambda: rb.quantile(float("nan")),
    ],
    "temperature": [lambda: rb.entropic_risk(0.0), lambda: rb.entropic_risk(-1.0)],
    "beta": [lambda: rb.local_entropy(0.0)],
    "num_chips": [
        lambda: rb.device_loss(quadratic, rb.pruned(0.1), num_chips=0),
        lambda: rb.chip_scores(quadratic, flat(0.0), [rb.pruned(0.1)], KEY, num_chips=0),
    ],
    "chunk_size": [
        lambda: rb.chip_scores(quadratic, flat(0.0), [rb.pruned(0.1)], KEY, chunk_size=0)
    ],
    "levels": [
        lambda: rb.noise_curve(quadratic, flat(0.0), rb.gaussian_noise, [0.1], KEY),
        lambda: rb.noise_curve(quadratic, flat(0.0), rb.gaussian_noise, [0.1, 0.1], KEY),
    ],
    "rise": [lambda: rb.pac_bayes_radius(quadratic, flat(0.0), KEY, rise=0.0)],
    "highest": [lambda: rb.pac_bayes_radius(quadratic, flat(0.0), KEY, highest=-1.0)],
    "num_bisections": [lambda: rb.pac_bayes_radius(quadratic, flat(0.0), KEY, num_bisections=0)],
    "num_directions": [
        lambda: rb.pac_bayes_radius(quadratic, flat(0.0), KEY, num_directions=0),
        lambda: rb.sharpness(quadratic, flat(0.0), KEY, sigma=0.1, num_directions=1),
    ],
    "scalar": [lambda: rb.sharpness(lambda p: p["w"], flat(0.0, 1.0), KEY, sigma=0.1)],
    "threefry": [lambda: rb.pruned(0.1)(jax.random.key(0, impl="rbg"), flat(1.0))],
}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        pytest.param(name, make, id=f"{name}-{i}")
        for name, cases in BAD.items()
        for i, make in enumerate(cases)
    ],
)
def test_bad_input_is_named(name, make):
    with pytest.raises(ValueError, match=name):
        make()


def test_legacy_keys_are_refused():
    with pytest.raises(TypeError, match="typed key"):
        rb.chip_scores(quadratic, flat(0.0), [rb.pruned(0.1)], jax.random.PRNGKey(0))
