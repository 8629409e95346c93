"""Random search optimisation: decisions, counts, both ways of evaluating, and bad input."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zojax import search
from zojax.search import stages as chain
from zojax.search.order import position, weight_order

KEY = jax.random.key(1)


def quadratic(params):
    return jnp.sum((params["w"] - 1.0) ** 2) + jnp.sum((params["b"] - 0.5) ** 2)


def start():
    return {"w": jax.random.normal(jax.random.key(0), (3, 3)), "b": jnp.zeros(2)}


def walk(kernel, params, num_steps, *data):
    """Runs steps in a scan; returns the last state and the infos of all."""

    def one(state, _):
        return kernel.step(state, KEY, *data)

    state = kernel.init(params)
    return jax.jit(lambda state: jax.lax.scan(one, state, None, num_steps))(state)


@pytest.mark.parametrize(
    ("block_size", "group_size", "weight_decay"),
    [(1, 1, 0.0), (1, 1, 1e-4), (6, 1, 0.0), (6, 4, 0.0), (8, 4, 1e-4)],
)
def test_it_finds_the_minimum_and_counts_what_the_loss_received(
    block_size, group_size, weight_decay
):
    received = []

    def counted(params):
        jax.debug.callback(lambda: received.append(1))
        return quadratic(params)

    kernel = search.rso(
        counted,
        num_rounds=25,
        block_size=block_size,
        group_size=group_size,
        weight_decay=weight_decay,
    )
    num_steps = 25 * kernel.steps_per_round(start())
    state, info = walk(kernel, start(), num_steps)
    jax.effects_barrier()
    assert float(info.value[-1]) < 0.01
    assert len(received) == int(info.num_queries.sum()) == kernel.num_queries(start(), 25)
    assert int(state.step) == num_steps


def test_queries_per_weight_are_three_or_two():
    size = 11
    one_each = search.rso(quadratic, block_size=1, weight_decay=0.0)
    kept_batch = search.rso(quadratic, block_size=16, weight_decay=0.0)
    decayed = search.rso(quadratic, block_size=16)
    assert one_each.num_queries(start()) == 3 * size
    assert kept_batch.num_queries(start()) == 2 * size + 2  # two leaves, two blocks
    assert decayed.num_queries(start(), num_rounds=2) == 2 * 3 * size


def test_every_decision_is_the_best_of_three():
    kernel = search.rso(quadratic, num_rounds=4, block_size=1, final_scale=0.5, weight_decay=0.1)
    params = start()
    state = kernel.init(params)
    table = kernel.order(params)
    for t in range(11):
        new, info = kernel.step(state, KEY)
        leaf = jax.tree.leaves(state.params)[table.leaf[t]]
        inner = leaf.size // (leaf.shape[-1] if leaf.ndim > 1 else 1)
        where = position(int(table.start[t]), inner, leaf.size // inner)
        old, now = (jax.tree.leaves(s.params)[table.leaf[t]].ravel()[where] for s in (state, new))
        if int(info.choices[0]) == 0:
            assert float(now) == pytest.approx(0.9 * float(old), rel=1e-6)
        target = 0.5 if leaf.ndim == 1 else 1.0
        assert abs(float(now) - target) <= abs(0.9 * float(old) - target) + 1e-6
        state = new


def test_changes_shrink_linearly_to_the_final_scale():
    size = 2_000

    def away(params):
        return -jnp.sum(jnp.abs(params["w"]))

    kernel = search.rso(away, num_rounds=4, block_size=size, weight_decay=0.0, final_scale=0.1)
    state = kernel.init({"w": jnp.zeros((size, 1))}, {"w": jnp.array(2.0)})
    step = jax.jit(kernel.step)
    for done, factor in ((0, 1.0), (1, 0.775), (3, 0.325), (4, 0.1), (9, 0.1)):
        moved, info = step(state._replace(step=jnp.int32(done)), KEY)
        assert int(jnp.sum(info.choices == 0)) == 0
        spread = float(jnp.std(moved.params["w"]))
        assert spread == pytest.approx(2 * factor, rel=5 / (2 * size) ** 0.5)  # 5 standard errors


def test_the_order_is_last_layer_first_and_channel_by_channel():
    params = {f"Dense_{i}": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)} for i in (1, 2, 10)}
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    ]
    table = weight_order(params, 4, 1, "last_first")
    layers = [names[leaf].split("/")[0] for leaf in table.leaf]
    assert list(dict.fromkeys(layers)) == ["Dense_10", "Dense_2", "Dense_1"]
    assert table.length.tolist() == 3 * [4, 2, 3]
    assert [position(i, 2, 3) for i in range(6)] == [0, 3, 1, 4, 2, 5]
    forward = weight_order(params, 4, 1, "first_first")
    assert list(dict.fromkeys(forward.leaf)) == list(dict.fromkeys(table.leaf[::-1]))


@pytest.mark.parametrize("block_size", [7, 12, 64])
@pytest.mark.parametrize("group_size", [1, 2, 4, 5])
def test_groups_cover_every_weight_and_never_leave_the_leaf(group_size, block_size):
    params = {"a": jnp.zeros((3, 3)), "b": jnp.zeros(2)}
    table = weight_order(params, block_size, group_size, "last_first")
    sizes = [9, 2]
    for leaf in (0, 1):
        visited = set()
        for row in np.flatnonzero(table.leaf == leaf):
            assert table.length[row] % table.group[row] == 0
            assert table.start[row] >= 0
            assert table.start[row] + table.length[row] <= sizes[leaf]
            visited |= set(range(table.start[row], table.start[row] + table.length[row]))
        assert visited == set(range(sizes[leaf]))


def batch_norm(params, x):
    mean, variance = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
    scale, bias = (jnp.broadcast_to(params[name], x.shape) for name in ("scale", "bias"))
    return (x - mean) / jnp.sqrt(variance + 1e-5) * scale + bias


def pooled(x):
    return x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean((2, 4))


NETWORK = (
    search.conv("c1"),
    search.channelwise(jax.nn.relu),
    search.conv("c2", strides=(2, 2), padding="VALID"),
    search.conv("c3", padding=((1, 1), (0, 2))),
    search.channelwise(batch_norm, "bn"),
    search.channelwise(jnp.tanh),
    search.flatten(),
    search.dense("d1"),
    search.channelwise(jax.nn.relu),
    search.mixing(lambda params, x: jnp.sin(x + params["m"][None] * x[:, ::-1]), "mix"),
    search.dense("d2"),
    search.channelwise(jnp.tanh),
    search.dense("d3"),
)


def criterion(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def network_loss(params, x, labels):
    return criterion(chain.run(NETWORK, params, x), labels)


def network_case():
    shapes = {
        "c1": {"kernel": (3, 3, 1, 4), "bias": (4,)},
        "c2": {"kernel": (3, 3, 4, 4)},
        "c3": {"kernel": (3, 3, 4, 3)},  # a bias would make no difference, and rounding decide
        "bn": {"scale": (3,), "bias": (3,)},
        "d1": {"kernel": (27, 8), "bias": (8,)},
        "mix": {"m": (8,)},
        "d2": {"kernel": (8, 6)},
        "d3": {"kernel": (6, 3), "bias": (3,)},
    }
    rng = np.random.default_rng(0)
    params = {
        name: {k: jnp.asarray(0.4 * rng.standard_normal(s)) for k, s in leaves.items()}
        for name, leaves in shapes.items()
    }
    x = jnp.asarray(rng.standard_normal((64, 8, 8, 1)))
    return params, x, jnp.asarray(rng.integers(0, 3, 64))


@pytest.mark.parametrize(
    "options",
    [
        {"block_size": 1},
        {"block_size": 16, "weight_decay": 0.0},
        {"block_size": 64, "group_size": 8, "weight_decay": 0.0},
        {"block_size": 16, "group_size": 8},
    ],
    ids=["as published", "kept batch", "groups", "groups with decay"],
)
def test_stages_take_the_decisions_of_the_black_box(options):
    with jax.enable_x64(True):
        params, x, labels = network_case()
        options = {"num_rounds": 3, "batch_size": 16, **options}
        black = search.rso(network_loss, **options)
        staged = search.layered_rso(NETWORK, criterion, **options)
        table = black.order(params)
        num_steps = int(np.searchsorted(np.cumsum(np.tile(table.length, 2)), 1_000)) + 1
        one, ours = (walk(kernel, params, num_steps, x, labels) for kernel in (black, staged))
        assert int((one[1].choices >= 0).sum()) >= 1_000
        np.testing.assert_array_equal(one[1].choices, ours[1].choices)
        np.testing.assert_array_equal(one[1].num_queries, ours[1].num_queries)
        np.testing.assert_allclose(one[1].value, ours[1].value, rtol=1e-12)
        chex.assert_trees_all_close(one[0].params, ours[0].params, rtol=1e-12)


def test_groups_descend_too():
    rng = np.random.default_rng(1)
    params = {
        name: {"kernel": jnp.asarray(0.5 * rng.standard_normal(shape), jnp.float32)}
        for name, shape in {"a": (6, 12), "b": (12, 3)}.items()
    }
    stages = (search.dense("a"), search.channelwise(jnp.tanh), search.dense("b"))
    x = jnp.asarray(rng.standard_normal((64, 6)), jnp.float32)
    labels = jnp.argmax(x[:, :3], axis=1)
    kernel = search.layered_rso(
        stages, criterion, num_rounds=6, block_size=36, group_size=12, weight_decay=0.0
    )
    _, info = walk(kernel, params, 6 * kernel.steps_per_round(params), x, labels)
    assert float(info.value[-1]) < 0.5 * float(info.value[0])


def test_a_stopped_search_goes_on_to_the_same_bits():
    kernel = search.rso(quadratic, num_rounds=5, block_size=4)

    def after(state, num_steps):
        for _ in range(num_steps):
            state, _ = kernel.step(state, KEY)
        return state

    whole = after(kernel.init(start()), 10)
    stored = jax.tree.map(np.asarray, after(kernel.init(start()), 4))
    again = after(jax.tree.map(jnp.asarray, stored), 6)
    jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_candidates_that_are_not_finite_are_never_taken():
    def fragile(params):
        loss = quadratic(params)
        return jnp.where(jnp.any(params["w"] > 0.9), jnp.nan, loss)

    params = {"w": jnp.full((3, 3), -1.0), "b": jnp.zeros(2)}
    scales = {"w": jnp.array(1.0), "b": jnp.array(1.0)}
    kernel = search.rso(fragile, num_rounds=30, block_size=4, weight_decay=0.0)
    state = kernel.init(params, scales)
    step, lost = jax.jit(kernel.step), 0
    for _ in range(90):
        state, info = step(state, KEY)
        lost += int(info.num_nonfinite)
    assert lost > 0
    assert jnp.all(state.params["w"] <= 0.9)
    assert jnp.isfinite(quadratic(state.params))
    assert float(jnp.mean(state.params["w"])) > 0.5


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("group_size", [1, 4])
def test_if_nothing_is_finite_nothing_changes(weight_decay, group_size):
    kernel = search.rso(
        lambda params: jnp.nan, block_size=11, weight_decay=weight_decay, group_size=group_size
    )
    state, info = kernel.step(kernel.init(start()), KEY)
    jax.tree.map(np.testing.assert_array_equal, state.params, start())
    assert int(info.num_nonfinite) == int(info.num_queries)
    assert jnp.isinf(info.value)


def test_no_gradient_is_taken():
    @jax.custom_jvp
    def opaque(x):
        return x

    @opaque.defjvp
    def _(primals, tangents):
        raise AssertionError("a derivative was taken")

    kernel = search.rso(lambda params: opaque(quadratic(params)), block_size=4)
    walk(kernel, start(), 3)


def test_a_second_call_does_not_compile_again():
    kernel = search.rso(quadratic, block_size=4)
    state = kernel.init(start())
    for _ in range(3):
        state, _ = kernel.step(state, KEY)  # jits inside
    assert kernel.step._cache_size() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rounds": 0}, "num_rounds must be an integer >= 1, got 0"),
        ({"block_size": 0}, "block_size must be an integer >= 1"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1"),
        ({"block_size": 2, "group_size": 3}, "group_size must be at most block_size=2, got 3"),
        ({"final_scale": 0.0}, r"final_scale must be in \(0, 1\], got 0.0"),
        ({"weight_decay": 1.0}, r"weight_decay must be in \[0, 1\), got 1.0"),
        ({"vector_scale": 0.0}, "vector_scale must be finite and > 0"),
        ({"order": "random"}, "order must be 'last_first' or 'first_first', got 'random'"),
    ],
)
def test_bad_options(options, message):
    for make in (
        lambda **o: search.rso(quadratic, **o),
        lambda **o: search.layered_rso((), criterion, **o),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)


def test_an_unknown_option_names_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown options \['block'\]; they are \['num_rounds'"):
        search.layered_rso((), criterion, block=3)


def test_bad_weights_and_data():
    kernel = search.rso(quadratic, batch_size=10)
    with pytest.raises(ValueError, match=r"the scale of w must be finite and > 0, got 0"):
        kernel.init({"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)})
    with pytest.raises(ValueError, match="the scale of b"):
        kernel.init(start(), {"w": jnp.array(1.0), "b": jnp.array(0.0)})
    with pytest.raises(ValueError, match="one number for every leaf"):
        kernel.init(start(), {"w": jnp.array(1.0)})
    with pytest.raises(ValueError, match="w must hold floating-point weights"):
        kernel.init({"w": jnp.zeros((2, 2), int)})
    with pytest.raises(ValueError, match="no weights"):
        kernel.init({})
    state = kernel.init(start())
    with pytest.raises(ValueError, match=r"batch_size is 10, larger than the data \(4 examples\)"):
        kernel.step(state, KEY, jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="one leading axis of examples"):
        kernel.step(state, KEY, jnp.zeros((40, 2)), jnp.zeros(20))
    with pytest.raises(TypeError, match="typed key"):
        kernel.step(state, jax.random.PRNGKey(0), jnp.zeros((40, 2)))


def test_stages_that_do_not_fit():
    x = jnp.zeros((4, 3))
    params = {"d": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
    chain.check((search.dense("d"),), params, x)
    with pytest.raises(ValueError, match="stages name the parameters"):
        chain.check((search.dense("e"),), params, x)
    kernel = search.layered_rso((search.dense("d"),), criterion)
    with pytest.raises(ValueError, match=r"takes \(state, key, inputs, targets\), got 1 arrays"):
        kernel.step(kernel.init({"d": {"kernel": jnp.eye(3)}}), KEY, x)
    with pytest.raises(ValueError, match="has no weights: leave its name out"):
        chain.check(
            (search.dense("d"), search.channelwise(lambda p, x: x, "a")), {**params, "a": {}}, x
        )
    with pytest.raises(ValueError, match="must have a kernel and perhaps a bias"):
        chain.check((search.dense("d"),), {"d": {"kernel": x, "mask": x}}, x)
    with pytest.raises(ValueError, match="must keep the 3 channels of its input"):
        chain.check((search.channelwise(lambda x: x[:, :1]), search.dense("d")), params, x)


def test_work_is_counted_and_stages_need_less_of_it():
    params, x, labels = network_case()
    params = jax.tree.map(lambda w: w.astype(jnp.float32), params)
    x = x.astype(jnp.float32)
    options = {"block_size": 64, "batch_size": 32, "weight_decay": 0.0}
    black = search.rso(network_loss, **options)
    staged = search.layered_rso(NETWORK, criterion, **options)
    assert black.num_queries(params) == staged.num_queries(params)
    whole = black.flops(params, x, labels)
    assert whole > black.num_queries(params) * 32 * 2 * (27 * 8 + 8 * 6 + 6 * 3)  # its dense layers
    assert staged.flops(params, x, labels) < 0.3 * whole
