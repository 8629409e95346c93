"""Explanations with known functions: an autoencoder, a generator, attributes; any estimator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax import blackbox, explain

KEY = jax.random.key(0)
WEIGHTS = np.asarray([-2.0, -2.0, 1.0, -1.0], np.float32)
X = np.asarray([[0.1, 0.1, 0.6, 0.2]], np.float32)
SETTINGS = {"kappa": 0.0, "num_steps": 30, "num_searches": 4}
BASIS = np.asarray([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]], np.float32)  # of a generator


def model(batch):
    value = batch @ WEIGHTS + 0.6
    return np.stack([value, np.zeros_like(value)], axis=1)


def run(explainer):
    return explain.run(explainer, blackbox.score_oracle(model), X, KEY)


def test_an_autoencoder_keeps_explanations_among_the_data():
    def autoencoder(x):  # data have no second entry to speak of
        return x * jnp.asarray([1.0, 0, 1, 1])

    free = run(explain.pertinent_negative(**SETTINGS))
    bound = run(explain.pertinent_negative(gamma=10.0, autoencoder=autoencoder, **SETTINGS))
    assert free.success[0]
    assert bound.success[0]
    assert bound.change[0, 1] < 0.1 * free.change[0, 1]
    assert bound.change[0, 0] > free.change[0, 0]


def generate(z):
    return jnp.sum(z[:, None] * BASIS, axis=0)


def encode(x):
    return jnp.stack([x[0], x[1], (x[2] + x[3]) / 2])


@pytest.mark.parametrize("monotone", [False, True])
def test_latent_negatives_lose_no_attribute(monotone):
    def attributes(x):
        return x[:1] * 2  # how much there is of the first entry

    explainer = explain.latent_negative(
        lambda z: generate(z * jnp.asarray([-1.0, 1, 1])),
        lambda x: encode(x) * jnp.asarray([-1.0, 1, 1]),
        attributes=attributes if monotone else None,
        beta=0.0,
        **SETTINGS,
    )
    found = run(explainer)
    assert found.status.tolist() == ["success"]
    assert found.class_after.tolist() == [1]
    assert found.check_queries[0] == 3 + 30 * 4
    assert found.loss_queries[0] == 6 * 30 * 4
    np.testing.assert_allclose(found.shown[0, 2], found.shown[0, 3], rtol=1e-6)
    assert found.shown[0, 0] >= 0.1 - 0.02 * monotone


def test_an_input_the_generator_cannot_draw_is_not_searched():
    explainer = explain.latent_negative(lambda z: jnp.ones(4) + 0 * z[0], encode, **SETTINGS)
    found = run(explainer)
    assert (found.status.tolist(), found.queries.tolist()) == (["already"], [2])


@pytest.mark.parametrize(
    "est",
    [
        zojax.coordinate_difference(sigma=0.01),
        zojax.finite_difference(num_directions=8, sigma=0.1, shaping=zojax.centered_rank),
        zojax.finite_difference(num_directions=16, sigma=0.1, stencil=zojax.one_point),
    ],
    ids=lambda est: est.name,
)
def test_any_estimator_finds_one(est):
    found = run(explain.pertinent_negative(est, num_steps=60, num_searches=3, kappa=0.0))
    assert found.success[0]
    assert found.l1[0] < 0.5  # the least is about .3
