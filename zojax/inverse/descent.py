"""The inner minimiser: an optax optimiser on one fixed surface, fed by any gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from zojax.errors import check_at_least, check_instance, check_that
from zojax.estimation import estimate
from zojax.types import Estimator, Params, PRNGKey, Scalar, State


class Advance(NamedTuple):
    """When a surface has given what it can, so that the next one may come.

    Attributes:
      gradient_norm: stop once the l2 norm of the gradient is below this.
      relative_fall: stop once the loss of a window's last step is not below (1 - relative_fall)
        times that of the window before.
      window: steps per window; optimisers with momentum need more than one.
    """

    gradient_norm: float = 1e-6
    relative_fall: float = 1e-3
    window: int = 10


class Descent(NamedTuple):
    """How to descend on one surface; the optimiser's state is always fresh at the start.

    Attributes:
      optimizer: any optax optimiser. One with a line search (`optax.lbfgs`) works with exact
        gradients; the evaluations of its search are not counted.
      num_steps: gradient steps, the most of them where `advance` is given.
      estimator: where gradients come from: an estimator, e.g. `zojax.coordinate_difference()`
        (latents are small, so 2 k queries give nearly the exact gradient), for which the loss needs
        no derivative; None for back-propagation.
      advance: when to stop early; None for never.
    """

    optimizer: optax.GradientTransformation
    num_steps: int
    estimator: Estimator | None = None
    advance: Advance | None = None


class Descended(NamedTuple):
    """Where a descent ended.

    Attributes:
      x: the last iterate.
      num_steps: gradient steps made, shape ().
      num_queries: loss evaluations made, shape (): those of the estimator, or one per exact
        gradient.
    """

    x: Params
    num_steps: Scalar
    num_queries: Scalar


class _Carry(NamedTuple):
    x: Params
    optimizer_state: Any
    estimator_state: State
    step: Scalar
    reference: Scalar  # the loss at the end of the window before
    is_done: Scalar


def check_descent(name: str, descent: Any) -> None:
    """Raises unless the settings make sense.

    Args:
      name: the argument's name, for the message.
      descent: the argument.

    Raises:
      ValueError: if it is no `Descent`, or one of its fields is out of range.
    """
    check_instance(name, descent, Descent, "an inverse.Descent(optimizer, num_steps)")
    check_instance(
        f"{name}.optimizer", descent.optimizer, optax.GradientTransformation, "an optax optimiser"
    )
    check_at_least(f"{name}.num_steps", descent.num_steps, 1)
    if descent.estimator is not None:
        hint = "an estimator such as zojax.coordinate_difference(), or None for exact gradients"
        check_instance(f"{name}.estimator", descent.estimator, Estimator, hint)
    if descent.advance is not None:
        check_instance(f"{name}.advance", descent.advance, Advance, "an inverse.Advance(...)")
        norm, fall, window = descent.advance
        check_that(f"{name}.advance.gradient_norm", norm, ">= 0", lambda v: v >= 0)
        check_that(f"{name}.advance.relative_fall", fall, "in [0, 1)", lambda v: 0 <= v < 1)
        check_at_least(f"{name}.advance.window", window, 1)


def descend(
    descent: Descent,
    loss_fn: Callable[[Params], Scalar],
    x0: Params,
    key: PRNGKey,
    ball: tuple[Params, float] | None = None,
) -> Descended:
    """Minimises one loss from one start.

    A step whose gradient is not finite leaves the iterate where it is.

    Args:
      descent: the settings.
      loss_fn: `loss_fn(x) -> scalar`.
      x0: the start, a pytree.
      key: typed key, for the estimator's directions.
      ball: centre and radius of the l2 ball that every iterate is projected onto; None for none.

    Raises:
      ValueError: for settings out of range, and for a line search without exact gradients.
    """
    check_descent("descent", descent)
    transform = optax.with_extra_args_support(descent.optimizer)
    est = descent.estimator

    def step(carry: _Carry) -> _Carry:
        value, grad, estimator_state, extra = _gradient(est, loss_fn, carry, key)
        norm = optax.tree.norm(grad)
        try:
            updates, state = transform.update(grad, carry.optimizer_state, carry.x, **extra)
        except TypeError as error:
            if "value_fn" not in str(error) or est is None:
                raise
            raise ValueError(
                "an optimiser with a line search needs exact gradients: choose another optimiser, "
                "or estimator=None"
            ) from error
        moved = _projected(optax.apply_updates(carry.x, updates), ball)
        is_usable = jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(moved))
        x, state = jax.tree.map(
            lambda new, old: jnp.where(is_usable, new, old),
            (moved, state),
            (carry.x, carry.optimizer_state),
        )
        count = carry.step + 1
        is_done, reference = _has_settled(descent.advance, count, value, norm, carry.reference)
        return _Carry(x, state, estimator_state, count, reference, is_done)

    carry = _Carry(
        x=x0,
        optimizer_state=transform.init(x0),
        estimator_state=est.init(x0) if est is not None else (),
        step=jnp.int32(0),
        reference=jnp.float32(jnp.inf),
        is_done=jnp.bool_(False),
    )
    if descent.advance is None:
        carry = jax.lax.fori_loop(0, descent.num_steps, lambda _, c: step(c), carry)
    else:
        carry = jax.lax.while_loop(lambda c: (c.step < descent.num_steps) & ~c.is_done, step, carry)
    per_step = 1 if est is None else est.num_queries(x0)
    return Descended(carry.x, carry.step, carry.step * per_step)


def _gradient(
    est: Estimator | None, loss_fn: Callable[[Params], Scalar], carry: _Carry, key: PRNGKey
) -> tuple[Scalar, Params, State, dict[str, Any]]:
    """Value, gradient, the estimator's state, and what the optimiser may want besides."""
    if est is None:
        value, grad = jax.value_and_grad(loss_fn)(carry.x)
        return value, grad, (), {"value": value, "grad": grad, "value_fn": loss_fn}
    step_key = jax.random.fold_in(key, carry.step)
    result, state = estimate(est, loss_fn, carry.x, step_key, carry.estimator_state)
    # No value_fn: a line search would differentiate it.
    return result.value, result.grad, state, {"value": result.value, "grad": result.grad}


def _has_settled(
    advance: Advance | None, step: Scalar, value: Scalar, norm: Scalar, reference: Scalar
) -> tuple[chex.Array, chex.Array]:
    """Whether to stop, and the loss that the next window is compared with."""
    if advance is None:
        return jnp.bool_(False), reference
    value = value.astype(reference.dtype)
    is_end = step % advance.window == 0
    is_flat = is_end & ~(value < (1 - advance.relative_fall) * reference)
    is_done = (norm < advance.gradient_norm) | is_flat
    return is_done, jnp.where(is_end, value, reference)


def _projected(x: Params, ball: tuple[Params, float] | None) -> Params:
    if ball is None:
        return x
    center, radius = ball
    offset = jax.tree.map(jnp.subtract, x, center)
    norm = optax.tree.norm(offset)
    shrink = jnp.minimum(1.0, radius / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
    return jax.tree.map(lambda c, o: c + shrink.astype(o.dtype) * o, center, offset)
