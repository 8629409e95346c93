"""Attacks that see labels: Sign-OPT and HopSkipJump on models whose boundaries are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax.attacks import hard_label
from zojax.attacks.hop_skip_jump import hop_skip_jump
from zojax.attacks.kernel import Goal, distance
from zojax.attacks.sign_opt import sign_opt

KEY = jax.random.key(0)
SHAPE = (6, 4, 2)
WEIGHTS = jax.random.normal(jax.random.key(1), SHAPE)
MARGIN = 0.4
STEPS = 240
INNER = jax.random.uniform(jax.random.key(2), (4, *SHAPE), minval=0.4, maxval=0.6)
UNTARGETED = Goal(jnp.asarray(0), jnp.asarray(False))
TARGETED = Goal(jnp.asarray(1), jnp.asarray(True))
BRIGHT = hard_label.class_examples(  # of the far side of the boundary, and of the near side
    jnp.stack([(WEIGHTS > 0).astype(jnp.float32), (WEIGHTS < 0).astype(jnp.float32)]), [1, 0]
)
ATTACKS = {
    "sign_opt": (sign_opt(), "l2"),
    "hop_skip_jump": (hop_skip_jump("l2"), "l2"),
    "hop_skip_jump_linf": (hop_skip_jump("linf"), "linf"),
}
every_attack = pytest.mark.parametrize("name", ATTACKS)


def score(point, x):
    """Above 0 beyond a plane that lies MARGIN away from x."""
    return jnp.sum(WEIGHTS * (point - x)) - MARGIN


def linear_label(points, x):
    return jax.vmap(lambda point: score(point, x) > 0)(points).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def _init(attack, x, goal):
    keys = jax.vmap(functools.partial(jax.random.fold_in, KEY))(jnp.arange(len(x)))
    return jax.vmap(lambda one, key: attack.init(one, goal, key))(x, keys)


@functools.partial(jax.jit, static_argnums=0)
def _go_on(attack, states, x, loses):
    """Asks STEPS times; returns the states and, per step, rows, their range, and the distance."""

    def step(states, key):
        asks = jax.vmap(attack.ask)(states)
        is_lost = jax.random.bernoulli(key, loses, asks.used.shape)
        answers = jnp.where(asks.used & ~is_lost, jax.vmap(linear_label)(asks.points, x), -1)
        states = jax.vmap(attack.tell)(states, answers)
        distances = states.nearest.distance
        return states, (asks.used.sum(1), asks.points.min(), asks.points.max(), distances)

    return jax.lax.scan(step, states, jax.random.split(jax.random.fold_in(KEY, 9), STEPS))


def drive(attack, x=INNER, goal=UNTARGETED, loses=0.0, rounds=1):
    states = _init(attack, x, goal)
    for _ in range(rounds):
        states, seen = _go_on(attack, states, x, loses)
    return states, jax.tree.map(np.asarray, seen)


@functools.cache
def linear_run(name):
    return drive(ATTACKS[name][0])


def nearest(norm, weights=WEIGHTS):
    """The distance of the plane, by Hölder's inequality."""
    return MARGIN / float(jnp.linalg.norm(weights.ravel(), ord={"l2": 2, "linf": 1}[norm]))


def at_budget(run, budget):
    """The distance when so many queries were spent, for every input."""
    spent = np.cumsum(run[1][0], axis=0)
    last = (spent <= budget).sum(axis=0) - 1
    return run[1][3][last, np.arange(len(last))]


@every_attack
def test_the_distance_of_a_plane_is_found(name):
    exact = nearest(ATTACKS[name][1])
    ratios = at_budget(linear_run(name), 2000) / exact
    assert ratios.min() > 1 - 1e-4, "nearer than the boundary"
    assert ratios.max() < 1.05, ratios


@every_attack
def test_points_are_inputs_and_the_best_is_adversarial(name):
    states, (rows, low, high, distances) = linear_run(name)
    assert low.min() >= 0 and high.max() <= 1
    assert rows.min() >= 1 and rows.max() <= hard_label.NUM_ROWS
    assert np.all(distances[1:] <= distances[:-1]) and np.all(np.isfinite(distances[-1]))
    best, found = jax.vmap(ATTACKS[name][0].best)(states)
    rounding = WEIGHTS.size * 1e-7 * float(jnp.abs(WEIGHTS).sum())  # of a sum in another order
    assert np.all(found) and np.all(jax.vmap(score)(best, INNER) > -rounding)


@every_attack
def test_the_best_lies_where_its_distance_says(name):
    attack, norm = ATTACKS[name]
    state = linear_run(name)[0]
    best, found = jax.vmap(attack.best)(state)
    assert np.all(found)
    measured = jax.vmap(lambda a, b: distance(a, b, norm))(best, INNER)
    np.testing.assert_allclose(measured, state.nearest.distance, rtol=1e-6)


@pytest.mark.parametrize("make", [sign_opt, hop_skip_jump])
def test_targeted_attacks_start_at_examples(make):
    run = drive(make(initial=BRIGHT), goal=TARGETED)
    assert at_budget(run, 2000).max() < 1.05 * nearest("l2")


@every_attack
def test_alone_as_among_others(name):
    """But for rounding, which depends on how XLA vectorises sums."""
    attack, _ = ATTACKS[name]
    alone = drive(attack, INNER[:1])[1][3]
    among = linear_run(name)[1][3][:, :1]
    few = 40  # later a label close to the boundary may come out otherwise
    np.testing.assert_allclose(alone[:few], among[:few], rtol=1e-4)


@every_attack
def test_lost_answers_cost_precision_only(name):
    attack, norm = ATTACKS[name]
    run = drive(attack, loses=0.1)
    assert np.all(np.isfinite(run[0].nearest.point))
    ratios = run[1][3][-1] / nearest(norm)
    assert ratios.min() > 1 - 1e-4 and ratios.max() < 1.1, ratios


