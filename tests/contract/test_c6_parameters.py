"""C6: parameters are never modified; what is not perturbed is passed through untouched."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from tests.contract.registry import DIRECTIONS
from tests.contract.replicates import DIMENSION, estimates
from zojax import trees
from zojax.testing import assert_unbiased

PARAMS = {
    "dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    "head": {"kernel": jnp.ones((3, 1)), "bias": jnp.ones(1)},
    "steps": jnp.arange(3),
    "frozen": np.array([True, False]),
}
MASKS = {
    "pytree": jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key == "kernel" and path[0].key == "dense", PARAMS
    ),
    "prefix": {"dense": {"kernel": True, "bias": False}, "head": False, "steps": 1, "frozen": 1},
    "predicate": lambda path: path == "dense/kernel",
}


def loss(params):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params) if leaf.dtype == jnp.float32)


@pytest.mark.parametrize("mask", MASKS)
def test_c6_masked_and_integer_leaves_stay_and_get_zero_gradients(mask):
    est = zojax.spsa(num_directions=3, mask=MASKS[mask])
    before = jax.tree.map(np.array, PARAMS)
    grad = zojax.estimate(est, loss, PARAMS, jax.random.key(0), ())[0].grad
    points = zojax.ask(est, PARAMS, jax.random.key(0), ())
    jax.tree.map(np.testing.assert_array_equal, PARAMS, before)

    assert np.all(grad["dense"]["kernel"] != 0)
    grad["dense"]["kernel"] = jnp.zeros((2, 3))
    for leaf, like in zip(jax.tree.leaves(grad), jax.tree.leaves(PARAMS), strict=True):
        assert not np.any(leaf) and leaf.dtype == like.dtype
    points["dense"]["kernel"] = PARAMS["dense"]["kernel"][None]
    for point, leaf in zip(jax.tree.leaves(points), jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_array_equal(point, np.broadcast_to(leaf, point.shape))


def test_c6_mask_optimizer_keeps_weight_decay_and_integers_out():
    mask = MASKS["predicate"]
    est = zojax.spsa(num_directions=2, mask=mask)
    adamw = optax.adamw(0.1, weight_decay=0.5)
    tx = optax.chain(
        zojax.as_gradient_transformation(est, jax.random.key(0)), zojax.mask_optimizer(adamw, mask)
    )

    @jax.jit
    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):  # adamw itself is not strict
        params, _ = step(PARAMS, tx.init(PARAMS))
    assert np.all(params["dense"]["kernel"] != 1)
    params["dense"]["kernel"] = PARAMS["dense"]["kernel"]
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_c6_low_precision_parameters_are_evaluated_in_float32(dtype):
    """In bfloat16 a step of 1e-3 from 1 rounds away: the realised slope would be 0.39 of it."""
    params = {"bias": jnp.ones(2, dtype), "kernel": jnp.ones((2, 3), dtype)}
    slope = np.linspace(0.5, 1.5, DIMENSION)
    seen = set()

    def linear(p):
        seen.update(leaf.dtype for leaf in jax.tree.leaves(p))
        return jnp.vdot(trees.ravel(p) - 1, jnp.asarray(slope, jnp.float32))

    def make(sigma):
        return zojax.finite_difference(num_directions=8, sigma=sigma)

    grads = estimates(make, linear, [1e-3], 512, params)[0]
    # The gradient is rounded to the parameters' dtype; points at 1 to float32.
    eps = float(jnp.finfo(dtype).eps) * slope.max() + float(jnp.finfo("float32").eps) / 1e-3
    assert_unbiased(grads, slope, dtype, rounding=eps)
    assert seen == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_c6_gradient_keeps_structure_shapes_and_dtypes(name):
    params = {"a": jnp.ones(2, "bfloat16"), "b": [jnp.ones((2, 2)), jnp.float16(1)], "c": None}
    est = zojax.finite_difference(directions=DIRECTIONS[name].make(), num_directions=4)

    def total(p):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(p))

    state = est.init(params)
    result = jax.eval_shape(
        lambda: zojax.estimate(est, total, params, jax.random.key(0), state)[0].grad
    )
    assert jax.tree.structure(result) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(params), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
