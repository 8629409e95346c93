"""The Square attack: random squares on the boundary of the ball."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax.attacks.kernel import Attack, Norm, project
from zojax.attacks.search import SearchState, check_ball, has_begun, search
from zojax.errors import check_at_least, check_that
from zojax.types import PRNGKey, Scalar

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 steps
_TILES = 5  # per axis, of the l2 attack's first point
_NUM_CHOICES = 5  # draws for two corners and a turn
_TINY = 1e-12


def square(
    epsilon: float, norm: Norm = "linf", p: float | None = None, num_steps: int = 10_000
) -> Attack:
    """The Square attack: random search that changes one square of pixels at a time.

    In linf, the first point adds +-epsilon in vertical stripes; a step sets the perturbation of a
    random square to a random +-epsilon per channel, or to the opposite if that changes nothing. In
    l2, the first point adds a 5 x 5 grid of bumps of random signs; a step moves the perturbation of
    one window into another, and adds a two-sided bump there. A step stays if it lowers the margin.
    The squares' share `p` of the image is halved at steps 10, 50, 200, 500, 1000, 2000, 4000, 6000
    and 8000 of 10,000, or the same fractions of `num_steps`.

    Costs one loss query per step, and no check queries.

    Args:
      epsilon: radius of the ball, in units of inputs within [0, 1].
      norm: "linf" or "l2".
      p: share of the pixels in the first square, in (0, 1]; None means the published 0.8 in linf
        (MNIST; 0.3 for CIFAR-10, 0.05 for ImageNet) and 0.1 in l2.
      num_steps: after which the attack is done, and which the halvings of the share are spread
        over; best set to the oracle's budget.

    Source: Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack
    via random search", 2020, arXiv 1912.00049.

    Raises:
      ValueError: for an argument out of range; from `init` for inputs that are neither (h, w) nor
        (h, w, c).
    """
    check_ball(epsilon, norm)
    if p is None:
        p = 0.8 if norm == "linf" else 0.1
    check_that("p", p, "in (0, 1]", lambda value: 0 < value <= 1)
    check_at_least("num_steps", num_steps, 1)

    def remember(x: chex.Array, key: PRNGKey) -> PRNGKey:
        check_that("x.ndim", x.ndim, "2 or 3 (an image)", (2, 3).count)
        return key

    def propose(state: SearchState) -> chex.Array:
        shape = (*state.x.shape[:2], math.prod(state.x.shape[2:]))
        x, current = state.x.reshape(shape), state.current.reshape(shape)
        # One draw per step serves all choices, since compiling a draw takes seconds.
        key = jax.random.fold_in(state.memory, state.step)
        uniforms = jax.random.uniform(key, (_num_draws(shape),), x.dtype)
        share = p / 2.0 ** _num_halvings(state.step, num_steps)
        if norm == "linf":
            start = x + epsilon * _signs(uniforms, (1, *shape[1:]))
            changed = _new_square(uniforms, x, current, share, epsilon)
        else:
            bumps = _bump_grid(uniforms, shape)
            start = x + epsilon * bumps / _length(bumps)
            changed = x + _move_window(uniforms, current - x, share, epsilon)
        point = jnp.where(has_begun(state), changed, start)
        return project(point, x, epsilon, norm).reshape(state.x.shape)

    return search(
        "square",
        remember=remember,
        propose=propose,
        learn=lambda state, value: state.memory,
        is_spent=lambda state: state.step >= num_steps,
    )


def _num_halvings(step: Scalar, num_steps: int) -> Scalar:
    """How often the share has been halved; the first point is not counted as a step."""
    scaled = (step - 1).astype(jnp.float32) * (10_000 / num_steps)
    return jnp.sum(scaled > jnp.asarray(_HALVINGS, jnp.float32)).astype(jnp.float32)


def _num_draws(shape: tuple[int, ...]) -> int:
    """Enough for either first point, and for a step: two corners, a turn, a sign per channel."""
    return _NUM_CHOICES + max(math.prod(_grid_shape(shape)), math.prod(shape[1:]))


def _signs(uniforms: chex.Array, shape: tuple[int, ...]) -> chex.Array:
    """Random signs from the draws after those of the corners and the turn."""
    drawn = uniforms[_NUM_CHOICES : _NUM_CHOICES + math.prod(shape)]
    return jnp.where(drawn < 0.5, -1, 1).astype(uniforms.dtype).reshape(shape)


def _length(x: chex.Array, axis: tuple[int, ...] | None = None) -> chex.Array:
    return jnp.sqrt(jnp.maximum(jnp.sum(x**2, axis=axis, keepdims=axis is not None), _TINY))


def _window(
    uniforms: chex.Array, shape: tuple[int, ...], side: Scalar
) -> tuple[chex.Array, chex.Array]:
    """Rows and columns relative to the corner of a random window, (h, 1, 1) and (1, w, 1)."""
    room = jnp.asarray(shape[:2]) - side + 1
    corner = jnp.floor(uniforms * room.astype(uniforms.dtype)).astype(jnp.int32)
    rows = jnp.arange(shape[0])[:, None, None] - corner[0]
    columns = jnp.arange(shape[1])[None, :, None] - corner[1]
    return rows, columns


def _is_inside(rows: chex.Array, columns: chex.Array, side: Scalar) -> chex.Array:
    return (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)


def _new_square(
    uniforms: chex.Array, x: chex.Array, current: chex.Array, share: Scalar, epsilon: float
) -> chex.Array:
    """`current` with another perturbation of +-epsilon per channel in a random square."""
    height, width, channels = x.shape
    side = jnp.clip(jnp.round(jnp.sqrt(share * height * width)), 1, min(height, width))
    side = side.astype(jnp.int32)
    inside = _is_inside(*_window(uniforms[:2], x.shape, side), side)
    offset = epsilon * _signs(uniforms, (1, 1, channels))
    drawn = jnp.where(inside, jnp.clip(x + offset, 0.0, 1.0), current)
    opposite = jnp.where(inside, jnp.clip(x - offset, 0.0, 1.0), current)
    return jnp.where(jnp.any(drawn != current), drawn, opposite)


def _bump(rows: chex.Array, columns: chex.Array, height: Scalar, width: Scalar) -> chex.Array:
    """The publication's eta: a pyramid of sums of 1/k^2, highest in the middle, positive.

    Args:
      rows: relative to its corner, (h, 1, 1); values outside the bump mean nothing.
      columns: likewise, (1, w, 1).
      height: of the bump.
      width: of the bump.
    """
    half = height // 2
    away = jnp.maximum(jnp.abs(rows - half), jnp.abs(columns - width // 2))
    longest = max(rows.size, columns.size) + 2
    sums = jnp.asarray(np.cumsum([0.0] + [1 / k**2 for k in range(1, longest)]), jnp.float32)
    return sums[half + 1] - sums[jnp.minimum(away, half + 1)]


def _tile_side(shape: tuple[int, ...]) -> int:
    return max(min(shape[:2]) // _TILES, 1)


def _grid_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many tiles there are, those cut at the edges included."""
    side = _tile_side(shape)
    return -(-shape[0] // side), -(-shape[1] // side), shape[2]


def _bump_grid(uniforms: chex.Array, shape: tuple[int, ...]) -> chex.Array:
    """Tiles of bumps with random signs, 5 per axis if the image is large enough."""
    side = _tile_side(shape)
    rows, columns = jnp.arange(shape[0])[:, None], jnp.arange(shape[1])[None, :]
    bumps = _bump((rows % side)[..., None], (columns % side)[..., None], jnp.asarray(side), side)
    signs = _signs(uniforms, _grid_shape(shape))
    return bumps.astype(uniforms.dtype) * signs[rows // side, columns // side]


def _move_window(
    uniforms: chex.Array, offset: chex.Array, share: Scalar, epsilon: float
) -> chex.Array:
    """The perturbation with one window emptied, and its norm given to another one."""
    height, width, channels = offset.shape
    smaller = min(height, width)
    largest = smaller - 1 if smaller > 2 and smaller % 2 == 0 else smaller
    side = jnp.round(jnp.sqrt(share * height * width)).astype(jnp.int32)
    side = jnp.clip(side + 1 - side % 2, min(3, largest), largest)
    rows, columns = _window(uniforms[:2], offset.shape, side)
    first = _is_inside(rows, columns, side)
    second = _is_inside(*_window(uniforms[2:4], offset.shape, side), side)

    upright = _two_sided(rows, columns, side)
    lying = _two_sided(columns, rows, side)
    bump = jnp.where(first, jnp.where(uniforms[4] < 0.5, upright, lying), 0).astype(offset.dtype)
    bump = bump / _length(bump)
    old = jnp.where(first, offset, 0)
    new = _signs(uniforms, (1, 1, channels)) * bump + old / _length(old, (0, 1))
    new = new / _length(new, (0, 1))

    unused = jnp.maximum(epsilon**2 - jnp.sum(offset**2), 0.0)
    emptied = first | second
    either = jnp.sum(jnp.where(emptied, offset, 0) ** 2, axis=(0, 1), keepdims=True)
    return jnp.where(emptied, 0, offset) + new * jnp.sqrt(either + unused / channels)


def _two_sided(rows: chex.Array, columns: chex.Array, side: Scalar) -> chex.Array:
    """A positive bump in the first half of the columns, a negative one in the others."""
    half = side // 2
    left = _bump(rows, columns, side, half)
    right = _bump(rows, columns - half, side, side - half)
    return jnp.where(columns < half, left, -right)
