"""SimBA: one step along a random coordinate, or back."""

import math
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax.attacks.kernel import Attack, Norm, project
from zojax.attacks.search import SearchState, check_ball, has_begun, search
from zojax.errors import check_positive, check_that
from zojax.types import PRNGKey, Scalar

_SHELLS = 8  # the published share of frequencies per axis that are tried first is an eighth


class SimbaMemory(NamedTuple):
    """Which coordinate is tried, in which direction.

    Attributes:
      order: of the coordinates, a permutation (d,).
      position: in it.
      sign: +1, then -1.
      has_improved: whether a step of this pass over all coordinates lowered the margin.
      is_spent: whether a whole pass lowered nothing.
    """

    order: chex.Array
    position: Scalar
    sign: Scalar
    has_improved: Scalar
    is_spent: Scalar


def simba(
    epsilon: float,
    norm: Norm = "l2",
    basis: Literal["pixel", "dct"] = "pixel",
    step: float | None = None,
) -> Attack:
    """SimBA: takes the coordinates of an orthonormal basis in random order, one step each.

    A step forward stays if it lowers the margin, else the step back is tried. "dct" takes the
    cosine basis, the lowest eighth of the frequencies of each axis first, then eighth by eighth.
    Points are projected onto the ball, where the publication bounds the number of steps instead.
    After all coordinates they are taken again; the attack is done when it succeeds, or when a whole
    pass lowers nothing.

    Costs one loss query for the input, then one per step, and no check queries. A step that
    clipping or projecting undoes costs none.

    Args:
      epsilon: radius of the ball, in units of inputs within [0, 1].
      norm: "l2" or "linf".
      basis: "pixel" or "dct", the latter for inputs (h, w) or (h, w, c).
      step: length of a step; None means the published 0.2 for l2, `epsilon` for linf.

    Source: Guo et al., "Simple black-box adversarial attacks", 2019, arXiv 1905.07121.

    Raises:
      ValueError: for an argument out of range; from `init` for inputs that are no images ("dct").
    """
    check_ball(epsilon, norm)
    check_that("basis", basis, '"pixel" or "dct"', ("pixel", "dct").count)
    if step is None:
        step = 0.2 if norm == "l2" else epsilon
    check_positive("step", step)

    def remember(x: chex.Array, key: PRNGKey) -> SimbaMemory:
        if basis == "dct":
            check_that("x.ndim", x.ndim, "2 or 3 (an image) for the dct basis", (2, 3).count)
        # Shell by shell; within one, numbers in [0, 1) order at random.
        rank = jax.random.uniform(key, (x.size,))
        order = jnp.argsort(rank + _shells(x.shape) if basis == "dct" else rank)
        zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        return SimbaMemory(order, zero, jnp.ones((), x.dtype), no, no)

    def propose(state: SearchState) -> chex.Array:
        memory: SimbaMemory = state.memory
        coordinate = memory.order[memory.position]
        if basis == "dct":
            direction = _cosines(state.x.shape, coordinate)
        else:
            chosen = jnp.arange(state.x.size) == coordinate
            direction = chosen.astype(state.x.dtype).reshape(state.x.shape)
        moved = state.current + memory.sign * step * direction
        point = project(moved, state.x, epsilon, norm)
        return jnp.where(has_begun(state), point, state.x)

    def learn(state: SearchState, value: Scalar) -> SimbaMemory:
        memory: SimbaMemory = state.memory
        improved = has_begun(state) & (value < state.margin)
        has_improved = memory.has_improved | improved
        goes_on = has_begun(state) & (improved | (memory.sign < 0))
        following = memory.position + 1
        ends_pass = goes_on & (following == memory.order.size)
        return SimbaMemory(
            order=memory.order,
            position=jnp.where(ends_pass, 0, jnp.where(goes_on, following, memory.position)),
            sign=jnp.where(goes_on | ~has_begun(state), 1, -1).astype(memory.sign.dtype),
            has_improved=has_improved & ~ends_pass,
            is_spent=memory.is_spent | (ends_pass & ~has_improved),
        )

    def is_spent(state: SearchState) -> Scalar:
        return state.memory.is_spent

    return search("simba", remember=remember, propose=propose, learn=learn, is_spent=is_spent)


def _frequencies(shape: tuple[int, ...], coordinate: chex.Array) -> tuple[chex.Array, chex.Array]:
    """The frequencies of coordinates, along rows and columns; channels vary fastest."""
    height, width, channels = shape[0], shape[1], math.prod(shape[2:])
    return coordinate // (width * channels) % height, coordinate // channels % width


def _shells(shape: tuple[int, ...]) -> chex.Array:
    """In which eighth of the frequencies each coordinate lies, by its higher one."""
    u, v = _frequencies(shape, jnp.arange(math.prod(shape)))
    return jnp.maximum(u * _SHELLS // shape[0], v * _SHELLS // shape[1]).astype(jnp.float32)


def _cosines(shape: tuple[int, ...], coordinate: Scalar) -> chex.Array:
    """One image of the orthonormal cosine basis (DCT-II) in one channel."""
    u, v = _frequencies(shape, coordinate)
    channels = math.prod(shape[2:])
    down, across = jnp.asarray(_waves(shape[0]))[u], jnp.asarray(_waves(shape[1]))[v]
    plane = down[:, None, None] * across[None, :, None]
    chosen = jnp.arange(channels) == coordinate % channels
    return jnp.where(chosen, plane, 0).reshape(shape)


def _waves(length: int) -> np.ndarray:
    """The orthonormal cosine basis in one dimension, one wave per row."""
    middles = (np.arange(length) + 0.5) / length
    waves = np.sqrt(2 / length) * np.cos(np.pi * np.arange(length)[:, None] * middles)
    waves[0] = np.sqrt(1 / length)
    return waves.astype(np.float32)
