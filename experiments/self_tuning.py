"""Hyperparameters that have no gradient on the training cost, tuned while the network trains.

    python -m experiments.self_tuning

A small network is trained by function values. Its smoothing radius, learning rate and L1 strength
are adapted in the same run by zeroth-order estimates through the unrolled training
(`zojax.estimators.pes`), once on the training cost and once on held-out loss. Expected numbers: see
docs/results/self_tuning.
"""

import dataclasses
from typing import Any, Literal

from experiments.lib import cli, self_tuning_report
from experiments.lib.compilation_cache import keep_compiled_programs
from experiments.lib.data import DatasetName, load_dataset
from experiments.lib.errors import UserError, run_cli
from experiments.lib.runs import RunDirectory
from experiments.lib.self_tuning_inner import OBJECTIVES, Data, build_problem
from experiments.lib.self_tuning_loop import Method, Retrainer, Tuner

NAME = "self_tuning"
_SWEEP = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)  # strengths of L1, in units of the tuned one


@dataclasses.dataclass(frozen=True)
class Config:
    """Tunes sigma, learning rate and L1 strength during training, by function values only.

    Writes runs/self_tuning/<time>-<seed>/ with config.json, summary.json, table.md and figures/.
    """

    preset: Literal["default", "quick"] = "default"
    """default: digits, three outer seeds. quick: one short one, under two minutes on two
    cores."""
    dataset: DatasetName = "digits"
    """auto is mnist where it is prepared, else scikit-learn's digits."""
    data_dir: str | None = None
    """Folder with prepared data; then $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    hidden: tuple[int, ...] = (16,)
    """Hidden sizes of the network."""
    pool: int | None = None
    """Side of the average pooling in front of it; by default 4, and 1 for digits."""
    num_train: int = 100
    """Training images, few enough to overfit; other ones for every outer seed."""
    num_held_out: int = 1_000
    """Images, from the rest of the training part and the validation part, for held-out loss."""

    batch_size: int = 100
    """Training images per inner step, at most num_train."""
    inner_directions: int = 16
    """Antithetic pairs per inner step."""
    inner_steps: int = 20
    """Inner steps per truncation."""
    num_truncations: int = 20
    """Truncations per episode; then the networks start afresh."""

    sigma: float = 0.05
    """Initial smoothing radius of the inner estimates."""
    learning_rate: float = 0.01
    """Initial learning rate of the inner Adam."""
    l1: float = 1e-2
    """Initial L1 strength, lambda; high, because the gradient in its logarithm vanishes with it."""

    method: Method = "nres"
    """Outer estimator."""
    num_pairs: int = 8
    """Outer antithetic pairs, each with two networks of its own."""
    outer_sigma: float = 0.1
    """Perturbation of the logarithms of the hyperparameters."""
    outer_learning_rate: float = 0.05
    """First one of the outer Adam, on the logarithms (cosine to 10 %)."""
    outer_steps: int = 400
    """Updates of the hyperparameters, one per truncation."""

    num_networks: int = 10
    """Networks trained afresh per setting and outer seed."""
    num_seeds: int = 3
    """Outer seeds."""
    seed: int = 0
    """The first outer seed."""
    output: str = "runs"
    """Folder for runs."""

    def __post_init__(self) -> None:
        """Checks what no library below checks."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "seed":
                if not 0 <= value < 2**31:
                    raise ValueError(f"seed must be in [0, 2^31), got {value}")
            elif isinstance(value, int | float) and not 0 < value < float("inf"):
                raise ValueError(f"{field.name} must be > 0 and finite, got {value}")
        if self.batch_size > self.num_train:
            raise ValueError(
                f"batch_size must be at most num_train ({self.num_train}), got {self.batch_size}"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "outer_steps": 150,
        "num_seeds": 1,
        "num_networks": 4,
    },
}


