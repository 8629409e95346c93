"""Sign-OPT: the nearest adversarial input from labels, by signs of directional derivatives."""

import functools
from typing import NamedTuple

import chex
import jax.numpy as jnp

from zojax.attacks.hard_label import (
    MAX_STARTS,
    NUM_ROWS,
    Initial,
    noise_image,
    normal_of,
    on_path,
    unit,
)
from zojax.attacks.kernel import Attack, choose, distance
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
    has_found,
    label_attack,
    middle,
    phase_key,
)
from zojax.errors import check_at_least, check_positive, check_that
from zojax.types import Scalar

_MIN_ANGLE = 1e-3  # radians; a smaller turn would gain less than a millionth of the distance
_MIN_BETA = 1e-4  # below it, rounding decides about the signs
_PRECISION = 0.25  # of the search for the boundary, in units of what a probe moves across it
_MIN_GAIN, _MAX_GAIN = 0.05, 20.0  # of `depth`, in the same unit


class Line(NamedTuple):
    """What Sign-OPT keeps from one iteration for the next.

    Attributes:
      angle: the last turn, where the next search begins.
      beta: length of a probe over the distance.
      depth: how far beyond the boundary point the probes lie, over beta distance / sqrt(d).
      gain: by how much `depth` moves.
      side: -1 to 1, on which side the last chunk of probes lay; adversarial is negative.
    """

    angle: Scalar
    beta: Scalar
    depth: Scalar
    gain: Scalar
    side: Scalar


def sign_opt(
    *,
    num_directions: int = 200,
    num_starts: int = 10,
    alpha: float = 0.2,
    beta: float = 0.02,
    initial: Initial = noise_image,
) -> Attack:
    """Minimises the l2 distance of an adversarial input, from labels only.

    The distance g(theta) of the boundary along theta is minimised over theta: K probes at the
    current distance tell the sign of its derivative in as many directions, their signed sum is the
    direction to turn to, and a line search finds how far. An iteration costs K queries for the
    signs and about 10 for the search, asked one by one; before it, `num_starts` random directions
    are tried, at the distance of the best one so far, and bisected where they are better.

    Three things differ from the published code, to save queries. The directions are orthogonal
    sign vectors. Probes are not assumed to start on the boundary: their depth follows the answers
    until half of them are adversarial, because then the signs tell most; on the boundary itself
    nearly none are where many pixels lie at the bounds of the box, and can be moved to one side
    only. And the line search runs on the circle through the input and the boundary point, on which
    the nearest points lie if the boundary is flat: doubling and bisection find the angle at once,
    where published code bisects the distance for each step size it tries.

    >>> from zojax import attacks
    >>> attacks.sign_opt().answers
    'labels'

    Args:
      num_directions: K, probes per iteration, at least 1; no more are made than the input has
        entries, or 32. Published: 200.
      num_starts: random starts tried, at least 1; if all fail, up to 1,000. Published: 100, which
        costs more than it gains.
      alpha: tangent of the first turn tried. Published: 0.2.
      beta: length of a probe over the distance, in (1e-4, 1), halved when there is no step forward;
        the attack is done when it is below 1e-4. Published: 0.001, which would need a finer search
        for the boundary.
      initial: draws starts; a targeted attack needs `class_examples(...)`.

    Raises:
      ValueError: for a value out of range.

    Source: Cheng et al. 2020, arXiv 1909.10773; the circle: Reza et al. 2023, arXiv 2308.03163.
    """
    check_at_least("num_directions", num_directions, 1)
    check_at_least("num_starts", num_starts, 1)
    check_positive("alpha", alpha)
    check_that("beta", beta, f"in ({_MIN_BETA}, 1)", lambda value: _MIN_BETA < value < 1)
    check_that("initial", initial, "callable", callable)
    tells = (
        functools.partial(_tell_start, num_starts=num_starts),
        functools.partial(_tell_bisect, num_starts=num_starts),
        functools.partial(_tell_signs, num_directions=num_directions),
        _tell_arc,
    )

    def own(x: chex.Array) -> Line:
        del x
        first = jnp.arctan(jnp.asarray(alpha, jnp.float32))
        zero, one = jnp.zeros(()), jnp.ones(())
        return Line(first, jnp.asarray(beta, jnp.float32), zero, one, zero)

    def is_done(state: LabelState) -> Scalar:
        has_failed = (state.count >= MAX_STARTS) & ~has_found(state)
        return has_failed | (state.own.beta < _MIN_BETA) | (state.nearest.distance == 0)

    return label_attack(
        *("Sign-OPT", "l2", own),
        points=(
            functools.partial(_start, initial=initial),
            lambda state: on_path(state.x, state.end, middle(state), "l2"),
            _on_arc,
        ),
        probes=functools.partial(_probes, num_directions=num_directions),
        tells=tells,
        is_done=is_done,
    )


def _num_probes(x: chex.Array, num_directions: int) -> int:
    """More than the dimension would be directions asked twice; fewer than a chunk saves nothing."""
    return min(num_directions, max(x.size, NUM_ROWS))


def _precision(state: LabelState) -> Scalar:
    """How well the boundary must be known, over the distance."""
    return _PRECISION * state.own.beta * state.x.size**-0.5


