"""Activation noise on unmodified models: which parameters are sites, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax import activations
from zojax.trees import ravel

pytest.importorskip("flax")

from flax import linen, nnx  # noqa: E402

import zojax.flax  # noqa: E402

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _strict():
    """Flax's own layers are not strict about dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class ConvNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = jnp.tanh(linen.Conv(4, (3, 2), strides=(2, 1), kernel_dilation=(1, 2))(x))
        x = linen.LayerNorm()(x)
        return linen.Dense(2)(x.reshape(x.shape[0], -1))


class Transformer(linen.Module):
    @linen.compact
    def __call__(self, tokens):
        embed = linen.Embed(5, 4)
        x = embed(tokens)
        x = x + self.param("position", linen.initializers.normal(0.1), (1, 3, 4))
        x = x + linen.MultiHeadDotProductAttention(2)(x)
        return embed.attend(x).mean(axis=1)[:, :2]  # the embedding is used twice


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(jnp.tanh(self.hidden(x)))


def per_example(outputs, targets):
    return jnp.sum((outputs - targets) ** 2, axis=-1)


def conv_case():
    x = jax.random.normal(jax.random.key(1), (4, 5, 6, 1))
    module = ConvNet()
    params = module.init(jax.random.key(2), x)["params"]
    return params, zojax.flax.linen_loss(module, per_example), x


def transformer_case():
    x = jnp.asarray([[0, 1, 2], [3, 4, 0], [1, 1, 2], [2, 3, 4]])
    module = Transformer()
    params = module.init(jax.random.key(2), x)["params"]
    return params, zojax.flax.linen_loss(module, per_example), x


def nnx_case():
    params, loss_fn = zojax.flax.nnx_loss(NNXNet(nnx.Rngs(0)), per_example)
    return params, loss_fn, jax.random.normal(jax.random.key(1), (4, 3))


def jax_case():
    """The weight on the left, batched contraction over two axes, a merged batch axis."""
    params = {
        "left": jax.random.normal(KEY, (4, 3)),
        "two": jax.random.normal(jax.random.key(1), (3, 4, 2)),
        "rows": jax.random.normal(jax.random.key(2), (2, 2)),
        "scale": jnp.ones((1, 2)),
    }

    def loss_fn(params, batch):
        x, y = batch
        hidden = jnp.tanh(jnp.swapaxes(params["left"] @ x.T, 0, 1))
        pairs = x[:, :, None] * hidden[:, None, :]
        out = jnp.tensordot(pairs, params["two"], 2) * params["scale"]
        rows = jnp.stack([out, out**2], axis=1).reshape(-1, 2)  # two rows per example
        return per_example((rows @ params["rows"]).reshape(-1, 2, 2).sum(axis=1), y)

    return params, loss_fn, jax.random.normal(jax.random.key(3), (4, 3))


@pytest.mark.statistics
@pytest.mark.parametrize("sites", ["auto", "activations", "example_weights"])
@pytest.mark.parametrize("case", [conv_case, transformer_case, nnx_case, jax_case])
def test_many_draws_give_the_gradient(case, sites):
    params, loss_fn, x = case()
    batch = (x, jnp.ones((4, 2)))
    if sites == "example_weights" and case is transformer_case:
        sites = {"MultiHeadDotProductAttention_0": sites}  # no such noise on a looked-up table
    truth = jax.grad(lambda p: jnp.mean(loss_fn(p, batch)))(params)
    est = zojax.activation_noise(1024, 1e-3, sites=sites, chunk_size=256)
    one = zojax.value_and_grad(loss_fn, est)
    drawn = jnp.stack([ravel(one(params, jax.random.key(i), batch)[1]) for i in range(8)])
    mean, error = drawn.mean(axis=0), drawn.std(axis=0, ddof=1) / 8**0.5
    scores = np.asarray((mean - ravel(truth)) / (error + 1e-3))
    assert np.sqrt(np.mean(scores**2)) < 1.6  # Student's t of 7 degrees has 1.18
    assert jnp.linalg.norm(mean - ravel(truth)) < 0.5 * jnp.linalg.norm(ravel(truth))


def test_the_table_of_a_convolutional_network(capsys):
    params, loss_fn, x = conv_case()
    est = zojax.activation_noise(4, 0.01)
    found = activations.describe(loss_fn, params, (x, jnp.ones((4, 2))), est=est)
    modes = {row.path: (row.mode, row.dimensions) for row in found.rows}
    assert modes == {
        "Conv_0/bias": ("example_weights", 4),
        "Conv_0/kernel": ("example_weights", 24),
        "Dense_0/bias": ("activations", 2),
        "Dense_0/kernel": ("activations", 2),
        "LayerNorm_0/bias": ("example_weights", 4),
        "LayerNorm_0/scale": ("example_weights", 4),
    }
    assert found.num_sites == 6
    size = params["Dense_0"]["kernel"].shape[0]  # of the convolution's output, per example
    divisors = {row.path: row.divisor for row in found.rows}
    assert divisors["Conv_0/kernel"] == pytest.approx(6**0.5 * (size / 24) ** 0.25)
    assert divisors["Conv_0/bias"] == pytest.approx((size / 4) ** 0.25)
    assert divisors["Dense_0/kernel"] == 1.0
    printed = capsys.readouterr().out
    assert "shares the noise of the layer it is added to" in printed and "Conv_0/kernel" in printed
    for expected in ("wide", ""):  # "auto" says what it chose, once
        square = lambda p, x: (x @ p["wide"])[:, 0] ** 2  # noqa: E731
        zojax.estimate(est, square, {"wide": jnp.ones((3, 17))}, KEY, (), args=(jnp.ones((2, 3)),))
        assert expected in (printed := capsys.readouterr().out) and bool(printed) == bool(expected)


def test_what_is_no_site_falls_back_to_shared_noise():
    """A recurrent weight in a scan, a table of positions without a batch axis."""
    params = {"in": jnp.ones((3, 2)), "loop": jnp.eye(2), "position": jnp.ones((3, 2))}
    params["out"] = jnp.eye(2)

    def loss_fn(params, x):
        x = x @ params["in"]
        x = x + params["position"][jnp.arange(3)][None]
        step = lambda h, u: (jnp.tanh(h @ params["loop"] + u), None)  # noqa: E731
        h, _ = jax.lax.scan(step, jnp.zeros((4, 2)), jnp.swapaxes(x, 0, 1))
        return jnp.sum((h @ params["out"]) ** 2, axis=1)

    x = jax.random.normal(KEY, (4, 3, 3))
    est = zojax.activation_noise(2048, 0.01, chunk_size=256)
    rows = {row.path: row for row in activations.describe(loss_fn, params, x, est=est).rows}
    assert rows["in"].reward == rows["out"].reward == "example"
    assert rows["loop"].mode == rows["position"].mode == "weights"
    assert "scan" in rows["loop"].why and "axis 0" in rows["position"].why
    _, grad = zojax.value_and_grad(loss_fn, est)(params, KEY, x)
    truth = jax.grad(lambda p: jnp.mean(loss_fn(p, x)))(params)
    assert jnp.linalg.norm(ravel(grad) - ravel(truth)) < 0.2 * jnp.linalg.norm(ravel(truth))
