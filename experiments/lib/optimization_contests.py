"""Contests without constraints: a finite sum, a saddle, line search; and what is reported."""

import operator
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
from experiments.lib import optimization_problems as problems
from experiments.lib.optimization_runs import (
    Algorithm,
    Method,
    Outcome,
    behind,
    from_optax,
    tune_and_run,
)

_MAX_POINTS = 60
Builder = Callable[[Any, jax.Array], Algorithm]


def last(name: str) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """Returns the score that is the last value of a measure."""
    return lambda curves: curves[name][:, -1]


def report(outcome: Outcome, name: str, curve: np.ndarray | None = None) -> dict[str, Any]:
    """Makes what results.json keeps of an outcome.

    Args:
        outcome: A tuned method.
        name: The measure that is reported.
        curve: The measure, (seeds, records), if it is not one of the outcome's.
    """
    curve = np.asarray(outcome.curves[name] if curve is None else curve, np.float64)
    chosen = np.unique(np.linspace(0, curve.shape[1] - 1, _MAX_POINTS).astype(int))
    return {
        "learning_rate": round_number(outcome.rate),
        "schedule": outcome.schedule,
        "rate_at_edge": bool(outcome.at_edge),
        "steps": outcome.num_steps,
        "queries": int(outcome.queries[-1]),
        f"final_{name}": [round_number(value) for value in curve[:, -1]],
        "curve_queries": outcome.queries[chosen].tolist(),
        "curve": [[round_number(value) for value in row] for row in curve[:, chosen]],
    }


def round_number(value: Any) -> float:
    """Keeps four digits, so that results.json stays small."""
    return float(f"{float(value):.4g}")