def _start(state: LabelState, initial: Initial) -> chex.Array:
    start = initial(state.x, state.goal, phase_key(state, START))
    length = distance(start, state.x, "l2")
    fraction = state.nearest.distance / jnp.maximum(length, 1e-12)
    return on_path(state.x, start, jnp.minimum(fraction, 1.0), "l2")


def _tell_start(state: LabelState, told: Told, num_starts: int) -> LabelState:
    state = state._replace(count=state.count + 1)
    return choose(told.hit, begin_bisect(state, told), _next_start(state, num_starts))


def _tell_bisect(state: LabelState, told: Told, num_starts: int) -> LabelState:
    state = halve(state, told.hit)
    is_over = state.high - state.low <= _precision(state)
    return choose(is_over, _next_start(state, num_starts), state)


def _next_start(state: LabelState, num_starts: int) -> LabelState:
    has_enough = (state.count >= num_starts) & has_found(state)
    return choose(has_enough, _begin_signs(state), enter(state, START))


def _begin_signs(state: LabelState) -> LabelState:
    return enter(
        state,
        PROBE,
        row=jnp.zeros((), jnp.int32),
        point=state.nearest.point,
        end=jnp.zeros_like(state.x),
    )


def _probes(state: LabelState, num_directions: int) -> Probes:
    """On the tangent plane of the sphere, `depth` beyond the boundary point.

    Their centre keeps the length of a probe's entry away from the bounds of the box, so that
    clipping does not spoil the symmetry of the directions.
    """
    step = state.own.beta * distance(state.point, state.x, "l2")
    entry = step * state.x.size**-0.5
    center = jnp.clip(state.point, entry, 1.0 - entry)
    ray = unit(center - state.x)
    center = center + entry * state.own.depth * ray
    return Probes(center, step, _num_probes(state.x, num_directions), ray)


def _tell_signs(state: LabelState, told: Told, num_directions: int) -> LabelState:
    """Adds the signed directions of a chunk, signs taken from their mean within the chunk."""
    chunk, own = told.sides, state.own
    number = jnp.maximum(chunk.num_inside + chunk.num_outside, 1.0)
    weight = chunk.num_inside * chunk.num_outside / number
    side = (chunk.num_outside - chunk.num_inside) / number
    # Grows while all chunks fall on one side, shrinks where the sides alternate.
    gain = own.gain * jnp.where(side * own.side > 0, 1.3, 0.6)
    gain = jnp.clip(gain, _MIN_GAIN, _MAX_GAIN)
    state = state._replace(
        row=state.row + NUM_ROWS,
        end=state.end + weight * normal_of(chunk),
        own=own._replace(depth=own.depth + gain * side, gain=gain, side=side),
    )
    # A sum of zero, all chunks on one side of the boundary, says nothing.
    after = choose(jnp.any(state.end != 0), _begin_arc(state), _begin_again(state))
    return choose(state.row >= _num_probes(state.x, num_directions), after, state)


def _begin_again(state: LabelState) -> LabelState:
    own = state.own._replace(beta=0.5 * state.own.beta)
    return _begin_signs(state)._replace(count=state.count + 1, own=own)


def _begin_arc(state: LabelState) -> LabelState:
    """Turns to the signed sum, without what points out of the box and what points away from x."""
    total, point = state.end, state.point
    is_blocked = ((point <= 0) & (total < 0)) | ((point >= 1) & (total > 0))
    total = jnp.where(is_blocked, 0.0, total)
    ray = unit(point - state.x)
    return enter(
        state,
        MOVE,
        count=state.count + 1,
        end=unit(total - jnp.sum(total * ray) * ray),
        low=jnp.zeros(()),
        high=jnp.full((), jnp.pi / 2),  # where the circle meets x, which is not adversarial
    )


def _next_angle(state: LabelState) -> Scalar:
    """Doubles until a turn is too far, then bisects."""
    doubled = jnp.where(state.low > 0, 2 * state.low, state.own.angle)
    is_bracketed = state.high < jnp.pi / 2
    return jnp.where(is_bracketed, middle(state), jnp.minimum(doubled, middle(state)))


def _on_arc(state: LabelState) -> chex.Array:
    angle = _next_angle(state)
    radius = distance(state.point, state.x, "l2")
    ray = unit(state.point - state.x)
    turned = jnp.cos(angle) * ray + jnp.sin(angle) * state.end
    return state.x + radius * jnp.cos(angle) * turned


def _tell_arc(state: LabelState, told: Told) -> LabelState:
    angle = _next_angle(state)
    state = state._replace(
        low=jnp.where(told.hit, angle, state.low), high=jnp.where(told.hit, state.high, angle)
    )
    has_turned = state.low > 0
    # Near the boundary, an error of the angle is one of the distance times its sine.
    error = (state.high - state.low) * jnp.sin(state.low)
    is_over = jnp.where(has_turned, error <= _precision(state), state.high < _MIN_ANGLE)
    own = state.own._replace(
        angle=jnp.where(has_turned, state.low, state.own.angle),
        beta=jnp.where(has_turned, state.own.beta, 0.5 * state.own.beta),
    )
    return choose(is_over, _begin_signs(state)._replace(own=own), state)