def run_experiment(config: Config) -> RunDirectory:
    """Tunes on both objectives, trains afresh with what was found, and writes the run's folder.

    Args:
        config: The configuration.

    Raises:
        UserError: If the data set is too small for the parts asked for.
    """
    dataset = load_dataset(config.dataset, config.data_dir)
    if dataset.note:
        print(f"NOTE: {dataset.note}", flush=True)
    available = len(dataset.train.labels) + len(dataset.validation.labels)
    if config.num_train + config.num_held_out > available:
        raise UserError(
            f"num_train + num_held_out is {config.num_train + config.num_held_out:,}, but "
            f"{dataset.name} has {available:,} training and validation images"
        )
    config = dataclasses.replace(config, dataset=dataset.name)
    problem = build_problem(config, dataset)
    tuner = Tuner(config, problem)
    retrainer = Retrainer(config, problem, config.num_networks)
    run = RunDirectory.create(config.output, NAME, config.seed, config)
    print(f"{dataset.name}: {config.num_train} training images\nwriting {run.path}", flush=True)
    seeds: list[dict[str, Any]] = []
    for seed in range(config.seed, config.seed + config.num_seeds):
        data = problem.cut(seed)
        trajectories = {}
        for objective in OBJECTIVES:
            print(f"outer seed {seed}: {self_tuning_report.LABELS[objective]}", flush=True)
            trajectories[objective] = tuner.run(objective, seed, data)
        seeds.append({"seed": seed, **_train_afresh(config, retrainer, trajectories, seed, data)})
        _write(run, config, seeds)
    print(f"figures: {run.figures_dir}\ntable: {run.path / 'table.md'}", flush=True)
    return run


def _train_afresh(
    config: Config, retrainer: Retrainer, trajectories: dict[str, Any], seed: int, data: Data
) -> dict[str, Any]:
    """Scores fresh networks with every setting, and with other L1 strengths."""
    initial = {name: getattr(config, name) for name in ("sigma", "learning_rate", "l1")}
    tuned = {name: rows.pop("tuned") for name, rows in trajectories.items()}
    best = tuned["held_out_loss"]
    chosen = {"initial": initial, **tuned, "without_l1": best | {"l1": 0.0}}
    settings = {
        name: {"hyperparameters": values, **retrainer.run(values, seed, data)}
        for name, values in chosen.items()
    }
    sweep = {
        f: retrainer.run(best | {"l1": f * best["l1"]}, seed, data)["episode_held_out_loss"]
        for f in _SWEEP
    }
    for name, entry in settings.items():
        print(
            f"  {self_tuning_report.LABELS[name]}: lambda {entry['hyperparameters']['l1']:.2g}, "
            f"test loss {entry['test_loss']:.3f}, accuracy {100 * entry['test_accuracy']:.1f} %",
            flush=True,
        )
    return {"settings": settings, "l1_sweep": sweep, "trajectories": trajectories}


def _write(run: RunDirectory, config: Config, seeds: list[dict[str, Any]]) -> None:
    pairs = [("held_out_loss", other) for other in ("training_cost", "without_l1", "initial")]
    per_unroll = 2 * config.inner_directions * config.batch_size * config.inner_steps
    run.write_summary(
        {
            "experiment": NAME,
            "dataset": config.dataset,
            "method": config.method,
            "unrolls": 2 * config.num_pairs * config.outer_steps,
            "sample_forwards": 2 * config.num_pairs * config.outer_steps * per_unroll,
            "differences": {
                f"{first} minus {second}, {number}": self_tuning_report.difference(
                    seeds, first, second, number
                )
                for first, second in pairs
                for number in ("test_loss", "test_accuracy", "episode_held_out_loss")
            },
            "seeds": [
                seed | {"trajectories": _once_per_episode(config, seed["trajectories"])}
                for seed in seeds
            ],
        }
    )
    (run.path / "table.md").write_text(self_tuning_report.table(seeds))
    self_tuning_report.draw(
        run.figures_dir / "self_tuning.png",
        seeds,
        config.num_truncations,
        f"{config.dataset}, {config.num_train} training images, {config.method.upper()}: "
        "one line per outer seed",
    )


def _once_per_episode(config: Config, trajectories: dict[str, Any]) -> dict[str, Any]:
    """Thins trajectories, which the figure shows in full."""
    return {
        objective: {name: values[:: config.num_truncations] for name, values in rows.items()}
        for objective, rows in trajectories.items()
    }


def main() -> None:
    """Runs the command line."""
    config = cli.parse(Config, None, PRESETS)
    keep_compiled_programs()
    run_experiment(config)


if __name__ == "__main__":
    run_cli(main)
