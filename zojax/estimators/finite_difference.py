"""The general estimator: directions x stencil x shaping."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from zojax import trees
from zojax.directions import draw_range, gaussian
from zojax.errors import check_at_least, check_instance, check_positive
from zojax.shaping import identity
from zojax.stencils import central
from zojax.types import (
    Directions,
    Estimate,
    Estimator,
    Evaluations,
    Noise,
    Params,
    PRNGKey,
    Shaping,
    State,
    Stencil,
)


class FiniteDifferenceState(NamedTuple):
    """State of an estimator whose sigma follows a schedule or whose directions adapt.

    Attributes:
      count: steps taken, int32 of shape ().
      directions: state of the directions' `Adaptation`, () if they have none.
    """

    count: chex.Array
    directions: State = ()


def finite_difference(
    *,
    directions: Directions = gaussian(),  # noqa: B008  (immutable)
    stencil: Stencil = central,
    num_directions: int | None = 64,
    sigma: float | chex.Array | Callable[[chex.Array], Any] = 0.02,
    shaping: Shaping = identity,
    mask: trees.Mask | None = None,
) -> Estimator:
    """Estimates a gradient from differences of the loss along random directions.

    The estimate is (1 / n) sum_i D_i s(eps_i), with D_i the stencil's difference quotient along
    direction eps_i and s its score. With identity shaping its expectation is the gradient of a
    smoothed loss, or differs from grad f by O(sigma^2) (the directions' docstrings say which); it
    is unbiased on a linear loss for every sigma and n. Its cosine to the gradient is about
    sqrt(n / (n + d + 1)) for d parameters: a small cosine is normal.

    Queries per estimate: 2 n (`central`), n + 1 (`forward`), n (`one_point`).

    >>> import jax, zojax
    >>> est = zojax.finite_difference(num_directions=8, sigma=0.1)
    >>> value, grad = zojax.value_and_grad(lambda x: (x**2).sum(), est)(
    ...     jax.numpy.ones(3), jax.random.key(0))

    Args:
      directions: a direction distribution, e.g. `zojax.rademacher()`.
      stencil: `zojax.central`, `zojax.forward` or `zojax.one_point`.
      num_directions: n; None where the distribution fixes it.
      sigma: smoothing radius in parameter units: the standard deviation of the perturbation of
        one coordinate. A number, a traced scalar, or an optax schedule of the step count (the
        estimator is then stateful) that stays above zero.
      shaping: e.g. `zojax.centered_rank`; every shaping but identity changes the scale.
      mask: which leaves are perturbed; see `zojax.trees.resolve_mask`. The others get zero
        gradients. Leaves that are not floating point are never perturbed.

    Returns:
      The estimator.

    Raises:
      ValueError: for `num_directions` < 1, `sigma` <= 0, or parts that do not go together.
    """
    check_positive("sigma", sigma)
    _check_parts(directions, stencil, shaping, num_directions)
    adaptation = directions.adaptation
    is_stateful = callable(sigma) or adaptation is not None

    def count_directions(params: Params) -> int:
        selected, _ = trees.partition(params, mask)
        if num_directions is not None:
            return num_directions
        return directions.fixed_number(selected)  # type: ignore[misc]

    def count_queries(params: Params) -> int:
        return count_directions(params) * len(stencil.offsets) + stencil.has_center

    def init(params: Params) -> State:
        trees.resolve_mask(params, mask)
        if not is_stateful:
            return ()
        selected, _ = trees.partition(params, mask)
        adapted = () if adaptation is None else adaptation.init(selected)
        return FiniteDifferenceState(jnp.zeros((), jnp.int32), adapted)

    def check_state(state: State) -> FiniteDifferenceState:
        if not isinstance(state, FiniteDifferenceState):
            raise ValueError(f"state must be est.init(params) or its successor, got {state!r}")
        return state

    def current_directions(state: State) -> Directions:
        if adaptation is None:
            return directions
        return adaptation.bind(check_state(state).directions)

    def current_sigma(state: State) -> Any:
        return sigma(check_state(state).count) if callable(sigma) else sigma

    def draw(
        key: PRNGKey, params: Params, state: State, start: Any, count: int, alignment: int
    ) -> Noise:
        selected, _ = trees.partition(params, mask)
        n = count_directions(params)
        return draw_range(current_directions(state), key, selected, start, count, n, alignment)

    def point(params: Params, state: State, noise: Noise, offset: Any) -> Params:
        selected, rest = trees.partition(params, mask)
        moved = current_directions(state).perturb(selected, noise, offset * current_sigma(state))
        return trees.merge(moved, rest)

    def coefficients(
        values: chex.Array, center: chex.Array | None, state: State
    ) -> tuple[chex.Array, chex.Array]:
        return _coefficients(stencil, shaping, current_sigma(state), values, center)

    def combine(weights: chex.Array, noises: Noise, params: Params, state: State) -> Params:
        selected, _ = trees.partition(params, mask)
        return current_directions(state).combine(weights, noises, selected)

    def finish(total: Params, num_valid: chex.Array, params: Params, state: State) -> Params:
        del state
        selected, rest = trees.partition(params, mask)
        if directions.fixed_number is not None:
            num_valid = jnp.asarray(count_directions(params))
        scale = 1 / jnp.maximum(num_valid, 1).astype(jnp.float32)
        grad = jax.tree.map(lambda x, leaf: cast_gradient(x * scale, leaf.dtype), total, selected)
        return trees.merge(grad, jax.tree.map(jnp.zeros_like, rest))

    def update(state: State, estimate: Estimate, evaluations: Evaluations) -> State:
        del evaluations
        if not is_stateful:
            return state
        adapted = state.directions
        if adaptation is not None:
            adapted = adaptation.update(adapted, trees.partition(estimate.grad, mask)[0])
        return FiniteDifferenceState(state.count + 1, adapted)

    def linear_error(params: Params) -> float:
        selected, _ = trees.partition(params, mask)
        n = count_directions(params)
        error = directions.linear_error(selected, n)  # type: ignore[misc]
        # What of a coefficient does not follow the derivative is noise along its direction; of a
        # single direction it is nothing but scale.
        size = max(error + 1 / n, trees.size(selected) / n)
        lost = 1 / shaping.efficiency - 1  # type: ignore[operator]
        return error + size * lost * (1 - 1 / n)

    # Without a difference the error depends on the loss itself.
    has_law = stencil.is_difference and directions.linear_error and shaping.efficiency

    to_guide = None if adaptation is None else adaptation.guide

    def guide(state: State, surrogate: Params) -> State:
        selected, _ = trees.partition(surrogate, mask)
        guided = to_guide(state.directions, selected)  # type: ignore[misc]
        return state._replace(directions=guided)

    return Estimator(
        name=f"{directions.name}/{stencil.name}/{shaping.name}",
        stencil=stencil,
        is_global=shaping.is_global,
        is_stateful=is_stateful,
        # Where E[s eps^T] is not the identity it is not the gradient that is estimated.
        preserves_scale=shaping.preserves_scale and directions.moment is None,
        init=init,
        num_directions=count_directions,
        num_queries=count_queries,
        draw=draw,
        point=point,
        coefficients=coefficients,
        combine=combine,
        finish=finish,
        update=update,
        guide=None if to_guide is None else guide,
        linear_error=linear_error if has_law else None,
        sigma=current_sigma,
    )


def _check_parts(
    directions: Directions, stencil: Stencil, shaping: Shaping, num_directions: int | None
) -> None:
    """Raises ValueError unless the parts are what they should be and go together."""
    check_instance("directions", directions, Directions, "a distribution such as zojax.gaussian()")
    check_instance("stencil", stencil, Stencil, "zojax.central, zojax.forward or zojax.one_point")
    check_instance("shaping", shaping, Shaping, "a shaping such as zojax.identity")
    if directions.fixed_number is None:
        check_at_least("num_directions", num_directions, 1)
    elif num_directions is not None:
        raise ValueError(
            f"num_directions must be None for {directions.name}, which fixes it, "
            f"got {num_directions!r}"
        )
    if directions.fixed_number is not None and not stencil.is_difference:
        raise ValueError(
            f"stencil must be zojax.central or zojax.forward with {directions.name}, whose "
            f"directions are not centred, got {stencil.name}"
        )
    if shaping.needs_difference and not stencil.is_difference:
        raise ValueError(
            f"shaping {shaping.name} compares points, stencil {stencil.name} has nothing to "
            "compare: use zojax.central or zojax.forward"
        )


def _coefficients(
    stencil: Stencil,
    shaping: Shaping,
    sigma: Any,
    values: chex.Array,
    center: chex.Array | None,
) -> tuple[chex.Array, chex.Array]:
    """Turns losses (m, k) into the weights (m,) of the scores, and says which are usable."""
    valid = jnp.all(jnp.isfinite(values), axis=1)
    if center is not None:
        valid = valid & jnp.isfinite(center)
    values, center = shaping.on_values(values, center, valid)
    # A failed point takes its antithetic partner with it: the direction counts as not drawn.
    values = jnp.where(valid[:, None], values, 0)
    # A sum, not a dot product: an accelerator may round the operands of a dot product.
    difference = jnp.sum(values * jnp.asarray(stencil.weights, values.dtype)[None, :], axis=1)
    if center is not None:
        difference = difference + stencil.center_weight * jnp.where(valid, center, 0)
    derivatives = difference / jnp.asarray(sigma, difference.dtype)
    shaped = shaping.on_derivatives(derivatives, valid).astype(jnp.float32)
    # Finite losses may still overflow here, or meet a schedule that has reached sigma = 0.
    valid = valid & jnp.isfinite(shaped)
    return jnp.where(valid, shaped, 0), valid


def cast_gradient(grad: chex.Array, dtype: Any) -> chex.Array:
    """Casts to a leaf's dtype; what float16 cannot hold becomes its largest number.

    Args:
      grad: float32 or wider.
      dtype: a floating-point dtype.
    """
    limits = jnp.finfo(dtype)
    if limits.bits < jnp.finfo(grad.dtype).bits:
        grad = jnp.clip(grad, float(limits.min), float(limits.max))
    return grad.astype(dtype)
