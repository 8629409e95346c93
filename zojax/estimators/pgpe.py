"""Parameter-exploring policy gradients: the smoothing radius of every parameter is learnt."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from zojax import trees
from zojax.directions import draw_range, gaussian
from zojax.errors import check_at_least, check_instance, check_positive, check_that
from zojax.estimators.finite_difference import cast_gradient
from zojax.shaping import identity, leave_one_out
from zojax.stencils import central
from zojax.types import (
    Estimate,
    Estimator,
    Evaluations,
    Noise,
    Params,
    PRNGKey,
    Shaping,
    State,
)

_LARGEST_CHANGE = 0.2  # of a radius in one step, relative


class PGPEState(NamedTuple):
    """State of `pgpe`.

    Attributes:
      sigma: smoothing radius of every perturbed parameter, shape (d,), in parameter units.
    """

    sigma: chex.Array


def pgpe(
    *,
    num_directions: int = 64,
    sigma: float = 0.1,
    sigma_learning_rate: float = 0.1,
    shaping: Shaping = identity,
    mask: trees.Mask | None = None,
) -> Estimator:
    """Antithetic Gaussian perturbations whose standard deviation is learnt per parameter.

    With z_i = s g_i: the gradient (1/n) sum (f_i^+ - f_i^-) / 2 z_i / s^2 is the exact gradient of
    the loss smoothed by N(0, diag s^2), and
    (1/n) sum ((f_i^+ + f_i^-) / 2 - b) (z_i^2 - s^2) / s^3 is that smoothed loss's gradient in s,
    with the mean over the other directions as baseline b. s descends it by plain steps that change
    no radius by more than 20 %. Stateful. Queries: 2 n.

    Args:
      num_directions: antithetic pairs n; s is learnt from n >= 2.
      sigma: the first radius of every parameter, in parameter units.
      sigma_learning_rate: step size of s; 0 keeps it.
      shaping: of the values, e.g. `zojax.centered_rank`; with any but identity both gradients
        lose their scale.
      mask: which leaves are perturbed.

    Raises:
      ValueError: for `num_directions` < 1, `sigma` <= 0, `sigma_learning_rate` < 0, or what is not
        a shaping of values.

    Source: Sehnke et al. 2010 (Neural Networks 23(4)).
    """
    check_at_least("num_directions", num_directions, 1)
    check_positive("sigma", sigma)
    if callable(sigma):
        raise ValueError(f"sigma must be a number, which is then learnt, got {sigma!r}")
    check_that("sigma_learning_rate", sigma_learning_rate, ">= 0", lambda x: 0 <= x < float("inf"))
    check_instance("shaping", shaping, Shaping, "a shaping such as zojax.centered_rank")
    if shaping.needs_difference or shaping is leave_one_out:
        raise ValueError(
            f"shaping must act on values and take no baseline, which is there, got {shaping.name}"
        )
    directions = gaussian()

    def selected(params: Params) -> Params:
        return trees.partition(params, mask)[0]

    def init(params: Params) -> State:
        return PGPEState(jnp.full((trees.size(selected(params)),), sigma, jnp.float32))

    def draw(
        key: PRNGKey, params: Params, state: State, start: Any, count: int, alignment: int
    ) -> Noise:
        return draw_range(
            directions, key, selected(params), start, count, num_directions, alignment
        )

    def point(params: Params, state: State, noise: Noise, offset: Any) -> Params:
        moving, rest = trees.partition(params, mask)
        step = trees.split(state.sigma * noise, moving)
        return trees.merge(trees.add_scaled(moving, step, offset), rest)

    def coefficients(
        values: chex.Array, center: chex.Array | None, state: State
    ) -> tuple[chex.Array, chex.Array]:
        del center, state
        valid = jnp.all(jnp.isfinite(values), axis=1)
        values, _ = shaping.on_values(values, None, valid)
        kept = jnp.where(valid[:, None], values, 0)
        means = jnp.mean(kept, axis=1)
        num_others = jnp.sum(valid, dtype=means.dtype) - 1
        others = (jnp.sum(means) - means) / jnp.maximum(num_others, 1)
        alone = num_others < 1
        excess = jnp.where(valid & ~alone, means - others, 0)
        difference = jnp.sum(kept * jnp.asarray(central.weights, kept.dtype)[None, :], axis=1)
        weights = jnp.stack([difference, excess], axis=1).astype(jnp.float32)
        valid = valid & jnp.all(jnp.isfinite(weights), axis=1)
        return jnp.where(valid[:, None], weights, 0), valid

    def combine(weights: chex.Array, noises: Noise, params: Params, state: State) -> Any:
        for_params = jnp.matmul(weights[:, 0], noises, precision="highest")
        for_sigma = jnp.matmul(weights[:, 1], noises**2 - 1, precision="highest")
        return for_params / state.sigma, for_sigma / state.sigma

    def finish(total: Any, num_valid: chex.Array, params: Params, state: State) -> Params:
        moving, rest = trees.partition(params, mask)
        mean = trees.split(total[0] / _at_least_one(num_valid), moving)
        grad = jax.tree.map(lambda g, leaf: cast_gradient(g, leaf.dtype), mean, moving)
        return trees.merge(grad, jax.tree.map(jnp.zeros_like, rest))

    def update(state: State, estimate: Estimate, evaluations: Evaluations) -> State:
        del estimate
        gradient = evaluations.total[1] / _at_least_one(evaluations.num_valid)
        largest = _LARGEST_CHANGE * state.sigma
        change = jnp.clip(sigma_learning_rate * gradient, -largest, largest)
        return PGPEState(state.sigma - change)

    return Estimator(
        name=f"pgpe/{shaping.name}",
        stencil=central,
        is_global=True,
        is_stateful=True,
        preserves_scale=shaping.preserves_scale,
        init=init,
        num_directions=lambda params: num_directions,
        num_queries=lambda params: 2 * num_directions,
        draw=draw,
        point=point,
        coefficients=coefficients,
        combine=combine,
        finish=finish,
        update=update,
    )


def _at_least_one(count: chex.Array) -> chex.Array:
    return jnp.maximum(count, 1).astype(jnp.float32)
