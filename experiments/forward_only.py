"""Trains networks by forward passes alone, beside back-propagation and evolution strategies.

    python -m experiments.forward_only

Activation noise is grey-box: it sees one loss per example and the inputs of layers, and takes no
derivative of the network. Expected numbers: see docs/results/forward_only.
"""

import dataclasses
from typing import Any, Literal, get_args

import jax

from experiments.lib import cli, forward_only_report
from experiments.lib.compilation_cache import keep_compiled_programs
from experiments.lib.data import ColorName, DatasetName, load_dataset
from experiments.lib.errors import run_cli
from experiments.lib.forward_only_runs import Bench, MethodName
from experiments.lib.runs import RunDirectory

NAME = "forward_only"


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares sources of gradients on one network, each at its own learning rate.

    Writes runs/forward_only/<time>-<seed>/ with config.json, metrics.jsonl, summary.json, table.md
    and figures/. Budgets are in sample-forwards: images pushed through the network, where a
    backward pass counts as two more.
    """

    preset: Literal["default", "quick", "cnn", "cifar10"] = "default"
    """default: MNIST, the perceptron; three seeds take 15 minutes on two cores. quick: digits, a
    minute. cnn: a convolutional network and the choice of sites; three seeds, 25 minutes. cifar10:
    the same on colour images, for an accelerator."""
    methods: tuple[MethodName, ...] = (
        "back_propagation",
        "activation_noise",
        "low_rank",
        "gaussian",
    )
    """activation_noise: kinds of noise chosen by shapes. activations_only, example_weights: one
    kind for all parameters. low_rank, gaussian: evolution strategies, which see the mean loss."""
    dataset: DatasetName | ColorName = "auto"
    """auto is mnist where it is prepared, else scikit-learn's digits."""
    data_dir: str | None = None
    """Folder with prepared data; then $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    model: Literal["mlp", "cnn"] = "mlp"
    """mlp: dense layers. cnn: convolutions with stride 2, then a dense layer."""
    hidden: tuple[int, ...] = (128, 128)
    """Hidden sizes of the mlp."""
    features: tuple[int, ...] = (8, 16)
    """Channels of the cnn."""

    batch_size: int = 256
    """Images per step of back-propagation and activation noise."""
    num_draws: int = 4
    """Pairs of noise per step of activation noise."""
    sigma: float = 0.01
    """Size of its noise."""
    es_batch_size: int = 64
    """Images per step of the evolution strategies."""
    num_directions: int = 64
    """Their pairs per step."""
    es_sigma: float = 0.01
    """Their smoothing radius."""

    sample_forwards: float = 4e7
    """Budget of activation noise."""
    backprop_forwards: float = 2e6
    """Budget of back-propagation."""
    es_forwards: float = 4e7
    """Budget of low_rank."""
    gaussian_forwards: float = 3e6
    """Budget of gaussian."""
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    """Of Adam, from which each method takes its best on validation images."""
    tuning_share: float = 0.1
    """Part of a method's budget that each learning rate is tried for."""
    target: float = 0.9
    """Validation accuracy for which sample-forwards are compared."""
    cosine_draws: tuple[int, ...] = (256, 16)
    """Pairs for which cosines are predicted and measured; none to leave it out."""
    cosine_steps: tuple[int, ...] = (0, 200)
    """Steps of back-propagation after which they are, in rising order."""

    num_evals: int = 40
    """Evaluations on the validation part per training."""
    num_seeds: int = 1
    """Networks per method."""
    seed: int = 0
    """The first seed."""
    output: str = "runs"
    """Folder for runs."""

    def __post_init__(self) -> None:
        """Checks what no library below checks."""
        for name in self.methods:
            if name not in get_args(MethodName):
                raise ValueError(f"methods must be among {get_args(MethodName)}, got {name!r}")
        for name in ("methods", "learning_rates"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must name at least one, and each only once")
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            for value in values if isinstance(values, tuple) else (values,):
                if (
                    isinstance(value, int | float)
                    and field.name not in ("seed", "cosine_steps")
                    and value <= 0
                ):
                    raise ValueError(f"{field.name} must be > 0, got {values}")
        if list(self.cosine_steps) != sorted({abs(steps) for steps in self.cosine_steps}):
            raise ValueError(f"cosine_steps must rise from 0 or more, got {self.cosine_steps}")
        if not 0 < self.target < 1 or self.tuning_share > 1:
            raise ValueError("target must be in (0, 1) and tuning_share in (0, 1]")
        if not 0 <= self.seed < 2**32 - 2_000:
            raise ValueError(f"seed must be in [0, 2^32 - 2000), got {self.seed}")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "dataset": "digits",
        "hidden": (32,),
        "batch_size": 64,
        "es_batch_size": 64,
        "num_directions": 16,
        "sample_forwards": 2e5,
        "backprop_forwards": 5e4,
        "es_forwards": 5e5,
        "gaussian_forwards": 5e5,
        "learning_rates": (3e-3, 1e-2),
        "tuning_share": 0.3,
        "cosine_draws": (16,),
        "num_evals": 5,
    },
    "cnn": {
        "model": "cnn",
        "methods": ("back_propagation", "activation_noise", "activations_only"),
        "batch_size": 128,
        "sample_forwards": 6e6,
        "learning_rates": (1e-3, 3e-3),
        "cosine_draws": (64, 8),
        "cosine_steps": (0, 200, 2000),
        "num_evals": 20,
    },
    "cifar10": {
        "model": "cnn",
        "dataset": "cifar10",
        "features": (32, 64, 128),
        "methods": ("back_propagation", "activation_noise", "activations_only"),
        "num_draws": 16,
        "sample_forwards": 1e9,
        "backprop_forwards": 5e6,
        "cosine_draws": (64,),
    },
}


