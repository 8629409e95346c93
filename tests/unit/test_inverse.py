"""Surfing: follows minima along snapshots, counts exactly, refuses what cannot be meant."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from zojax import inverse

KEY = jax.random.key(0)
TARGET = np.float32([1.0, -2.0])


def quadratic(params, x, y):
    return 0.5 * jnp.sum((params["w"] @ x - y) ** 2)


def growing(count=4):
    scales = np.linspace(0.25, 1.0, count)
    return inverse.stack_snapshots([{"w": jnp.float32(s) * jnp.eye(2)} for s in scales])


def double_well(params, x):
    """A bowl around 1 that turns into two wells, the deeper one at 1."""
    well = (x**2 - 1) ** 2 - 0.3 * x
    return jnp.sum((1 - params) * (x - 1) ** 2 + params * well)


WELLS = jnp.linspace(0.0, 1.0, 8)
SGD = inverse.Descent(optax.sgd(0.05), 200)


def test_exact_descent_on_a_quadratic_is_gradient_descent():
    """x_t of SGD on |w x - y|^2 / 2 with w = s I: y / s + (1 - rate s^2)^t (x_0 - y / s)."""
    snapshots = growing(3)
    found = inverse.surf(
        quadratic,
        snapshots,
        jnp.zeros(2),
        KEY,
        inverse.Descent(optax.sgd(0.5), 7),
        args=(jnp.asarray(TARGET),),
    )
    x = np.zeros(2)
    for number, w in enumerate(np.asarray(snapshots["w"])[:, 0, 0]):
        x = TARGET / w + (1 - 0.5 * w**2) ** 7 * (x - TARGET / w)
        np.testing.assert_allclose(found.path[number], x, rtol=1e-5)
        value = 0.5 * np.sum((w * x - TARGET) ** 2)
        np.testing.assert_allclose(found.values[number], value, rtol=1e-4)
    np.testing.assert_array_equal(found.x, found.path[-1])
    assert int(found.num_steps) == 3 * 7


def test_surfing_ends_in_the_deep_well_and_direct_descent_in_the_near_one():
    start = jnp.full(1, -0.9)
    surfed = inverse.surf(double_well, WELLS, start, KEY, SGD)
    stuck = inverse.direct(double_well, WELLS, start, KEY, SGD)
    assert surfed.x[0] > 0.9
    assert stuck.x[0] < -0.9
    assert surfed.value < stuck.value
    assert int(surfed.num_steps) == int(stuck.num_steps) == 8 * 200


@pytest.mark.parametrize(
    "estimator",
    [
        zojax.coordinate_difference(),
        zojax.finite_difference(directions=zojax.orthogonal(), num_directions=2),
    ],
    ids=["coordinate", "orthogonal"],
)
def test_estimates_take_the_place_of_gradients(estimator):
    descent = inverse.Descent(optax.sgd(0.3, momentum=0.5), 60)
    exact = inverse.surf(
        quadratic, growing(), jnp.zeros(2), KEY, descent, args=(jnp.asarray(TARGET),)
    )
    by_values = inverse.surf(
        quadratic,
        growing(),
        jnp.zeros(2),
        KEY,
        descent._replace(estimator=estimator),
        args=(jnp.asarray(TARGET),),
    )
    np.testing.assert_allclose(by_values.x, exact.x, atol=0.02)
    assert int(by_values.num_queries) == 4 * (60 * 4 + 1)
    assert int(exact.num_queries) == 4 * (60 + 1)


def test_values_are_enough():
    """A loss whose derivative raises, through a NumPy function."""
    calls = []

    def measure(images):
        calls.append(len(images))
        return np.sign(images - 0.3)

    operator = inverse.black_box_operator(measure, 2)
    loss_fn = inverse.reconstruction_loss(lambda params, x: params * x, operator)
    est = zojax.finite_difference(directions=zojax.gaussian(), num_directions=6, sigma=0.5)
    options = {"args": (jnp.ones(2),), "check_sign": True}
    found = inverse.surf(
        loss_fn,
        jnp.float32([0.5, 1.0]),
        -jnp.ones(2),
        KEY,
        inverse.Descent(optax.sgd(0.2), 12, est),
        **options,
    )
    jax.block_until_ready(found)
    assert float(found.value) == 0
    assert sum(calls) == int(found.num_queries) == 2 * (12 * 12 + 1 + 2)
    with pytest.raises(ValueError, match="Pure callbacks do not support JVP"):
        inverse.surf(
            loss_fn,
            jnp.float32([1.0]),
            jnp.ones(2),
            KEY,
            inverse.Descent(optax.sgd(0.2), 1),
            **options,
        )


def test_the_optimiser_starts_afresh_on_every_snapshot():
    """RMSprop's first step has one size whatever the gradient, so one step each walks evenly."""
    found = inverse.surf(
        quadratic,
        growing(5),
        jnp.zeros(2),
        KEY,
        inverse.Descent(optax.rmsprop(0.05, decay=0.75), 1),
        args=(jnp.asarray(TARGET),),
    )
    expected = np.outer(np.arange(1, 6), 0.1 * np.sign(TARGET))
    np.testing.assert_allclose(found.path, expected, rtol=1e-4)


