"""An estimator as the first link of an optax chain."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from zojax.errors import check_instance
from zojax.estimation import estimate
from zojax.execution import vectorized
from zojax.keys import check_key
from zojax.types import EstimateInfo, Estimator, Execution, Params, PRNGKey, State


class ZerothOrderState(NamedTuple):
    """State of `as_gradient_transformation`.

    Attributes:
      key: the key of the run; step t uses `fold_in(key, t)`. Checkpoint it as
        `jax.random.key_data(key)`.
      count: steps taken, int32 of shape ().
      num_queries: loss evaluations so far, int32 of shape (); stays at 2^31 - 1 when it gets
        there.
      estimator_state: the estimator's own state.
      value: the last estimate's value, shape (); NaN before the first step.
      info: the last estimate's `EstimateInfo`.
    """

    key: PRNGKey
    count: chex.Array
    num_queries: chex.Array
    estimator_state: State
    value: chex.Array
    info: EstimateInfo


def as_gradient_transformation(
    est: Estimator, key: PRNGKey, *, execution: Execution | None = None
) -> optax.GradientTransformationExtraArgs:
    """Makes an estimator the source of gradients of an optax chain.

    It comes first and ignores incoming updates (pass None), unless the estimator takes a surrogate
    gradient as a guide (`zojax.guided`); the loss is the extra argument `value_fn`:

    >>> import jax, jax.numpy as jnp, optax, zojax
    >>> est = zojax.finite_difference(num_directions=8, sigma=0.1)
    >>> tx = optax.chain(zojax.as_gradient_transformation(est, jax.random.key(0)), optax.adam(0.1))
    >>> params = jnp.ones(3)
    >>> state = tx.init(params)
    >>> updates, state = tx.update(None, state, params, value_fn=lambda p: (p**2).sum())

    Call `update` inside `jit` (or scan): outside, a fresh lambda compiles every time.
    To accumulate gradients put `optax.MultiSteps` behind it:
    `optax.chain(zo, optax.MultiSteps(adam, 4).gradient_transformation())`.

    Args:
      est: an estimator.
      key: typed key of the run.
      execution: `zojax.vectorized()` (default), `zojax.chunked(size)`.

    Returns:
      A transformation whose `update(updates, state, params, *, value_fn)` returns the estimated
      gradient.

    Raises:
      TypeError: if `key` is not a typed key.
      ValueError: for a key that is not threefry or what is not an execution; in `update`, if
        `params` or `value_fn` is missing.
    """
    check_instance("est", est, Estimator, "an estimator such as zojax.finite_difference(...)")
    execution = vectorized() if execution is None else execution
    check_instance("execution", execution, Execution, "zojax.vectorized() or zojax.chunked(size)")
    check_key(key)

    def init(params: Params) -> ZerothOrderState:
        # Every field is a buffer of its own, the key a copy, so that the state can be donated.
        return ZerothOrderState(
            key=jnp.copy(key),
            count=_zero(),
            num_queries=_zero(),
            estimator_state=est.init(params),
            value=_nan(),
            info=EstimateInfo(_zero(), _zero(), _nan(), _nan()),
        )

    def update(
        updates: Any,
        state: ZerothOrderState,
        params: Params | None = None,
        *,
        value_fn: Callable[[Params], Any] | None = None,
        **extra_args: Any,
    ) -> tuple[Params, ZerothOrderState]:
        del extra_args
        if params is None:
            raise ValueError("params must be passed: tx.update(None, state, params, value_fn=...)")
        if value_fn is None:
            raise ValueError(
                "value_fn must be passed, a function params -> loss: "
                "tx.update(None, state, params, value_fn=lambda p: loss_fn(p, *batch))"
            )
        estimator_state = state.estimator_state
        if est.guide is not None and updates is not None:
            estimator_state = est.guide(estimator_state, updates)
        result, estimator_state = estimate(
            est,
            value_fn,
            params,
            jax.random.fold_in(state.key, state.count),
            estimator_state,
            execution=execution,
        )
        return result.grad, ZerothOrderState(
            key=state.key,
            count=optax.safe_increment(state.count),
            num_queries=saturating_add(state.num_queries, result.info.num_queries),
            estimator_state=estimator_state,
            value=result.value.astype(jnp.float32),
            info=jax.tree.map(lambda old, new: new.astype(old.dtype), state.info, result.info),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _zero() -> chex.Array:
    return jnp.zeros((), jnp.int32)


def _nan() -> chex.Array:
    return jnp.full((), jnp.nan, jnp.float32)


def saturating_add(total: chex.Array, more: chex.Array) -> chex.Array:
    """Adds counts that stay at the largest integer once they get there.

    Args:
      total: the count so far, int32.
      more: what comes on top, int32, >= 0.
    """
    largest = jnp.iinfo(jnp.int32).max
    return jnp.where(total > largest - more, largest, total + more)