def run_experiment(config: Config) -> RunDirectory:
    """Tunes and trains every method, and writes the run's folder after each training.

    Args:
        config: The command line.
    """
    dataset = load_dataset(config.dataset, config.data_dir)
    if dataset.note:
        print(f"NOTE: {dataset.note}", flush=True)
    config = dataclasses.replace(config, dataset=dataset.name)
    bench = Bench.of(config, dataset)
    run = RunDirectory.create(config.output, NAME, config.seed, config)
    print(f"{dataset.name}: {len(dataset.train.labels):,} images\nwriting {run.path}", flush=True)
    summary: dict[str, Any] = {"experiment": NAME, "dataset": dataset.name, "note": dataset.note}
    summary |= {"target": config.target, "methods": [], "tuning": {}}
    summary["memory"] = {m: bench.memory(m) for m in ("inference", *config.methods)}
    summary["cosines"] = bench.cosines() if config.cosine_draws else []
    runs: list[dict[str, Any]] = []
    for method in config.methods:
        rate, summary["tuning"][method] = bench.tune(method)
        for seed in range(config.seed, config.seed + config.num_seeds):
            params, rows = bench.train(method, rate, bench.budget(method), seed)
            accuracy = bench.test_accuracy(jax.device_get(params))
            runs.append({"method": method, "rate": rate, "test_accuracy": accuracy, "rows": rows})
            for row in rows:
                run.append_metrics({"method": method, "seed": seed, **row})
            print(f"{method}, rate {rate:g}: test accuracy {accuracy:.2%}", flush=True)
            summary["methods"] = forward_only_report.summarise(runs, config.target)
            run.write_summary(summary)
            forward_only_report.write_table(run.path / "table.md", summary)
    title = f"{dataset.name}, {config.model}"
    forward_only_report.draw(run.figures_dir / "forward_only.png", runs, title)
    print((run.path / "table.md").read_text())
    print(f"figures: {run.figures_dir}\nsummary: {run.path / 'summary.json'}", flush=True)
    return run


def main() -> None:
    """Runs the command line."""
    config = cli.parse(Config, None, PRESETS)
    keep_compiled_programs()
    run_experiment(config)


if __name__ == "__main__":
    run_cli(main)
