"""Optimisers and constraints: one suite over all of them, then what each promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from zojax import projections, trees

KEY = jax.random.key(0)
D = 20
PARAMS = {"a": jnp.full(8, 0.05), "b": jnp.full((3, 4), 0.05)}  # on the simplex, in every ball
TARGET = {"a": jnp.linspace(-1, 1, 8), "b": jnp.linspace(0, 0.5, 12).reshape(3, 4)}
EXACT = zojax.coordinate_difference(sigma=1e-2)
BALL = lambda x: optax.projections.projection_l1_ball(x, 1.0)  # noqa: E731
CAPPED = functools.partial(projections.projection_capped_simplex, total=5)


def bowl(params, target=TARGET):
    return sum(
        jnp.sum((p.astype(jnp.float32) - t) ** 2)
        for p, t in zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True)
    )


def chain(*links, est=EXACT):
    return optax.chain(zojax.as_gradient_transformation(est, KEY), *links)


def reduced(method):
    return optax.chain(method(EXACT, KEY, period=5), optax.sgd(0.1))


search = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(60))


@pytest.fixture(autouse=True)
def _strict():
    """Not here: optax's projections promote."""


TRANSFORMATIONS = {
    "adamm": lambda: chain(zojax.scale_by_adamm(), optax.scale(-0.05)),
    "adamm(refined)": lambda: chain(zojax.scale_by_adamm(refined=True), optax.scale(-0.05)),
    "sign": lambda: chain(optax.scale_by_sign(), optax.scale(-0.02)),
    "svrg": lambda: reduced(zojax.svrg),
    "spider": lambda: reduced(zojax.spider),
    "accept_or_reject": lambda: chain(optax.sgd(0.1), zojax.accept_or_reject(radius=0.5)),
    "projected(l1)": lambda: chain(optax.sgd(0.1), zojax.projected(BALL)),
    "projected(capped)": lambda: chain(optax.sgd(0.1), zojax.projected(CAPPED)),
    "proximal": lambda: chain(optax.sgd(0.1), zojax.proximal(projections.prox_l1, 0.1, 0.1)),
    "proximal(group)": lambda: chain(
        optax.sgd(0.1), zojax.proximal(projections.prox_group_l2, 0.1, 0.1)
    ),
    "frank_wolfe(l1)": lambda: chain(
        zojax.frank_wolfe(functools.partial(projections.oracle_l1, radius=1.0))
    ),
    "frank_wolfe(simplex)": lambda: chain(zojax.frank_wolfe(projections.oracle_simplex)),
    "mirror_descent": lambda: chain(zojax.mirror_descent(0.5)),
    "line_search": lambda: zojax.with_estimate(EXACT, KEY, search),
}
# What must hold after every step, from a feasible start.
FEASIBLE = {
    "projected(l1)": lambda x: np.abs(x).sum() <= 1 + 1e-6,
    "projected(capped)": lambda x: (
        abs(x.sum() - 5) <= 1e-5 and -1e-6 <= x.min() <= x.max() <= 1 + 1e-6
    ),
    "frank_wolfe(l1)": lambda x: np.abs(x).sum() <= 1 + 1e-6,
    "frank_wolfe(simplex)": lambda x: abs(x.sum() - 1) <= 1e-6 and x.min() >= -1e-6,
    "mirror_descent": lambda x: abs(x.sum() - 1) <= 1e-6 and x.min() >= 0,
}


def make_step(tx, loss=bowl, **extra_args):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=loss, **extra_args)
        return optax.apply_updates(params, updates), state

    return step


def extra(name):
    """Further arguments pass through unharmed; optax's line search hands them to the loss."""
    return {} if name == "line_search" else {"full_value_fn": bowl, "unrelated": 1.0}


