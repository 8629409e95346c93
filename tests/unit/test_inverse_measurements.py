"""Snapshots, measurements and latents of inverse problems: values, shapes, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import inverse

KEY = jax.random.key(0)


def test_interpolated_snapshots_pass_through_the_given_ones():
    snapshots = {"w": jnp.float32([[0.0, 1.0], [2.0, 4.0], [8.0, 3.0]])}
    finer = inverse.interpolate_snapshots(snapshots, 4)
    assert finer["w"].shape == (9, 2)
    np.testing.assert_array_equal(finer["w"][::4], snapshots["w"])
    np.testing.assert_allclose(finer["w"][1], [0.5, 1.75])
    counts = inverse.interpolate_snapshots({"n": jnp.int32([0, 4, 8])}, 2)
    np.testing.assert_array_equal(counts["n"], [0, 0, 4, 4, 8])
    np.testing.assert_array_equal(inverse.interpolate_snapshots(snapshots, 1)["w"], snapshots["w"])


def test_geometric_steps_are_dense_at_first():
    steps = inverse.geometric_steps(1_000, 20)
    assert steps[:3] == (0, 1, 2)
    assert steps[-1] == 1_000
    assert np.all(np.diff(steps) > 0)
    assert len(steps) == 20
    ratios = np.divide(steps[8:], steps[7:-1])
    np.testing.assert_allclose(ratios, ratios[-1], rtol=0.1)
    assert inverse.geometric_steps(9, 2) == (0, 9)
    assert inverse.geometric_steps(3, 4) == (0, 1, 2, 3)


def test_gaussian_measurements_keep_the_norm_in_expectation():
    """E |A x|^2 = |x|^2, with variance 2 |x|^4 / m."""
    x = jnp.ones((4, 4))
    norms = [
        float(jnp.sum(inverse.gaussian_operator(jax.random.key(s), 8, 16)(x) ** 2))
        for s in range(100)
    ]
    error = np.sqrt(2 / 8) * 16 / np.sqrt(100)
    assert abs(np.mean(norms) - 16) < 4 * error


def test_operators_measure_what_they_say():
    image = jnp.arange(6.0).reshape(2, 3)
    sampled = inverse.subsampling_operator(KEY, 3, 6)
    found = np.asarray(sampled(image))
    assert len(set(found)) == 3
    assert set(found) <= set(range(6))
    own = inverse.linear_operator(np.float32([[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0]]))
    np.testing.assert_array_equal(own(image), [5, 1])
    np.testing.assert_array_equal(inverse.one_bit(own, 2.0)(image), [1, -1])
    np.testing.assert_array_equal(inverse.quantized(own, 2.0)(image), [4, 0])
    under_jit = jax.jit(lambda operator, image: operator(image))
    np.testing.assert_array_equal(under_jit(own, image), own(image))


def test_flat_latents_are_named():
    matrix = jnp.float32([[3, 0, 0], [4, 0, 0.001], [0, 2, 0]])
    found = inverse.latent_sensitivity(lambda p, x: p * (matrix @ x), 2.0, jnp.ones((5, 3)))
    np.testing.assert_allclose(found, [10, 4, 0.002], rtol=1e-5)
    active = inverse.active_latents(found)
    np.testing.assert_array_equal(active, [True, True, False])
    reduced = inverse.on_active(lambda p, x: p * x, active)
    np.testing.assert_array_equal(reduced(2.0, jnp.float32([1, 3])), [2, 6, 0])


@pytest.mark.parametrize(
    ("snapshots", "message"),
    [
        ([], "at least one entry"),
        ([{}], "at least one leaf"),
        ([{"w": np.ones(2)}, {"v": np.ones(2)}], "w is .* in the first and absent in number 1"),
        ([{"w": np.ones(2)}, {"w": np.ones(3)}], r"w is float.*\(2,\) in .*\(3,\) in number 1"),
        ([{"w": np.ones(2)}, {"w": np.ones(2, np.int32)}], "w is float.* and int32"),
        ([(np.ones(2),), [np.ones(2)]], "containers"),
    ],
)
def test_snapshots_that_do_not_match_are_refused(snapshots, message):
    with pytest.raises(ValueError, match=message):
        inverse.stack_snapshots(snapshots)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: inverse.gaussian_operator(KEY, 17, 16), "at most the number of pixels, 16"),
        (lambda: inverse.subsampling_operator(KEY, 17, 16), "at most the number of pixels, 16"),
        (lambda: inverse.gaussian_operator(KEY, 0, 16), "num_measurements must be"),
        (lambda: inverse.linear_operator(np.ones((3, 2))), "at most the number of pixels, 2"),
        (lambda: inverse.linear_operator(np.ones(3)), r"shape \(m, n\)"),
        (lambda: inverse.quantized(lambda x: x, 0.0), "step must be"),
        (
            lambda: inverse.reconstruction_loss(lambda p, x: x, np.ones((2, 3))),
            "operator must be a function of an image",
        ),
        (lambda: inverse.black_box_operator(lambda x: x, 0), "num_measurements must be"),
        (lambda: inverse.gaussian_operator(KEY, 4, 16)(jnp.ones((3, 3))), "16 pixels, got 9"),
        (lambda: inverse.subsampling_operator(KEY, 4, 16)(jnp.ones(9)), "16 pixels, got 9"),
        (lambda: inverse.geometric_steps(0, 5), "num_steps must be"),
        (lambda: inverse.geometric_steps(9, 1), "num_snapshots must be"),
        (lambda: inverse.geometric_steps(9, 11), "at most num_steps . 1 = 10, got 11"),
        (lambda: inverse.interpolate_snapshots(jnp.ones(3), 0), "num_parts must be"),
        (lambda: inverse.latent_sensitivity(lambda p, x: x, 1.0, jnp.ones(3)), "latents must be"),
        (lambda: inverse.active_latents(jnp.ones(3), 2.0), "threshold must be"),
        (lambda: inverse.on_active(lambda p, x: x, np.zeros(3, bool)), "True somewhere"),
        (
            lambda: inverse.reconstruction_loss(lambda p, x: p * x)(1.0, jnp.ones(3), jnp.ones(2)),
            r"y must have the shape of what is measured, \(3,\), got \(2,\)",
        ),
    ],
)
def test_wrong_shapes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_black_box_of_the_wrong_shape_says_so():
    operator = inverse.black_box_operator(lambda images: images[:, :1], 2)
    with pytest.raises(Exception, match=r"must return \(1, 2\) measurements, got shape \(1, 1\)"):
        jax.block_until_ready(operator(jnp.ones(3)))
    turned = inverse.black_box_operator(lambda images: images[:, :2].T, 2)
    with pytest.raises(Exception, match=r"must return \(3, 2\) measurements, got shape \(2, 3\)"):
        jax.block_until_ready(jax.vmap(turned)(jnp.ones((3, 3))))
