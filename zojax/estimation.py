"""Driving functions: `estimate`, `value_and_grad`, and `ask`/`tell` for losses outside JAX."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax import implicit
from zojax.errors import check_instance, is_traced
from zojax.execution import auto_size, chunked, vectorized
from zojax.keys import check_key
from zojax.trees import point_dtype
from zojax.types import (
    Estimate,
    EstimateInfo,
    Estimator,
    Evaluations,
    Execution,
    LossFn,
    Params,
    PRNGKey,
    State,
)


def estimate(
    est: Estimator,
    loss_fn: LossFn,
    params: Params,
    key: PRNGKey,
    state: State,
    *,
    args: tuple[Any, ...] = (),
    execution: Execution | None = None,
) -> tuple[Estimate, State]:
    """Estimates the gradient of `loss_fn` at `params` from function values, everything explicit.

    Called outside `jit` it compiles itself, once per estimator, loss function (by identity) and
    shapes: keep the objects, do not rebuild them every step. What the loss closes over is read at
    that moment; what changes belongs into `args`.

    Args:
      est: an estimator, e.g. `zojax.finite_difference(...)`.
      loss_fn: `loss_fn(params, *args) -> scalar`, any real or integer dtype; needs no derivative.
      params: the parameters, any pytree.
      key: typed key of shape (); the same key gives the same directions.
      state: `est.init(params)` at first, then what the last call returned.
      args: further arguments of the loss, shared by all points: one batch, one dropout key. Pass
        arrays here, not by closure: closed-over arrays become constants of the program.
      execution: `zojax.vectorized()` (default), `zojax.chunked(size)`.

    Returns:
      `(Estimate, state)`; the estimate costs `est.num_queries(params)` loss evaluations.

    Raises:
      TypeError: if `key` is not a typed key.
      ValueError: for a key that is not threefry, nothing to perturb, or a loss that is not a
        scalar.
    """
    check_instance("est", est, Estimator, "an estimator such as zojax.finite_difference(...)")
    execution = vectorized() if execution is None else execution
    check_instance("execution", execution, Execution, "zojax.vectorized() or zojax.chunked(size)")
    result, new_state, _ = _run(est, loss_fn, execution, False, params, key, state, args)
    return result, new_state


def value_and_grad(
    loss_fn: LossFn,
    est: Estimator,
    *,
    execution: Execution | None = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """Like `jax.value_and_grad`, with a key and no derivative.

    The value costs no extra query: it is the mean of the evaluated losses for `central` and
    `one_point`, the loss at the parameters for `forward`.

    Args:
      loss_fn: `loss_fn(params, *args) -> scalar`; with `has_aux`, `(scalar, aux)`.
      est: an estimator without state.
      execution: `zojax.vectorized()` (default), `zojax.chunked(size)`.
      has_aux: return the auxiliary output of the unperturbed evaluation; needs a stencil with
        a centre (`forward`).

    Returns:
      `(params, key, *args) -> (value, grad)`, or `((value, aux), grad)`; compiled by itself.

    Raises:
      ValueError: if the estimator needs state (use `zojax.estimate`), or `has_aux` is asked of a
        stencil that does not evaluate the centre.
    """
    check_instance("est", est, Estimator, "an estimator such as zojax.finite_difference(...)")
    if est.is_stateful:
        raise ValueError(
            f"{est.name} needs state or a step count, which value_and_grad cannot carry: use "
            "zojax.estimate or zojax.as_gradient_transformation"
        )
    if has_aux and not est.stencil.has_center:
        raise ValueError(
            f"has_aux needs a stencil that evaluates the parameters themselves, but "
            f"{est.stencil.name} does not: use zojax.forward"
        )
    execution = vectorized() if execution is None else execution
    check_instance("execution", execution, Execution, "zojax.vectorized() or zojax.chunked(size)")

    def value_and_grad_fn(params: Params, key: PRNGKey, *args: Any) -> Any:
        state = est.init(params)
        result, _, aux = _run(est, loss_fn, execution, has_aux, params, key, state, args)
        return ((result.value, aux) if has_aux else result.value), result.grad

    value_and_grad_fn.__doc__ = loss_fn.__doc__
    return value_and_grad_fn


def choose_chunk(
    est: Estimator,
    loss_fn: LossFn,
    params: Params,
    key: PRNGKey,
    *,
    args: tuple[Any, ...] = (),
) -> Execution:
    """Finds the fastest chunk size on this model and device, and returns the execution to use.

    What `chunked("auto")` does by itself whenever a program is traced, done once: compiles and
    times a few sizes, leaves out those that do not fit into memory, prints what it chose.

    Args:
      est: an estimator.
      loss_fn: `loss_fn(params, *args) -> scalar`.
      params: the parameters.
      key: any typed key.
      args: further arguments of the loss.

    Returns:
      `zojax.chunked(size)`.

    Raises:
      TypeError: if `key` is not a typed key.
      ValueError: for a key that is not threefry, nothing to perturb, or a loss that is not a
        scalar.
    """
    check_key(key)
    check_instance("args", args, tuple, "a tuple of arguments, such as (batch,)")
    loss = loss_fn if est.kernel is not None else _checked(loss_fn, False)
    return chunked(auto_size(est, loss, params, key, est.init(params), args, False))


def ask(est: Estimator, params: Params, key: PRNGKey, state: State) -> Params:
    """Returns the points at which the loss is to be evaluated, for a loss that is not JAX.

    Args:
      est: an estimator.
      params: the parameters.
      key: typed key; give the same one to `tell`.
      state: the estimator's state, `est.init(params)` at first.

    Returns:
      The structure of `params` with a leading axis of length `est.num_queries(params)`: first the
      parameters themselves if the stencil has a centre, then direction by direction.

    Raises:
      TypeError: if `key` is not a typed key.
      ValueError: for a key that is not threefry, or nothing to perturb.
    """
    check_key(key)
    return _ask(est, params, key, state)


def tell(
    est: Estimator, params: Params, key: PRNGKey, state: State, values: Any
) -> tuple[Estimate, State]:
    """Turns the losses at the points of `ask` into an estimate.

    The directions are drawn again from `key`, so only the values need to come back. An evaluation
    that failed is reported as NaN: it is dropped with its antithetic partner and counted.

    Args:
      est: the estimator given to `ask`.
      params: the parameters given to `ask`.
      key: the key given to `ask`.
      state: the state given to `ask`.
      values: losses of shape (num_queries,), in the order of `ask`.

    Returns:
      `(Estimate, state)`, as `zojax.estimate`.

    Raises:
      ValueError: if the values are not `est.num_queries(params)` real numbers.
    """
    check_key(key)
    try:
        values = jnp.asarray(values)
    except TypeError as error:
        raise ValueError("values must be numbers; report a failed evaluation as NaN") from error
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise ValueError(f"values must be real, got dtype {values.dtype}")
    expected = (est.num_queries(params),)
    if values.shape != expected:
        raise ValueError(
            f"values must have shape {expected}, one loss per point of ask, got {values.shape}"
        )
    return _tell(est, params, key, state, _as_losses(values))


def _run(
    est: Estimator,
    loss_fn: LossFn,
    execution: Execution,
    has_aux: bool,
    params: Params,
    key: PRNGKey,
    state: State,
    args: tuple[Any, ...],
) -> tuple[Estimate, State, Any]:
    """Checks the arguments and estimates, in the caller's trace or compiled by itself."""
    check_key(key)
    check_instance("args", args, tuple, "a tuple of arguments, such as (batch,)")
    if any(map(is_traced, jax.tree.leaves((params, key, state, args)))):
        return _estimate(est, loss_fn, execution, has_aux, params, key, state, args)
    if not isinstance(loss_fn, Hashable):
        raise ValueError(
            f"loss_fn must be hashable to be compiled once, got {type(loss_fn).__name__}: pass a "
            "function, or call inside jax.jit"
        )
    return _jitted_estimate(est, loss_fn, execution, has_aux, params, key, state, args)


