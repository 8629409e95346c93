"""Pertinent negatives in the latent space of a generator, with attributes that may only grow."""

from collections.abc import Callable

import chex
import jax.numpy as jnp

from zojax.directions import all_coordinates
from zojax.estimators import finite_difference
from zojax.explain.solver import Explainer, Problem, Schedule, check_not_negative, search
from zojax.stencils import central
from zojax.types import Estimator, Scalar

_EST = finite_difference(
    directions=all_coordinates(), stencil=central, num_directions=None, sigma=0.05
)


def latent_negative(
    generate: Callable[[chex.Array], chex.Array],
    encode: Callable[[chex.Array], chex.Array],
    est: Estimator = _EST,
    *,
    attributes: Callable[[chex.Array], chex.Array] | None = None,
    c: float = 10.0,
    kappa: float = 1.0,
    nu: float = 1.0,
    eta: float = 0.1,
    gamma: float = 100.0,
    beta: float = 0.1,
    num_steps: int = 100,
    num_searches: int = 5,
    learning_rate: float = 0.05,
) -> Explainer:
    """A pertinent negative that looks like the data: a generator makes it, attributes may grow.

    Minimises c max(margin + kappa, 0) + nu |z - z0|^2 + eta |G(z) - x|^2
    + gamma sum_i max(a_i(x) - a_i(G(z)), 0) + beta sum_i |a_i(G(z))| over latents z from
    z0 = encode(x), the margin being the score of the label minus the highest other one: see
    `zojax.explain.solver.search`. So no attribute may be lost, and few should be strong. Generator
    and attributes are known, and what they do is differentiated exactly; what the model says about
    G(z) is not.

    G(z0) is x only as far as the generator can draw it: the model must give both the same class,
    else there is nothing to explain ("already").

    Queries per step: those of the estimator and one check, 2 k + 1 by default for k latents, in
    all `num_steps` times `num_searches` of them; one for x, one for G(z0), one for the class after.

    Args:
      generate: G, latents (k,) to an input of the model within [0, 1], for JAX.
      encode: an input to its latents (k,), for JAX: an encoder, or an inversion.
      est: estimates the margin's gradient in z, any estimator; sigma is in units of z.
      attributes: an input to how much of each attribute it has (m,), for JAX; None for none. They
        must not ask the model that is explained.
      c: the first weight of the hinge, > 0.
      kappa: margin by which the class must change, >= 0.
      nu: weight of the distance in latents, >= 0.
      eta: weight of the distance in pixels, >= 0.
      gamma: weight of what attributes lose, >= 0.
      beta: weight of the attributes that there are, >= 0.
      num_steps: FISTA steps per value of c, at least 1.
      num_searches: values of c, at least 1.
      learning_rate: of the first step, > 0; step k of K takes sqrt(1 - k / K) of it.

    Raises:
      ValueError: for an argument out of range.

    Source: Luss et al. 2019 (contrastive explanations with monotonic attribute functions), arXiv
    1905.12698.
    """
    for name, weight in (("nu", nu), ("eta", eta), ("gamma", gamma), ("beta", beta)):
        check_not_negative(name, weight)
    schedule = Schedule(c, kappa, num_steps, num_searches, learning_rate)

    def image(z: chex.Array, x: chex.Array) -> chex.Array:
        del x
        return jnp.clip(generate(z), 0.0, 1.0)

    def limits(x: chex.Array) -> tuple[chex.Array, chex.Array]:
        everywhere = jnp.full((), jnp.inf, x.dtype)
        return -everywhere, everywhere

    def penalty(z: chex.Array, start: chex.Array, x: chex.Array) -> Scalar:
        drawn = generate(z)
        distances = nu * jnp.sum((z - start) ** 2) + eta * jnp.sum((drawn - x) ** 2)
        if attributes is None:
            return distances
        had, has = attributes(x), attributes(drawn)
        lost = jnp.sum(jnp.maximum(had - has, 0))
        return distances + gamma * lost + beta * jnp.sum(jnp.abs(has))

    problem = Problem(encode, limits, image, penalty, 0.0)
    attack = search("latent pertinent negative", problem, est, schedule)
    return Explainer(attack, False, lambda x: image(encode(x), x))