def start_of(name, dtype=jnp.float32):
    factor = 5.0 if name == "projected(capped)" else 1.0
    return jax.tree.map(lambda x: (factor * x).astype(dtype), PARAMS)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_it_descends_feasibly_with_plain_steps_and_compiles_once(name):
    tx, params = TRANSFORMATIONS[name](), start_of(name)
    step, state = make_step(tx, **extra(name)), tx.init(params)
    first = float(bowl(params))
    for _ in range(60):
        params, state = step(params, state)
        if name in FEASIBLE:
            flat = np.asarray(trees.ravel(params), np.float64)
            assert FEASIBLE[name](flat), (name, flat.sum(), np.abs(flat).sum(), flat.min())
    assert step._cache_size() == 1
    assert float(bowl(params)) < 0.95 * first


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_dtypes_are_kept_and_nothing_missing_goes_unnoticed(name):
    tx, params = TRANSFORMATIONS[name](), start_of(name, jnp.bfloat16)
    step = make_step(tx, **extra(name))
    moved, state = step(params, tx.init(params))
    assert {x.dtype for x in jax.tree.leaves(moved)} == {jnp.dtype(jnp.bfloat16)}
    again = step(moved, state)[1]
    same = jax.tree.map(lambda a, b: (a.dtype, a.shape) == (b.dtype, b.shape), state, again)
    assert all(jax.tree.leaves(same))
    with pytest.raises(ValueError, match="params"):
        tx.update(None, state, None, value_fn=bowl, full_value_fn=bowl)


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def test_quadratic_and_rosenbrock_in_twenty_dimensions():
    with jax.enable_x64(True):
        for loss, target in ((lambda x: jnp.sum((x - 1) ** 2), 1.0), (rosenbrock, 1.0)):
            est = zojax.coordinate_difference(sigma=1e-6)
            tx = zojax.with_estimate(
                est,
                KEY,
                optax.chain(
                    optax.lbfgs(1.0, linesearch=None) if loss is rosenbrock else optax.sgd(0.25),
                    optax.scale_by_backtracking_linesearch(60),
                ),
            )
            params = jnp.zeros(D, jnp.float64)

            def body(_, carry, tx=tx, loss=loss):
                params, state = carry
                updates, state = tx.update(None, state, params, value_fn=loss)
                return optax.apply_updates(params, updates), state

            run = jax.jit(lambda carry, body=body: jax.lax.fori_loop(0, 400, body, carry))
            params, _ = run((params, tx.init(params)))
            assert float(loss(params)) <= 1e-6
            np.testing.assert_allclose(params, target, atol=1e-2)


@pytest.mark.parametrize("loss", [lambda x: jnp.sum(x**2), rosenbrock])
def test_a_line_search_never_goes_up_without_noise(loss):
    with jax.enable_x64(True):
        est = zojax.coordinate_difference(sigma=1e-5)
        tx = zojax.with_estimate(est, KEY, search)
        params, losses = jnp.linspace(-1, 1, D, dtype=jnp.float64), []
        state, step = tx.init(params), make_step(tx, loss)
        for _ in range(40):
            losses.append(float(loss(params)))
            params, state = step(params, state)
    assert np.all(np.diff(losses) <= 0) and losses[-1] < losses[0] / 2


