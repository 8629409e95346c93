"""HopSkipJump: from boundary point to boundary point along an estimate of its normal."""

import functools

import jax.numpy as jnp

from zojax.attacks.hard_label import (
    MAX_STARTS,
    NUM_ROWS,
    Initial,
    Sides,
    no_sides,
    noise_image,
    normal_of,
    on_path,
    unit,
)
from zojax.attacks.kernel import Attack, Norm, choose, distance
from zojax.attacks.label_attack import (
    MOVE,
    PROBE,
    START,
    LabelState,
    Probes,
    Told,
    begin_bisect,
    enter,
    halve,
    label_attack,
    middle,
    phase_key,
)
from zojax.errors import check_at_least, check_that
from zojax.types import Scalar

_MAX_PROBES = 10_000  # per estimate
_FIRST_PROBE = 0.1  # l2 length of a probe before the distance is known to be small
_COARSEST, _FINEST = 1e-3, 1e-6  # precision: for inputs of few entries; what float32 resolves
_SHORTEST_JUMP = 1e-6  # over the distance


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
    tells = (
        _tell_start,
        functools.partial(_tell_bisect, norm=norm),
        functools.partial(_tell_normal, norm=norm, num_directions=num_directions),
        functools.partial(_tell_jump, norm=norm),
    )

    def is_done(state: LabelState) -> Scalar:
        last = jnp.where(state.phase == START, MAX_STARTS, num_iterations)
        return (state.count >= last) | (state.nearest.distance == 0)

    return label_attack(
        *("HopSkipJump", norm, no_sides),
        points=(
            lambda state: initial(state.x, state.goal, phase_key(state, START)),
            lambda state: on_path(state.x, state.end, middle(state), norm),
            lambda state: state.point + state.high * state.end,
        ),
        probes=functools.partial(_probes, norm=norm, num_directions=num_directions),
        tells=tells,
        is_done=is_done,
    )


def _root(state: LabelState) -> Scalar:
    """The square root of the number of the iteration, which is counted from 1."""
    return jnp.sqrt(state.count.astype(jnp.float32) + 1)


def _precision(state: LabelState, norm: Norm) -> float:
    """Of the fraction of the way at which the boundary lies."""
    size = state.x.size
    return min(max(size**-2.0 if norm == "linf" else size**-1.5, _FINEST), _COARSEST)


def _probes(state: LabelState, norm: Norm, num_directions: int) -> Probes:
    """Around the boundary point, as far away as its precision asks for."""
    scale = state.x.size if norm == "linf" else state.x.size**0.5
    later = scale * _precision(state, norm) * distance(state.point, state.x, norm)
    step = jnp.where(state.count == 0, _FIRST_PROBE, later)
    return Probes(state.point, step, _num_probes(state, num_directions))


def _num_probes(state: LabelState, num_directions: int) -> Scalar:
    return jnp.minimum(jnp.floor(num_directions * _root(state)), _MAX_PROBES).astype(jnp.int32)


def _tell_start(state: LabelState, told: Told) -> LabelState:
    again = state._replace(count=state.count + 1)
    found = _begin_bisect(state, told)._replace(count=jnp.zeros((), jnp.int32))
    return choose(told.hit, found, again)


def _begin_bisect(state: LabelState, told: Told) -> LabelState:
    return begin_bisect(state, told)._replace(point=told.point)


def _tell_bisect(state: LabelState, told: Told, norm: Norm) -> LabelState:
    state = halve(state, told.hit)._replace(point=choose(told.hit, told.point, state.point))
    is_over = state.high - state.low <= _precision(state, norm)
    return choose(is_over, _begin_normal(state), state)


def _begin_normal(state: LabelState) -> LabelState:
    return enter(state, PROBE, row=jnp.zeros((), jnp.int32), own=no_sides(state.x))


def _tell_normal(state: LabelState, told: Told, norm: Norm, num_directions: int) -> LabelState:
    sides = Sides(*(old + new for old, new in zip(state.own, told.sides, strict=True)))
    state = state._replace(row=state.row + NUM_ROWS, own=sides)
    normal = normal_of(sides)
    jump = enter(
        state,
        MOVE,
        end=jnp.sign(normal) if norm == "linf" else unit(normal),
        high=distance(state.point, state.x, norm) / _root(state),
    )
    return choose(state.row >= _num_probes(state, num_directions), jump, state)


def _tell_jump(state: LabelState, told: Told, norm: Norm) -> LabelState:
    """Bisects from an adversarial point; else halves the jump, or starts a new estimate."""
    count = state.count + 1
    shortest = _SHORTEST_JUMP * distance(state.point, state.x, norm)
    shorter = state._replace(high=0.5 * state.high)
    missed = choose(state.high > shortest, shorter, _begin_normal(state)._replace(count=count))
    return choose(told.hit, _begin_bisect(state, told)._replace(count=count), missed)