def finite_sum(
    seeds: Sequence[int], num_rates: int, budget: int, only: Collection[str] = ()
) -> dict[str, Any]:
    """Logistic regression: one query is the loss of one example.

    Args:
        seeds: Seeds that are reported.
        num_rates: Learning rates that are tried per schedule.
        budget: Queries per run.
        only: Methods to run; all if empty.
    """
    batch_size, directions, period, sigma = 10, 5, 150, 3e-3
    task = problems.logistic_regression(batch_size=batch_size)
    est = zojax.finite_difference(num_directions=directions, sigma=sigma)
    single = zojax.finite_difference(num_directions=1, sigma=sigma)
    coordinates = zojax.coordinate_difference(sigma=sigma)
    random = zojax.finite_difference(num_directions=30, sigma=sigma)  # as many as coordinates
    snapshot_cost = 60 * task.num_examples

    def reduced(make: Any, snapshot: zojax.Estimator) -> Builder:
        def build(schedule: Any, key: jax.Array) -> Algorithm:
            first = make(est, key, period=period, snapshot_est=snapshot)
            return from_optax(optax.chain(first, optax.sgd(schedule)))

        return build

    def full_gradient(schedule: Any, key: jax.Array) -> Algorithm:
        whole = behind(coordinates, optax.sgd)(schedule, key)
        return whole._replace(step=lambda carry, key, _, full: whole.step(carry, key, full, full))

    def reduced_cost(steps: int) -> int:
        snapshots = -(-steps // period)
        return snapshots * snapshot_cost + (steps - snapshots) * 4 * directions * batch_size

    one, five, full = (
        partial(operator.mul, cost) for cost in (2 * batch_size, 10 * batch_size, snapshot_cost)
    )
    sign = behind(est, lambda _: optax.scale_by_sign(), optax.scale_by_learning_rate)
    adamm = behind(est, lambda _: zojax.scale_by_adamm(), optax.scale_by_learning_rate)
    of_sgd = (1e-3, 3.0)
    methods = [
        Method("SGD", behind(est, optax.sgd), five, of_sgd),
        Method("SGD, 1 direction", behind(single, optax.sgd), one, (1e-4, 0.3)),
        *(
            Method(f"{name}, {kind} snapshot", reduced(make, snapshot), reduced_cost, of_sgd)
            for name, make in (("SVRG", zojax.svrg), ("SPIDER", zojax.spider))
            for kind, snapshot in (("random", random), ("coordinate", coordinates))
        ),
        Method("AdaMM", adamm, five, (1e-4, 0.3)),
        Method("signSGD", sign, five, (1e-5, 0.03)),
        Method("full gradient by coordinates", full_gradient, full, (0.3, 10.0)),
    ]
    # Three runs per rate: with one, the noise of SGD would choose its rate.
    tune = partial(
        tune_and_run, seeds=seeds, num_rates=num_rates, score=last("gap"), num_tuning_seeds=3
    )
    methods = [m for m in methods if not only or m.name in only]
    return {m.name: report(tune(task.problem, m, budget), "gap") for m in methods}


def saddle(seeds: Sequence[int], num_rates: int, budget: int) -> dict[str, Any]:
    """A quadratic saddle with a bilinear term, by `zojax.minimax`.

    Args:
        seeds: Seeds that are reported.
        num_rates: Learning rates that are tried.
        budget: Queries per run.
    """
    task = problems.saddle()

    def distance(pair: Any) -> jax.Array:
        return jnp.sqrt(jnp.sum((pair[0] - task.x) ** 2) + jnp.sum((pair[1] - task.y) ** 2))

    zeros = (jnp.zeros_like(task.x), jnp.zeros_like(task.y))
    problem = problems.deterministic(lambda pair: task.loss(*pair), zeros, distance=distance)
    est = zojax.finite_difference(num_directions=5, sigma=0.1)

    def players(x_est: Any, y_est: Any) -> Builder:
        def build(schedule: Any, key: jax.Array) -> Algorithm:
            faster = lambda count: 2 * schedule(count)  # noqa: E731
            method = zojax.minimax(x_est, optax.sgd(schedule), y_est, optax.sgd(faster))
            return Algorithm(
                lambda pair: method.init(*pair),
                lambda state, key, *_: method.step(state, key, task.loss),
                lambda state: (state.x, state.y),
            )

        return build

    pairs = {
        "both players by values": (est, est, 20),
        "x by values, y by gradients": (est, None, 10),
        "y by values, x by gradients": (None, est, 10),
    }
    methods = [
        Method(name, players(x, y), partial(operator.mul, cost), (3e-3, 0.3), ("constant",))
        for name, (x, y, cost) in pairs.items()
    ]
    results = {
        method.name: report(
            tune_and_run(
                problem, method, budget, seeds=seeds, num_rates=num_rates, score=last("distance")
            ),
            "distance",
        )
        for method in methods
    }
    results["reference"] = {"start": round_number(distance(zeros))}
    return results


def line_search(num_steps: int) -> dict[str, Any]:
    """Backtracking on estimates: does the loss ever rise?

    Args:
        num_steps: Steps per run.
    """
    valley = jnp.tile(jnp.array([-1.2, 1.0]), 10)
    targets = {
        "quadratic, steepest descent": (problems.quadratic, jnp.ones(20), optax.identity()),
        "Rosenbrock, steepest descent": (problems.rosenbrock, valley, optax.identity()),
        "Rosenbrock, L-BFGS directions": (problems.rosenbrock, valley, optax.scale_by_lbfgs()),
    }
    results = {}
    for name, (loss, start, direction) in targets.items():
        for guard in (False, True):
            label = name + (", accept_or_reject" if guard else "")
            results[label] = _search(loss, start, direction, num_steps, guard)
    return results


def _search(loss: Any, start: Any, direction: Any, num_steps: int, guard: bool) -> dict[str, Any]:
    search = optax.scale_by_backtracking_linesearch(40, decrease_factor=0.5)
    links = [direction, optax.scale(-1.0), search] + [zojax.accept_or_reject()] * guard
    est = zojax.coordinate_difference(sigma=1e-3)
    tx = zojax.with_estimate(est, jax.random.key(0), optax.chain(*links))

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        updates, state = tx.update(None, state, params, value_fn=loss)
        params = optax.apply_updates(params, updates)
        evaluations = state.inner[2].info.num_linesearch_steps
        return (params, state), (loss(params), evaluations)

    @jax.jit
    def run(params: Any) -> Any:
        first = loss(params)
        return first, jax.lax.scan(step, (params, tx.init(params)), None, length=num_steps)[1]

    first, (losses, evaluations) = jax.tree.map(np.asarray, run(start))
    losses = np.concatenate([[first], losses]).astype(np.float64)
    cost = est.num_queries(start) + 1 + 2 * guard  # the centre; before and after
    queries = np.concatenate([[0], np.cumsum(evaluations.astype(np.int64) + cost)])
    chosen = np.unique(np.geomspace(1, num_steps + 1, _MAX_POINTS).astype(int)) - 1
    reached = np.flatnonzero(losses <= 1e-6)
    return {
        "rises": int((np.diff(losses) > 0).sum()),
        "largest_rise": round_number(max(0.0, np.diff(losses).max())),
        "start": round_number(losses[0]),
        "final_loss": round_number(losses[-1]),
        "steps": num_steps,
        "queries": int(queries[-1]),
        "queries_to_1e-6": int(queries[reached[0]]) if reached.size else None,
        "curve_queries": queries[chosen].tolist(),
        "curve": [[round_number(value) for value in losses[chosen]]],
    }
