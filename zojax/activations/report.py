"""What noise every parameter gets, and whether an estimate is as good as it should be."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zojax.activations.description import Description, describe_plan, table
from zojax.activations.kernel import make_problem, settings_of
from zojax.activations.laws import Cosines, expected_cosine
from zojax.estimation import estimate
from zojax.types import Estimator, Params, PRNGKey


class Quality(NamedTuple):
    """Measured quality of an estimate; printing it shows the table. Lengths are relative to |g|.

    Attributes:
      expected: cosine by the law, total and per parameter.
      measured: mean cosine to the gradient, likewise.
      noise: path -> standard deviation of an estimate.
      bias: path -> distance of the mean of the estimates from the gradient, less what is left of
        the noise in it; 0 within that.
      total_noise: of the whole gradient.
      total_bias: of the whole gradient.
    """

    expected: Cosines
    measured: Cosines
    noise: dict[str, float]
    bias: dict[str, float]
    total_noise: float
    total_bias: float

    def __str__(self) -> str:
        """The table."""
        header = ("parameter", "cosine by the law", "measured", "noise / |g|", "bias / |g|")
        body = [
            (path, *(f"{x:.3f}" for x in numbers))
            for path, *numbers in (
                *(
                    (p, e, self.measured.parameters[p], self.noise[p], self.bias[p])
                    for p, e in self.expected.parameters.items()
                ),
                (
                    "all",
                    self.expected.total,
                    self.measured.total,
                    self.total_noise,
                    self.total_bias,
                ),
            )
        ]
        return table((header, *body))


def describe(
    loss_fn: Callable[..., Any], params: Params, *args: Any, est: Estimator
) -> Description:
    """Says what noise every parameter gets, and prints it. Nothing is evaluated.

    Args:
      loss_fn: `loss_fn(params, *args) -> (batch,)`.
      params: the parameters, or their shapes.
      *args: further arguments of the loss.
      est: from `activation_noise`.

    Raises:
      ValueError: for another estimator, or a loss that it cannot be used on.
    """
    problem = make_problem(settings_of(est), lambda p: loss_fn(p, *args), params)
    found = describe_plan(problem.plan, problem.layout)
    print(found)
    return found


def diagnose(
    est: Estimator,
    loss_fn: Callable[..., Any],
    params: Params,
    key: PRNGKey,
    *,
    args: tuple[Any, ...] = (),
    num_estimates: int = 32,
) -> Quality:
    """Compares an estimator with the gradient, parameter by parameter, and prints a table.

    The mean of `num_estimates` independent estimates separates bias, which no number of draws
    averages away, from noise. This is the one place that takes the gradient of the loss.

    Args:
      est: from `activation_noise`, antithetic.
      loss_fn: `loss_fn(params, *args) -> (batch,)`.
      params: the parameters, floating-point arrays.
      key: typed key.
      args: further arguments of the loss.
      num_estimates: at least 2.
    """
    grad = jax.grad(lambda p: jnp.mean(loss_fn(p, *args)), allow_int=True)(params)
    settings = settings_of(est)
    # As many draws as are measured: one reward per batch says little about their spread.
    probes = num_estimates * settings.total
    expected = expected_cosine(est, loss_fn, params, key, args=args, grad=grad, num_probes=probes)
    rows = make_problem(settings, lambda p: loss_fn(p, *args), params).plan.rows

    def run(k: PRNGKey) -> list[np.ndarray]:
        found = estimate(est, loss_fn, params, k, (), args=args)[0].grad
        leaves = jax.tree.leaves(found)
        return [np.asarray(leaves[i], np.float64).ravel() for i in rows]

    keys = [jax.random.fold_in(key, i) for i in range(1, num_estimates + 1)]
    drawn = [np.stack(part) for part in zip(*map(run, keys), strict=True)]
    leaves = jax.tree.leaves(grad)
    truth = [np.asarray(leaves[i], np.float64).ravel() for i in rows]
    parts = {
        row.path: _compare(e, g) for row, e, g in zip(rows.values(), drawn, truth, strict=True)
    }
    whole = _compare(np.concatenate(drawn, axis=1), np.concatenate(truth))
    found = Quality(
        expected=expected,
        measured=Cosines(whole[0], {path: part[0] for path, part in parts.items()}),
        noise={path: part[1] for path, part in parts.items()},
        bias={path: part[2] for path, part in parts.items()},
        total_noise=whole[1],
        total_bias=whole[2],
    )
    print(found)
    return found


def _compare(estimates: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Mean cosine, noise and bias relative to the gradient's length."""
    length, count = float(np.linalg.norm(truth)), len(estimates)
    if not length > 0:
        return math.nan, math.nan, math.nan
    norms = np.linalg.norm(estimates, axis=1)
    cosine = float(np.mean(estimates @ truth / np.maximum(norms, 1e-300))) / length
    variance = float(np.sum(np.var(estimates, axis=0, ddof=1)))
    off = float(np.sum((estimates.mean(axis=0) - truth) ** 2)) - variance / count
    return cosine, variance**0.5 / length, max(off, 0.0) ** 0.5 / length
