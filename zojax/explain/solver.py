"""The kernel of every explanation: FISTA on a known penalty plus a hinge of the unknown margin."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from zojax import estimation
from zojax.attacks.kernel import Ask, Attack, Goal, choose, margin, next_weight
from zojax.errors import check_at_least, check_instance, check_positive, check_that
from zojax.types import Estimator, PRNGKey, Scalar, State

_DAMPING = 0.5  # of corrections: on a curved model one step's answers must not outweigh the last's


class Explainer(NamedTuple):
    """A kind of explanation.

    Attributes:
      attack: the search for it, in the form of an attack.
      keeps: whether the class is to be kept (a pertinent positive) or left (a negative).
      first: `x -> (...)`, the point where the goal may be reached before any search, for one
        input; None where that is the input itself.
    """

    attack: Attack
    keeps: bool
    first: Callable[[chex.Array], chex.Array] | None


class Problem(NamedTuple):
    """What is known about the objective, for one input x; z is what the search moves.

    Attributes:
      start: `x -> z`.
      limits: `x -> (low, high)`, the box that z stays in.
      image: `(z, x) -> (...)`, what the model is shown.
      penalty: `(z, start, x) -> ()`, the differentiable part; its gradient is exact.
      beta: weight of |z|_1, which is left to the proximal step.
    """

    start: Callable[[chex.Array], chex.Array]
    limits: Callable[[chex.Array], tuple[chex.Array, chex.Array]]
    image: Callable[[chex.Array, chex.Array], chex.Array]
    penalty: Callable[[chex.Array, chex.Array, chex.Array], Scalar]
    beta: float


class Schedule(NamedTuple):
    """How the search for an explanation proceeds.

    Attributes:
      c: first weight of the hinge, > 0.
      kappa: margin by which the goal is to be reached, >= 0.
      num_steps: steps per search, at least 1.
      num_searches: values of c, at least 1.
      learning_rate: of the first step, > 0; step k of K takes sqrt(1 - k / K) of it.
    """

    c: float
    kappa: float
    num_steps: int
    num_searches: int
    learning_rate: float


class ExplainState(NamedTuple):
    """State of an explanation of one example.

    Attributes:
      x: the input.
      goal: the label, to be left or to be kept.
      key: of the run; estimate t draws its directions from `fold_in(key, t)`.
      start: where every search starts.
      z: the iterate.
      ahead: the iterate and its momentum, around which the model is asked.
      slope: estimate of the margin's gradient there, carried from step to step.
      estimator: state of the estimator.
      c: weight of the hinge in this search, ().
      lower: largest weight that failed, ().
      upper: smallest weight that succeeded, infinite before, ().
      step: steps taken in this search, int32 ().
      search: searches that are over, int32 ().
      found_now: whether this search has succeeded, bool ().
      best: the iterate of the least cost that reached the goal, or the start.
      cost: its beta |z|_1 plus penalty, infinite before the first, ().
    """

    x: chex.Array
    goal: Goal
    key: PRNGKey
    start: chex.Array
    z: chex.Array
    ahead: chex.Array
    slope: chex.Array
    estimator: State
    c: Scalar
    lower: Scalar
    upper: Scalar
    step: Scalar
    search: Scalar
    found_now: Scalar
    best: chex.Array
    cost: Scalar


def search(name: str, problem: Problem, est: Estimator, schedule: Schedule) -> Attack:
    """Minimises c max(margin + kappa, 0) + beta |z|_1 + penalty(z) over a box.

    Only the margin comes from the model. Its gradient is estimated from values and carried along:
    each step asks what the last estimate got wrong, the estimator is told the residuals of its
    linear prediction, and the correction is half as long as explains them best (least squares over
    the answers). With orthogonal directions that is the sketch-and-project of SEGA, relaxed: the
    estimate becomes exact on a linear model, and follows a curved one. The derivative of the hinge
    is exact given the margin, for which the estimator's value stands. Points outside the box are
    clipped; the residuals are those of the clipped points.

    A search starts from the start; the next one has c bisected between the last failure and
    success, or ten times as large while nothing succeeded. Successful are iterates with a margin
    below 0 and at most -kappa; the best is that of the least beta |z|_1 + penalty.

    Queries per step: those of the estimator, and one check of the iterate.

    Args:
      name: of the attack.
      problem: what is known.
      est: any estimator.
      schedule: how to proceed.

    Raises:
      ValueError: for an argument out of range.

    Source: FISTA: Beck and Teboulle 2009; SEGA: Hanzely, Mishchenko and Richtarik 2018, arXiv
    1809.03054; the objective: Dhurandhar et al. 2018, arXiv 1802.07623.
    """
    check_instance("est", est, Estimator, "an estimator such as zojax.finite_difference(...)")
    _check(schedule)

    def init(x: chex.Array, goal: Goal, key: PRNGKey) -> ExplainState:
        start = problem.start(x)
        number = jnp.zeros((), jnp.int32)
        infinity = jnp.full((), jnp.inf, jnp.float32)
        return ExplainState(
            x=x,
            goal=goal,
            key=key,
            start=start,
            z=start,
            ahead=start,
            slope=jnp.zeros_like(start),
            estimator=est.init(start),
            c=jnp.full((), schedule.c, jnp.float32),
            lower=jnp.zeros((), jnp.float32),
            upper=infinity,
            step=number,
            search=number,
            found_now=jnp.zeros((), bool),
            best=start,
            cost=infinity,
        )

    def ask(state: ExplainState) -> Ask:
        variables = jnp.concatenate([state.z[None], _around(state, problem, est, schedule)[1]])
        points = jax.vmap(lambda z: problem.image(z, state.x))(variables)
        everything = jnp.ones(len(points), bool)
        return Ask(points, used=everything, is_check=jnp.arange(len(points)) == 0)

    def tell(state: ExplainState, answers: chex.Array) -> ExplainState:
        margins = margin(answers, state.goal)
        noted = _note(state, margins[0], problem, schedule)
        new = _move(noted, margins[1:], problem, est, schedule)
        new = new._replace(step=state.step + 1)
        return choose(new.step == schedule.num_steps, _next_search(new), new)

    def best(state: ExplainState) -> tuple[chex.Array, Scalar]:
        return problem.image(state.best, state.x), jnp.isfinite(state.cost)

    def is_done(state: ExplainState) -> Scalar:
        return state.search >= schedule.num_searches

    return Attack(name, "scores", init, ask, tell, best, is_done)


def _around(
    state: ExplainState, problem: Problem, est: Estimator, schedule: Schedule
) -> tuple[PRNGKey, chex.Array]:
    """The key of a step and the points that its estimate asks about, within the box."""
    key = jax.random.fold_in(state.key, state.search * schedule.num_steps + state.step)
    points = estimation.ask(est, state.ahead, key, state.estimator)
    limits = problem.limits(state.x)
    return key, jax.vmap(lambda point: jnp.clip(point, *limits))(points)


def _note(
    state: ExplainState, value: chex.Array, problem: Problem, schedule: Schedule
) -> ExplainState:
    """Keeps the iterate if it reaches the goal at less cost than the best so far."""
    is_reached = (value < 0) & (value <= -schedule.kappa)
    known = problem.penalty(state.z, state.start, state.x)
    cost = problem.beta * jnp.sum(jnp.abs(state.z)) + known
    is_better = is_reached & (cost < state.cost)
    return state._replace(
        found_now=state.found_now | is_reached,
        best=jnp.where(is_better, state.z, state.best),
        cost=jnp.where(is_better, cost, state.cost),
    )


def _move(
    state: ExplainState,
    margins: chex.Array,
    problem: Problem,
    est: Estimator,
    schedule: Schedule,
) -> ExplainState:
    """Corrects the estimate of the slope, then takes a FISTA step along it."""
    key, points = _around(state, problem, est, schedule)
    offsets = points - state.ahead[None]
    residuals = margins - _products(offsets, state.slope)
    estimate, estimator = estimation.tell(est, state.ahead, key, state.estimator, residuals)
    length = _best_length(_products(offsets, estimate.grad), residuals)
    slope = state.slope + _DAMPING * length * estimate.grad
    done = state.step.astype(jnp.float32)
    rate = schedule.learning_rate * jnp.sqrt(1 - done / schedule.num_steps)
    weight = jnp.where(estimate.value + schedule.kappa > 0, state.c, 0)
    known = jax.grad(problem.penalty)(state.ahead, state.start, state.x)
    limits = problem.limits(state.x)
    z = state.ahead - rate * (weight * slope + known)
    z = jnp.sign(z) * jnp.maximum(jnp.abs(z) - rate * problem.beta, 0)
    z = jnp.clip(z, *limits)
    ahead = jnp.clip(z + done / (done + 3) * (z - state.z), *limits)
    moved = state._replace(z=z, ahead=ahead, slope=slope, estimator=estimator)
    # Without an answer nothing moves, and other directions are asked about.
    return choose(jnp.isfinite(estimate.value), moved, state)


def _products(offsets: chex.Array, slope: chex.Array) -> chex.Array:
    """Inner products of (m, ...) with (...), shape (m,)."""
    return jnp.sum(offsets * slope[None], axis=tuple(range(1, offsets.ndim)))


def _best_length(predicted: chex.Array, residuals: chex.Array) -> Scalar:
    """The multiple of what is predicted that explains residuals best, up to a constant."""
    valid = jnp.isfinite(residuals)
    count = jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1)

    def centered(values: chex.Array) -> chex.Array:
        mean = jnp.sum(jnp.where(valid, values, 0)) / count
        return jnp.where(valid, values - mean, 0)

    predicted, residuals = centered(predicted), centered(residuals)
    square = jnp.sum(predicted**2)
    length = jnp.sum(predicted * residuals) / jnp.where(square > 0, square, 1)
    return jnp.maximum(length, 0)


def _next_search(state: ExplainState) -> ExplainState:
    """Starts again with another weight; what is known about the model's slope stays."""
    c, lower, upper = next_weight(state.c, state.lower, state.upper, state.found_now)
    return state._replace(
        z=state.start,
        ahead=state.start,
        c=c,
        lower=lower,
        upper=upper,
        step=jnp.zeros_like(state.step),
        search=state.search + 1,
        found_now=jnp.zeros_like(state.found_now),
    )


def _check(schedule: Schedule) -> None:
    check_positive("c", schedule.c)
    check_at_least("num_steps", schedule.num_steps, 1)
    check_at_least("num_searches", schedule.num_searches, 1)
    check_positive("learning_rate", schedule.learning_rate)
    check_not_negative("kappa", schedule.kappa)


def check_not_negative(name: str, value: float) -> None:
    """Raises ValueError unless a weight is finite and at least 0.

    Args:
      name: of the argument.
      value: the argument.
    """
    check_that(name, value, "a finite number >= 0", lambda x: 0 <= x < float("inf"))
