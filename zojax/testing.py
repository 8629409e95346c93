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

from zojax import implicit, trees
from zojax.directions import draw_range
from zojax.estimation import ask, estimate, tell
from zojax.execution import chunked
from zojax.types import Directions, Estimate, Estimator, Execution, Params

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
    n = 4 if fixed is None else fixed(params)

    def direction(noise: Any) -> chex.Array:
        return trees.ravel(implicit.materialise(directions.perturb(params, noise, 1.0)))

    def score(noise: Any) -> chex.Array:
        one = jax.tree.map(lambda x: x[None], noise)
        return trees.ravel(directions.combine(jnp.ones(1), one, params))

    def moments(key: chex.Array) -> tuple[chex.Array, chex.Array]:
        noises = draw_range(directions, key, params, 0, n, n)
        steps, scores = jax.vmap(direction)(noises), jax.vmap(score)(noises)
        return scores.mean(0), (scores.T @ steps / n).ravel()

    keys = jax.random.split(jax.random.key(0), num_replicates)
    means, products = _replicates(moments, keys)
    if fixed is None:  # a set that is walked through completely need not be centred
        assert_unbiased(means, np.zeros(dimension), f"{directions.name}: E[s]")
    moment = directions.moment(params) if directions.moment else np.eye(dimension)
    assert_unbiased(products, np.asarray(moment).ravel(), f"{directions.name}: E[s eps^T]")
    _check_draws(directions, params, n)


def _check_draws(directions: Directions, params: Params, n: int) -> None:
    """Same key same noise, in any chunking and parameter dtype; linear perturb and combine."""
    name, key = directions.name, jax.random.key(1)

    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    weights = jnp.linspace(-1.0, 2.0, n)

    @jax.jit
    def draws(key: Any, other: Any) -> tuple[Any, ...]:
        def draw(start: int, count: int, k: Any = key, of: Params = params) -> Any:
            return draw_range(directions, k, of, start, count, n)

        pieces = jax.tree.map(lambda *parts: jnp.concatenate(parts), draw(0, 1), draw(1, n - 1))
        return draw(0, n), pieces, draw(0, n, of=low), draw(0, n, k=other)

    @jax.jit
    def uses(noises: Any) -> tuple[Any, ...]:
        first = _item(noises, 0)
        moved = [
            implicit.materialise(directions.perturb(params, first, scale))
            for scale in (0.0, 1.0, -0.5)
        ]
        singles = [
            weights[i] * trees.ravel(directions.combine(jnp.ones(1), _row(noises, i), params))
            for i in range(n)
        ]
        return *moved, directions.combine(weights, noises, params), sum(singles)

    whole, joined, from_low, other = draws(key, jax.random.key(2))
    _assert_equal(whole, joined, f"{name}: noise depends on how directions are grouped")
    _assert_equal(whole, from_low, f"{name}: noise depends on the dtype of the parameters")
    if directions.fixed_number is None:
        pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(other), strict=True)
        differs = any(not np.array_equal(a, b) for a, b in pairs)
        assert differs, f"{name}: different keys give the same noise"

    still, step, back, total, one_by_one = uses(whole)
    _assert_equal(params, still, f"{name}: perturb with scale 0 moves the parameters")
    np.testing.assert_allclose(
        trees.ravel(back),
        -0.5 * trees.ravel(step),
        rtol=1e-5,
        atol=1e-6,
        err_msg=f"{name}: perturb",
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(total, params)
    np.testing.assert_allclose(
        trees.ravel(total), one_by_one, rtol=1e-4, atol=1e-4, err_msg=f"{name}: combine"
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

    def loss(p: Params, factor: Any = 1.0) -> chex.Array:
        return _underivable(jnp.vdot(trees.ravel(_floats(p)), slope)) * factor

    def run(k: chex.Array, factor: Any, execution: Execution | None = None) -> Estimate:
        state = est.init(params)
        return estimate(est, loss, params, k, state, args=(factor,), execution=execution)[0]

    # One program: an estimate at `key`, the same with losses that are all NaN, the replicates.
    keys = jnp.concatenate([jnp.stack([key, key]), jax.random.split(key, num_replicates)])
    factors = jnp.ones(len(keys)).at[1].set(jnp.nan)
    results = _replicates(lambda pair: run(*pair), (keys, factors))
    one, failed = _item(results, 0), _item(results, 1)
    chex.assert_trees_all_equal_shapes_and_dtypes(one.grad, params)
    grads = jax.vmap(trees.ravel)(_floats(results.grad))[2:]

    points = ask(est, params, key, est.init(params))
    told = _tell_points(est, params, key, points, loss)
    chunks = {f"chunked({size})": run(key, 1.0, chunked(size)) for size in (1, 3)}
    _check_same(est.name, one, {**chunks, "ask/tell": told})
    truth = np.asarray(slope * _perturbed(params, points))
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

    for leaf in jax.tree.leaves(failed.grad):
        assert not np.any(leaf), f"{est.name}: failed evaluations reach the gradient"
    assert np.isnan(failed.value), f"{est.name}: value must be NaN when every evaluation failed"
    assert failed.info.num_nonfinite == est.num_queries(params), f"{est.name}: num_nonfinite"


def _tell_points(
    est: Estimator, params: Params, key: Any, points: Params, loss: Callable[..., Any]
) -> Estimate:
    """Evaluates the points of `ask`, whose number must be the plan's."""
    counts = sorted({len(leaf) for leaf in jax.tree.leaves(points)})
    planned = est.num_queries(params)
    assert counts == [planned], f"{est.name}: plans {planned} queries, asks for {counts}"
    values = jax.jit(jax.vmap(loss))(points)
    return tell(est, params, key, est.init(params), values)[0]


def _check_same(name: str, reference: Estimate, others: dict[str, Estimate]) -> None:
    scale = float(jnp.abs(trees.ravel(_floats(reference.grad))).max())
    for execution, result in others.items():
        for a, b in zip(jax.tree.leaves(reference), jax.tree.leaves(result), strict=True):
            np.testing.assert_allclose(
                a, b, rtol=2e-3, atol=2e-4 * scale, err_msg=f"{name}: {execution} differs"
            )


def _perturbed(params: Params, points: Params) -> chex.Array:
    """1 for parameters on leaves the estimator perturbs, else 0, seen from the points it asks."""

    def moved(leaf: chex.Array, x: chex.Array) -> chex.Array:
        return jnp.full(leaf.shape, not np.array_equal(x, np.broadcast_to(leaf, x.shape)), float)

    return trees.ravel(jax.tree.map(moved, _floats(params), _floats(points)))


def _replicates(function: Callable[[Any], Any], keys: Any) -> Any:
    """Results for all keys, in a loop: one `vmap` over all takes three times as long to compile."""
    return jax.jit(lambda all_keys: jax.lax.map(function, all_keys))(keys)


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


def _item(results: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i], results)


def _assert_equal(a: Any, b: Any, message: str) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.array_equal(x, y), message
