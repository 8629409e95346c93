"""The law of activation noise against what is measured, and the averaging test."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax import activations

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (16, 12))
Y = jnp.arange(16) % 4


def make_params():
    keys = jax.random.split(KEY, 2)
    return {
        "first": {"b": jnp.zeros(24), "w": jax.random.normal(keys[0], (12, 24)) / 12**0.5},
        "second": {"b": jnp.zeros(4), "w": jax.random.normal(keys[1], (24, 4)) / 24**0.5},
    }


def loss_fn(params, x, y):
    hidden = jax.nn.relu(x @ params["first"]["w"] + params["first"]["b"][None])
    logits = hidden @ params["second"]["w"] + params["second"]["b"][None]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)[:, 0]


def trained(steps):
    step = jax.jit(
        lambda p: jax.tree.map(
            lambda w, g: w - 0.5 * g, p, jax.grad(lambda q: jnp.mean(loss_fn(q, X, Y)))(p)
        )
    )
    params = make_params()
    for _ in range(steps):
        params = step(params)
    return params


@pytest.mark.statistics
@pytest.mark.parametrize("steps", [0, 200])
@pytest.mark.parametrize(
    "sites", ["activations", "example_weights", {"first/w": "weights", "second": "activations"}]
)
def test_predicted_cosine_is_measured(steps, sites):
    """Within 15 %, the whole gradient and each parameter, at the start and after training."""
    est = zojax.activation_noise(8, 1e-3, sites=sites, chunk_size=8)
    params = trained(steps)
    found = activations.diagnose(est, loss_fn, params, KEY, args=(X, Y), num_estimates=256)
    assert np.isclose(found.measured.total, found.expected.total, rtol=0.15)
    for path in ("first/w", "second/w"):
        measured, expected = found.measured.parameters[path], found.expected.parameters[path]
        assert np.isclose(measured, expected, rtol=0.15, atol=0.03), path
    assert found.total_bias < 0.1 * found.total_noise


def test_predicted_from_forward_passes_alone():
    est = zojax.activation_noise(8, 1e-3, sites="activations", chunk_size=64)
    params = trained(20)
    grad = jax.grad(lambda p: jnp.mean(loss_fn(p, X, Y)))(params)
    known = activations.expected_cosine(est, loss_fn, params, KEY, args=(X, Y), grad=grad)
    alone = activations.expected_cosine(est, loss_fn, params, KEY, args=(X, Y), num_probes=512)
    assert np.isclose(alone.total, known.total, rtol=0.1)
    with pytest.raises(ValueError, match="antithetic"):
        centred = zojax.activation_noise(8, 1e-3, antithetic=False)
        activations.expected_cosine(centred, loss_fn, params, KEY, args=(X, Y))


def test_averaging_tells_bias_from_noise(capsys):
    """A sigma far beyond the kinks of the loss biases it; more estimates do not help."""
    est = zojax.activation_noise(64, 3.0, sites="activations", chunk_size=64)
    found = activations.diagnose(est, loss_fn, make_params(), KEY, args=(X, Y), num_estimates=32)
    assert found.total_bias > 0.2
    assert "bias / |g|" in capsys.readouterr().out
