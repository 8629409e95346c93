"""Trains one network in many ways and shows what is left of it when its weights are disturbed.

    python -m experiments.robust_training

Back-propagation, first-order robust methods and zeroth-order smoothing (function values only) train
the same network at equal sample-forwards; accuracy is then measured on simulated devices. Expected
numbers: see docs/results/robust_training.
"""

import dataclasses
from typing import Any, Literal

import jax

from experiments.lib import cli, robust_chips, robust_report
from experiments.lib.classifier import build_task
from experiments.lib.compilation_cache import keep_compiled_programs
from experiments.lib.data import DatasetName, load_dataset
from experiments.lib.errors import run_cli
from experiments.lib.models import build_model
from experiments.lib.robust_loop import train
from experiments.lib.robust_methods import NAMES, build_method
from experiments.lib.runs import RunDirectory

NAME = "robust_training"


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains one network in many ways and measures it on simulated noisy devices.

    Writes runs/robust_training/<time>-<seed>/ with config.json, summary.json, table.md and
    figures/. A method's budget is in sample-forwards: images pushed through the network, where a
    backward pass counts as two more.
    """

    preset: Literal["default", "quick", "full"] = "default"
    """default: digits, three seeds. quick: digits, one seed, under two minutes on two cores. full:
    MNIST, noise relative to each layer."""
    dataset: DatasetName = "digits"
    """auto is mnist where it is prepared, else scikit-learn's digits."""
    data_dir: str | None = None
    """Folder with prepared data; then $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    methods: tuple[str, ...] = NAMES
    """What to train by; values_* use function values only."""
    hidden: tuple[int, ...] = (32,)
    """Hidden sizes of the network."""
    pool: int | None = None
    """Side of the average pooling in front of it; by default 2, and 1 for digits."""

    test_sigma: float = 0.3
    """Noise of one size on all weights that is reported."""
    test_relative: float = 0.5
    """Noise in units of each layer's root mean square that is reported."""
    sigma: float = 0.3
    """Noise of one size in training."""
    relative_sigma: float = 0.5
    """Noise relative to each layer in training."""
    bits: int = 4
    """Of the quantised network."""
    bit_error: float = 0.01
    """Probability that a bit is flipped, in training and reported."""
    stuck: float = 0.1
    """Probability that a weight is stuck at zero, in training."""
    fault_sigma: float = 0.1
    """Smoothing on top of quantisation, bit errors and stuck weights."""
    cvar_level: float = 0.7
    """values_cvar minimises the mean of the losses above this quantile ..."""
    cvar_share: float = 0.8
    """... in this last part of its steps, and the mean of all losses before."""
    lpf_gamma: float = 0.1
    """Noise of LPF-SGD, in units of the norm of a filter."""
    sam_radius: float = 0.5
    """Radius of SAM."""
    entropy_scope: float = 1.0
    """Pull of Entropy-SGD's walk towards the parameters."""
    clip: float = 0.3
    """Largest magnitude of a weight under weight clipping."""
    fault_clip: float = 0.5
    """The same, of values_bit_errors."""

    sample_forwards: float = 7e7
    """Budget of every method but plain back-propagation."""
    backprop_steps: int = 3_000
    """Steps of plain back-propagation, where they cost less than the budget."""
    num_directions: int = 512
    """Antithetic pairs per step of the methods that use values only."""
    batch_size: int = 64
    """Images per step of the methods that use values only."""
    learning_rate: float = 0.05
    """First learning rate (cosine to 1 %) of the methods that use values only."""
    fault_learning_rate: float = 0.02
    """The same, where faults are inside the loss."""
    relative_weight_decay: float = 0.1
    """Decoupled weight decay of the methods with noise relative to each layer. Without it weights
    grow under noise, the more so under that of an estimate, and drown those that matter."""
    first_order_batch: int = 256
    """Images per step of the first-order methods."""
    first_order_learning_rate: float = 3e-3
    """First learning rate (cosine to 1 %) of the first-order methods."""
    chunk: int = 64
    """Directions evaluated at once; 0 for all."""

    split: Literal["test", "validation"] = "test"
    """Part that is scored; tune on validation."""
    num_chips: int = 100
    """Simulated devices per network and level."""
    num_seeds: int = 3
    """Networks per method, trained together."""
    seed: int = 0
    """The first seed."""
    output: str = "runs"
    """Folder for runs."""

    def __post_init__(self) -> None:
        """Checks what no library below checks."""
        for name in self.methods:
            if name not in NAMES:
                raise ValueError(f"unknown method '{name}'; the methods are: {', '.join(NAMES)}")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError("methods must name at least one method, and each only once")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("chunk", "seed", "relative_weight_decay"):
                if not 0 <= value < 2**32:
                    raise ValueError(f"{field.name} must be in [0, 2^32), got {value}")
            elif isinstance(value, int | float) and not 0 < value < float("inf"):
                raise ValueError(f"{field.name} must be > 0 and finite, got {value}")
        if not 2 <= self.bits <= 16:
            raise ValueError(f"bits must be in [2, 16], got {self.bits}")
        if not self.cvar_share <= 1:
            raise ValueError(f"cvar_share must be at most 1, got {self.cvar_share}")
        for name in ("bit_error", "stuck", "cvar_level"):
            if not getattr(self, name) < 1:
                raise ValueError(f"{name} must be below 1, got {getattr(self, name)}")
        if self.first_order_batch % 8:
            raise ValueError(
                f"first_order_batch must be a multiple of 8, got {self.first_order_batch}"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "methods": ("backprop", "noise_backprop", "sam", "values", "values_bit_errors"),
        "sample_forwards": 1e7,
        "num_directions": 256,
        "backprop_steps": 1_000,
        "num_chips": 25,
        "num_seeds": 1,
    },
    "full": {
        "dataset": "mnist",
        "methods": ("backprop", "noise_backprop_relative", "values_relative"),
        "pool": 1,
        "sample_forwards": 6e8,
        "num_directions": 128,
        "batch_size": 1024,
        "first_order_batch": 1024,
        "chunk": 16,
        "learning_rate": 0.01,
        "num_chips": 100,
    },
}