def _estimate(
    est: Estimator,
    loss_fn: LossFn,
    execution: Execution,
    has_aux: bool,
    params: Params,
    key: PRNGKey,
    state: State,
    args: tuple[Any, ...],
) -> tuple[Estimate, State, Any]:
    if est.kernel is not None:
        return execution.run(est, loss_fn, params, key, state, args, False), state, None
    loss = _checked(loss_fn, has_aux)
    evaluations = execution.run(est, loss, params, key, state, args, has_aux)
    result = _summarise(est, params, state, evaluations)
    return result, est.update(state, result, evaluations), evaluations.aux


_jitted_estimate = jax.jit(_estimate, static_argnums=(0, 1, 2, 3))


@functools.partial(jax.jit, static_argnums=0)
def _ask(est: Estimator, params: Params, key: PRNGKey, state: State) -> Params:
    n = est.num_directions(params)
    noises = est.draw(key, params, state, 0, n, n)
    offsets = jnp.asarray(est.stencil.offsets, jnp.float32)

    def along(noise: Any) -> Params:
        return jax.vmap(
            lambda offset: implicit.materialise(est.point(params, state, noise, offset))
        )(offsets)

    points = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.vmap(along)(noises))
    if not est.stencil.has_center:
        return points
    return jax.tree.map(
        lambda leaf, x: jnp.concatenate([jnp.asarray(leaf, x.dtype)[None], x]), params, points
    )


