"""Unrolled computations: unbiased where truncation is not, queries, bad values, episodes, keys."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import estimators

KEY = jax.random.key(5)
MAKERS = (estimators.pes, estimators.nres, estimators.truncated_es)

# Influence balancing (Tallec and Ollivier 2017, arXiv 1702.05043): of 23 states that feed the first
# one sooner or later, the 10 nearest are pushed up by theta, the 13 others down.
SIZE, NUM_UP, NUM_STEPS, NUM_TRUNCATIONS = 23, 10, 4, 30
MATRIX = 0.5 * np.eye(SIZE, dtype=np.float32) + 0.5 * np.eye(SIZE, k=1, dtype=np.float32)
PUSH = np.where(np.arange(SIZE) < NUM_UP, 1, -1).astype(np.float32)
THETA = np.float32(0.5)


def balance(theta, x, key):
    del key

    def step(x, _):
        x = jnp.matmul(MATRIX, x, precision="highest") + theta * PUSH
        return x, 0.5 * (x[0] - 1) ** 2

    x, losses = jax.lax.scan(step, x, None, NUM_STEPS)
    return jnp.mean(losses), x


def at_rest(key):
    del key
    return jnp.ones(SIZE)


def run_episode(est, params, key, num_estimates):
    """Gradients of consecutive estimates at the same parameters, and the last state."""
    start, steps = jax.random.split(key)

    def body(state, step_key):
        found, state = est.estimate(params, step_key, state)
        return state, found

    keys = jax.random.split(steps, num_estimates)
    state, found = jax.lax.scan(body, est.init(params, start), keys)
    return found, state


def exact_gradients():
    """Of an episode's mean loss by back-propagation: through all of it, and truncated."""

    def episode(theta, cut):
        def body(x, _):
            loss, x = balance(theta, cut(x), None)
            return x, loss

        return jnp.mean(jax.lax.scan(body, at_rest(None), None, NUM_TRUNCATIONS)[1])

    full = jax.grad(lambda theta: episode(theta, lambda x: x))
    truncated = jax.grad(lambda theta: episode(theta, jax.lax.stop_gradient))
    return [float(g) for g in jax.jit(lambda x: (full(x), truncated(x)))(THETA)]


@pytest.mark.statistics
def test_unbiased_where_truncation_has_the_wrong_sign():
    full, truncated = exact_gradients()
    assert full > 30
    assert truncated < -2  # the loss grows with theta, and truncated back-propagation denies it
    keys = jax.random.split(KEY, 300)
    options = {"num_truncations": NUM_TRUNCATIONS, "num_directions": 16, "stagger": False}

    def means(key):
        ests = [make(balance, at_rest, sigma=0.1, **options) for make in MAKERS]
        return [jnp.mean(run_episode(e, THETA, key, NUM_TRUNCATIONS)[0].grad) for e in ests]

    samples = np.asarray(jax.jit(jax.vmap(means))(keys))
    errors = samples.std(axis=1, ddof=1) / np.sqrt(len(keys))
    found = dict(zip(("pes", "nres", "truncated_es"), samples.mean(axis=1), strict=True))
    assert abs(found["pes"] - full) < 4 * errors[0] < 0.15 * full
    assert abs(found["nres"] - full) < 4 * errors[1] < 0.15 * full
    assert abs(found["truncated_es"] - full) > 100 * errors[2]
    # Loss quadratic in theta, so only the noise in the inner states sets the two apart.
    assert abs(found["truncated_es"] - truncated) < 4 * errors[2]


@pytest.mark.statistics
def test_scale_is_that_of_the_mean_over_truncations():
    """On the loss of truncation t = slope[t] * (sum of params seen so far), in closed form."""
    slopes = jnp.asarray([1.0, -2.0, 4.0])

    def unroll(params, inner, key):
        del key
        total, t = inner
        total = total + jnp.sum(params["w"] * jnp.asarray([1.0, 3.0]))
        return slopes[t] * total, (total, t + 1)

    def begin(key):
        del key
        return jnp.zeros(()), jnp.zeros((), jnp.int32)

    # Truncation t depends on t + 1 equal parameters: mean of 1 * 1, -2 * 2, 4 * 3 is 3.
    expected = 3 * np.array([1.0, 3.0])
    params = {"w": jnp.zeros(2), "count": jnp.zeros((), jnp.int32)}
    keys = jax.random.split(KEY, 2_000)

    def means(key):
        found = []
        for make in (estimators.pes, estimators.nres):
            est = make(unroll, begin, num_truncations=3, num_directions=3, sigma=0.5)
            grads, _ = run_episode(est, params, key, 5)
            # Staggered lengths are 3, 2, 1: from the third estimate on, one covers an episode.
            found.append(jnp.mean(grads.grad["w"][2:], axis=0))
        return found

    for sample in jax.jit(jax.vmap(means))(keys):
        error = np.std(sample, axis=0) / np.sqrt(len(keys))
        assert np.all(np.abs(np.mean(sample, axis=0) - expected) < 4 * error)
        assert np.all(error < 0.5)


