"""HopSkipJump: from boundary point to boundary point along an estimate of its normal."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from zojax.attacks.hard_label import (
    MAX_STARTS,
    NUM_ROWS,
    Initial,
    Nearest,
    Sides,
    add_sides,
    draw_directions,
    keep_nearest,
    no_sides,
    noise_image,
    normal_of,
    offsets,
    on_path,
    rows_of,
    unit,
)
from zojax.attacks.kernel import Ask, Attack, Goal, Norm, choose, distance, is_reached
from zojax.errors import check_at_least, check_that
from zojax.types import PRNGKey, Scalar

_START, _BISECT, _NORMAL, _JUMP = range(4)
_MAX_PROBES = 10_000  # per estimate
_FIRST_PROBE = 0.1  # l2 length of a probe before the distance is known to be small
_COARSEST, _FINEST = 1e-3, 1e-6  # precision: for inputs of few entries; what float32 resolves
_SHORTEST_JUMP = 1e-6  # over the distance


class HopSkipJumpState(NamedTuple):
    """Where a HopSkipJump attack stands.

    Attributes:
      x: the input, (...).
      goal: what counts as success.
      key: of all random numbers, with `count`.
      nearest: the nearest adversarial input so far.
      asked: the points that `ask` names.
      phase: trying starts, bisecting towards x, estimating the normal, or jumping along it.
      count: starts tried; iterations made.
      row: probes made for this estimate.
      point: the adversarial point from which to go on, (...).
      end: where the bisection set out, or the direction of the jump, (...).
      low: fraction of the way to `end` that is not adversarial.
      high: fraction that is; in a jump, its length.
      sides: what is known about the normal.
    """

    x: chex.Array
    goal: Goal
    key: PRNGKey
    nearest: Nearest
    asked: Ask
    phase: Scalar
    count: Scalar
    row: Scalar
    point: chex.Array
    end: chex.Array
    low: Scalar
    high: Scalar
    sides: Sides


def hop_skip_jump(
    norm: Norm = "l2",
    *,
    num_directions: int = 100,
    num_iterations: int = 64,
    initial: Initial = noise_image,
) -> Attack:
    """Minimises the distance of an adversarial input, from labels only.

    An iteration estimates the normal of the boundary at an adversarial point close to it, from
    labels at points around; jumps along it (along its sign for linf) as far as distance / sqrt(t),
    halved until the point is adversarial; and bisects back towards the input. Iteration t costs
    num_directions sqrt(t) queries for the estimate, and about 20 for the rest, asked one by one.

    >>> from zojax import attacks
    >>> attacks.hop_skip_jump("linf").answers
    'labels'

    Args:
      norm: of the distance, "l2" or "linf".
      num_directions: probes in the first iteration, at least 1. Published: 100. They are orthogonal
        sign vectors; published code draws them independently.
      num_iterations: after which the attack is done, at least 1.
      initial: draws starts, of which the first adversarial one is used; a targeted attack needs
        `class_examples(...)`.

    Raises:
      ValueError: for a value out of range.

    Source: Chen, Jordan, Wainwright 2020, arXiv 1904.02144.
    """
    check_that("norm", norm, '"l2" or "linf"', ("l2", "linf").count)
    check_at_least("num_directions", num_directions, 1)
    check_at_least("num_iterations", num_iterations, 1)
    check_that("initial", initial, "callable", callable)
    asks = (
        lambda state: rows_of(initial(state.x, state.goal, _key(state, _START))),
        lambda state: rows_of(on_path(state.x, state.end, _middle(state), norm)),
        functools.partial(_ask_normal, norm=norm, num_directions=num_directions),
        lambda state: rows_of(state.point + state.high * state.end),
    )
    tells = (
        _tell_start,
        functools.partial(_tell_bisect, norm=norm),
        functools.partial(_tell_normal, norm=norm, num_directions=num_directions),
        functools.partial(_tell_jump, norm=norm),
    )

    def init(x: chex.Array, goal: Goal, key: PRNGKey) -> HopSkipJumpState:
        zero, one, none = jnp.zeros(()), jnp.ones(()), jnp.zeros((), jnp.int32)
        nearest = Nearest(x, jnp.full((), jnp.inf))
        state = HopSkipJumpState(
            *(x, goal, key, nearest, rows_of(x), none, none, none, x, jnp.zeros_like(x)),
            *(zero, one, no_sides(x)),
        )
        return state._replace(asked=asks[_START](state))

    def tell(state: HopSkipJumpState, answers: chex.Array) -> HopSkipJumpState:
        hit = is_reached(answers, state.goal) & state.asked.used
        answered = state.asked.used & (answers >= 0)
        nearest = keep_nearest(state.nearest, state.x, state.asked, hit, norm)
        state = state._replace(nearest=nearest)
        after = jax.lax.switch(state.phase, tells, state, hit, answered)
        # Where nothing was answered the same is asked again; starts are plenty.
        state = choose(jnp.any(answered) | (state.phase == _START), after, state)
        return state._replace(asked=jax.lax.switch(state.phase, asks, state))

    def is_done(state: HopSkipJumpState) -> Scalar:
        last = jnp.where(state.phase == _START, MAX_STARTS, num_iterations)
        return (state.count >= last) | (state.nearest.distance == 0)

    return Attack(
        "HopSkipJump",
        "labels",
        init,
        ask=lambda state: state.asked,
        tell=tell,
        best=lambda state: (state.nearest.point, jnp.isfinite(state.nearest.distance)),
        is_done=is_done,
    )


def _middle(state: HopSkipJumpState) -> Scalar:
    return 0.5 * (state.low + state.high)


def _key(state: HopSkipJumpState, phase: int) -> PRNGKey:
    return jax.random.fold_in(jax.random.fold_in(state.key, phase), state.count)


def _root(state: HopSkipJumpState) -> Scalar:
    """The square root of the number of the iteration, which is counted from 1."""
    return jnp.sqrt(state.count.astype(jnp.float32) + 1)


def _precision(state: HopSkipJumpState, norm: Norm) -> float:
    """Of the fraction of the way at which the boundary lies."""
    size = state.x.size
    return min(max(size**-2.0 if norm == "linf" else size**-1.5, _FINEST), _COARSEST)


def _probe(state: HopSkipJumpState, norm: Norm) -> Scalar:
    """The l2 length of a probe, matched to the precision of the point it starts from."""
    scale = state.x.size if norm == "linf" else state.x.size**0.5
    later = scale * _precision(state, norm) * distance(state.point, state.x, norm)
    return jnp.where(state.count == 0, _FIRST_PROBE, later)


def _num_probes(state: HopSkipJumpState, num_directions: int) -> Scalar:
    return jnp.minimum(jnp.floor(num_directions * _root(state)), _MAX_PROBES).astype(jnp.int32)


def _tell_start(state: HopSkipJumpState, hit: chex.Array, answered: chex.Array) -> HopSkipJumpState:
    del answered
    again = state._replace(count=state.count + 1)
    found = _begin_bisect(state)._replace(count=jnp.zeros((), jnp.int32))
    return choose(hit[0], found, again)


def _begin_bisect(state: HopSkipJumpState) -> HopSkipJumpState:
    """From the point just asked about, which is adversarial."""
    return state._replace(
        phase=jnp.full((), _BISECT, jnp.int32),
        point=state.asked.points[0],
        end=state.asked.points[0],
        low=jnp.zeros(()),
        high=jnp.ones(()),
    )


def _tell_bisect(
    state: HopSkipJumpState, hit: chex.Array, answered: chex.Array, norm: Norm
) -> HopSkipJumpState:
    del answered
    state = state._replace(
        low=jnp.where(hit[0], state.low, _middle(state)),
        high=jnp.where(hit[0], _middle(state), state.high),
        point=choose(hit[0], state.asked.points[0], state.point),
    )
    is_over = state.high - state.low <= _precision(state, norm)
    return choose(is_over, _begin_normal(state), state)


def _begin_normal(state: HopSkipJumpState) -> HopSkipJumpState:
    return state._replace(
        phase=jnp.full((), _NORMAL, jnp.int32),
        row=jnp.zeros((), jnp.int32),
        sides=no_sides(state.x),
    )


def _ask_normal(state: HopSkipJumpState, norm: Norm, num_directions: int) -> Ask:
    moves = draw_directions(_key(state, _NORMAL), state.x, state.row)
    used = state.row + jnp.arange(NUM_ROWS) < _num_probes(state, num_directions)
    probe = _probe(state, norm)
    return rows_of(jax.vmap(lambda move: state.point + probe * move)(moves), used)


def _tell_normal(
    state: HopSkipJumpState,
    hit: chex.Array,
    answered: chex.Array,
    norm: Norm,
    num_directions: int,
) -> HopSkipJumpState:
    moved = offsets(state.asked.points, state.point)
    sides = add_sides(state.sides, moved, hit, answered)
    state = state._replace(row=state.row + NUM_ROWS, sides=sides)
    normal = normal_of(state.sides)
    jump = state._replace(
        phase=jnp.full((), _JUMP, jnp.int32),
        end=jnp.sign(normal) if norm == "linf" else unit(normal),
        high=distance(state.point, state.x, norm) / _root(state),
    )
    return choose(state.row >= _num_probes(state, num_directions), jump, state)


def _tell_jump(
    state: HopSkipJumpState, hit: chex.Array, answered: chex.Array, norm: Norm
) -> HopSkipJumpState:
    """Bisects from an adversarial point; else halves the jump, or starts a new estimate."""
    del answered
    count = state.count + 1
    shortest = _SHORTEST_JUMP * distance(state.point, state.x, norm)
    shorter = state._replace(high=0.5 * state.high)
    missed = choose(state.high > shortest, shorter, _begin_normal(state)._replace(count=count))
    return choose(hit[0], _begin_bisect(state)._replace(count=count), missed)
