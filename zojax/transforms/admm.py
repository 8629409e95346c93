"""Linearised ADMM: a black-box loss and a penalty or a set whose proximal operator is known."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from zojax.errors import check_instance, check_positive
from zojax.estimation import estimate
from zojax.execution import vectorized
from zojax.types import Estimate, Estimator, Execution, Params, PRNGKey, State


class ADMMState(NamedTuple):
    """State of `admm`.

    Attributes:
      params: x.
      split: y, like A x.
      dual: multipliers lambda, like A x.
      count: steps taken, int32 of shape ().
      estimator_state: the estimator's own state.
    """

    params: Params
    split: Params
    dual: Params
    count: chex.Array
    estimator_state: State


class ADMMInfo(NamedTuple):
    """What a step of `admm` saw.

    Attributes:
      estimate: of the loss at x before the step.
      primal_residual: |A x - y|, shape ().
      dual_residual: rho |y - y before|, shape ().
    """

    estimate: Estimate
    primal_residual: chex.Array
    dual_residual: chex.Array


class ADMM(NamedTuple):
    """A method as a pair of pure functions.

    Attributes:
      init: `params -> ADMMState`.
      step: `(state, key, loss_fn, *args) -> (ADMMState, ADMMInfo)`.
    """

    init: Callable[[Params], ADMMState]
    step: Callable[..., tuple[ADMMState, ADMMInfo]]


def admm(
    est: Estimator,
    prox: Callable[[Params, Any], Params],
    *,
    rho: float,
    step_size: float | Callable[[chex.Array], Any],
    operator: Callable[[Params], Params] = lambda x: x,
    operator_norm: float = 1.0,
    execution: Execution | None = None,
) -> ADMM:
    """Minimises f(x) + r(A x), f by values only, r through its proximal operator.

    One step, with the x-step linearised so that it is explicit, alpha = eta rho |A|^2 + 1:

      x <- x - (eta / alpha) (g + A^T (rho (A x - y) - lambda)),  g an estimate of grad f
      y <- prox_{r / rho}(A x - lambda / rho)
      lambda <- lambda - rho (A x - y)

    y obeys the constraint or is sparse exactly, x follows it: report y (for A = identity). Queries
    per step: `est.num_queries(params)`.

    Args:
      est: an estimator.
      prox: `(v, step) -> argmin_y step r(y) + |y - v|^2 / 2`, e.g. `zojax.projections.prox_l1`
        with `step` times its weight, or a projection that ignores `step`.
      rho: penalty of the constraint, > 0.
      step_size: eta, a number or a schedule of the step count.
      operator: A, a linear function of the parameters, known (not a black box).
      operator_norm: its largest singular value or a bound on it.
      execution: how evaluations are run.

    Raises:
      ValueError: for `rho`, `step_size` or `operator_norm` that is not positive.

    Source: Liu et al. 2018 (ZOO-ADMM), arXiv 1710.07804.
    """
    check_instance("est", est, Estimator, "an estimator such as zojax.finite_difference(...)")
    check_positive("rho", rho)
    check_positive("step_size", step_size)
    check_positive("operator_norm", operator_norm)
    execution = vectorized() if execution is None else execution

    def init(params: Params) -> ADMMState:
        split = jax.tree.map(jnp.copy, operator(params))  # buffers of its own, to be donated
        dual = jax.tree.map(jnp.zeros_like, split)
        return ADMMState(params, split, dual, jnp.zeros((), jnp.int32), est.init(params))

    def step(
        state: ADMMState, key: PRNGKey, loss_fn: Callable[..., Any], *args: Any
    ) -> tuple[ADMMState, ADMMInfo]:
        x, y, dual = state.params, state.split, state.dual
        eta = step_size(state.count) if callable(step_size) else step_size
        rate = eta / (eta * rho * operator_norm**2 + 1)
        result, estimator_state = estimate(
            est, loss_fn, x, key, state.estimator_state, args=args, execution=execution
        )
        residual = jax.tree.map(jnp.subtract, operator(x), y)
        force = jax.tree.map(lambda r, m: rho * r - m, residual, dual)
        (pull,) = jax.linear_transpose(operator, x)(force)
        x = jax.tree.map(lambda p, g, t: p - (rate * (g + t)).astype(p.dtype), x, result.grad, pull)
        image = operator(x)
        new_y = prox(jax.tree.map(lambda a, m: a - m / rho, image, dual), 1 / rho)
        residual = jax.tree.map(jnp.subtract, image, new_y)
        dual = jax.tree.map(lambda m, r: m - rho * r, dual, residual)
        moved = jax.tree.map(jnp.subtract, new_y, y)
        info = ADMMInfo(result, optax.tree.norm(residual), rho * optax.tree.norm(moved))
        count = optax.safe_increment(state.count)
        return ADMMState(x, new_y, dual, count, estimator_state), info

    return ADMM(init, step)
