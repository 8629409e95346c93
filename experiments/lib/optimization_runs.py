"""Runs optimisers for a budget of queries, and tunes their learning rates at equal effort."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
from experiments.lib.optimization_problems import Problem

_TUNING_SEEDS = 1_000_000  # far from the seeds that are reported


class Algorithm(NamedTuple):
    """A method in motion.

    Attributes:
        init: `params -> carry`.
        step: `(carry, key, batch loss, full loss) -> carry`.
        params: `carry -> params` that are judged.
    """

    init: Callable[[Any], Any]
    step: Callable[..., Any]
    params: Callable[[Any], Any]


class Method(NamedTuple):
    """A method to tune.

    Attributes:
        name: In tables and figures.
        build: `(schedule, key) -> Algorithm`; the schedule maps a step to a learning rate.
        queries: `steps -> queries spent so far`.
        rates: Smallest and largest learning rate that are tried.
        schedules: Names of the schedules that are tried: `constant`, `cosine` or `inverse`.
    """

    name: str
    build: Callable[[Callable[[Any], Any], jax.Array], Algorithm]
    queries: Callable[[int], int]
    rates: tuple[float, float]
    schedules: tuple[str, ...] = ("constant", "cosine")


class Outcome(NamedTuple):
    """A tuned method.

    Attributes:
        rate: The chosen learning rate.
        schedule: The chosen schedule.
        at_edge: Whether the rate is at an end of the grid, so that a better one may exist outside.
        num_steps: Steps per run.
        queries: Queries at the records, (records,).
        curves: For each measure an array (seeds, records, ...).
        params: Final parameters, stacked over seeds.
        tuning: Mean score at every rate and schedule, (schedules, rates).
    """

    rate: float
    schedule: str
    at_edge: bool
    num_steps: int
    queries: np.ndarray
    curves: dict[str, np.ndarray]
    params: Any
    tuning: np.ndarray


def from_optax(tx: optax.GradientTransformationExtraArgs) -> Algorithm:
    """Makes an algorithm of a chain that starts with an estimator."""

    def step(carry: Any, key: Any, loss: Any, full: Any) -> Any:
        params, state = carry
        updates, state = tx.update(None, state, params, value_fn=loss, full_value_fn=full)
        return optax.apply_updates(params, updates), state

    return Algorithm(lambda params: (params, tx.init(params)), step, lambda carry: carry[0])


def from_admm(method: Any) -> Algorithm:
    """Makes an algorithm of `zojax.admm`; the split variable is judged."""
    return Algorithm(
        method.init,
        lambda carry, key, loss, full: method.step(carry, key, loss)[0],
        lambda carry: carry.split,
    )


def behind(est: zojax.Estimator, *links: Any) -> Callable[[Any, jax.Array], Algorithm]:
    """Returns a builder: the estimator, then links, each `schedule -> transformation`."""

    def build(schedule: Any, key: jax.Array) -> Algorithm:
        chain = [link(schedule) for link in links]
        return from_optax(optax.chain(zojax.as_gradient_transformation(est, key), *chain))

    return build


def _schedule(name_index: Any, rate: Any, num_steps: int) -> Callable[[Any], Any]:
    def schedule(count: Any) -> Any:
        t = jnp.asarray(count, jnp.float32)
        cosine = (1 + jnp.cos(jnp.pi * jnp.minimum(t / num_steps, 1))) / 2
        inverse = 1 / (1 + 20 * t / num_steps)
        return rate * jnp.stack([jnp.ones(()), cosine, inverse])[name_index]

    return schedule


SCHEDULES = ("constant", "cosine", "inverse")


def num_steps_within(method: Method, budget: int) -> int:
    """Returns the largest number of steps whose queries fit into the budget (at least 1)."""
    low, high = 1, 2
    while method.queries(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if method.queries(middle) <= budget else (low, middle)
    return low


def make_program(
    problem: Problem, method: Method, num_steps: int, num_records: int
) -> tuple[Any, np.ndarray]:
    """Compiles runs: `(rates, schedule indices, seeds, data) -> (curves, final params)`.

    Args:
        problem: What is minimised.
        method: By what.
        num_steps: Steps per run; a remainder behind the last measurement is left out.
        num_records: Measurements along a run, about.

    Returns:
        The program, for stacked jobs, and the steps after which it measures.
    """
    every = max(1, num_steps // num_records)
    num_records = num_steps // every

    def run(rate: Any, name_index: Any, seed: Any, data: Any) -> Any:
        init_key, noise_key, batch_key = jax.random.split(jax.random.key(seed), 3)
        algorithm = method.build(_schedule(name_index, rate, every * num_records), noise_key)

        def step(count: Any, carry: Any) -> Any:
            batch = problem.sample(jax.random.fold_in(batch_key, count), data)
            key = jax.random.fold_in(noise_key, count)
            return algorithm.step(
                carry, key, lambda p: problem.loss(p, batch), lambda p: problem.full(p, data)
            )

        def block(carry: Any, start: Any) -> Any:
            carry = jax.lax.fori_loop(start, start + every, step, carry)
            return carry, problem.measure(algorithm.params(carry), data)

        starts = jnp.arange(num_records) * every
        carry, curves = jax.lax.scan(block, algorithm.init(problem.init(init_key)), starts)
        return curves, algorithm.params(carry)

    @jax.jit
    def program(rates: Any, name_indices: Any, seeds: Any, data: Any) -> Any:
        # A map, not a vmap: a vmapped condition would take the snapshots of SVRG in every step.
        return jax.lax.map(lambda job: run(*job, data), (rates, name_indices, seeds))

    return program, every * np.arange(1, num_records + 1)


def tune_and_run(
    problem: Problem,
    method: Method,
    budget: int,
    *,
    seeds: Sequence[int],
    num_rates: int,
    score: Callable[[dict[str, np.ndarray]], np.ndarray],
    num_records: int = 60,
    num_tuning_seeds: int = 1,
) -> Outcome:
    """Tries every rate and schedule on seeds of their own, then runs the best on `seeds`.

    Args:
        problem: What is minimised.
        method: By what.
        budget: Queries per run.
        seeds: Seeds that are reported.
        num_rates: Learning rates on the grid, evenly spaced in the logarithm.
        score: `curves -> (jobs,)`, smaller is better; what is not finite counts as infinite.
        num_records: Measurements along a run; 0 for every step.
        num_tuning_seeds: Runs per rate and schedule.
    """
    num_steps = num_steps_within(method, budget)
    program, steps = make_program(problem, method, num_steps, num_records or num_steps)
    grid = np.geomspace(*method.rates, num_rates)
    indices = [SCHEDULES.index(name) for name in method.schedules]
    jobs = [
        (rate, index, _TUNING_SEEDS + seed)
        for index in indices
        for rate in grid
        for seed in range(num_tuning_seeds)
    ]
    width, scores = len(seeds), []
    for start in range(0, len(jobs), width):
        chunk = jobs[start : start + width]
        curves, _ = _call(program, chunk + chunk[-1:] * (width - len(chunk)), problem.data)
        values = np.asarray(score(curves), np.float64)[: len(chunk)]
        scores.extend(np.where(np.isfinite(values), values, np.inf))
    tuning = np.reshape(scores, (len(indices), num_rates, num_tuning_seeds)).mean(-1)
    which, best = np.unravel_index(np.argmin(tuning), tuning.shape)
    chosen = [(grid[best], indices[which], seed) for seed in seeds]
    curves, params = _call(program, chosen, problem.data)
    return Outcome(
        rate=float(grid[best]),
        schedule=SCHEDULES[indices[which]],
        at_edge=num_rates > 1 and best in (0, num_rates - 1),
        num_steps=int(steps[-1]),
        queries=np.array([method.queries(int(step)) for step in steps]),
        curves=curves,
        params=params,
        tuning=tuning,
    )


def _call(program: Any, jobs: Sequence[tuple[float, int, int]], data: Any) -> Any:
    rates, indices, seeds = zip(*jobs, strict=True)
    arrays = jnp.asarray(rates, "float32"), jnp.asarray(indices), jnp.asarray(seeds, "uint32")
    curves, params = program(*arrays, data)
    return {name: np.asarray(curve) for name, curve in curves.items()}, params
