"""What the attacks that see labels share: starts, the way to the boundary, and its normal."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp

from zojax.attacks.kernel import Ask, Goal, Norm, distance, is_reached
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


class Nearest(NamedTuple):
    """The nearest adversarial input so far.

    Attributes:
      point: (...).
      distance: from the input; infinite before anything was found.
    """

    point: chex.Array
    distance: Scalar


def keep_nearest(nearest: Nearest, x: chex.Array, ask: Ask, hit: chex.Array, norm: Norm) -> Nearest:
    """Takes in the answers to one ask.

    Args:
      nearest: so far.
      x: the input that is attacked.
      ask: what was asked.
      hit: which of its rows are adversarial; none that was not asked.
      norm: of the distance.
    """
    distances = jax.vmap(lambda point: distance(point, x, norm))(ask.points)
    distances = jnp.where(hit, distances, jnp.inf)
    row = jnp.argmin(distances)
    is_nearer = distances[row] < nearest.distance
    return Nearest(
        jnp.where(is_nearer, ask.points[row], nearest.point),
        jnp.where(is_nearer, distances[row], nearest.distance),
    )


def rows_of(points: chex.Array, used: chex.Array | None = None) -> Ask:
    """An ask about some rows, or about a single point.

    Args:
      points: (NUM_ROWS, ...), or one point (...) if `used` is None; clipped to [0, 1].
      used: bool (NUM_ROWS,).
    """
    if used is None:
        points = jnp.broadcast_to(points, (NUM_ROWS, *points.shape))
        used = jnp.arange(NUM_ROWS) == 0
    return Ask(jnp.clip(points, 0.0, 1.0), used, jnp.zeros((NUM_ROWS,), bool))


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


def add_sides(sides: Sides, moved: chex.Array, hit: chex.Array, answered: chex.Array) -> Sides:
    """Takes in answers; rows without one are dropped.

    Args:
      sides: so far.
      moved: what the points differ by from the boundary, (NUM_ROWS, ...).
      hit: which points are adversarial.
      answered: which were asked and answered.
    """

    def total(rows: chex.Array) -> tuple[chex.Array, Scalar]:
        weights = rows.astype(moved.dtype).reshape(-1, *(1,) * (moved.ndim - 1))
        return jnp.sum(weights * moved, axis=0), jnp.sum(weights)

    inside, num_inside = total(answered & hit)
    outside, num_outside = total(answered & ~hit)
    return Sides(
        sides.inside + inside,
        sides.outside + outside,
        sides.num_inside + num_inside,
        sides.num_outside + num_outside,
    )


def offsets(points: chex.Array, point: chex.Array) -> chex.Array:
    """What each row differs by from a point.

    Args:
      points: (NUM_ROWS, ...).
      point: (...).
    """
    return jax.vmap(lambda row: row - point)(points)


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


def draw_directions(key: PRNGKey, x: chex.Array, start: Scalar) -> chex.Array:
    """Directions `start` ... `start + NUM_ROWS` of an estimate, of length 1, (NUM_ROWS, ...).

    Blocks of p sign vectors H D as in `zojax.directions.hadamard`, p the next power of two from
    the dimension: orthogonal where the dimension is p, nearly so elsewhere. The rows of H are taken
    in order, which is as good since D is random, and saves sorting p numbers at every ask.

    Args:
      key: of the estimate.
      x: an input, for the shape.
      start: a multiple of NUM_ROWS.
    """
    padded = 1 << (x.size - 1).bit_length()
    num_blocks = max(1, NUM_ROWS // padded)  # that NUM_ROWS rows meet: both are powers of two
    block_key = jax.random.fold_in(key, start // padded)
    words = jax.random.bits(block_key, (num_blocks, -(-x.size // 32)), dtype="uint32")
    signs = jnp.repeat(unpack_signs(words, x.size), NUM_ROWS // num_blocks, axis=0)
    rows = (start + jnp.arange(NUM_ROWS)).astype(jnp.uint32) % jnp.uint32(padded)
    columns = jnp.arange(x.size, dtype=jnp.uint32)
    shared = jax.vmap(lambda row: row & columns)(rows)
    odd = jax.lax.population_count(shared) & jnp.uint32(1)
    entries = (1.0 - 2.0 * odd.astype(x.dtype)) * signs.astype(x.dtype)
    return (entries * x.size**-0.5).reshape(NUM_ROWS, *x.shape)
