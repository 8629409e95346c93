"""Sign-OPT: the nearest adversarial input from labels, by signs of directional derivatives."""

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
from zojax.attacks.kernel import Ask, Attack, Goal, choose, distance, is_reached
from zojax.errors import check_at_least, check_positive, check_that
from zojax.types import PRNGKey, Scalar

_START, _BISECT, _SIGNS, _ARC = range(4)
_MIN_ANGLE = 1e-3  # radians; a smaller turn would gain less than a millionth of the distance
_MIN_BETA = 1e-4  # below it, rounding decides about the signs
_PRECISION = 0.25  # of the search for the boundary, in units of what a probe moves across it
_MIN_GAIN, _MAX_GAIN = 0.05, 20.0  # of `depth`, in the same unit


class SignOptState(NamedTuple):
    """Where a Sign-OPT attack stands.

    Attributes:
      x: the input, (...).
      goal: what counts as success.
      key: of all random numbers, with `count`.
      nearest: the nearest adversarial input so far.
      asked: the points that `ask` names.
      phase: trying starts, bisecting towards one, probing signs, or searching on the arc.
      count: starts tried, then estimates made.
      row: probes made for this estimate.
      point: from where probes and the arc set out, on the boundary.
      end: where the bisection comes from, or the sum of signed directions, or the unit vector
        towards which the arc turns, (...).
      low: of the bracket: fraction of the way that is not adversarial; angle that is.
      high: of the bracket: the other end.
      angle: the last turn, where the next search begins.
      beta: length of a probe over the distance.
      depth: how far beyond `point` the probes lie, over beta distance / sqrt(d).
      gain: by how much `depth` moves.
      side: -1 to 1, on which side the last chunk of probes lay; adversarial is negative.
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
    asks = (
        functools.partial(_ask_start, initial=initial),
        lambda state: rows_of(on_path(state.x, state.end, _middle(state), "l2")),
        functools.partial(_ask_signs, num_directions=num_directions),
        lambda state: rows_of(_on_arc(state)),
    )
    tells = (
        functools.partial(_tell_start, num_starts=num_starts),
        functools.partial(_tell_bisect, num_starts=num_starts),
        functools.partial(_tell_signs, num_directions=num_directions),
        _tell_arc,
    )

    def init(x: chex.Array, goal: Goal, key: PRNGKey) -> SignOptState:
        zero, one, none = jnp.zeros(()), jnp.ones(()), jnp.zeros((), jnp.int32)
        nearest = Nearest(x, jnp.full((), jnp.inf))
        state = SignOptState(
            *(x, goal, key, nearest, rows_of(x), none, none, none, x, jnp.zeros_like(x)),
            *(zero, one, jnp.arctan(jnp.asarray(alpha, jnp.float32))),
            *(jnp.asarray(beta, jnp.float32), zero, one, zero),
        )
        return state._replace(asked=asks[_START](state))

    def tell(state: SignOptState, answers: chex.Array) -> SignOptState:
        hit = is_reached(answers, state.goal) & state.asked.used
        answered = state.asked.used & (answers >= 0)
        nearest = keep_nearest(state.nearest, state.x, state.asked, hit, "l2")
        state = state._replace(nearest=nearest)
        after = jax.lax.switch(state.phase, tells, state, hit, answered)
        # Where nothing was answered the same is asked again; starts are plenty.
        state = choose(jnp.any(answered) | (state.phase == _START), after, state)
        return state._replace(asked=jax.lax.switch(state.phase, asks, state))

    def is_done(state: SignOptState) -> Scalar:
        has_failed = (state.count >= MAX_STARTS) & ~_has_found(state)
        return has_failed | (state.beta < _MIN_BETA) | (state.nearest.distance == 0)

    return Attack(
        "Sign-OPT",
        "labels",
        init,
        ask=lambda state: state.asked,
        tell=tell,
        best=lambda state: (state.nearest.point, _has_found(state)),
        is_done=is_done,
    )


def _has_found(state: SignOptState) -> Scalar:
    return jnp.isfinite(state.nearest.distance)


def _middle(state: SignOptState) -> Scalar:
    return 0.5 * (state.low + state.high)


def _key(state: SignOptState, phase: int) -> PRNGKey:
    return jax.random.fold_in(jax.random.fold_in(state.key, phase), state.count)


def _num_probes(state: SignOptState, num_directions: int) -> int:
    """More than the dimension would be directions asked twice; fewer than a chunk saves nothing."""
    return min(num_directions, max(state.x.size, NUM_ROWS))


def _precision(state: SignOptState) -> Scalar:
    """How well the boundary must be known, over the distance."""
    return _PRECISION * state.beta * state.x.size**-0.5


def _ask_start(state: SignOptState, initial: Initial) -> Ask:
    start = initial(state.x, state.goal, _key(state, _START))
    length = distance(start, state.x, "l2")
    fraction = state.nearest.distance / jnp.maximum(length, 1e-12)
    return rows_of(on_path(state.x, start, jnp.minimum(fraction, 1.0), "l2"))


def _tell_start(
    state: SignOptState, hit: chex.Array, answered: chex.Array, num_starts: int
) -> SignOptState:
    del answered
    state = state._replace(count=state.count + 1)
    bisect = state._replace(
        phase=jnp.full((), _BISECT, jnp.int32),
        end=state.asked.points[0],
        low=jnp.zeros(()),
        high=jnp.ones(()),
    )
    return choose(hit[0], bisect, _next_start(state, num_starts))


def _tell_bisect(
    state: SignOptState, hit: chex.Array, answered: chex.Array, num_starts: int
) -> SignOptState:
    del answered
    state = state._replace(
        low=jnp.where(hit[0], state.low, _middle(state)),
        high=jnp.where(hit[0], _middle(state), state.high),
    )
    is_over = state.high - state.low <= _precision(state)
    return choose(is_over, _next_start(state, num_starts), state)


def _next_start(state: SignOptState, num_starts: int) -> SignOptState:
    has_enough = (state.count >= num_starts) & _has_found(state)
    again = state._replace(phase=jnp.full((), _START, jnp.int32))
    return choose(has_enough, _begin_signs(state), again)


def _begin_signs(state: SignOptState) -> SignOptState:
    return state._replace(
        phase=jnp.full((), _SIGNS, jnp.int32),
        row=jnp.zeros((), jnp.int32),
        point=state.nearest.point,
        end=jnp.zeros_like(state.x),
    )


def _ask_signs(state: SignOptState, num_directions: int) -> Ask:
    """Probes on the tangent plane of the sphere, `depth` beyond the boundary point.

    Their centre keeps the length of a probe's entry away from the bounds of the box, so that
    clipping does not spoil the symmetry of the directions.
    """
    step = state.beta * distance(state.point, state.x, "l2")
    entry = step * state.x.size**-0.5
    center = jnp.clip(state.point, entry, 1.0 - entry)
    ray = unit(center - state.x)
    center = center + entry * state.depth * ray

    def probe(move: chex.Array) -> chex.Array:
        return center + step * (move - jnp.sum(move * ray) * ray)

    moves = draw_directions(_key(state, _SIGNS), state.x, state.row)
    used = state.row + jnp.arange(NUM_ROWS) < _num_probes(state, num_directions)
    return rows_of(jax.vmap(probe)(moves), used)


def _tell_signs(
    state: SignOptState, hit: chex.Array, answered: chex.Array, num_directions: int
) -> SignOptState:
    """Adds the signed directions of a chunk, signs taken from their mean within the chunk."""
    moved = offsets(state.asked.points, state.point)
    chunk = add_sides(no_sides(state.x), moved, hit, answered)
    number = jnp.maximum(chunk.num_inside + chunk.num_outside, 1.0)
    weight = chunk.num_inside * chunk.num_outside / number
    side = (chunk.num_outside - chunk.num_inside) / number
    # Grows while all chunks fall on one side, shrinks where the sides alternate.
    gain = state.gain * jnp.where(side * state.side > 0, 1.3, 0.6)
    gain = jnp.clip(gain, _MIN_GAIN, _MAX_GAIN)
    state = state._replace(
        row=state.row + NUM_ROWS,
        end=state.end + weight * normal_of(chunk),
        depth=state.depth + gain * side,
        gain=gain,
        side=side,
    )
    # A sum of zero, all chunks on one side of the boundary, says nothing.
    after = choose(jnp.any(state.end != 0), _begin_arc(state), _begin_again(state))
    return choose(state.row >= _num_probes(state, num_directions), after, state)


def _begin_again(state: SignOptState) -> SignOptState:
    return _begin_signs(state)._replace(count=state.count + 1, beta=0.5 * state.beta)


def _begin_arc(state: SignOptState) -> SignOptState:
    """Turns to the signed sum, without what points out of the box and what points away from x."""
    total, point = state.end, state.point
    is_blocked = ((point <= 0) & (total < 0)) | ((point >= 1) & (total > 0))
    total = jnp.where(is_blocked, 0.0, total)
    ray = unit(point - state.x)
    return state._replace(
        phase=jnp.full((), _ARC, jnp.int32),
        count=state.count + 1,
        end=unit(total - jnp.sum(total * ray) * ray),
        low=jnp.zeros(()),
        high=jnp.full((), jnp.pi / 2),  # where the circle meets x, which is not adversarial
    )


def _next_angle(state: SignOptState) -> Scalar:
    """Doubles until a turn is too far, then bisects."""
    doubled = jnp.where(state.low > 0, 2 * state.low, state.angle)
    is_bracketed = state.high < jnp.pi / 2
    return jnp.where(is_bracketed, _middle(state), jnp.minimum(doubled, _middle(state)))


def _on_arc(state: SignOptState) -> chex.Array:
    angle = _next_angle(state)
    radius = distance(state.point, state.x, "l2")
    ray = unit(state.point - state.x)
    turned = jnp.cos(angle) * ray + jnp.sin(angle) * state.end
    return state.x + radius * jnp.cos(angle) * turned


def _tell_arc(state: SignOptState, hit: chex.Array, answered: chex.Array) -> SignOptState:
    del answered
    angle = _next_angle(state)
    state = state._replace(
        low=jnp.where(hit[0], angle, state.low), high=jnp.where(hit[0], state.high, angle)
    )
    has_turned = state.low > 0
    # Near the boundary, an error of the angle is one of the distance times its sine.
    error = (state.high - state.low) * jnp.sin(state.low)
    is_over = jnp.where(has_turned, error <= _precision(state), state.high < _MIN_ANGLE)
    after = _begin_signs(state)._replace(
        angle=jnp.where(has_turned, state.low, state.angle),
        beta=jnp.where(has_turned, state.beta, 0.5 * state.beta),
    )
    return choose(is_over, after, state)
