"""What the attacks that see labels share: starts, the way to the boundary, and its normal."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax.attacks.kernel import Goal, Norm, is_reached
from zojax.directions.base import unpack_signs
from zojax.errors import check_that
from zojax.types import PRNGKey, Scalar

NUM_ROWS = 32
"""Points per ask, a power of two; all are used where the normal is estimated, else one."""
MAX_STARTS = 1000
"""Random starts after which an attack that has found nothing gives up."""

Initial: TypeAlias = Callable[[chex.Array, Goal, PRNGKey], chex.Array]
"""`(x, goal, key) -> point`, a random input within [0, 1] that may well fulfil the goal."""


def noise_image(x: chex.Array, goal: Goal, key: PRNGKey) -> chex.Array:
    """An image of zeros and ones, of random brightness: a start for untargeted attacks.

    Brightness varies so that models, which take most noise for one and the same class, give
    several.

    Args:
      x: the input that is attacked.
      goal: not looked at.
      key: typed key.
    """
    del goal
    brightness = jax.random.uniform(jax.random.fold_in(key, 0))
    return jax.random.bernoulli(jax.random.fold_in(key, 1), brightness, x.shape).astype(x.dtype)


def class_examples(inputs: Any, labels: Any) -> Initial:
    """Starts at one of the given inputs: of the target class, or of any but the true class.

    Targeted attacks need it, since noise is hardly ever taken for the target class.

    Args:
      inputs: (n, ...), of the shape of the attacked inputs, within [0, 1].
      labels: their classes, integers (n,), best as the model sees them. Where none fulfils the
        goal the attack fails.

    Returns:
      A value for the argument `initial` of `sign_opt` and `hop_skip_jump`.

    Raises:
      ValueError: if there are no inputs, or not as many labels.
    """
    inputs, labels = jnp.asarray(inputs, jnp.float32), jnp.asarray(labels)
    count = inputs.shape[:1]
    check_that("the shape of inputs", inputs.shape, "(n, ...) with n >= 1", lambda _: any(count))
    check_that("the shape of labels", labels.shape, str(count), count.__eq__)

    def draw(x: chex.Array, goal: Goal, key: PRNGKey) -> chex.Array:
        del x
        logits = jnp.where(is_reached(labels, goal), 0.0, -jnp.inf)
        return inputs[jax.random.categorical(key, logits)]

    return draw


def on_path(x: chex.Array, end: chex.Array, fraction: Scalar, norm: Norm) -> chex.Array:
    """The projection of `end` onto the ball around x with that fraction of its distance.

    Args:
      x: the centre.
      end: (...).
      fraction: in [0, 1].
      norm: of the ball.
    """
    offset = end - x
    if norm == "linf":
        bound = fraction * jnp.max(jnp.abs(offset))
        return x + jnp.clip(offset, -bound, bound)
    return x + fraction * offset


class Sides(NamedTuple):
    """Sums of the directions that led to either side of the boundary.

    Attributes:
      inside: of those that led to an adversarial point, (...).
      outside: of the others, (...).
      num_inside: how many.
      num_outside: how many.
    """

    inside: chex.Array
    outside: chex.Array
    num_inside: Scalar
    num_outside: Scalar


def no_sides(x: chex.Array) -> Sides:
    """Empty sums.

    Args:
      x: an input.
    """
    zero = jnp.zeros((), x.dtype)
    return Sides(jnp.zeros_like(x), jnp.zeros_like(x), zero, zero)


def sides_of(
    points: chex.Array, origin: chex.Array, hit: chex.Array, answered: chex.Array
) -> Sides:
    """Sums of what points differ by from the boundary; rows without an answer are dropped.

    Args:
      points: (NUM_ROWS, d).
      origin: the point on the boundary, (...).
      hit: which points are adversarial.
      answered: which were asked and answered.
    """
    weights = jnp.stack([answered & hit, answered & ~hit]).astype(points.dtype)
    inside, outside = (weights @ (points - origin.ravel()[None])).reshape(2, *origin.shape)
    return Sides(inside, outside, *jnp.sum(weights, axis=1))


def normal_of(sides: Sides) -> chex.Array:
    """Towards the adversarial side: the mean of one sum minus the mean of the other.

    Proportional to the sum of (s_k - mean s) u_k with s_k = +1 inside and -1 outside. Where all
    points lie on one side, the mean of their directions, or its negative.

    Args:
      sides: the sums.
    """
    inside = sides.inside / jnp.maximum(sides.num_inside, 1.0)
    return inside - sides.outside / jnp.maximum(sides.num_outside, 1.0)


def unit(x: chex.Array) -> chex.Array:
    """The vector over its l2 norm; zero stays zero.

    Args:
      x: (...).
    """
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x**2)), 1e-30)


def draw_signs(key: PRNGKey, size: int, start: Scalar) -> chex.Array:
    """What `directions` makes directions `start` ... `start + NUM_ROWS` of an estimate from.

    Directions come in blocks of p sign vectors H D as in `zojax.directions.hadamard`, p the next
    power of two from the dimension: orthogonal where the dimension is p, nearly so elsewhere. The
    rows of H are taken in order, which is as good since D is random, and saves sorting p numbers at
    every ask. The sign of entry (start + k, j) of H is that of (start, j), which is drawn here
    together with D, times that of (k, j), which is the same for all.

    Args:
      key: of the estimate.
      size: the dimension.
      start: a multiple of NUM_ROWS.

    Returns:
      (blocks, size): the blocks that NUM_ROWS rows meet, one if p is not less than that.
    """
    padded = 1 << (size - 1).bit_length()
    num_blocks = max(1, NUM_ROWS // padded)  # both are powers of two
    block_key = jax.random.fold_in(key, start // padded)
    words = jax.random.bits(block_key, (num_blocks, -(-size // 32)), dtype="uint32")
    shared = (start % padded).astype(jnp.uint32) & jnp.arange(size, dtype=jnp.uint32)
    is_odd = (jax.lax.population_count(shared) & jnp.uint32(1)).astype(bool)
    return unpack_signs(words, size) * jnp.where(is_odd, -1.0, 1.0)[None]


def directions(signs: chex.Array) -> chex.Array:
    """Directions of length 1, (NUM_ROWS, size).

    Args:
      signs: of `draw_signs`; zeros make zeros.
    """
    num_blocks, size = signs.shape
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < NUM_ROWS // num_blocks:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    entries = np.tile(matrix, -(-size // len(matrix)))[:, :size] * np.float32(size**-0.5)
    return (signs[:, None] * entries[None]).reshape(NUM_ROWS, size)
