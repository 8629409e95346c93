"""The comparisons of searchers of `experiments.tune`: on a table of trainings, on closed forms."""

import dataclasses
from typing import Any

import numpy as np

from experiments.lib import tune_contest_report as report
from experiments.lib.data import load_dataset
from experiments.lib.runs import RunDirectory
from experiments.lib.tune_functions import FUNCTIONS
from experiments.lib.tune_replay import contest, load_table, train_table
from experiments.lib.tune_searchers import check_sampler, contestants
from experiments.lib.tune_space import TRAINING_SPACE
from experiments.lib.tune_training import NUM_UNITS, Trainable, build_tuning_task, choose_pool

_MARKS = 4  # budgets in a table, each half of the next
_QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5)


def run_replay(config: Any) -> RunDirectory:
    """Trains or loads the table and lets all searchers replay it.

    Args:
        config: The configuration.
    """
    for name in config.searchers:
        check_sampler(contestants()[name][0], TRAINING_SPACE, config.trainings)
    table = load_table(config.table) if config.table else None
    dataset = load_dataset(config.dataset, config.data_dir)
    config = dataclasses.replace(config, dataset=dataset.name, pool=choose_pool(config, dataset))
    run = RunDirectory.create(config.output, "tune", config.seed, config)
    print(f"writing {run.path}", flush=True)
    if table is None:
        task = build_tuning_task(dataset, config.hidden, config.pool)
        trainable = Trainable(task, config.batch_size, config.steps_per_unit, config.seed)
        table = train_table(trainable, config.num_configurations, config.seed)
    table.save(run.path / "table.npz")
    budget = NUM_UNITS * config.trainings
    grid = np.unique(np.geomspace(NUM_UNITS, budget, 200).round().astype(int))
    seeds = range(config.seed, config.seed + config.num_seeds)
    results = contest(config.searchers, TRAINING_SPACE, table.curve, budget, grid, seeds)
    summary = report.summarize(results, table.best, grid)
    marks = [NUM_UNITS * m for m in _marks(config.trainings)]
    run.write_summary(
        {
            "experiment": "tune",
            "study": "replay",
            "dataset": dataset.name,
            "configurations": len(table.points),
            "diverged": int(np.isnan(table.scores[:, -1]).sum()),
            "best_score": table.best,
            "quantiles": dict(zip(_QUANTILES, table.quantiles(_QUANTILES), strict=True)),
            "rank_correlation_with_final": table.rank_correlations(),
            "sample_forwards_per_training": NUM_UNITS * table.unit_forwards,
            "budgets_in_units": grid,
            "searchers": summary,
        }
    )
    text = report.table(summary, grid, "trainings", marks)
    (run.path / "table.md").write_text(text)
    report.draw(
        run.figures_dir / "regret.png",
        results,
        table.best,
        grid * table.unit_forwards,
        "sample-forwards",
        f"{dataset.name}, {len(table.points):,} configurations: mean ± standard error over "
        f"{config.num_seeds} seeds",
    )
    print(f"{text}figures: {run.figures_dir}", flush=True)
    return run


def _marks(budget: int) -> list[int]:
    """Returns a budget and its halves, least first."""
    return sorted({max(1, budget >> i) for i in range(_MARKS)})


def run_functions(config: Any) -> RunDirectory:
    """Lets all searchers minimise Branin and Hartmann-6.

    Args:
        config: The configuration.
    """
    names = [name for name in config.searchers if "+" not in name]
    for name in names:
        check_sampler(contestants()[name][0], FUNCTIONS["hartmann6"].space, config.evaluations)
    run = RunDirectory.create(config.output, "tune", config.seed, config)
    print(f"writing {run.path}", flush=True)
    grid = np.arange(1, config.evaluations + 1)
    seeds = range(config.seed, config.seed + config.num_seeds)
    summary, texts = {}, []
    for title, function in FUNCTIONS.items():
        print(title, flush=True)
        searched = [n for n in names if not (n == "grid" and len(function.space) < 3)]
        results = contest(searched, function.space, function.curve, config.evaluations, grid, seeds)
        summary[title] = report.summarize(results, function.minimum, grid)
        text = report.table(summary[title], grid, "evaluations", _marks(config.evaluations))
        texts.append(f"{title}, minimum {function.minimum}\n\n{text}")
        report.draw(
            run.figures_dir / f"{title}.png",
            results,
            function.minimum,
            grid,
            "evaluations",
            f"{title}: mean ± standard error over {config.num_seeds} seeds",
        )
    run.write_summary({"experiment": "tune", "study": "functions", "functions": summary})
    (run.path / "table.md").write_text("\n".join(texts))
    print("\n".join(texts) + f"figures: {run.figures_dir}", flush=True)
    return run
