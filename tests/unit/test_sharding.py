"""`sharded`: the same estimate on eight simulated devices, an eighth of the work on each."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import zojax

N = 32
PARAMS = {"w": jnp.linspace(-1, 1, 40).reshape(8, 5), "b": jnp.linspace(0, 1, 5)}
BATCH = jnp.sin(jnp.arange(64.0)).reshape(8, 8)
KEY = jax.random.key(0)
DIRECTIONS = {
    "gaussian": zojax.gaussian,
    "rademacher": zojax.rademacher,
    "low_rank": zojax.low_rank,
    "orthogonal": zojax.orthogonal,
    "orthogonal(6)": lambda: zojax.orthogonal(6),  # blocks straddle shares
}


def loss(params, x):
    return jnp.mean(jnp.tanh(x @ params["w"] + params["b"][None]) ** 2)


def build(directions="gaussian", **options):
    options = {"num_directions": N, "sigma": 0.1} | options
    return zojax.finite_difference(directions=DIRECTIONS[directions](), **options)


def mesh(*shape, axis_type=AxisType.Auto):
    names = ("directions", "batch")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(axis_type,) * len(shape))


def run(est, execution, params=PARAMS, batch=BATCH):
    result = zojax.estimate(est, loss, params, KEY, (), args=(batch,), execution=execution)[0]
    return jax.block_until_ready(result)  # one program of all devices at a time


def assert_close(a, b, rtol):
    """The difference of whole gradients, relative to their length."""
    a, b = (jax.flatten_util.ravel_pytree(jax.device_get(x))[0] for x in (a, b))
    assert np.linalg.norm(a - b) <= rtol * np.linalg.norm(a)


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_eight_devices_give_the_gradient_of_one(directions, chunk_size):
    est = build(directions)
    expected = run(est, zojax.vectorized())
    got = run(est, zojax.sharded(mesh(8), chunk_size=chunk_size))
    assert_close(expected.grad, got.grad, 1e-5)
    np.testing.assert_allclose(expected.value, got.value, rtol=1e-6)
    assert int(got.info.num_queries) == 2 * N


@pytest.mark.parametrize("shaping", ["centered_rank", "standardize", "sign_of_difference"])
@pytest.mark.parametrize("stencil", ["central", "forward"])
def test_shapings_see_all_losses(shaping, stencil):
    """Ranks and signs are equal unless rounding swaps two losses, which it does not here."""
    est = build(shaping=getattr(zojax, shaping), stencil=getattr(zojax, stencil))
    expected = run(est, zojax.vectorized())
    got = run(est, zojax.sharded(mesh(8), chunk_size=2))
    assert_close(expected.grad, got.grad, 1e-5)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_directions_are_the_same_bit_for_bit(directions):
    """The loss of one direction reads off a point, so equal losses are equal points."""
    est = build(directions, stencil=zojax.one_point)
    seen = []

    def spy(params, weights):
        value = jnp.sum(params["w"] * weights)
        jax.debug.callback(lambda v: seen.append(float(v)), value)
        return value

    values = []
    for execution in (zojax.chunked(1), zojax.sharded(mesh(8), chunk_size=1)):
        seen.clear()
        result = zojax.estimate(
            est, spy, PARAMS, KEY, (), args=(jnp.ones((8, 5)),), execution=execution
        )
        jax.block_until_ready(result)
        jax.effects_barrier()
        values.append(sorted(seen))
    assert values[0] == values[1]
    assert len(values[0]) == N


def device_counter(counts):
    """A loss that tells the host on which device it was evaluated."""

    def counted(params, x):
        value = loss(params, x)
        index = jax.lax.axis_index("directions")
        jax.debug.callback(lambda i, _: counts.update([int(i)]), index, value)
        return value

    return counted


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
@pytest.mark.parametrize("stencil", ["central", "forward"])
def test_each_device_evaluates_an_eighth_of_the_points(stencil, chunk_size):
    est = build(stencil=getattr(zojax, stencil))
    counts = collections.Counter()
    result = zojax.estimate(
        est,
        device_counter(counts),
        PARAMS,
        KEY,
        (),
        args=(BATCH,),
        execution=zojax.sharded(mesh(8), chunk_size=chunk_size),
    )
    jax.block_until_ready(result)
    jax.effects_barrier()
    points = N // 8 * len(est.stencil.offsets)
    expected = dict.fromkeys(range(8), points)
    expected[0] += est.stencil.has_center  # evaluated by the first device alone
    assert counts == expected
    assert sum(counts.values()) == est.num_queries(PARAMS)


def test_compiled_work_per_device_is_an_eighth():
    params = {"w": jnp.zeros((200, 200)), "b": jnp.zeros(200)}
    batch = jnp.ones((64, 200))

    def flops(execution):
        compiled = zojax.value_and_grad(loss, build(), execution=execution)
        return jax.jit(compiled).lower(params, KEY, batch).compile().cost_analysis()["flops"]

    ratio = flops(zojax.sharded(mesh(8))) / flops(zojax.vectorized())
    assert 1 / 8 <= ratio < 1.1 / 8


def bytes_between_devices(est, execution, params=PARAMS):
    """Operand bytes of the collectives in the compiled program."""
    step = jax.jit(zojax.value_and_grad(loss, est, execution=execution))
    text = step.lower(params, KEY, BATCH).compile().as_text()
    assert not re.search(r"= .*(all-gather|all-to-all|collective-permute)\(", text)
    total = 0
    for shapes in re.findall(r"= (.*) all-reduce(?:-start)?\(", text):
        for kind, bits, dims in re.findall(r"\b([a-z]+)(\d+)\[([\d,]*)\]", shapes):
            assert kind in ("f", "s", "u")
            total += int(bits) // 8 * int(np.prod([int(d) for d in dims.split(",") if d]))
    return total


@pytest.mark.parametrize("shaping", ["identity", "centered_rank"])
@pytest.mark.parametrize("stencil", ["central", "forward"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_one_gradient_and_a_few_bytes_per_direction_cross_devices(chunk_size, stencil, shaping):
    options = {"shaping": getattr(zojax, shaping), "stencil": getattr(zojax, stencil)}
    execution = zojax.sharded(mesh(8), chunk_size=chunk_size)
    gradient = sum(leaf.nbytes for leaf in jax.tree.leaves(PARAMS))
    for n in (32, 320):
        crossed = bytes_between_devices(build(num_directions=n, **options), execution)
        assert gradient <= crossed <= gradient + 16 * n


def test_memory_per_device_is_flat_in_the_number_of_directions():
    params = {"w": jnp.zeros((200, 100)), "b": jnp.zeros(100)}

    def temporaries(n):
        execution = zojax.sharded(mesh(8), chunk_size=4)
        step = zojax.value_and_grad(loss, build(num_directions=n), execution=execution)
        compiled = jax.jit(step).lower(params, KEY, jnp.ones((4, 200))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(1024) - temporaries(64) <= 16 * 2 * 1024 * 4


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_auto_and_explicit_meshes(axis_type):
    on = mesh(8, axis_type=axis_type)
    params, batch = jax.device_put((PARAMS, BATCH), NamedSharding(on, P()))
    expected = run(build(), zojax.vectorized()).grad
    assert_close(expected, run(build(), zojax.sharded(on), params, batch).grad, 1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("stencil", ["central", "forward"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_examples_are_spread_over_a_second_axis(chunk_size, stencil, axis_type):
    est = build(stencil=getattr(zojax, stencil))
    sizes = set()

    def spied(params, x):
        sizes.add(x.shape[0])
        return loss(params, x)

    on = mesh(4, 2, axis_type=axis_type)
    execution = zojax.sharded(on, chunk_size=chunk_size, batch_axis="batch")
    got = zojax.estimate(est, spied, PARAMS, KEY, (), args=(BATCH,), execution=execution)[0]
    assert sizes == {len(BATCH) // 2}
    expected = run(est, zojax.vectorized())
    assert_close(expected.grad, got.grad, 2e-5)
    np.testing.assert_allclose(expected.value, got.value, rtol=1e-6)


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_inside_the_users_own_shard_map(chunk_size):
    execution = zojax.sharded(None, axis_name="d", chunk_size=chunk_size)
    step = zojax.value_and_grad(loss, build(), execution=execution)
    over = jax.make_mesh((8,), ("d",))
    mapped = jax.shard_map(step, mesh=over, in_specs=(P(), P(), P()), out_specs=P())
    assert_close(
        run(build(), zojax.vectorized()).grad, jax.jit(mapped)(PARAMS, KEY, BATCH)[1], 1e-5
    )


def test_examples_and_a_centre_inside_the_users_own_shard_map():
    est = build(stencil=zojax.forward)
    execution = zojax.sharded(None, axis_name="d", batch_axis="batch")
    step = zojax.value_and_grad(loss, est, execution=execution)
    over = jax.make_mesh((4, 2), ("d", "batch"), axis_types=(AxisType.Auto,) * 2)
    mapped = jax.shard_map(step, mesh=over, in_specs=(P(), P(), P("batch")), out_specs=P())
    value, grad = jax.jit(mapped)(PARAMS, KEY, BATCH)
    expected = run(est, zojax.vectorized())
    np.testing.assert_allclose(value, expected.value, rtol=1e-6)
    assert_close(expected.grad, grad, 2e-5)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_inside_the_users_own_pmap(chunk_size):
    execution = zojax.sharded(None, axis_name="devices", chunk_size=chunk_size)
    step = zojax.value_and_grad(loss, build(), execution=execution)
    replicated = jax.tree.map(lambda x: jnp.broadcast_to(x, (8, *x.shape)), (PARAMS, KEY, BATCH))
    grads = jax.pmap(step, axis_name="devices")(*replicated)[1]
    for device in range(8):
        one = jax.tree.map(lambda x: x[device], grads)  # noqa: B023
        assert_close(run(build(), zojax.vectorized()).grad, one, 1e-5)


@pytest.mark.parametrize("execution", [zojax.vectorized(), zojax.chunked(2)])
def test_one_device_executions_work_inside_shard_map_with_a_key_per_device(execution):
    """Independent estimates, one per device: what a scan over chunks carries varies."""
    step = zojax.value_and_grad(loss, build(), execution=execution)
    keys = jax.random.split(KEY, 8)
    mapped = jax.shard_map(
        lambda params, keys, x: jax.tree.map(lambda g: g[None], step(params, keys[0], x)[1]),
        mesh=mesh(8),
        in_specs=(P(), P("directions"), P()),
        out_specs=P("directions"),
    )
    grads = jax.jit(mapped)(PARAMS, keys, BATCH)
    expected = zojax.value_and_grad(loss, build())(PARAMS, keys[3], BATCH)[1]
    assert_close(expected, jax.tree.map(lambda x: x[3], grads), 1e-5)


def test_aux_of_the_centre_reaches_all_devices():
    def with_aux(params, x):
        return loss(params, x), {"count": jnp.int32(x.shape[0]), "good": jnp.array(True)}

    est, execution = build(stencil=zojax.forward), zojax.sharded(mesh(8))
    (_, aux), _ = zojax.value_and_grad(with_aux, est, execution=execution, has_aux=True)(
        PARAMS, KEY, BATCH
    )
    assert int(aux["count"]) == 8
    assert aux["good"].dtype == bool and bool(aux["good"])


def test_failed_evaluations_are_dropped_wherever_they_were():
    def fragile(params, x):
        value = loss(params, x)
        return jnp.where(params["b"][0] > 0.12, jnp.nan, value)

    est = build()
    one, eight = (
        zojax.estimate(est, fragile, PARAMS, KEY, (), args=(BATCH,), execution=execution)[0]
        for execution in (zojax.vectorized(), zojax.sharded(mesh(8), chunk_size=2))
    )
    assert 0 < int(one.info.num_nonfinite) == int(eight.info.num_nonfinite)
    assert_close(one.grad, eight.grad, 1e-5)


def test_in_an_optax_chain_under_jit():
    import optax

    def train(execution):
        zo = zojax.as_gradient_transformation(build(), KEY, execution=execution)
        tx = optax.chain(zo, optax.sgd(0.1))

        @jax.jit
        def step(params, state, x):
            updates, state = tx.update(None, state, params, value_fn=lambda p: loss(p, x))
            return optax.apply_updates(params, updates), state

        params, state = PARAMS, tx.init(PARAMS)
        for _ in range(3):
            params, state = step(params, state, BATCH)
        assert step._cache_size() <= 2  # the second call's arrays live on the mesh
        return params

    assert_close(train(zojax.vectorized()), train(zojax.sharded(mesh(8))), 1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: zojax.sharded("mesh"), "mesh must be a jax.sharding.Mesh or None, got 'mesh'"),
        (lambda: zojax.sharded(mesh(8), "d"), "axis_name must be an axis of the mesh"),
        (lambda: zojax.sharded(mesh(8), batch_axis="b"), "batch_axis must be an axis of the mesh"),
        (lambda: zojax.sharded(mesh(4, 2)), "mesh axis 'batch' of size 2 would only repeat"),
        (lambda: zojax.sharded(mesh(8), batch_axis="directions"), "must be another axis"),
        (lambda: zojax.sharded(mesh(8), chunk_size=0), "chunk_size must be an integer >= 1, got 0"),
        (
            lambda: run(build(num_directions=9), zojax.sharded(mesh(8))),
            "num_directions must be divisible by the 8 devices of axis 'directions', got 9",
        ),
        (
            lambda: run(build(), zojax.sharded(None, axis_name="d")),
            "axis_name='d' is not an axis here",
        ),
        (
            lambda: run(
                build(), zojax.sharded(mesh(4, 2), batch_axis="batch"), batch=jnp.ones((3, 8))
            ),
            r"divisible by the 2 devices of batch_axis='batch', got shape \(3, 8\)",
        ),
        (
            lambda: zojax.value_and_grad(
                functools.partial(lambda x, p: loss(p, x), BATCH),
                build(),
                execution=zojax.sharded(mesh(4, 2), batch_axis="batch"),
            )(PARAMS, KEY),
            "pass the batch as args",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
