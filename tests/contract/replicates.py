"""Independent estimates of one gradient, compiled once."""

import jax
import jax.numpy as jnp
import numpy as np

import zojax
from zojax import trees

# A vector and a matrix, so that structured noise shows its two kinds; d = 8.
PARAMS = {"bias": jnp.array([0.3, -0.7]), "kernel": jnp.array([[0.5, -0.2, 0.9], [-1.1, 0.4, 0.1]])}
DIMENSION = trees.size(PARAMS)
ON_MATRIX = np.arange(DIMENSION) >= 2
POINT = np.asarray(trees.ravel(PARAMS))


def estimates(make_estimator, loss_fn, sigmas, num_replicates, params=PARAMS, choices=None):
    """Flat gradients of shape (len(sigmas), num_replicates, d) of `make_estimator(sigma)`.

    With `choices`, one per sigma, the loss is `loss_fn(params, choice)`.
    """
    sigmas = jnp.asarray(sigmas, jnp.float32)
    args = () if choices is None else (jnp.asarray(choices),)

    def one(key, sigma, *args):
        est = make_estimator(sigma)
        result, _ = zojax.estimate(est, loss_fn, params, key, est.init(params), args=args)
        return trees.ravel(result.grad)

    @jax.jit
    def run(keys):
        return jax.lax.map(lambda key: jax.vmap(lambda *row: one(key, *row))(sigmas, *args), keys)

    keys = jax.random.split(jax.random.key(0), num_replicates)
    return np.asarray(run(keys), np.float64).swapaxes(0, 1)


def rounding(loss_size, sigma):
    """Error of a mean of difference quotients: float32 losses of that size, over sigma.

    A score multiplies it by at most about sqrt(d) in any one coordinate.
    """
    return 1e-5 + float(np.finfo(np.float32).eps) * loss_size * DIMENSION**0.5 / sigma
