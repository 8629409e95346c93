"""C5: a direction is one flat float32 draw, and leaves of one shape get independent noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.contract.registry import DIRECTIONS
from zojax import implicit, trees
from zojax.testing import assert_unbiased

TWINS = {name: jnp.zeros((4, 3)) for name in ("a", "b", "c", "d")}


def arguments(directions):
    block = () if directions.block_size is None else (directions.block_size(48, 4),)
    return (TWINS, *block)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_c5_one_draw_whatever_the_number_of_leaves(name):
    directions = DIRECTIONS[name].make()
    jaxpr = str(
        jax.make_jaxpr(lambda k: directions.draw(k, *arguments(directions)))(jax.random.key(0))
    )
    draws = jaxpr.count("random_bits[")
    if name == "coordinate":  # randint draws its bits in two words
        assert draws == 2 and "random_split" in jaxpr
    else:
        assert draws == 1
        assert "random_split" not in jaxpr


@pytest.mark.parametrize("name", DIRECTIONS)
def test_c5_same_shaped_leaves_get_independent_noise(name):
    directions = DIRECTIONS[name].make()

    def one(key):
        noise = directions.draw(key, *arguments(directions))
        if directions.block_size is not None:
            noise = jax.tree.map(lambda x: x[0], noise)
        moved = implicit.materialise(directions.perturb(TWINS, noise, 1.0))
        moved = trees.ravel(moved).reshape(4, 12)
        return jnp.stack([jnp.sum(moved[i] * moved[j]) for i in range(4) for j in range(i)])

    keys = jax.random.split(jax.random.key(0), 1024)
    products = jax.jit(lambda ks: jax.lax.map(one, ks))(keys)
    assert_unbiased(products, np.zeros(6), f"{name}: product of two leaves")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_c5_noise_is_float32_whatever_the_parameters_are(dtype):
    for case in DIRECTIONS.values():
        directions = case.make()
        params = jax.tree.map(lambda x: x.astype(dtype), TWINS)
        block = arguments(directions)[1:]
        noise = jax.eval_shape(lambda k: directions.draw(k, params, *block), jax.random.key(0))  # noqa: B023
        for leaf in jax.tree.leaves(noise):
            assert leaf.dtype in (jnp.float32, jnp.uint32, jnp.int32)
