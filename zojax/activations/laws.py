"""How good an estimate will be, from forward passes alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from zojax.activations import noise
from zojax.activations.kernel import (
    Problem,
    Run,
    Settings,
    make_problem,
    rewards_of_pairs,
    settings_of,
)
from zojax.keys import check_key, noise_key
from zojax.population import Share, over_chunks
from zojax.types import Estimator, Params, PRNGKey

_NUM_SIZES = 8
"""Times that noise of the measured size is sent through the layer-local products."""


class Cosines(NamedTuple):
    """Cosines of an estimate to the gradient.

    Attributes:
      total: of the whole gradient.
      parameters: path -> of this parameter alone; NaN where there is no gradient.
    """

    total: float
    parameters: dict[str, float]


def expected_cosine(
    est: Estimator,
    loss_fn: Callable[..., Any],
    params: Params,
    key: PRNGKey,
    *,
    args: tuple[Any, ...] = (),
    grad: Params | None = None,
    num_probes: int = 64,
) -> Cosines:
    """Predicts the cosine of an estimate to the gradient of the mean loss.

    With independent noise per example the errors of the examples average, and so do those of the
    K draws (pairs, if antithetic). For a site of one parameter, with J_b the layer-local product of
    example b, r_b its reward (half the difference of a pair) and sigma the site's,

        E|dW - g|^2 = (1 / (K B^2)) sum_b E[r_b^2] |J_b|^2 / sigma^2,

    up to terms smaller by the number of perturbed dimensions: |J_b|^2 is (numbers of the output)
    |x_b|^2 for a dense layer, (number of weights) for noise on an example's weights. E[r_b^2] =
    sum over sites of sigma^2 |dloss_b / dy_b|^2 is measured from `num_probes` draws, |J_b|^2 by
    sending noise of that size through the layer-local product. The cosine is
    |g| / sqrt(|g|^2 + E|dW - g|^2).

    Args:
      est: from `activation_noise`, antithetic.
      loss_fn: `loss_fn(params, *args) -> (batch,)`.
      params: the parameters.
      key: typed key.
      args: further arguments of the loss.
      grad: the gradient, where it is known; otherwise its length is taken from the probes
        themselves, |estimate|^2 less its error, which takes so many that their own cosine is not
        small.
      num_probes: draws that are spent: 2 num_probes + 1 queries.

    Raises:
      ValueError: for another estimator, or one that is not antithetic.
    """
    settings = settings_of(est)
    check_key(key)
    if not settings.antithetic or isinstance(settings.num_draws, dict):
        raise ValueError("expected_cosine needs an antithetic estimator with one num_draws")

    probes = settings._replace(num_draws=num_probes)
    problem = make_problem(settings, lambda p: loss_fn(p, *args), params)
    paths = {leaf: row.path for leaf, row in problem.plan.rows.items()}

    @jax.jit
    def measure(params: Params, key: PRNGKey, args: tuple[Any, ...]) -> Any:
        problem = make_problem(probes, lambda p: loss_fn(p, *args), params)
        return _errors_and_squares(probes, problem, noise_key(key))

    errors, squares = measure(params, key, args)
    if grad is not None:
        of_leaves = jax.tree.leaves(grad)
        squares = {i: jnp.sum(jnp.square(of_leaves[i].astype(jnp.float32))) for i in paths}
        lengths = {i: float(squares[i]) for i in paths}
    else:
        lengths = {i: float(squares[i] - errors[i] / num_probes) for i in paths}
    noise_of = {i: float(errors[i]) / settings.total for i in paths}
    parts = {path: _cosine(lengths[i], noise_of[i]) for i, path in paths.items()}
    return Cosines(_cosine(sum(lengths.values()), sum(noise_of.values())), parts)


def _cosine(square: float, error: float) -> float:
    if square <= 0:
        return 0.0 if error > 0 else float("nan")
    return (square / (square + error)) ** 0.5


def _errors_and_squares(settings: Settings, problem: Problem, key: PRNGKey) -> Any:
    """Per parameter the mean squared error of one draw, and |estimate|^2 of all probes."""
    n, batch = settings.total, problem.program.num_examples
    run = Run(settings, problem, key, Share(0, n))
    values, (sums, counts) = over_chunks(run.one_pass, n, min(settings.chunk_size, n))
    rewards, _ = rewards_of_pairs(values)
    own = jnp.sqrt(jnp.mean(rewards**2, axis=0))
    joint = jnp.full(batch, jnp.sqrt(jnp.mean(jnp.sum(rewards, axis=1) ** 2)) / batch)
    weights = [
        ((joint if unit.kind == "batch" else own) / sigma).astype(jnp.float32)[None]
        for unit, sigma in zip(problem.layout.units, problem.sigmas, strict=True)
    ]

    def squares(sums: list[chex.Array], scale: Any) -> dict[int, chex.Array]:
        products, _ = noise.local_products(
            problem.program, problem.plan, problem.layout, problem.leaves, sums
        )
        return {
            leaf: jnp.zeros(())
            if products[leaf] is None
            else jnp.sum((products[leaf] / scale) ** 2)
            for leaf in problem.plan.rows
        }

    def of_one(start: Any) -> dict[int, chex.Array]:
        return squares(noise.weigh(problem.layout, run.draw(start, 1), weights), batch)

    errors = jax.lax.map(of_one, n + jnp.arange(_NUM_SIZES))
    return jax.tree.map(lambda x: jnp.mean(x), errors), squares(sums, counts[0])
