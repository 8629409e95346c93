"""Gradient attacks: the estimates themselves, closed-form distances, counts, failed answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax.attacks.gradient import nes, zo_adamm, zo_sign_sgd
from zojax.attacks.kernel import Goal, distance
from zojax.attacks.latent import pixels, upsampled
from zojax.attacks.zoo import zoo_adam, zoo_newton

SIDE = 4
D = SIDE * SIDE
RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=D).astype(np.float32)  # of the boundary between classes 0 and 1
ROUGH = RNG.uniform(0.35, 0.65, size=(SIDE, SIDE, 1)).astype(np.float32)
MARGIN = 0.5
L2, LINF = MARGIN / np.linalg.norm(NORMAL), MARGIN / np.abs(NORMAL).sum()
UNTARGETED = Goal(jnp.asarray(0), jnp.asarray(False))
TARGETED = Goal(jnp.asarray(1), jnp.asarray(True))


def linear(points, x=ROUGH):
    """Scores (..., 3) of a linear model with the given margin at x; class 2 is out of reach."""
    flat = points.reshape(*points.shape[: points.ndim - x.ndim], D)
    ones = (1,) * (flat.ndim - 1)
    offset = flat - jnp.reshape(x, (*ones, D))
    value = jnp.sum(offset * NORMAL.reshape(*ones, D), axis=-1) + MARGIN
    return jnp.stack([value, jnp.zeros_like(value), jnp.full_like(value, -100.0)], axis=-1)


def play(attack, x, goal, key, num_steps, failing=0.0):
    """Runs an attack on one example; a fraction of the answers fail."""

    def body(carry, step):
        state, extremes, spent = carry
        ask = attack.ask(state)
        lowest = jnp.minimum(extremes[0], ask.points.min())
        highest = jnp.maximum(extremes[1], ask.points.max())
        lost = jax.random.uniform(jax.random.key(step), (len(ask.points),)) < failing
        scores = linear(ask.points)
        scores = jnp.where((ask.used & ~lost)[:, None], scores, jnp.nan)
        is_done = attack.is_done(state)
        state = attack.tell(state, scores)
        return (state, (lowest, highest), spent + jnp.where(is_done, 0, ask.used.sum())), None

    start = (attack.init(x, goal, key), (jnp.ones(()), jnp.zeros(())), jnp.zeros((), jnp.int32))
    (state, extremes, spent), _ = jax.lax.scan(body, start, jnp.arange(num_steps))
    best, found = attack.best(state)
    return best, found, extremes, spent


def ball(build, norm, slack=1.2, **settings):
    return build({"linf": LINF, "l2": L2}[norm] * slack, norm, sigma=0.01, **settings)


ATTACKS = {
    "nes linf": (lambda: ball(nes, "linf", learning_rate=LINF / 4), "linf", 40),
    "nes l2": (lambda: ball(nes, "l2", learning_rate=L2 / 4), "l2", 60),
    "zo_sign_sgd linf": (lambda: ball(zo_sign_sgd, "linf", learning_rate=LINF / 4), "linf", 40),
    "zo_sign_sgd l2": (lambda: ball(zo_sign_sgd, "l2", 1.6, learning_rate=L2 / 4), "l2", 60),
    "zo_adamm linf": (lambda: ball(zo_adamm, "linf"), "linf", 40),
    "zo_adamm l2": (lambda: ball(zo_adamm, "l2"), "l2", 60),
    "nes latent": (lambda: nes(0.3, sigma=0.01, latent=upsampled((2, 3))), "linf", 40),
    "zoo_adam": (
        lambda: zoo_adam(num_coordinates=8, num_steps=150, num_searches=2, initial_c=0.1), "l2", 300
    ),
    "zoo_newton": (
        lambda: zoo_newton(
            num_coordinates=8, num_steps=150, num_searches=2, initial_c=0.1, learning_rate=0.3
        ),
        "l2",
        300,
    ),
    "zoo latent": (
        lambda: zoo_adam(
            num_steps=150, num_searches=2, initial_c=1.0, latent=upsampled((2, 2))
        ),
        "l2",
        300,
    ),
}  # fmt: skip
RADIUS = {"linf": 1.2 * LINF, "zo_sign_sgd l2": 1.6 * L2, "l2": 1.2 * L2, "nes latent": 0.3}
CORNER = np.asarray(ROUGH > 0.5, np.float32)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_find_what_is_there_whatever_fails(name):
    """Two goals, a corner of the cube, and fractions of failing answers, in one program."""
    build, norm, num_steps = ATTACKS[name]
    attack = build()
    x = jnp.stack([ROUGH, ROUGH, CORNER, ROUGH, ROUGH])
    goal = jax.tree.map(lambda a, b: jnp.stack([a, b, a, a, a]), UNTARGETED, TARGETED)
    failing = jnp.asarray([0, 0, 0, 0.1, 1.0])
    run = jax.jit(jax.vmap(lambda *args: play(attack, *args[:3], num_steps, args[3])))
    best, found, (low, high), spent = run(x, goal, jax.random.split(jax.random.key(1), 5), failing)
    assert low.min() >= 0 and high.max() <= 1
    assert found.tolist()[:2] == [True, True] and found.tolist()[3:] == [True, False]
    assert np.isfinite(best).all() and best.min() >= 0 and best.max() <= 1
    np.testing.assert_array_equal(best[4], ROUGH)  # no answer, no move
    assert np.all(linear(best)[np.array([0, 1, 3]), 0] < 0)
    lengths = np.asarray([distance(b, a, norm) for a, b in zip(x, best, strict=True)])
    if name.startswith("zoo"):
        # The nearest in pixels; a latent of four numbers only has the nearest of its own.
        weights = np.asarray(_normal_in_latent()) if name == "zoo latent" else np.ones(1)
        closest = L2 if name != "zoo latent" else MARGIN / np.linalg.norm(weights)
        assert np.all(lengths[[0, 1]] < 1.05 * closest)
        assert np.all(lengths[[0, 1]] > 0.999 * closest)
        assert spent[0] == num_steps * attack.ask(attack.init(x[0], UNTARGETED, KEY)).used.sum()
    else:
        radius = RADIUS.get(name, RADIUS.get(norm))
        assert np.all(lengths <= radius * (1 + 1e-5))


KEY = jax.random.key(3)


def _normal_in_latent():
    """The boundary's normal within the perturbations that the grid can make."""
    grid = upsampled((2, 2))
    unit = jnp.eye(4).reshape(4, 2, 2, 1)
    basis = jnp.stack([grid.perturbation(u, jnp.asarray(ROUGH)).ravel() for u in unit], axis=1)
    orthonormal, _ = np.linalg.qr(basis)
    return orthonormal.T @ NORMAL