@every_attack
def test_without_any_answer_nothing_is_found(name):
    state, (_, _, _, distances) = drive(ATTACKS[name][0], loses=1.0)
    assert np.all(np.isinf(distances)) and not np.any(jax.vmap(ATTACKS[name][0].best)(state)[1])
    assert np.all(np.isfinite(state.asked.points))


@every_attack
def test_an_attack_that_finds_no_start_ends(name):
    attack, _ = ATTACKS[name]
    states = _init(attack, INNER, UNTARGETED)
    states = states._replace(count=states.count + hard_label.MAX_STARTS - STEPS - 1)
    for is_over in (False, True):
        states, _ = _go_on(attack, states, INNER, 1.0)
        np.testing.assert_array_equal(jax.vmap(attack.is_done)(states), is_over)


def test_sign_opt_ends_at_the_nearest_point():
    attack = ATTACKS["sign_opt"][0]
    state, _ = drive(attack, rounds=5)
    assert np.all(jax.vmap(attack.is_done)(state))
    np.testing.assert_allclose(state.nearest.distance, nearest("l2"), rtol=1e-2)


def test_sign_opt_knows_the_bounds_of_the_box():
    """Black pixels can only get brighter, which moves half of each probe to one side."""
    black = jnp.zeros_like(INNER)
    helpful = jnp.maximum(WEIGHTS, 0)
    run = drive(ATTACKS["sign_opt"][0], x=black)
    ratios = at_budget(run, 2000) / nearest("l2", helpful)
    assert ratios.min() > 1 - 1e-4 and ratios.max() < 1.05
    assert np.all(run[0].own.depth > 0)


def test_hop_skip_jump_ends_after_its_iterations():
    attack = hop_skip_jump(num_directions=20, num_iterations=3)
    state, (rows, *_) = drive(attack)
    assert np.all(jax.vmap(attack.is_done)(state))
    for expected in (20, 28, 34 - hard_label.NUM_ROWS):  # 20 sqrt(t), in chunks
        assert np.all((rows == expected).sum(axis=0) >= 1)


def draw_directions(size, start=0):
    return hard_label.directions(hard_label.draw_signs(KEY, size, jnp.asarray(start)))


def test_directions_are_orthonormal_in_a_power_of_two():
    rows = np.concatenate([draw_directions(64, start) for start in (0, 32)])
    np.testing.assert_allclose(rows @ rows.T, np.eye(64), atol=64 * 1e-7)


def test_directions_of_other_dimensions_have_length_one_and_no_repetition():
    for size in (1, 5, 48):
        rows = draw_directions(size)
        np.testing.assert_allclose(jnp.sum(rows**2, axis=1), 1, rtol=1e-5)
    assert len(np.unique(rows, axis=0)) == hard_label.NUM_ROWS
    overlap = np.abs(np.asarray(rows @ rows.T) - np.eye(hard_label.NUM_ROWS))
    assert overlap.max() <= 16 / 48 + 1e-6  # what the 16 entries cut off can make up for


def test_the_normal_is_the_signed_mean_of_what_was_answered():
    moved = jax.random.normal(KEY, (hard_label.NUM_ROWS, 3))
    hit = jnp.arange(hard_label.NUM_ROWS) % 3 == 0
    answered = jnp.arange(hard_label.NUM_ROWS) < 20
    origin = jnp.full(3, 0.25)
    sides = hard_label.sides_of(moved + origin[None], origin, hit, answered)
    signs = np.where(hit, 1.0, -1.0)[:20]
    expected = (signs - signs.mean()) @ np.asarray(moved[:20], np.float64)
    found = np.asarray(hard_label.normal_of(sides), np.float64)
    found, expected = found / np.linalg.norm(found), expected / np.linalg.norm(expected)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_examples_are_of_the_class_that_is_needed():
    inputs, labels = jnp.arange(6.0)[:, None] / 6, jnp.asarray([0, 1, 2, 0, 1, 2])
    draw = hard_label.class_examples(inputs, labels)
    keys = jax.random.split(KEY, 64)

    def drawn(label, is_targeted):
        goal = Goal(jnp.asarray(label), jnp.asarray(is_targeted))
        points = jax.vmap(lambda key: draw(inputs[0], goal, key))(keys)
        return set(np.round(6 * np.asarray(points[:, 0])).astype(int).tolist())

    assert drawn(1, True) == {1, 4}
    assert drawn(1, False) == {0, 2, 3, 5}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sign_opt(num_directions=0), "num_directions must be an integer >= 1, got 0"),
        (lambda: sign_opt(num_starts=0), "num_starts must be an integer >= 1, got 0"),
        (lambda: sign_opt(alpha=0.0), "alpha must be a finite number > 0, got 0.0"),
        (lambda: sign_opt(beta=1e-4), r"beta must be in \(0.0001, 1\), got 0.0001"),
        (lambda: sign_opt(initial=1), "initial must be callable, got 1"),
        (lambda: hop_skip_jump("l1"), 'norm must be "l2" or "linf", got \'l1\''),
        (lambda: hop_skip_jump(num_directions=0), "num_directions must be an integer >= 1, got 0"),
        (lambda: hop_skip_jump(num_iterations=0), "num_iterations must be an integer >= 1, got 0"),
        (lambda: hop_skip_jump(initial=1), "initial must be callable, got 1"),
        (lambda: hard_label.class_examples(jnp.zeros((0, 3)), []), "the shape of inputs must be"),
        (lambda: hard_label.class_examples(jnp.zeros((2, 3)), [1]), "the shape of labels must be"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
