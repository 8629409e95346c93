"""Penalties as wrappers around a loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax import regularization

PARAMS = {"w": jnp.array([[1.0, -2.0], [0.0, 0.5]]), "b": jnp.array([3.0, -1.0])}


def loss_fn(params, shift):
    return jnp.sum(params["b"]) + shift


def test_penalties_have_their_closed_forms_and_pass_arguments():
    shift = jnp.array(2.0)
    assert float(regularization.l1(loss_fn, 0.1)(PARAMS, shift)) == pytest.approx(4 + 0.1 * 7.5)
    assert float(regularization.l2(loss_fn, 0.1)(PARAMS, shift)) == pytest.approx(4 + 0.05 * 15.25)
    only = regularization.l1(loss_fn, 0.1, mask=lambda path: path == "w")
    assert float(only(PARAMS, shift=shift)) == pytest.approx(4 + 0.35)


def test_gradients_are_the_penalties_own():
    zero = lambda params: jnp.zeros(())  # noqa: E731
    decay = jax.grad(regularization.l2(zero, 0.3))(PARAMS)
    np.testing.assert_allclose(decay["w"], 0.3 * PARAMS["w"], rtol=1e-6)
    # Coordinate by coordinate a difference of |w| is exact away from the kink and zero on it.
    est = zojax.coordinate_difference(sigma=0.125)
    _, grad = zojax.value_and_grad(regularization.l1(zero, 0.5), est)(PARAMS, jax.random.key(0))
    np.testing.assert_allclose(grad["w"], 0.5 * np.sign(PARAMS["w"]), atol=1e-5)


def test_auxiliary_output_integers_and_traced_strengths():
    params = PARAMS | {"count": jnp.arange(3)}
    with_aux = lambda params: (params["b"].sum(), "aux")  # noqa: E731
    value, aux = regularization.l1(with_aux, 1.0)(params)
    assert float(value) == pytest.approx(2 + 7.5) and aux == "aux"
    traced = jax.jit(lambda s: regularization.l2(loss_fn, s)(params, jnp.array(0.0)))
    assert float(traced(jnp.array(2.0))) == pytest.approx(2 + 15.25)


@pytest.mark.parametrize("strength", [-1.0, float("inf"), float("nan")])
def test_bad_strength(strength):
    with pytest.raises(ValueError, match="strength must be >= 0 and finite"):
        regularization.l1(loss_fn, strength)
