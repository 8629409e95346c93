"""The frame of the attacks that see labels: four phases, and what is asked and told in each."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp

from zojax.attacks.hard_label import NUM_ROWS, Sides, directions, draw_signs, sides_of
from zojax.attacks.kernel import Ask, Attack, Goal, Norm, choose, distance, is_reached
from zojax.types import PRNGKey, Scalar

START, BISECT, PROBE, MOVE = range(4)
"""Phases: trying starts, bisecting to the boundary, probing around it, moving along."""


class Nearest(NamedTuple):
    """The nearest adversarial input so far.

    Attributes:
      point: (...).
      distance: from the input; infinite before anything was found.
    """

    point: chex.Array
    distance: Scalar


class LabelState(NamedTuple):
    """Where an attack stands.

    Attributes:
      x: the input, (...).
      goal: what counts as success.
      key: of all random numbers, with `count`.
      nearest: the nearest adversarial input so far.
      asked: what `ask` names; None while answers are taken in, so that no phase copies its rows.
      phase: one of the four.
      count: starts tried, then estimates made.
      row: probes made for this estimate.
      point: on the boundary or close to it, from where probes and moves set out, (...).
      end: where the bisection set out, or what is known of the direction of the move, (...).
      low: of the bracket that is bisected, one end.
      high: the other end.
      own: what only this attack needs.
    """

    x: chex.Array
    goal: Goal
    key: PRNGKey
    nearest: Nearest
    asked: Any
    phase: Scalar
    count: Scalar
    row: Scalar
    point: chex.Array
    end: chex.Array
    low: Scalar
    high: Scalar
    own: Any


class Probes(NamedTuple):
    """Points to ask about, as a formula: `center + step (u_k - <u_k, ray> ray)`, clipped to [0, 1].

    Attributes:
      center: (...).
      step: the l2 length of a probe.
      total: how many probes an estimate needs.
      ray: (...), of length 1, if probes shall be orthogonal to it; else None.
    """

    center: chex.Array
    step: Scalar
    total: Scalar | int
    ray: chex.Array | None = None


class Told(NamedTuple):
    """What the answers say.

    Attributes:
      point: the first point that was asked about, (...).
      hit: whether it is adversarial.
      sides: where all points lie, as seen from `LabelState.point`.
    """

    point: chex.Array
    hit: Scalar
    sides: Sides


Tell: TypeAlias = Callable[[LabelState, Told], LabelState]


def label_attack(
    name: str,
    norm: Norm,
    own: Callable[[chex.Array], Any],
    points: Sequence[Callable[[LabelState], chex.Array]],
    probes: Callable[[LabelState], Probes],
    tells: Sequence[Tell],
    is_done: Callable[[LabelState], Scalar],
) -> Attack:
    """An attack that minimises a distance from labels only.

    Args:
      name: as published.
      norm: of the distance.
      own: `x -> LabelState.own` in the beginning.
      points: `state -> point` to ask about, in the phases START, BISECT and MOVE.
      probes: `state -> Probes`, in the phase PROBE.
      tells: `(state, told) -> state`, in each phase.
      is_done: `state -> bool ()`.
    """

    def ask(state: LabelState) -> Ask:
        around, is_probing = probes(state), state.phase == PROBE
        first, second, last = points
        center = jax.lax.switch(
            state.phase,
            (
                lambda state: _only_where(state.phase == START, lambda: first(state), state.x),
                second,
                lambda _: around.center,
                last,
            ),
            state,
        )
        rows = _rows(around._replace(center=center), state, is_probing)
        left = jnp.where(is_probing, around.total - state.row, 1)
        return Ask(rows, jnp.arange(NUM_ROWS) < left, jnp.zeros((NUM_ROWS,), bool))

    def init(x: chex.Array, goal: Goal, key: PRNGKey) -> LabelState:
        zero, one, none = jnp.zeros(()), jnp.ones(()), jnp.zeros((), jnp.int32)
        nearest = Nearest(x, jnp.full((), jnp.inf, jnp.float32))
        state = LabelState(
            *(x, goal, key, nearest, None, none + START, none, none),
            *(x, jnp.zeros_like(x), zero, one, own(x)),
        )
        return state._replace(asked=ask(state))

    def tell(state: LabelState, answers: chex.Array) -> LabelState:
        asked = state.asked
        hit = is_reached(answers, state.goal) & asked.used
        answered = asked.used & (answers >= 0)
        point = asked.points[0].reshape(state.x.shape)
        told = Told(point, hit[0], sides_of(asked.points, state.point, hit, answered))
        nearest = _keep_nearest(state, hit, norm)
        state = state._replace(nearest=nearest, asked=None)
        after = jax.lax.switch(state.phase, tells, state, told)
        # Where nothing was answered the same is asked again; starts are plenty.
        state = choose(jnp.any(answered) | (state.phase == START), after, state)
        return state._replace(asked=ask(state))

    return Attack(
        name,
        "labels",
        init,
        ask=lambda state: state.asked._replace(
            points=state.asked.points.reshape(NUM_ROWS, *state.x.shape)
        ),
        tell=tell,
        best=lambda state: (state.nearest.point, has_found(state)),
        is_done=is_done,
    )


def has_found(state: LabelState) -> Scalar:
    """Whether there is an adversarial input."""
    return jnp.isfinite(state.nearest.distance)


def middle(state: LabelState) -> Scalar:
    """Of the bracket."""
    return 0.5 * (state.low + state.high)


def phase_key(state: LabelState, phase: int) -> PRNGKey:
    """For the random numbers of one start or one estimate."""
    return jax.random.fold_in(jax.random.fold_in(state.key, phase), state.count)


def enter(state: LabelState, phase: int, **changes: Any) -> LabelState:
    """Begins a phase."""
    return state._replace(phase=jnp.full((), phase, jnp.int32), **changes)


def begin_bisect(state: LabelState, told: Told) -> LabelState:
    """Between x and the point that was asked about, which is adversarial."""
    return enter(state, BISECT, end=told.point, low=jnp.zeros(()), high=jnp.ones(()))


def halve(state: LabelState, hit: Scalar) -> LabelState:
    """Takes the half of the bracket that holds the boundary; `high` is the adversarial end."""
    half = middle(state)
    return state._replace(
        low=jnp.where(hit, state.low, half), high=jnp.where(hit, half, state.high)
    )


def _only_where(
    condition: Scalar, function: Callable[[], chex.Array], otherwise: chex.Array
) -> chex.Array:
    """`function()` where the condition holds; costs nothing where it holds for no sample.

    `lax.cond` would: under vmap it evaluates both sides. A loop runs until the last sample is
    through, here once or never.
    """
    never = jnp.zeros((), bool)
    return jax.lax.while_loop(
        lambda carry: carry[0], lambda _: (never, function()), (condition, otherwise)
    )[1]


def _rows(probes: Probes, state: LabelState, is_probing: Scalar) -> chex.Array:
    """(NUM_ROWS, d); the centre alone, that often, where the phase is another one."""
    size = state.x.size
    draw = functools.partial(draw_signs, phase_key(state, PROBE), size, state.row)
    none = jnp.zeros(jax.eval_shape(draw).shape)
    moves = directions(_only_where(is_probing, draw, none))
    if probes.ray is not None:
        ray = probes.ray.ravel()
        moves = moves - jnp.outer(moves @ ray, ray)
    return jnp.clip(probes.center.ravel()[None] + probes.step * moves, 0.0, 1.0)


def _keep_nearest(state: LabelState, hit: chex.Array, norm: Norm) -> Nearest:
    """Of `hit`, the rows of `asked` that are adversarial, and of what was found before."""
    points, x = state.asked.points, state.x
    distances = jax.vmap(lambda point: distance(point, x.ravel(), norm))(points)
    distances = jnp.where(hit, distances, jnp.inf)
    row = jnp.argmin(distances)
    found = Nearest(points[row].reshape(x.shape), distances[row])
    return choose(found.distance < state.nearest.distance, found, state.nearest)
