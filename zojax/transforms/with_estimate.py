"""An estimate handed to optimisers that want value and slope, such as line searches."""

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


class WithEstimateState(NamedTuple):
    """State of `with_estimate`.

    Attributes:
      key: the key of the run; step t uses `fold_in(key, t)`.
      count: steps taken, int32 of shape ().
      estimator_state: the estimator's own state.
      inner: state of the transformation within.
      value: the loss at the parameters of the last step, shape (); NaN before the first.
      info: the last estimate's `EstimateInfo`.
    """

    key: PRNGKey
    count: chex.Array
    estimator_state: State
    inner: Any
    value: chex.Array
    info: EstimateInfo


def with_estimate(
    est: Estimator,
    key: PRNGKey,
    inner: optax.GradientTransformation,
    *,
    execution: Execution | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Runs a transformation on an estimate, with `value`, `grad` and `value_fn` as extra arguments.

    optax's backtracking line search asks for all three, and takes the slope from `grad`:

    >>> import jax, jax.numpy as jnp, optax, zojax
    >>> search = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20))
    >>> est = zojax.coordinate_difference()
    >>> tx = zojax.with_estimate(est, jax.random.key(0), search)
    >>> params = jnp.ones(3)
    >>> state = tx.init(params)
    >>> updates, state = tx.update(None, state, params, value_fn=lambda p: (p**2).sum())

    The slope is an estimate: where it is too steep the search shortens the step more than
    needed, where its sign is wrong it ends with the shortest step. Allow as many trials as it takes
    to get from the first step to a tiny one: 20 halvings are 1e-6, 20 times 0.8 only 0.01. The
    value is f(params), from the stencil's centre, or from one evaluation more. Queries: those
    of the estimate, this one, and one per trial. Put `zojax.accept_or_reject` behind the search to
    never go up. (optax's zoom line search differentiates the loss; it is no black box.)

    Args:
      est: an estimator; one with many directions, or `zojax.coordinate_difference`.
      key: typed key of the run.
      inner: what runs on the estimate.
      execution: how evaluations are run.

    Raises:
      TypeError: if `key` is not a typed key.
      ValueError: in `update`, if `params` or `value_fn` is missing.
    """
    check_instance("est", est, Estimator, "an estimator such as zojax.finite_difference(...)")
    check_key(key)
    execution = vectorized() if execution is None else execution
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> WithEstimateState:
        zero, nan = jnp.zeros((), jnp.int32), jnp.full((), jnp.nan, jnp.float32)
        info = EstimateInfo(zero, jnp.copy(zero), nan, jnp.copy(nan))
        # Python numbers in a state would make the second step compile again.
        within = jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), inner.init(params))
        return WithEstimateState(
            jnp.copy(key), jnp.copy(zero), est.init(params), within, jnp.copy(nan), info
        )

    def update(
        updates: Any,
        state: WithEstimateState,
        params: Params | None = None,
        *,
        value_fn: Callable[[Params], Any] | None = None,
        **extra_args: Any,
    ) -> tuple[Params, WithEstimateState]:
        if params is None or value_fn is None:
            raise ValueError(
                "with_estimate needs params and value_fn: "
                "tx.update(None, state, params, value_fn=...)"
            )
        estimator_state = state.estimator_state
        if est.guide is not None and updates is not None:
            estimator_state = est.guide(estimator_state, updates)
        step_key = jax.random.fold_in(state.key, state.count)
        result, estimator_state = estimate(
            est, value_fn, params, step_key, estimator_state, execution=execution
        )
        value = result.value
        if not est.stencil.has_center:
            value = jnp.asarray(value_fn(params)).astype(value.dtype)
        moved, inner_state = inner.update(
            result.grad,
            state.inner,
            params,
            value=value,
            grad=result.grad,
            value_fn=value_fn,
            **extra_args,
        )
        info = jax.tree.map(lambda old, new: new.astype(old.dtype), state.info, result.info)
        return moved, WithEstimateState(
            key=state.key,
            count=optax.safe_increment(state.count),
            estimator_state=estimator_state,
            inner=inner_state,
            value=value.astype(jnp.float32),
            info=info,
        )

    return optax.GradientTransformationExtraArgs(init, update)
