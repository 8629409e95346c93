"""Choosing a chunk size by trying it: on this model, with this estimator, on this device."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

_CANDIDATES = (1, 4, 16, 64, 256)
_CHUNKS = 2  # in a loop, as the real program runs them
_MEMORY_SHARE = 0.5
_HOPELESS = 2.0
_TIMED_SECONDS = 1.0


class Trial(NamedTuple):
    """What one candidate showed.

    Attributes:
      size: directions per chunk.
      run: runs the compiled program on made-up values.
      num_directions: how many that run goes through.
      temporary_bytes: temporaries and results of the compiled program.
      seconds: of each run.
    """

    size: int
    run: Callable[[], Any]
    num_directions: int
    temporary_bytes: int
    seconds: list[float]

    def measure(self) -> None:
        """Times one more run."""
        with jax.ensure_compile_time_eval():  # the caller may be in the middle of a trace
            start = time.perf_counter()
            jax.block_until_ready(self.run())
            self.seconds.append(time.perf_counter() - start)

    @property
    def cost(self) -> float:
        """Seconds per direction: the least, since what disturbs a measurement only adds."""
        return min(self.seconds) / self.num_directions


def choose_size(
    program: Callable[[int, int], Callable[..., Any]], num_directions: int, arguments: Any
) -> int:
    """Times a few chunks of several sizes and returns the fastest per direction that fits.

    Works while the caller is being traced: values that are not known yet are replaced by made-up
    ones of the same shape, which cost the same time.

    Args:
      program: `(size, count) -> function(*arguments)` that runs `count` directions in chunks.
      num_directions: n, the largest candidate.
      arguments: the functions' arguments, arrays or tracers.

    Returns:
      The chosen size, which is printed with the time of every candidate.
    """
    trials: list[Trial] = []
    limit = _MEMORY_SHARE * _device_memory()
    for size in _candidates(num_directions):
        count = size * min(_CHUNKS, num_directions // size)
        trial = _compile(program(size, count), size, count, arguments, limit)
        if trial is None:
            break
        trials.append(trial)
        if trial.cost > _HOPELESS * min(t.cost for t in trials):
            break
    # In turns, so that a disturbance does not fall on one candidate alone.
    end = time.perf_counter() + _TIMED_SECONDS
    while len(trials) > 1 and time.perf_counter() < end:
        for trial in trials:
            if trial.cost <= _HOPELESS * min(t.cost for t in trials):
                trial.measure()
    best = min(trials, key=lambda t: t.cost)
    tried = ", ".join(f"{t.size}: {1e3 * t.cost:.3g} ms" for t in trials)
    print(
        f"chunked('auto') chose {best.size} of {num_directions} directions per chunk "
        f"(time per direction, {tried}; {best.temporary_bytes / 1e6:.3g} MB of temporaries)",
        flush=True,
    )
    return best.size


def _candidates(num_directions: int) -> Iterator[int]:
    yield from (size for size in _CANDIDATES if size < num_directions)
    yield num_directions


def _compile(
    function: Callable[..., Any], size: int, count: int, arguments: Any, limit: float
) -> Trial | None:
    """Compiles one candidate and times it once; None if it would not fit into memory."""
    closed = jax.make_jaxpr(function)(*arguments)
    inputs = [*closed.consts, *jax.tree.leaves(arguments)]
    num_consts = len(closed.consts)

    def run(flat: list[Any]) -> Any:
        return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, flat[:num_consts]))(*flat[num_consts:])

    shapes = [jax.ShapeDtypeStruct(jnp.shape(x), jax.typeof(x).dtype) for x in inputs]
    compiled = jax.jit(run).lower(shapes).compile()
    memory = compiled.memory_analysis()
    temporary = 0
    if memory is not None:
        temporary = memory.temp_size_in_bytes + memory.output_size_in_bytes
    if temporary > limit and size > 1:
        return None
    with jax.ensure_compile_time_eval():
        values = [_made_up(shape) for shape in shapes]
        jax.block_until_ready(compiled(values))
    trial = Trial(size, lambda: compiled(values), count, temporary, [])
    trial.measure()
    return trial


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
