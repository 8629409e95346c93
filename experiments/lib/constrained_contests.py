"""Contests with a set or a penalty: lasso, and a portfolio on the simplex."""

import itertools
import operator
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import zojax
from experiments.lib import optimization_problems as problems
from experiments.lib.optimization_contests import Builder, last, report, round_number
from experiments.lib.optimization_runs import Method, behind, from_admm, tune_and_run


def lasso(
    seeds: Sequence[int], num_rates: int, budget: int, only: Collection[str] = ()
) -> dict[str, Any]:
    """Sparse regression against scikit-learn's coefficients.

    Args:
        seeds: Seeds that are reported.
        num_rates: Learning rates that are tried per schedule.
        budget: Queries per run.
        only: Methods to run; all if empty.
    """
    task = problems.lasso()
    solution = jnp.asarray(task.solution, jnp.float32)
    radius = float(np.abs(task.solution).sum())
    problem = problems.deterministic(
        task.smooth, jnp.zeros(task.dimension), error=lambda x: jnp.max(jnp.abs(x - solution)),
        size=lambda x: x,
    )  # fmt: skip
    sources = {
        "random": zojax.finite_difference(num_directions=10, sigma=0.1),
        "coordinates": zojax.coordinate_difference(sigma=0.1),
    }

    def penalty(v: Any, step: Any) -> Any:
        return zojax.projections.prox_l1(v, step * task.weight)

    def split(est: zojax.Estimator) -> Builder:
        return lambda schedule, key: from_admm(
            zojax.admm(est, penalty, rho=1.0, step_size=schedule)
        )

    ball = zojax.projected(partial(optax.projections.projection_l1_ball, scale=radius))
    soft = partial(zojax.proximal, zojax.projections.prox_l1, weight=task.weight)
    makers = {
        "proximal descent": lambda est: behind(est, optax.sgd, soft),
        "ADMM": split,
        "projected on the l1 ball": lambda est: behind(est, optax.sgd, lambda _: ball),
    }
    results: dict[str, Any] = {}
    for (maker, make), (source, est) in itertools.product(makers.items(), sources.items()):
        if only and f"{maker}, {source}" not in only:
            continue
        cost = est.num_queries(solution)
        method = Method(f"{maker}, {source}", make(est), partial(operator.mul, cost), (1e-3, 3.0))
        outcome = tune_and_run(
            problem,
            method,
            budget,
            seeds=seeds,
            num_rates=num_rates,
            score=last("error"),
            num_records=0,
        )
        results[method.name] = row = report(outcome, "error")
        sizes = outcome.curves["size"].astype(np.float64)
        row["zeros"] = [int((x[-1] == 0).sum()) for x in sizes]
        if make is makers["projected on the l1 ball"]:
            excess = np.abs(sizes).sum(-1) / radius - 1
            row["violation"] = round_number(max(0.0, excess.max()))
    results["reference"] = {"zeros": int((task.solution == 0).sum()), "radius": radius}
    return results


def portfolio(seeds: Sequence[int], num_rates: int, budget: int) -> dict[str, Any]:
    """Mean and variance with costs of trading, on the simplex.

    Args:
        seeds: Seeds that are reported.
        num_rates: Learning rates that are tried per schedule.
        budget: Queries per run.
    """
    task = problems.portfolio()
    problem = problems.deterministic(
        task.loss, task.holdings, gap=lambda x: task.loss(x) - task.optimum, weights=lambda x: x
    )
    est = zojax.finite_difference(num_directions=10, sigma=1e-3)
    onto = zojax.projected(optax.projections.projection_simplex)
    same_sum = zojax.projected(lambda x: x / jnp.sum(x))  # rounding would let the sum drift
    wolfe = zojax.frank_wolfe(zojax.projections.oracle_simplex)
    cost = partial(operator.mul, 20)
    methods = [
        Method("projected", behind(est, optax.sgd, lambda _: onto), cost, (1e-4, 0.1)),
        Method(
            "mirror descent",
            behind(est, zojax.mirror_descent, lambda _: same_sum),
            cost,
            (1e-3, 1.0),
        ),
        # Its step sizes are fixed: there is no rate to tune.
        Method("Frank-Wolfe", behind(est, lambda _: wolfe), cost, (1.0, 1.0), ("constant",)),
    ]
    results = {}
    for method in methods:
        outcome = tune_and_run(
            problem, method, budget, seeds=seeds,
            num_rates=1 if method.name == "Frank-Wolfe" else num_rates,
            score=last("gap"), num_records=0,
        )  # fmt: skip
        x = outcome.curves["weights"].astype(np.float64)
        violation = max(np.abs(x.sum(-1) - 1).max(), -x.min(), 0.0)
        results[method.name] = report(outcome, "gap") | {"violation": round_number(violation)}
        results[method.name]["assets"] = [int((end > 1e-3).sum()) for end in x[:, -1]]
    results["reference"] = {
        "optimum": round_number(task.optimum),
        "start": round_number(task.loss(task.holdings)),
        "assets": int((task.solution > 1e-3).sum()),
    }
    return results
