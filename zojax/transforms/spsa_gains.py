"""Spall's gain sequences, and their calibration from a few evaluations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax.errors import check_at_least, check_positive, check_that
from zojax.estimation import ask
from zojax.estimators.presets import spsa
from zojax.types import LossFn, Params, PRNGKey

_ALPHA, _GAMMA = 0.602, 0.101  # the slowest decays that the theory of SPSA allows
_STABILITY = 0.1


def gain_schedule(gain: float, exponent: float, stability: float = 0.0) -> Callable[..., Any]:
    """Returns the schedule gain / (k + 1 + stability)^exponent of step k.

    Args:
      gain: a (of the learning rate) or c (of sigma), > 0.
      exponent: alpha or gamma, > 0.
      stability: A, steps by which the decay is put off, >= 0.

    Raises:
      ValueError: for a gain or exponent that is not positive, or a negative stability.

    Source: Spall 1998 (IEEE Trans. Aerosp. Electron. Syst. 34(3)).
    """
    check_positive("gain", gain)
    check_positive("exponent", exponent)
    check_that("stability", stability, ">= 0", lambda x: x >= 0)

    def schedule(count: chex.Array) -> chex.Array:
        return gain / (jnp.asarray(count, jnp.float32) + 1 + stability) ** exponent

    return schedule


class SPSAGains(NamedTuple):
    """What `calibrate_spsa` chose.

    Attributes:
      learning_rate: schedule for `optax.sgd`.
      sigma: schedule for `zojax.spsa`.
      a: gain of the learning rate.
      c: gain of sigma.
      stability: A.
      num_queries: evaluations that the calibration took.
    """

    learning_rate: Callable[..., Any]
    sigma: Callable[..., Any]
    a: float
    c: float
    stability: float
    num_queries: int


def calibrate_spsa(
    loss_fn: LossFn,
    params: Params,
    key: PRNGKey,
    *,
    num_steps: int,
    target_change: float,
    sigma: float,
    num_estimates: int = 25,
    args: tuple[Any, ...] = (),
) -> SPSAGains:
    """Chooses SPSA's gains so that the first steps move a parameter by about `target_change`.

    Takes the mean absolute gradient over `num_estimates` one-direction estimates and solves for a,
    with Spall's exponents 0.602 and 0.101 and A = a tenth of the steps. Prints what it chose.
    Queries: 2 `num_estimates`.

    Args:
      loss_fn: `loss_fn(params, *args) -> scalar`.
      params: where the run starts.
      key: typed key.
      num_steps: length of the run.
      target_change: wanted change of one parameter in the first step, in parameter units.
      sigma: c, the first smoothing radius; about the standard deviation of the loss's noise, small
        for a noiseless loss.
      num_estimates: estimates that are averaged.
      args: further arguments of the loss.

    Raises:
      TypeError: if `key` is not a typed key.
      ValueError: for numbers that are not positive, or a loss that does not change or always fails.
    """
    check_at_least("num_steps", num_steps, 1)
    check_at_least("num_estimates", num_estimates, 1)
    check_positive("target_change", target_change)
    check_positive("sigma", sigma)
    est = spsa(sigma=sigma, num_directions=num_estimates)
    points = ask(est, params, key, ())
    losses = jax.jit(lambda ps, a: jax.lax.map(lambda p: loss_fn(p, *a), ps))(points, args)
    pairs = losses.reshape(num_estimates, 2)
    # A one-direction estimate is the difference quotient times signs, in every coordinate.
    differences = np.abs(np.asarray(pairs[:, 0] - pairs[:, 1], np.float64))
    usable = differences[np.isfinite(differences)]
    if usable.size == 0:
        raise ValueError("every evaluation near params failed: there is nothing to calibrate on")
    size = float(usable.mean()) / (2 * sigma)
    if not size > 0:
        raise ValueError(f"the loss does not change within sigma={sigma!r} of params: raise sigma")
    stability = _STABILITY * num_steps
    a = target_change * (1 + stability) ** _ALPHA / size
    print(
        f"calibrate_spsa chose a = {a:.4g} (mean |gradient| {size:.4g}, A = {stability:.4g}, "
        f"c = {sigma:.4g}) from {2 * num_estimates} evaluations",
        flush=True,
    )
    return SPSAGains(
        gain_schedule(a, _ALPHA, stability),
        gain_schedule(sigma, _GAMMA),
        a,
        sigma,
        stability,
        2 * num_estimates,
    )