@pytest.mark.parametrize("build", [nes, zo_adamm])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nothing_is_found_in_a_ball_that_holds_nothing(build, norm):
    attack = ball(build, norm, slack=0.98)
    best, found, _, _ = jax.jit(lambda: play(attack, jnp.asarray(ROUGH), UNTARGETED, KEY, 30))()
    assert not found
    assert distance(best, ROUGH, norm) <= {"linf": LINF, "l2": L2}[norm]
    assert linear(best)[0] < 0.5 * MARGIN  # but it went there


@pytest.mark.parametrize("name", ["nes linf", "zo_adamm l2", "zoo_adam"])
def test_a_sample_does_not_depend_on_the_others(name):
    attack = ATTACKS[name][0]()
    keys = jax.random.split(KEY, 3)
    steps = 6
    alone = jax.jit(lambda key: play(attack, jnp.asarray(ROUGH), UNTARGETED, key, steps))(keys[1])
    together = jax.jit(
        jax.vmap(lambda key: play(attack, jnp.asarray(ROUGH), UNTARGETED, key, steps))
    )(keys)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_array_equal(a, b[1])
    assert not np.array_equal(together[0][0], together[0][2]) or name == "zoo_adam"


def one_estimate(attack, x, goal=UNTARGETED):
    """The state after the first estimate at x."""
    state = attack.init(x, goal, KEY)
    if attack.ask(state).used[0]:
        state = attack.tell(state, linear(attack.ask(state).points, x))
    return attack.tell(state, linear(attack.ask(state).points, x))


