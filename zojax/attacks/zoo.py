"""ZOO: coordinate-wise descent of distortion plus margin, by Adam or by Newton."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from zojax.attacks.kernel import Ask, Attack, Goal, choose, distance, margin, next_weight
from zojax.attacks.latent import Latent, perturbed, pixels
from zojax.directions import random_coordinates
from zojax.errors import check_at_least, check_positive, check_that
from zojax.types import PRNGKey, Scalar, State

_B1, _B2, _EPS = 0.9, 0.999, 1e-8  # of Adam
_LEAST_CURVATURE = 0.1


class ZooState(NamedTuple):
    """State of ZOO on one example.

    Attributes:
      x: the input that is attacked.
      goal: what counts as success.
      key: of the attack; step t draws its coordinates from `fold_in(key, t)`.
      z: latent variable of the iterate.
      solver: state of Adam; () for Newton.
      c: weight of the margin in this search, ().
      lower: largest weight that failed, ().
      upper: smallest weight that succeeded, infinite before, ().
      step: steps taken in this search, int32 ().
      search: searches that are over, int32 ().
      found_now: whether this search has succeeded, bool ().
      nearest: the adversarial input of the least distortion so far, or x.
      distortion: its l2 distance to x, infinite before the first, ().
    """

    x: chex.Array
    goal: Goal
    key: PRNGKey
    z: chex.Array
    solver: State
    c: Scalar
    lower: Scalar
    upper: Scalar
    step: Scalar
    search: Scalar
    found_now: Scalar
    nearest: chex.Array
    distortion: Scalar


class _Solver(NamedTuple):
    """Turns derivatives along the asked coordinates into a step; arrays are flat, like z.

    Attributes:
      init: `dimension -> state`.
      update: `(state, gradient, curvature, asked) -> (step, state)`.
    """

    init: Callable[[int], State]
    update: Callable[..., tuple[chex.Array, State]]


class _AdamState(NamedTuple):
    """Moments and numbers of updates, coordinate by coordinate."""

    mu: chex.Array
    nu: chex.Array
    count: chex.Array


def zoo_adam(
    *,
    num_coordinates: int = 128,
    num_steps: int = 3000,
    num_searches: int = 9,
    initial_c: float = 0.01,
    kappa: float = 0.0,
    sigma: float = 1e-4,
    learning_rate: float = 0.01,
    latent: Latent = pixels,
) -> Attack:
    """ZOO-Adam: the least l2 distortion, by random coordinates with an Adam step each.

    Minimises |x - x0|^2 + c max(margin, -kappa) over inputs within [0, 1] (with `upsampled`, the
    perturbation's length is that before clipping). A search of `num_steps`
    steps starts from the input; the next one has c bisected between the last failure and success,
    or ten times as large while nothing succeeded. Bias corrections count the updates of each
    coordinate, and Adam starts anew at a search's first success. Differences are central; at the
    boundary their middle is moved inwards by sigma. The distortion is known, so its derivative is
    exact. There is no hierarchy of grids and no importance sampling of coordinates.

    Queries per step: 2 `num_coordinates` and one check of the iterate.

    Args:
      num_coordinates: per step, at least 1; at most all of them are taken.
      num_steps: steps per search, at least 1 (published: 3,000 for MNIST, 1,000 for CIFAR).
      num_searches: values of c, at least 1.
      initial_c: the first one, > 0.
      kappa: confidence, >= 0: an input counts as adversarial where its margin is <= -kappa (< 0
        for 0).
      sigma: step of the differences, in (0, .5).
      learning_rate: > 0 (published: .01 for MNIST and CIFAR, .002 for ImageNet).
      latent: where to search, `pixels` or `upsampled(...)`.

    Raises:
      ValueError: for an argument out of range.

    Source: Chen et al. 2017 (ZOO), arXiv 1708.03999.
    """
    check_positive("learning_rate", learning_rate)
    solver = _adam(learning_rate)
    settings = (num_coordinates, num_steps, num_searches, initial_c, kappa, sigma)
    return _zoo("zoo_adam", *settings, solver, latent)


def zoo_newton(
    *,
    num_coordinates: int = 128,
    num_steps: int = 3000,
    num_searches: int = 9,
    initial_c: float = 0.01,
    kappa: float = 0.0,
    sigma: float = 0.01,
    learning_rate: float = 0.01,
    latent: Latent = pixels,
) -> Attack:
    """ZOO-Newton: as `zoo_adam`, with steps -learning_rate g / h by coordinate.

    h is the second difference of the objective; 1 where it is negative or not known (at the
    boundary, or without the check's answer), and at least .1. Second differences divide the
    rounding error of float32 scores by sigma^2: with the published sigma of 1e-4 they are nothing
    but rounding, hence the larger default.

    Queries per step: 2 `num_coordinates` and one check of the iterate, which is the middle of the
    second differences too.

    Args:
      num_coordinates: per step, at least 1; at most all of them are taken.
      num_steps: steps per search, at least 1 (published: 3,000 for MNIST, 1,000 for CIFAR).
      num_searches: values of c, at least 1.
      initial_c: the first one, > 0.
      kappa: confidence, >= 0: an input counts as adversarial where its margin is <= -kappa (< 0
        for 0).
      sigma: step of the differences, in (0, .5).
      learning_rate: > 0 (published: .01).
      latent: where to search, `pixels` or `upsampled(...)`.

    Raises:
      ValueError: for an argument out of range.

    Source: Chen et al. 2017 (ZOO), arXiv 1708.03999.
    """
    check_positive("learning_rate", learning_rate)
    solver = _newton(learning_rate)
    settings = (num_coordinates, num_steps, num_searches, initial_c, kappa, sigma)
    return _zoo("zoo_newton", *settings, solver, latent)


def _zoo(
    name: str,
    num_coordinates: int,
    num_steps: int,
    num_searches: int,
    initial_c: float,
    kappa: float,
    sigma: float,
    solver: _Solver,
    latent: Latent,
) -> Attack:
    check_at_least("num_coordinates", num_coordinates, 1)
    check_at_least("num_steps", num_steps, 1)
    check_at_least("num_searches", num_searches, 1)
    check_positive("initial_c", initial_c)
    check_that("kappa", kappa, "a finite number >= 0", lambda x: 0 <= x < float("inf"))
    check_that("sigma", sigma, "in (0, 0.5)", lambda x: 0 < x < 0.5)

    def init(x: chex.Array, goal: Goal, key: PRNGKey) -> ZooState:
        z = latent.zeros(x)
        infinity = jnp.full((), jnp.inf, jnp.float32)
        return ZooState(
            x=x,
            goal=goal,
            key=key,
            z=z,
            solver=solver.init(z.size),
            c=jnp.full((), initial_c, jnp.float32),
            lower=jnp.zeros((), jnp.float32),
            upper=infinity,
            step=jnp.zeros((), jnp.int32),
            search=jnp.zeros((), jnp.int32),
            found_now=jnp.zeros((), bool),
            nearest=x,
            distortion=infinity,
        )

    def ask(state: ZooState) -> Ask:
        stencil = _stencil(state, num_steps, num_coordinates, sigma, latent)

        def at(coordinate: chex.Array, value: chex.Array) -> chex.Array:
            z = state.z.ravel().at[coordinate].set(value).reshape(state.z.shape)
            return perturbed(latent, z, state.x)

        coordinates = jnp.tile(stencil.coordinates, 2)
        values = jnp.concatenate([stencil.middles + sigma, stencil.middles - sigma])
        iterate = perturbed(latent, state.z, state.x)
        points = jnp.concatenate([iterate[None], jax.vmap(at)(coordinates, values)])
        everything = jnp.ones(len(points), bool)
        return Ask(points, used=everything, is_check=jnp.arange(len(points)) == 0)

    def tell(state: ZooState, answers: chex.Array) -> ZooState:
        margins = margin(answers, state.goal)
        stencil = _stencil(state, num_steps, num_coordinates, sigma, latent)
        gradient, curvature, asked = _derivatives(state, stencil, margins, kappa, sigma, latent)
        new = _note_success(state, margins[0], kappa, solver, latent)
        move, moved = solver.update(new.solver, gradient, curvature, asked)
        low, high = latent.limits(state.x)
        z = jnp.clip(state.z + move.reshape(state.z.shape), low, high)
        new = new._replace(z=z, solver=moved, step=state.step + 1)
        is_over = new.step == num_steps
        return choose(is_over, _next_search(new, solver), new)

    def best(state: ZooState) -> tuple[chex.Array, Scalar]:
        return state.nearest, jnp.isfinite(state.distortion)

    return Attack(name, "scores", init, ask, tell, best, lambda state: state.search >= num_searches)


class _Stencil(NamedTuple):
    """Coordinates of a step, the middles of their differences, and which of these were moved."""

    coordinates: chex.Array
    middles: chex.Array
    is_moved: chex.Array


def _stencil(
    state: ZooState, num_steps: int, num_coordinates: int, sigma: float, latent: Latent
) -> _Stencil:
    key = jax.random.fold_in(state.key, state.search * num_steps + state.step)
    number = min(num_coordinates, state.z.size)
    coordinates = random_coordinates().draw(key, state.z, number)
    low, high = (limit.ravel()[coordinates] for limit in latent.limits(state.x))
    values = state.z.ravel()[coordinates]
    middles = jnp.clip(values, low + sigma, high - sigma)
    return _Stencil(coordinates, middles, middles != values)


def _derivatives(
    state: ZooState,
    stencil: _Stencil,
    margins: chex.Array,
    kappa: float,
    sigma: float,
    latent: Latent,
) -> tuple[chex.Array, chex.Array, chex.Array]:
    """First and second derivatives of the objective, flat, and at which coordinates."""

    def distortion(z: chex.Array) -> chex.Array:
        return jnp.sum(latent.perturbation(z, state.x) ** 2)

    losses = state.c * jnp.maximum(margins, -kappa)
    center, (plus, minus) = losses[0], jnp.split(losses[1:], 2)
    places = stencil.coordinates
    exact = jax.grad(distortion)(state.z).ravel()[places]
    slopes = exact + (plus - minus) / (2 * sigma)
    unit = jax.vmap(lambda i: jnp.zeros(state.z.size).at[i].set(1.0).reshape(state.z.shape))(places)
    bends = 2 * jax.vmap(distortion)(unit) + (plus - 2 * center + minus) / sigma**2
    bends = jnp.where(stencil.is_moved | ~jnp.isfinite(bends) | (bends < 0), 1.0, bends)
    valid = jnp.isfinite(slopes)  # a pair with a failed evaluation counts as not asked

    def spread(values: chex.Array) -> chex.Array:
        return jnp.zeros(state.z.size, values.dtype).at[places].set(values)

    return spread(jnp.where(valid, slopes, 0)), spread(bends), spread(valid)


def _note_success(
    state: ZooState, value: chex.Array, kappa: float, solver: _Solver, latent: Latent
) -> ZooState:
    """Takes the answer about the iterate into account."""
    iterate = perturbed(latent, state.z, state.x)
    is_adversarial = (value < 0) & (value <= -kappa)
    length = distance(iterate, state.x, "l2")
    is_nearer = is_adversarial & (length < state.distortion)
    is_first = is_adversarial & ~state.found_now
    return state._replace(
        solver=choose(is_first, solver.init(state.z.size), state.solver),
        found_now=state.found_now | is_adversarial,
        nearest=jnp.where(is_nearer, iterate, state.nearest),
        distortion=jnp.where(is_nearer, length, state.distortion),
    )


def _next_search(state: ZooState, solver: _Solver) -> ZooState:
    """Starts again from the input with another weight."""
    c, lower, upper = next_weight(state.c, state.lower, state.upper, state.found_now)
    return state._replace(
        z=jnp.zeros_like(state.z),
        solver=solver.init(state.z.size),
        c=c,
        lower=lower,
        upper=upper,
        step=jnp.zeros_like(state.step),
        search=state.search + 1,
        found_now=jnp.zeros_like(state.found_now),
    )


def _adam(learning_rate: float) -> _Solver:
    def init(dimension: int) -> _AdamState:
        zeros = jnp.zeros(dimension, jnp.float32)
        return _AdamState(zeros, zeros, jnp.zeros(dimension, jnp.int32))

    def update(
        state: _AdamState, gradient: chex.Array, curvature: Any, asked: chex.Array
    ) -> tuple[chex.Array, _AdamState]:
        del curvature
        moved = _AdamState(
            _B1 * state.mu + (1 - _B1) * gradient,
            _B2 * state.nu + (1 - _B2) * gradient**2,
            state.count + 1,
        )
        new = jax.tree.map(lambda a, b: jnp.where(asked, a, b), moved, state)
        count = jnp.maximum(new.count, 1).astype(jnp.float32)
        mean, square = new.mu / (1 - _B1**count), new.nu / (1 - _B2**count)
        step = -learning_rate * mean / (jnp.sqrt(square) + _EPS)
        return jnp.where(asked, step, 0), new

    return _Solver(init, update)


def _newton(learning_rate: float) -> _Solver:
    def update(
        state: tuple[()], gradient: chex.Array, curvature: chex.Array, asked: chex.Array
    ) -> tuple[chex.Array, tuple[()]]:
        step = -learning_rate * gradient / jnp.maximum(curvature, _LEAST_CURVATURE)
        return jnp.where(asked, step, 0), state

    return _Solver(lambda dimension: (), update)