def finite_sum(seed):
    """Logistic regression on 256 examples; a loss of a batch of indices."""
    keys = jax.random.split(jax.random.key(seed), 2)
    x = jax.random.normal(keys[0], (256, 10)) * jnp.geomspace(3, 0.3, 10)[None]
    y = jnp.where(jax.random.uniform(keys[1], (256,)) < jax.nn.sigmoid(x @ jnp.ones(10)), 1.0, -1.0)
    return lambda w, chosen: (
        jnp.mean(jax.nn.softplus(-y[chosen] * (x[chosen] @ w))) + 0.005 * (w @ w)
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_svrg_beats_sgd_at_equal_queries_on_a_finite_sum(seed):
    """Equal sample-losses, each at its best of the same learning rates."""
    loss, everything, budget = finite_sum(seed), jnp.arange(256), 400_000
    est = zojax.finite_difference(num_directions=5, sigma=1e-3)
    snapshot = zojax.coordinate_difference(sigma=1e-2)
    batch, period = 8, 40
    per_step = 10 * batch
    per_svrg = (2 * per_step * (period - 1) + 20 * 256) / period

    def run(make, cost, rate):
        tx = optax.chain(make, optax.sgd(rate))

        def body(carry, key):
            params, state = carry
            chosen = jax.random.randint(key, (batch,), 0, 256)
            updates, state = tx.update(
                None,
                state,
                params,
                value_fn=lambda w: loss(w, chosen),
                full_value_fn=lambda w: loss(w, everything),
            )
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(seed), int(budget / cost))
        params = jnp.zeros(10)
        return loss(jax.lax.scan(body, (params, tx.init(params)), keys)[0][0], everything)

    rates = jnp.geomspace(0.003, 1.0, 6)

    def best(make, cost):
        found = jax.jit(jax.vmap(lambda rate: run(make, cost, rate)))(rates)
        return float(jnp.nanmin(found))

    sgd = best(zojax.as_gradient_transformation(est, KEY), per_step)
    svrg = best(zojax.svrg(est, KEY, period=period, snapshot_est=snapshot), per_svrg)
    assert svrg < sgd


def test_variance_reduction_uses_the_same_directions_and_counts_queries():
    """At the snapshot itself both estimates cancel: what is left is the full one."""
    est = zojax.finite_difference(num_directions=2, sigma=0.1)
    tx = zojax.svrg(est, KEY, period=10, snapshot_est=EXACT)
    state = tx.init(PARAMS)
    full, state = tx.update(None, state, PARAMS, value_fn=bowl, full_value_fn=bowl)
    again, state = tx.update(
        None, state, PARAMS, value_fn=lambda p: 3 * bowl(p), full_value_fn=bowl
    )
    for a, b in zip(jax.tree.leaves(full), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert int(state.num_queries) == 2 * D + 2 * 4


def test_adamm_is_the_published_recursion():
    grads = [jnp.array([1.0, -2.0]), jnp.array([0.5, 0.1])]
    tx = zojax.scale_by_adamm(0.9, 0.3, initial=1e-7)
    state = tx.init(jnp.zeros(2))
    m, v, top = np.zeros(2), np.full(2, 1e-7), np.full(2, 1e-7)
    for grad in grads:
        found, state = tx.update(grad, state)
        m, v = 0.9 * m + 0.1 * np.asarray(grad), 0.3 * v + 0.7 * np.asarray(grad) ** 2
        top = np.maximum(top, v)
        np.testing.assert_allclose(found, m / np.sqrt(top), rtol=1e-5)


def test_a_trust_region_rejects_shrinks_and_grows():
    tx = zojax.accept_or_reject(radius=1.0)
    x, state = jnp.array([2.0]), None
    state = tx.init(x)
    square = lambda p: jnp.sum(p**2)  # noqa: E731
    up, state = tx.update(jnp.array([5.0]), state, x, value_fn=square)
    assert float(up[0]) == 0 and float(state.radius) == 0.5 and int(state.num_rejected) == 1
    down, state = tx.update(jnp.array([-5.0]), state, x, value_fn=square)
    assert float(down[0]) == pytest.approx(-0.5) and float(state.radius) == 1.0
    nan, state = tx.update(jnp.array([-1.0]), state, x, value_fn=lambda p: p[0] * jnp.nan)
    assert float(nan[0]) == 0 and int(state.num_queries) == 6


def test_admm_matches_the_lasso_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 12))
    y = x @ np.where(np.arange(12) < 4, rng.normal(size=12), 0) + 0.1 * rng.normal(size=60)
    weight = 0.1
    expected = linear_model.Lasso(alpha=weight, fit_intercept=False, tol=1e-10).fit(x, y).coef_
    loss = lambda w: 0.5 * jnp.mean((jnp.asarray(x, jnp.float32) @ w - y.astype("f4")) ** 2)  # noqa: E731
    method = zojax.admm(
        EXACT, lambda v, step: projections.prox_l1(v, weight * step), rho=1.0, step_size=0.5
    )
    keys = jax.random.split(KEY, 800)
    state, info = jax.jit(lambda s: jax.lax.scan(lambda s, k: method.step(s, k, loss), s, keys))(
        method.init(jnp.zeros(12))
    )
    np.testing.assert_allclose(state.split, expected, atol=1e-3)
    np.testing.assert_array_equal(np.asarray(state.split) == 0, expected == 0)
    assert float(info.primal_residual[-1]) < 1e-4


