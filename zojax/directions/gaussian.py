"""Independent standard normal coordinates."""

import chex
import jax

from zojax.directions.base import flat_directions
from zojax.types import Directions, PRNGKey


def gaussian() -> Directions:
    """Directions eps ~ N(0, I), score s = eps.

    The estimate is the exact gradient of the Gaussian-smoothed loss
    E[f(x + sigma eps)] for any measurable f (unbiased at every sigma); its bias against grad f is
    O(sigma^2). For a linear loss the relative mean squared error of n directions is (d + 1) / n.

    Source: Nesterov and Spokoiny 2017 (Found. Comput. Math. 17); Salimans et al. 2017,
    arXiv 1703.03864.
    """

    def draw(key: PRNGKey, dimension: int) -> chex.Array:
        return jax.random.normal(key, (dimension,), dtype="float32")

    return flat_directions("gaussian", draw, linear_error=lambda d, n: (d + 1) / n)
