"""Compares all gradient estimators at equal numbers of loss evaluations.

    python -m experiments.compare_estimators

Four problems, plain SGD and Adam, learning rates tuned for each estimator with equal effort. The
page docs/estimators.md shows and explains the results of the default run.
"""

import dataclasses
import json
import os
import time
from typing import Annotated, Any, Literal

# LAPACK's threads, which orthogonal directions call, cost more than they bring on small matrices.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import tyro  # noqa: E402

from experiments.lib import cli, comparison, comparison_report, side_studies  # noqa: E402
from experiments.lib.compilation_cache import keep_compiled_programs
from experiments.lib.contenders import (  # noqa: E402
    BACK_PROPAGATION,
    CONTENDERS,
    Contender,
    contenders_for,
)
from experiments.lib.errors import UserError, run_cli  # noqa: E402
from experiments.lib.problems import Problem, ProblemName, build_problem  # noqa: E402
from experiments.lib.runs import RunDirectory, check_same_config  # noqa: E402

NAME = "compare_estimators"
_PLACES = frozenset({"resume", "output", "data_dir"})


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares all gradient estimators at equal numbers of loss evaluations.

    Writes runs/compare_estimators/<time>-<seed>/ with config.json, metrics.jsonl (one row for each
    estimator and problem), results.json, table.md and figures/.
    """

    preset: Literal["default", "quick"] = "default"
    """quick: two problems and short runs; shows that it works, says little."""
    problems: tuple[ProblemName, ...] = ("quadratic", "rosenbrock", "digits", "mnist")
    """What is minimised."""
    estimators: tuple[str, ...] = ()
    """Labels as in the table, e.g. gaussian orthogonal; all if empty."""
    num_seeds: int = 5
    """Seeds of the report; every number is shown with its spread over them."""
    num_tuning_seeds: int | None = None
    """Further seeds, on which the learning rates are chosen; by default the problem's own number, 5
    where a step is cheap and 1 for the classifiers."""
    num_rates: int = 7
    """Learning rates that are tried, the same number for every estimator and optimiser."""
    replicates: int = 16
    """Estimates at each point of measurement, for each seed."""
    num_steps: int | None = None
    """Steps of a run with the problem's queries per step; by default the problem's own number."""
    side_studies: bool = True
    """Also measure the number of directions, guided directions and the scale of estimates."""
    scale_samples: int = 16_384
    """Directions behind every ratio of the table of scales."""
    data_dir: str | None = None
    """Folder with prepared data; then $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    seed: int = 0
    """The first seed of the report."""
    output: str = "runs"
    """Folder for runs."""
    resume: Annotated[str | None, tyro.conf.arg(metavar="RUN_DIR")] = None
    """Continue an interrupted run; other options keep what the run had."""

    def __post_init__(self) -> None:
        """Checks what no library below checks."""
        counts = ("num_seeds", "num_tuning_seeds", "num_rates", "replicates", "scale_samples")
        for name in (*counts, "num_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if not self.problems:
            raise ValueError("problems must name at least one problem")
        if not 0 <= self.seed < 1_000_000:
            raise ValueError(f"seed must be in [0, 1000000), got {self.seed}")
        for label in self.estimators:
            if label not in CONTENDERS:
                raise ValueError(
                    f"unknown estimator {label!r}; the estimators are: {'; '.join(CONTENDERS)}"
                )

    @property
    def seeds(self) -> list[int]:
        """Seeds of the report."""
        return list(range(self.seed, self.seed + self.num_seeds))


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "problems": ("quadratic", "digits"),
        "num_seeds": 2,
        "num_tuning_seeds": 1,
        "num_rates": 3,
        "replicates": 8,
        "num_steps": 40,
        "side_studies": False,
    },
}


