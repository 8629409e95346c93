"""Last links of a chain that keep the parameters where they belong."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from zojax import trees
from zojax.errors import check_positive
from zojax.types import Params


def projected(projection: Callable[[Params], Params]) -> optax.GradientTransformationExtraArgs:
    """Projects the parameters after the step: x <- P(x + update).

    The last link of a chain: `optax.chain(zo, optax.sgd(0.1), zojax.projected(projection))` is
    projected descent; after `zojax.scale_by_adamm` with a box it is ZO-AdaMM (for a box the
    projection in the metric of the second moment is the same clip). The parameters should start
    inside the set.

    Args:
      projection: pytree -> pytree, e.g. `lambda x: optax.projections.projection_l1_ball(x, 1.0)` or
        `functools.partial(zojax.projections.projection_capped_simplex, total=5)`.
    """

    def update(
        updates: Params, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, Any]:
        del extra_args
        _check_params("projected", params)
        # In half precision the set itself would be missed by far more than it takes to compute.
        wide = lambda p, u: p.astype(trees.point_dtype(p.dtype)) + u  # noqa: E731
        inside = projection(jax.tree.map(wide, params, updates))
        return _difference(inside, params), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


class ProximalState(NamedTuple):
    """State of `proximal`.

    Attributes:
      count: steps taken, int32 of shape ().
    """

    count: chex.Array


def proximal(
    prox: Callable[[Params, Any], Params],
    learning_rate: float | Callable[[chex.Array], Any],
    weight: float,
) -> optax.GradientTransformationExtraArgs:
    """Proximal step for a penalty: x <- prox_{learning_rate weight}(x + update).

    The last link of a chain, behind plain descent with the same learning rate: it minimises
    loss + weight * penalty without a subgradient, and coordinates become exactly zero.

    Args:
      prox: `(params, step) -> params`, e.g. `zojax.projections.prox_l1`.
      learning_rate: of the descent in front, a number or a schedule.
      weight: of the penalty, > 0.

    Raises:
      ValueError: for a learning rate or weight that is not positive.
    """
    check_positive("learning_rate", learning_rate)
    check_positive("weight", weight)

    def update(
        updates: Params, state: ProximalState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, ProximalState]:
        del extra_args
        _check_params("proximal", params)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        moved = prox(jax.tree.map(jnp.add, params, updates), rate * weight)
        new = ProximalState(optax.safe_increment(state.count))
        return _difference(moved, params), new

    return optax.GradientTransformationExtraArgs(
        lambda params: ProximalState(jnp.zeros((), jnp.int32)), update
    )


class FrankWolfeState(NamedTuple):
    """State of `frank_wolfe`.

    Attributes:
      count: steps taken, int32 of shape ().
      direction: averaged gradient, like the parameters.
      gap: <direction, x - s> at the last step, shape (): with an exact gradient of a convex loss a
        bound on f(x) - f*; NaN before the first step.
    """

    count: chex.Array
    direction: Params
    gap: chex.Array


def frank_wolfe(
    oracle: Callable[[Params], Params],
    averaging: Callable[[chex.Array], Any] = lambda t: 4 / (t + 8.0) ** (2 / 3),
    step_size: Callable[[chex.Array], Any] = lambda t: 2 / (t + 8.0),
) -> optax.GradientTransformationExtraArgs:
    """Frank-Wolfe steps: d <- (1 - rho) d + rho g, x <- x + gamma (oracle(d) - x).

    Never leaves a convex set, needs no projection: behind an estimator it is the whole optimiser,
    `optax.chain(zo, zojax.frank_wolfe(oracle))`. The parameters must start inside the set. The
    first average is the first gradient.

    Args:
      oracle: argmin_{s in the set} <d, s>, pytree -> pytree, e.g.
        `functools.partial(zojax.projections.oracle_l1, radius=1.0)`.
      averaging: schedule of rho in (0, 1].
      step_size: schedule of gamma in [0, 1].

    Source: Frank and Wolfe 1956; stochastic averaging: Mokhtari et al. 2020, arXiv 1804.09554.
    """

    def init(params: Params) -> FrankWolfeState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return FrankWolfeState(jnp.zeros((), jnp.int32), zeros, jnp.asarray(jnp.nan, jnp.float32))

    def update(
        updates: Params, state: FrankWolfeState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, FrankWolfeState]:
        del extra_args
        _check_params("frank_wolfe", params)
        count = state.count.astype(jnp.float32)
        rho = jnp.where(state.count == 0, 1.0, averaging(count))
        gamma = step_size(count)
        mix = lambda d, g: ((1 - rho) * d + rho * g).astype(d.dtype)  # noqa: E731
        direction = jax.tree.map(mix, state.direction, updates)
        to_vertex = _difference(oracle(direction), params)
        gap = -optax.tree.vdot(direction, to_vertex)
        step = jax.tree.map(lambda x: (gamma * x).astype(x.dtype), to_vertex)
        new = FrankWolfeState(optax.safe_increment(state.count), direction, gap.astype(jnp.float32))
        return step, new

    return optax.GradientTransformationExtraArgs(init, update)


class MirrorDescentState(NamedTuple):
    """State of `mirror_descent`.

    Attributes:
      count: steps taken, int32 of shape ().
    """

    count: chex.Array


def mirror_descent(
    learning_rate: float | Callable[[chex.Array], Any],
) -> optax.GradientTransformationExtraArgs:
    """Exponentiated gradient on a simplex: x <- |x|_1 x exp(-lr g) / |x exp(-lr g)|_1.

    Mirror descent with the entropy as mirror map; the parameters stay positive and keep their sum.
    Behind an estimator it is the whole optimiser. All leaves together are one simplex.

    Args:
      learning_rate: a number or a schedule.

    Raises:
      ValueError: for a learning rate that is not positive.

    Source: Kivinen and Warmuth 1997 (Inf. Comput. 132).
    """
    check_positive("learning_rate", learning_rate)

    def update(
        updates: Params, state: MirrorDescentState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, MirrorDescentState]:
        del extra_args
        _check_params("mirror_descent", params)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        # Subtracting the smallest exponent's opposite keeps the largest weight finite.
        lowest = jnp.min(jnp.stack([jnp.min(g) for g in jax.tree.leaves(updates)]))
        scaled = jax.tree.map(lambda x, g: x * jnp.exp(-rate * (g - lowest)), params, updates)
        factor = optax.tree.sum(params) / optax.tree.sum(scaled)
        moved = jax.tree.map(lambda x: x * factor, scaled)
        new = MirrorDescentState(optax.safe_increment(state.count))
        return _difference(moved, params), new

    return optax.GradientTransformationExtraArgs(
        lambda params: MirrorDescentState(jnp.zeros((), jnp.int32)), update
    )


def _difference(target: Params, params: Params) -> Params:
    return jax.tree.map(lambda x, p: x.astype(p.dtype) - p, target, params)


def _check_params(name: str, params: Params | None) -> None:
    if params is None:
        raise ValueError(f"{name} needs params: tx.update(updates, state, params)")