def test_estimates_are_the_gradient():
    """The variance of a coordinate is about (b^2 + 2 |g|^2) / n, b the mean of a one-sided slope.

    Points clipped at the boundary see half of every perturbation: the mean is half the gradient.
    """
    n = 20_000
    adamm = zo_adamm(10.0, num_directions=n, sigma=0.01)
    antithetic = nes(10.0, "l2", num_pairs=n // 2, sigma=0.01, learning_rate=0.01)
    signed = zo_sign_sgd(0.5, num_directions=n, sigma=0.01)
    for x, mean in ((ROUGH, NORMAL), (CORNER, NORMAL / 2)):
        slope = 0 if x is ROUGH else 0.4 * np.sum((1 - 2 * x.ravel()) * NORMAL)
        variance = (slope**2 + 2 * np.sum(NORMAL**2)) / n
        x = jnp.asarray(x)
        low, high = (limit.ravel() for limit in pixels.limits(x))
        estimate = one_estimate(adamm, x).optimizer[0].mu.ravel() / (1 - 0.9)
        assert np.sum((estimate - mean) ** 2) < 3 * D * variance

        wanted = np.clip(-0.01 * mean / np.linalg.norm(mean), low, high)
        tolerance = 0.01 * 5 * np.sqrt(2 * 2 / n)  # five standard deviations of a coordinate
        np.testing.assert_allclose(one_estimate(antithetic, x).z.ravel(), wanted, atol=tolerance)

        clear = np.abs(mean) > 5 * np.sqrt(variance)
        assert clear.sum() >= D // 4
        wanted = np.clip(-0.1 * np.sign(mean), low, high)
        signs = one_estimate(signed, x).z.ravel()
        np.testing.assert_allclose(signs[clear], wanted[clear], atol=1e-6)


def test_estimates_are_made_of_the_points_of_ask():
    """The mean of (g . u) u over the directions that are answered, exactly, on a linear model."""
    x = jnp.asarray(ROUGH)
    for attack, points in (
        (zo_adamm(10.0, num_directions=2, sigma=0.01), [1, 2]),
        (nes(10.0, "l2", num_pairs=2, sigma=0.01, learning_rate=0.01), [1, 3]),
    ):
        state = attack.init(x, UNTARGETED, KEY)
        if attack.ask(state).used[0]:
            state = attack.tell(state, linear(attack.ask(state).points))
        asked = attack.ask(state).points
        u = np.asarray(asked - x[None])[points].reshape(2, D) / 0.01
        slopes = (u @ NORMAL)[:, None] * u
        answers = linear(asked)
        for lost, kept in ((answers, slopes), (answers.at[points[0]].set(jnp.nan), slopes[1:])):
            new, wanted = attack.tell(state, lost), kept.mean(axis=0)
            if attack.name == "nes":
                step = -0.01 * wanted / np.linalg.norm(wanted)
                np.testing.assert_allclose(new.z.ravel(), step, atol=1e-6)
            else:
                np.testing.assert_allclose(new.optimizer[0].mu.ravel(), 0.1 * wanted, atol=1e-3)
        # Nothing answered: no move, no check of the same place, other directions.
        new = attack.tell(state, jnp.full_like(answers, jnp.nan))
        np.testing.assert_array_equal(new.z, state.z)
        assert not new.is_checking
        assert np.all(np.any(attack.ask(new).points[1:] != asked[1:], axis=(1, 2, 3)))


def test_steps_have_their_length_and_cost():
    x = jnp.asarray(ROUGH)
    for attack in (
        nes(1.0, "l2", num_pairs=3, learning_rate=0.2),
        zo_sign_sgd(1.0, "l2", num_directions=6, learning_rate=0.2),
    ):
        state = one_estimate(attack, x)
        np.testing.assert_allclose(jnp.sqrt(jnp.sum(state.z**2)), 0.2, rtol=1e-5)
        ask = attack.ask(state)
        assert ask.used.tolist() == ask.is_check.tolist() == [True] + [False] * 6
        state = attack.tell(state, linear(ask.points, x))
        assert attack.ask(state).used.tolist() == [False] + [True] * 6
    # A centre without an answer is asked for again, and nothing else.
    state = attack.tell(attack.init(x, UNTARGETED, KEY), jnp.full((7, 3), jnp.nan))
    assert attack.ask(state).used.tolist() == [True] + [False] * 6


def test_the_weighted_projection_is_the_nearest_point_in_its_metric():
    """Against other feasible points: none is nearer in the norm weighted by sqrt(v_max)."""
    attack = zo_adamm(0.1, "l2", num_directions=50, learning_rate=5.0, sigma=0.01)
    x = jnp.asarray(CORNER)
    state = one_estimate(attack, x)
    adamm = state.optimizer[0]
    target = -5.0 * adamm.mu / jnp.sqrt(adamm.largest)
    np.testing.assert_allclose(distance(state.z, 0 * x, "l2"), 0.1, rtol=1e-3)

    def cost(z):
        return jnp.sum(jnp.sqrt(adamm.largest) * (z - target) ** 2)

    other = state.z[None] + 0.03 * jax.random.normal(KEY, (500, *x.shape))
    other = jnp.clip(other, -x[None], 1 - x[None])
    lengths = jnp.sqrt(jnp.sum(other**2, axis=(1, 2, 3), keepdims=True))
    other = other * jnp.minimum(1, 0.1 / lengths)
    assert jnp.min(jax.vmap(cost)(other)) >= cost(state.z) * (1 - 1e-4)


def quadratic(points):
    """Scores whose margin is NORMAL . x + 3 |x|^2."""
    flat = points.reshape(len(points), D)
    value = flat @ NORMAL + 3 * jnp.sum(flat**2, axis=1)
    return jnp.stack([value, jnp.zeros_like(value)], axis=1)


def test_zoo_takes_exact_derivatives_of_a_quadratic():
    """Central differences are exact, at the boundary too, up to the middle's move and rounding."""
    c = 2.0
    x = jnp.asarray(np.where(RNG.random(ROUGH.shape) < 0.3, CORNER, ROUGH))
    adam = zoo_adam(num_coordinates=100, initial_c=c, sigma=0.01)
    z = jnp.clip(jnp.asarray(RNG.normal(size=x.shape), jnp.float32) * 0.1, -x, 1 - x)
    middle = jnp.clip(x + z, 0.01, 0.99).ravel()
    slope = 2 * z.ravel() + c * (NORMAL + 6 * middle)
    state = adam.init(x, UNTARGETED, KEY)._replace(z=z)
    state = adam.tell(state, quadratic(adam.ask(state).points))
    np.testing.assert_allclose(state.solver.mu, 0.1 * slope, atol=2e-3)
    assert state.solver.count.tolist() == [1] * D

    newton = zoo_newton(num_coordinates=100, initial_c=c, sigma=0.01, learning_rate=0.1)
    state = newton.init(x, UNTARGETED, KEY)._replace(z=z)
    ask = newton.ask(state)
    assert ask.used.all() and ask.is_check.tolist() == [True] + [False] * (2 * D)
    state = newton.tell(state, quadratic(ask.points))
    is_moved = np.asarray(middle != (x + z).ravel())
    curvature = np.where(is_moved, 1.0, 2 + 6 * c)
    low, high = (limit.ravel() for limit in pixels.limits(x))
    wanted = np.clip(z.ravel() - 0.1 * slope / curvature, low, high)
    assert 0 < is_moved.sum() < D
    np.testing.assert_allclose(state.z.ravel(), wanted, atol=5e-3)


def test_zoo_moves_only_the_coordinates_it_asked_about():
    attack = zoo_adam(num_coordinates=3)
    state = attack.init(jnp.asarray(ROUGH), UNTARGETED, KEY)
    ask = attack.ask(state)
    assert len(ask.points) == 7
    touched = np.any(np.asarray(ask.points) != ROUGH, axis=0).ravel()
    scores = linear(ask.points).at[2].set(jnp.nan)  # one of three pairs is lost
    state = attack.tell(state, scores)
    lost = np.flatnonzero(np.asarray(ask.points[2] != ROUGH).ravel())
    touched[lost] = False
    assert touched.sum() == 2
    np.testing.assert_array_equal(state.solver.count, touched)
    np.testing.assert_array_equal(np.asarray(state.z).ravel() != 0, touched)


def test_zoo_searches_for_the_weight():
    """Fails at .01, succeeds at .1, so .055 follows; Adam starts anew at the first success."""
    attack = zoo_adam(num_coordinates=2, num_steps=2, num_searches=3)
    state = attack.init(jnp.asarray(ROUGH), UNTARGETED, KEY)
    good, bad = jnp.asarray([[-1.0, 0, -9]] * 5), jnp.asarray([[1.0, 0, -9]] * 5)
    weights, updates = [], []
    for answers in (bad, bad, bad, good, good, good):
        assert not attack.is_done(state)
        weights.append(float(state.c))
        updates.append(int(state.solver.count.sum()))
        is_last = state.step == 1
        state = attack.tell(state, answers)
        assert state.solver.count.any() != is_last  # a search starts with nothing
    np.testing.assert_allclose(weights, [0.01, 0.01, 0.1, 0.1, 0.055, 0.055], rtol=1e-6)
    assert updates == [0, 2] * 3
    assert attack.is_done(state) and attack.best(state)[1]
    np.testing.assert_allclose(state.c, (0.01 + 0.055) / 2, rtol=1e-6)

    attack = zoo_adam(num_coordinates=2, num_steps=9)
    state = attack.init(jnp.asarray(ROUGH), UNTARGETED, KEY)
    updates = []
    for answers in (bad, bad, good, good):
        state = attack.tell(state, answers)
        updates.append(int(state.solver.count.sum()))
    assert updates == [2, 4, 2, 4]


def test_a_latent_interpolates():
    x = jnp.asarray(RNG.random((6, 5, 2)), jnp.float32)
    grid = upsampled((3, 2))
    assert grid.zeros(x).shape == (3, 2, 2)
    assert upsampled((3, 2)).zeros(x[..., 0]).shape == (3, 2)
    z = jax.random.normal(KEY, (3, 2, 2))
    up = grid.perturbation(z, x)
    assert up.shape == x.shape
    assert np.all(up.min(axis=(0, 1)) >= z.min(axis=(0, 1)) - 1e-6)
    assert np.all(up.max(axis=(0, 1)) <= z.max(axis=(0, 1)) + 1e-6)
    np.testing.assert_allclose(grid.perturbation(jnp.ones_like(z), x), 1, rtol=1e-6)
    np.testing.assert_array_equal(upsampled((6, 5)).perturbation(x, x), x)
    attack = nes(0.1, latent=grid)
    assert attack.ask(attack.init(x, UNTARGETED, KEY)).points.shape == (21, 6, 5, 2)
    for bad in ((0, 2), (2.0, 2), 3, (1, 2, 3), (True, 2)):
        with pytest.raises(ValueError, match="latent_shape must be two integers"):
            upsampled(bad)
    for wrong in (x[0, 0], x[:2]):
        with pytest.raises(ValueError, match="latent_shape must be at most"):
            grid.zeros(wrong)


@pytest.mark.parametrize(
    ("build", "settings", "message"),
    [
        (nes, {"epsilon": 0.0}, "epsilon must be"),
        (nes, {"epsilon": 1, "norm": "l1"}, "norm must be"),
        (nes, {"epsilon": 1, "num_pairs": 0}, "num_pairs must be"),
        (nes, {"epsilon": 1, "sigma": -1}, "sigma must be"),
        (zo_sign_sgd, {"epsilon": 1, "num_directions": 0}, "num_directions must be"),
        (zo_sign_sgd, {"epsilon": 1, "learning_rate": 0}, "learning_rate must be"),
        (zo_adamm, {"epsilon": 1, "b2": 1.0}, "b2 must be"),
        (zoo_adam, {"num_steps": 0}, "num_steps must be"),
        (zoo_adam, {"initial_c": 0}, "initial_c must be"),
        (zoo_newton, {"sigma": 0.5}, "sigma must be"),
        (zoo_newton, {"kappa": -1}, "kappa must be"),
        (zoo_newton, {"learning_rate": 0}, "learning_rate must be"),
    ],
)
def test_settings_out_of_range_are_named(build, settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)
