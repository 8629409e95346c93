"""Alternating descent and ascent on a saddle."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from zojax import trees
from zojax.errors import check_instance
from zojax.estimation import estimate
from zojax.execution import vectorized
from zojax.types import Estimator, Execution, Params, PRNGKey, State


class MinimaxState(NamedTuple):
    """State of `minimax`.

    Attributes:
      x: the minimising player's parameters.
      y: the maximising player's.
      x_state: estimator's and optimiser's state of x.
      y_state: of y.
      value: the loss as x saw it in the last step, shape (); NaN before the first.
    """

    x: Params
    y: Params
    x_state: tuple[State, optax.OptState]
    y_state: tuple[State, optax.OptState]
    value: chex.Array


class Minimax(NamedTuple):
    """A method as a pair of pure functions.

    Attributes:
      init: `(x, y) -> MinimaxState`.
      step: `(state, key, loss_fn, *args) -> MinimaxState`, with `loss_fn(x, y, *args)`.
    """

    init: Callable[[Params, Params], MinimaxState]
    step: Callable[..., MinimaxState]


def minimax(
    x_est: Estimator | None,
    x_optimizer: optax.GradientTransformation,
    y_est: Estimator | None,
    y_optimizer: optax.GradientTransformation,
    *,
    execution: Execution | None = None,
) -> Minimax:
    """Min over x, max over y of f(x, y): y climbs first, then x descends against the new y.

    Either player may be a black box (an estimator) or have true gradients (None: `jax.grad` in
    that argument alone, say for weights over known losses). Put a projection behind an optimiser
    (`zojax.projected`) to keep a player in its set. y should move faster than x. Queries per step:
    those of the two estimators, a true gradient counting as none. Call `step` inside `jit` or
    scan: outside, every call compiles anew.

    Args:
      x_est: estimator for the minimising player, or None.
      x_optimizer: its optax chain.
      y_est: estimator for the maximising player, or None.
      y_optimizer: its optax chain, as for a loss that is minimised: the sign is turned here.
      execution: how evaluations are run.

    Source: Liu et al. 2020 (ZO-Min-Max), arXiv 1909.13806.
    """
    for name, est in (("x_est", x_est), ("y_est", y_est)):
        if est is not None:
            check_instance(name, est, Estimator, "an estimator, or None for true gradients")
    execution = vectorized() if execution is None else execution
    x_tx, y_tx = map(optax.with_extra_args_support, (x_optimizer, y_optimizer))

    def start(est: Estimator | None, tx: Any, params: Params) -> tuple[State, optax.OptState]:
        return (() if est is None else est.init(params)), tx.init(params)

    def move(
        est: Estimator | None, tx: Any, loss: Any, params: Params, state: Any, key: PRNGKey
    ) -> tuple[Params, Any, chex.Array]:
        est_state, tx_state = state
        if est is None:
            value, grad = jax.value_and_grad(loss)(params)
        else:
            result, est_state = estimate(est, loss, params, key, est_state, execution=execution)
            value, grad = result.value, result.grad
        updates, tx_state = tx.update(grad, tx_state, params, value_fn=loss)
        return optax.apply_updates(params, updates), (est_state, tx_state), value

    def init(x: Params, y: Params) -> MinimaxState:
        value = jnp.full((), jnp.nan, jnp.float32)
        return MinimaxState(x, y, start(x_est, x_tx, x), start(y_est, y_tx, y), value)

    def step(
        state: MinimaxState, key: PRNGKey, loss_fn: Callable[..., Any], *args: Any
    ) -> MinimaxState:
        y_key, x_key = jax.random.split(key)
        loss_of_y = lambda y: -_as_float(loss_fn(state.x, y, *args))  # noqa: E731
        y, y_state, _ = move(y_est, y_tx, loss_of_y, state.y, state.y_state, y_key)
        loss_of_x = lambda x: loss_fn(x, y, *args)  # noqa: E731
        x, x_state, value = move(x_est, x_tx, loss_of_x, state.x, state.x_state, x_key)
        return MinimaxState(x, y, x_state, y_state, value.astype(jnp.float32))

    return Minimax(init, step)


def _as_float(value: Any) -> chex.Array:
    value = jnp.asarray(value)
    return value.astype(trees.point_dtype(value.dtype))
