"""What attacks by search within a ball share: propose a point, keep it where the margin falls."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp

from zojax.attacks.kernel import Ask, Attack, Goal, choose, margin
from zojax.errors import check_positive, check_that
from zojax.types import PRNGKey, Scalar, State


class SearchState(NamedTuple):
    """Where a search stands.

    Attributes:
      x: the input, (...).
      goal: what counts as success.
      current: the point of the lowest margin so far, (...).
      margin: of `current`, infinite before the first answer.
      step: int (), steps taken.
      memory: what the attack remembers.
      proposal: the point to ask about next, (...).
    """

    x: chex.Array
    goal: Goal
    current: chex.Array
    margin: Scalar
    step: Scalar
    memory: Any
    proposal: chex.Array


def search(
    name: str,
    *,
    remember: Callable[[chex.Array, PRNGKey], Any],
    propose: Callable[[SearchState], chex.Array],
    learn: Callable[[SearchState, Scalar], Any],
    is_spent: Callable[[SearchState], Scalar],
    keeps_ties: bool = False,
) -> Attack:
    """An attack that asks about one point per step, which may be a success itself.

    An answer that is NaN is no improvement, and its point is not kept.

    Args:
      name: as published.
      remember: `(x, key) -> memory` at the start.
      propose: `state -> point (...)`, within [0, 1] and the ball; the start of the search while
        `has_begun(state)` is false. A point that is `current` again is not asked about: the answer
        is known.
      learn: `(state, value) -> memory`, given the state before the answer and the margin at the
        proposed point, NaN without an answer.
      is_spent: `state -> bool ()`, nothing is left to try.
      keeps_ties: whether a point of equal margin is kept.
    """

    def init(x: chex.Array, goal: Goal, key: PRNGKey) -> State:
        infinite = jnp.asarray(jnp.inf, x.dtype)
        state = SearchState(x, goal, x, infinite, jnp.zeros((), jnp.int32), remember(x, key), x)
        return state._replace(proposal=propose(state))

    def ask(state: SearchState) -> Ask:
        is_new = jnp.any(state.proposal != state.current) | ~has_begun(state)
        return Ask(state.proposal[None], is_new[None], jnp.zeros(1, bool))

    def tell(state: SearchState, answers: chex.Array) -> State:
        value = margin(answers[0], state.goal).astype(state.margin.dtype)
        is_kept = value <= state.margin if keeps_ties else value < state.margin
        after = state._replace(
            current=choose(is_kept, state.proposal, state.current),
            margin=jnp.where(is_kept, value, state.margin),
            step=state.step + 1,
            memory=learn(state, value),
        )
        return after._replace(proposal=propose(after))

    def best(state: SearchState) -> tuple[chex.Array, Scalar]:
        return state.current, state.margin < 0

    def is_done(state: SearchState) -> Scalar:
        return (state.margin < 0) | is_spent(state)

    return Attack(name, "scores", init, ask, tell, best, is_done)


def has_begun(state: SearchState) -> Scalar:
    """Whether a margin is known, so that there is something to compare with.

    Args:
      state: of the search.
    """
    return jnp.isfinite(state.margin)


def check_ball(epsilon: float, norm: str) -> None:
    """Raises unless the ball makes sense.

    Args:
      epsilon: its radius.
      norm: of the ball.

    Raises:
      ValueError: if the radius is not positive or the norm not known.
    """
    check_positive("epsilon", epsilon)
    check_that("norm", norm, '"linf" or "l2"', ("linf", "l2").count)
