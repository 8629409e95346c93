"""Compares zeroth-order optimisers at equal queries on six problems.

    python -m experiments.optimizers

Learning rates are tuned at equal effort on seeds (MNIST: and images) of their own. Expected on
two CPU cores: see docs/optimizers.md.
"""

import dataclasses
import time
from typing import Any, Literal

import jax

import zojax
from experiments.lib import (
    classifier_contest,
    cli,
    constrained_contests,
    optimization_contests,
    optimization_figures,
)
from experiments.lib.classifier import build_task
from experiments.lib.data import DatasetName, load_dataset
from experiments.lib.errors import run_cli
from experiments.lib.models import build_model
from experiments.lib.runs import RunDirectory

NAME = "optimizers"
ProblemName = Literal["finite_sum", "lasso", "portfolio", "saddle", "line_search", "mnist"]
TITLES = {
    "finite_sum": ("logistic regression", "loss above the minimum", "final_gap"),
    "lasso": ("lasso", "largest error of a coefficient", "final_error"),
    "portfolio": ("portfolio", "loss above the minimum", "final_gap"),
    "saddle": ("saddle", "distance to the saddle", "final_distance"),
    "line_search": ("line search", "loss", "final_loss"),
    "mnist": ("classifier", "validation loss", "final_loss"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares zeroth-order optimisers at equal queries.

    Writes runs/optimizers/<time>-<seed>/ with config.json, summary.json and figures/. A query is a
    loss evaluation: of one example in finite_sum, of one batch in mnist.
    """

    preset: Literal["default", "quick"] = "default"
    """quick: under two minutes."""
    problems: tuple[ProblemName, ...] = (
        "finite_sum", "lasso", "portfolio", "saddle", "line_search", "mnist",
    )  # fmt: skip
    """Which problems to run."""
    finite_sum_queries: int = 600_000
    """Budget of a run on the logistic regression, in losses of one example."""
    lasso_queries: int = 80_000
    """Budget of a run on the lasso."""
    portfolio_queries: int = 100_000
    """Budget of a run on the portfolio."""
    saddle_queries: int = 20_000
    """Budget of a run on the saddle."""
    line_search_steps: int = 3_000
    """Steps of a run with line search."""
    mnist_queries: int = 32_000
    """Budget of a run on the classifier, in losses of one batch."""
    batch_size: int = 128
    """Images per batch of the classifier."""
    hidden: tuple[int, ...] = (16,)
    """Hidden sizes of the classifier."""
    dataset: DatasetName = "auto"
    """auto is mnist where it is prepared, else scikit-learn's digits."""
    data_dir: str | None = None
    """Folder with prepared data; then $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    num_rates: int = 6
    """Learning rates tried per method and schedule."""
    num_seeds: int = 3
    """Runs per tuned method."""
    seed: int = 0
    """First seed."""
    output: str = "runs"
    """Folder for runs."""

    def __post_init__(self) -> None:
        """Checks what no library below checks."""
        if not self.problems:
            raise ValueError("problems must name at least one problem")
        counts = ("line_search_steps", "batch_size", "num_rates", "num_seeds")
        for name in (*counts, *(f"{problem}_queries" for problem in _BUDGETED)):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.finite_sum_queries < 30_000:
            raise ValueError(
                f"finite_sum_queries must be >= 30000, the cost of one full gradient, "
                f"got {self.finite_sum_queries}"
            )
        if not 0 <= self.seed < 1_000_000 - self.num_seeds:
            raise ValueError(f"seed must be in [0, 1000000 - num_seeds), got {self.seed}")


_BUDGETED = ("finite_sum", "lasso", "portfolio", "saddle", "mnist")
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "finite_sum_queries": 240_000,
        "lasso_queries": 20_000,
        "portfolio_queries": 20_000,
        "saddle_queries": 10_000,
        "line_search_steps": 1_000,
        "mnist_queries": 6_400,
        "num_rates": 4,
    },
}


def run_problem(name: str, config: Config) -> dict[str, Any]:
    """Runs the contest of one problem.

    Args:
        name: Of the problem.
        config: The configuration.
    """
    seeds = range(config.seed, config.seed + config.num_seeds)
    if name == "line_search":
        return optimization_contests.line_search(config.line_search_steps)
    budget = getattr(config, f"{name}_queries")
    if name == "mnist":
        dataset = load_dataset(config.dataset, config.data_dir)
        if dataset.note:
            print(f"NOTE: {dataset.note}", flush=True)
        if dataset.name != "digits":
            dataset = classifier_contest.pooled(dataset, 4)
        module = build_model(
            "mlp", hidden=config.hidden, features=(), num_classes=dataset.num_classes, pool=1
        )
        rows = classifier_contest.classifier(
            build_task(module, dataset), config.batch_size, seeds, config.num_rates, budget
        )
        return rows | {"reference": {"dataset": dataset.name}}
    constrained = name in ("lasso", "portfolio")
    contests = constrained_contests if constrained else optimization_contests
    return getattr(contests, name)(seeds, config.num_rates, budget)


def show(name: str, rows: dict[str, Any], seconds: float) -> None:
    """Prints a contest."""
    title, label, final = TITLES[name]
    print(f"{title} ({seconds:.0f} s): {label}")
    for method, row in rows.items():
        if method == "reference":
            print(f"  reference: {row}")
            continue
        values = row[final] if isinstance(row[final], list) else [row[final]]
        extra = ""
        if "learning_rate" in row:
            extra = f"  rate {row['learning_rate']:g} {row['schedule']}"
            extra += " (at the end of the grid)" if row["rate_at_edge"] else ""
        for key in ("violation", "zeros", "assets", "test_accuracy", "rises", "queries_to_1e-6"):
            extra += f"  {key} {row[key]}" if key in row else ""
        numbers = " ".join(f"{value:10.3g}" for value in values)
        print(f"  {method:42s} {row['queries']:>9,} queries {numbers}{extra}", flush=True)


def draw(path: Any, results: dict[str, dict[str, Any]]) -> None:
    """Draws all contests that ran into one figure."""
    panels = {TITLES[name][0]: rows for name, rows in results.items()}
    labels = {TITLES[name][0]: TITLES[name][1] for name in results}
    optimization_figures.loss_curves(
        path, panels, labels, log_x=[TITLES["line_search"][0]], columns=3
    )


def run_experiment(config: Config) -> None:
    """Runs all contests and writes the run's folder."""
    run, start = RunDirectory.create(config.output, NAME, config.seed, config), time.perf_counter()
    print(f"zojax {zojax.__version__} on {jax.devices()[0].device_kind}; writing {run.path}")
    results: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for name in config.problems:
        since = time.perf_counter()
        results[name] = run_problem(name, config)
        seconds[name] = round(time.perf_counter() - since, 1)
        show(name, results[name], seconds[name])
    draw(run.figures_dir / "optimizers.png", results)
    total = round(time.perf_counter() - start, 1)
    run.write_summary(
        {
            "experiment": NAME,
            "seconds": total,
            "seconds_by_problem": seconds,
            "config": dataclasses.asdict(config),
            "results": results,
        }
    )
    print(f"{total} s; figures: {run.figures_dir}\nsummary: {run.path / 'summary.json'}")


def main() -> None:
    """Runs the command line."""
    run_experiment(cli.parse(Config, None, PRESETS))


if __name__ == "__main__":
    run_cli(main)
