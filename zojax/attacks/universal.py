"""One perturbation for a set of images, by ZO-AdaMM or ZO-SVRG."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from zojax import estimation
from zojax.attacks.gradient import decaying
from zojax.attacks.kernel import Goal, margin
from zojax.blackbox import Oracle
from zojax.directions import sphere
from zojax.errors import check_at_least, check_instance, check_positive, check_that
from zojax.estimators import finite_difference
from zojax.keys import check_key
from zojax.stencils import forward
from zojax.transforms import scale_by_adamm
from zojax.types import PRNGKey

_PATIENCE = 3  # consecutive estimates without any answer after which the attack ends


class Universal(NamedTuple):
    """A perturbation for many images; NumPy arrays.

    Attributes:
      perturbation: float32, of the shape of one image; image i becomes
        clip(x_i + perturbation, 0, 1). Of those tried on all images, one that reached the goal for
        the most, and of these the shortest.
      success: for which images it reached the goal, bool (n,); False where there was no answer.
      l2: length of the perturbation.
      losses: the objective wherever all images were asked, oldest first; NaN without any answer.
    """

    perturbation: np.ndarray
    success: np.ndarray
    l2: float
    losses: np.ndarray


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
) -> Universal:
    """One perturbation for a set of images by ZO-AdaMM, to evaluate a model you own.

    Minimises the mean over the images of c max(margin, -kappa), plus the squared length of the
    perturbation, whose gradient is known and costs nothing. Directions are uniform on the sphere,
    differences forward, steps `learning_rate` / sqrt(t). An image without an answer at the
    perturbation itself is left out of that estimate, a direction without one is left out for its
    image; after three estimates without any answer the attack ends.

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

    Raises:
      OracleError: if the oracle raises.
      ValueError: for an argument out of range, before anything is asked.

    Source: Chen et al. 2019 (ZO-AdaMM), arXiv 1910.06513.
    """
    check_positive("learning_rate", learning_rate)
    check_at_least("num_steps", num_steps, 1)
    problem = _Problem(
        oracle, _read(oracle, x, labels, is_targeted), key, c, kappa, num_directions, probe
    )
    step = optax.chain(scale_by_adamm(0.9, 0.3), optax.scale_by_schedule(decaying(learning_rate)))
    take = _compile(step)
    delta = jnp.zeros(problem.shape, jnp.float32)
    state = step.init(delta)
    for count in range(num_steps):
        if not problem.can_ask(problem.everybody, 1):
            break
        grad = problem.gradient(delta, count, problem.everybody)
        if grad is not None:
            delta, state = take(grad, state, delta)
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

    Raises:
      OracleError: if the oracle raises.
      ValueError: for an argument out of range, before anything is asked.

    Source: Liu et al. 2018 (ZO-SVRG), arXiv 1805.10367.
    """
    check_at_least("num_steps", num_steps, 1)
    check_at_least("batch_size", batch_size, 1)
    check_at_least("period", period, 1)
    if learning_rate is not None:
        check_positive("learning_rate", learning_rate)
    problem = _Problem(
        oracle, _read(oracle, x, labels, is_targeted), key, c, kappa, num_directions, probe
    )
    rate = 1 / int(np.prod(problem.shape)) if learning_rate is None else learning_rate
    step = optax.scale(-rate)
    take = _compile(step)
    delta = jnp.zeros(problem.shape, jnp.float32)
    state = step.init(delta)
    snapshot, full = delta, None
    for count in range(num_steps):
        is_start = full is None or count % period == 0
        images = problem.everybody if is_start else problem.batch(count, batch_size)
        if not problem.can_ask(images, 1 if is_start else 2):
            break
        grad = problem.gradient(delta, count, images)
        if is_start:
            snapshot, full = delta, grad
        else:
            there = problem.gradient(snapshot, count, images)
            grad = None if grad is None or there is None else grad - there + full
        if grad is not None:
            delta, state = take(grad, state, delta)
    return problem.finish(delta)


class _Images(NamedTuple):
    """What is attacked: x (n, ...), and the goal of each image."""

    x: np.ndarray
    goal: Goal


