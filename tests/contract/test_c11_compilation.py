"""C11: compile once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax

KEY = jax.random.key(0)
EST = zojax.finite_difference(num_directions=4, sigma=0.1)


class Traced:
    """A loss that counts how often JAX traces it."""

    def __init__(self):
        self.count = 0

    def __call__(self, params, shift=0.0):
        self.count += 1
        return jnp.sum((params - shift) ** 2)


@pytest.mark.parametrize("execution", [None, lambda: zojax.chunked(2), lambda: zojax.chunked(1)])
def test_c11_eager_calls_do_not_trace_again(execution):
    """Also where the execution is built afresh for every call, as in `execution=chunked(2)`."""
    loss, counts = Traced(), []
    for step in range(3):
        zojax.estimate(
            EST,
            loss,
            step * jnp.ones(3),
            jax.random.fold_in(KEY, step),
            (),
            args=(jnp.float32(step),),
            execution=execution and execution(),
        )
        counts.append(loss.count)
    assert counts[0] == counts[1] == counts[2]


def test_c11_value_and_grad_traces_once():
    loss = Traced()
    value_and_grad = zojax.value_and_grad(loss, EST)
    value_and_grad(jnp.zeros(3), KEY)
    first = loss.count
    value_and_grad(jnp.ones(3), jax.random.key(1))
    assert loss.count == first


@pytest.mark.parametrize("execution", [zojax.vectorized(), zojax.chunked(2)])
def test_c11_the_loss_is_compiled_in_one_place_when_chunks_divide_n(execution):
    """A big model is traced for shapes and once for the program, never once per point."""
    loss = Traced()
    jax.make_jaxpr(lambda p: zojax.estimate(EST, loss, p, KEY, (), execution=execution)[0].grad)(
        jnp.ones(3)
    )
    assert loss.count <= 2


def test_c11_a_sigma_schedule_does_not_recompile():
    est = zojax.finite_difference(
        num_directions=2, sigma=optax.exponential_decay(1.0, transition_steps=1, decay_rate=0.5)
    )
    tx = zojax.as_gradient_transformation(est, KEY)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state):
        return tx.update(None, state, params, value_fn=lambda p: jnp.sum(p**2))

    params = jnp.ones(3)
    state = tx.init(params)
    spreads = []
    for _ in range(3):
        _, state = step(params, state)
        spreads.append(float(state.info.loss_std))
    assert state.count == state.estimator_state.count == 3
    assert spreads[2] < spreads[0]  # sigma did change: 1, 0.5, 0.25


def test_c11_an_injected_sigma_does_not_recompile():
    def make(sigma):
        est = zojax.finite_difference(num_directions=2, sigma=sigma)
        return zojax.as_gradient_transformation(est, KEY)

    tx = optax.inject_hyperparams(make)(sigma=0.1)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state):
        return tx.update(None, state, params, value_fn=lambda p: jnp.sum(p**3))

    params = jnp.ones(3)
    state = tx.init(params)
    biases = []
    for sigma in (0.1, 1.0):
        state.hyperparams["sigma"] = jnp.asarray(sigma, jnp.float32)
        updates, _ = step(params, state)
        biases.append(updates)
    assert not np.allclose(*biases)