def test_vmapped_runs_are_the_single_ones():
    targets = jnp.float32([[1, 2], [3, -1], [0.5, 0.5]])
    keys = jax.random.split(KEY, 3)
    est = zojax.finite_difference(directions=zojax.sphere(), num_directions=3)
    descent = inverse.Descent(optax.rmsprop(0.1), 20, est, inverse.Advance(window=5))

    def run(x0, key, y):
        return inverse.surf(quadratic, growing(), x0, key, descent, args=(y,))

    together = jax.jit(jax.vmap(run))(jnp.zeros((3, 2)), keys, targets)
    for number in range(3):
        alone = run(jnp.zeros(2), keys[number], targets[number])
        chex.assert_trees_all_close(
            alone, jax.tree.map(lambda leaf, n=number: leaf[n], together), rtol=1e-3, atol=1e-4
        )


def test_adaptive_advance_stops_where_nothing_is_to_be_gained():
    advance = inverse.Advance(gradient_norm=1e-3, relative_fall=0.0, window=5)
    descent = inverse.Descent(optax.sgd(0.5), 1_000, advance=advance)
    options = {"args": (jnp.asarray(TARGET),)}
    found = inverse.surf(quadratic, growing(1), jnp.zeros(2), KEY, descent, **options)
    # The gradient of w = I/4 ... shrinks by a known factor per step.
    w = float(growing(1)["w"][0, 0, 0])
    factor, first = 1 - 0.5 * w**2, w * np.linalg.norm(TARGET)
    assert int(found.num_steps) == 1 + int(np.ceil(np.log(1e-3 / first) / np.log(factor)))
    flat = inverse.Descent(optax.sgd(0.0), 1_000, advance=inverse.Advance(window=5))
    stopped = inverse.surf(quadratic, growing(1), jnp.zeros(2), KEY, flat, **options)
    assert int(stopped.num_steps) == 2 * 5


def test_sign_check_goes_to_the_lower_side():
    start = jnp.asarray(-TARGET)
    none = inverse.Descent(optax.sgd(0.0), 1)
    options = {"args": (jnp.asarray(TARGET),), "check_sign": True}
    found = inverse.surf(quadratic, growing(1), start, KEY, none, **options)
    np.testing.assert_array_equal(found.x, TARGET)
    assert int(found.num_queries) == 1 + 1 + 2


def test_the_prior_holds_flat_latents_and_is_left_out_of_the_polish():
    """Stationary for w = s I: (s^2 + weight) x = s y; the values are without it."""

    def half(params, x, y):  # the second latent is ignored
        return 0.5 * jnp.sum((params * x[0] - y) ** 2)

    options = {"args": (jnp.float32(2.0),), "prior_weight": 0.5}
    descent = inverse.Descent(optax.sgd(0.5), 60)
    start, snapshots = jnp.float32([0.0, 3.0]), jnp.float32([0.5, 1.0])
    found = inverse.surf(half, snapshots, start, KEY, descent, **options)
    np.testing.assert_allclose(found.path[:, 0], [0.5 * 2 / 0.75, 2 / 1.5], rtol=1e-4)
    np.testing.assert_allclose(found.path[:, 1], 0, atol=1e-4)
    np.testing.assert_allclose(found.values[1], 0.5 * (2 / 1.5 - 2) ** 2, rtol=1e-3)
    polished = inverse.surf(half, snapshots, start, KEY, descent, polish=descent, **options)
    np.testing.assert_allclose(polished.x, [2, 0], atol=1e-4)
    with pytest.raises(ValueError, match="prior_weight must be >= 0"):
        inverse.surf(double_well, WELLS, jnp.zeros(1), KEY, SGD, prior_weight=-1.0)


def test_a_neighbourhood_bounds_the_way_between_snapshots():
    near = inverse.Neighbourhood(radius=0.3, num_candidates=3)
    descent = inverse.Descent(optax.sgd(0.5), 10)
    found = inverse.surf(
        quadratic,
        growing(6),
        jnp.zeros(2),
        KEY,
        descent,
        args=(jnp.asarray(TARGET),),
        neighbourhood=near,
    )
    path = np.concatenate([np.zeros((1, 2)), found.path])
    lengths = np.linalg.norm(np.diff(path, axis=0), axis=1)
    np.testing.assert_allclose(lengths, 0.3, rtol=1e-4)  # the solution lies further off
    assert int(found.num_steps) == 6 * 3 * 10
    assert int(found.num_queries) == 6 * (3 * 10 + 3 + 1)


def test_candidates_find_the_lowest_piece_of_the_ball():
    """From 0 of a ripple, descent alone stays in the piece where it starts."""

    def ripple(params, x):
        return jnp.sum(params * (0.1 * (x - 2) ** 2 + jnp.sin(4 * x) ** 2))

    options = {"polish": None}
    descent = inverse.Descent(optax.sgd(0.02), 100)
    alone = inverse.surf(ripple, jnp.ones(3), jnp.zeros(1), KEY, descent, **options)
    near = inverse.Neighbourhood(radius=1.0, num_candidates=12)
    among = inverse.surf(
        ripple, jnp.ones(3), jnp.zeros(1), KEY, descent, neighbourhood=near, **options
    )
    assert float(alone.x[0]) < 0.2
    assert float(among.value) < 0.25 * float(alone.value)


