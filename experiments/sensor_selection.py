"""Chooses m0 of m sensors from values of log det alone: projected, mirror, Frank-Wolfe, ADMM.

    python -m experiments.sensor_selection

A problem without a neural network. Minimises -(1/T) sum_t log det(sum_i x_i a_it a_it') over
0 <= x <= 1, sum x = m0, rounds, and compares with the convex relaxation (solved with true
gradients) and with greedy choice. Expected on two CPU cores: see docs/optimizers.md.
"""

import dataclasses
import time
from functools import partial
from typing import Any, Literal

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import optax

import zojax
from experiments.lib import cli, optimization_figures, sensors
from experiments.lib.errors import run_cli
from experiments.lib.optimization_contests import report, round_number
from experiments.lib.optimization_problems import deterministic
from experiments.lib.optimization_runs import Method, behind, from_admm, tune_and_run
from experiments.lib.runs import RunDirectory

NAME = "sensor_selection"


@dataclasses.dataclass(frozen=True)
class Config:
    """Chooses sensors from values of log det alone, and compares with relaxation and greedy.

    Writes runs/sensor_selection/<time>-<seed>/ with config.json, summary.json and figures/.
    Queries are evaluations of the loss.
    """

    preset: Literal["default", "quick"] = "default"
    """quick: under a minute."""
    num_sensors: int = 100
    """Sensors to choose from, m."""
    dimension: int = 20
    """Unknowns, n."""
    num_times: int = 3
    """Matrices whose log det is averaged, T."""
    counts: tuple[int, ...] = (20, 30, 40, 50)
    """Sensors to choose, m0."""
    random_count: int = 30
    """The m0 at which random directions are compared with coordinates; 0 for none."""
    queries: int = 10_000
    """Budget of one run."""
    num_rates: int = 4
    """Learning rates tried per method and schedule."""
    sigma: float = 3e-3
    """Smoothing radius."""
    num_seeds: int = 3
    """Runs per method."""
    seed: int = 0
    """Seed of the instance and first seed of the runs."""
    double: bool = True
    """Compute in float64: sums of 50 numbers are exact to 1e-6 only then."""
    output: str = "runs"
    """Folder for runs."""

    def __post_init__(self) -> None:
        """Checks what no library below checks."""
        names = ("num_sensors", "dimension", "num_times", "queries", "num_rates", "num_seeds")
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.counts:
            raise ValueError("counts must name at least one number of sensors")
        for count in (*self.counts, *([self.random_count] if self.random_count else [])):
            if not self.dimension <= count < self.num_sensors:
                raise ValueError(
                    f"counts must be in [dimension, num_sensors) = [{self.dimension}, "
                    f"{self.num_sensors}), got {count}: fewer leave the matrices singular"
                )
        if not 0 < self.sigma < 1:
            raise ValueError(f"sigma must be in (0, 1), got {self.sigma}")
        if not 0 <= self.seed < 2**32 - self.num_seeds:
            raise ValueError(f"seed must be in [0, 2^32 - num_seeds), got {self.seed}")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"counts": (30,), "queries": 4_000, "num_rates": 3, "random_count": 0},
}


def build_methods(count: int, est: zojax.Estimator, cost: int) -> list[Method]:
    """Makes the four methods.

    Args:
        count: m0.
        est: The estimator.
        cost: Its queries per step.
    """
    project = partial(zojax.projections.projection_capped_simplex, total=count)
    oracle = partial(zojax.projections.oracle_capped_simplex, total=count)
    in_entropy = zojax.projected(partial(sensors.kl_projection, total=count))
    schedules = ("constant", "cosine")

    def split(schedule: Any, key: jax.Array) -> Any:
        prox = lambda v, step: project(v)  # noqa: E731
        return from_admm(zojax.admm(est, prox, rho=1.0, step_size=schedule))

    builders = {
        "projected": (behind(est, optax.sgd, lambda _: zojax.projected(project)), (3e-3, 1.0)),
        "mirror": (behind(est, zojax.mirror_descent, lambda _: in_entropy), (1e-2, 10.0)),
        "Frank-Wolfe": (behind(est, lambda _: zojax.frank_wolfe(oracle)), (1.0, 1.0)),
        "ADMM": (split, (1e-2, 10.0)),
    }
    return [
        Method(name, build, lambda steps: cost * steps, rates, schedules)
        for name, (build, rates) in builders.items()
    ]


