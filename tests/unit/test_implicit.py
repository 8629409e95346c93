"""Every model and every rule against materialised weights, and what is reported."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import zojax
from zojax import implicit
from zojax.implicit import LowRankArray

linen = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _flax_is_not_strict(_strict):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def reports(caplog):
    """The arguments (shape, primitive) of every report so far."""
    implicit._report.cache_clear()
    caplog.set_level(logging.WARNING, logger="zojax")
    return lambda: [record.args for record in caplog.records if record.name == "zojax"]


def normal(*shape, seed=1):
    return jax.random.normal(jax.random.fold_in(KEY, seed), shape)


def weight(*shape, rank=2, dtype="float32"):
    factors = normal(*shape), normal(*shape[:-1], rank, seed=2), normal(shape[-1], rank, seed=3)
    return LowRankArray(*(x.astype(dtype) for x in factors), jnp.float32(0.3))


def assert_same(actual, expected, rtol=1e-5):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * (np.abs(b).max() + 1e-3))


def check(function, *weights, rtol=1e-5):
    """The same at implicit and at materialised weights, alone and under `vmap` over the noise."""
    signs = jnp.array([1.0, -0.5, 2.0])

    def moved(sign):  # as in a population: factors and scale differ, the base is shared
        return [
            LowRankArray(w.base, sign.astype(w.left.dtype) * w.left, w.right, sign * w.scale)
            for w in weights
        ]

    @jax.jit
    def actual_and_expected():
        def both(ws):
            actual = implicit.call(lambda ws: function(*ws), ws)
            return actual, function(*implicit.materialise(ws))

        return both(weights), jax.vmap(lambda sign: both(moved(sign)))(signs)

    for actual, expected in actual_and_expected():
        assert_same(actual, expected, rtol)


# Models.


class MLP(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(linen.relu(linen.Dense(7)(x)))


class CNN(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(4, (3, 3), strides=2, padding="SAME")(x))
        x = linen.max_pool(x, (2, 2), strides=(1, 1))
        x = linen.gelu(linen.Conv(5, (2, 3), padding="VALID")(x))
        return linen.Dense(3)(linen.avg_pool(x, (2, 1)).reshape(x.shape[0], -1))


class Transformer(linen.Module):
    @linen.compact
    def __call__(self, tokens):
        embed = linen.Embed(11, 8)
        x = embed(tokens) + self.param("position", linen.initializers.normal(), (6, 8))
        mask = linen.make_causal_mask(tokens)
        x = x + linen.MultiHeadDotProductAttention(2)(linen.LayerNorm()(x), mask=mask)
        x = x + linen.Dense(8)(linen.gelu(linen.Dense(16)(linen.LayerNorm()(x))))
        return embed.attend(linen.LayerNorm()(x))


class GRU(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(linen.RNN(linen.GRUCell(5))(x)[:, -1])


class Block(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        return x + linen.Dense(6)(jnp.tanh(linen.Dense(4)(x))), None


class Stack(linen.Module):
    remat: bool = False

    @linen.compact
    def __call__(self, x):
        block = linen.remat(Block) if self.remat else Block
        stack = linen.scan(
            block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return linen.Dense(1)(stack()(x, None)[0])


def linen_case(module, inputs):
    params = module.init(KEY, inputs)
    return params, lambda p: jnp.mean(jnp.square(module.apply(p, inputs) - 0.3))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3, 3), strides=2, rngs=rngs)
        self.hidden = nnx.Linear(12, 6, rngs=rngs)
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.out = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x)).reshape(x.shape[0], -1)
        return self.out(self.norm(nnx.silu(self.hidden(x))))


def nnx_case():
    definition, params = nnx.split(NNXNet(nnx.Rngs(0)), nnx.Param)
    inputs = normal(5, 4, 4, 2)
    return params, lambda p: jnp.mean(jnp.square(nnx.merge(definition, p)(inputs) - 0.3))


MODELS = {
    "mlp": lambda: linen_case(MLP(), normal(5, 4)),
    "cnn": lambda: linen_case(CNN(), normal(2, 8, 8, 2)),
    "transformer": lambda: linen_case(Transformer(), jnp.arange(12).reshape(2, 6) % 11),
    "gru": lambda: linen_case(GRU(), normal(3, 4, 2)),
    "scan": lambda: linen_case(Stack(), normal(5, 6)),
    "scan of remat": lambda: linen_case(Stack(remat=True), normal(5, 6)),
    "nnx": nnx_case,
}


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_models_give_the_losses_of_materialised_weights(name, rank, reports):
    params, loss = MODELS[name]()
    est = zojax.finite_difference(
        directions=zojax.low_rank(rank), num_directions=3, sigma=0.1, mask=None
    )

    @jax.jit
    def losses(params):
        noises = est.draw(KEY, params, (), 0, 3, 3)

        def both(noise):
            point = est.point(params, (), noise, 1.0)
            return implicit.call(loss, point), loss(implicit.materialise(point))

        return jax.vmap(both)(noises), both(jax.tree.map(lambda x: x[0], noises))

    for actual, expected in losses(params):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)

    points = zojax.ask(est, params, KEY, ())
    told, _ = zojax.tell(est, params, KEY, (), jax.jit(jax.vmap(loss))(points))
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(told.grad))
    for execution in (zojax.vectorized(), zojax.chunked(1)):
        result, _ = zojax.estimate(est, loss, params, KEY, (), execution=execution)
        np.testing.assert_allclose(result.value, told.value, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(result.grad), jax.tree.leaves(told.grad), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4 * largest)
    assert reports() == []


# Rules: each gives the same numbers and materialises nothing.


def contract(lhs, rhs, lhs_batch=(), rhs_batch=()):
    return lambda x, w: lax.dot_general(x, w, ((lhs, rhs), (lhs_batch, rhs_batch)))


def flipped(function):
    return lambda x, w: function(w, x)


DOTS = {
    "matrix": (contract((1,), (0,)), (3, 4), (4, 5)),
    "matrix on the left": (flipped(contract((0,), (1,))), (3, 4), (4, 5)),
    "attend": (contract((2,), (1,)), (2, 3, 5), (4, 5)),
    "attend on the left": (flipped(contract((1,), (2,))), (2, 3, 5), (4, 5)),
    "heads": (contract((2,), (0,)), (2, 3, 4), (4, 2, 5)),
    "heads on the left": (flipped(contract((0,), (2,))), (2, 3, 4), (4, 2, 5)),
    "two axes": (contract((1, 2), (0, 1)), (3, 2, 4), (2, 4, 5)),
    "two axes, crossed": (contract((2, 1), (0, 1)), (3, 4, 2), (2, 4, 5)),
    "two axes with the last": (contract((1, 2), (2, 1)), (3, 5, 4), (2, 4, 5)),
    "all axes": (contract((0, 1), (0, 1)), (4, 5), (4, 5)),
    "vector": (contract((0,), (0,)), (4,), (4, 5)),
    "batch axis": (contract((2,), (1,), (1,), (0,)), (3, 2, 4), (2, 4, 5)),
    "batch axis on the left": (flipped(contract((1,), (2,), (0,), (1,))), (3, 2, 4), (2, 4, 5)),
    "batch axis, last": (contract((0,), (2,), (2,), (0,)), (5, 3, 2), (2, 4, 5)),
    "outer product": (contract((), ()), (3,), (4, 5)),
    "einsum": (lambda x, w: jnp.einsum("bthd,hde->bte", x, w), (2, 3, 2, 4), (2, 4, 5)),
}


@pytest.mark.parametrize("name", DOTS)
def test_dot_general(name, reports):
    function, *shapes = DOTS[name]
    check(lambda w: function(normal(*shapes[0]), w), weight(*shapes[1]))
    # The other operand differs from member to member, as behind a first perturbed layer.
    first = weight(3, shapes[0][-1])
    scale = lambda v: jnp.ones(3) @ v  # noqa: E731
    check(lambda v, w: function(normal(*shapes[0]) * scale(v), w), first, weight(*shapes[1]))
    assert reports() == []


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_convolution(strides, padding, rank, reports):
    x, kernel = normal(2, 7, 6, 3), weight(3, 2, 3, 4, rank=rank)
    for dilation in (1, 2):
        check(
            lambda w: lax.conv_general_dilated(  # noqa: B023
                x,
                w,
                (strides, strides),
                padding,
                rhs_dilation=(dilation, dilation),  # noqa: B023
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            ),
            kernel,
        )
    check(
        lambda w: lax.conv_general_dilated(
            jnp.moveaxis(x, -1, 1), w, (1, 1), padding, dimension_numbers=("NCHW", "HWIO", "NCHW")
        ),
        kernel,
    )
    assert reports() == []


@pytest.mark.parametrize("indices", [3, [1], [0, 6, 6], [[1, 2, 3], [4, 5, 6]], [[-1], [9]]])
def test_embedding_lookup(indices, reports):
    indices = jnp.asarray(indices)
    for mode in ("clip", "fill", None):
        check(lambda w: jnp.nan_to_num(jnp.take(w, indices, axis=0, mode=mode)), weight(7, 5))  # noqa: B023
    if indices.ndim:  # a single index into an array is a dynamic_slice
        check(lambda w: w[indices], weight(7, 5))
        check(lambda w: w[indices], weight(7, 2, 5))
    assert reports() == []


STRUCTURE = {
    "transpose": (lambda w: normal(3, 5) @ w.T, (4, 5)),
    "leading axes": (lambda w: jnp.tensordot(normal(3, 4), w.transpose(1, 0, 2), 1), (2, 4, 5)),
    "reshape": (lambda w: normal(3, 8) @ w.reshape(8, 5), (2, 4, 5)),
    "reshape to more axes": (lambda w: jnp.tensordot(normal(3, 2), w.reshape(2, 4, 5), 1), (8, 5)),
    "bfloat16": (lambda w: normal(3, 4) @ w.astype("bfloat16").astype("float32"), (4, 5)),
    "jit": (lambda w: jax.jit(jnp.matmul)(normal(3, 4), w), (4, 5)),
    "jit returning the weight": (lambda w: normal(3, 5) @ jax.jit(jnp.transpose)(w), (4, 5)),
    "custom_jvp": (lambda w: jax.nn.relu(normal(3, 4) @ w), (4, 5)),
    "checkpoint": (lambda w: jax.checkpoint(lambda v: jnp.sin(normal(3, 4) @ v))(w), (4, 5)),
    "vmap over examples": (lambda w: jax.vmap(lambda x: x @ w)(normal(3, 4)), (4, 5)),
    "scan over layers": (
        lambda w: lax.scan(lambda x, v: (jnp.tanh(x @ v), None), normal(3, 4), w)[0],
        (5, 4, 4),
    ),
    "scan over layers, reversed": (
        lambda w: lax.scan(lambda x, v: (jnp.tanh(x @ v), x), normal(3, 4), w, reverse=True),
        (5, 4, 4),
    ),
    "scan over vectors": (
        lambda w: lax.scan(lambda x, v: (jnp.tanh(x * v), x), normal(3, 4), w),
        (5, 4),
    ),
    "scan over kernels": (
        lambda w: lax.scan(lambda x, v: (jnp.tensordot(x, v, 2), None), normal(2, 3), w)[0],
        (5, 2, 3, 2, 3),
    ),
    "scan in a scan": (
        lambda w: lax.scan(
            lambda x, vs: lax.scan(lambda y, v: (jnp.tanh(y @ v), None), x, vs), normal(3, 4), w
        ),
        (2, 3, 4, 4),
    ),
    "scan with a constant weight": (
        lambda w: lax.scan(lambda x, _: (jnp.tanh(x @ w), x), normal(3, 4), length=3),
        (4, 4),
    ),
    "while": (lambda w: lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ w), normal(3, 4)), (4, 4)),
    "while that reads the weight": (
        lambda w: lax.while_loop(
            lambda x: jnp.sum(x @ w) < 9, lambda x: x + jnp.abs(x @ w) + 1, normal(3, 4)
        ),
        (4, 4),
    ),
    "cond": (
        lambda w: lax.cond(normal()[()] > 0, lambda v: normal(3, 4) @ v, lambda v: normal(3, 5), w),
        (4, 5),
    ),
    "switch": (
        lambda w: lax.switch(1, [lambda v: normal(3, 4) @ v, lambda v: normal(3, 4) @ v * 2], w),
        (4, 5),
    ),
}


@pytest.mark.parametrize("name", STRUCTURE)
def test_weights_stay_implicit_through(name, reports):
    function, shape = STRUCTURE[name]
    check(function, weight(*shape), rtol=0.02 if name == "bfloat16" else 1e-5)
    assert reports() == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_models_keep_sigma_and_small_perturbations(dtype):
    """Materialised, a step of 1e-4 from weights of 1 rounds away."""
    small = LowRankArray(jnp.ones((4, 5)), normal(4, 1), normal(5, 1), jnp.float32(1.003e-4))
    x = jnp.ones((1, 4))

    def difference(w):
        low = w.astype(dtype)
        assert low.dtype == dtype
        return x @ low.astype("float32") - x @ jnp.ones((4, 5))

    expected = x @ (small.left @ small.right.T) * small.scale
    np.testing.assert_allclose(
        implicit.call(difference, small), expected, rtol=0.02, atol=4 * 2.0**-22
    )


# What materialises: right, reported once by primitive and shape, and never a crash.


@jax.custom_vjp
def straight_through(w):
    return jnp.round(4 * w) / 4


straight_through.defvjp(lambda w: (straight_through(w), None), lambda _, g: (g,))

MATERIALISING = {
    "norm": (lambda w: jnp.linalg.norm(w), {"mul"}),
    "spectral norm": (lambda w: jnp.linalg.norm(w, 2), {"svd"}),
    "weight decay": (lambda w: jnp.sum(w**2), {"integer_pow", "square"}),
    "quantised weight": (lambda w: normal(3, 4) @ straight_through(w), {"mul"}),
    "gram matrix": (lambda w: w @ w.T, {"dot_general"}),
    "flattening": (lambda w: w.reshape(-1) @ normal(20), {"reshape"}),
    "argmax": (lambda w: jnp.argmax(w), {"argmax", "reshape"}),
    "slice": (lambda w: normal(3, 2) @ w[:2], {"slice"}),
    "one-hot column": (lambda w: w[:, jnp.array([1, 2])], {"gather"}),
    "fill value": (
        lambda w: jnp.take(w, jnp.array([0, 9]), axis=0, mode="fill", fill_value=2.0),
        {"gather"},
    ),
    "to integers": (
        lambda w: (10 * normal(3, 4)).astype(int) @ w.astype(int),
        {"convert_element_type"},
    ),
    "weight out of a branch": (
        lambda w: normal(3, 4) @ lax.cond(normal()[()] > 0, lambda v: v, lambda v: -v, w),
        {"neg"},
    ),
}


@pytest.mark.parametrize("name", MATERIALISING)
def test_other_operations_materialise_and_say_so_once(name, reports):
    function, primitives = MATERIALISING[name]
    for _ in range(2):
        check(function, weight(4, 5), rtol=2e-5)
    assert len(reports()) == len(set(reports()))
    assert {primitive for _, primitive in reports()} & primitives, reports()
    shapes = {shape for shape, _ in reports()}
    assert shapes <= {(4, 5), (5, 4)}


def test_grouped_convolutions_materialise(reports):
    def depthwise(w):
        return lax.conv_general_dilated(
            normal(1, 5, 5, 4),
            w,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )

    check(depthwise, weight(3, 3, 1, 4))
    assert reports() == [((3, 3, 1, 4), "conv_general_dilated")]


CARRIED = {
    "scan": lambda w: lax.scan(lambda c, _: (2 * c, None), w, length=2)[0],
    "scan that hands the weight on": lambda w: lax.scan(
        lambda c, x: (w, c @ x), w, normal(3, 5, 2)
    ),
    "scan that returns the weight": lambda w: lax.scan(lambda c, _: (c, w), 1.0, length=2),
    "while": lambda w: lax.while_loop(lambda c: jnp.sum(c**2) < 1e3, lambda c: 2 * c, w),
    "while that hands the weight on": lambda w: lax.fori_loop(0, 2, lambda _, c: w, 0 * w),
}


@pytest.mark.parametrize("name", CARRIED)
def test_weights_carried_by_a_loop_are_materialised(name):
    check(CARRIED[name], weight(4, 5))


def test_positions_and_biases_of_several_axes_are_not_reported(reports):
    check(lambda w: normal(3, 4, 5) + w, weight(4, 5))
    check(lambda w: normal(3, 4, 5) * w.reshape(1, 4, 5), weight(4, 5))
    assert reports() == []


def test_derivatives_inside_the_loss_work(reports):
    x = normal(3, 4)
    check(lambda w: jax.grad(lambda y: jnp.sum(jnp.tanh(y @ w)))(x), weight(4, 5))
    check(lambda w: jax.grad(lambda v: jnp.sum(jnp.tanh(x @ v)))(w), weight(4, 5))
    assert reports() == []


def test_loss_may_depend_on_the_parameters_alone(reports):
    params = {"kernel": normal(4, 5), "bias": jnp.zeros(5), "steps": jnp.arange(2)}
    est = zojax.finite_difference(directions=zojax.low_rank(2), num_directions=256, sigma=1e-2)
    loss = lambda p: sum(jnp.sum(p[name] ** 2) for name in ("kernel", "bias"))  # noqa: E731
    result, _ = zojax.estimate(est, loss, params, KEY, ())
    grad, truth = result.grad["kernel"].ravel(), params["kernel"].ravel()
    assert grad @ truth > 0.8 * jnp.linalg.norm(grad) * jnp.linalg.norm(truth)
    assert [shape for shape, _ in reports()] == [(4, 5)]


def test_call_passes_other_leaves_and_results_through():
    params = {"w": weight(4, 5), "n": 3, "name": "net", "none": None, "key": KEY}

    def function(p, x):
        assert p["name"] == "net" and p["n"] == 3
        return {"y": x @ p["w"], "label": "y", "w": p["w"], "none": None, "n": p["n"]}

    result = implicit.call(function, params, normal(3, 4))
    assert result["label"] == "y" and result["none"] is None and result["n"] == 3
    assert_same(result["w"], params["w"].materialise())
    assert_same(result["y"], normal(3, 4) @ params["w"].materialise())


def test_shared_inputs_are_multiplied_once_for_the_population():
    x, w = normal(32, 64), normal(64, 48)

    def member(noise):
        left, right = noise
        point = LowRankArray(w, left, right, jnp.float32(0.1))
        return implicit.call(lambda v: jnp.sum(jnp.tanh(x @ v)), point)

    noises = normal(16, 64, 1), normal(16, 48, 1)
    jaxpr = jax.make_jaxpr(jax.vmap(member))(noises)
    products = [
        str(v.aval.shape) for e in jaxpr.eqns if "dot" in str(e.primitive) for v in e.outvars
    ]
    assert "(32, 48)" in products and not any("16, 32, 48" in shape for shape in products)
    sizes = [v.aval.size for e in jaxpr.eqns for v in e.outvars]
    assert max(sizes) <= 16 * 32 * 48  # no (16, 64, 48): sixteen weights


def test_works_under_quaxify_too():
    import quax

    x, w = normal(3, 4), weight(4, 5)
    assert_same(quax.quaxify(lambda v: jnp.tanh(x @ v))(w), jnp.tanh(x @ w.materialise()))
