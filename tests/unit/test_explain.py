"""Contrastive explanations: closed forms, feasibility, exact counts, and every way to end early."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import blackbox, explain
from zojax.attacks import AttackInterrupted, Goal

KEY = jax.random.key(0)
WEIGHTS = np.asarray([-3.0, 2.0, -1.0, -2.0, 0.5, -0.2, 1.0, -1.5], np.float32)
BIAS = 0.8
KAPPA = 0.5
SETTINGS = {"kappa": KAPPA, "num_steps": 40, "num_searches": 8}
NEGATIVE = explain.pertinent_negative(**SETTINGS)
POSITIVE = explain.pertinent_positive(**SETTINGS)
STEP = 64 + 1  # queries
SHORT = explain.pertinent_negative(num_steps=5, num_searches=1)


class Victim:
    """Class 0 where WEIGHTS x + BIAS > 0; notes the rows it receives."""

    def __init__(self, sign=1.0, fails=lambda rows: False):
        self.sign = sign
        self.fails = fails
        self.rows = []

    def __call__(self, batch):
        self.rows.extend(batch.copy())
        if self.fails(len(self.rows)):
            raise RuntimeError("no answer")
        value = self.sign * (batch @ WEIGHTS + BIAS)
        return np.stack([value, np.zeros_like(value)], axis=1)


def inputs(count, seed=0):
    """Inputs of class 0, some entries at the ends of their range."""
    x = np.random.default_rng(seed).uniform(0, 1, (40 * count, 8)).astype(np.float32).round(1)
    return x[x @ WEIGHTS + BIAS > KAPPA][:count]


def run(explainer, x, victim=None, labels=None, **limits):
    victim = victim or Victim()
    oracle = blackbox.score_oracle(victim, **limits)
    found = explain.run(explainer, oracle, x, KEY, labels=labels)
    assert len(victim.rows) == found.queries.sum() == oracle.counts.total.sum()
    return found


def least(slope, margin, high, beta=1.0):
    """The least beta |d|_1 + |d|^2 with margin + slope d <= -KAPPA, by bisection of its dual."""
    low, up = 0.0, 1e4
    for _ in range(200):
        multiplier = 0.5 * (low + up)
        d = np.clip(-(multiplier * slope + beta) / 2, 0, high)
        low, up = (multiplier, up) if margin + slope @ d > -KAPPA else (low, multiplier)
    return d, beta * d.sum() + d @ d


@pytest.mark.parametrize("keeps", [False, True])
def test_linear_model_gives_the_exact_proximal_solution(keeps):
    # With a hinge that stays active the objective is a quadratic with an l1 term: separable.
    x = inputs(1)[0]
    c, beta, num_steps = 0.9, 0.3, 120
    build = explain.pertinent_positive if keeps else explain.pertinent_negative
    attack = build(c=c, beta=beta, kappa=50.0, num_steps=num_steps, num_searches=1).attack
    weights = jnp.asarray(WEIGHTS)

    @jax.jit
    def solve(x):
        def step(state, _):
            value = jnp.sum(attack.ask(state).points * weights[None], axis=1) + BIAS
            return attack.tell(state, jnp.stack([value, jnp.zeros_like(value)], axis=1)), None

        goal = Goal(jnp.asarray(0), jnp.asarray(keeps))
        return jax.lax.scan(step, attack.init(x, goal, KEY), None, num_steps - 1)[0].z

    slope, high = (-WEIGHTS, x) if keeps else (WEIGHTS, 1 - x)
    exact = np.clip(-(c * slope + beta) / 2, 0, high)
    assert 0 < np.count_nonzero(exact) < 8
    # Curvature 2, rates .05 sqrt(1 - k / K), so even without momentum the error shrinks by exp(-8).
    np.testing.assert_allclose(solve(x), exact, atol=np.exp(-8.0) + 1e-4)


def test_negatives_are_the_least_that_changes_the_class():
    x = inputs(3)
    found = run(NEGATIVE, x)
    np.testing.assert_array_equal(found.status, "success")
    np.testing.assert_array_equal(found.class_before, 0)
    np.testing.assert_array_equal(found.class_after, 1)
    np.testing.assert_array_equal(found.shown, np.clip(x + found.change, 0, 1))
    for one, change in zip(x, found.change, strict=True):
        best, cost = least(WEIGHTS, one @ WEIGHTS + BIAS, 1 - one)
        assert cost <= change.sum() + change @ change + 1e-4
        np.testing.assert_allclose(change.sum() + change @ change, cost, rtol=0.03)
        np.testing.assert_allclose(change, best, atol=0.1)
    np.testing.assert_allclose(found.l1, found.change.sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found.l2, np.linalg.norm(found.change, axis=1), rtol=1e-6)


def test_positives_are_the_least_that_keeps_the_class():
    x = np.clip(inputs(3) + 0.1, 0, 1)
    victim = Victim(sign=-1.0)  # a blank input has the other class
    x = x[-(x @ WEIGHTS + BIAS) < -0.1]
    x = 1 - x  # entries whose weights are negative are now large
    x = x[-(x @ WEIGHTS + BIAS) > KAPPA]
    assert len(x)
    found = run(POSITIVE, x, victim)
    np.testing.assert_array_equal(found.status, "success")
    np.testing.assert_array_equal(found.class_after, found.class_before)
    np.testing.assert_array_equal(found.shown, found.change)
    for one, change in zip(x, found.change, strict=True):
        _, cost = least(WEIGHTS, BIAS, one)
        np.testing.assert_allclose(change.sum() + change @ change, cost, rtol=0.03)


@pytest.mark.parametrize("keeps", [False, True])
def test_the_model_is_shown_nothing_that_is_not_allowed(keeps):
    x = np.asarray([[0.9, 0.0, 0.8, 1.0, 0.2, 0.1, 0.0, 0.7]], np.float32)
    victim = Victim(sign=-1.0 if keeps else 1.0)
    if not keeps:
        x = 1 - x
    run(explain.pertinent_positive(num_steps=5) if keeps else SHORT, x, victim)
    rows = np.stack(victim.rows)
    low, high = (np.zeros_like(x), x) if keeps else (x, np.ones_like(x))
    assert len(rows) > 5 * STEP
    assert np.all((rows >= low) & (rows <= high))


def test_no_sample_notices_the_others():
    x = inputs(3, seed=1)
    together = run(SHORT, x)
    alone = run(SHORT, x[:1])
    for all_of_them, one in zip(together, alone, strict=True):
        np.testing.assert_array_equal(all_of_them[:1], one)


def test_budgets_leave_a_query_for_the_end():
    x = inputs(2)
    for budget, steps in ((1, 0), (STEP + 1, 0), (STEP + 2, 1), (40 * STEP, 39)):
        found = run(NEGATIVE, x, budget=budget)
        assert found.queries.max() <= budget
        np.testing.assert_array_equal(found.loss_queries, 64 * steps)
        expected = "success" if steps == 39 else "budget"
        np.testing.assert_array_equal(found.status, expected)
        np.testing.assert_array_equal(found.class_after, 1 if steps == 39 else -1)
    assert np.isnan(run(NEGATIVE, x, budget=1).l1).all()


def test_inputs_that_need_no_search():
    x = inputs(1)
    found = run(NEGATIVE, x, labels=[1])
    assert (found.status[0], found.queries[0], found.success[0]) == ("already", 1, False)
    black = np.zeros((1, 8), np.float32)
    assert run(POSITIVE, black).status.tolist() == ["empty"]
    found = run(NEGATIVE, black)
    assert found.status.tolist() == ["success"]
    blank_suffices = run(POSITIVE, x)
    assert blank_suffices.status.tolist() == ["already"]
    assert blank_suffices.queries.tolist() == [2]
    assert run(NEGATIVE, np.zeros((0, 8))).change.shape == (0, 8)


def test_recorded_failures_do_not_end_an_explanation():
    settings = {"num_classes": 2, "on_failure": "record"}
    found = run(NEGATIVE, inputs(1), Victim(fails=lambda rows: rows % 3 == 0), **settings)
    assert found.success.all()
    found = run(NEGATIVE, inputs(1), Victim(fails=lambda rows: rows > 1), **settings)
    assert found.status.tolist() == ["oracle_failed"]
    found = run(NEGATIVE, inputs(1), Victim(fails=lambda rows: True), **settings)
    assert (found.status.tolist(), found.queries.tolist()) == (["oracle_failed"], [3])


def test_an_interruption_hands_over_what_was_found():
    victim = Victim(fails=lambda rows: rows > 40 * STEP)
    with pytest.raises(AttackInterrupted, match="0 of 1 samples without a result") as caught:
        run(NEGATIVE, inputs(1), victim)
    found = caught.value.results
    assert (found.status.tolist(), found.class_after.tolist()) == (["success"], [-1])
    with pytest.raises(AttackInterrupted) as caught:
        run(NEGATIVE, inputs(1), Victim(fails=lambda rows: True))
    assert caught.value.results.status.tolist() == ["interrupted"]


def test_arguments_that_do_not_fit():
    x = inputs(1)
    by_label = blackbox.label_oracle(lambda batch: np.zeros(len(batch), int))
    with pytest.raises(ValueError, match="labels only"):
        explain.run(NEGATIVE, by_label, x, KEY)
    for bad, match in ((x + 1, "within"), (x[0], "a batch")):
        with pytest.raises(ValueError, match=match):
            run(NEGATIVE, bad)
    with pytest.raises(ValueError, match="labels must be"):
        run(NEGATIVE, x, labels=[0, 1])
    with pytest.raises(ValueError, match="explainer must be"):
        run(NEGATIVE.attack, x)
    for setting in ({"c": 0.0}, {"kappa": -1.0}, {"beta": -1.0}, {"gamma": -1.0}, {"num_steps": 0}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            explain.pertinent_negative(**setting)
    with pytest.raises(ValueError, match="est must be"):
        explain.pertinent_positive("gradient")