def test_admm_takes_a_linear_operator():
    """Total variation of a step: min |x - y|^2 / 2 + w |diff x|_1 keeps the step, flattens it."""
    y = jnp.where(jnp.arange(10) < 5, 0.0, 1.0) + 0.1 * jnp.sin(7.0 * jnp.arange(10))
    weight = 0.2
    method = zojax.admm(
        EXACT,
        lambda v, step: projections.prox_l1(v, weight * step),
        rho=1.0,
        step_size=0.5,
        operator=jnp.diff,
        operator_norm=2.0,
    )
    keys = jax.random.split(KEY, 1500)
    loss = lambda x: 0.5 * jnp.sum((x - y) ** 2)  # noqa: E731
    step = lambda s, k: (method.step(s, k, loss)[0], None)  # noqa: E731
    state = jax.jit(lambda s: jax.lax.scan(step, s, keys)[0])(method.init(jnp.zeros(10)))
    # Two plateaus, each at its mean moved by w / 5 towards the other.
    expected = jnp.where(jnp.arange(10) < 5, y[:5].mean() + weight / 5, y[5:].mean() - weight / 5)
    np.testing.assert_allclose(state.params, expected, atol=5e-3)


@pytest.mark.parametrize("exact_side", ["neither", "x", "y"])
def test_minimax_finds_a_quadratic_saddle(exact_side):
    coupling = jax.random.normal(KEY, (4, 3)) / 2

    def saddle(x, y):
        return 0.5 * x @ x + x @ coupling @ y - 0.5 * y @ y + jnp.sum(x) - jnp.sum(y)

    est = zojax.finite_difference(directions=zojax.orthogonal(), num_directions=3, sigma=0.1)
    method = zojax.minimax(
        None if exact_side == "x" else est,
        optax.sgd(0.1),
        None if exact_side == "y" else est,
        optax.sgd(0.2),
    )
    keys = jax.random.split(KEY, 400)
    step = lambda s, k: (method.step(s, k, saddle), None)  # noqa: E731
    start = method.init(jnp.ones(4), jnp.ones(3))
    state = jax.jit(lambda s: jax.lax.scan(step, s, keys)[0])(start)
    matrix = np.block([[np.eye(4), coupling], [-np.asarray(coupling).T, np.eye(3)]])
    solution = np.linalg.solve(matrix, -np.ones(7))
    np.testing.assert_allclose(np.concatenate([state.x, state.y]), solution, atol=1e-3)


MIXED = {"n": jnp.int32(7), "w": jnp.array([0.6, 0.4, 0.5])}


@pytest.mark.parametrize(
    "tail",
    [
        lambda: optax.chain(zojax.scale_by_adamm(), optax.scale(-0.1)),
        lambda: zojax.projected(BALL),
        lambda: zojax.proximal(projections.prox_l1, 0.1, 0.1),
        lambda: zojax.frank_wolfe(functools.partial(projections.oracle_l1, radius=1.0)),
        lambda: zojax.mirror_descent(0.1),
    ],
)
def test_leaves_that_are_not_floating_point_stay(tail):
    tx = chain(tail())
    loss = lambda p: jnp.sum(p["w"] ** 2)  # noqa: E731
    updates, _ = tx.update(None, tx.init(MIXED), MIXED, value_fn=loss)
    moved = optax.apply_updates(MIXED, updates)
    assert moved["n"] == 7 and moved["n"].dtype == jnp.int32
    assert np.all(np.isfinite(moved["w"])) and np.any(moved["w"] != MIXED["w"])


