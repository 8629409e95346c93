"""SignHunter, Square and SimBA on linear models, whose nearest adversarial inputs are known."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import attacks, blackbox
from zojax.attacks import Goal, sign_hunter, simba, square
from zojax.attacks.kernel import margin
from zojax.attacks.simba import _cosines
from zojax.attacks.square import _move_window, _num_halvings

SHAPE = (4, 5, 2)
SIZE = math.prod(SHAPE)
KEYS = jax.random.split(jax.random.key(0), 3)
NUM_STEPS = 400
EPSILON = {"linf": 0.1, "l2": 0.5}
ROUNDING = 1e-6  # of coordinates of order 1 in float32, and of their sums of 40 squares

WEIGHTS = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
MIDDLE = np.full(SHAPE, 0.5, np.float32)  # where no step of EPSILON is clipped
EDGE = np.random.default_rng(2).choice([0.0, 0.03, 1.0], size=SHAPE).astype(np.float32)


def build(name, scale=1.0):
    """An attack by name, its norm, and the radius of its ball."""
    kind, norm = name.split()[:2]
    epsilon = scale * EPSILON[norm]
    if kind == "square":
        return square(epsilon, norm, p=0.5, num_steps=NUM_STEPS), norm, epsilon
    if kind == "simba":
        return simba(epsilon, norm, name.split()[2], step=0.1), norm, epsilon
    return sign_hunter(epsilon, norm), norm, epsilon


NAMES = (
    "sign_hunter linf",
    "sign_hunter l2",
    "square linf",
    "square l2",
    "simba linf pixel",
    "simba l2 pixel",
    "simba l2 dct",
)


def scores_of(point, bias):
    """Three classes; the margin of class 0 over class 1 is <w, x - 1/2> + bias, 2 is hopeless."""
    value = jnp.sum(jnp.asarray(WEIGHTS) * (point - 0.5)) + bias
    return jnp.stack([value, jnp.zeros_like(value), jnp.full_like(value, -100.0)])


@functools.cache
def program(name, scale=1.0, batched=True):
    """`(x, key, bias, silence) -> (points, used, margins, best, found, done)` of all steps.

    Steps where `silence` (steps,) holds are not answered, nor are those after the attack is done.
    """
    attack, _, _ = build(name, scale)

    def drive(x, key, bias, silence):
        goal = Goal(jnp.zeros((), jnp.int32), jnp.zeros((), bool))

        def step(state, is_silent):
            asked = attack.ask(state)
            scores = jax.vmap(lambda point: scores_of(point, bias))(asked.points)
            is_silent = is_silent | attack.is_done(state) | ~asked.used[0]
            state = attack.tell(state, jnp.where(is_silent, jnp.nan, scores))
            best, found = attack.best(state)
            current = margin(scores_of(best, bias), goal)
            done = attack.is_done(state)
            return state, (asked.points[0], asked.used[0], current, best, found, done)

        return jax.lax.scan(step, attack.init(x, goal, key), silence)[1]

    return jax.jit(jax.vmap(drive, in_axes=(None, 0, None, None)) if batched else drive)


def drive(name, x, bias, silence=None, scale=1.0):
    silence = np.zeros(NUM_STEPS, bool) if silence is None else silence
    found = program(name, scale)(x, KEYS, jnp.float32(bias), silence)
    return [np.asarray(part) for part in found]


def reach(name):
    """How far the margin can fall within the ball where nothing is clipped."""
    _, norm, epsilon = build(name)
    return epsilon * (np.abs(WEIGHTS).sum() if norm == "linf" else np.sqrt((WEIGHTS**2).sum()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("x", [MIDDLE, EDGE], ids=["middle", "edge"])
def test_points_stay_in_the_box_and_the_ball_and_margins_fall(name, x):
    _, norm, epsilon = build(name)
    points, used, margins, best, found, _ = drive(name, x, bias=50.0)
    assert not found.any()
    assert used[:, 0].all() and points.shape == (3, NUM_STEPS, *SHAPE)
    for asked in (points, best):
        assert asked.min() >= 0 and asked.max() <= 1
        offset = (asked - x).reshape(3, NUM_STEPS, -1)
        lengths = np.abs(offset).max(-1) if norm == "linf" else np.linalg.norm(offset, axis=-1)
        assert lengths.max() <= epsilon + ROUNDING
    assert (np.diff(margins, axis=1) <= 0).all()
    assert (margins[:, -1] < margins[:, 0]).all()


# How much of the fall that is possible each attack must achieve on a linear model: all of it in
# linf, where the best point is a corner. In l2, signs reach |w|_1 / sqrt(d) of |w|_2; SimBA comes
# near the best direction but for its steps of fixed size; bumps of 3 x 3 pixels cannot follow
# weights that are independent from pixel to pixel.
SHARES = {
    "sign_hunter linf": 1.0,
    "square linf": 1.0,
    "simba linf pixel": 1.0,
    "sign_hunter l2": np.abs(WEIGHTS).sum() / np.sqrt(SIZE * (WEIGHTS**2).sum()),
    "square l2": 0.5,
    "simba l2 pixel": 0.8,
    "simba l2 dct": 0.8,
}


@pytest.mark.parametrize("name", NAMES)
def test_the_margin_falls_as_far_as_it_can(name):
    _, _, margins, _, _, _ = drive(name, MIDDLE, bias=50.0)
    possible = SHARES[name] * reach(name)
    fall = 50.0 - margins[:, -1]
    assert (fall >= possible * (1 - 1e-4)).all()
    assert (fall <= reach(name) * (1 + 1e-4)).all()


@pytest.mark.parametrize("name", NAMES)
def test_success_begins_at_the_known_distance(name):
    within = SHARES[name] * reach(name)
    _, _, margins, best, found, done = drive(name, MIDDLE, bias=0.98 * within)
    assert found[:, -1].all() and done[:, -1].all()
    np.testing.assert_array_equal(found, margins < 0)
    first = found.argmax(axis=1)
    for sample in range(3):
        assert (best[sample, first[sample] :] == best[sample, -1]).all()  # stops there
    _, _, _, _, found, _ = drive(name, MIDDLE, bias=1.02 * reach(name))
    assert not found.any()


@pytest.mark.parametrize("name", NAMES)
def test_missing_answers_are_no_improvement(name):
    silence = np.random.default_rng(3).random(NUM_STEPS) < 0.3
    silence[:2] = True
    points, _, margins, best, found, _ = drive(name, MIDDLE, bias=50.0, silence=silence)
    assert np.isfinite(points).all() and np.isfinite(margins).all() and not found.any()
    changed = (np.diff(best, axis=1) != 0).any(axis=(2, 3, 4))
    assert not changed[:, silence[1:]].any()
    assert (np.diff(margins[:, 2:], axis=1) <= 0).all()
    assert (50.0 - margins[:, -1] >= 0.5 * reach(name)).all()


@pytest.mark.parametrize("name", NAMES)
def test_alone_and_in_a_batch_the_bits_are_the_same(name):
    together = drive(name, EDGE, bias=5.0)
    alone = program(name, batched=False)(EDGE, KEYS[1], jnp.float32(5.0), np.zeros(NUM_STEPS, bool))
    for all_of_them, one in zip(together, alone, strict=True):
        np.testing.assert_array_equal(all_of_them[1], one)


def victim(batch):
    return np.stack([np.asarray(scores_of(point, 1.0)) for point in batch])


def test_they_run_with_the_driver_targeted_and_untargeted():
    attack = sign_hunter(0.1)
    for labels, targets, status in (
        ([0, 1], None, ["success", "already"]),
        ([0, 0], [1, 2], ["success", "failed"]),
    ):
        oracle = blackbox.score_oracle(victim, budget=300)
        results = attacks.run(
            attack, oracle, np.stack([MIDDLE] * 2), labels, jax.random.key(0), targets=targets
        )
        np.testing.assert_array_equal(results.status, status)
        assert (results.check_queries == 1).all()


def test_sign_hunter_halves_its_chunks_and_stops_when_a_pass_lowers_nothing():
    _, _, margins, best, _, done = drive("sign_hunter linf", MIDDLE, bias=50.0)
    per_depth = [
        math.ceil(SIZE / math.ceil(SIZE / 2**h)) for h in range(math.ceil(math.log2(SIZE)) + 1)
    ]
    assert per_depth == [1, 2, 4, 8, 14, 20, 40]
    # On a linear model the first pass finds every sign, the second confirms them.
    np.testing.assert_array_equal(done.argmax(axis=1), [2 * sum(per_depth)] * 3)
    corner = MIDDLE - 0.1 * np.sign(WEIGHTS)
    np.testing.assert_allclose(best[0, -1], corner, rtol=1e-6)
    np.testing.assert_allclose(best[0, 0], MIDDLE + np.float32(0.1), rtol=1e-6)


def test_simba_asks_nothing_where_clipping_undoes_the_step():
    x = np.where(np.arange(SIZE) % 2 == 0, 0.0, 0.5).reshape(SHAPE).astype(np.float32)
    points, used, _, best, _, done = drive("simba linf pixel", x, bias=50.0)
    assert not used[:, 1:].all()
    for sample in range(3):
        steps = np.flatnonzero(~used[sample] & ~done[sample])
        np.testing.assert_array_equal(points[sample, steps], best[sample, steps - 1])


def test_cosines_are_an_orthonormal_basis():
    basis = jax.vmap(lambda index: _cosines(SHAPE, index))(jnp.arange(SIZE)).reshape(SIZE, SIZE)
    np.testing.assert_allclose(basis @ basis.T, np.eye(SIZE), atol=1e-5)


def test_dct_takes_low_frequencies_first():
    attack = simba(0.5, basis="dct")
    state = attack.init(
        jnp.zeros((16, 16)), Goal(jnp.zeros((), jnp.int32), jnp.zeros((), bool)), KEYS[0]
    )
    order = np.asarray(state.memory.order)
    highest = np.maximum(order // 16, order % 16)
    np.testing.assert_array_equal(np.sort(highest // 2), highest // 2)
    assert (np.sort(order) == np.arange(256)).all()


def test_square_halves_its_share_at_the_published_steps():
    steps = [0, 1, 11, 12, 51, 52, 201, 202, 8001, 8002, 10_000]
    found = [int(_num_halvings(jnp.asarray(step), 10_000)) for step in steps]
    assert found == [0, 0, 0, 1, 1, 2, 2, 3, 8, 9, 9]
    assert int(_num_halvings(jnp.asarray(102), 1000)) == 5


def test_square_linf_changes_one_square_by_the_radius():
    points, _, _, best, _, _ = drive("square linf", MIDDLE, bias=50.0)
    np.testing.assert_allclose(np.abs(points - MIDDLE), 0.1, rtol=1e-5)
    first = points[:, 0] - MIDDLE
    np.testing.assert_array_equal(first, np.broadcast_to(first[:, :1], first.shape))  # stripes
    changed = (points[:, 1:] != best[:, :-1]).any(axis=-1)
    assert changed.any(axis=(2, 3)).all()
    for where in changed.reshape(-1, *SHAPE[:2]):
        rows, columns = np.nonzero(where)
        assert np.ptp(rows) <= 3 and np.ptp(columns) <= 3


def test_square_l2_keeps_its_points_on_the_sphere():
    points, _, _, _, _, _ = drive("square l2", MIDDLE, bias=50.0)
    lengths = np.linalg.norm((points - MIDDLE).reshape(3, NUM_STEPS, -1), axis=-1)
    np.testing.assert_allclose(lengths, 0.5, rtol=1e-4)


def test_square_l2_makes_up_for_what_clipping_took():
    offset = jnp.asarray(0.05 * WEIGHTS)
    move = jax.jit(jax.vmap(lambda draws: _move_window(draws, offset, jnp.asarray(0.5), 2.0)))
    moved = move(jax.random.uniform(KEYS[0], (5, 7))).reshape(5, SIZE)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 2.0, rtol=1e-5)
    kept = (moved == offset.reshape(1, SIZE)).mean(axis=1)
    assert ((kept > 0) & (kept < 1)).all()


@pytest.mark.parametrize(
    ("name", "moves"), [("sign_hunter linf", True), ("simba linf pixel", False)]
)
def test_of_equal_points_only_sign_hunter_takes_the_new_one(name, moves):
    attack, _, _ = build(name)

    @jax.jit
    def walk(x, key):
        goal = Goal(jnp.zeros((), jnp.int32), jnp.zeros((), bool))
        state = attack.tell(attack.init(x, goal, key), jnp.asarray([[1.0, 0.0]]))
        after = attack.tell(state, jnp.asarray([[1.0, 0.0]]))
        return attack.best(state)[0], attack.best(after)[0]

    before, after = walk(MIDDLE, KEYS[0])
    assert bool((before != after).any()) == moves


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sign_hunter(0.0), "epsilon"),
        (lambda: sign_hunter(0.1, "l1"), "norm must be"),
        (lambda: square(-0.1), "epsilon"),
        (lambda: square(0.1, p=0.0), "p must be"),
        (lambda: square(0.1, num_steps=0), "num_steps"),
        (lambda: simba(0.1, step=-1.0), "step"),
        (lambda: simba(0.1, basis="wavelet"), "basis"),
        (lambda: square(0.1).init(jnp.zeros(4), None, KEYS[0]), "image"),
        (lambda: simba(0.1, basis="dct").init(jnp.zeros(4), None, KEYS[0]), "image"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