def contest(
    config: Config, task: sensors.Sensors, count: int, est: zojax.Estimator
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Runs the four methods and the baselines for one m0.

    Args:
        config: The configuration.
        task: The instance.
        count: m0.
        est: The estimator.

    Returns:
        What is reported, and for the picture x of the first seed by method.
    """
    bound, relaxed, duality_gap = sensors.relaxation(task, count)
    greedy_value, greedy_choice, greedy_queries = sensors.greedy(task, count)
    start = jnp.full(config.num_sensors, count / config.num_sensors)
    problem = deterministic(task.loss, start, gap=lambda x: task.loss(x) + bound, x=lambda x: x)
    rows: dict[str, Any] = {}
    picture = {"relaxed optimum": relaxed}
    for method in build_methods(count, est, est.num_queries(start)):
        only = method.name == "Frank-Wolfe"
        if only:
            method = method._replace(schedules=("constant",))
        outcome = tune_and_run(
            problem,
            method,
            config.queries,
            seeds=range(config.seed, config.seed + config.num_seeds),
            num_rates=1 if only else config.num_rates,
            score=lambda curves: curves["gap"][:, -1],
            num_records=0,
        )
        x = outcome.curves["x"].astype(np.float64)
        sums = float(np.abs(x.sum(-1) - count).max())
        box = float(max(-x.min(), x.max() - 1, 0.0))
        chosen = [sensors.round_to_choice(end, count) for end in x[:, -1]]
        swapped = [sensors.improve_by_swaps(task, c, e) for c, e in zip(chosen, x[:, -1])]  # noqa: B905
        gaps = [bound - sensors.exact_value(task, end) for end in x[:, -1]]
        rows[method.name] = report(outcome, "gap") | {
            "final_gap": [round_number(gap) for gap in gaps],
            "sum_violation": round_number(sums),
            "box_violation": round_number(box),
            "rounded": [round(sensors.exact_value(task, c), 4) for c in chosen],
            "swapped": [round(value, 4) for value, _, _ in swapped],
            "swap_queries": [evaluations for *_, evaluations in swapped],
        }
        picture[method.name] = x[0, -1]
    best = max(range(len(swapped)), key=lambda i: swapped[i][0])
    picture |= {"ADMM, rounded": chosen[best], "ADMM, swaps": swapped[best][1]}
    rows["reference"] = {
        "bound": round(bound, 4),
        "duality_gap": round_number(duality_gap),
        "rounded": round(sensors.exact_value(task, sensors.round_to_choice(relaxed, count)), 4),
        "greedy": round(greedy_value, 4),
        "greedy_queries": greedy_queries,
    }
    order = np.lexsort((greedy_choice, relaxed.round(4)))[::-1]
    return rows, {n: row[order] for n, row in (picture | {"greedy": greedy_choice}).items()}


def show(title: str, rows: dict[str, Any]) -> None:
    """Prints a contest."""
    reference = rows["reference"]
    bound, greedy = reference["bound"], reference["greedy"]
    print(f"{title}: bound {bound}, greedy {greedy} ({reference['greedy_queries']} queries)")
    for name, row in rows.items():
        if name == "reference":
            continue
        relaxed = max(row["final_gap"]) / abs(bound)
        swapped = min(row["swapped"])
        print(
            f"  {name:12s} relaxed {relaxed:.5%} below the bound (worst seed); rounded "
            f"{min(row['rounded'])}, with swaps {swapped}: {1 - swapped / bound:.2%} below the "
            f"bound, {swapped / greedy - 1:+.2%} of greedy; sum off by {row['sum_violation']:.1e}",
            flush=True,
        )


def run_experiment(config: Config) -> None:
    """Runs all contests and writes the run's folder."""
    run, start = RunDirectory.create(config.output, NAME, config.seed, config), time.perf_counter()
    task = sensors.make_sensors(config.num_sensors, config.dimension, config.num_times, config.seed)
    coordinates = zojax.coordinate_difference(sigma=config.sigma)
    results, panels = {}, {}
    for count in config.counts:
        results[f"m0={count}"], picture = contest(config, task, count, coordinates)
        show(f"m0={count}, coordinates", results[f"m0={count}"])
        panels[f"m0 = {count}, coordinates"] = results[f"m0={count}"]
        path = run.figures_dir / f"sensors_{count}.png"
        title = f"{count} of {config.num_sensors} sensors"
        optimization_figures.choices(path, picture, title)
    if config.random_count:
        signs = zojax.finite_difference(
            directions=zojax.rademacher(), num_directions=20, sigma=config.sigma
        )
        rows, _ = contest(config, task, config.random_count, signs)
        show(f"m0={config.random_count}, random directions", rows)
        results["random"] = rows
        panels[f"m0 = {config.random_count}, random directions"] = rows
    optimization_figures.loss_curves(
        run.figures_dir / "gap.png",
        panels,
        dict.fromkeys(panels, "gap to the relaxed optimum"),
        log_x=list(panels),
        columns=3,
    )
    seconds = round(time.perf_counter() - start, 1)
    run.write_summary({"experiment": NAME, "seconds": seconds, "results": results})
    print(f"{seconds} s; figures: {run.figures_dir}\nsummary: {run.path / 'summary.json'}")


def main() -> None:
    """Runs the command line."""
    config = cli.parse(Config, None, PRESETS)
    # JAX before 0.8 has it in jax.experimental.
    where = jax if hasattr(jax, "enable_x64") else jax.experimental
    with where.enable_x64(config.double):
        run_experiment(config)


if __name__ == "__main__":
    run_cli(main)