def test_mirror_descent_survives_steep_gradients_and_zeros():
    tx = zojax.mirror_descent(1.0)
    for x, g in (([0.5, 0.5], [0.0, 2000.0]), ([0.0, 1.0], [-200.0, 0.0])):
        x, g = jnp.array(x), jnp.array(g)
        updates, _ = tx.update(g, tx.init(x), x)
        moved = np.asarray(x + updates)
        assert moved.min() > 0 and moved.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("method", [zojax.svrg, zojax.spider])
def test_failed_evaluations_move_nothing_and_a_failed_snapshot_is_taken_again(method):
    tx, nan = method(EXACT, KEY, period=3), lambda p: bowl(p) * jnp.nan
    state = tx.init(PARAMS)
    for full, batch, zero in ((nan, bowl, True), (bowl, bowl, False), (bowl, nan, True)):
        grad, state = tx.update(None, state, PARAMS, value_fn=batch, full_value_fn=full)
        assert np.all(np.asarray(trees.ravel(grad)) == 0) == zero
    grad, state = tx.update(None, state, PARAMS, value_fn=bowl, full_value_fn=nan)
    expected = trees.ravel(jax.grad(bowl)(PARAMS))
    np.testing.assert_allclose(trees.ravel(grad), expected, atol=1e-3)


def test_accepted_are_finite_losses_that_are_no_worse_or_come_from_nowhere():
    tx, x = zojax.accept_or_reject(), jnp.zeros(1)
    nan, inf = float("nan"), float("inf")
    for before, after, accepted in (
        (inf, inf, False), (1.0, -inf, False), (nan, 5.0, True), (1.0, nan, False), (1.0, 1.0, True)
    ):  # fmt: skip
        loss = lambda p, b=before, a=after: jnp.where(p[0] > 0, a, b)  # noqa: E731
        step, _ = tx.update(jnp.ones(1), tx.init(x), x, value_fn=loss)
        assert bool(step[0] > 0) == accepted


def test_the_capped_simplex_projection_stands_large_inputs():
    for values, total in (([1e8, 1e8], 1), ([1e9, 1e9, 0.0], 1.5)):
        x = projections.projection_capped_simplex(jnp.array(values), total)
        assert float(x.sum()) == pytest.approx(total) and float(x[0]) == pytest.approx(total / 2)


def test_checks_let_traced_values_pass():
    tx = optax.inject_hyperparams(zojax.scale_by_adamm)(b1=0.9, b2=0.5)
    jax.jit(tx.update)(PARAMS, tx.init(PARAMS))
    tx = optax.inject_hyperparams(zojax.accept_or_reject)(tolerance=0.1)
    jax.jit(lambda u, s: tx.update(u, s, PARAMS, value_fn=bowl))(PARAMS, tx.init(PARAMS))


def test_an_l1_projection_leaves_interior_points_alone():
    inside = {"a": jnp.array([0.1, -0.2]), "b": jnp.array([0.3])}
    tx = zojax.projected(BALL)
    zeros = jax.tree.map(jnp.zeros_like, inside)
    updates, _ = tx.update(zeros, tx.init(inside), inside)
    assert not np.any(trees.ravel(updates))


@pytest.mark.parametrize("total", [0, 1, 2.5, 6])
def test_the_capped_simplex_projection_is_the_nearest_point(total):
    v = jnp.array([1.7, -0.3, 0.4, 0.45, 2.0, 0.1])
    x = np.asarray(projections.projection_capped_simplex(v, total), np.float64)
    assert x.min() >= 0 and x.max() <= 1 and x.sum() == pytest.approx(total, abs=1e-6)
    # Optimality: v - x is constant on free coordinates, not below it at 1, not above it at 0.
    residual, free = np.asarray(v) - x, (x > 1e-6) & (x < 1 - 1e-6)
    if free.any():
        level = residual[free].mean()
        np.testing.assert_allclose(residual[free], level, atol=1e-5)
        assert np.all(residual[x >= 1 - 1e-6] >= level - 1e-5)
        assert np.all(residual[x <= 1e-6] <= level + 1e-5)


