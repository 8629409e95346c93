"""Last links of a chain that keep the parameters where they belong.

They act on all floating-point leaves together; `zojax.mask_optimizer` restricts them to a part.
"""

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
        moving, grads, rest = _floats(params, updates)
        return trees.merge(_difference(projection(_moved(moving, grads)), moving), rest), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


_TINY = 1e-37
_LEAST_SHARE = 1.2e-7  # of the sum; less is lost when an update is added to a large parameter


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
        moving, grads, rest = _floats(params, updates)
        moved = prox(_moved(moving, grads), rate * weight)
        new = ProximalState(optax.safe_increment(state.count))
        return trees.merge(_difference(moved, moving), rest), new

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
        zeros = jax.tree.map(jnp.zeros_like, trees.partition(params, None)[0])
        return FrankWolfeState(jnp.zeros((), jnp.int32), zeros, jnp.asarray(jnp.nan, jnp.float32))

    def update(
        updates: Params, state: FrankWolfeState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, FrankWolfeState]:
        del extra_args
        _check_params("frank_wolfe", params)
        moving, grads, rest = _floats(params, updates)
        count = state.count.astype(jnp.float32)
        rho = jnp.where(state.count == 0, 1.0, averaging(count))
        gamma = step_size(count)
        mix = lambda d, g: ((1 - rho) * d + rho * g).astype(d.dtype)  # noqa: E731
        direction = jax.tree.map(mix, state.direction, grads)
        # Without any gradient (a step that failed, at the start) no vertex is better than another.
        gamma = jnp.where(optax.tree.norm(direction) > 0, gamma, 0.0)
        to_vertex = _difference(oracle(direction), moving)
        gap = -optax.tree.vdot(direction, to_vertex)
        step = jax.tree.map(lambda x: (gamma * x).astype(x.dtype), to_vertex)
        new = FrankWolfeState(optax.safe_increment(state.count), direction, gap.astype(jnp.float32))
        return trees.merge(step, rest), new

    return optax.GradientTransformationExtraArgs(init, update)


class MirrorDescentState(NamedTuple):
    """State of `mirror_descent`.

    Attributes:
      count: steps taken, int32 of shape ().
      total: the sum that is kept, shape (): that of the first parameters.
    """

    count: chex.Array
    total: chex.Array


def mirror_descent(
    learning_rate: float | Callable[[chex.Array], Any],
) -> optax.GradientTransformationExtraArgs:
    """Exponentiated gradient on a simplex: x <- |x|_1 x exp(-lr g) / |x exp(-lr g)|_1.

    Mirror descent with the entropy as mirror map; the parameters keep their sum and, so that none
    is lost for good, at least 1e-7 of it each. Behind an estimator it is the whole optimiser. All
    leaves together are one simplex; start inside it.

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
        moving, grads, rest = _floats(params, updates)
        x, g = trees.ravel(moving), trees.ravel(grads)
        exponents = jnp.where(x > 0, jnp.log(jnp.maximum(x, _TINY)) - rate * g, -jnp.inf)
        weights = jax.nn.softmax(exponents)
        least = min(_LEAST_SHARE, 0.001 / x.size)
        target = state.total * ((1 - x.size * least) * weights + least)
        moved = trees.split(target, moving)
        new = MirrorDescentState(optax.safe_increment(state.count), state.total)
        return trees.merge(_difference(moved, moving), rest), new

    def init(params: Params) -> MirrorDescentState:
        total = jnp.sum(trees.ravel(trees.partition(params, None)[0]))
        return MirrorDescentState(jnp.zeros((), jnp.int32), total)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_params(name: str, params: Params | None) -> None:
    if params is None:
        raise ValueError(f"{name} needs params: tx.update(updates, state, params)")


def _floats(params: Params, updates: Params) -> tuple[Params, Params, Params]:
    """Floating-point leaves of parameters and updates, and no update for the others."""
    moving, rest = trees.partition(params, None)
    return moving, trees.partition(updates, None)[0], jax.tree.map(jnp.zeros_like, rest)


def _moved(params: Params, updates: Params) -> Params:
    """In at least float32: in half precision a set would be missed by far more than it takes."""
    return jax.tree.map(lambda p, u: p.astype(trees.point_dtype(p.dtype)) + u, params, updates)


def _difference(target: Params, params: Params) -> Params:
    return jax.tree.map(lambda x, p: x.astype(p.dtype) - p, target, params)
