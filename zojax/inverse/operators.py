"""Measurements of an image: what is seen of it through a camera, a coder, a comparator."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax.errors import check_at_least, check_positive, check_that
from zojax.keys import check_key
from zojax.types import Params, PRNGKey, Scalar

Operator = Callable[[chex.Array], chex.Array]


class LinearOperator(NamedTuple):
    """y = A x, the image taken as one vector of n pixels.

    Attributes:
      matrix: A, (m, n).
    """

    matrix: chex.Array

    def __call__(self, image: chex.Array) -> chex.Array:
        """Measures an image of any shape with n pixels; returns (m,)."""
        _check_size(image, self.matrix.shape[1])
        return self.matrix @ jnp.ravel(image)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["indices"], meta_fields=["num_pixels"]
)
@dataclasses.dataclass(frozen=True)
class SubsamplingOperator:
    """m of n pixels.

    Attributes:
      indices: of the pixels, (m,), increasing.
      num_pixels: n.
    """

    indices: chex.Array
    num_pixels: int

    def __call__(self, image: chex.Array) -> chex.Array:
        """Measures an image of any shape with n pixels; returns (m,)."""
        _check_size(image, self.num_pixels)
        return jnp.ravel(image)[self.indices]


def linear_operator(matrix: Any) -> LinearOperator:
    """Measurements by a matrix of the user's.

    Args:
      matrix: (m, n) with 1 <= m <= n.

    Raises:
      ValueError: for another shape.
    """
    matrix = jnp.asarray(matrix)
    if matrix.ndim != 2:
        raise ValueError(f"matrix must have shape (m, n), got {matrix.shape}")
    _check_counts(*matrix.shape)
    return LinearOperator(matrix)


def gaussian_operator(key: PRNGKey, num_measurements: int, num_pixels: int) -> LinearOperator:
    """A of independent N(0, 1/m), which keeps |x|^2 in expectation.

    Args:
      key: typed key.
      num_measurements: m, in [1, n].
      num_pixels: n.

    Raises:
      TypeError: if `key` is not a typed key.
      ValueError: if m is not in [1, n].
    """
    check_key(key)
    _check_counts(num_measurements, num_pixels)
    matrix = jax.random.normal(key, (num_measurements, num_pixels))
    return LinearOperator(matrix / jnp.sqrt(num_measurements))


def subsampling_operator(
    key: PRNGKey, num_measurements: int, num_pixels: int
) -> SubsamplingOperator:
    """Keeps m pixels, drawn without replacement.

    Args:
      key: typed key.
      num_measurements: m, in [1, n].
      num_pixels: n.

    Raises:
      TypeError: if `key` is not a typed key.
      ValueError: if m is not in [1, n].
    """
    check_key(key)
    _check_counts(num_measurements, num_pixels)
    chosen = jax.random.choice(key, num_pixels, (num_measurements,), replace=False)
    return SubsamplingOperator(jnp.sort(chosen), num_pixels)


def quantized(operator: Operator, step: float) -> Operator:
    """Measurements rounded to multiples of `step`: piecewise constant, so values only.

    Args:
      operator: what is rounded.
      step: > 0.

    Raises:
      ValueError: for a step that is not positive.
    """
    check_positive("step", step)

    def measure(image: chex.Array) -> chex.Array:
        return jnp.round(operator(image) / step) * step

    return measure


def one_bit(operator: Operator, thresholds: Any = 0.0) -> Operator:
    """Whether each measurement is above its threshold, +1 or -1: piecewise constant, values only.

    With thresholds of 0 nothing is seen of the image's scale; random ones ("dither") show it.

    Args:
      operator: what is compared.
      thresholds: scalar or (m,).
    """

    def measure(image: chex.Array) -> chex.Array:
        return jnp.where(operator(image) > thresholds, 1.0, -1.0)

    return measure


def black_box_operator(function: Callable[..., Any], num_measurements: int) -> Operator:
    """Measurements by a function outside JAX: an instrument, a simulator, another library.

    Works under `jit` and `vmap` with every estimator; back-propagation through it raises
    `ValueError`.

    Args:
      function: `function(images) -> measurements`, NumPy float32 (b, n) to (b, m).
      num_measurements: m, at least 1.

    Raises:
      ValueError: if `num_measurements` < 1, or, while running, for a result of another shape
        (JAX wraps it).
    """
    check_at_least("num_measurements", num_measurements, 1)

    def call(images: Any) -> np.ndarray:
        flat = np.asarray(images, np.float32)
        rows = flat.reshape(-1, flat.shape[-1])
        found = np.asarray(function(rows), np.float32)
        if found.shape != (len(rows), num_measurements):
            raise ValueError(
                f"the black-box operator must return {(len(rows), num_measurements)} "
                f"measurements, got shape {found.shape}"
            )
        return found.reshape(*flat.shape[:-1], num_measurements)

    def measure(image: chex.Array) -> chex.Array:
        shape = jax.ShapeDtypeStruct((num_measurements,), jnp.float32)
        return jax.pure_callback(
            call, shape, jnp.ravel(image).astype(jnp.float32), vmap_method="broadcast_all"
        )

    return measure


def reconstruction_loss(
    generate: Callable[[Params, Params], chex.Array], operator: Operator | None = None
) -> Callable[..., Scalar]:
    """f(theta, x, y) = |A(G(theta, x)) - y|^2 / 2, for `surf`.

    Args:
      generate: `generate(params, x) -> image`, one image of any shape.
      operator: A, from an image to measurements (m,); None compares the images themselves.

    Returns:
      `loss_fn(params, x, y) -> scalar`; it raises `ValueError` for a y of another shape than the
      measurements.

    Raises:
      ValueError: for an operator that is no function; of a matrix make a `linear_operator`.
    """
    if operator is not None:
        hint = "a function of an image (of a matrix make a linear_operator)"
        check_that("operator", operator, hint, callable)

    def loss_fn(params: Params, x: Params, y: chex.Array) -> Scalar:
        seen = generate(params, x)
        if operator is not None:
            seen = operator(seen)
        if jnp.shape(y) != seen.shape:
            raise ValueError(
                f"y must have the shape of what is measured, {seen.shape}, got {jnp.shape(y)}"
            )
        return 0.5 * jnp.sum((seen - y) ** 2)

    return loss_fn


def _check_counts(num_measurements: int, num_pixels: int) -> None:
    check_at_least("num_pixels", num_pixels, 1)
    check_at_least("num_measurements", num_measurements, 1)
    if num_measurements > num_pixels:
        raise ValueError(
            f"num_measurements must be at most the number of pixels, {num_pixels}, "
            f"got {num_measurements}"
        )


def _check_size(image: chex.Array, num_pixels: int) -> None:
    if jnp.size(image) != num_pixels:
        raise ValueError(
            f"the operator measures images of {num_pixels} pixels, got {jnp.size(image)} "
            f"(shape {jnp.shape(image)})"
        )