def counting(params, inner, key):
    """The inner state counts truncations; the key's bits are the only loss, params all the rest."""
    draw = jax.random.uniform(key)
    return jnp.sum(params) + draw, {
        "count": inner["count"] + 1,
        "draw": draw,
        "seed": inner["seed"],
    }


def counting_init(key):
    return {"count": jnp.zeros((), jnp.int32), "draw": jnp.zeros(()), "seed": jax.random.bits(key)}


@pytest.mark.parametrize("make", MAKERS[:2])
def test_episodes_end_and_begin_anew(make):
    est = make(counting, counting_init, num_truncations=4, num_directions=3, stagger=False)
    params = jnp.zeros(2)
    state = est.init(params, KEY)
    seeds = [np.asarray(state.inner["seed"])]
    noises = []
    for t in range(8):
        found, state = est.estimate(params, jax.random.fold_in(KEY, t), state)
        expected = (t + 1) % 4
        np.testing.assert_array_equal(state.clock, expected)
        np.testing.assert_array_equal(state.inner["count"], expected)
        assert bool(np.any(state.noise)) == (expected != 0)
        np.testing.assert_array_equal(state.inner["draw"][:, 0], state.inner["draw"][:, 1])
        seeds.append(np.asarray(state.inner["seed"]))
        noises.append(np.asarray(state.noise))
        assert int(found.info.num_queries) == est.num_queries == 6
    assert len(np.unique(state.inner["draw"])) == 1  # zero, just begun
    same = [np.array_equal(a, b) for a, b in zip(seeds[:-1], seeds[1:], strict=True)]
    assert same == [True, True, True, False] * 2
    np.testing.assert_array_equal(seeds[-1][:, 0], seeds[-1][:, 1])
    assert len(np.unique(seeds[-1])) == 3  # one for each pair
    kept = np.array_equal(noises[0], noises[1])
    assert kept == (make is estimators.nres)


def test_staggered_pairs_are_spread_over_the_episode():
    est = estimators.pes(counting, counting_init, num_truncations=8, num_directions=4)
    state = est.init(jnp.zeros(2), KEY)
    np.testing.assert_array_equal(state.length, [8, 6, 4, 2])
    _, state = run_episode(est, jnp.zeros(2), KEY, 8)
    np.testing.assert_array_equal(state.clock, [0, 2, 4, 6])
    np.testing.assert_array_equal(state.length, 8)


def test_the_loss_is_evaluated_as_often_as_is_counted():
    received = []

    def unroll(params, inner, key):
        jax.debug.callback(lambda x: received.append(float(x)), jnp.sum(params))
        return jnp.sum(params), inner

    est = estimators.nres(unroll, lambda key: jnp.zeros(()), num_truncations=2, num_directions=5)
    found, _ = run_episode(est, jnp.zeros(1), KEY, 3)
    jax.effects_barrier()
    assert len(received) == int(jnp.sum(found.info.num_queries)) == 3 * est.num_queries
    assert sum(received) == pytest.approx(0, abs=1e-5)  # antithetic
    assert len(set(received)) == 3 * 5 * 2 - 5 * 2  # new noise only in the first and third


