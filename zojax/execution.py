"""How the evaluations of an estimate are run: all at once, or in chunks of directions.

Every execution gives the same estimate for the same key, to rounding.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

from zojax.auto_chunk import choose_size
from zojax.errors import check_at_least
from zojax.population import run_population
from zojax.types import Estimator, Execution, Params, PRNGKey, State


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
def _runner(size: int | None, keep_noise: bool = False) -> Callable[..., Any]:
    def run(
        est: Estimator,
        loss: Callable[..., Any],
        params: Params,
        key: PRNGKey,
        state: State,
        args: tuple[Any, ...],
        has_aux: bool,
    ) -> Any:
        at = lambda p: loss(p, *args)  # noqa: E731
        return run_population(
            est, at, params, key, state, has_aux, size=size, keep_noise=keep_noise
        )

    return run


def auto_size(
    est: Estimator,
    loss: Callable[..., Any],
    params: Params,
    key: PRNGKey,
    state: State,
    args: tuple[Any, ...],
    has_aux: bool,
) -> int:
    """Returns the chunk size that `chunked("auto")` uses, and prints it.

    Args:
      est: the estimator.
      loss: `(params, *args) -> scalar`, or `(scalar, aux)` with `has_aux`.
      params: the parameters.
      key: the estimate's key.
      state: the estimator's state.
      args: further arguments of the loss.
      has_aux: whether `loss` returns aux.
    """

    def program(size: int, count: int) -> Callable[[Params, PRNGKey], Any]:
        part = est._replace(num_directions=lambda _: count)
        run = _runner(size)

        def once(params: Params, key: PRNGKey) -> Any:
            result = run(part, loss, params, key, state, args, has_aux)
            return result.total if est.kernel is None else result.grad

        return once

    return choose_size(program, est.num_directions(params), (params, key))


@functools.cache
def _auto_runner(keep_noise: bool) -> Callable[..., Any]:
    def run(
        est: Estimator,
        loss: Callable[..., Any],
        params: Params,
        key: PRNGKey,
        state: State,
        args: tuple[Any, ...],
        has_aux: bool,
    ) -> Any:
        size = auto_size(est, loss, params, key, state, args, has_aux)
        return _runner(size, keep_noise)(est, loss, params, key, state, args, has_aux)

    return run
