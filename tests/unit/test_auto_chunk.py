"""`chunked("auto")` tries sizes, says what it chose, and changes no number."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from zojax import auto_chunk

PARAMS = {"w": jnp.ones((3, 4)), "b": jnp.zeros(3)}


def loss(params, x):
    return jnp.sum(jnp.tanh(x @ params["w"].T) ** 2) + jnp.sum(params["b"])


def test_the_choice_is_printed_and_the_numbers_stay(capsys):
    est = zojax.finite_difference(num_directions=9, sigma=0.1)
    arguments = (PARAMS, jax.random.key(0), jnp.ones(4))
    expected = zojax.value_and_grad(loss, est)(*arguments)
    chosen = zojax.value_and_grad(loss, est, execution=zojax.chunked("auto"))(*arguments)

    printed = capsys.readouterr().out
    assert printed.startswith("chunked('auto') chose ")
    assert "of 9 directions per chunk" in printed
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), expected, chosen
    )


def test_the_choice_can_be_kept(capsys):
    est = zojax.finite_difference(num_directions=9, sigma=0.1)
    chosen = zojax.choose_chunk(est, loss, PARAMS, jax.random.key(0), args=(jnp.ones(4),))
    size = capsys.readouterr().out.removeprefix("chunked('auto') chose ").partition(" of 9")[0]
    assert chosen == zojax.chunked(int(size))


def test_it_works_where_batch_state_and_sigma_are_still_unknown(capsys):
    """Inside jit and scan, with a loss that closes over traced labels and a schedule for sigma."""
    est = zojax.finite_difference(
        directions=zojax.low_rank(), num_directions=6, sigma=optax.constant_schedule(0.1)
    )

    def train(execution):
        zo = zojax.as_gradient_transformation(est, jax.random.key(1), execution=execution)
        tx = optax.chain(zo, optax.sgd(0.1))

        @jax.jit
        def run(params, xs):
            def step(carry, x):
                params, state = carry
                updates, state = tx.update(None, state, params, value_fn=lambda p: loss(p, x))
                return (optax.apply_updates(params, updates), state), ()

            return jax.lax.scan(step, (params, tx.init(params)), xs)[0][0]

        return run(PARAMS, jnp.linspace(-1, 1, 12).reshape(3, 4))

    chosen, expected = train(zojax.chunked("auto")), train(zojax.vectorized())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), chosen, expected)
    assert capsys.readouterr().out.count("chose") == 1


def test_a_size_that_does_not_fit_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(auto_chunk, "_device_memory", lambda: 1.0)
    function = lambda size, _: lambda x: jnp.sort(jnp.tile(x, size))  # noqa: E731
    assert auto_chunk.choose_size(function, 100, (jnp.ones(1000),)) == 1
    assert " 4: " not in capsys.readouterr().out


def test_an_unknown_word_is_refused():
    with pytest.raises(ValueError, match="size must be an integer >= 1 or 'auto', got 'fast'"):
        zojax.chunked("fast")
