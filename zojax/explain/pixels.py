"""Pertinent negatives and positives: changes of the input itself, entry by entry."""

from collections.abc import Callable

import chex
import jax.numpy as jnp

from zojax.directions import hadamard
from zojax.estimators import finite_difference
from zojax.explain.solver import Explainer, Problem, Schedule, check_not_negative, search
from zojax.stencils import central
from zojax.types import Estimator, Scalar

Autoencoder = Callable[[chex.Array], chex.Array]
"""A JAX function of one input, (...) -> (...): what of it is like the data."""

_EST = finite_difference(directions=hadamard(), stencil=central, num_directions=32, sigma=0.01)


def pertinent_negative(
    est: Estimator = _EST,
    *,
    c: float = 10.0,
    beta: float = 1.0,
    kappa: float = 1.0,
    gamma: float = 100.0,
    autoencoder: Autoencoder | None = None,
    num_steps: int = 100,
    num_searches: int = 5,
    learning_rate: float = 0.05,
) -> Explainer:
    """What must be absent for the decision to stand: the least that, added, changes the class.

    Minimises c max(margin + kappa, 0) + beta |d|_1 + |d|^2 + gamma |x + d - AE(x + d)|^2 over
    0 <= d <= 1 - x, the margin being the score of the label minus the highest other one: see
    `zojax.explain.solver.search`. Nothing is ever taken away from x.

    The margin is that of the scores as they come. Give log-probabilities or logits: kappa is then
    a ratio of probabilities (1: the new class is e times as probable), and probabilities close to
    1 do not hide how close.

    Queries per step: those of the estimator and one check, 65 by default; 32,500 in all, one for
    the class before and one for the class after.

    Args:
      est: estimates the margin's gradient, any estimator; sigma is in units of x. A model that is
        piecewise constant, such as a forest, needs one that spans its steps: .1 rather than .01.
      c: the first weight of the hinge, > 0 (published: 10).
      beta: weight of |d|_1, >= 0: the larger, the fewer entries change. (The published .1 is not
        multiplied by the learning rate in the published proximal step; here it is.)
      kappa: margin by which the class must change, >= 0 (published: 10, of logits).
      gamma: weight of the autoencoder's error, >= 0 (published: 100); nothing without one.
      autoencoder: a JAX function that you know and the model does not depend on; its gradient is
        exact.
      num_steps: FISTA steps per value of c, at least 1 (published: 1,000).
      num_searches: values of c, at least 1 (published: 9).
      learning_rate: of the first step, > 0; step k of K takes sqrt(1 - k / K) of it (published:
        .01 for 1,000 steps).

    Raises:
      ValueError: for an argument out of range.

    Source: Dhurandhar et al. 2018 (contrastive explanation method), arXiv 1802.07623.
    """
    schedule = Schedule(c, kappa, num_steps, num_searches, learning_rate)

    def image(d: chex.Array, x: chex.Array) -> chex.Array:
        return jnp.clip(x + d, 0.0, 1.0)

    def limits(x: chex.Array) -> tuple[chex.Array, chex.Array]:
        return jnp.zeros_like(x), 1 - x

    problem = _problem(limits, image, beta, gamma, autoencoder)
    return Explainer(search("pertinent negative", problem, est, schedule), False, None)


def pertinent_positive(
    est: Estimator = _EST,
    *,
    c: float = 10.0,
    beta: float = 1.0,
    kappa: float = 1.0,
    gamma: float = 100.0,
    autoencoder: Autoencoder | None = None,
    num_steps: int = 100,
    num_searches: int = 5,
    learning_rate: float = 0.05,
) -> Explainer:
    """What suffices for the decision: the least part of x that has its class by itself.

    Minimises c max(margin + kappa, 0) + beta |d|_1 + |d|^2 + gamma |d - AE(d)|^2 over
    0 <= d <= x, the margin being the highest other score minus that of the label; the model is
    shown d alone. Nothing is ever added to x. Arguments and queries are those of
    `pertinent_negative`, with one query more, for the blank input d = 0.

    Args:
      est: as in `pertinent_negative`.
      c: likewise.
      beta: likewise.
      kappa: margin by which the class must be kept.
      gamma: likewise.
      autoencoder: likewise.
      num_steps: likewise.
      num_searches: likewise.
      learning_rate: likewise.

    Raises:
      ValueError: for an argument out of range.

    Source: Dhurandhar et al. 2018 (contrastive explanation method), arXiv 1802.07623.
    """
    schedule = Schedule(c, kappa, num_steps, num_searches, learning_rate)

    def image(d: chex.Array, x: chex.Array) -> chex.Array:
        del x
        return d

    def limits(x: chex.Array) -> tuple[chex.Array, chex.Array]:
        return jnp.zeros_like(x), x

    problem = _problem(limits, image, beta, gamma, autoencoder)
    return Explainer(search("pertinent positive", problem, est, schedule), True, jnp.zeros_like)


def _problem(
    limits: Callable[[chex.Array], tuple[chex.Array, chex.Array]],
    image: Callable[[chex.Array, chex.Array], chex.Array],
    beta: float,
    gamma: float,
    autoencoder: Autoencoder | None,
) -> Problem:
    check_not_negative("beta", beta)
    check_not_negative("gamma", gamma)

    def penalty(d: chex.Array, start: chex.Array, x: chex.Array) -> Scalar:
        del start
        square = jnp.sum(d**2)
        if autoencoder is None:
            return square
        shown = image(d, x)
        return square + gamma * jnp.sum((shown - autoencoder(shown)) ** 2)

    return Problem(jnp.zeros_like, limits, image, penalty, beta)
