"""Estimators that remember: a past loss as baseline, a past gradient as control variate."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from zojax import trees
from zojax.errors import check_instance, check_that, is_traced
from zojax.estimators.finite_difference import cast_gradient
from zojax.implicit import materialise
from zojax.types import Estimate, Estimator, Evaluations, Noise, Params, PRNGKey, State

_AN_ESTIMATOR = "an estimator such as zojax.finite_difference(...)"


class ValueBaselineState(NamedTuple):
    """State of `value_baseline`.

    Attributes:
      baseline: the last step's mean loss, shape ().
      inner: the state of the estimator within.
    """

    baseline: chex.Array
    inner: State


def value_baseline(est: Estimator, initial: float = 0.0) -> Estimator:
    """Subtracts the last step's mean loss from every loss: a baseline that costs no query.

    Unbiased whatever the baseline is, because it does not depend on this step's directions: for a
    linear loss and Gaussian directions the relative mean squared error of `one_point` is
    (d + 1) / n + d (f - b)^2 / (n sigma^2 |grad|^2). It removes most of the variance where the loss
    moves little from step to step; a difference stencil needs none. Stateful.

    Args:
      est: an estimator with the `one_point` stencil that preserves the scale.
      initial: baseline of the first step, in loss units.

    Raises:
      ValueError: for another stencil, where the baseline would cancel, or a shaping that removes
        the scale.
    """
    check_instance("est", est, Estimator, _AN_ESTIMATOR)
    is_plain = est.preserves_scale and not est.is_global and est.adjust is None
    if est.stencil.is_difference or not is_plain:
        raise ValueError(
            f"est must take no difference and keep the scale of the losses (zojax.one_point with "
            f"zojax.identity), got {est.name}"
        )

    def adjust(values: chex.Array, noises: Noise, params: Params, state: State) -> chex.Array:
        return values - state.baseline.astype(values.dtype)

    def update(state: State, estimate: Estimate, evaluations: Evaluations) -> State:
        value = estimate.value.astype(jnp.float32)
        baseline = jnp.where(jnp.isfinite(value), value, state.baseline)
        return ValueBaselineState(baseline, est.update(state.inner, estimate, evaluations))

    def init(params: Params) -> State:
        return ValueBaselineState(jnp.asarray(initial, jnp.float32), est.init(params))

    return _around(est)._replace(
        name=f"value_baseline({est.name})", init=init, adjust=adjust, update=update
    )


class ControlVariateState(NamedTuple):
    """State of `control_variate`.

    Attributes:
      direction: what the gradient is expected to be, like the parameters, float32.
      inner: the state of the estimator within.
    """

    direction: Params
    inner: State


def control_variate(est: Estimator, decay: float | None = None) -> Estimator:
    """Estimates only what a past gradient m does not explain: m + mean_i (D_i - m . eps_i) s_i.

    m is an exponential moving average of the estimates so far. Unbiased for any m that is fixed
    before the directions are drawn; for a linear loss with gradient g and a stencil that takes a
    difference, the relative mean squared error is c |g - m|^2 / |g|^2, c that of `est` alone
    ((d + 1) / n for Gaussian directions). So it pays where the gradient changes slowly, and costs
    where it turns around. The error of m itself follows e' = (decay^2 + (1 - decay)^2 c) e, so a
    short memory of noisy estimates explodes; the default 1 - decay = 1 / (1 + c) makes it fall the
    fastest. Takes O(n d) time and, in a chunk of size k, k d numbers more. Stateful. No query of
    its own.

    Args:
      est: an estimator of the gradient itself.
      decay: of the moving average, in [0, 1); None for the best one under a gradient that stays.

    Raises:
      ValueError: for an estimator that does not estimate the gradient itself, or `decay` outside
        [0, 1); in `init`, for a decay with which the error would grow without bound.

    Source: the past-direction baseline of Ha et al. 2019, arXiv 1910.05268.
    """
    check_instance("est", est, Estimator, _AN_ESTIMATOR)
    if not est.preserves_scale or est.adjust is not None:
        raise ValueError(f"est must preserve the scale (shaping identity), got {est.name}")
    if decay is not None:
        check_that("decay", decay, "in [0, 1)", lambda x: 0 <= x < 1)
    offsets = jnp.asarray(est.stencil.offsets, jnp.float32)

    def floats(tree: Params) -> Params:
        return trees.partition(tree, None)[0]

    def error_alone(params: Params) -> float:
        if est.linear_error is not None:
            return est.linear_error(params)
        return trees.size(floats(params)) / est.num_directions(params)

    def init(params: Params) -> State:
        error = error_alone(params)
        if decay is not None and not is_traced(decay):
            lowest = max(0.0, (error - 1) / (error + 1))
            if decay < lowest:
                raise ValueError(
                    f"decay={decay!r} would let the error grow without bound here (one estimate "
                    f"has a relative error of {error:.3g}): use at least {lowest:.4f}, or None"
                )
        zeros = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.float32), floats(params))
        return ControlVariateState(zeros, est.init(params))

    def adjust(values: chex.Array, noises: Noise, params: Params, state: State) -> chex.Array:
        origin = jax.tree.map(jnp.zeros_like, params)

        def explained(noise: Noise) -> chex.Array:
            step = floats(materialise(est.point(origin, state.inner, noise, 1.0)))
            return jnp.vdot(trees.ravel(step), trees.ravel(state.direction), precision="highest")

        along = jax.vmap(explained)(noises)
        return values - (along[:, None] * offsets[None, :]).astype(values.dtype)

    def finish(total: Params, num_valid: chex.Array, params: Params, state: State) -> Params:
        grad = est.finish(total, num_valid, params, state.inner)
        selected, rest = trees.partition(grad, None)
        # A step in which everything failed is no step, not one along the past.
        known = jax.tree.map(
            lambda g, m: cast_gradient(
                g.astype(jnp.float32) + jnp.where(num_valid > 0, m, 0), g.dtype
            ),
            selected,
            state.direction,
        )
        return trees.merge(known, rest)

    def update(state: State, estimate: Estimate, evaluations: Evaluations) -> State:
        share = 1 / (1 + error_alone(estimate.grad)) if decay is None else 1 - decay
        gain = jnp.where(evaluations.num_valid > 0, share, 0.0)
        mixed = jax.tree.map(
            lambda m, g: m + gain * (g.astype(jnp.float32) - m),
            state.direction,
            floats(estimate.grad),
        )
        return ControlVariateState(mixed, est.update(state.inner, estimate, evaluations))

    return _around(est)._replace(
        name=f"control_variate({est.name})",
        init=init,
        adjust=adjust,
        finish=finish,
        update=update,
    )


def _around(est: Estimator) -> Estimator:
    """The estimator with its state one level down."""
    guide = est.guide

    def draw(
        key: PRNGKey, params: Params, state: State, start: int, count: int, alignment: int
    ) -> Noise:
        return est.draw(key, params, state.inner, start, count, alignment)

    radius = est.sigma
    return est._replace(
        is_stateful=True,
        # What is remembered changes the error of the estimate.
        linear_error=None,
        sigma=None if radius is None else lambda state: radius(state.inner),
        draw=draw,
        point=lambda params, state, noise, offset: est.point(params, state.inner, noise, offset),
        coefficients=lambda values, center, state: est.coefficients(values, center, state.inner),
        combine=lambda weights, noises, params, state: est.combine(
            weights, noises, params, state.inner
        ),
        finish=lambda total, num_valid, params, state: est.finish(
            total, num_valid, params, state.inner
        ),
        guide=None
        if guide is None
        else lambda state, surrogate: state._replace(inner=guide(state.inner, surrogate)),
    )
