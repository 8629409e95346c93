"""Objectives over a smoothed loss: the mean, its bad end, and soft versions of both.

Each is a shaping: with Gaussian directions and no shaping of another kind, the estimate is a
gradient of the objective over theta + sigma eps. All of an estimate's losses, of both points of a
pair, are the sample that quantiles and means are taken over.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from zojax.errors import check_at_least, check_positive
from zojax.robustness.weight_noise import WeightNoise, composed
from zojax.shaping import identity
from zojax.types import Params, PRNGKey, Shaping


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}")


def _objective(name: str, weigh: Callable[[chex.Array, chex.Array], chex.Array]) -> Shaping:
    """A shaping from `(losses, is one of the sample) -> weights`, both of shape (n, k)."""

    def on_values(
        values: chex.Array, center: Any, valid: chex.Array
    ) -> tuple[chex.Array, chex.Array | None]:
        usable = jnp.broadcast_to(valid[:, None], values.shape)
        weights = weigh(jnp.where(usable, values, 0), usable)
        # The centre is no sample; it serves as a baseline, which a mean-free score makes harmless.
        return weights, None if center is None else jnp.zeros_like(center)

    return Shaping(name, on_values, identity.on_derivatives, is_global=True)


def _mean(values: chex.Array, usable: chex.Array) -> chex.Array:
    count = jnp.maximum(jnp.sum(usable, dtype=values.dtype), 1)
    return jnp.sum(jnp.where(usable, values, 0)) / count


def _quantile(values: chex.Array, usable: chex.Array, level: float) -> chex.Array:
    return jnp.nanquantile(jnp.where(usable, values, jnp.nan), level)


def cvar(level: float = 0.9) -> Shaping:
    """The mean of the worst (1 - level) of losses: train for the worst devices.

    Gradient (1 / ((1 - level) sigma)) E[(L - q)_+ eps], q the empirical quantile of the step; its
    bias is O(1 / n). Fewer directions count, so take more of them: about n (1 - level).

    Args:
      level: in (0, 1); 0.9 looks at the worst tenth.

    Raises:
      ValueError: for a level outside (0, 1).
    """
    _check_level(level)

    def weigh(values: chex.Array, usable: chex.Array) -> chex.Array:
        excess = jnp.maximum(values - _quantile(values, usable, level), 0) / (1 - level)
        return jnp.where(usable, excess - _mean(excess, usable), 0)

    return _objective(f"cvar({level})", weigh)


def quantile(level: float = 0.9) -> Shaping:
    """One quantile q of the losses.

    Gradient (1 / (sigma p(q))) E[1{L > q} eps]; the density p of the losses at q is estimated by a
    Gaussian kernel of Silverman's width, whose error is one of scale alone.

    Args:
      level: in (0, 1).

    Raises:
      ValueError: for a level outside (0, 1).
    """
    _check_level(level)

    def weigh(values: chex.Array, usable: chex.Array) -> chex.Array:
        q, mean = _quantile(values, usable, level), _mean(values, usable)
        count = jnp.maximum(jnp.sum(usable, dtype=values.dtype), 1)
        deviation = jnp.sqrt(_mean((values - mean) ** 2, usable))
        width = jnp.maximum(1.06 * deviation * count**-0.2, jnp.finfo(values.dtype).tiny)
        kernel = jnp.exp(-0.5 * ((values - q) / width) ** 2) / (width * (2 * jnp.pi) ** 0.5)
        density = _mean(kernel, usable)
        above = (values > q).astype(values.dtype)
        return jnp.where(usable, (above - _mean(above, usable)) / density, 0)

    return _objective(f"quantile({level})", weigh)


def entropic_risk(temperature: float) -> Shaping:
    """Tau log E exp(L / tau): the mean for large tau, the worst case for small.

    Gradient (tau / sigma) E[exp(L / tau) eps] / E[exp(L / tau)]; bias O(1 / n) from the ratio.

    Args:
      temperature: tau > 0, in loss units.

    Raises:
      ValueError: if it is not positive.
    """
    check_positive("temperature", temperature)
    return _exponential(f"entropic_risk({temperature})", temperature)


def local_entropy(beta: float) -> Shaping:
    """-(1 / beta) log E exp(-beta L): prefers wide valleys; the objective of Entropy-SGD.

    Gradient -(1 / (beta sigma)) E[exp(-beta L) eps] / E[exp(-beta L)], by values only.

    Args:
      beta: > 0, per loss unit.

    Raises:
      ValueError: if it is not positive.

    Source: Chaudhari et al. 2017, arXiv 1611.01838.
    """
    check_positive("beta", beta)
    return _exponential(f"local_entropy({beta})", -1 / beta)


def _exponential(name: str, temperature: float) -> Shaping:
    """Tau log E exp(L / tau) for either sign of tau."""

    def weigh(values: chex.Array, usable: chex.Array) -> chex.Array:
        exponents = jnp.where(usable, values / temperature, -jnp.inf)
        # Losses that all failed leave no largest exponent.
        largest = jnp.maximum(jnp.max(exponents), jnp.finfo(values.dtype).min)
        powers = jnp.exp(exponents - largest)
        mean = jnp.maximum(_mean(powers, usable), jnp.finfo(values.dtype).tiny)
        return jnp.where(usable, temperature * (powers / mean - 1), 0)

    return _objective(name, weigh)


def device_loss(
    loss_fn: Callable[..., Any],
    *models: WeightNoise,
    num_chips: int = 1,
    risk: Callable[[chex.Array], chex.Array] = jnp.mean,
) -> Callable[..., chex.Array]:
    """The loss on simulated devices: quantisers, bit errors and faults inside, values only.

    L~(theta) = risk over chips of L(D(theta)). Smoothed by an estimator's own Gaussian this has an
    exact gradient from values, however discrete D is: no straight-through estimator. Give the same
    key to all points of a step (common random numbers): as an argument of the loss it is.

    Args:
      loss_fn: `loss_fn(params, *args) -> scalar`.
      *models: weight-noise models, in the order in which they act.
      num_chips: devices per evaluation, each with its own draws of either scope.
      risk: losses of shape (num_chips,) -> scalar, e.g. `jnp.max`.

    Returns:
      `(params, key, *args) -> scalar`. An evaluation is `num_chips` forward passes of the batch.

    Raises:
      ValueError: for no model, or `num_chips` < 1.
    """
    check_at_least("num_chips", num_chips, 1)
    device = composed(*models)

    def on_devices(params: Params, key: PRNGKey, *args: Any) -> chex.Array:
        def on_chip(chip_key: PRNGKey) -> chex.Array:
            first, second = jax.random.split(chip_key)
            return jnp.asarray(loss_fn(device(first, second, params), *args))

        if num_chips == 1:
            return risk(on_chip(key)[None])
        return risk(jax.vmap(on_chip)(jax.random.split(key, num_chips)))

    return on_devices