@functools.partial(jax.jit, static_argnums=0)
def _tell(
    est: Estimator, params: Params, key: PRNGKey, state: State, values: chex.Array
) -> tuple[Estimate, State]:
    n = est.num_directions(params)
    center, values = (values[0], values[1:]) if est.stencil.has_center else (None, values)
    values = values.reshape(n, -1)
    noises = est.draw(key, params, state, 0, n, n)
    adjusted = values if est.adjust is None else est.adjust(values, noises, params, state)
    weights, valid = est.coefficients(adjusted, center, state)
    total = est.combine(weights, noises, params, state)
    evaluations = Evaluations(values, center, total, jnp.sum(valid))
    result = _summarise(est, params, state, evaluations)
    return result, est.update(state, result, evaluations)


def _as_losses(values: chex.Array) -> chex.Array:
    """Losses as floats: at least float32, whatever the loss returned (0-1 errors are integers)."""
    return values.astype(point_dtype(values.dtype))


def _checked(loss_fn: LossFn, has_aux: bool) -> Callable[..., Any]:
    """Wraps the user's loss: a clear error unless it returns a scalar."""

    def loss(params: Params, *args: Any) -> Any:
        output = _call(loss_fn, params, args)
        if has_aux and not (isinstance(output, tuple) and len(output) == 2):
            raise ValueError(f"with has_aux, loss_fn must return (loss, aux), got {type(output)}")
        value, aux = output if has_aux else (output, None)
        value = _check_scalar(value)
        return (value, aux) if has_aux else value

    return loss


def _call(loss_fn: LossFn, params: Params, args: tuple[Any, ...]) -> Any:
    try:
        return implicit.call(loss_fn, params, *args)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        error.add_note(
            "zojax traced loss_fn with JAX and it asked for concrete numbers. If the loss is not "
            "a JAX function, evaluate it yourself between zojax.ask and zojax.tell."
        )
        raise


def _check_scalar(value: Any) -> chex.Array:
    if not isinstance(value, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)):
        raise ValueError(
            f"loss_fn must return a scalar, got {type(value).__name__}"
            + (" (pass has_aux=True if it returns (loss, aux))" if type(value) is tuple else "")
        )
    value = jnp.asarray(value)
    real = any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    if value.shape != () or not real:
        raise ValueError(
            f"loss_fn must return a real scalar of shape (), got shape {value.shape} of dtype "
            f"{value.dtype}"
        )
    return _as_losses(value)


def _summarise(est: Estimator, params: Params, state: State, evaluations: Evaluations) -> Estimate:
    """Divides the sum over directions and describes the losses it came from."""
    values, center = evaluations.values, evaluations.center
    finite = jnp.isfinite(values)
    kept = jnp.where(finite, values, 0)
    count = jnp.sum(finite, dtype=values.dtype)
    mean = jnp.sum(kept) / count  # NaN when every evaluation failed
    std = jnp.sqrt(jnp.sum(jnp.where(finite, (kept - mean) ** 2, 0)) / count)
    num_failed = jnp.sum(~finite)
    complete = jnp.all(finite, axis=1)
    if center is not None:
        num_failed = num_failed + jnp.sum(~jnp.isfinite(center))
        complete = complete & jnp.isfinite(center)
    # Finite losses whose difference over sigma is not finite are as unusable.
    num_overflown = (jnp.sum(complete) - evaluations.num_valid) * values.shape[1]
    info = EstimateInfo(
        num_queries=jnp.asarray(est.num_queries(params), jnp.int32),
        num_nonfinite=(num_failed + num_overflown).astype(jnp.int32),
        loss_std=std,
        signal_to_noise=_signal_to_noise(est, values, center, std),
    )
    grad = est.finish(evaluations.total, evaluations.num_valid, params, state)
    if center is not None:
        mean = jnp.where(jnp.isfinite(center), center, jnp.nan)
    return Estimate(mean, grad, info)


def _signal_to_noise(
    est: Estimator, values: chex.Array, center: chex.Array | None, std: chex.Array
) -> chex.Array:
    """Root mean square of the differences over the rounding error of one loss value."""
    finite = jnp.all(jnp.isfinite(values), axis=1)
    kept = jnp.where(finite[:, None], values, 0)
    count = jnp.sum(finite, dtype=values.dtype)
    rounding = jnp.sqrt(jnp.sum(kept**2) / (count * values.shape[1]))
    rounding = rounding * float(np.finfo(values.dtype).eps)
    if not est.stencil.is_difference:
        return std / rounding
    weights = jnp.asarray(est.stencil.weights, values.dtype)
    difference = jnp.sum(kept * weights[None, :], axis=1)
    if center is not None:
        difference = difference + est.stencil.center_weight * jnp.where(finite, center, 0)
    return jnp.sqrt(jnp.sum(difference**2) / count) / rounding