def test_oracles_return_the_best_vertex():
    grad = {"a": jnp.array([0.5, -3.0]), "b": jnp.array([[1.0, 2.0]])}
    flat = np.array([0.5, -3.0, 1.0, 2.0])
    ravel = lambda tree: np.asarray(trees.ravel(tree))  # noqa: E731
    np.testing.assert_array_equal(ravel(projections.oracle_l1(grad, 2.0)), [0, 2, 0, 0])
    np.testing.assert_array_equal(ravel(projections.oracle_linf(grad, 2.0)), -2 * np.sign(flat))
    np.testing.assert_array_equal(ravel(projections.oracle_simplex(grad)), [0, 1, 0, 0])
    np.testing.assert_array_equal(ravel(projections.oracle_capped_simplex(grad, 2)), [1, 1, 0, 0])
    expected = -2 * flat / np.linalg.norm(flat)
    np.testing.assert_allclose(ravel(projections.oracle_l2(grad, 2.0)), expected, rtol=1e-6)


def test_spsa_gains_move_as_far_as_asked_and_say_so(capsys):
    gains = zojax.transforms.calibrate_spsa(
        lambda p: 7 * bowl(p), PARAMS, KEY, num_steps=100, target_change=0.05, sigma=0.01
    )
    assert "calibrate_spsa chose a = " in capsys.readouterr().out
    est = zojax.spsa(sigma=gains.sigma, num_directions=1)
    tx = optax.chain(zojax.as_gradient_transformation(est, KEY), optax.sgd(gains.learning_rate))

    def first_move(key):
        state = tx.init(PARAMS)
        state = (state[0]._replace(key=key), *state[1:])
        updates, _ = tx.update(None, state, PARAMS, value_fn=lambda p: 7 * bowl(p))
        return jnp.mean(jnp.abs(trees.ravel(updates)))

    moves = jax.jit(jax.vmap(first_move))(jax.random.split(KEY, 64))
    assert float(jnp.mean(moves)) == pytest.approx(0.05, rel=0.4)
    assert gains.num_queries == 50
    assert float(gains.sigma(0)) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: projections.projection_capped_simplex(jnp.ones(3), 4),
            r"total must be in \[0, 3\]",
        ),
        (
            lambda: projections.projection_capped_simplex(jnp.ones(0), 0),
            r"total must be in \[0, 0\]",
        ),
        (lambda: projections.oracle_l1(jnp.ones(3), 0.0), "radius must be a finite number > 0"),
        (lambda: projections.oracle_simplex(jnp.ones(3), -1.0), "scale must be a finite"),
        (lambda: projections.oracle_capped_simplex(jnp.ones(3), 4), "total must be at most 3"),
        (lambda: zojax.mirror_descent(0.0), "learning_rate must be a finite number > 0"),
        (lambda: zojax.proximal(projections.prox_l1, 0.1, -1.0), "weight must be a finite"),
        (lambda: zojax.scale_by_adamm(b1=1.0), r"b1 must be in \[0, 1\), got 1.0"),
        (lambda: zojax.scale_by_adamm(initial=0.0), "initial must be a finite number > 0"),
        (lambda: zojax.svrg(EXACT, KEY, period=0), "period must be an integer >= 1"),
        (lambda: zojax.svrg(zojax.pgpe(), KEY, period=2), "est must have no state"),
        (lambda: zojax.accept_or_reject(-1.0), "tolerance must be >= 0"),
        (lambda: zojax.accept_or_reject(shrink=0.0), r"shrink must be in \(0, 1\]"),
        (lambda: zojax.transforms.gain_schedule(1.0, 0.6, -1.0), "stability must be >= 0"),
        (lambda: zojax.admm(EXACT, BALL, rho=0.0, step_size=0.1), "rho must be a finite"),
        (
            lambda: zojax.transforms.calibrate_spsa(
                lambda p: 1.0 + 0 * bowl(p), PARAMS, KEY, num_steps=9, target_change=1, sigma=0.1
            ),
            "the loss does not change",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
