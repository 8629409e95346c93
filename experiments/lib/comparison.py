"""Measures one estimator on one problem: quality of single estimates, and tuned training."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
from experiments.lib.problems import Problem
from zojax.estimators import FiniteDifferenceState
from zojax.trees import ravel

PATH_STEPS = 16
BACK_PROPAGATION_QUERIES = 3
OPTIMIZERS = ("sgd", "adam")
_TUNING_SEEDS = 1_000_000  # far from the seeds that are reported
_INIT, _NOISE, _BATCHES, _PATH, _MEASURE = range(5)  # what a seed's keys are for


class Path(NamedTuple):
    """A short piece of gradient descent, so that estimators with a memory have one.

    Stacked over seeds.

    Attributes:
        params: Parameters at `PATH_STEPS` + 1 points, stacked on the second axis; estimates are
            judged at the last.
        batch_keys: The batch at point i is drawn from `fold_in(batch_key, i)`.
        gradient: The true gradient at the last point, flat, (seeds, d).
        tree: The true gradient of the first seed as a pytree.
    """

    params: Any
    batch_keys: jax.Array
    gradient: np.ndarray
    tree: Any


@dataclasses.dataclass(frozen=True)
class Source:
    """Where gradients come from: an estimator, or back-propagation.

    Attributes:
        queries: Evaluations per step.
        init: `params -> state`.
        gradient: `(params, key, state, batch) -> (gradient, state)`.
        is_stateful: Whether the state matters.
    """

    queries: int
    init: Callable[[Any], Any]
    gradient: Callable[..., tuple[Any, Any]]
    is_stateful: bool


def from_estimator(est: zojax.Estimator, problem: Problem) -> Source:
    """Wraps an estimator for a problem."""

    def gradient(params: Any, key: jax.Array, state: Any, batch: Any) -> tuple[Any, Any]:
        result, state = zojax.estimate(est, problem.loss_fn, params, key, state, args=(batch,))
        return result.grad, state

    return Source(est.num_queries(problem.example), est.init, gradient, est.is_stateful)


def from_back_propagation(problem: Problem) -> Source:
    """The derivative itself, counted as three evaluations."""

    def gradient(params: Any, key: jax.Array, state: Any, batch: Any) -> tuple[Any, Any]:
        return jax.grad(problem.loss_fn)(params, batch), state

    return Source(BACK_PROPAGATION_QUERIES, lambda params: (), gradient, False)


def make_paths(problem: Problem) -> Callable[[Any, Sequence[int]], Path]:
    """Returns `(params stacked over seeds, seeds) -> Path`."""

    def follow(params: Any, batch_key: jax.Array, data: Any) -> tuple[Any, Any]:
        def step(params: Any, index: jax.Array) -> tuple[Any, tuple[Any, Any]]:
            batch = problem.sample(jax.random.fold_in(batch_key, index), data)
            grads = jax.grad(problem.loss_fn)(params, batch)
            # Normalised: the path has the same length wherever it is.
            scale = problem.path_length / PATH_STEPS / jnp.linalg.norm(ravel(grads))
            return jax.tree.map(lambda p, g: p - scale * g, params, grads), (params, grads)

        _, (visited, grads) = jax.lax.scan(step, params, jnp.arange(PATH_STEPS + 1))
        return visited, jax.tree.map(lambda g: g[-1], grads)

    compiled = jax.jit(jax.vmap(follow, in_axes=(0, 0, None)))

    def make(params: Any, seeds: Sequence[int]) -> Path:
        keys = _keys(seeds, _PATH)
        visited, grads = compiled(params, keys, problem.data)
        flat = np.asarray(jax.vmap(ravel)(grads), np.float64)
        return Path(visited, keys, flat, jax.tree.map(lambda g: np.asarray(g[0]), grads))

    return make


def initial_params(problem: Problem, seeds: Sequence[int]) -> Any:
    """Returns the starting points of these seeds, stacked."""
    return jax.vmap(problem.init)(_keys(seeds, _INIT))


def _keys(seeds: Any, purpose: int) -> jax.Array:
    make = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), purpose))
    return make(jnp.asarray(seeds, "uint32"))


class Trainer:
    """Steps of many jobs at once: one compiled program for both optimisers and all measurements."""

    def __init__(self, problem: Problem, source: Source, width: int) -> None:
        """Prepares the program.

        Args:
            problem: What is minimised.
            source: Where gradients come from.
            width: Jobs per call; fewer are filled up with repetitions.
        """
        self.problem, self.source, self._width = problem, source, width
        self.num_steps = max(1, problem.num_steps * problem.queries // source.queries)
        self._adam = optax.scale_by_adam()
        self._advance = jax.jit(jax.vmap(self._job, in_axes=(0, 0, 0, 0, 0, None, None, None)))

    def _job(
        self,
        carry: Any,
        is_adam: jax.Array,
        rate: jax.Array,
        noise_key: jax.Array,
        batch_key: jax.Array,
        start: jax.Array,
        count: jax.Array,
        data: Any,
    ) -> tuple[Any, jax.Array]:
        """Takes steps start ... start+count-1; also returns the last estimate, flat."""

        def step(index: jax.Array, loop: tuple[Any, Any]) -> tuple[Any, Any]:
            (params, state, adam_state), _ = loop
            batch = self.problem.sample(jax.random.fold_in(batch_key, index), data)
            key = jax.random.fold_in(noise_key, index)
            grads, state = self.source.gradient(params, key, state, batch)
            scaled, adam_state = self._adam.update(grads, adam_state)
            size = rate * (1 + jnp.cos(jnp.pi * index / self.num_steps)) / 2
            params = jax.tree.map(
                lambda p, g, a: p - size * jnp.where(is_adam, a, g), params, grads, scaled
            )
            return (params, state, adam_state), grads

        zeros = jax.tree.map(jnp.zeros_like, carry[0])
        carry, grads = jax.lax.fori_loop(start, start + count, step, (carry, zeros))
        return carry, ravel(grads)

    def _start(self, params: Any, numbers: np.ndarray) -> Any:
        """States of jobs, whose numbers tell them apart where an estimator has a fixed key."""
        state = jax.vmap(self.source.init)(params)
        if isinstance(state, FiniteDifferenceState):  # its count chooses the subsets of coordinates
            state = state._replace(count=jnp.asarray(numbers % 1000 * 100_000, "int32"))
        return params, state, jax.vmap(self._adam.init)(params)

    def _call(self, carry: Any, is_adam: Any, rates: Any, keys: Any, start: int, count: int) -> Any:
        columns = (jnp.asarray(is_adam), jnp.asarray(rates, "float32"), *keys)
        bounds = (jnp.asarray(start, "int32"), jnp.asarray(count, "int32"))
        return self._advance(carry, *columns, *bounds, self.problem.data)

    def train(self, is_adam: np.ndarray, rates: np.ndarray, seeds: np.ndarray) -> Any:
        """Trains from the start and returns the final parameters of all jobs.

        Args:
            is_adam: For each job whether it runs under Adam.
            rates: First learning rates; they fall to zero along a cosine.
            seeds: Fix start, directions and batches.
        """
        parts = []
        for first in range(0, len(seeds), self._width):
            chosen = first + np.arange(self._width) % (len(seeds) - first)
            keys = (_keys(seeds[chosen], _NOISE), _keys(seeds[chosen], _BATCHES))
            carry = self._start(initial_params(self.problem, seeds[chosen]), seeds[chosen])
            (params, _, _), _ = self._call(
                carry, is_adam[chosen], rates[chosen], keys, 0, self.num_steps
            )
            parts.append(params)
        joined = jax.tree.map(lambda *xs: jnp.concatenate(xs)[: len(seeds)], *parts)
        return jax.block_until_ready(joined)

    def measure(self, paths: Path, replicates: int) -> np.ndarray:
        """Returns estimates (seeds, replicates, d) at the end of each path.

        An estimator with a state starts afresh at the head of the path and goes along it, once for
        every replicate.

        Args:
            paths: Where.
            replicates: Estimates at the end of each.
        """
        count = len(paths.gradient)
        jobs = np.arange(count * replicates)
        idle = (np.zeros(self._width, bool), np.zeros(self._width))
        parts = []
        for first in range(0, len(jobs), self._width):
            chosen = jobs[first : first + self._width]
            chosen = np.resize(chosen, self._width)
            places = chosen // replicates
            keys = (_keys(chosen, _MEASURE), paths.batch_keys[places])

            def at(index: int, places: Any = places) -> Any:
                return jax.tree.map(lambda x: x[places, index], paths.params)

            _, state, adam_state = self._start(at(0), chosen)
            begin = 0 if self.source.is_stateful else PATH_STEPS
            for index in range(begin, PATH_STEPS + 1):
                (_, state, _), grads = self._call(
                    (at(index), state, adam_state), *idle, keys, index, 1
                )
            parts.append(np.asarray(grads, np.float64))
        return np.concatenate(parts)[: len(jobs)].reshape(count, replicates, -1)


def judge(estimates: np.ndarray, gradients: np.ndarray, queries: int) -> dict[str, Any]:
    """Compares estimates with the true gradients.

    Args:
        estimates: (seeds, replicates, d).
        gradients: (seeds, d).
        queries: Evaluations behind one estimate.

    Returns:
        For each seed `error` (relative mean squared error) and `cosine`; the root mean square
        `length` of the estimates over all; and `averaged`, pairs of queries and the cosine of the
        mean of 1, 2, 4, ... estimates, which together cost as many.
    """
    truth = gradients[:, None]
    squared = (truth**2).sum(-1)
    error = (((estimates - truth) ** 2).sum(-1) / squared).mean(1)
    replicates = estimates.shape[1]
    averaged = []
    size = 1
    while size <= replicates:
        groups = estimates[:, : replicates // size * size]
        means = groups.reshape(len(estimates), -1, size, estimates.shape[-1]).mean(2)
        averaged.append([size * queries, float(_cosine(means, truth).mean())])
        size *= 2
    return {
        "error": error.tolist(),
        "cosine": _cosine(estimates, truth).mean(1).tolist(),
        "length": float(np.sqrt((estimates**2).sum(-1).mean())),
        "averaged": averaged,
    }


def _cosine(estimates: np.ndarray, truth: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(estimates, axis=-1) * np.linalg.norm(truth, axis=-1)
    return (estimates * truth).sum(-1) / np.maximum(lengths, 1e-300)


def learning_rates(problem: Problem, length: float, size: int) -> dict[str, np.ndarray]:
    """Returns the grids of learning rates, geometric, `size` values each.

    Under SGD the grid is over the length of the first step, the same for all estimators: the rate
    is that length over the root mean square length of an estimate. Estimates whose shaping
    removes the scale would need another grid otherwise. Adam does not see the scale.

    Args:
        problem: Gives the middle of the grids.
        length: Root mean square length of an estimate at the start.
        size: Values per grid.
    """
    factors = 2.5 ** (np.arange(size) - size // 2)
    return {"sgd": problem.sgd_center * factors / length, "adam": problem.adam_center * factors}


def tune_and_train(
    trainer: Trainer, scorer: Any, length: float, size: int, num_tuning: int, seeds: list[int]
) -> tuple[dict[str, Any], Any]:
    """Chooses a learning rate for each optimiser and trains with it.

    Args:
        trainer: Problem and estimator.
        scorer: From `make_scorer`.
        length: Root mean square length of an estimate at the start.
        size: Values per grid of learning rates.
        num_tuning: Seeds of the choice, which are not those of the report. It looks at the loss of
            the validation part alone.
        seeds: Seeds of the report.

    Returns:
        For each optimiser `rate`, `place` in the grid, the `grid` and its `validation` losses, and
        `loss` (and `accuracy`) of the test part for each seed; and the final parameters under
        Adam.
    """
    grids = learning_rates(trainer.problem, length, size)
    rates = np.concatenate([grids[name] for name in OPTIMIZERS])
    others = _TUNING_SEEDS + seeds[0] + np.arange(num_tuning)
    params = trainer.train(
        np.tile(np.repeat([False, True], size), num_tuning),
        np.tile(rates, num_tuning),
        np.repeat(others, 2 * size),
    )
    loss = scorer(params)["validation"].reshape(num_tuning, 2 * size).astype(np.float64)
    tuned = np.where(np.isfinite(loss), loss, np.inf).mean(0)
    places = [int(np.argmin(tuned[i * size :][:size])) for i in range(len(OPTIMIZERS))]

    count = len(seeds)
    chosen = [grids[name][place] for name, place in zip(OPTIMIZERS, places, strict=True)]
    params = trainer.train(
        np.repeat([False, True], count), np.repeat(chosen, count), np.tile(seeds, 2)
    )
    scores = scorer(params)
    result: dict[str, Any] = {}
    for i, name in enumerate(OPTIMIZERS):
        part = slice(i * count, (i + 1) * count)
        result[name] = {
            "rate": float(chosen[i]),
            "place": places[i],
            "grid": grids[name].tolist(),
            "validation": tuned[i * size :][:size].tolist(),
            "loss": scores["test"][part].tolist(),
        }
        if "accuracy" in scores:
            result[name]["accuracy"] = scores["accuracy"][part].tolist()
    return result, jax.tree.map(lambda x: x[count:], params)


def make_scorer(problem: Problem) -> Callable[[Any], dict[str, np.ndarray]]:
    """Returns `params stacked over jobs -> scores`, see `Problem.scores`."""
    compiled = jax.jit(lambda params, data: jax.lax.map(lambda p: problem.scores(p, data), params))
    return lambda params: {k: np.asarray(v) for k, v in compiled(params, problem.data).items()}


def rounded(value: Any) -> Any:
    """Keeps five significant digits of all numbers in lists and dicts: files stay small."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float) and np.isfinite(value):
        return float(f"{value:.5g}")
    return value
