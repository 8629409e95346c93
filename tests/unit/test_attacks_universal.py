"""Universal perturbations: found, counted, within the budget, arguments checked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import blackbox
from zojax.attacks import AttackInterrupted
from zojax.attacks.kernel import Goal, margin
from zojax.attacks.universal import universal_adamm, universal_svrg

SIDE = 4
D = SIDE * SIDE
RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=D).astype(np.float32)  # of the boundary between classes 0 and 1
ROUGH = RNG.uniform(0.35, 0.65, size=(SIDE, SIDE, 1)).astype(np.float32)
MARGIN = 0.5
L2, LINF = MARGIN / np.linalg.norm(NORMAL), MARGIN / np.abs(NORMAL).sum()
UNTARGETED = Goal(jnp.asarray(0), jnp.asarray(False))
KEY = jax.random.key(3)


def linear(points, x=ROUGH):
    """Scores (..., 3) of a linear model with the given margin at x; class 2 is out of reach."""
    flat = points.reshape(*points.shape[: points.ndim - x.ndim], D)
    ones = (1,) * (flat.ndim - 1)
    offset = flat - jnp.reshape(x, (*ones, D))
    value = jnp.sum(offset * NORMAL.reshape(*ones, D), axis=-1) + MARGIN
    return jnp.stack([value, jnp.zeros_like(value), jnp.full_like(value, -100.0)], axis=-1)


class Victim:
    """Three linear classes for many images, counting rows; some rows may have no answer."""

    def __init__(self, lost=0.0):
        self.num_rows = 0
        self.lost = lost
        self.rng = np.random.default_rng(5)

    def __call__(self, rows):
        self.num_rows += len(rows)
        scores = np.array(linear(jnp.asarray(rows)))
        scores[self.rng.random(len(rows)) < self.lost] = np.nan
        return scores


IMAGES = np.clip(ROUGH + RNG.normal(size=(4, SIDE, SIDE, 1)) * 0.02, 0, 1).astype(np.float32)
LABELS = np.zeros(4, int)


def oracle_of(victim, **settings):
    return blackbox.score_oracle(victim, on_failure="record", num_classes=3, **settings)


@pytest.mark.parametrize(("targeted", "lost"), [(False, 0.0), (True, 0.1)])
def test_universal_perturbations_fool_every_image(targeted, lost):
    labels = LABELS + 1 if targeted else LABELS
    budget = 700
    for attack, cost, settings in (
        (universal_adamm, 11, {"c": 3.0}),
        (universal_svrg, 11, {"c": 3.0, "learning_rate": 0.02, "batch_size": 2, "period": 4}),
    ):
        victim = Victim(lost)
        oracle = oracle_of(victim, budget=budget)
        found = attack(oracle, IMAGES, labels, KEY, is_targeted=targeted, num_steps=60, **settings)
        assert oracle.counts.total.sum() == victim.num_rows
        assert oracle.counts.total.max() <= budget
        assert oracle.counts.check.tolist() == [1] * 4
        assert np.all(oracle.counts.loss % cost == 0)
        assert found.success.all()
        moved = np.clip(IMAGES + found.perturbation, 0, 1)
        assert np.all(linear(moved)[:, 0] < 0)
        margins = np.asarray(linear(IMAGES))[:, 0]
        assert found.l2 >= margins.max() / np.linalg.norm(NORMAL) * (1 - 1e-5)
        assert found.l2 < 2.5 * margins.max() / np.linalg.norm(NORMAL)
        assert np.nanmin(found.losses) < found.losses[0]


@pytest.mark.parametrize("num_steps", [1, 3])
def test_universal_steps_follow_the_gradient(num_steps):
    """Plain descent that succeeds with its last step: relative error (d - 1) / n.

    On a linear model the two estimates of a later step are equal: only that of the snapshot counts.
    """
    n, margins = 2000, np.asarray(linear(IMAGES))[:, 0]
    rate = 1.2 * float(margins.max()) / float(np.sum(NORMAL**2)) / num_steps
    found = universal_svrg(
        oracle_of(Victim()), IMAGES, LABELS, KEY,
        c=1.0, num_steps=num_steps, num_directions=n, learning_rate=rate, batch_size=1, probe=0.05,
    )  # fmt: skip
    delta = np.zeros(D)
    for _ in range(num_steps):
        delta = delta - rate * (NORMAL + 2 * delta)
    error = np.sum((found.perturbation.ravel() - delta) ** 2) / np.sum(delta**2)
    assert found.success.all()
    assert error < 3 * (D - 1) / n
    np.testing.assert_allclose(found.losses, margins.mean(), rtol=1e-5)


def test_universal_attacks_end_within_the_budget_and_without_answers():
    for attack in (universal_adamm, universal_svrg):
        victim = Victim()
        oracle = oracle_of(victim, budget=11)  # a step would leave nothing for the check
        found = attack(oracle, IMAGES, LABELS, KEY, num_steps=5)
        assert victim.num_rows == 4 and oracle.exhausted.size == 0
        assert not found.success.any() and not found.perturbation.any()
        victim = Victim(lost=1.0)
        found = attack(oracle_of(victim), IMAGES, LABELS, KEY, num_steps=50)
        assert victim.num_rows == 3 * 11 * 4 + 4
        assert not found.success.any() and not found.perturbation.any()


def test_interrupted_universal_attacks_hand_over_the_best_so_far():
    for attack in (universal_adamm, universal_svrg):
        steps = []

        def stop_at_three(step, num_reached):
            steps.append((step, num_reached))  # noqa: B023
            if step == 3:
                raise KeyboardInterrupt

        with pytest.raises(AttackInterrupted, match=r"of 4 images reached: KeyboardInterrupt") as c:
            attack(oracle_of(Victim()), IMAGES, LABELS, KEY, progress=stop_at_three)
        assert [step for step, _ in steps] == [1, 2, 3]
        assert c.value.results.success.sum() == steps[-1][1]
        assert c.value.results.losses.size >= 1


def test_universal_attacks_check_their_arguments():
    labels_only = blackbox.label_oracle(lambda x: np.zeros(len(x), int))
    good = {"oracle": oracle_of(Victim()), "x": IMAGES, "labels": LABELS, "key": KEY}
    for change, message in (
        ({"oracle": labels_only}, "oracle must be a score oracle"),
        ({"x": IMAGES[:0]}, "x must be"),
        ({"x": IMAGES + 1}, "x must be"),
        ({"labels": LABELS[:2]}, "labels must be"),
        ({"labels": LABELS + 3}, "labels must be below 3"),
        ({"labels": LABELS.astype(float)}, "labels must be"),
        ({"c": 0}, "c must be"),
        ({"probe": 0}, "probe must be"),
        ({"num_steps": 0}, "num_steps must be"),
    ):
        with pytest.raises(ValueError, match=message):
            universal_adamm(**{**good, **change})
        with pytest.raises(ValueError, match=message):
            universal_svrg(**{**good, **change})
    with pytest.raises(ValueError, match="period must be"):
        universal_svrg(**good, period=0)
    assert np.isnan(margin(jnp.full((2, 3), jnp.nan), UNTARGETED)).all()
