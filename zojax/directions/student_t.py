"""Heavy-tailed directions with a bounded score."""

import chex
import jax
import jax.numpy as jnp

from zojax.directions.base import flat_directions
from zojax.errors import check_at_least
from zojax.types import Directions, PRNGKey


def student_t(df: int) -> Directions:
    """Multivariate Student-t directions, score s = (df + d) eps / (df - 2 + |eps|^2).

    Of unit covariance. A Gaussian vector whose length is random for all coordinates together: with
    few degrees of freedom some steps reach far. The score is bounded, so far losses do not weigh
    more for being far. The estimate is the exact gradient of the loss smoothed by this density;
    as df grows it becomes `gaussian`. For a linear loss the relative mean squared error of n
    directions is ((d + df) (d + 2) / (d + df + 2) - 1) / n.

    Args:
      df: degrees of freedom, at least 3 (with 2 there is no covariance). A direction draws d + df
        normal numbers.

    Raises:
      ValueError: if `df` is not an integer of at least 3.
    """
    check_at_least("df", df, 3)

    def draw(key: PRNGKey, dimension: int) -> chex.Array:
        normal = jax.random.normal(key, (dimension + df,), dtype="float32")
        chi_square = jnp.sum(normal[dimension:] ** 2)
        return normal[:dimension] * jnp.sqrt((df - 2) / chi_square)

    def score(noise: chex.Array) -> chex.Array:
        square = jnp.sum(noise**2, axis=-1, keepdims=True)
        return noise * ((df + noise.shape[-1]) / (df - 2 + square))

    def linear_error(d: int, n: int) -> float:
        return ((d + df) * (d + 2) / (d + df + 2) - 1) / n

    return flat_directions(f"student_t({df})", draw, score, linear_error=linear_error)
