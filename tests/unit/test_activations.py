"""Activation noise: the estimate itself, its counts, executions and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from zojax import activations
from zojax.trees import ravel

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (6, 3))
Y = jax.random.normal(jax.random.key(2), (6, 2))
PARAMS = {
    "first": {"b": jnp.full(4, 0.1), "w": jax.random.normal(jax.random.key(3), (3, 4))},
    "second": {"b": jnp.zeros(2), "w": jax.random.normal(jax.random.key(4), (4, 2))},
}


def dense(p, x):
    return x @ p["w"] + p["b"][None]


def linear_loss(params, x, y):
    return jnp.sum(dense(params["second"], dense(params["first"], x)) * y, axis=1)


def curved_loss(params, x, y):
    hidden = jnp.tanh(dense(params["first"], x))
    return jnp.sum((dense(params["second"], hidden) - y) ** 2, axis=1)


def noise(num_draws=2, sigma=0.1, *, sites="activations", **options):
    return zojax.activation_noise(num_draws, sigma, sites=sites, **options)


def grads_of(est, loss_fn, params, num, args=(X, Y)):
    one = zojax.value_and_grad(loss_fn, est)
    keys = jax.random.split(KEY, num)
    return jax.jit(jax.vmap(lambda k: ravel(one(params, k, *args)[1])))(keys)


@pytest.mark.statistics
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"antithetic": False, "num_draws": 3},
        {"noise": "gaussian"},
        {"sites": "example_weights"},
        {"sites": "weights"},
        {"num_draws": {"first": 1, "second": 2}},
        {"sites": {"first/w": "weights", "second": "example_weights"}},
        {"sigma": {"first": 0.3, "second": 0.05}},
    ],
    ids=str,
)
def test_unbiased_on_a_linear_network(options):
    """One kind of noise at a time is linear in the loss; jointly, pairs cancel the cross terms."""
    est = noise(**options)
    truth = jax.grad(lambda p: jnp.mean(linear_loss(p, X, Y)))(PARAMS)
    drawn = grads_of(est, linear_loss, PARAMS, 2048)
    zojax.testing.assert_unbiased(drawn, ravel(truth), str(options), rounding=1e-3)


def test_converges_to_the_gradient_of_a_curved_loss():
    truth = jax.grad(lambda p: jnp.mean(curved_loss(p, X, Y)))(PARAMS)
    value, grad = zojax.value_and_grad(curved_loss, noise(4096, 1e-2, chunk_size=512))(
        PARAMS, KEY, X, Y
    )
    assert np.isclose(value, jnp.mean(curved_loss(PARAMS, X, Y)), rtol=1e-5)
    a, b = ravel(grad), ravel(truth)
    assert jnp.linalg.norm(a - b) < 0.1 * jnp.linalg.norm(b)


def test_no_derivative_crosses_a_layer():
    """A layer whose derivative raises, forward and backward, between two dense ones."""

    @jax.custom_jvp
    def opaque(x):
        return jnp.sign(x) * jnp.sqrt(jnp.abs(x))

    @opaque.defjvp
    def _(primals, tangents):
        raise RuntimeError("a derivative was taken")

    def loss_fn(params, x, y):
        hidden = opaque(dense(params["first"], x))
        return opaque(jnp.sum((dense(params["second"], hidden) - y) ** 2, axis=1))

    with pytest.raises(RuntimeError, match="derivative"):
        jax.grad(lambda p: jnp.sum(loss_fn(p, X, Y)))(PARAMS)
    for sites in ("activations", "example_weights", "weights"):
        _, grad = zojax.value_and_grad(loss_fn, noise(sites=sites))(PARAMS, KEY, X, Y)
        assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(grad))


@pytest.mark.parametrize("antithetic", [True, False])
def test_counts_and_calls(antithetic):
    calls = []

    def loss_fn(params, x, y):
        losses = curved_loss(params, x, y)
        jax.debug.callback(lambda z: calls.append(1), losses[0])
        return losses

    est = noise(3, antithetic=antithetic)
    found, _ = zojax.estimate(est, loss_fn, PARAMS, KEY, (), args=(X, Y))
    jax.effects_barrier()
    expected = 7 if antithetic else 4
    assert found.info.num_queries == est.num_queries(PARAMS) == expected == len(calls)
    assert found.info.num_nonfinite == 0
    assert found.info.signal_to_noise > 1e3 and 0 < found.info.loss_std < 1


@pytest.mark.parametrize("antithetic", [True, False])
def test_every_execution_gives_the_same_estimate(antithetic):
    est = noise(4, antithetic=antithetic, sites={"first/w": "weights", "second": "example_weights"})
    mesh = jax.make_mesh((2, 3), ("directions", "batch"), devices=jax.devices()[:6])
    executions = [zojax.vectorized(), zojax.chunked(3)]
    executions += [zojax.sharded(mesh, chunk_size=1, batch_axis="batch")]
    first, *others = (
        zojax.estimate(est, curved_loss, PARAMS, KEY, (), args=(X, Y), execution=execution)[0]
        for execution in executions
    )
    for result in others:
        np.testing.assert_allclose(ravel(result.grad), ravel(first.grad), rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(result.value, first.value, rtol=1e-5)
        np.testing.assert_allclose(result.info[:3], first.info[:3], rtol=1e-4)


def test_keys_purity_and_compilation():
    traced = []

    def loss_fn(params, x, y):
        traced.append(1)
        return curved_loss(params, x, y)

    before = jax.tree.map(np.array, PARAMS)
    run = zojax.value_and_grad(loss_fn, noise())
    first, again = run(PARAMS, KEY, X, Y)[1], run(PARAMS, KEY, X, Y)[1]
    num_traces = len(traced)
    other = run(PARAMS, jax.random.key(9), X + 1, Y)[1]
    assert len(traced) == num_traces
    assert jnp.array_equal(ravel(first), ravel(again))
    assert not jnp.allclose(ravel(first), ravel(other))
    jax.tree.map(np.testing.assert_array_equal, PARAMS, before)
    with pytest.raises(TypeError, match="typed key"):
        run(PARAMS, jnp.zeros(2, jnp.uint32), X, Y)


def test_bad_values_are_left_out_with_their_pair():
    def loss_fn(params, x, y):
        losses = linear_loss(params, x, y)
        return jnp.where(jnp.arange(6) == 2, jnp.nan, losses)

    est = noise(8)
    found, _ = zojax.estimate(est, loss_fn, PARAMS, KEY, (), args=(X, Y))
    assert found.info.num_nonfinite == 17  # 8 pairs and the unperturbed loss of one example
    keep = jnp.asarray([0, 1, 3, 4, 5])
    assert np.isclose(found.value, jnp.mean(linear_loss(PARAMS, X, Y)[keep]), rtol=1e-5)
    bias = jnp.mean(Y[keep], axis=0)  # sum over draws of r_b xi_b is not exact, but finite
    assert (
        jnp.all(jnp.isfinite(ravel(found.grad))) and found.grad["second"]["b"].shape == bias.shape
    )

    nothing = lambda params, x, y: linear_loss(params, x, y) * jnp.nan  # noqa: E731
    found, _ = zojax.estimate(est, nothing, PARAMS, KEY, (), args=(X, Y))
    assert jnp.isnan(found.value) and not jnp.any(ravel(found.grad))


def test_dtypes_and_leaves_that_are_not_perturbed():
    params = {**jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS), "step": jnp.asarray(3)}
    params["unused"] = jnp.ones(2)
    value, grad = zojax.value_and_grad(curved_loss, noise(64))(params, KEY, X, Y)
    assert jax.tree.map(lambda x: x.dtype, grad) == jax.tree.map(lambda x: x.dtype, params)
    assert not jnp.any(grad["unused"]) and grad["step"] == 0 and jnp.any(grad["first"]["w"] != 0)
    assert jnp.isfinite(value)


def test_memory_does_not_grow_with_the_number_of_draws():
    def temporaries(num_draws):
        run = zojax.value_and_grad(curved_loss, noise(num_draws, chunk_size=2))
        shapes = jax.eval_shape(lambda: (PARAMS, KEY, X, Y))
        return jax.jit(run).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    small, large = temporaries(8), temporaries(64)
    assert large - small <= 2 * 4 * 56 * 2 * 6  # the losses: draws, points, examples


def test_as_the_first_link_of_a_chain():
    tx = optax.chain(zojax.as_gradient_transformation(noise(4), KEY), optax.sgd(0.05))
    params, state = PARAMS, tx.init(PARAMS)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=lambda p: curved_loss(p, X, Y))
        return optax.apply_updates(params, updates), state

    start = float(jnp.mean(curved_loss(params, X, Y)))
    for _ in range(40):
        params, state = step(params, state)
    assert float(jnp.mean(curved_loss(params, X, Y))) < 0.5 * start
    assert state[0].num_queries == 40 * 9


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_draws": 0}, "num_draws must be an integer >= 1"),
        ({"num_draws": 1, "antithetic": False}, "num_draws must be an integer >= 2"),
        ({"num_draws": {"first": 0}}, r"num_draws\['first'\] must be"),
        ({"num_draws": {}}, "at least one parameter"),
        ({"sigma": -1.0}, "sigma must be"),
        ({"sites": "flipout"}, "sites must be 'auto' or one of"),
        ({"noise": "laplace"}, "noise must be"),
        ({"chunk_size": 0}, "chunk_size must be"),
    ],
)
def test_configuration_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        zojax.activation_noise(**{"num_draws": 4, "sigma": 0.1, **arguments})


@pytest.mark.parametrize(
    "loss_fn, options, message",
    [
        (lambda p, x, y: jnp.mean(curved_loss(p, x, y)), {}, "leave out the mean over examples"),
        (lambda p, x, y: (curved_loss(p, x, y), 1), {}, "one loss per example and nothing else"),
        (lambda p, x, y: curved_loss(p, x.T @ x, y[:3])[:2], {}, "has not the 2 examples"),
        (
            lambda p, x, y: jnp.sin(p["first"]["w"])[0, 0] * x[:, 0],
            {},
            "meets sin, which is no site",
        ),
        (curved_loss, {"sites": {"third": "weights"}}, "no parameter is called 'third'"),
        (curved_loss, {"sigma": {"first": 0.1}}, "sigma must name every parameter"),
        (curved_loss, {"num_draws": {"first": 2}}, "num_draws must name every parameter"),
    ],
)
def test_errors_in_use(loss_fn, options, message):
    with pytest.raises(ValueError, match=message):
        zojax.value_and_grad(loss_fn, noise(**options))(PARAMS, KEY, X, Y)


def test_no_sites_and_no_points():
    with pytest.raises(ValueError, match="knows"):
        est = noise(sites="auto")
        zojax.value_and_grad(lambda p, x: jnp.sin(p)[0] * x[:, 0], est)(jnp.ones(2), KEY, X)
    est = noise()
    with pytest.raises(ValueError, match="no ask and tell"):
        zojax.ask(est, PARAMS, KEY, ())
    with pytest.raises(ValueError, match="use zojax.activations.diagnose"):
        zojax.diagnose(est, curved_loss, PARAMS, KEY, args=(X, Y))
    with pytest.raises(ValueError, match="made by zojax.activation_noise"):
        activations.describe(curved_loss, PARAMS, X, Y, est=zojax.spsa(num_directions=1, sigma=0.1))