def run_experiment(config: Config) -> RunDirectory:
    """Trains and evaluates every method, and writes the run's folder after each.

    Args:
        config: The configuration.
    """
    dataset = load_dataset(config.dataset, config.data_dir)
    if dataset.note:
        print(f"NOTE: {dataset.note}", flush=True)
    pool = config.pool or (1 if dataset.name == "digits" else 2)
    config = dataclasses.replace(config, dataset=dataset.name, pool=pool)
    num_classes = dataset.num_classes
    module = build_model(
        "mlp", hidden=config.hidden, features=(1,), num_classes=num_classes, pool=pool
    )
    task = build_task(module, dataset)

    def accuracy(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        return (module.apply({"params": params}, images).argmax(-1) == labels).mean()

    tested = robust_chips.conditions(
        config.test_sigma, config.test_relative, config.bits, config.bit_error
    )
    data = getattr(task, config.split)
    evaluator = robust_chips.Evaluator(accuracy, data, tested, config.num_chips)
    run = RunDirectory.create(config.output, NAME, config.seed, config)
    print(f"{dataset.name}: {len(dataset.train.labels):,} training images\nwriting {run.path}")
    results: dict[str, Any] = {}
    for name in config.methods:
        method = build_method(name, config, task)
        print(method.label, flush=True)
        params, num_steps, seconds = train(config, task, name, method)
        networks = [jax.tree.map(lambda x, i=i: x[i], params) for i in range(config.num_seeds)]
        curves = [evaluator.curves(network, jax.random.key(2**31)) for network in networks]
        results[name] = {
            "label": method.label,
            "is_first_order": method.is_first_order,
            "steps": num_steps,
            "sample_forwards": num_steps * method.forwards,
            "seconds_all_seeds": round(seconds, 1),
            "seeds": [
                robust_chips.describe(network, c, tested)
                | {"devices": evaluator.on_devices(network, jax.random.key(2**31))}
                | robust_chips.sharpness(task.loss_fn, network, data)
                for network, c in zip(networks, curves, strict=True)
            ],
        }
        robust_report.write(run, config, results, tested)
    print(f"figures: {run.figures_dir}\ntable: {run.path / 'table.md'}", flush=True)
    return run


def main() -> None:
    """Runs the command line."""
    config = cli.parse(Config, None, PRESETS)
    keep_compiled_programs()
    run_experiment(config)


if __name__ == "__main__":
    run_cli(main)
