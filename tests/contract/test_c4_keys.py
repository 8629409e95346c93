"""C4 keys, C4b joint draws: noise depends on the key and the global index, on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from tests.contract.registry import DIRECTIONS
from zojax.directions import draw_range
from zojax.directions.orthogonal import MAX_BLOCK_ELEMENTS

EST = zojax.finite_difference(num_directions=4, sigma=0.1)
PARAMS = jnp.arange(5.0)


def loss(params):
    return jnp.sum(params**3)


def test_c4_same_key_same_result_other_key_other_result():
    first, again, other = (
        zojax.estimate(EST, loss, PARAMS, jax.random.key(seed), ())[0].grad for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.any(first == other)


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (jax.random.PRNGKey(0), TypeError),
        (jax.random.key(0, impl="rbg"), ValueError),
        (jax.random.key(0, impl="unsafe_rbg"), ValueError),
        (jax.random.split(jax.random.key(0)), ValueError),
        (0, TypeError),
    ],
    ids=["legacy", "rbg", "unsafe_rbg", "batch", "int"],
)
def test_c4_other_keys_are_refused_everywhere(key, error):
    uses = [
        lambda: zojax.estimate(EST, loss, PARAMS, key, ()),
        lambda: zojax.value_and_grad(loss, EST)(PARAMS, key),
        lambda: zojax.ask(EST, PARAMS, key, ()),
        lambda: zojax.tell(EST, PARAMS, key, (), jnp.zeros(8)),
        lambda: zojax.as_gradient_transformation(EST, key),
    ]
    for use in uses:
        with pytest.raises(error, match="key must"):
            use()


def test_c4_noise_is_independent_of_parameters_drawn_from_the_same_key():
    """Without a domain of its own, normal(key, (d,)) can equal a direction exactly."""
    d = 4096
    keys = [jax.random.key(0), *(jax.random.fold_in(jax.random.key(0), i) for i in range(4))]
    noise = draw_range(zojax.gaussian(), keys[0], jnp.zeros(d), 0, 4, 4)
    drawn = jnp.stack([jax.random.normal(key, (d,)) for key in keys])
    correlation = np.asarray(noise @ drawn.T) / d
    assert np.abs(correlation).max() < 5 / d**0.5


def pieces(directions, params, n, size):
    key = jax.random.key(0)

    @jax.jit
    def draw():
        parts = [
            draw_range(directions, key, params, start, min(size, n - start), n, size)
            for start in range(0, n, size)
        ]
        # Under a traced start, as in a scan over chunks, the window is cut out at run time.
        traced = jax.lax.map(
            lambda i: draw_range(directions, key, params, i * size, size, n, size),
            jnp.arange(n // size),
        )
        return jax.tree.map(lambda *x: jnp.concatenate(x), *parts), traced

    return draw()


def flat(noises):
    return [np.asarray(x) for x in jax.tree.leaves(noises)]


@pytest.mark.parametrize("name", DIRECTIONS)
def test_c4_noise_is_the_same_in_chunks(name):
    size = 3  # 10 = 3 + 3 + 3 + 1: whole chunks, and a remainder of one
    directions, n, params = DIRECTIONS[name].make(), 10, {"a": jnp.zeros(5), "b": jnp.zeros((2, 3))}
    whole = draw_range(directions, jax.random.key(0), params, 0, n, n)
    joined, traced = pieces(directions, params, n, size)
    for a, b, c in zip(flat(whole), flat(joined), flat(traced), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
        rows = c.reshape(-1, *c.shape[2:])
        np.testing.assert_allclose(a[: len(rows)], rows, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [2, 3, 5, 7, 9])
def test_c4b_blocks_that_chunks_cut_are_drawn_again(size):
    directions, n, params = zojax.orthogonal(3), 10, jnp.zeros(6)
    whole = draw_range(directions, jax.random.key(0), params, 0, n, n)
    joined, traced = pieces(directions, params, n, size)
    np.testing.assert_allclose(whole, joined, rtol=1e-6, atol=1e-6)
    traced = np.asarray(traced).reshape(-1, 6)
    np.testing.assert_allclose(whole[: len(traced)], traced, rtol=1e-6, atol=1e-6)


def test_c4b_directions_are_orthogonal_within_a_block_and_not_across():
    drawn = draw_range(zojax.orthogonal(3), jax.random.key(0), jnp.zeros(6), 0, 6, 6)
    gram = np.asarray(drawn @ drawn.T) / 6
    for block in (slice(0, 3), slice(3, 6)):
        np.testing.assert_allclose(gram[block, block], np.eye(3), atol=1e-5)
    assert np.abs(gram[:3, 3:]).max() > 0.01


def test_c4b_a_block_over_the_limit_or_over_d_is_refused():
    key = jax.random.key(0)
    wide = jax.ShapeDtypeStruct((MAX_BLOCK_ELEMENTS // 4,), jnp.float32)
    for directions, params in ((zojax.orthogonal(8), wide), (zojax.orthogonal(8), jnp.zeros(5))):
        with pytest.raises(ValueError, match="block"):
            draw_range(directions, key, params, 0, 8, 8)
