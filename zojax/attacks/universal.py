"""One perturbation for a set of images, by ZO-AdaMM or ZO-SVRG."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from zojax.attacks.gradient import decaying
from zojax.attacks.universal_problem import Problem, Universal
from zojax.blackbox import Oracle
from zojax.errors import check_at_least, check_positive
from zojax.transforms import scale_by_adamm
from zojax.types import PRNGKey


def universal_adamm(
    oracle: Oracle,
    x: Any,
    labels: Any,
    key: PRNGKey,
    *,
    is_targeted: bool = False,
    c: float = 10.0,
    kappa: float = 0.0,
    num_steps: int = 20_000,
    num_directions: int = 10,
    probe: float = 0.005,
    learning_rate: float = 0.1,
    progress: Callable[[int, int], None] | None = None,
) -> Universal:
    """One perturbation for a set of images by ZO-AdaMM, to evaluate a model you own.

    Minimises the mean over the images of c max(margin, -kappa), plus the squared length of the
    perturbation, whose gradient is known and costs nothing. Directions are uniform on the sphere,
    differences forward, steps `learning_rate` / sqrt(t). An image without an answer at the
    perturbation itself is left out of that estimate, a direction without one is left out for its
    image; after three estimates without any answer the attack ends.

    All images count, those that the model gets wrong already too.

    Queries per step and image: `num_directions` + 1. In the end one check per image. A step that
    an image's budget does not cover, with the check, is not started and ends the attack.

    Args:
      oracle: a score oracle; image i is its sample i.
      x: images within [0, 1], (n, ...), n at least 1.
      labels: their true classes, or the classes to be reached, integers (n,).
      key: typed key of shape ().
      is_targeted: whether labels are to be reached.
      c: weight of the margins, > 0.
      kappa: margin beyond the boundary that is still rewarded, >= 0.
      num_steps: at least 1.
      num_directions: per estimate, at least 1.
      probe: length of the perturbation along a direction, > 0.
      learning_rate: of the first step, > 0.
      progress: called after every step with the numbers of steps taken and of images for which the
        best perturbation so far reaches the goal.

    Raises:
      AttackInterrupted: if the oracle raises or the user interrupts; its `results` are the
        `Universal` so far.
      ValueError: for an argument out of range, before anything is asked.

    Source: Chen et al. 2019 (ZO-AdaMM), arXiv 1910.06513.
    """
    check_positive("learning_rate", learning_rate)
    check_at_least("num_steps", num_steps, 1)
    problem = Problem(oracle, x, labels, is_targeted, key, c, kappa, num_directions, probe)
    init, take = _adamm(learning_rate)
    delta = jnp.zeros(problem.shape, jnp.float32)
    state = init(delta)
    with problem.kept():
        for count in range(num_steps):
            if not problem.can_ask(problem.everybody, 1):
                break
            grad = problem.gradient(delta, count, problem.everybody)
            if grad is not None:
                delta, state = take(grad, state, delta)
            if progress is not None:
                progress(count + 1, problem.num_reached())
        return problem.finish(delta)


def universal_svrg(
    oracle: Oracle,
    x: Any,
    labels: Any,
    key: PRNGKey,
    *,
    is_targeted: bool = False,
    c: float = 10.0,
    kappa: float = 0.0,
    num_steps: int = 250_000,
    num_directions: int = 10,
    probe: float = 0.01,
    learning_rate: float | None = None,
    batch_size: int = 5,
    period: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> Universal:
    """One perturbation for a set of images by ZO-SVRG, to evaluate a model you own.

    As `universal_adamm`, but every `period` steps the gradient over all images is estimated at a
    snapshot; in between, the estimate on a batch is corrected by the one at the snapshot on the
    same batch and along the same directions (as `zojax.svrg`, which needs a loss in JAX). The
    perturbation is added to the pixels; the published attack adds it in the space of arctanh.

    Queries per image: `num_directions` + 1 in a step that takes a snapshot, twice that in any
    other step for the images of its batch. In the end one check per image. A step that an image's
    budget does not cover, with the check, is not started and ends the attack.

    Args:
      oracle: a score oracle; image i is its sample i.
      x: images within [0, 1], (n, ...), n at least 1.
      labels: their true classes, or the classes to be reached, integers (n,).
      key: typed key of shape ().
      is_targeted: whether labels are to be reached.
      c: weight of the margins, > 0 (published: 1).
      kappa: margin beyond the boundary that is still rewarded, >= 0.
      num_steps: at least 1.
      num_directions: per estimate, at least 1.
      probe: length of the perturbation along a direction, > 0.
      learning_rate: > 0; None takes 1 / d for images of d numbers, as published.
      batch_size: images per step, at least 1; at most all are taken.
      period: steps between snapshots, at least 1.
      progress: as in `universal_adamm`.

    Raises:
      AttackInterrupted: as `universal_adamm` does.
      ValueError: for an argument out of range, before anything is asked.

    Source: Liu et al. 2018 (ZO-SVRG), arXiv 1805.10367.
    """
    check_at_least("num_steps", num_steps, 1)
    check_at_least("batch_size", batch_size, 1)
    check_at_least("period", period, 1)
    if learning_rate is not None:
        check_positive("learning_rate", learning_rate)
    problem = Problem(oracle, x, labels, is_targeted, key, c, kappa, num_directions, probe)
    rate = 1 / int(np.prod(problem.shape)) if learning_rate is None else learning_rate
    init, take = _descent(rate)
    delta = jnp.zeros(problem.shape, jnp.float32)
    state = init(delta)
    snapshot, full = delta, None
    with problem.kept():
        for count in range(num_steps):
            is_start = full is None or count % period == 0
            images = problem.everybody if is_start else problem.batch(count, batch_size)
            if not problem.can_ask(images, 1 if is_start else 2):
                break
            grad = problem.gradient(delta, count, images)
            if is_start:
                snapshot, full = delta, grad
            else:
                there = problem.gradient(snapshot, count, images, is_snapshot=True)
                grad = None if grad is None or there is None else grad - there + full
            if grad is not None:
                delta, state = take(grad, state, delta)
            if progress is not None:
                progress(count + 1, problem.num_reached())
        return problem.finish(delta)


class _Step(NamedTuple):
    """An optax transformation, and one step of it, compiled."""

    init: Callable[[chex.Array], Any]
    take: Callable[..., tuple[chex.Array, Any]]


@functools.lru_cache(maxsize=16)  # one object, so that a second run compiles nothing
def _adamm(learning_rate: float) -> _Step:
    schedule = optax.scale_by_schedule(decaying(learning_rate))
    return _compile(optax.chain(scale_by_adamm(0.9, 0.3), schedule))


@functools.lru_cache(maxsize=16)
def _descent(learning_rate: float) -> _Step:
    return _compile(optax.scale(-learning_rate))


def _compile(step: optax.GradientTransformation) -> _Step:
    """Images lie in [0, 1], so that nothing is gained beyond changes of 1."""

    def take(grad: chex.Array, state: Any, delta: chex.Array) -> tuple[chex.Array, Any]:
        updates, state = step.update(grad, state, delta)
        return jnp.clip(delta + updates, -1, 1), state

    return _Step(step.init, jax.jit(take))
