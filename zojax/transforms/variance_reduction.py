"""Variance reduction over a finite sum: SVRG and SPIDER with estimated gradients."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from zojax.errors import check_at_least, check_instance
from zojax.estimation import estimate
from zojax.execution import vectorized
from zojax.keys import check_key
from zojax.types import Estimator, Execution, Params, PRNGKey


class VarianceReductionState(NamedTuple):
    """State of `svrg` and `spider`.

    Attributes:
      key: the key of the run; step t uses `fold_in(key, t)`.
      count: steps taken, int32 of shape ().
      num_queries: loss evaluations so far, of either loss, int32 of shape ().
      anchor: parameters the difference is taken against: those of the last snapshot (`svrg`) or of
        the step before (`spider`).
      gradient: estimate at the anchor: of the full loss (`svrg`), or the running one (`spider`).
      value: the last step's mean loss, shape (); NaN before the first.
    """

    key: PRNGKey
    count: chex.Array
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

    Queries: 2 q per step, q = `est.num_queries(params)`, of the batch loss, and those of
    `snapshot_est` of the full loss at every snapshot.

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

    def init(params: Params) -> VarianceReductionState:
        return VarianceReductionState(
            key=jnp.copy(key),
            count=jnp.zeros((), jnp.int32),
            num_queries=jnp.zeros((), jnp.int32),
            anchor=jax.tree.map(jnp.copy, params),
            gradient=jax.tree.map(jnp.zeros_like, params),
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

        def start() -> tuple[Params, Params, chex.Array, int]:
            result = gradient(at_snapshot, full_value_fn, params, step_key)
            return result.grad, params, result.value, at_snapshot.num_queries(params)

        def correct() -> tuple[Params, Params, chex.Array, int]:
            here = gradient(est, value_fn, params, step_key)
            there = gradient(est, value_fn, state.anchor, step_key)
            corrected = jax.tree.map(
                lambda g, h, v: g - h + v, here.grad, there.grad, state.gradient
            )
            anchor = params if method == "spider" else state.anchor
            return corrected, anchor, here.value, 2 * est.num_queries(params)

        def typed(branch: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> Any:
                grad, anchor, value, queries = branch()
                return grad, anchor, value.astype(jnp.float32), jnp.asarray(queries, jnp.int32)

            return run

        is_start = state.count % period == 0
        grad, anchor, value, queries = jax.lax.cond(is_start, typed(start), typed(correct))
        keeps = jnp.logical_or(is_start, method == "spider")
        kept = jax.tree.map(lambda new, old: jnp.where(keeps, new, old), grad, state.gradient)
        return grad, VarianceReductionState(
            key=state.key,
            count=optax.safe_increment(state.count),
            num_queries=state.num_queries + queries,
            anchor=anchor,
            gradient=kept,
            value=value,
        )

    return optax.GradientTransformationExtraArgs(init, update)
