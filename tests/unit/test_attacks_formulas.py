"""Formulas of attacks by hand, one at a time, where an attack that is off may still succeed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import attacks, blackbox
from zojax.attacks import zoo
from zojax.attacks.gradient import decaying
from zojax.attacks.kernel import Goal
from zojax.attacks.square import _bump

KEY = jax.random.key(3)
RNG = np.random.default_rng(1)
UNTARGETED = Goal(jnp.asarray(0), jnp.asarray(False))


def iterates(attack, slope, **settings):
    """The perturbations that a universal attack on a linear model asks about first."""
    seen = []

    def model(rows):
        seen.append(rows)
        value = rows @ slope + 5
        return np.stack([value, np.zeros_like(value)], axis=1)

    x = np.full((3, slope.size), 0.5, np.float32)
    attack(blackbox.score_oracle(model), x, [0] * 3, KEY, num_directions=4, **settings)
    return [rows[0] - x[0] for rows in seen[:-1]]


def test_svrg_corrects_by_the_snapshot():
    """Both estimates on a linear model are equal, which leaves that of the snapshot."""
    slope = RNG.normal(size=12).astype(np.float32)
    settings = {"num_steps": 4, "c": 1.0, "probe": 1e-2, "learning_rate": 0.01}
    # A snapshot, then twice an iterate and its snapshot, of two of the three images.
    first, second, snapshot, third, _, fourth, _ = iterates(
        attacks.universal_svrg, slope, batch_size=2, **settings
    )
    assert not first.any() and not snapshot.any()
    full = -second / settings["learning_rate"]
    for before, after in ((second, third), (third, fourth)):
        expected = before - settings["learning_rate"] * (full + 2 * before)
        np.testing.assert_allclose(after, expected, atol=1e-2 * np.abs(second).max())


def test_adamm_steps_fall_with_the_root_of_time():
    np.testing.assert_allclose(decaying(2.0)(jnp.arange(4)), -2 / np.sqrt([1, 2, 3, 4]), rtol=1e-6)


def test_zoo_adam_is_adam_by_coordinate():
    gradients = np.asarray([[1.0, 2.0], [-3.0, 5.0], [0.5, -1.0]], np.float32)
    asked = np.asarray([[True, True], [True, False], [True, True]])
    solver = zoo._adam(0.1)
    state, mean, square_mean, count = solver.init(2), np.zeros(2), np.zeros(2), np.zeros(2)
    for gradient, mask in zip(gradients, asked, strict=True):
        step, state = solver.update(state, jnp.asarray(gradient), None, jnp.asarray(mask))
        mean = np.where(mask, 0.9 * mean + 0.1 * gradient, mean)
        square_mean = np.where(mask, 0.999 * square_mean + 0.001 * gradient**2, square_mean)
        count = count + mask
        corrected = mean / (1 - 0.9**count), square_mean / (1 - 0.999**count)
        expected = np.where(mask, -0.1 * corrected[0] / np.sqrt(corrected[1]), 0)
        np.testing.assert_allclose(step, expected, rtol=1e-4)


@pytest.mark.parametrize(("bend", "divisor"), [(4.0, 4.0), (-4.0, 1.0), (0.01, 0.1)])
def test_zoo_newton_divides_by_a_curvature_that_is_positive_and_not_small(bend, divisor):
    """The margin bends by `bend` less the 2 of the distortion, so that the sum bends by `bend`."""
    attack = attacks.zoo_newton(num_coordinates=2, sigma=0.1, initial_c=1.0, learning_rate=0.05)
    slopes = jnp.asarray([0.3, -0.2])

    def scores(points):
        offset = points - 0.5
        value = 5 + offset @ slopes + 0.5 * (bend - 2) * jnp.sum(offset**2, axis=-1)
        return jnp.stack([value, jnp.zeros_like(value)], axis=-1)

    @jax.jit
    def step(x):
        state = attack.init(x, UNTARGETED, KEY)
        return attack.tell(state, scores(attack.ask(state).points)).z

    found = step(jnp.full((2,), 0.5))
    np.testing.assert_allclose(found, -0.05 * slopes / divisor, rtol=5e-3)


def test_zoo_with_confidence_takes_nothing_less():
    def model(rows):
        value = 2 * (rows.sum(axis=1) - 1)
        return np.stack([value, -value], axis=1)

    x = np.full((1, 2), 0.55, np.float32)  # margins are 4 (sum - 1)
    for kappa, shortest in ((0.0, 0.1 / np.sqrt(2)), (1.0, 0.35 / np.sqrt(2))):
        attack = attacks.zoo_adam(num_steps=150, num_searches=1, initial_c=10.0, kappa=kappa)
        found = attacks.run(attack, blackbox.score_oracle(model), x, [0], KEY)
        assert found.success.all()
        assert shortest * 0.999 < found.l2[0] < shortest * 1.2


def test_the_bump_of_square_is_the_published_pyramid():
    """Around the middle of 5 x 5: sums of 1/k^2, k = 1 ... 3, from the ring outwards."""
    rows, columns = jnp.arange(5)[:, None, None], jnp.arange(5)[None, :, None]
    bump = _bump(rows, columns, jnp.asarray(5), jnp.asarray(5))[..., 0]
    ring = np.maximum(*np.abs(np.mgrid[-2:3, -2:3]))
    rings = np.asarray([1 + 1 / 4 + 1 / 9, 1 / 4 + 1 / 9, 1 / 9])
    np.testing.assert_allclose(bump, rings[ring], rtol=1e-6)
