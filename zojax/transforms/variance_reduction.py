"""Variance reduction over a finite sum: SVRG and SPIDER with estimated gradients."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from zojax import trees
from zojax.errors import check_at_least, check_instance
from zojax.estimation import estimate
from zojax.estimators.finite_difference import cast_gradient
from zojax.execution import vectorized
from zojax.keys import check_key
from zojax.transforms.as_gradient_transformation import saturating_add
from zojax.types import Estimator, Execution, Params, PRNGKey


class VarianceReductionState(NamedTuple):
    """State of `svrg` and `spider`.

    Attributes:
      key: the key of the run; step t uses `fold_in(key, t)`.
      count: steps taken, int32 of shape ().
      phase: steps since the last full estimate, int32 of shape (); 0 asks for one.
      num_queries: loss evaluations so far, of either loss, int32 of shape (); saturates.
      anchor: parameters the difference is taken against: those of the last snapshot (`svrg`) or of
        the step before (`spider`).
      gradient: estimate at the anchor: of the full loss (`svrg`), or the running one (`spider`);
        float32, floating-point leaves only.
      value: the last step's mean loss, shape (); NaN before the first, and after a step in which
        every evaluation failed (which moved nothing).
    """

    key: PRNGKey
    count: chex.Array
    phase: chex.Array
    num_queries: chex.Array
    anchor: Params
    gradient: Params
    value: chex.Array


def svrg(
    est: Estimator,
    key: PRNGKey,
    *,
    period: int,
    snapshot_est: Estimator | None = None,
    execution: Execution | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Stochastic variance-reduced gradient: g_B(x) - g_B(x~) + g(x~), by values only.

    Every `period` steps the parameters become the snapshot x~ and the gradient of the full loss
    there is estimated. In between, a mini-batch estimate at x is corrected by the estimate at x~
    *along the same directions on the same batch*: batch noise and direction noise cancel as far
    as x is close to x~. The first link of a chain:
    `tx.update(None, state, params, value_fn=batch_loss, full_value_fn=full_loss)`.

    Queries: those of `snapshot_est`, of the full loss, in a step that takes a snapshot; 2 q of the
    batch loss in every other step, q = `est.num_queries(params)`.

    Args:
      est: an estimator without state, for the batch loss.
      key: typed key of the run.
      period: steps between snapshots, at least 1.
      snapshot_est: an estimator without state, for the full loss; `est` by default. Its error stays
        for a whole period: use more directions, or `zojax.coordinate_difference`.
      execution: how evaluations are run.

    Raises:
      TypeError: if `key` is not a typed key.
      ValueError: for `period` < 1 or a stateful estimator; in `update`, if an argument is missing.

    Source: Liu et al. 2018 (ZO-SVRG), arXiv 1805.10367.
    """
    return _variance_reduced("svrg", est, key, period, snapshot_est, execution)


