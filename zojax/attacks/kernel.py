"""The form of every attack: pure functions that name points to ask about, and take the answers.

Attacks are for evaluating the robustness of models you own. A kernel is for one example; the driver
(`zojax.attacks.run`) vectorises it over examples, asks an oracle, and counts.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from zojax.types import PRNGKey, Scalar, State

Norm = Literal["linf", "l2"]
Answers = Literal["scores", "labels"]


class Goal(NamedTuple):
    """What counts as success, for one example.

    Attributes:
      label: the class that the model must not give (untargeted), or must give (targeted), shape ().
      is_targeted: shape ().
    """

    label: Scalar
    is_targeted: Scalar


class Ask(NamedTuple):
    """Points an attack wants to know about; their number q is the same at every step.

    Attributes:
      points: (q, ...), inputs of the model within its range.
      used: which of them are asked, bool (q,); the others cost nothing.
      is_check: which of them only check success, bool (q,); they are counted apart.
    """

    points: chex.Array
    used: chex.Array
    is_check: chex.Array


class Attack(NamedTuple):
    """An attack on one example.

    Attributes:
      name: as published.
      answers: what it needs, "scores" (or logits, or probabilities: see `margin`) or "labels".
      init: `(x, goal, key) -> state`; x (...) float32 is the input, classified correctly.
      ask: `state -> Ask`; depends on nothing but the state.
      tell: `(state, answers) -> state`; answers are scores (q, classes) or labels (q,) for the
        points of `ask`, NaN or -1 where they are not used or the oracle failed.
      best: `state -> (x, found)`: the best adversarial input so far, and whether there is one. For
        attacks within a ball the first one found, for attacks that minimise distortion the nearest.
      is_done: `state -> bool ()`: nothing more to gain.
    """

    name: str
    answers: Answers
    init: Callable[[chex.Array, Goal, PRNGKey], State]
    ask: Callable[[State], Ask]
    tell: Callable[[State, chex.Array], State]
    best: Callable[[State], tuple[chex.Array, Scalar]]
    is_done: Callable[[State], Scalar]


def margin(scores: chex.Array, goal: Goal) -> chex.Array:
    """What score-based attacks minimise: below 0 exactly where the goal is reached.

    Untargeted: the score of the label minus the highest other one; targeted: the highest other one
    minus that of the label. Scores may be logits or log-probabilities, whose margins are equal.

    Args:
      scores: (..., classes).
      goal: the goal.

    Returns:
      (...), NaN where the scores are.
    """
    is_label = jnp.arange(scores.shape[-1]) == goal.label
    of_label = jnp.sum(jnp.where(is_label, scores, 0), axis=-1)
    other = jnp.max(jnp.where(is_label, -jnp.inf, scores), axis=-1)
    difference = of_label - other
    return jnp.where(goal.is_targeted, -difference, difference)


def is_reached(labels: chex.Array, goal: Goal) -> chex.Array:
    """Whether labels fulfil the goal; -1 (no answer) never does.

    Args:
      labels: integers (...).
      goal: the goal.
    """
    fulfilled = jnp.where(goal.is_targeted, labels == goal.label, labels != goal.label)
    return fulfilled & (labels >= 0)


def project(x: chex.Array, center: chex.Array, radius: float, norm: Norm) -> chex.Array:
    """Projects onto the ball around `center`, then clips to [0, 1].

    Clipping moves towards `center`, which lies in [0, 1], so the result is within the ball.

    Args:
      x: (...).
      center: the same shape.
      radius: of the ball.
      norm: of the ball, over all entries.
    """
    offset = x - center
    if norm == "linf":
        offset = jnp.clip(offset, -radius, radius)
    else:
        length = jnp.sqrt(jnp.sum(offset**2))
        offset = offset * jnp.minimum(1.0, radius / jnp.maximum(length, 1e-12))
    return jnp.clip(center + offset, 0.0, 1.0)


def distance(x: chex.Array, y: chex.Array, norm: Norm) -> Scalar:
    """The norm of x - y over all entries.

    Args:
      x: (...).
      y: the same shape.
      norm: which.
    """
    offset = jnp.abs(x - y)
    return jnp.max(offset) if norm == "linf" else jnp.sqrt(jnp.sum(offset**2))


def next_weight(
    c: Scalar, lower: Scalar, upper: Scalar, has_succeeded: Scalar
) -> tuple[Scalar, Scalar, Scalar]:
    """The weight of the margin to try next, between the last failure and the last success.

    Args:
      c: the weight that was tried.
      lower: largest weight that failed before, ().
      upper: smallest weight that succeeded before, infinite if none did, ().
      has_succeeded: whether c did.

    Returns:
      The next weight, halfway, or ten times c while nothing succeeded; and `lower` and `upper`.
    """
    upper = jnp.where(has_succeeded, jnp.minimum(upper, c), upper)
    lower = jnp.where(has_succeeded, lower, jnp.maximum(lower, c))
    return jnp.where(jnp.isfinite(upper), 0.5 * (lower + upper), 10 * c), lower, upper


def choose(condition: chex.Array, new: Any, old: Any) -> Any:
    """`new` where a single condition holds, else `old`, for pytrees.

    Args:
      condition: bool ().
      new: a pytree.
      old: the same structure.
    """
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
