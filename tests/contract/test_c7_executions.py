"""C7 the same answer under every execution, C8 exact query counts, C10 no derivative."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from tests.contract.registry import EXECUTIONS, NUM_DIRECTIONS, SHAPINGS, STENCILS

PARAMS = {"w": jnp.array([[0.3, -0.7], [1.1, 0.2]]), "b": jnp.array([0.5, -1.0])}
# A local and a global shaping; `check_estimator` runs the rest at two chunk sizes.
COMBINATIONS = [("central", "identity"), ("forward", "centered_rank")]


def build(stencil, shaping="identity"):
    return zojax.finite_difference(
        num_directions=NUM_DIRECTIONS,
        sigma=0.1,
        stencil=STENCILS[stencil],
        shaping=SHAPINGS[shaping],
    )


def loss(params, scale):
    return scale * jnp.sum(jnp.tanh(params["w"] @ params["b"]) + params["b"] ** 3)


@pytest.mark.parametrize(("stencil", "shaping"), COMBINATIONS)
def test_c7_every_execution_gives_the_same_estimate(stencil, shaping):
    est, key = build(stencil, shaping), jax.random.key(0)

    @jax.jit
    def run(key):
        return {
            name: zojax.estimate(est, loss, PARAMS, key, (), args=(2.0,), execution=make())[0]
            for name, make in EXECUTIONS.items()
        }

    results = run(key)
    points = zojax.ask(est, PARAMS, key, ())
    values = jnp.stack(
        [loss(jax.tree.map(lambda x: x[i], points), 2.0) for i in range(est.num_queries(PARAMS))]  # noqa: B023
    )
    results["ask/tell"], _ = zojax.tell(est, PARAMS, key, (), values)
    reference = results.pop("vectorized")
    for name, result in results.items():
        for a, b in zip(jax.tree.leaves(reference), jax.tree.leaves(result), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=name)


def counting(calls):
    """A loss that reports every evaluation to the host, where the same point may come twice."""

    def count(value):
        calls.append(float(value))

    def counted(params, scale):
        value = loss(params, scale)
        jax.debug.callback(count, value)
        return value

    return counted


@pytest.mark.parametrize(
    ("est", "planned"),
    [
        (build("central"), 2 * NUM_DIRECTIONS),
        (build("forward"), NUM_DIRECTIONS + 1),
        (build("one_point"), NUM_DIRECTIONS),
        (build("central", "centered_rank"), 2 * NUM_DIRECTIONS),
        (zojax.coordinate_difference(), 2 * 6),
        (zojax.coordinate_difference(stencil=zojax.forward), 6 + 1),
        (zojax.coordinate_difference(mask=lambda path: path == "b"), 2 * 2),
    ],
)
def test_c8_the_loss_is_evaluated_exactly_as_often_as_planned(est, planned):
    calls = []
    result, _ = zojax.estimate(
        est,
        counting(calls),
        PARAMS,
        jax.random.key(0),
        (),
        args=(1.0,),
        execution=zojax.chunked(3),  # 7 = 3 + 3 + 1: batched, and a remainder of one
    )
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert len(calls) == planned == est.num_queries(PARAMS) == result.info.num_queries


def test_c8_ask_puts_the_centre_first_and_pairs_together():
    key = jax.random.key(0)
    with_center = zojax.ask(build("forward"), PARAMS, key, ())
    pairs = zojax.ask(build("central"), PARAMS, key, ())
    np.testing.assert_array_equal(with_center["w"][0], PARAMS["w"])
    np.testing.assert_array_equal(with_center["w"][1:], pairs["w"][::2])
    middle = 0.5 * (pairs["w"][::2] + pairs["w"][1::2])
    np.testing.assert_allclose(
        middle, np.broadcast_to(PARAMS["w"], middle.shape), atol=float(np.finfo("float32").eps)
    )


@jax.custom_jvp
def no_derivative(x):
    return x


@no_derivative.defjvp
def _raise(primals, tangents):
    raise AssertionError("a derivative of the loss was taken")


def test_c10_no_derivative_is_taken_and_one_would_be_seen():
    def guarded(params):
        return no_derivative(loss(params, 1.0))

    with pytest.raises(AssertionError, match="derivative"):
        jax.grad(guarded)(PARAMS)
    est = build("central", "centered_rank")

    def run(make):
        return zojax.estimate(est, guarded, PARAMS, jax.random.key(0), (), execution=make())

    for make in EXECUTIONS.values():
        jax.eval_shape(functools.partial(run, make))