def test_pairs_with_bad_losses_are_dropped_and_begin_anew():
    def unroll(params, inner, key):
        del key
        bad = (inner["pair"] == 1) & (params[0] > 0)  # one partner of the second pair
        loss = jnp.where(bad | inner["all_bad"], jnp.nan, 3 * params[0])
        return loss, {**inner, "count": inner["count"] + 1}

    def begin(key):
        del key
        zero = jnp.zeros((), jnp.int32)
        return {"pair": zero, "count": zero, "all_bad": jnp.zeros((), bool)}

    est = estimators.pes(unroll, begin, num_truncations=4, num_directions=3, stagger=False)
    params = jnp.zeros(1)
    state = est.init(params, KEY)
    marked = {**state.inner, "pair": jnp.stack([jnp.arange(3), jnp.arange(3)], 1)}
    found, after = est.estimate(params, KEY, state._replace(inner=marked))
    assert int(found.info.num_nonfinite) == 1
    np.testing.assert_array_equal(after.clock, [1, 0, 1])
    np.testing.assert_array_equal(after.inner["count"][:, 0], [1, 0, 1])
    np.testing.assert_array_equal(after.inner["pair"][:, 0], [0, 0, 2])  # the second one is new
    noise = np.asarray(after.noise)[[0, 2], 0]
    assert np.asarray(after.noise)[1, 0] == 0
    np.testing.assert_allclose(found.grad, [3 * np.mean(noise**2)], rtol=1e-4)
    assert np.isfinite(found.value)

    broken = {**state.inner, "all_bad": jnp.ones((3, 2), bool)}
    found, after = est.estimate(params, KEY, state._replace(inner=broken))
    assert int(found.info.num_nonfinite) == 6
    assert np.isnan(found.value)
    np.testing.assert_array_equal(found.grad, [0])
    np.testing.assert_array_equal(after.clock, 0)


def test_no_gradient_is_taken_and_it_compiles_once():
    @jax.custom_jvp
    def opaque(x):
        return jnp.sum(jnp.sign(x) * x)

    @opaque.defjvp
    def _raise(primals, tangents):
        raise AssertionError("the loss was differentiated")

    def unroll(params, inner, key, weight):
        del key
        traces.append(1)
        return weight * opaque(params["w"]), inner

    traces: list[int] = []
    est = estimators.pes(unroll, lambda key: jnp.zeros(2), num_truncations=3, num_directions=2)
    params = {"w": jnp.ones(3), "label": jnp.zeros((), jnp.int32)}
    state = est.init(params, KEY)
    results = []
    for step in (0, 0, 1):
        key = jax.random.fold_in(KEY, step)
        results.append(est.estimate(params, key, state, jnp.float32(step + 1))[0])
    assert len(traces) == 1
    chex.assert_trees_all_equal(results[0], results[1])
    assert np.any(results[0].grad["w"] != results[2].grad["w"])
    chex.assert_trees_all_equal_shapes_and_dtypes(results[0].grad, params)
    assert int(results[0].grad["label"]) == 0


def test_half_precision_and_mask():
    def unroll(params, inner, key):
        del key
        assert params["w"].dtype == jnp.float32
        return jnp.sum(params["w"]) + params["b"], inner

    params = {"w": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(())}
    options = {"num_truncations": 1, "num_directions": 2, "mask": {"w": True, "b": False}}
    est = estimators.nres(unroll, lambda key: jnp.zeros(()), **options)
    found, _ = est.estimate(params, KEY, est.init(params, KEY))
    assert found.grad["w"].dtype == jnp.bfloat16
    assert np.all(found.grad["w"] != 0)
    assert float(found.grad["b"]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_truncations": 0}, "num_truncations must be an integer >= 1, got 0"),
        ({"num_directions": 1.5}, "num_directions must be an integer >= 1, got 1.5"),
        ({"sigma": 0}, "sigma must be a finite number > 0, got 0"),
        ({"sigma": lambda count: 0.1}, "sigma must be a number"),
        ({"unroll": 3}, "unroll must be a function"),
        ({"inner_init": None}, "inner_init must be a function"),
    ],
)
def test_bad_configuration(changes, message):
    options = {"unroll": balance, "inner_init": at_rest, "num_truncations": 2} | changes
    with pytest.raises(ValueError, match=message):
        estimators.pes(**options)


@pytest.mark.parametrize(
    ("unroll", "message"),
    [
        (lambda params, inner, key: params, r"must return \(loss, inner\)"),
        (lambda params, inner, key: (inner, inner), "must return a real scalar loss"),
        (lambda params, inner, key: (params, inner[:2]), "must return an inner state like"),
        (lambda params, inner, key: (params, (inner, inner)), "must return an inner state like"),
    ],
)
def test_bad_unrolls(unroll, message):
    est = estimators.nres(unroll, lambda key: jnp.zeros(3), num_truncations=2, num_directions=1)
    state = est.init(jnp.zeros(()), KEY)
    with pytest.raises(ValueError, match=message):
        est.estimate(jnp.zeros(()), KEY, state)


def test_bad_calls():
    est = estimators.pes(balance, at_rest, num_truncations=2)
    with pytest.raises(TypeError, match="typed key"):
        est.init(THETA, jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match=r"state must be est.init\(params, key\)"):
        est.estimate(THETA, KEY, ())
    with pytest.raises(ValueError, match="nothing to perturb"):
        est.init(jnp.zeros((), jnp.int32), KEY)