def test_restarts_return_the_lowest_and_count_all():
    solve = inverse.restarted(lambda x0, key: inverse.surf(double_well, WELLS[-1:], x0, key, SGD))
    found = jax.jit(solve)(jnp.float32([[-0.5], [jnp.nan], [0.4]]), KEY)
    assert float(found.x[0]) > 0.9
    assert int(found.num_steps) == 3 * 200
    assert int(found.num_queries) == 3 * 201
    for starts in (jnp.float32(1.0), jnp.zeros((0, 1)), (jnp.zeros(1), jnp.zeros(2))):
        with pytest.raises(ValueError, match="starts must share a leading axis"):
            solve(starts, KEY)


def test_a_gradient_that_is_not_finite_changes_nothing():
    def loss_fn(params, x):
        return params * jnp.sum(jnp.sqrt(x))

    descent = inverse.Descent(optax.rmsprop(0.1), 5)
    found = inverse.surf(loss_fn, jnp.ones(2), jnp.float32([-1.0]), KEY, descent)
    np.testing.assert_array_equal(found.x, [-1.0])


def test_polish_goes_on_from_the_end_of_the_path():
    descent, polish = inverse.Descent(optax.sgd(0.1), 5), inverse.Descent(optax.lbfgs(), 10)
    options = {"args": (jnp.asarray(TARGET),), "polish": polish}
    found = inverse.surf(quadratic, growing(2), jnp.zeros(2), KEY, descent, **options)
    np.testing.assert_allclose(found.x, TARGET, atol=1e-4)
    assert np.abs(found.path[-1] - TARGET).max() > 0.1
    assert int(found.num_steps) == 2 * 5 + 10
    assert int(found.num_queries) == 2 * 5 + 2 + 10 + 1


@pytest.mark.parametrize(
    ("snapshots", "message"),
    [
        ({}, "without leaves"),
        ({"w": jnp.float32(1.0)}, r"w has shape \(\)"),
        ({"w": jnp.ones((0, 2, 2))}, "length 0"),
        ({"w": jnp.ones((3, 2, 2)), "v": jnp.ones((2, 1))}, "one length"),
    ],
)
def test_surf_refuses_what_is_not_stacked(snapshots, message):
    for solve in (inverse.surf, inverse.direct):
        with pytest.raises(ValueError, match=message):
            solve(quadratic, snapshots, jnp.zeros(2), KEY, SGD, args=(jnp.zeros(2),))


@pytest.mark.parametrize(
    ("descent", "message"),
    [
        (optax.sgd(0.1), "descent must be an inverse.Descent"),
        (SGD._replace(optimizer=0.1), "descent.optimizer must be an optax optimiser"),
        (SGD._replace(num_steps=0), "descent.num_steps must be an integer >= 1"),
        (SGD._replace(estimator="exact"), "descent.estimator must be an estimator"),
        (SGD._replace(advance=3), "descent.advance must be"),
        (SGD._replace(advance=inverse.Advance(-1.0)), "gradient_norm must be >= 0"),
        (SGD._replace(advance=inverse.Advance(0.0, 1.0)), "relative_fall must be in"),
        (SGD._replace(advance=inverse.Advance(window=0)), "window must be an integer >= 1"),
    ],
)
def test_bad_settings_are_named(descent, message):
    with pytest.raises(ValueError, match=message):
        inverse.surf(double_well, WELLS, jnp.zeros(1), KEY, descent)


def test_other_bad_arguments_are_named():
    def surf(x0=jnp.zeros(1), key=KEY, **options):  # noqa: B008
        return inverse.surf(double_well, WELLS, x0, key, SGD, **options)

    with pytest.raises(TypeError, match="typed key"):
        surf(key=jnp.zeros(2, jnp.uint32))
    with pytest.raises(ValueError, match="x0 must be"):
        surf(x0=jnp.zeros(1, jnp.int32))
    with pytest.raises(ValueError, match="polish must be"):
        surf(polish=5)
    with pytest.raises(ValueError, match="neighbourhood must be"):
        surf(neighbourhood=0.1)
    with pytest.raises(ValueError, match="radius must be"):
        surf(neighbourhood=inverse.Neighbourhood(0.0))
    with pytest.raises(ValueError, match="neighbourhood must be None for direct"):
        near = inverse.Neighbourhood(1.0)
        inverse.direct(double_well, WELLS, jnp.zeros(1), KEY, SGD, neighbourhood=near)
    with pytest.raises(ValueError, match="num_candidates must be"):
        surf(neighbourhood=inverse.Neighbourhood(1.0, 0))


def test_a_line_search_without_exact_gradients_is_refused():
    descent = inverse.Descent(optax.lbfgs(), 2, zojax.coordinate_difference())
    with pytest.raises(ValueError, match="line search needs exact gradients"):
        inverse.surf(double_well, WELLS, jnp.zeros(1), KEY, descent)
