"""Choosing a chunk size by trying it: on this model, with this estimator, on this device."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

_FIRST_CANDIDATES = (1, 8, 32, 128, 512)
_MEMORY_SHARE = 0.5
_TIMED_SECONDS = 0.2


class Trial(NamedTuple):
    """What one candidate showed.

    Attributes:
      size: directions per chunk.
      seconds: time per direction.
      temporary_bytes: temporaries and results of the compiled program.
    """

    size: int
    seconds: float
    temporary_bytes: int


def choose_size(
    chunk: Callable[[int], Callable[..., Any]], num_directions: int, arguments: Any
) -> int:
    """Times one chunk of several sizes and returns the fastest per direction that fits.

    Works while the caller is being traced: values that are not known yet are replaced by made-up
    ones of the same shape, which cost the same time.

    Args:
      chunk: `size -> function(*arguments)` that runs one chunk.
      num_directions: n, the largest candidate.
      arguments: the functions' arguments, arrays or tracers.

    Returns:
      The chosen size, which is printed with the time of every candidate.
    """
    trials: list[Trial] = []
    limit = _MEMORY_SHARE * _device_memory()
    for size in _candidates(num_directions):
        trial = _try(chunk(size), size, arguments, limit)
        if trial is None:
            break
        trials.append(trial)
        if trial.seconds > 2 * min(trials, key=lambda t: t.seconds).seconds:
            break
    best = min(trials, key=lambda t: t.seconds)
    tried = ", ".join(f"{t.size}: {1e3 * t.seconds:.3g} ms" for t in trials)
    print(
        f"chunked('auto') chose {best.size} of {num_directions} directions per chunk "
        f"(time per direction, {tried}; {best.temporary_bytes / 1e6:.3g} MB of temporaries)",
        flush=True,
    )
    return best.size


def _candidates(num_directions: int) -> Iterator[int]:
    yield from (size for size in _FIRST_CANDIDATES if size < num_directions)
    yield num_directions


def _try(function: Callable[..., Any], size: int, arguments: Any, limit: float) -> Trial | None:
    """Compiles and times one candidate; None if it would not fit into memory."""
    closed = jax.make_jaxpr(function)(*arguments)
    inputs = [*closed.consts, *jax.tree.leaves(arguments)]
    count = len(closed.consts)

    def run(flat: list[Any]) -> Any:
        return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, flat[:count]))(*flat[count:])

    shapes = [jax.ShapeDtypeStruct(jnp.shape(x), jax.typeof(x).dtype) for x in inputs]
    compiled = jax.jit(run).lower(shapes).compile()
    memory = compiled.memory_analysis()
    temporary = 0
    if memory is not None:
        temporary = memory.temp_size_in_bytes + memory.output_size_in_bytes
    if temporary > limit and size > 1:
        return None
    with jax.ensure_compile_time_eval():  # the caller may be in the middle of a trace
        flat = [_made_up(shape) for shape in shapes]
        jax.block_until_ready(compiled(flat))
        times: list[float] = []
        while not times or sum(times) < _TIMED_SECONDS and len(times) < 20:
            start = time.perf_counter()
            jax.block_until_ready(compiled(flat))
            times.append(time.perf_counter() - start)
    return Trial(size, min(times) / size, temporary)


def _made_up(shape: jax.ShapeDtypeStruct) -> Any:
    if jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), shape.shape)
    if jnp.issubdtype(shape.dtype, jnp.floating):
        return jnp.full(shape.shape, 0.1, shape.dtype)
    return jnp.zeros(shape.shape, shape.dtype)


def _device_memory() -> float:
    """Bytes of the default device's memory; of the machine's on a CPU."""
    statistics = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return float(statistics["bytes_limit"])
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
