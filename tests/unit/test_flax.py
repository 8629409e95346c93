import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax

pytest.importorskip("flax")

from flax import linen, nnx  # noqa: E402

import zojax.flax  # noqa: E402
from zojax.search import stages as chain  # noqa: E402

KEY = jax.random.key(0)
INPUTS = jax.random.normal(jax.random.key(1), (16, 4))
BATCH = (INPUTS, jnp.sum(INPUTS, axis=1, keepdims=True))


@pytest.fixture(autouse=True)
def _strict():
    """Flax's own layers are not strict about dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.Dense(8)(x)
        x = linen.BatchNorm(use_running_average=not train)(x)
        x = linen.Dropout(0.5, deterministic=not train)(jnp.tanh(x))
        return linen.Dense(1)(x)


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(jnp.tanh(self.norm(self.hidden(x)))))


def squared_error(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


def linen_case():
    module = LinenNet()
    variables = module.init(KEY, INPUTS, train=False)
    stats = {"batch_stats": variables["batch_stats"]}
    loss_fn = zojax.flax.linen_loss(module, squared_error, collections=stats, train=True)
    return variables["params"], loss_fn, lambda: stats


def nnx_case():
    model = NNXNet(nnx.Rngs(0))
    model.train()
    params, loss_fn = zojax.flax.nnx_loss(model, squared_error)
    return params, loss_fn, lambda: nnx.state(model)


def snapshot(state):
    return [
        np.array(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(state)
    ]


@pytest.mark.parametrize("case", [linen_case, nnx_case])
def test_dropout_key_is_shared_and_nothing_is_written_back(case):
    params, loss_fn, get_state = case()
    est = zojax.finite_difference(num_directions=2, sigma=0.1)
    before = snapshot(get_state())
    key, dropout_key = jax.random.split(KEY)
    result, _ = zojax.estimate(est, loss_fn, params, key, (), args=(BATCH, dropout_key))
    np.testing.assert_equal(snapshot(get_state()), before)

    points = zojax.ask(est, params, key, ())
    loss = jax.jit(loss_fn)
    values = [loss(jax.tree.map(lambda x: x[i], points), BATCH, dropout_key) for i in range(4)]  # noqa: B023
    by_hand, _ = zojax.tell(est, params, key, (), jnp.stack(values))
    for a, b in zip(jax.tree.leaves(result.grad), jax.tree.leaves(by_hand.grad), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    other = loss(params, BATCH, jax.random.key(9))
    assert loss(params, BATCH, dropout_key) == loss(params, BATCH, dropout_key) != other


@pytest.mark.parametrize("case", [linen_case, nnx_case])
def test_structure_is_kept_and_estimates_descend(case):
    params, loss_fn, _ = case()
    est = zojax.finite_difference(num_directions=32, sigma=0.01)

    @jax.jit
    def step(params, key):
        grad = zojax.estimate(est, loss_fn, params, key, (), args=(BATCH, key))[0].grad
        return jax.tree.map(lambda p, g: p - 0.02 * g, params, grad)

    trained = params
    for i in range(40):
        trained = step(trained, jax.random.fold_in(KEY, i))
    assert jax.tree.structure(trained) == jax.tree.structure(params)
    average = jax.jit(
        lambda p: jnp.mean(
            jax.vmap(lambda k: loss_fn(p, BATCH, k))(jax.random.split(jax.random.key(5), 64))
        )
    )
    assert average(trained) < 0.7 * average(params)


def test_nnx_model_takes_the_trained_parameters_back():
    model = NNXNet(nnx.Rngs(0))
    model.train()
    params, _ = zojax.flax.nnx_loss(model, squared_error)
    nnx.update(model, jax.tree.map(lambda x: x + 1, params))
    moved = nnx.state(model, nnx.Param)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b + 1), moved, params)


def test_linen_without_other_collections_or_randomness():
    module = linen.Dense(1)
    params = module.init(KEY, INPUTS)["params"]
    loss_fn = zojax.flax.linen_loss(module, squared_error)
    value, grad = zojax.value_and_grad(loss_fn, zojax.spsa())(params, KEY, BATCH)
    assert np.isfinite(value)
    assert jax.tree.structure(grad) == jax.tree.structure(params)


def average_pool(x):
    return linen.avg_pool(x, (2, 2), (2, 2))


def flatten(x):
    return x.reshape(len(x), -1)


def test_stages_of_a_sequential_module():
    module = linen.Sequential(
        [
            linen.Conv(4, (3, 3), strides=2, padding="VALID"),
            linen.BatchNorm(use_running_average=False),
            linen.relu,
            average_pool,
            flatten,
            linen.Dense(8),
            linen.LayerNorm(),
            linen.tanh,
            linen.Dense(3, use_bias=False),
            linen.log_softmax,
        ]
    )
    x = jax.random.normal(jax.random.key(0), (6, 9, 9, 2))
    variables = module.init(jax.random.key(1), x)
    stages = zojax.flax.linen_stages(module, variables, x)
    kinds = ["conv", "channelwise", "channelwise", "channelwise", "flatten", "dense", "mixing"]
    assert [stage.kind for stage in stages] == [*kinds, "channelwise", "dense", "mixing"]
    named = [stage.name for stage in stages if stage.name]
    assert named == ["layers_0", "layers_1", "layers_5", "layers_6", "layers_8"]
    expected, _ = module.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(
        chain.run(stages, variables["params"], x), expected, rtol=1e-5, atol=1e-5
    )
    chain.check(stages, variables["params"], x)


@pytest.mark.parametrize(
    "layer",
    [
        linen.Conv(4, (3, 3), feature_group_count=2),
        linen.Conv(4, (3, 3), kernel_dilation=2),
        linen.Conv(4, (3, 3), padding="CIRCULAR"),
        linen.Dense(4, dtype=jnp.bfloat16),
        linen.GroupNorm(num_groups=2),
    ],
)
def test_layers_that_are_none_of_the_simple_kinds_are_recomputed_whole(layer):
    module = linen.Sequential([layer])
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 2))
    variables = module.init(jax.random.key(1), x)
    (stage,) = zojax.flax.linen_stages(module, variables, x)
    assert stage.kind == "mixing"
    np.testing.assert_array_equal(
        stage.apply(variables["params"]["layers_0"], x), module.apply(variables, x)
    )


def test_stages_refuse_stored_statistics():
    module = linen.Sequential([linen.BatchNorm(use_running_average=True)])
    x = jnp.ones((2, 6, 6, 2))
    with pytest.raises(ValueError, match="layers_0 must be a BatchNorm with use_running_average"):
        zojax.flax.linen_stages(module, module.init(jax.random.key(1), x), x)


class TripledDense(linen.Dense):
    def __call__(self, x):
        return 3 * super().__call__(x)


def test_what_looks_like_a_simple_kind_is_not_taken_for_one():
    repeat = lambda x: jnp.repeat(x, 2, axis=-1)  # noqa: E731
    module = linen.Sequential([linen.Conv(4, (5, 5), padding="REFLECT"), repeat, TripledDense(3)])
    x = jnp.ones((2, 6, 6, 2))
    variables = module.init(jax.random.key(1), x)
    stages = zojax.flax.linen_stages(module, variables, x)
    assert [stage.kind for stage in stages] == ["mixing"] * 3


def test_stages_need_a_sequential_module():
    with pytest.raises(ValueError, match=r"linen_stages takes an nn.Sequential, got Dense"):
        zojax.flax.linen_stages(linen.Dense(3), {"params": {}}, jnp.zeros((2, 3)))
