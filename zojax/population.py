"""Evaluating a population: the points of some or all directions, and what their losses weigh.

An execution says how much is evaluated at a time and which of the directions this program has;
the estimate is the same, to rounding, whatever it says.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp

from zojax.types import Estimator, Evaluations, Noise, Params, PRNGKey, State

T = TypeVar("T")
Loss = Callable[[Params], Any]


class Share(NamedTuple):
    """The directions start ... start+length-1 that are this program's, and how it joins the others.

    Attributes:
      start: index of the first one, may be traced.
      length: how many; static.
      gather: `(length, ...)` values of this share -> those of all directions in order.
      add: a tree of sums over this share -> sums over all directions.
      average: losses on this program's examples -> losses on all examples.
      once: runs a function in one program only and gives its result to all.
      add_examples: a tree of sums over this program's examples -> sums over all examples.
      part: which part of the examples this program has, may be traced.
    """

    start: Any
    length: int
    gather: Callable[[chex.Array], chex.Array] = lambda values: values
    add: Callable[[Any], Any] = lambda tree: tree
    average: Callable[[chex.Array], chex.Array] = lambda values: values
    once: Callable[[Callable[[], Any]], Any] = lambda function: function()
    add_examples: Callable[[Any], Any] = lambda tree: tree
    part: Any = 0


class _Chunk(NamedTuple):
    """Evaluated directions with their noise still at hand; `adjusted` are the values to weigh."""

    noises: Noise
    values: chex.Array
    adjusted: chex.Array


def run_population(
    est: Estimator,
    loss: Loss,
    params: Params,
    key: PRNGKey,
    state: State,
    has_aux: bool,
    *,
    size: int | None = None,
    keep_noise: bool = False,
    share: Share | None = None,
) -> Any:
    """Evaluates the points of an estimate and adds up its directions.

    Args:
      est: the estimator.
      loss: `params -> scalar`, or `(scalar, aux)` with `has_aux`.
      params: the parameters.
      key: the estimate's key.
      state: the estimator's state.
      has_aux: whether `loss` returns aux.
      size: directions per chunk; None for all at once.
      keep_noise: with a global shaping, keep the noise instead of drawing it again.
      share: the directions that are evaluated here; None for all of them.

    Returns:
      The evaluations of all directions; the `Estimate` of an estimator with a kernel of its own.
    """
    share = share or Share(0, est.num_directions(params))
    if est.kernel is not None:
        return est.kernel(loss, params, key, size, share)
    size = share.length if size is None else min(size, share.length)
    # What every chunk's first index is known to be a multiple of.
    alignment = size if isinstance(share.start, int) else math.gcd(size, share.length)
    center, aux = _evaluate_center(est, loss, params, has_aux, share)
    at_point = (lambda p: loss(p)[0]) if has_aux else loss

    def draw(start: Any, count: int) -> Noise:
        return est.draw(key, params, state, share.start + start, count, alignment)

    def evaluate(start: Any, count: int) -> _Chunk:
        noises = draw(start, count)
        values = share.average(_evaluate_points(est, at_point, params, state, noises, count))
        adjusted = values if est.adjust is None else est.adjust(values, noises, params, state)
        return _Chunk(noises, values, adjusted)

    def one_pass(start: Any, count: int) -> tuple[chex.Array, tuple[Params, chex.Array]]:
        chunk = evaluate(start, count)
        weights, valid = est.coefficients(chunk.adjusted, center, state)
        return chunk.values, (est.combine(weights, chunk.noises, params, state), jnp.sum(valid))

    if not est.is_global:
        values, sums = over_chunks(one_pass, share.length, size)
        total, num_valid = share.add(sums)
        return Evaluations(share.gather(values), center, total, num_valid, aux)

    keep_noise = keep_noise or size == share.length

    def first_pass(start: Any, count: int) -> tuple[_Chunk, tuple[()]]:
        chunk = evaluate(start, count)
        return (chunk if keep_noise else chunk._replace(noises=())), ()

    (noises, values, adjusted), _ = over_chunks(first_pass, share.length, size)
    values = share.gather(values)
    adjusted = values if est.adjust is None else share.gather(adjusted)
    weights, valid = est.coefficients(adjusted, center, state)
    weights = jax.lax.dynamic_slice_in_dim(weights, share.start, share.length)

    def second_pass(start: Any, count: int) -> tuple[tuple[()], Params]:
        part = jax.lax.dynamic_slice_in_dim(weights, start, count)
        return (), est.combine(part, draw(start, count), params, state)

    if keep_noise:
        total = est.combine(weights, noises, params, state)
    else:
        _, total = over_chunks(second_pass, share.length, size)
    return Evaluations(values, center, share.add(total), jnp.sum(valid), aux)


def _evaluate_center(
    est: Estimator, loss: Loss, params: Params, has_aux: bool, share: Share
) -> tuple[chex.Array | None, Any]:
    """Evaluates the loss at the parameters themselves, if the stencil asks for it."""
    if not est.stencil.has_center:
        return None, None
    value, aux = share.once(lambda: loss(params) if has_aux else (loss(params), None))
    return share.average(value), aux


def _evaluate_points(
    est: Estimator, loss: Loss, params: Params, state: State, noises: Noise, count: int
) -> chex.Array:
    """Evaluates the loss at all points of `count` directions: losses of shape (count, k)."""
    offsets = jnp.asarray(est.stencil.offsets, jnp.float32)

    def along(noise: Noise, over: Callable[..., chex.Array]) -> chex.Array:
        return over(lambda offset: loss(est.point(params, state, noise, offset)))

    if count == 1:
        noise = jax.tree.map(lambda x: x[0], noises)
        return along(noise, lambda f: jax.lax.map(f, offsets))[None]
    return jax.vmap(lambda noise: along(noise, lambda f: jax.vmap(f)(offsets)))(noises)


def over_chunks(body: Callable[[Any, int], tuple[Any, Any]], n: int, size: int) -> tuple[Any, Any]:
    """Runs `body(start, count) -> (rows, summand)` over chunks; concatenates rows, adds summands.

    The remainder of n / size is a shorter chunk of its own: nothing is ever padded.

    Args:
      body: evaluates `count` directions from `start`, which may be traced.
      n: directions in all.
      size: directions per chunk.
    """
    if size == n:
        return body(0, n)
    num_full, remainder = divmod(n, size)
    zero = jax.tree.map(zeros_like, jax.eval_shape(lambda: body(0, size))[1])

    def step(total: Any, index: chex.Array) -> tuple[Any, Any]:
        rows, summand = body(index * size, size)
        return jax.tree.map(jnp.add, total, summand), rows

    total, rows = jax.lax.scan(step, zero, jnp.arange(num_full))
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    if remainder:
        last, summand = body(num_full * size, remainder)
        rows = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), rows, last)
        total = jax.tree.map(jnp.add, total, summand)
    return rows, total


def zeros_like(like: jax.ShapeDtypeStruct) -> chex.Array:
    """Zeros that vary over the same axes of the caller's `shard_map`: scan and cond insist.

    Args:
      like: shape, dtype and axes, from `jax.eval_shape`.
    """
    zeros = jnp.zeros(like.shape, like.dtype)
    axes = getattr(like, "manual_axis_type", None)
    varying = getattr(like, "vma", None) if axes is None else axes.varying  # vma: JAX before 0.9
    if not varying:
        return zeros
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(zeros, tuple(varying), to="varying")
    return getattr(jax.lax, "pvary")(zeros, tuple(varying))  # noqa: B009  # not in newer stubs
