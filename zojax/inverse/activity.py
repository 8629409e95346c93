"""Which latents a generator listens to: flat ones cannot be recovered from any image."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax.errors import check_that
from zojax.types import Params


def latent_sensitivity(
    generate: Callable[[Params, chex.Array], chex.Array], params: Params, latents: chex.Array
) -> chex.Array:
    """Root mean square of |dG / dx_i| over latents, shape (k,), in pixels per unit of x_i.

    A latent that a variational auto-encoder has given up ("collapsed") has a sensitivity near 0:
    the loss is flat along it. By forward-mode differentiation of the generator.

    Args:
      generate: `generate(params, x) -> image`.
      params: the generator.
      latents: points to average over, (n, k), e.g. standard normal.

    Raises:
      ValueError: for latents that are not (n, k) with n >= 1.
    """
    check_that(
        "latents", jnp.shape(latents), "of shape (n, k)", lambda shape: len(shape) == 2 and shape[0]
    )

    def energy(x: chex.Array) -> chex.Array:
        def along(tangent: chex.Array) -> chex.Array:
            _, change = jax.jvp(lambda x: generate(params, x), (x,), (tangent,))
            return jnp.sum(change**2)

        return jax.vmap(along)(jnp.eye(x.size, dtype=x.dtype))

    return jnp.sqrt(jnp.mean(jax.lax.map(energy, jnp.asarray(latents)), axis=0))


def active_latents(sensitivity: chex.Array, threshold: float = 0.05) -> chex.Array:
    """Which latents have at least `threshold` times the largest sensitivity, bool (k,).

    Args:
      sensitivity: of `latent_sensitivity`, (k,).
      threshold: in [0, 1].

    Raises:
      ValueError: for a threshold outside [0, 1].
    """
    check_that("threshold", threshold, "in [0, 1]", lambda v: 0 <= v <= 1)
    return sensitivity >= threshold * jnp.max(sensitivity)


def on_active(
    generate: Callable[[Params, chex.Array], chex.Array], active: chex.Array
) -> Callable[[Params, chex.Array], chex.Array]:
    """The generator as a function of its active latents alone; the others are 0, their mean.

    Args:
      generate: `generate(params, x) -> image`.
      active: which latents remain, bool (k,), known numbers.

    Returns:
      `generate(params, z)`, z of shape (number of active latents,).

    Raises:
      ValueError: if none is active.
    """
    places = np.flatnonzero(np.asarray(active))
    check_that("active", active, "True somewhere", lambda _: places.size > 0)

    def generate_from(params: Params, z: chex.Array) -> chex.Array:
        x = jnp.zeros(np.shape(active), z.dtype).at[places].set(z)
        return generate(params, x)

    return generate_from