def spider(
    est: Estimator,
    key: PRNGKey,
    *,
    period: int,
    snapshot_est: Estimator | None = None,
    execution: Execution | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SPIDER: v <- g_B(x_t) - g_B(x_{t-1}) + v, started anew every `period` steps.

    As `svrg`, but the correction is against the step before instead of the snapshot: the
    differences are smaller, and their errors add up until the next start. Same call, same queries.

    Args:
      est: an estimator without state, for the batch loss.
      key: typed key of the run.
      period: steps between estimates of the full loss, at least 1.
      snapshot_est: an estimator without state, for the full loss; `est` by default.
      execution: how evaluations are run.

    Raises:
      TypeError: if `key` is not a typed key.
      ValueError: for `period` < 1 or a stateful estimator; in `update`, if an argument is missing.

    Source: Fang et al. 2018 (SPIDER), arXiv 1807.01695.
    """
    return _variance_reduced("spider", est, key, period, snapshot_est, execution)


def _variance_reduced(
    method: Literal["svrg", "spider"],
    est: Estimator,
    key: PRNGKey,
    period: int,
    snapshot_est: Estimator | None,
    execution: Execution | None,
) -> optax.GradientTransformationExtraArgs:
    check_key(key)
    check_at_least("period", period, 1)
    at_snapshot = est if snapshot_est is None else snapshot_est
    for name, part in (("est", est), ("snapshot_est", at_snapshot)):
        check_instance(name, part, Estimator, "an estimator such as zojax.finite_difference(...)")
        if part.is_stateful:
            raise ValueError(f"{name} must have no state, got {part.name}")
    execution = vectorized() if execution is None else execution

    def gradient(which: Estimator, loss: Any, params: Params, step_key: PRNGKey) -> Any:
        return estimate(which, loss, params, step_key, (), execution=execution)[0]

    def wide(tree: Params) -> Params:
        return jax.tree.map(lambda x: x.astype(jnp.float32), trees.partition(tree, None)[0])

    def init(params: Params) -> VarianceReductionState:
        return VarianceReductionState(
            key=jnp.copy(key),
            count=jnp.zeros((), jnp.int32),
            phase=jnp.zeros((), jnp.int32),
            num_queries=jnp.zeros((), jnp.int32),
            anchor=jax.tree.map(jnp.copy, params),
            gradient=jax.tree.map(jnp.zeros_like, wide(params)),
            value=jnp.full((), jnp.nan, jnp.float32),
        )

    def update(
        updates: Any,
        state: VarianceReductionState,
        params: Params | None = None,
        *,
        value_fn: Callable[[Params], Any] | None = None,
        full_value_fn: Callable[[Params], Any] | None = None,
        **extra_args: Any,
    ) -> tuple[Params, VarianceReductionState]:
        del updates, extra_args
        if params is None or value_fn is None or full_value_fn is None:
            raise ValueError(
                f"{method} needs params, value_fn (the batch's loss) and full_value_fn: "
                "tx.update(None, state, params, value_fn=..., full_value_fn=...)"
            )
        step_key = jax.random.fold_in(state.key, state.count)

        def start() -> Any:
            result = gradient(at_snapshot, full_value_fn, params, step_key)
            fresh = wide(result.grad)
            return fresh, (params, fresh), result.value, at_snapshot.num_queries(params)

        def correct() -> Any:
            here = gradient(est, value_fn, params, step_key)
            there = gradient(est, value_fn, state.anchor, step_key)
            corrected = jax.tree.map(
                lambda g, h, v: g - h + v, wide(here.grad), wide(there.grad), state.gradient
            )
            kept = (params, corrected) if method == "spider" else (state.anchor, state.gradient)
            value = here.value + 0 * there.value  # NaN if either failed altogether
            return corrected, kept, value, 2 * est.num_queries(params)

        def safely(branch: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> Any:
                grad, kept, value, queries = branch()
                is_good = jnp.isfinite(value)
                # A step in which everything failed goes nowhere and is forgotten.
                grad = jax.tree.map(lambda g: jnp.where(is_good, g, 0), grad)
                old = (state.anchor, state.gradient)
                kept = jax.tree.map(lambda new, x: jnp.where(is_good, new, x), kept, old)
                value = jnp.where(is_good, value, jnp.nan).astype(jnp.float32)
                return grad, kept, value, jnp.asarray(queries, jnp.int32)

            return run

        is_start = state.phase == 0
        grad, (anchor, kept), value, queries = jax.lax.cond(
            is_start, safely(start), safely(correct)
        )
        # A snapshot that failed is taken again.
        failed_start = is_start & ~jnp.isfinite(value)
        moving, rest = trees.partition(params, None)
        typed = jax.tree.map(lambda g, p: cast_gradient(g, p.dtype), grad, moving)
        return trees.merge(typed, jax.tree.map(jnp.zeros_like, rest)), VarianceReductionState(
            key=state.key,
            count=optax.safe_increment(state.count),
            phase=jnp.where(failed_start, 0, (state.phase + 1) % period),
            num_queries=saturating_add(state.num_queries, queries),
            anchor=anchor,
            gradient=kept,
            value=value,
        )

    return optax.GradientTransformationExtraArgs(init, update)
