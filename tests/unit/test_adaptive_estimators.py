"""Estimators that remember: baselines, control variates, guides, subsets, learnt radii."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from zojax import trees
from zojax.testing import assert_unbiased, check_directions

D = 40
PARAMS = {"a": jnp.linspace(-1, 1, D // 2), "b": jnp.linspace(0, 2, D // 2).reshape(4, 5)}
SLOPE = jnp.linspace(0.5, 1.5, D)
KEY = jax.random.key(0)


def linear(params):
    return jnp.vdot(trees.ravel(params), SLOPE) + 100.0


def unflatten(flat):
    return trees.split(flat, PARAMS)


def many(est, state, loss=linear, num=512):
    """Flat gradients (num, d) of independent estimates from one state."""

    def one(key):
        return trees.ravel(zojax.estimate(est, loss, PARAMS, key, state)[0].grad)

    keys = jax.random.split(jax.random.key(1), num)
    return np.asarray(jax.jit(lambda ks: jax.lax.map(one, ks))(keys), np.float64)


def relative_error(grads):
    truth = np.asarray(SLOPE, np.float64)
    return ((grads - truth) ** 2).sum(-1).mean() / (truth @ truth)


def one_point(shaping=zojax.identity, n=32):
    return zojax.finite_difference(
        stencil=zojax.one_point, shaping=shaping, num_directions=n, sigma=0.1
    )


def test_value_baseline_is_the_last_mean_loss_and_removes_its_variance():
    plain, est = one_point(), zojax.value_baseline(one_point())
    first, state = zojax.estimate(est, linear, PARAMS, KEY, est.init(PARAMS))
    np.testing.assert_allclose(state.baseline, first.value, rtol=1e-6)
    offset = float(linear(PARAMS) - state.baseline)
    expected = (D + 1) / 32 + D * offset**2 / (32 * 0.1**2 * float(SLOPE @ SLOPE))
    assert relative_error(many(est, state)) == pytest.approx(expected, rel=0.1)
    assert relative_error(many(est, state)) < relative_error(many(plain, ())) / 100
    # A step in which everything failed keeps it.
    nan = lambda p: linear(p) * jnp.nan  # noqa: E731
    assert zojax.estimate(est, nan, PARAMS, KEY, state)[1].baseline == state.baseline


def test_leave_one_out_has_the_stated_error():
    found = relative_error(many(one_point(zojax.leave_one_out), ()))
    assert found == pytest.approx((D + 1) / 32 * 32 / 31, rel=0.1)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("directions", [zojax.gaussian(), zojax.low_rank(), zojax.laplace()])
def test_control_variate_estimates_only_what_it_does_not_know(share, directions):
    inner = zojax.finite_difference(directions=directions, num_directions=32, sigma=0.1)
    est = zojax.control_variate(inner)
    state = est.init(PARAMS)._replace(direction=unflatten(share * SLOPE))
    grads = many(est, state)
    rounding = 1e-4 * 100 / 0.1 / 32**0.5
    assert_unbiased(grads, np.asarray(SLOPE), "control_variate", rounding=rounding)
    alone = relative_error(many(inner, ()))
    assert relative_error(grads) == pytest.approx((1 - share) ** 2 * alone, rel=0.15)


def test_control_variate_remembers_a_moving_average_and_does_not_move_on_failure():
    est = zojax.control_variate(zojax.finite_difference(num_directions=64), decay=0.5)
    result, state = zojax.estimate(est, linear, PARAMS, KEY, est.init(PARAMS))
    np.testing.assert_allclose(
        trees.ravel(state.direction), 0.5 * trees.ravel(result.grad), rtol=1e-5
    )
    failed, _ = zojax.estimate(est, lambda p: linear(p) * jnp.nan, PARAMS, KEY, state)
    assert not np.any(trees.ravel(failed.grad))


def test_control_variate_converges_where_one_estimate_is_mostly_noise():
    """d = 100 n: with a short memory the error would grow by orders of magnitude per step."""
    params, slope = jnp.zeros(1600), jnp.linspace(0.5, 1.5, 1600)
    inner = zojax.finite_difference(num_directions=16, sigma=0.1)
    est = zojax.control_variate(inner)

    def step(state, key):
        result, state = zojax.estimate(est, lambda p: p @ slope, params, key, state)
        return state, jnp.sum((result.grad - slope) ** 2) / (slope @ slope)

    keys = jax.random.split(KEY, 400)
    _, errors = jax.jit(lambda s: jax.lax.scan(step, s, keys))(est.init(params))
    assert errors[-1] < 0.1 * errors[0]
    with pytest.raises(ValueError, match="decay=0.5 would let the error grow without bound"):
        zojax.control_variate(inner, decay=0.5).init(params)


def test_what_a_float16_leaf_cannot_hold_becomes_its_largest_number():
    params = {"w": jnp.ones(3, jnp.float16)}
    steep = lambda p: 1e9 * jnp.sum(p["w"].astype(jnp.float32))  # noqa: E731
    for est in (zojax.pgpe(), zojax.control_variate(zojax.finite_difference())):
        state = est.init(params)
        for step in range(2):
            result, state = zojax.estimate(est, steep, params, jax.random.key(step), state)
            assert np.all(np.isfinite(np.asarray(result.grad["w"], np.float64))), est.name


def test_ratios_may_cover_leaves_that_are_masked():
    est = zojax.sparse_coordinate_difference(
        {"a": 0.5, "b": 0.1}, key=KEY, mask=lambda path: path == "a"
    )
    assert est.num_queries(PARAMS) == 2 * 10


def adapted(directions, *vectors):
    """The distribution after these guides."""
    change = directions.adaptation
    state = change.init({"bias": jnp.zeros(2), "kernel": jnp.zeros((3, 4))})
    for vector in vectors:
        tree = {"bias": vector[:2], "kernel": vector[2:].reshape(3, 4)}
        state = (change.guide or change.update)(state, tree)
    return change.bind(state)


@pytest.mark.parametrize("source", ["history", "updates"])
def test_guided_directions_have_the_declared_moment(source):
    vectors = jax.random.normal(KEY, (3, 14))
    bound = adapted(zojax.guided(2, alpha=0.3, source=source), *vectors)
    check_directions(bound)
    moment = bound.moment({"x": jnp.zeros(14)})
    assert float(jnp.trace(moment)) == pytest.approx(14, rel=1e-5)
    for known in vectors[1:]:  # the last two span the subspace
        stretched = 0.3 + 0.7 * 14 / 2
        np.testing.assert_allclose(moment @ known, stretched * known, rtol=1e-4, atol=1e-4)


def test_guides_that_add_nothing_are_left_out():
    vector = jnp.linspace(-1, 1, 14)
    twice = adapted(zojax.guided(2), vector, vector)
    once = adapted(zojax.guided(2), vector)
    tiny = adapted(zojax.guided(2), 1e-30 * vector)
    none = adapted(zojax.guided(2), 0 * vector)
    moments = [x.moment({"x": jnp.zeros(14)}) for x in (twice, once, tiny, none)]
    np.testing.assert_allclose(moments[0], moments[1], atol=1e-5)
    np.testing.assert_allclose(moments[0], moments[2], atol=1e-5)
    np.testing.assert_allclose(moments[3], np.eye(14))


def cosine(grads):
    along = grads @ np.asarray(SLOPE, np.float64)
    return (along / np.linalg.norm(grads, axis=1)).mean() / float(jnp.linalg.norm(SLOPE))


@pytest.mark.parametrize(("overlap", "wins"), [(0.9, True), (0.0, False)])
def test_a_good_surrogate_in_the_optax_chain_helps_and_a_wrong_one_hurts(overlap, wins):
    plain = zojax.finite_difference(num_directions=4, sigma=0.1)
    est = zojax.finite_difference(
        directions=zojax.guided(source="updates"), num_directions=4, sigma=0.1
    )
    other = jnp.where(jnp.arange(D) % 2 == 0, 1.0, -1.0)
    other = other - (other @ SLOPE) / (SLOPE @ SLOPE) * SLOPE
    unit = lambda x: x / jnp.linalg.norm(x)  # noqa: E731
    surrogate = unflatten(overlap * unit(SLOPE) + (1 - overlap**2) ** 0.5 * unit(other))
    tx = zojax.as_gradient_transformation(est, KEY)

    def one(key):
        state = tx.init(PARAMS)._replace(key=key)
        return trees.ravel(tx.update(surrogate, state, PARAMS, value_fn=linear)[0])

    grads = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, 512)), np.float64)
    assert (cosine(grads) > cosine(many(plain, ()))) == wins


def test_a_subset_is_exact_and_redrawn_every_few_steps():
    est = zojax.sparse_coordinate_difference({"a": 0.5, "b": 0.1}, key=KEY, every=2, sigma=0.1)
    assert est.num_queries(PARAMS) == 2 * (10 + 2)
    state, chosen = est.init(PARAMS), []
    for step in range(4):
        result, state = zojax.estimate(est, linear, PARAMS, jax.random.key(step), state)
        grad = np.asarray(trees.ravel(result.grad))
        touched = grad != 0
        assert touched[: D // 2].sum() == 10 and touched[D // 2 :].sum() == 2
        np.testing.assert_allclose(grad[touched], np.asarray(SLOPE)[touched], rtol=2e-3)
        chosen.append(touched)
    np.testing.assert_array_equal(chosen[0], chosen[1])
    np.testing.assert_array_equal(chosen[2], chosen[3])
    assert np.any(chosen[0] != chosen[2])
    check_directions(zojax.directions.coordinate_subset(0.5, KEY, 2), num_replicates=2)


def test_a_random_block_of_coordinates_has_the_stated_error():
    est = zojax.coordinate_difference(num_coordinates=10, sigma=0.1)
    assert est.num_queries(PARAMS) == 20
    assert relative_error(many(est, ())) == pytest.approx(D / 10 - 1, rel=0.1)


@pytest.mark.parametrize("directions", [zojax.orthogonal(), zojax.hadamard()])
def test_as_many_orthogonal_directions_as_dimensions_are_exact(directions):
    params = jnp.linspace(-1, 1, 64)
    slope = jnp.linspace(0.5, 1.5, 64)
    est = zojax.finite_difference(directions=directions, num_directions=64, sigma=1.0)
    _, grad = zojax.value_and_grad(lambda p: p @ slope, est)(params, KEY)
    np.testing.assert_allclose(grad, slope, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("directions", [zojax.orthogonal(), zojax.hadamard()])
def test_a_quarter_of_them_beats_independent_ones_by_the_predicted_factor(directions):
    d, n = 64, 16
    x, curvature = jnp.linspace(-1, 1, d), jnp.geomspace(1, 10, d)

    def error(distribution):
        est = zojax.finite_difference(directions=distribution, num_directions=n, sigma=0.01)
        grads = zojax.value_and_grad(lambda p: 0.5 * jnp.sum(curvature * p**2), est)
        keys = jax.random.split(KEY, 512)
        found = jax.jit(lambda ks: jax.lax.map(lambda k: grads(x, k)[1], ks))(keys)
        return float(jnp.mean(jnp.sum((found - (curvature * x)[None]) ** 2, -1)))

    gain = error(directions) / error(zojax.sphere())
    assert gain == pytest.approx((d - n) / (d - 1), rel=0.1)


def test_augmented_random_search_is_the_published_sum():
    """alpha / (b s) sum over the best b of (f+ - f-) eps, up to the 1 / (2 sigma) of ours."""
    n, b, sigma = 6, 2, 0.1
    est = zojax.augmented_random_search(num_directions=n, num_top=b, sigma=sigma)
    loss = lambda p: jnp.sum(trees.ravel(p) ** 3)  # noqa: E731
    points = jax.vmap(trees.ravel)(zojax.ask(est, PARAMS, KEY, ()))
    losses = np.sum(np.asarray(points, np.float64) ** 3, axis=1).reshape(n, 2)
    steps = (np.asarray(points[0::2]) - np.asarray(points[1::2])) / (2 * sigma)
    best = np.argsort(losses.min(axis=1))[:b]
    weights = (losses[best, 0] - losses[best, 1]) / (2 * sigma * b * losses[best].std())
    result, _ = zojax.estimate(est, loss, PARAMS, KEY, ())
    np.testing.assert_allclose(
        trees.ravel(result.grad), weights @ steps[best], rtol=2e-3, atol=1e-4
    )


def test_pgpe_learns_where_to_be_careful():
    """The smoothed loss of sum c x^2 is sum c (x^2 + s^2): its gradient in s is 2 c s."""
    curvature = jnp.where(jnp.arange(D) < D // 2, 0.0, 1.0)
    loss = lambda p: jnp.sum(curvature * trees.ravel(p) ** 2)  # noqa: E731
    rate, sigma = 1e-3, 0.5
    est = zojax.pgpe(num_directions=64, sigma=sigma, sigma_learning_rate=rate)

    def one(key):
        state = est.init(PARAMS)
        result, new = zojax.estimate(est, loss, PARAMS, key, state)
        return trees.ravel(result.grad), (state.sigma - new.sigma) / rate

    keys = jax.random.split(KEY, 2048)
    grads, radii = jax.jit(lambda ks: jax.lax.map(one, ks))(keys)
    x = np.asarray(trees.ravel(PARAMS), np.float64)
    assert_unbiased(np.asarray(grads, np.float64), 2 * np.asarray(curvature) * x, "pgpe")
    expected = 2 * np.asarray(curvature) * sigma
    assert_unbiased(np.asarray(radii, np.float64), expected, "pgpe, sigma")


def test_pgpe_changes_no_radius_by_more_than_a_fifth():
    est = zojax.pgpe(num_directions=8, sigma=0.5, sigma_learning_rate=1e3)
    loss = lambda p: jnp.sum(trees.ravel(p) ** 2)  # noqa: E731
    _, state = zojax.estimate(est, loss, PARAMS, KEY, est.init(PARAMS))
    np.testing.assert_allclose(jnp.abs(state.sigma - 0.5), 0.1, rtol=1e-5)


def test_every_stateful_estimator_trains_in_an_optax_chain_without_recompiling():
    bowl = lambda p: jnp.sum((trees.ravel(p) - 1) ** 2)  # noqa: E731
    options = {"num_directions": 16, "sigma": 0.05}
    for est in (
        zojax.control_variate(zojax.finite_difference(**options)),
        zojax.value_baseline(one_point(), initial=50.0),
        zojax.finite_difference(directions=zojax.guided(), **options),
        zojax.sparse_coordinate_difference(0.3, key=KEY, every=3),
        zojax.pgpe(**options),
    ):
        tx = optax.chain(zojax.as_gradient_transformation(est, KEY), optax.sgd(0.02))

        @jax.jit
        def step(params, state, tx=tx):
            updates, state = tx.update(None, state, params, value_fn=bowl)
            return optax.apply_updates(params, updates), state

        params, state = PARAMS, tx.init(PARAMS)
        for _ in range(30):
            params, state = step(params, state)
        assert bowl(params) < 0.9 * bowl(PARAMS), est.name
        assert step._cache_size() == 1


def test_grasp_keeps_the_layers_whose_weights_matter():
    """Of sum c w^4 / 4 the score is -3 c^2 w^6: the leaf with the larger c keeps more."""
    params = {"flat": jnp.full(20, 0.5), "steep": jnp.full(20, 0.5)}
    loss = lambda p: 0.1 * jnp.sum(p["flat"] ** 4) + 2 * jnp.sum(p["steep"] ** 4)  # noqa: E731
    ratios = zojax.pruning.grasp_ratios(loss, params, KEY, keep=0.25, num_directions=2000)
    assert ratios["steep"] > 0.4 and ratios["flat"] < 0.1
    assert ratios["steep"] + ratios["flat"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: zojax.student_t(2), "df must be an integer >= 3, got 2"),
        (lambda: zojax.guided(0), "num_guides must be an integer >= 1, got 0"),
        (lambda: zojax.guided(alpha=0.0), r"alpha must be in \(0, 1\], got 0.0"),
        (lambda: zojax.guided(source="oracle"), "source must be 'history' or 'updates'"),
        (lambda: zojax.shaping.top_directions(0), "count must be an integer >= 1, got 0"),
        (
            lambda: zojax.augmented_random_search(num_directions=4, num_top=5),
            "num_top must be at most num_directions=4, got 5",
        ),
        (lambda: zojax.control_variate(zojax.evolution_strategy()), "must preserve the scale"),
        (lambda: zojax.control_variate(zojax.spsa(), decay=1.0), r"decay must be in \[0, 1\)"),
        (lambda: zojax.value_baseline(zojax.spsa()), "est must take no difference"),
        (
            lambda: zojax.control_variate(zojax.finite_difference(directions=zojax.guided())),
            "must preserve the scale",
        ),
        (
            lambda: zojax.coordinate_difference(num_coordinates=2, stencil=zojax.one_point),
            "stencil must be zojax.central or zojax.forward",
        ),
        (lambda: zojax.coordinate_difference(num_coordinates=0), "num_coordinates must be an"),
        (lambda: zojax.pgpe(sigma=lambda t: 0.1), "sigma must be a number, which is then learnt"),
        (lambda: zojax.value_baseline(one_point(zojax.leave_one_out)), "est must take no diff"),
        (
            lambda: zojax.finite_difference(directions=zojax.guided(source="updates")).guide(
                zojax.finite_difference(directions=zojax.guided(source="updates")).init(PARAMS),
                {"a": jnp.ones(3)},
            ),
            "surrogate gradient must be like the perturbed parameters",
        ),
        (lambda: zojax.pgpe(sigma=0.0), "sigma must be a finite number > 0"),
        (lambda: zojax.pgpe(shaping=zojax.sign_of_difference), "shaping must act on values"),
        (lambda: zojax.pgpe(sigma_learning_rate=-1.0), "sigma_learning_rate must be >= 0"),
        (
            lambda: zojax.sparse_coordinate_difference(1.5, key=KEY),
            r"ratios must be in \[0, 1\], got 1.5",
        ),
        (
            lambda: zojax.sparse_coordinate_difference(0.001, key=KEY).init(PARAMS),
            "ratios leave no coordinate",
        ),
        (lambda: zojax.hadamard(0), "block_size must be an integer >= 1"),
        (
            lambda: zojax.pruning.grasp_ratios(linear, PARAMS, KEY, keep=0.0),
            r"keep must be in \(0, 1\]",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
