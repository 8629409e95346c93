"""Which sigmas a loss allows: its differences along a few directions over many orders of sigma."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zojax import implicit, trees
from zojax.types import Estimator, Params, PRNGKey, State

MAX_DIRECTIONS = 8
PER_DECADE = 3
TOLERANCE = 0.1
"""How far a difference quotient may be from the slope inside the window, relative."""


class Ladder(NamedTuple):
    """Differences of the loss along k directions at m sigmas.

    Attributes:
      sigma: the estimator's own sigma.
      sigmas: shape (m,), increasing.
      differences: the stencil's differences, not divided by sigma, shape (m, k).
      scale: root mean square of the parameters, 1 where they are all zero.
      rounding: rounding error of one loss value, in loss units.
      is_constant: whether all finite losses are the same.
    """

    sigma: float
    sigmas: np.ndarray
    differences: np.ndarray
    scale: float
    rounding: float
    is_constant: bool

    @property
    def levels(self) -> np.ndarray:
        """Root mean square of the differences at each sigma, shape (m,)."""
        return _rms(self.differences)


def evaluate_ladder(
    est: Estimator,
    loss: Callable[[Params, Any], Any],
    params: Params,
    key: PRNGKey,
    state: State,
    args: tuple[Any, ...],
) -> Ladder:
    """Evaluates the loss along a few of the estimator's directions, one point at a time.

    Args:
      est: the estimator; a stencil that takes no difference is given the centre to compare with.
      loss: `(params, args) -> scalar` in at least float32.
      params: the parameters.
      key: key of the directions.
      state: the estimator's state.
      args: further arguments of the loss.
    """
    starts = np.unique(np.linspace(0, est.num_directions(params) - 1, MAX_DIRECTIONS, dtype=int))
    sigma, scale = smoothing_radius(est, params, key, state), _scale(params)
    low, high = min(1e-8 * scale, 0.01 * sigma), max(100 * scale, 1000 * sigma)
    count = round(PER_DECADE * np.log10(high / low)) + 1
    sigmas = np.geomspace(low, high, count)
    factors = jnp.asarray(sigmas / sigma, jnp.float32)
    values, center = _evaluate(
        est, loss, params, key, state, args, jnp.asarray(starts, jnp.int32), factors
    )
    values, center = np.asarray(values), np.asarray(center)
    weights = np.asarray(est.stencil.weights)
    # The centre less the points, so that a constant added to the loss is never rounded away.
    differences = (values.astype(np.float64) - center.astype(np.float64)) @ weights
    finite = values[np.isfinite(values)]
    size = np.sqrt(np.mean(finite.astype(np.float64) ** 2)) if finite.size else np.nan
    rounding = float(size * np.finfo(values.dtype).eps)
    is_constant = bool(np.all(finite == center)) and finite.size > 0
    return Ladder(sigma, sigmas, differences.T, scale, rounding, is_constant)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(
    est: Estimator,
    loss: Callable[[Params, Any], Any],
    params: Params,
    key: PRNGKey,
    state: State,
    args: tuple[Any, ...],
    starts: Any,
    factors: Any,
) -> tuple[jax.Array, jax.Array]:
    offsets = jnp.asarray(est.stencil.offsets, jnp.float32)

    def along(start: Any) -> jax.Array:
        noise = jax.tree.map(lambda x: x[0], est.draw(key, params, state, start, 1, 1))

        def at(offset: Any) -> jax.Array:
            return loss(est.point(params, state, noise, offset), args)

        return jax.lax.map(lambda f: jax.lax.map(lambda o: at(f * o), offsets), factors)

    return jax.lax.map(along, starts), loss(params, args)


def smoothing_radius(est: Estimator, params: Params, key: PRNGKey, state: State) -> float:
    """Returns the estimator's sigma, or the rms step of a coordinate where it has many.

    Args:
      est: the estimator.
      params: the parameters.
      key: key of the direction that is measured.
      state: the estimator's state.
    """
    if est.sigma is not None:
        return float(est.sigma(state))
    noise = jax.tree.map(lambda x: x[0], est.draw(key, params, state, 0, 1, 1))
    origin = jax.tree.map(jnp.zeros_like, params)
    point = implicit.materialise(est.point(origin, state, noise, 1.0))
    step = np.asarray(trees.ravel(trees.partition(point, None)[0]), np.float64)
    return float(_rms(step[step != 0]))


def usable_window(ladder: Ladder) -> tuple[float, float]:
    """Returns `(floor, ceiling)`: where difference quotients are within `TOLERANCE` of the slope.

    Below the floor rounding (or noise) makes up the rest, above the ceiling curvature. 0 or inf
    where the end was not found, NaN for both if the quotients settle nowhere (a piecewise
    constant loss).

    Args:
      ladder: of `evaluate_ladder`.
    """
    with np.errstate(all="ignore"):
        quotients = ladder.differences / ladder.sigmas[:, None]
        sizes = _rms(quotients)
        changes = _rms(np.diff(quotients, axis=0))
        # Settled: both neighbours agree, relative to what they agree on.
        unrest = np.maximum(changes[:-1], changes[1:]) / sizes[1:-1]
        unrest = np.where(np.isfinite(unrest), unrest, np.inf)
        best = 1 + int(np.argmin(unrest))
        if unrest[best - 1] > TOLERANCE:
            return float("nan"), float("nan")
        inside = _rms(quotients - quotients[best]) <= TOLERANCE * sizes[best]
    outside = np.flatnonzero(~inside)
    first = int(outside[outside < best].max(initial=-1)) + 1
    last = int(outside[outside > best].min(initial=len(inside))) - 1
    floor = float(ladder.sigmas[first]) if first > 0 else 0.0
    ceiling = float(ladder.sigmas[last]) if last < len(inside) - 1 else float("inf")
    return floor, ceiling


def unshared_noise(ladder: Ladder) -> float:
    """Returns the difference between points that hardly differ, if it drowns that at sigma.

    The differences of any function of the parameters shrink with sigma, down to rounding. Where
    they do not, the points of a direction do not share their noise. In loss units; 0 if there is
    none or sigma is large enough for the differences to stand out.

    Args:
      ladder: of `evaluate_ladder`.
    """
    steps = ladder.sigmas / ladder.scale
    noise = float(np.median(ladder.levels[(steps > 5e-7) & (steps < 5e-6)]))
    compared = np.argmin(np.abs(np.log(ladder.sigmas / max(ladder.sigma, 1e-3 * ladder.scale))))
    drowns = noise > 30 * ladder.rounding and ladder.levels[compared] < noise / TOLERANCE
    return noise if drowns else 0.0


def _scale(params: Params) -> float:
    size = _rms(np.asarray(trees.ravel(trees.partition(params, None)[0]), np.float64))
    return float(size) if size > 0 else 1.0


def _rms(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(x**2, axis=-1))
