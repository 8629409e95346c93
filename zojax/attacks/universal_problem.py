"""The loss of one perturbation for a set of images, asked of an oracle within its budget."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax import estimation
from zojax.attacks.kernel import Goal, margin
from zojax.attacks.results import AttackInterrupted
from zojax.blackbox import Oracle, OracleError
from zojax.directions import sphere
from zojax.errors import check_at_least, check_instance, check_positive, check_that
from zojax.estimators import finite_difference
from zojax.keys import check_key
from zojax.stencils import forward
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
