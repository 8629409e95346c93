"""Contrastive explanations with the victim's gradient: what those from values alone aim at."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zojax.attacks import Goal, margin

NUM_STEPS = 1000
NUM_SEARCHES = 9
LEARNING_RATE = 0.01
_INITIAL_C = 10.0


class WhiteBox(NamedTuple):
    """One entry per image.

    Attributes:
        change: What is added, or kept, (b, ...); 0 without success.
        success: Bool (b,).
    """

    change: np.ndarray
    success: np.ndarray


class _Search(NamedTuple):
    """The bisection of one image: weight of the margin, its bounds, and the best change."""

    c: jax.Array
    lower: jax.Array
    upper: jax.Array
    best: jax.Array
    cost: jax.Array


def run(
    apply: Callable[[jax.Array], jax.Array],
    images: np.ndarray,
    labels: np.ndarray,
    keeps: bool,
    beta: float,
    kappa: float,
) -> WhiteBox:
    """Finds pertinent negatives or positives by FISTA with gradients, 9 times 1,000 steps.

    The objective is that of `zojax.explain`, the constants are the published ones.

    Args:
        apply: Logits of a batch, for JAX to differentiate.
        images: (b, ...) in [0, 1].
        labels: The model's classes, (b,).
        keeps: Positives rather than negatives.
        beta: Weight of the l1 norm.
        kappa: Margin by which the goal is to be reached.

    Source: Dhurandhar et al. 2018, arXiv 1802.07623.
    """
    solve = jax.jit(jax.vmap(functools.partial(_solve, apply, keeps, beta, kappa)))
    change, cost = solve(jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32))
    return WhiteBox(np.asarray(change), np.isfinite(np.asarray(cost)))


def _solve(
    apply: Callable[[jax.Array], jax.Array],
    keeps: bool,
    beta: float,
    kappa: float,
    x: jax.Array,
    label: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    base, high = (jnp.zeros_like(x), x) if keeps else (x, 1 - x)
    goal = Goal(label, jnp.asarray(keeps))

    def margin_of(change: jax.Array) -> jax.Array:
        return margin(apply((base + change)[None])[0], goal)

    def smooth(change: jax.Array, c: jax.Array) -> jax.Array:
        hinge = jnp.maximum(margin_of(change) + kappa, 0)
        return c * hinge + jnp.sum(change**2)

    def step(carry: tuple, count: jax.Array) -> tuple[tuple, None]:
        c, change, ahead, found, best, cost = carry
        rate = LEARNING_RATE * jnp.sqrt(1 - count / NUM_STEPS)
        moved = ahead - rate * jax.grad(smooth)(ahead, c)
        moved = jnp.clip(moved - rate * beta, 0, high)  # nothing is below 0, so this is the prox
        ahead = jnp.clip(moved + count / (count + 3) * (moved - change), 0, high)
        value = margin_of(moved)
        is_reached = (value < 0) & (value <= -kappa)
        new_cost = beta * jnp.sum(moved) + jnp.sum(moved**2)
        is_better = is_reached & (new_cost < cost)
        best, cost = jnp.where(is_better, moved, best), jnp.where(is_better, new_cost, cost)
        return (c, moved, ahead, found | is_reached, best, cost), None

    def search(_: int, state: _Search) -> _Search:
        zeros = jnp.zeros_like(x)
        carry = (state.c, zeros, zeros, jnp.asarray(False), state.best, state.cost)
        counts = jnp.arange(NUM_STEPS, dtype=jnp.float32)
        c, _, _, found, best, cost = jax.lax.scan(step, carry, counts)[0]
        upper = jnp.where(found, jnp.minimum(state.upper, c), state.upper)
        lower = jnp.where(found, state.lower, jnp.maximum(state.lower, c))
        c = jnp.where(jnp.isfinite(upper), (lower + upper) / 2, 10 * c)
        return _Search(c, lower, upper, best, cost)

    infinity = jnp.asarray(jnp.inf, jnp.float32)
    first = jnp.asarray(_INITIAL_C, jnp.float32)
    start = _Search(first, jnp.zeros(()), infinity, jnp.zeros_like(x), infinity)
    end = jax.lax.fori_loop(0, NUM_SEARCHES, search, start)
    return end.best, end.cost
