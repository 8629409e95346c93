"""Models of memory devices: noise, quantisation, bit errors, faults, drift."""

from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from zojax import trees
from zojax.errors import check_at_least, is_traced
from zojax.robustness.weight_noise import WeightNoise
from zojax.types import PRNGKey

Scale = Literal["absolute", "rms", "max"]


def _unit(weight: chex.Array, relative_to: str) -> chex.Array:
    if relative_to == "absolute":
        return jnp.ones((), weight.dtype)
    if relative_to == "rms":
        return jnp.sqrt(jnp.mean(weight**2))
    return jnp.max(jnp.abs(weight))


def _check_amount(name: str, value: Any, highest: float = float("inf")) -> None:
    if is_traced(value):
        return
    allowed = ">= 0 and finite" if highest == float("inf") else f"in [0, {highest:g}]"
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a number {allowed}, got {value!r}") from error
    if not 0 <= number <= highest or number == float("inf"):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def _check_scale(relative_to: str) -> None:
    if relative_to not in ("absolute", "rms", "max"):
        raise ValueError(f"relative_to must be 'absolute', 'rms' or 'max', got {relative_to!r}")


def gaussian_noise(
    sigma: Any, relative_to: Scale = "absolute", mask: trees.Mask | None = None
) -> WeightNoise:
    """W + sigma u eps, eps standard normal: programming and read noise of analog memory.

    Args:
      sigma: standard deviation in units u, >= 0.
      relative_to: u is 1, the root mean square of the leaf, or its largest magnitude.
      mask: which leaves it acts on.

    Raises:
      ValueError: for a negative sigma or another unit.
    """
    _check_amount("sigma", sigma)
    _check_scale(relative_to)

    def apply(key: PRNGKey, weight: chex.Array) -> chex.Array:
        noise = jax.random.normal(key, weight.shape, weight.dtype)
        return weight + jnp.asarray(sigma, weight.dtype) * _unit(weight, relative_to) * noise

    return WeightNoise(f"gaussian({sigma}, {relative_to})", apply, mask)


def uniform_noise(
    half_width: Any, relative_to: Scale = "absolute", mask: trees.Mask | None = None
) -> WeightNoise:
    """W + U[-a u, a u]: the error of a uniform quantiser with step 2 a u.

    Args:
      half_width: a in units u, >= 0.
      relative_to: u is 1, the root mean square of the leaf, or its largest magnitude.
      mask: which leaves it acts on.

    Raises:
      ValueError: for a negative width or another unit.
    """
    _check_amount("half_width", half_width)
    _check_scale(relative_to)

    def apply(key: PRNGKey, weight: chex.Array) -> chex.Array:
        noise = jax.random.uniform(key, weight.shape, weight.dtype, -1, 1)
        return weight + jnp.asarray(half_width, weight.dtype) * _unit(weight, relative_to) * noise

    return WeightNoise(f"uniform({half_width}, {relative_to})", apply, mask)


def multiplicative_noise(sigma: Any, mask: trees.Mask | None = None) -> WeightNoise:
    """W (1 + sigma eps), eps standard normal: device-to-device spread of conductances.

    Args:
      sigma: relative standard deviation, >= 0.
      mask: which leaves it acts on.

    Raises:
      ValueError: for a negative sigma.
    """
    _check_amount("sigma", sigma)

    def apply(key: PRNGKey, weight: chex.Array) -> chex.Array:
        noise = jax.random.normal(key, weight.shape, weight.dtype)
        return weight * (1 + jnp.asarray(sigma, weight.dtype) * noise)

    return WeightNoise(f"multiplicative({sigma})", apply, mask)


def student_t_noise(
    scale: Any,
    df: float = 3.0,
    relative_to: Scale = "absolute",
    mask: trees.Mask | None = None,
) -> WeightNoise:
    """W + scale u t, t Student-t by coordinate: many small errors and a few large ones.

    Args:
      scale: of the (not standardised) t variable in units u, >= 0.
      df: degrees of freedom, finite and > 0; 1 is Cauchy.
      relative_to: u is 1, the root mean square of the leaf, or its largest magnitude.
      mask: which leaves it acts on.

    Raises:
      ValueError: for a negative scale, `df` <= 0 or another unit.
    """
    _check_amount("scale", scale)
    _check_scale(relative_to)
    if not 0 < df < float("inf"):
        raise ValueError(f"df must be finite and > 0, got {df!r}")

    def apply(key: PRNGKey, weight: chex.Array) -> chex.Array:
        noise = jax.random.t(key, jnp.asarray(df, weight.dtype), weight.shape, weight.dtype)
        return weight + jnp.asarray(scale, weight.dtype) * _unit(weight, relative_to) * noise

    return WeightNoise(f"student_t({scale}, df={df:g}, {relative_to})", apply, mask)


def stuck_at(
    probability: Any,
    values: Literal["zero", "extremes"] = "zero",
    mask: trees.Mask | None = None,
) -> WeightNoise:
    """Each cell is broken with a probability: stuck at zero, or at the largest magnitude.

    Args:
      probability: that a cell is broken, in [0, 1].
      values: "zero" (an open cell, dropout without rescaling) or "extremes" (a shorted one).
      mask: which leaves it acts on.

    Raises:
      ValueError: for a probability outside [0, 1] or other values.
    """
    _check_amount("probability", probability, 1)
    if values not in ("zero", "extremes"):
        raise ValueError(f"values must be 'zero' or 'extremes', got {values!r}")

    def apply(key: PRNGKey, weight: chex.Array) -> chex.Array:
        broken_key, sign_key = jax.random.split(key)
        broken = jax.random.uniform(broken_key, weight.shape) < probability
        if values == "zero":
            return jnp.where(broken, 0, weight)
        sign = jax.random.rademacher(sign_key, weight.shape, weight.dtype)
        return jnp.where(broken, sign * jnp.max(jnp.abs(weight)), weight)

    return WeightNoise(f"stuck_at({probability}, {values})", apply, mask)


