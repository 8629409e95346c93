"""Checks that a direction distribution or an estimator keeps the library's promises.

The suite runs them over everything zojax ships; run them on your own parts too. They use fixed
keys, small shapes and tolerances computed from the measured spread.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax import trees
from zojax.directions import draw_range
from zojax.estimation import ask, estimate, tell
from zojax.execution import chunked, vectorized
from zojax.types import Directions, Estimator, Params

MAX_STANDARD_ERRORS = 5.0
"""How far a mean may be from its expectation. Over 1,000 numbers, chance exceeds this once in
about 2,000 keys; the keys are fixed, so a test that passes keeps passing."""


def assert_unbiased(
    samples: chex.Array, expected: chex.Array, what: str, *, rounding: float = 1e-5
) -> None:
    """Asserts that the mean of independent replicates equals its expectation.

    The tolerance is `MAX_STANDARD_ERRORS` standard errors of each coordinate's mean, plus
    rounding, which is all there is where the samples have no spread.

    Args:
      samples: independent replicates, shape (R, m).
      expected: shape (m,).
      what: what was measured, for the message.
      rounding: rounding error of a mean, relative to the largest expected magnitude (or 1).

    Raises:
      AssertionError: naming the worst coordinate and the fitted scale, e.g. "scale 0.50" for an
        estimate that has lost a factor 2.
    """
    drawn, truth = np.asarray(samples, np.float64), np.asarray(expected, np.float64)
    mean = drawn.mean(axis=0)
    error = drawn.std(axis=0, ddof=1) / np.sqrt(len(drawn))
    allowance = rounding * max(1.0, float(np.abs(truth).max()))
    excess = np.abs(mean - truth) / (error + allowance / MAX_STANDARD_ERRORS)
    worst = int(np.argmax(excess))
    if excess[worst] <= MAX_STANDARD_ERRORS:
        return
    norm = float(truth @ truth)
    scale = f"scale {mean @ truth / norm:.2f}, " if norm > 0 else ""
    raise AssertionError(
        f"{what} is biased: {scale}coordinate {worst} has mean {mean[worst]:.4g} +- "
        f"{error[worst]:.2g}, expected {truth[worst]:.4g} ({excess[worst]:.1f} standard errors)"
    )


def check_directions(directions: Directions, *, num_replicates: int = 4096) -> None:
    """Checks a direction distribution: E[s] = 0, E[s eps^T] = M, and how it draws.

    Args:
      directions: the distribution.
      num_replicates: independent estimates the moments are averaged over.

    Raises:
      AssertionError: saying which promise is broken.
    """
    params = {"bias": jnp.zeros(2), "kernel": jnp.zeros((3, 4))}
    dimension = trees.size(params)
    fixed = directions.fixed_number
    n = 4 if fixed is None else fixed(dimension)

    def direction(noise: Any) -> chex.Array:
        return trees.ravel(directions.perturb(params, noise, 1.0))

    def score(noise: Any) -> chex.Array:
        one = jax.tree.map(lambda x: x[None], noise)
        return trees.ravel(directions.combine(jnp.ones(1), one, params))

    def moments(key: chex.Array) -> tuple[chex.Array, chex.Array]:
        noises = draw_range(directions, key, params, 0, n, n)
        steps, scores = jax.vmap(direction)(noises), jax.vmap(score)(noises)
        return scores.mean(0), (scores.T @ steps / n).ravel()

    keys = jax.random.split(jax.random.key(0), num_replicates)
    means, products = jax.jit(jax.vmap(moments))(keys)
    if fixed is None:  # a set that is walked through completely need not be centred
        assert_unbiased(means, np.zeros(dimension), f"{directions.name}: E[s]")
    moment = directions.moment(params) if directions.moment else np.eye(dimension)
    assert_unbiased(products, np.asarray(moment).ravel(), f"{directions.name}: E[s eps^T]")
    _check_draws(directions, params, n)


def _check_draws(directions: Directions, params: Params, n: int) -> None:
    """Same key same noise, in any chunking and parameter dtype; linear perturb and combine."""
    name, key = directions.name, jax.random.key(1)

    def draw(start: int, count: int, of: Params = params, with_key: Any = key) -> Any:
        return draw_range(directions, with_key, of, start, count, n)

    whole = draw(0, n)
    pieces = [draw(0, 1), draw(1, n - 1)]
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *pieces)
    _assert_equal(whole, joined, f"{name}: noise depends on how directions are grouped")
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    _assert_equal(whole, draw(0, n, low), f"{name}: noise depends on the dtype of the parameters")
    if directions.fixed_number is None:
        other = jax.tree.leaves(draw(0, n, with_key=jax.random.key(2)))
        differs = any(
            not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(whole), other, strict=True)
        )
        assert differs, f"{name}: different keys give the same noise"

    first = jax.tree.map(lambda x: x[0], whole)
    still = directions.perturb(params, first, 0.0)
    _assert_equal(params, still, f"{name}: perturb with scale 0 moves the parameters")
    step, half = (trees.ravel(directions.perturb(params, first, s)) for s in (1.0, -0.5))
    np.testing.assert_allclose(half, -0.5 * step, rtol=1e-5, atol=1e-6, err_msg=f"{name}: perturb")
    weights = jnp.linspace(-1.0, 2.0, n)
    total = directions.combine(weights, whole, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(total, params)
    singles = [
        weights[i] * trees.ravel(directions.combine(jnp.ones(1), _row(whole, i), params))
        for i in range(n)
    ]
    np.testing.assert_allclose(
        trees.ravel(total), sum(singles), rtol=1e-4, atol=1e-4, err_msg=f"{name}: combine"
    )


def check_estimator(est: Estimator, *, num_replicates: int = 1024) -> None:
    """Checks an estimator against the contracts that can be seen from outside.

    On a linear loss its mean is the gradient (or, if it does not preserve the scale, points
    along it); the same estimate comes out vectorized, chunked and by ask/tell; it makes exactly
    the queries it plans; failed evaluations cannot reach the parameters; structure and dtypes of
    the gradient are those of the parameters; no derivative of the loss is taken.

    Args:
      est: the estimator; its mask, if any, must accept the parameters
        `{"bias": (2,), "kernel": (3, 4)}`.
      num_replicates: independent estimates the mean is taken over.

    Raises:
      AssertionError: saying which promise is broken; "scale 0.50" for a lost factor 2.
    """
    key = jax.random.key(0)
    params = {"bias": jnp.array([0.5, -1.0]), "kernel": jnp.ones((3, 4)), "steps": jnp.arange(3)}
    slope = jnp.linspace(0.5, 1.5, trees.size(_floats(params)))

    def loss(p: Params) -> chex.Array:
        return _underivable(jnp.vdot(trees.ravel(_floats(p)), slope))

    def run(k: chex.Array, execution: Any = None, loss_fn: Callable[..., Any] = loss) -> Any:
        return estimate(est, loss_fn, params, k, est.init(params), execution=execution)[0]

    _check_executions(est, params, key, loss, run)
    grads = jax.jit(jax.vmap(lambda k: trees.ravel(_floats(run(k).grad))))(
        jax.random.split(key, num_replicates)
    )
    truth = np.asarray(slope * _perturbed(est, params))
    one = run(key)
    if est.preserves_scale:
        # A loss value is rounded; its error over the typical difference is 1 / signal_to_noise.
        rounding = 1e-5 + 4 / float(one.info.signal_to_noise)
        assert_unbiased(grads, truth, f"{est.name} on a linear loss", rounding=rounding)
    else:
        along = np.asarray(grads) @ truth
        error = along.std(ddof=1) / np.sqrt(len(along))
        assert along.mean() > MAX_STANDARD_ERRORS * error, (
            f"{est.name} does not point along the gradient: mean {along.mean():.3g} +- {error:.2g}"
        )

    chex.assert_trees_all_equal_shapes_and_dtypes(one.grad, params)
    failed = run(key, loss_fn=lambda p: jnp.nan * loss(p))
    for leaf in jax.tree.leaves(failed.grad):
        assert not np.any(leaf), f"{est.name}: failed evaluations reach the gradient"
    assert np.isnan(failed.value), f"{est.name}: value must be NaN when every evaluation failed"
    assert failed.info.num_nonfinite == est.num_queries(params), f"{est.name}: num_nonfinite"


def _check_executions(
    est: Estimator, params: Params, key: Any, loss: Callable[..., Any], run: Callable[..., Any]
) -> None:
    """vectorized = chunked = ask/tell, and the number of points is the plan's."""
    state = est.init(params)
    points = ask(est, params, key, state)
    count = {len(leaf) for leaf in jax.tree.leaves(points)}
    planned = est.num_queries(params)
    assert count == {planned}, f"{est.name}: plans {planned} queries, asks for {count}"

    reference = run(key, vectorized())
    results = {f"chunked({size})": run(key, chunked(size)) for size in (1, 3)}
    results["ask/tell"], _ = tell(est, params, key, state, jax.jit(jax.vmap(loss))(points))
    scale = float(jnp.abs(trees.ravel(_floats(reference.grad))).max())
    for name, result in results.items():
        for a, b in zip(jax.tree.leaves(reference), jax.tree.leaves(result), strict=True):
            np.testing.assert_allclose(
                a, b, rtol=2e-3, atol=2e-4 * scale, err_msg=f"{est.name}: {name} differs"
            )


def _perturbed(est: Estimator, params: Params) -> chex.Array:
    """1 for parameters on leaves the estimator perturbs, else 0, seen from the points it asks."""
    points = _floats(ask(est, params, jax.random.key(3), est.init(params)))

    def moved(leaf: chex.Array, x: chex.Array) -> chex.Array:
        return jnp.full(leaf.shape, not np.array_equal(x, np.broadcast_to(leaf, x.shape)), float)

    return trees.ravel(jax.tree.map(moved, _floats(params), points))


@jax.custom_jvp
def _underivable(x: chex.Array) -> chex.Array:
    return x


@_underivable.defjvp
def _raise_on_derivative(primals: Any, tangents: Any) -> Any:
    raise AssertionError("a derivative of the loss was taken: only values may be used")


def _floats(tree: Params) -> Params:
    return trees.partition(tree, None)[0]


def _row(noises: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i : i + 1], noises)


def _assert_equal(a: Any, b: Any, message: str) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.array_equal(x, y), message