class _Problem:
    """The mean over images as a function of the perturbation, asked of an oracle."""

    def __init__(
        self,
        oracle: Oracle,
        images: _Images,
        key: PRNGKey,
        c: float,
        kappa: float,
        num_directions: int,
        probe: float,
    ) -> None:
        check_key(key)
        check_positive("c", c)
        check_that("kappa", kappa, "a finite number >= 0", lambda x: 0 <= x < float("inf"))
        check_at_least("num_directions", num_directions, 1)
        check_positive("probe", probe)
        self.shape = images.x.shape[1:]
        self.everybody = np.arange(len(images.x))
        self._oracle = oracle
        self._images = images
        self._key = key
        self._c = c
        self._kappa = kappa
        self._est = finite_difference(
            directions=sphere(),  # of radius sqrt(d)
            stencil=forward,
            num_directions=num_directions,
            sigma=probe / float(np.sqrt(np.prod(self.shape))),
        )
        self._combine = self._compile()
        self._num_points = num_directions + 1
        self._num_silent = 0
        self._losses: list[float] = []
        self._best = np.zeros(self.shape, np.float32)
        self._success = np.zeros(len(images.x), bool)

    def batch(self, count: int, size: int) -> np.ndarray:
        """Draws images without replacement, sorted.

        Args:
          count: number of the step.
          size: how many at most.
        """
        key = jax.random.fold_in(jax.random.fold_in(self._key, 1), count)
        order = np.asarray(jax.random.permutation(key, len(self.everybody)))
        return np.sort(order[:size])

    def can_ask(self, images: np.ndarray, num_estimates: int) -> bool:
        """Whether the budget covers estimates and the check at the end, and anybody answers.

        Args:
          images: which are asked.
          num_estimates: how many.
        """
        left = self._oracle.remaining(images).min()
        is_covered = left > num_estimates * self._num_points
        return bool(is_covered) and self._num_silent < _PATIENCE

    def gradient(self, delta: chex.Array, count: int, images: np.ndarray) -> chex.Array | None:
        """Estimates the gradient of the mean over images, the distortion included.

        Args:
          delta: perturbation.
          count: number of the step; the directions are a function of it.
          images: over which.

        Returns:
          The estimate, None if there was no answer.
        """
        key = jax.random.fold_in(jax.random.fold_in(self._key, 0), count)
        points = np.asarray(estimation.ask(self._est, delta, key, ()))
        margins = self._ask(points, images, "loss")
        losses = self._c * np.maximum(margins, -self._kappa)
        usable = np.isfinite(losses[:, 0]) & np.isfinite(losses[:, 1:]).any(axis=1)
        self._num_silent = 0 if usable.any() else self._num_silent + 1
        if len(images) == len(self.everybody):
            mean = losses[usable, 0].mean() if usable.any() else np.nan
            self._losses.append(mean + float(np.sum(points[0] ** 2)))
            self._note(points[0], margins[:, 0] < 0)
        if not usable.any():
            return None
        return self._combine(delta, key, losses, usable)

    def _compile(self) -> Callable[..., chex.Array]:
        """The mean of the images' own estimates, each of which drops what failed."""

        def combine(
            delta: chex.Array, key: PRNGKey, losses: chex.Array, usable: chex.Array
        ) -> chex.Array:
            def one(row: chex.Array) -> chex.Array:
                return estimation.tell(self._est, delta, key, (), row)[0].grad

            weights = usable.astype(jnp.float32)
            weights = weights / jnp.sum(weights)
            return jnp.tensordot(weights, jax.vmap(one)(losses), axes=1) + 2 * delta

        return jax.jit(combine)

    def finish(self, delta: chex.Array) -> Universal:
        """Checks the last perturbation on all images.

        Args:
          delta: perturbation.
        """
        last = np.asarray(delta)
        self._note(last, self._ask(last[None], self.everybody, "check")[:, 0] < 0)
        length = float(np.sqrt(np.sum(self._best**2)))
        return Universal(self._best, self._success, length, np.asarray(self._losses, np.float32))

    def _ask(self, points: np.ndarray, images: np.ndarray, purpose: Any) -> np.ndarray:
        """Margins, (images, points)."""
        rows = np.clip(self._images.x[images][:, None] + points[None], 0, 1)
        owners = np.repeat(images, len(points))
        scores = self._oracle.scores(rows.reshape(-1, *self.shape), owners, purpose=purpose)
        if not scores.size:  # nobody could afford an answer, and nobody ever gave one
            return np.full(rows.shape[:2], np.nan, np.float32)
        goal = jax.tree.map(lambda part: part[images], self._images.goal)
        return np.asarray(_margins(scores.reshape(*rows.shape[:2], -1), goal))

    def _note(self, perturbation: np.ndarray, success: np.ndarray) -> None:
        """Keeps a perturbation that is better than the best so far."""
        more = int(success.sum()) - int(self._success.sum())
        is_shorter = np.sum(perturbation**2) < np.sum(self._best**2)
        if more > 0 or (more == 0 and is_shorter):
            self._best, self._success = perturbation, success


_margins = jax.jit(jax.vmap(margin))


def _compile(step: optax.GradientTransformation) -> Callable[..., tuple[chex.Array, Any]]:
    """One step; images lie in [0, 1], so that nothing is gained beyond changes of 1."""

    def take(grad: chex.Array, state: Any, delta: chex.Array) -> tuple[chex.Array, Any]:
        updates, state = step.update(grad, state, delta)
        return jnp.clip(delta + updates, -1, 1), state

    return jax.jit(take)


def _read(oracle: Oracle, x: Any, labels: Any, is_targeted: bool) -> _Images:
    check_instance("oracle", oracle, Oracle, "made by zojax.blackbox.score_oracle")
    check_that("oracle", oracle.kind, "a score oracle", lambda kind: kind == "scores")
    images = np.asarray(x, np.float32)
    check_that("x", images.shape, "n >= 1 images, (n, ...)", lambda s: len(s) > 1 and s[0] > 0)
    if not np.all((images >= 0) & (images <= 1)):
        raise ValueError(
            f"x must be finite and within [0, 1], got values from {images.min()} to {images.max()}"
        )
    classes = np.asarray(labels)
    is_integer = np.issubdtype(classes.dtype, np.integer)
    if not is_integer or classes.shape != (len(images),) or classes.min() < 0:
        raise ValueError(f"labels must be {len(images)} integers >= 0, got {labels!r}")
    if oracle.num_classes is not None and classes.max() >= oracle.num_classes:
        raise ValueError(f"labels must be below {oracle.num_classes}, got {labels!r}")
    goal = Goal(classes.astype(np.int32), np.full(len(images), bool(is_targeted)))
    return _Images(images, goal)
