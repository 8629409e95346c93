"""Searches hyperparameters of values-only training, itself a problem that has no gradient.

    python -m experiments.tune                      # one live study
    python -m experiments.tune --study replay       # all searchers on a table of trained settings
    python -m experiments.tune --study functions    # all searchers on Branin and Hartmann-6

The search is Optuna's, with two samplers of our own. docs/tuning.md explains it; expected numbers:
docs/results/tune.
"""

import dataclasses
import importlib.util
import sys
from typing import Annotated, Any, Literal

if importlib.util.find_spec("optuna") is None:  # said here, because even --help needs it
    print("error: experiments.tune needs Optuna: pip install -e '.[tune]'", file=sys.stderr)
    sys.exit(2)

import tyro

from experiments.lib import cli, tune_contests, tune_live, tune_report
from experiments.lib.compilation_cache import keep_compiled_programs
from experiments.lib.data import DatasetName, load_dataset
from experiments.lib.errors import UserError, run_cli
from experiments.lib.runs import RunDirectory, check_same_config
from experiments.lib.tune_searchers import (
    PrunerName,
    SamplerName,
    check_sampler,
    contestants,
    silence_optuna,
)
from experiments.lib.tune_space import TRAINING_SPACE
from experiments.lib.tune_training import choose_pool

NAME = "tune"
_ALL = tuple(contestants())
_HAS_TORCH = importlib.util.find_spec("torch") is not None


@dataclasses.dataclass(frozen=True)
class Config:
    """Searches hyperparameters of training by function values alone.

    Writes runs/tune/<time>-<seed>/ with config.json, summary.json, table.md and figures/; a live
    study also results.csv, study.db and checkpoints/, a replay table.npz. A trial chooses sigma,
    learning rate, number of directions, L1 strength and momentum.
    """

    preset: Literal["default", "quick"] = "default"
    """quick: few trials, configurations and seeds; every study under three minutes on two cores."""
    study: Literal["live", "replay", "functions"] = "live"
    """live: one searcher, trials that train. replay: searchers compared over seeds on a table of
    configurations trained once. functions: searchers on Branin and Hartmann-6."""
    dataset: DatasetName = "digits"
    """auto is mnist where it is prepared, else scikit-learn's digits."""
    data_dir: str | None = None
    """Folder with prepared data; then $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    hidden: tuple[int, ...] = (16,)
    """Hidden sizes of the network."""
    pool: int | None = None
    """Side of the average pooling in front of it; by default 4, and 1 for digits."""
    batch_size: int = 32
    """Images per step."""
    steps_per_unit: int = 4
    """Steps in 1/81 of a training with 64 directions; with 16 or 4 directions there are 4 or 16
    times as many, for equal sample-forwards."""

    sampler: SamplerName = "tpe"
    """What proposes the configurations of a live study; gp needs the extra tune-gp (torch)."""
    pruner: PrunerName = "hyperband"
    """What stops its trials early."""
    num_trials: int = 128
    """Trials of a live study."""
    batch: int = 8
    """Trials that are proposed, and train, together."""
    workers: int = 1
    """Processes that work on a live study."""
    num_retrainings: int = 3
    """Trainings of its best setting with new seeds, each scored once on the test part."""

    searchers: tuple[str, ...] = tuple(name for name in _ALL if name != "gp" or _HAS_TORCH)
    """What replay compares; functions takes those without a scheduler. By default all; gp needs the
    extra tune-gp (torch)."""
    num_seeds: int = 10
    """Studies per searcher."""
    table: str | None = None
    """table.npz of an earlier replay; trained if not given."""
    num_configurations: int = 2048
    """Size of the table."""
    trainings: int = 192
    """Budget of a searcher in replay, in full trainings."""
    evaluations: int = 64
    """Budget of a searcher on a function."""

    seed: int = 0
    """The first seed."""
    output: str = "runs"
    """Folder for runs."""
    resume: Annotated[str | None, tyro.conf.arg(metavar="RUN_DIR")] = None
    """Goes on with the live study in this folder; --num-trials, --batch, --workers may differ."""

    def __post_init__(self) -> None:
        """Checks what no library below checks."""
        for name in self.searchers:
            if name not in _ALL:
                raise ValueError(f"unknown searcher '{name}'; they are: {', '.join(_ALL)}")
        if not self.searchers or len(set(self.searchers)) < len(self.searchers):
            raise ValueError("searchers must name at least one searcher, and each only once")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < (field.name != "seed"):
                raise ValueError(f"{field.name} must be at least 1, got {value}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in [0, 2^31), got {self.seed}")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "num_trials": 24,
        "steps_per_unit": 1,
        "batch_size": 16,
        "num_configurations": 128,
        "num_seeds": 2,
        "trainings": 16,
        "evaluations": 32,
        "num_retrainings": 2,
    },
}


def resolve(config: Config) -> tuple[Config, RunDirectory | None]:
    """Fills in what depends on the data, or takes the configuration of a run to resume.

    Args:
        config: From the command line.

    Returns:
        The configuration, and the run's folder if there is one already.
    """
    if not config.resume:
        return config, None
    run = RunDirectory.open_existing(config.resume)
    stored = run.read_config()
    try:
        defaults = Config(**stored)
    except (TypeError, ValueError) as error:
        raise UserError(f"{run.path} is a run of another version: {error}") from error
    if defaults.study != "live":
        raise UserError(f"{run.path} is no live study; a replay takes --table {run.path}/table.npz")
    requested = cli.parse(Config, None, PRESETS, defaults=defaults)
    free = {"resume", "output", "data_dir", "num_trials", "batch", "workers", "num_retrainings"}
    check_same_config(stored, dataclasses.asdict(requested), ignore=free)
    return requested, run


def run_live(config: Config, run: RunDirectory | None) -> RunDirectory:
    """Runs or resumes a live study.

    Args:
        config: The configuration.
        run: The folder of the study to resume, if any.
    """
    check_sampler(config.sampler, TRAINING_SPACE, config.num_trials)
    dataset = load_dataset(config.dataset, config.data_dir)
    config = dataclasses.replace(config, dataset=dataset.name, pool=choose_pool(config, dataset))
    if dataset.note:
        print(f"NOTE: {dataset.note}", flush=True)
    is_new = run is None
    run = run or RunDirectory.create(config.output, NAME, config.seed, config)
    print(
        f"{dataset.name}: {config.num_trials} trials, {config.sampler} with {config.pruner} "
        f"pruner, {config.workers} process(es)\nwriting {run.path}",
        flush=True,
    )
    try:
        study = tune_live.open_study(config, run.path)
        if not is_new:
            count = tune_live.continue_interrupted(study, run.path)
            done = [t for t in study.trials if tune_live.is_counted(t) and t.state.is_finished()]
            print(f"resuming: {len(done)} trials are finished, {count} were interrupted")
        tune_live.run_workers(config, run.path)
        tune_report.write(config, run, study, dataset)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"continue with python -m experiments.{NAME} --resume {run.path}"
        ) from None
    return run


def main() -> None:
    """Runs the command line."""
    config, run = resolve(cli.parse(Config, None, PRESETS))
    keep_compiled_programs()
    silence_optuna()
    if config.study != "live" and not _HAS_TORCH:
        print("NOTE: the Gaussian process (gp) is left out; it needs the extra tune-gp", flush=True)
    if config.study == "live":
        run_live(config, run)
    elif config.study == "replay":
        tune_contests.run_replay(config)
    else:
        tune_contests.run_functions(config)


if __name__ == "__main__":
    run_cli(main)
