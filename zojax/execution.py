"""How the evaluations of an estimate are run: all at once, or in chunks of directions.

Every execution gives the same estimate for the same key, to rounding.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from zojax.auto_chunk import choose_size
from zojax.errors import check_at_least
from zojax.types import Estimator, Evaluations, Execution, Noise, Params, PRNGKey, State

Loss = Callable[[Params], chex.Array]


class _Chunk(NamedTuple):
    """The evaluated directions start ... start+count-1, with their noise still at hand."""

    noises: Noise
    values: chex.Array


def vectorized() -> Execution:
    """Evaluates all points of an estimate in one `vmap`: fastest for small models.

    Memory: n directions and n perturbed copies of the parameters.
    """
    return Execution("vectorized", _runner(None))


def chunked(size: int | Literal["auto"], *, keep_noise: bool = False) -> Execution:
    """Evaluates `size` directions at a time, one chunk after the other.

    Memory is that of one chunk, whatever n is: with a local shaping (identity,
    sign_of_difference) each chunk is evaluated and combined in one pass; a global one
    (standardize, centered_rank) first collects the n x k losses and then draws the noise again
    from its keys. `size` need not divide n, but where it does the loss is compiled once instead
    of twice. Directions drawn in blocks (`orthogonal`) are redrawn for every chunk that meets the
    block. A chunk of one runs without `vmap`: the fastest way for convolutions on a CPU, and the
    one that host callbacks need.

    Args:
      size: directions per chunk (a pair of `central` counts once). "auto" compiles and times a
        few sizes when a program is first traced (seconds, once per set of shapes), leaves out
        those whose temporaries do not fit, prints its choice and uses it. To keep the choice
        (another size means another order of summation, so other last bits) use
        `zojax.choose_chunk`, which returns it.
      keep_noise: with a global shaping, hold the noise of all n directions between evaluation and
        combination instead of drawing it again. Faster where n d numbers are few (for
        `rademacher` n d / 32 words); memory then grows with n. A local shaping needs neither.

    Raises:
      ValueError: if `size` is neither "auto" nor an integer of at least 1.
    """
    if size == "auto":
        return Execution("chunked('auto')", _auto_runner(keep_noise))
    if isinstance(size, str):
        raise ValueError(f"size must be an integer >= 1 or 'auto', got {size!r}")
    check_at_least("size", size, 1)
    return Execution(f"chunked({size})", _runner(size, keep_noise))


@functools.cache  # equal executions are the same static argument: eager calls do not recompile
def _runner(chunk_size: int | None, keep_noise: bool = False) -> Callable[..., Evaluations]:
    def run(
        est: Estimator, loss: Any, params: Params, key: PRNGKey, state: State, has_aux: bool
    ) -> Evaluations:
        n = est.num_directions(params)
        size = n if chunk_size is None else min(chunk_size, n)
        center, aux = evaluate_center(est, loss, params, has_aux)
        at_point = (lambda p: loss(p)[0]) if has_aux else loss

        def evaluate(start: Any, count: int) -> _Chunk:
            noises = est.draw(key, params, start, count, size)
            return _Chunk(noises, evaluate_points(est, at_point, params, state, noises, count))

        def combine(chunk: _Chunk) -> tuple[Params, chex.Array]:
            weights, valid = est.coefficients(chunk.values, center, state)
            return est.combine(weights, chunk.noises, params), jnp.sum(valid)

        if size == n:
            chunk = evaluate(0, n)
            total, num_valid = combine(chunk)
            return Evaluations(chunk.values, center, total, num_valid, aux)
        if not est.is_global:

            def one_pass(start: Any, count: int) -> tuple[chex.Array, tuple[Params, chex.Array]]:
                chunk = evaluate(start, count)
                return chunk.values, combine(chunk)

            values, (total, num_valid) = _over_chunks(one_pass, n, size)
            return Evaluations(values, center, total, num_valid, aux)

        def first_pass(start: Any, count: int) -> tuple[tuple[chex.Array, Noise], tuple[()]]:
            chunk = evaluate(start, count)
            return (chunk.values, chunk.noises if keep_noise else ()), ()

        (values, noises), _ = _over_chunks(first_pass, n, size)
        weights, valid = est.coefficients(values, center, state)
        if keep_noise:
            total = est.combine(weights, noises, params)
            return Evaluations(values, center, total, jnp.sum(valid), aux)

        def second_pass(start: Any, count: int) -> tuple[chex.Array, Params]:
            noises = est.draw(key, params, start, count, size)
            part = jax.lax.dynamic_slice_in_dim(weights, start, count)
            return part, est.combine(part, noises, params)

        _, total = _over_chunks(second_pass, n, size)
        return Evaluations(values, center, total, jnp.sum(valid), aux)

    return run


def auto_size(
    est: Estimator, loss: Any, params: Params, key: PRNGKey, state: State, has_aux: bool
) -> int:
    """Returns the chunk size that `chunked("auto")` uses, and prints it.

    Args:
      est: the estimator.
      loss: `params -> scalar`, or `(scalar, aux)` with `has_aux`.
      params: the parameters.
      key: the estimate's key.
      state: the estimator's state.
      has_aux: whether `loss` returns aux.
    """

    def chunk(size: int) -> Callable[[Params, PRNGKey], Any]:
        one = est._replace(num_directions=lambda _: size)
        run_one = _runner(None)
        return lambda params, key: run_one(one, loss, params, key, state, has_aux).total

    return choose_size(chunk, est.num_directions(params), (params, key))


@functools.cache
def _auto_runner(keep_noise: bool) -> Callable[..., Evaluations]:
    def run(
        est: Estimator, loss: Any, params: Params, key: PRNGKey, state: State, has_aux: bool
    ) -> Evaluations:
        size = auto_size(est, loss, params, key, state, has_aux)
        return _runner(size, keep_noise)(est, loss, params, key, state, has_aux)

    return run


def evaluate_center(
    est: Estimator, loss: Any, params: Params, has_aux: bool
) -> tuple[chex.Array | None, Any]:
    """Evaluates the loss at the parameters themselves, if the stencil asks for it.

    Args:
      est: the estimator.
      loss: `params -> scalar`, or `(scalar, aux)` with `has_aux`.
      params: the parameters.
      has_aux: whether `loss` returns aux.

    Returns:
      `(value, aux)`, None where there is none.
    """
    if not est.stencil.has_center:
        return None, None
    return loss(params) if has_aux else (loss(params), None)


def evaluate_points(
    est: Estimator, loss: Loss, params: Params, state: State, noises: Noise, count: int
) -> chex.Array:
    """Evaluates the loss at all points of `count` directions.

    Args:
      est: the estimator.
      loss: `params -> scalar`.
      params: the parameters.
      state: the estimator's state.
      noises: noise stacked on axis 0.
      count: the length of that axis.

    Returns:
      Losses of shape (count, k).
    """
    offsets = jnp.asarray(est.stencil.offsets, jnp.float32)

    def along(noise: Noise, over: Callable[..., chex.Array]) -> chex.Array:
        return over(lambda offset: loss(est.point(params, state, noise, offset)))

    if count == 1:
        noise = jax.tree.map(lambda x: x[0], noises)
        return along(noise, lambda f: jax.lax.map(f, offsets))[None]
    return jax.vmap(lambda noise: along(noise, lambda f: jax.vmap(f)(offsets)))(noises)


def _over_chunks(body: Callable[[Any, int], tuple[Any, Any]], n: int, size: int) -> tuple[Any, Any]:
    """Runs `body(start, count) -> (rows, summand)` over chunks; concatenates rows, adds summands.

    The remainder of n / size is a shorter chunk of its own: nothing is ever padded.
    """
    num_full, remainder = divmod(n, size)
    shapes = jax.eval_shape(lambda: body(0, size))[1]
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

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