def pruned(fraction: float, mask: trees.Mask | None = None) -> WeightNoise:
    """The given fraction of every leaf with the smallest magnitudes becomes zero; not random.

    Args:
      fraction: in [0, 1].
      mask: which leaves it acts on.

    Raises:
      ValueError: for a fraction outside [0, 1].
    """
    _check_amount("fraction", fraction, 1)

    def apply(key: PRNGKey, weight: chex.Array) -> chex.Array:
        del key
        order = jnp.argsort(jnp.argsort(jnp.abs(weight.ravel()))).reshape(weight.shape)
        return jnp.where(order < round(fraction * weight.size), 0, weight)

    return WeightNoise(f"pruned({fraction})", apply, mask)


def drift(
    time: float,
    exponent: float = 0.05,
    spread: float = 0.01,
    start: float = 1.0,
    mask: trees.Mask | None = None,
) -> WeightNoise:
    """W (t / t0)^-nu, nu ~ N(exponent, spread^2) by cell and at least 0: conductances relax.

    Args:
      time: t since programming, >= `start`, in the unit of `start`.
      exponent: mean of nu, >= 0.
      spread: standard deviation of nu, >= 0.
      start: t0 > 0, when the weights were right.
      mask: which leaves it acts on.

    Raises:
      ValueError: for numbers outside these ranges.
    """
    _check_amount("exponent", exponent)
    _check_amount("spread", spread)
    if not 0 < start <= time < float("inf"):
        raise ValueError(f"time must be finite and at least start={start!r} > 0, got {time!r}")

    def apply(key: PRNGKey, weight: chex.Array) -> chex.Array:
        nu = exponent + spread * jax.random.normal(key, weight.shape, weight.dtype)
        return weight * jnp.asarray(time / start, weight.dtype) ** -jnp.maximum(nu, 0)

    return WeightNoise(f"drift(t={time:g})", apply, mask)


def quantized(bits: int, per_channel: bool = False, mask: trees.Mask | None = None) -> WeightNoise:
    """Symmetric rounding to 2^bits - 1 levels between plus and minus the largest magnitude.

    Args:
      bits: from 2 (the sign is one of them) to 32; 1 bit keeps the signs times the mean magnitude.
      per_channel: one scale per last axis instead of one per leaf.
      mask: which leaves it acts on.

    Raises:
      ValueError: for `bits` outside [1, 32].
    """
    check_at_least("bits", bits, 1)
    if bits > 32:
        raise ValueError(f"bits must be at most 32, got {bits!r}")

    def apply(key: PRNGKey, weight: chex.Array) -> chex.Array:
        del key
        codes, step = _encode(weight, bits, per_channel)
        return codes * step

    where = "channel" if per_channel else "tensor"
    return WeightNoise(f"quantized({bits}, per {where})", apply, mask)


def bit_errors(
    bits: int, probability: Any, per_channel: bool = False, mask: trees.Mask | None = None
) -> WeightNoise:
    """Quantises to two's-complement integers and flips every bit with a probability.

    Low-voltage memory: a flipped high bit moves a weight across its whole range.

    Args:
      bits: of an integer, from 2 to 16.
      probability: that a bit is flipped, in [0, 1].
      per_channel: one scale per last axis instead of one per leaf.
      mask: which leaves it acts on.

    Raises:
      ValueError: for `bits` outside [2, 16] or a probability outside [0, 1].

    Source: Stutz et al. 2021, arXiv 2104.08323.
    """
    check_at_least("bits", bits, 2)
    if bits > 16:
        raise ValueError(f"bits must be at most 16, got {bits!r}")
    _check_amount("probability", probability, 1)

    def apply(key: PRNGKey, weight: chex.Array) -> chex.Array:
        codes, step = _encode(weight, bits, per_channel)
        flips = jax.random.uniform(key, (bits, *weight.shape)) < probability
        powers = (2 ** jnp.arange(bits, dtype=jnp.int32)).reshape(bits, *[1] * weight.ndim)
        pattern = jnp.sum(jnp.where(flips, powers, 0), axis=0, dtype=jnp.int32)
        word = jnp.bitwise_xor(codes.astype(jnp.int32) & (2**bits - 1), pattern)
        signed = jnp.where(word >= 2 ** (bits - 1), word - 2**bits, word)
        return signed.astype(weight.dtype) * step

    return WeightNoise(f"bit_errors({bits}, {probability})", apply, mask)


def _encode(weight: chex.Array, bits: int, per_channel: bool) -> tuple[chex.Array, chex.Array]:
    """Integer codes (as floats) and the step between two of them."""
    axes = tuple(range(weight.ndim - 1)) if per_channel and weight.ndim > 1 else None
    if bits == 1:
        step = jnp.mean(jnp.abs(weight), axis=axes, keepdims=axes is not None)
        return jnp.where(weight >= 0, 1, -1).astype(weight.dtype), step
    largest = jnp.max(jnp.abs(weight), axis=axes, keepdims=axes is not None)
    step = largest / (2 ** (bits - 1) - 1)
    step = jnp.where(step == 0, 1, step)  # NaN stays NaN: integers would hide it
    return jnp.round(weight / step), step