def compare_on(config: Config, problem: Problem, run: RunDirectory, done: list[Any]) -> None:
    """Measures and trains every estimator on one problem; appends a row for each.

    Args:
        config: The configuration.
        problem: The problem.
        run: Where the rows go.
        done: Rows of an interrupted run, which are not made again.
    """
    seeds = config.seeds
    make_paths = comparison.make_paths(problem)
    scorer = comparison.make_scorer(problem)
    start = make_paths(comparison.initial_params(problem, seeds), seeds)
    finished = {row["label"] for row in done if row["problem"] == problem.name}

    # Gaussian goes first: where it ends is where all are measured once more.
    chosen = [CONTENDERS["gaussian"], *contenders_for(problem.example)]
    wanted = [c for c in chosen if not config.estimators or c.label in config.estimators]
    order: list[Contender | None] = list(dict.fromkeys([CONTENDERS["gaussian"], *wanted, None]))
    trained = None
    for step, contender in enumerate(order, 1):
        label = BACK_PROPAGATION if contender is None else contender.label
        if label in finished and trained is not None:
            continue
        since = time.perf_counter()
        if contender is None:
            source, preserves_scale = comparison.from_back_propagation(problem), True
        else:
            est = contender.build(problem.setting)
            source, preserves_scale = comparison.from_estimator(est, problem), est.preserves_scale
        trainer = comparison.Trainer(problem, source, width=2 * config.num_rates)
        at_start = comparison.judge(
            trainer.measure(start, config.replicates), start.gradient, source.queries
        )
        num_tuning = config.num_tuning_seeds or problem.num_tuning_seeds
        result, params = comparison.tune_and_train(
            trainer, scorer, at_start["length"], config.num_rates, num_tuning, seeds
        )
        if trained is None:
            trained = make_paths(params, seeds)
        at_end = comparison.judge(
            trainer.measure(trained, config.replicates), trained.gradient, source.queries
        )
        seconds = time.perf_counter() - since
        if label in finished:
            continue
        row = {
            "step": 0,
            "problem": problem.name,
            "label": label,
            "family": "reference" if contender is None else contender.family,
            "queries": source.queries,
            "num_steps": trainer.num_steps,
            "preserves_scale": preserves_scale,
            "law": contender and contender.expect(problem.example, est, start.tree),
            "start": at_start,
            "trained": at_end,
            **result,
            "seconds": seconds,
        }
        run.append_metrics(comparison.rounded(row))
        print(
            f"{problem.name} {step}/{len(order)} {label}: cosine "
            f"{np.median(at_start['cosine']):.3f}, loss {np.median(result['sgd']['loss']):.3g} "
            f"(SGD) {np.median(result['adam']['loss']):.3g} (Adam)  {seconds:.0f} s",
            flush=True,
        )


def study_sides(config: Config, problems: dict[str, Problem]) -> dict[str, Any]:
    """Runs the side studies whose problem is part of the run.

    Args:
        config: The configuration.
        problems: The problems of the run.
    """
    found: dict[str, Any] = {}
    replicates = 4 * config.replicates
    if "quadratic" in problems:
        fractions = (0.1, 0.25, 0.5, 1.0)
        found["sweep"] = side_studies.sweep_directions(
            problems["quadratic"], config.seeds, replicates, fractions
        )
    if "digits" in problems:
        found["guided"] = side_studies.study_guides(problems["digits"], config.seeds, replicates)
    found["scale"] = side_studies.check_scale(config.scale_samples)
    return comparison.rounded(found)


def reopen(config: Config) -> tuple[Config, RunDirectory]:
    """Opens the folder of an interrupted run; other options must not contradict it.

    Args:
        config: What the command line says.
    """
    run = RunDirectory.open_existing(config.resume or "")
    stored = run.read_config()
    try:
        requested = cli.parse(Config, None, PRESETS, defaults=Config(**stored))
    except TypeError as error:
        raise UserError(f"{run.path} is a run of another version: {error}") from error
    check_same_config(stored, dataclasses.asdict(requested), ignore=_PLACES)
    return requested, run


def main() -> None:
    """Runs the experiment."""
    config = cli.parse(Config, None, PRESETS)
    keep_compiled_programs()
    config, run = reopen(config) if config.resume else (config, None)
    problems = {n: build_problem(n, config.num_steps, config.data_dir) for n in config.problems}
    run = run or RunDirectory.create(config.output, NAME, config.seed, config)
    print(f"writing {run.path}", flush=True)
    try:
        for problem in problems.values():
            compare_on(config, problem, run, run.read_metrics())
        sides = study_sides(config, problems) if config.side_studies else {}
    except KeyboardInterrupt:
        advice = f"continue with python -m experiments.{NAME} --resume {run.path}"
        raise KeyboardInterrupt(advice) from None
    rows = run.read_metrics()
    results = {
        "config": {k: v for k, v in dataclasses.asdict(config).items() if k not in _PLACES},
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "problems": {name: problem.describe() for name, problem in problems.items()},
        "rows": rows,
        **sides,
    }
    (run.path / "results.json").write_text(json.dumps(results))
    comparison_report.write_tables(run.path / "table.md", results)
    comparison_report.draw(run.figures_dir, results)
    print(f"figures: {run.figures_dir}\ntables: {run.path / 'table.md'}", flush=True)


if __name__ == "__main__":
    run_cli(main)
