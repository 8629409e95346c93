import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax

KEY = jax.random.key(0)
PARAMS = {"w": jnp.array([0.5, -1.0, 2.0])}
EST = zojax.finite_difference(num_directions=8, sigma=0.1)


@pytest.fixture(autouse=True)
def _strict():
    """Optax's own optimisers are not strict about dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def loss(params):
    return jnp.sum((params["w"] - 1.0) ** 2)


def train(tx, params, steps, loss_fn=loss):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(None, state, params, value_fn=loss_fn)
        return (optax.apply_updates(params, updates), state), loss_fn(params)

    return jax.jit(lambda c: jax.lax.scan(step, c, None, steps))((params, tx.init(params)))


def test_the_update_is_the_estimate_at_the_folded_key():
    tx = zojax.as_gradient_transformation(EST, KEY)
    state = tx.init(PARAMS)
    assert np.isnan(state.value)
    for step in range(2):
        updates, state = tx.update(None, state, PARAMS, value_fn=loss)
        expected, _ = zojax.estimate(EST, loss, PARAMS, jax.random.fold_in(KEY, step), ())
        np.testing.assert_array_equal(updates["w"], expected.grad["w"])
        assert state.value == expected.value
        assert state.info == expected.info
    assert state.count == 2
    assert state.num_queries == 2 * 16
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(KEY))


def test_a_key_that_was_saved_as_data_continues_the_run():
    tx = zojax.as_gradient_transformation(EST, KEY)
    _, state = tx.update(None, tx.init(PARAMS), PARAMS, value_fn=loss)
    data = jax.random.key_data(state.key)
    restored = state._replace(key=jax.random.wrap_key_data(data))
    a, b = (tx.update(None, s, PARAMS, value_fn=loss)[0] for s in (state, restored))
    np.testing.assert_array_equal(a["w"], b["w"])


def test_first_in_a_chain_under_jit_and_scan():
    tx = optax.chain(zojax.as_gradient_transformation(EST, KEY), optax.adam(0.1))
    (params, state), losses = train(tx, PARAMS, 60)
    assert losses[-1] < 0.05 * losses[0]
    assert state[0].count == 60
    assert state[0].num_queries == 60 * 16


def test_sgd_in_a_scan_equals_a_loop_written_out():
    tx = optax.chain(zojax.as_gradient_transformation(EST, KEY), optax.sgd(0.05))
    (params, _), _ = train(tx, PARAMS, 3)
    expected = PARAMS
    for step in range(3):
        grad = zojax.estimate(EST, loss, expected, jax.random.fold_in(KEY, step), ())[0].grad
        expected = jax.tree.map(lambda p, g: p - 0.05 * g, expected, grad)
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-5)


def test_multi_steps_behind_it_accumulates():
    inner = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    tx = optax.chain(zojax.as_gradient_transformation(EST, KEY), inner)
    state, updates = tx.init(PARAMS), []
    for _ in range(2):
        update, state = tx.update(None, state, PARAMS, value_fn=loss)
        updates.append(update["w"])
    grads = [
        zojax.estimate(EST, loss, PARAMS, jax.random.fold_in(KEY, i), ())[0].grad["w"]
        for i in range(2)
    ]
    np.testing.assert_array_equal(updates[0], 0)
    np.testing.assert_allclose(updates[1], -0.1 * (grads[0] + grads[1]) / 2, rtol=1e-5)


def test_sigma_can_be_injected_and_scheduled():
    def make(sigma):
        est = zojax.finite_difference(num_directions=8, sigma=sigma)
        return zojax.as_gradient_transformation(est, KEY)

    schedule = optax.linear_schedule(0.1, 0.3, 2)
    injected = optax.inject_hyperparams(make)(sigma=schedule)
    scheduled = make(schedule)
    fixed = [make(0.1), make(0.2)]
    cube = lambda p: jnp.sum(p["w"] ** 3)  # noqa: E731

    @jax.jit
    def two_steps():
        found = []
        for tx in (injected, scheduled):
            first, state = tx.update(None, tx.init(PARAMS), PARAMS, value_fn=cube)
            second, _ = tx.update(None, state, PARAMS, value_fn=cube)
            found.append((first["w"], second["w"]))
        first, _ = fixed[0].update(None, fixed[0].init(PARAMS), PARAMS, value_fn=cube)
        later = fixed[1].init(PARAMS)._replace(count=jnp.int32(1))
        second, _ = fixed[1].update(None, later, PARAMS, value_fn=cube)
        return *found, (first["w"], second["w"])

    by_injection, by_schedule, expected = two_steps()
    for got in (by_injection, by_schedule):
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-4)
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-4)


def test_other_extra_arguments_and_incoming_updates_are_ignored():
    tx = zojax.as_gradient_transformation(EST, KEY)
    plain, _ = tx.update(None, tx.init(PARAMS), PARAMS, value_fn=loss)
    with_more, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=loss, value=1.0)
    np.testing.assert_array_equal(plain["w"], with_more["w"])


def test_execution_is_used():
    plain = zojax.as_gradient_transformation(EST, KEY)
    chunks = zojax.as_gradient_transformation(EST, KEY, execution=zojax.chunked(3))
    a, b = (tx.update(None, tx.init(PARAMS), PARAMS, value_fn=loss)[0] for tx in (plain, chunks))
    np.testing.assert_allclose(a["w"], b["w"], rtol=1e-4)


def test_query_and_step_counts_saturate():
    tx = zojax.as_gradient_transformation(EST, KEY)
    most = jnp.int32(2**31 - 1)
    state = tx.init(PARAMS)._replace(num_queries=most - 20, count=most)
    for expected in (2**31 - 1 - 4, 2**31 - 1, 2**31 - 1):
        _, state = tx.update(None, state, PARAMS, value_fn=loss)
        assert state.num_queries == expected
        assert state.count == most


def test_params_and_value_fn_are_required():
    tx = zojax.as_gradient_transformation(EST, KEY)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="params must be passed"):
        tx.update(None, state, value_fn=loss)
    with pytest.raises(ValueError, match="value_fn must be passed"):
        tx.update(None, state, PARAMS)


def test_state_keeps_its_structure_and_dtypes():
    tx = zojax.as_gradient_transformation(EST, KEY)
    before = tx.init(PARAMS)
    _, after = tx.update(None, before, PARAMS, value_fn=loss)
    describe = lambda state: jax.tree.map(lambda x: (x.shape, x.dtype), state)  # noqa: E731
    assert describe(before) == describe(after)


def test_mask_optimizer_passes_extra_arguments_on():
    tx = zojax.mask_optimizer(optax.sgd(0.1), {"w": True, "n": False})
    params = {"w": jnp.ones(2), "n": jnp.arange(2)}
    grads = {"w": jnp.ones(2), "n": jnp.zeros(2, jnp.int32)}
    updates, _ = tx.update(grads, tx.init(params), params, value_fn=loss)
    np.testing.assert_allclose(updates["w"], -0.1)
    np.testing.assert_array_equal(updates["n"], 0)


def test_plain_sgd_descends_as_fast_as_the_formula_says():
    """E|x'|^2 = (1 - 2 a + a^2 (1 + (d + 1) / n)) |x|^2 on |x|^2 / 2; Adam would hide a scale."""
    d, n, runs = 4, 5, 400
    rate = 1 / (1 + (d + 1) / n)
    est = zojax.finite_difference(num_directions=n, sigma=0.1)

    def one_step(key):
        tx = optax.chain(zojax.as_gradient_transformation(est, key), optax.sgd(rate))
        x = jnp.ones(d)
        updates, _ = tx.update(None, tx.init(x), x, value_fn=lambda p: 0.5 * jnp.sum(p**2))
        return jnp.sum((x + updates) ** 2)[None] / d

    keys = jax.random.split(KEY, runs)
    left = jax.jit(lambda ks: jax.lax.map(one_step, ks))(keys)
    zojax.testing.assert_unbiased(left, np.array([1 - rate]), "one step of SGD")
