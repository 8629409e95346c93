"""Independent estimates of one gradient, and what they say together."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zojax import trees
from zojax.diagnostics.laws import expected_cosine
from zojax.types import Estimate, LossFn, Params, PRNGKey


class Sample(NamedTuple):
    """R independent estimates, added up. Vectors are flat, float64, over all float leaves.

    Attributes:
      halves: sums of every other estimate, shape (2, d).
      squares: sum of the squared lengths of all estimates.
      cosines: of each estimate to the gradient, shape (R,); NaN where that is not known.
      truth: the gradient, zero on leaves that no estimate reaches, shape (d,); None if not known.
      first: the first estimate.
      signal_to_noise: mean over the estimates, see `EstimateInfo`.
      failed: fraction of the evaluations that were of no use.
      queries_per_second: loss evaluations per second, without compilation.
    """

    halves: np.ndarray
    squares: float
    cosines: np.ndarray
    truth: np.ndarray | None
    first: Estimate
    signal_to_noise: float
    failed: float
    queries_per_second: float


def gradient(
    loss_fn: LossFn, params: Params, args: tuple[Any, ...], differentiable: bool | str
) -> np.ndarray | None:
    """Differentiates the loss; returns the flat gradient, or None where it says nothing.

    Args:
      loss_fn: `loss_fn(params, *args) -> scalar`.
      params: the parameters.
      args: further arguments of the loss.
      differentiable: True to raise what the derivative raises.
    """
    selected, rest = trees.partition(params, None)
    try:
        slopes = jax.jit(jax.grad(lambda p: loss_fn(trees.merge(p, rest), *args)))(selected)
    except Exception:  # whatever a loss without a derivative raises
        if differentiable is True:
            raise
        return None
    flat = np.asarray(trees.ravel(slopes), np.float64)
    return flat if np.all(np.isfinite(flat)) and np.any(flat) else None


def collect(
    run: Callable[[PRNGKey], Estimate],
    keys: list[PRNGKey],
    params: Params,
    truth: np.ndarray | None,
) -> Sample:
    """Makes one estimate per key, and adds them up; two vectors are held whatever their number.

    Args:
      run: key -> estimate.
      keys: R keys.
      params: the parameters.
      truth: the flat gradient, or None.
    """
    leaves = jax.tree.leaves(trees.partition(params, None)[0])
    size = sum(leaf.size for leaf in leaves)
    halves, reach = np.zeros((2, size)), np.zeros(size, bool)
    along, lengths, infos, elapsed = [], [], [], 0.0
    jax.block_until_ready(first := run(keys[0]))  # compiles
    for i, key in enumerate(keys):
        start = time.perf_counter()
        result = jax.block_until_ready(run(key))
        elapsed += time.perf_counter() - start
        flat = np.asarray(trees.ravel(trees.partition(result.grad, None)[0]), np.float64)
        halves[i % 2] += flat
        reach |= flat != 0
        along.append(0.0 if truth is None else flat @ truth)
        lengths.append(np.linalg.norm(flat))
        infos.append(jax.device_get(result.info))
    cosines = np.full(len(keys), np.nan)
    if truth is not None:
        # Leaves outside the estimator's mask are no part of the gradient it estimates.
        cuts = np.cumsum([leaf.size for leaf in leaves])[:-1]
        reached = [np.full(part.size, part.any()) for part in np.split(reach, cuts)]
        truth = np.where(np.concatenate(reached), truth, 0)
        scale = np.maximum(np.asarray(lengths) * np.linalg.norm(truth), np.finfo(float).tiny)
        cosines = np.asarray(along) / scale
    num_queries = sum(int(info.num_queries) for info in infos)
    return Sample(
        halves,
        float(np.sum(np.square(lengths))),
        cosines,
        truth,
        first,
        float(np.mean([info.signal_to_noise for info in infos])),
        sum(int(info.num_nonfinite) for info in infos) / num_queries,
        num_queries / elapsed,
    )


def noise_and_bias(sample: Sample, preserves_scale: bool) -> tuple[float, float]:
    """Returns how much one estimate scatters and what averaging leaves, over the gradient's length.

    Args:
      sample: the estimates; without a gradient its length is taken from their mean, and there is
        no bias to tell.
      preserves_scale: whether they estimate the gradient itself or only its direction.
    """
    count, truth = len(sample.cosines), sample.truth
    mean = sample.halves.sum(0) / count
    variance = max(sample.squares - count * mean @ mean, 0) / (count - 1)
    signal = mean @ mean - variance / count  # the squared length without its sampling error
    if truth is None:
        return (variance / signal) ** 0.5 if signal > 0 else math.nan, math.nan
    square = truth @ truth
    factor = 1.0 if preserves_scale else mean @ truth / square
    length = abs(factor) * square**0.5
    if not length > 0:
        return math.nan, math.nan
    off = (mean - factor * truth) @ (mean - factor * truth) - variance / count
    return variance**0.5 / length, max(off, 0.0) ** 0.5 / length


def split_half_cosine(halves: np.ndarray, count: int, num_directions: int) -> float:
    """Returns the cosine of one estimate that the agreement of two means implies.

    Args:
      halves: sums of the estimates' halves, shape (2, d).
      count: number of estimates.
      num_directions: of one estimate.
    """
    lengths = np.linalg.norm(halves[0]) * np.linalg.norm(halves[1])
    agreement = halves[0] @ halves[1] / lengths if lengths > 0 else 0.0
    if agreement <= 0:
        return 0.0
    # Means of count / 2 estimates with relative error e agree to 1 / (1 + 2 e / count).
    return expected_cosine((1 / agreement - 1) * count / 2, num_directions)


def moved_fraction(params: Params, grad: Params, learning_rate: float) -> float:
    """Returns the fraction of the weights with a gradient that a plain step changes.

    Args:
      params: the parameters.
      grad: an estimate.
      learning_rate: the step's.
    """
    moved = updated = 0
    for leaf, slope in zip(
        *(jax.tree.leaves(trees.partition(t, None)[0]) for t in (params, grad)), strict=True
    ):
        dtype = trees.point_dtype(leaf.dtype)
        step = jnp.asarray(learning_rate, dtype) * slope.astype(dtype)
        new = (leaf.astype(dtype) - step).astype(leaf.dtype)
        moved += int(jnp.sum(new != leaf))
        updated += int(jnp.sum(slope != 0))
    return moved / updated if updated else math.nan
