"""The loss of one perturbation for a set of images, asked of an oracle within its budget."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax import estimation
from zojax.attacks.inputs import PATIENCE, check_known, read_classes, read_inputs
from zojax.attacks.kernel import Goal, margin
from zojax.attacks.results import AttackInterrupted
from zojax.blackbox import Oracle, OracleError
from zojax.directions import sphere
from zojax.errors import check_at_least, check_instance, check_positive, check_that
from zojax.estimators import finite_difference
from zojax.keys import check_key
from zojax.stencils import forward
from zojax.types import Estimator, PRNGKey


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


class _Images(NamedTuple):
    """What is attacked: x (n, ...), and the goal of each image."""

    x: np.ndarray
    goal: Goal


class Problem:
    """The mean over images as a function of the perturbation, asked of an oracle."""

    def __init__(
        self,
        oracle: Oracle,
        x: Any,
        labels: Any,
        is_targeted: bool,
        key: PRNGKey,
        c: float,
        kappa: float,
        num_directions: int,
        probe: float,
    ) -> None:
        images = _read(oracle, x, labels, is_targeted)
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
        self._est = _estimator(num_directions, probe / float(np.sqrt(np.prod(self.shape))))
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
        return bool(is_covered) and self._num_silent < PATIENCE

    def gradient(
        self, delta: chex.Array, count: int, images: np.ndarray, *, is_snapshot: bool = False
    ) -> chex.Array | None:
        """Estimates the gradient of the mean over images, the distortion included.

        Args:
          delta: perturbation.
          count: number of the step; the directions are a function of it.
          images: over which.
          is_snapshot: whether `delta` was the iterate earlier, and was noted then.

        Returns:
          The estimate, None if there was no answer.
        """
        key = jax.random.fold_in(jax.random.fold_in(self._key, 0), count)
        points = np.asarray(_points(self._est, delta, key))
        margins = self._ask(points, images, "loss")
        losses = self._c * np.maximum(margins, -self._kappa)
        usable = np.isfinite(losses[:, 0]) & np.isfinite(losses[:, 1:]).any(axis=1)
        self._num_silent = 0 if usable.any() else self._num_silent + 1
        if len(images) == len(self.everybody) and not is_snapshot:
            mean = losses[usable, 0].mean() if usable.any() else np.nan
            self._losses.append(mean + float(np.sum(points[0] ** 2)))
            self._note(points[0], margins[:, 0] < 0)
        if not usable.any():
            return None
        return _combine(self._est, delta, key, losses, usable)

    def finish(self, delta: chex.Array) -> Universal:
        """Checks the last perturbation on all images.

        Args:
          delta: perturbation.
        """
        last = np.asarray(delta)
        self._note(last, self._ask(last[None], self.everybody, "check")[:, 0] < 0)
        return self._result()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Hands over the best perturbation so far where the oracle or the user ends the attack."""
        try:
            yield
        except (OracleError, KeyboardInterrupt) as error:
            remark = f"{self.num_reached()} of {self._success.size} images reached"
            raise AttackInterrupted(self._result(), remark, error) from error

    def num_reached(self) -> int:
        """For how many images the best perturbation so far reaches the goal."""
        return int(self._success.sum())

    def _result(self) -> Universal:
        length = float(np.sqrt(np.sum(self._best**2)))
        return Universal(self._best, self._success, length, np.asarray(self._losses, np.float32))

    def _ask(self, points: np.ndarray, images: np.ndarray, purpose: Any) -> np.ndarray:
        """Margins, (images, points)."""
        rows = np.clip(self._images.x[images][:, None] + points[None], 0, 1)
        owners = np.repeat(images, len(points))
        scores = self._oracle.scores(rows.reshape(-1, *self.shape), owners, purpose=purpose)
        check_known("labels", self._images.goal.label, self._oracle)
        if not scores.size:  # nobody could afford an answer, and nobody ever gave one
            return np.full(rows.shape[:2], np.nan, np.float32)
        goal = jax.tree.map(lambda part: part[images], self._images.goal)
        return np.asarray(_margins(scores.reshape(*rows.shape[:2], -1), goal))

    def _note(self, perturbation: np.ndarray, success: np.ndarray) -> None:
        """Keeps a perturbation that is better than the best so far."""
        more = int(success.sum()) - self.num_reached()
        is_shorter = np.sum(perturbation**2) < np.sum(self._best**2)
        if more > 0 or (more == 0 and is_shorter):
            self._best, self._success = perturbation, success


_margins = jax.jit(jax.vmap(margin))


@functools.lru_cache(maxsize=16)  # one object, so that a second run compiles nothing
def _estimator(num_directions: int, sigma: float) -> Estimator:
    """Forward differences along directions on the sphere of radius sqrt(d)."""
    return finite_difference(
        directions=sphere(), stencil=forward, num_directions=num_directions, sigma=sigma
    )


@functools.partial(jax.jit, static_argnums=0)
def _points(est: Estimator, delta: chex.Array, key: PRNGKey) -> chex.Array:
    return estimation.ask(est, delta, key, ())


@functools.partial(jax.jit, static_argnums=0)
def _combine(
    est: Estimator, delta: chex.Array, key: PRNGKey, losses: chex.Array, usable: chex.Array
) -> chex.Array:
    """The mean of the images' own estimates, each of which drops what failed."""

    def one(row: chex.Array) -> chex.Array:
        return estimation.tell(est, delta, key, (), row)[0].grad

    weights = usable.astype(jnp.float32)
    weights = weights / jnp.sum(weights)
    return jnp.tensordot(weights, jax.vmap(one)(losses), axes=1) + 2 * delta


def _read(oracle: Oracle, x: Any, labels: Any, is_targeted: bool) -> _Images:
    check_instance("oracle", oracle, Oracle, "made by zojax.blackbox.score_oracle")
    check_that("oracle", oracle.kind, "a score oracle", lambda kind: kind == "scores")
    images = read_inputs(x)
    check_that("x", images.shape, "at least one image", lambda shape: shape[0] > 0)
    classes = read_classes("labels", labels, oracle, len(images))
    goal = Goal(classes, np.full(len(images), bool(is_targeted)))
    return _Images(images, goal)
