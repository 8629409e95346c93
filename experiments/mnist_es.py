"""Trains a Flax classifier from loss values alone, on MNIST, Fashion-MNIST or digits.

    python -m experiments.mnist_es

No gradient is computed: an evolution-strategy estimate made of loss values feeds an optax
optimiser. Expected with default settings on two CPU cores: see docs/results/mnist_es.
"""

import dataclasses
import time
from typing import Annotated, Any, Literal

_STARTED = time.perf_counter()

import jax  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

import zojax  # noqa: E402
from experiments.lib import cli, distributed, report, training  # noqa: E402
from experiments.lib.classifier import Task, build_task  # noqa: E402
from experiments.lib.cluster import Cluster  # noqa: E402
from experiments.lib.compilation_cache import keep_compiled_programs  # noqa: E402
from experiments.lib.data import DatasetName, load_dataset  # noqa: E402
from experiments.lib.errors import UserError, run_cli  # noqa: E402
from experiments.lib.models import build_model  # noqa: E402
from experiments.lib.optimizers import (  # noqa: E402
    OptimizerName,
    ScheduleName,
    build_optimizer,
    build_schedule,
)
from experiments.lib.runs import RunDirectory, as_tuple, check_same_config  # noqa: E402

NAME = "mnist_es"
WORDS = "function values only"
FIRST_ORDER_FORWARDS = 3  # a backward pass is counted as two forward passes


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a Flax classifier from loss values alone, and shows how well it went.

    Writes runs/mnist_es/<time>-<seed>/ with config.json, metrics.jsonl, summary.json, figures/ and
    checkpoints/. Queries are loss evaluations; sample-forwards are images pushed through the model.
    """

    preset: Literal["default", "quick", "evojax"] = "default"
    """quick: under a minute. evojax: the 11,274-parameter CNN of the EvoJAX benchmark, for an
    accelerator (on a CPU add --chunk 1)."""
    dataset: DatasetName = "auto"
    """auto is mnist where it is prepared, else scikit-learn's digits."""
    data_dir: str | None = None
    """Folder with prepared data; then $TFDS_DATA_DIR, then ~/tensorflow_datasets."""

    model: Literal["mlp", "cnn"] = "mlp"
    """Network to train."""
    hidden: tuple[int, ...] = (32,)
    """Hidden sizes of the mlp."""
    features: tuple[int, ...] = (8, 16)
    """Channels of the cnn."""
    pool: int | None = None
    """Side of the average pooling in front of the mlp; by default 2, and 1 for digits."""

    directions: Literal[
        "gaussian", "rademacher", "sphere", "coordinate", "orthogonal", "low_rank", "sparse",
        "laplace",
    ] = "rademacher"  # fmt: skip
    """Distribution of the random directions."""
    rank: int = 1
    """Rank of low_rank directions."""
    fraction: float = 0.1
    """Fraction of parameters a sparse direction touches."""
    stencil: Literal["one_point", "forward", "central"] = "central"
    """Points per direction: central evaluates both sides."""
    shaping: Literal["identity", "standardize", "centered_rank", "sign_of_difference"] = "identity"
    """What is done to the loss values before they weigh the directions."""
    num_directions: int = 128
    """Directions per step."""
    sigma: float = 0.05
    """Smoothing radius, in parameter units."""
    sigma_schedule: ScheduleName = "constant"
    """How sigma changes over the run."""
    sigma_final: float = 0.1
    """Final sigma as a fraction of the first, where the schedule is not constant."""
    chunk: int = 0
    """Directions evaluated at once; 0 for all. 1 is best for the cnn on a CPU."""

    batch_size: int = 1024
    """Images per step, shared by all points of the step."""
    optimizer: OptimizerName = "adam"
    """momentum is sgd with 0.9."""
    learning_rate: float = 0.01
    """First learning rate."""
    learning_rate_schedule: ScheduleName = "cosine"
    """How the learning rate changes over the run."""
    learning_rate_final: float = 0.01
    """Final learning rate as a fraction of the first."""

    sample_forwards: float = 1.2e9
    """Budget: images pushed through the model in training."""
    seconds: float | None = None
    """Budget in seconds instead: a few steps are timed first (and not counted) to set the number of
    steps."""
    num_evals: int = 40
    """Evaluations on the validation part (each followed by a checkpoint) over the run."""
    seed: int = 0
    """Seed of parameters, directions and batches."""

    baseline: bool = False
    """Also train the back-propagation twin: same network and batches, Adam, drawn dashed."""
    baseline_steps: int = 5_000
    """Steps of the twin."""
    baseline_learning_rate: float = 1e-3
    """First learning rate of the twin (cosine to zero)."""

    output: str = "runs"
    """Folder for runs."""
    resume: Annotated[str | None, tyro.conf.arg(metavar="RUN_DIR")] = None
    """Continue an interrupted run to the same bits; other options keep what the run had."""

    where: Annotated[distributed.Where, tyro.conf.arg(name="")] = distributed.Where()
    """Several devices, or several processes on as many machines."""

    def __post_init__(self) -> None:
        """Checks what no library below checks."""
        for name in ("batch_size", "num_evals", "baseline_steps", "pool"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        positive = ("sample_forwards", "seconds", "learning_rate", "learning_rate_final")
        for name in (*positive, "sigma_final", "baseline_learning_rate"):
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be > 0 and finite, got {value}")
        if self.chunk < 0:
            raise ValueError(f"chunk must be >= 0, got {self.chunk}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in [0, 2^32), got {self.seed}")
        build_estimator(self, num_steps=1)


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "num_directions": 64,
        "batch_size": 512,
        "sample_forwards": 1.5e8,
        "num_evals": 15,
    },
    # The published run: 2,000 iterations of 64 members on batches of 1,024.
    "evojax": {
        "model": "cnn",
        "num_directions": 32,
        "batch_size": 1024,
        "sample_forwards": 2_000 * 64 * 1024,
    },
}


def build_estimator(config: Config, num_steps: int) -> zojax.Estimator:
    """Builds the estimator that the configuration describes.

    Args:
        config: The configuration.
        num_steps: Steps of the run, for the schedule of sigma.
    """
    arguments = {"low_rank": (config.rank,), "sparse": (config.fraction,)}
    directions = getattr(zojax, config.directions)(*arguments.get(config.directions, ()))
    sigma: Any = config.sigma
    if config.sigma_schedule != "constant" and config.sigma > 0:
        sigma = build_schedule(config.sigma_schedule, sigma, num_steps, config.sigma_final)
    return zojax.finite_difference(
        directions=directions,
        stencil=getattr(zojax, config.stencil),
        shaping=getattr(zojax, config.shaping),
        num_directions=config.num_directions,
        sigma=sigma,
    )


def build_transformation(
    config: Config, num_steps: int, key: jax.Array, cluster: Cluster
) -> optax.GradientTransformationExtraArgs:
    """Chains the estimator with its optimiser.

    Args:
        config: The configuration.
        num_steps: Steps of the run, for the schedules.
        key: Key of the directions.
        cluster: The devices that share them.
    """
    learning_rate = build_schedule(
        config.learning_rate_schedule, config.learning_rate, num_steps, config.learning_rate_final
    )
    return optax.chain(
        zojax.as_gradient_transformation(
            build_estimator(config, num_steps), key, execution=cluster.execution(config.chunk)
        ),
        build_optimizer(config.optimizer, learning_rate),
    )


def train(config: Config, task: Task, run: RunDirectory | None, cluster: Cluster) -> report.Result:
    """Trains from function values, from scratch or from the newest checkpoint.

    Args:
        config: The configuration.
        task: The loss and its data.
        run: Where metrics and checkpoints go; None where another process writes.
        cluster: The devices to train on.
    """
    init_key, noise_key, data_key = jax.random.split(jax.random.key(config.seed), 3)
    params = task.init(init_key)
    saver = training.Saver(run) if run else None
    shared = dataclasses.replace(task, train=cluster.replicate(task.train))

    def prepare(num_steps: int) -> tuple[training.Carry, training.Trainer, training.Plan]:
        tx = build_transformation(config, num_steps, noise_key, cluster)
        queries = build_estimator(config, num_steps).num_queries(params)
        interval = -(-num_steps // config.num_evals)
        plan = training.Plan(num_steps, interval, queries, queries * config.batch_size)
        chunk = training.make_chunk(task, tx, config.batch_size, first_order=False)
        carry = training.Carry(params, tx.init(params), jax.numpy.zeros((), "int32"))
        return carry, training.Trainer(shared, chunk, data_key, plan, WORDS, cluster), plan

    per_step = build_estimator(config, 1).num_queries(params) * config.batch_size
    carry, trainer, plan = prepare(max(1, int(config.sample_forwards // per_step)))
    restored = saver.restore(carry) if saver else None
    is_resumed, carry, seconds, num_steps = cluster.agree_on_arrays(
        (restored is not None, *(restored or (carry, 0.0, plan.num_steps)))
    )
    if not is_resumed and config.seconds is not None:
        num_steps = training.steps_within(trainer, carry, config.seconds)
    if num_steps != plan.num_steps:
        _, trainer, plan = prepare(num_steps)

    def save(step: int, carry: training.Carry, seconds: float) -> None:
        saver.save(step, carry, seconds, plan.num_steps)

    if run:
        run.truncate_metrics(int(carry.step))
        if not is_resumed:
            report.check_initial_loss(task, carry.params)
            save(0, carry, 0.0)
    carry, since = cluster.replicate(carry), time.perf_counter()
    trainer.advance(carry, 0)  # compiles; every step, the first included, is the plan's
    seconds += time.perf_counter() - since
    print(
        f"first step {time.perf_counter() - _STARTED:.1f} s after the start, "
        f"{time.perf_counter() - since:.1f} s of it compiling",
        flush=True,
    )
    carry, seconds = trainer.run(carry, seconds, run.append_metrics if run else None, save)
    params = cluster.fetch(carry.params)
    cluster.leave()  # what is left to do is done by one process
    return report.Result(params, plan, seconds, run.read_metrics() if run else [])


def train_baseline(config: Config, task: Task) -> report.Result:
    """Trains the back-propagation twin from the same parameters on the same batches.

    Args:
        config: The configuration.
        task: The loss and its data.
    """
    init_key, _, data_key = jax.random.split(jax.random.key(config.seed), 3)
    params = task.init(init_key)
    num_steps = config.baseline_steps
    schedule = optax.cosine_decay_schedule(config.baseline_learning_rate, num_steps)
    tx = optax.with_extra_args_support(optax.adam(schedule))
    plan = training.Plan(
        num_steps, -(-num_steps // config.num_evals), 1, FIRST_ORDER_FORWARDS * config.batch_size
    )
    chunk = training.make_chunk(task, tx, config.batch_size, first_order=True)
    trainer = training.Trainer(task, chunk, data_key, plan, "back-propagation twin")
    carry = training.Carry(params, tx.init(params), jax.numpy.zeros((), "int32"))
    rows: list[dict[str, Any]] = []
    carry, seconds = trainer.run(carry, 0.0, rows.append, lambda *_: None)
    return report.Result(carry.params, plan, seconds, rows)


def check_step(config: Config, task: Task, cluster: Cluster) -> None:
    """Traces one step, so that what cannot work is found before a run's folder is made.

    Args:
        config: The configuration.
        task: The loss and its data.
        cluster: The devices to train on.

    Raises:
        UserError: If model, directions and batch do not go together.
    """
    key = jax.random.key(0)
    tx = build_transformation(config, 1, key, cluster)

    def step(batch: Any) -> Any:
        params = task.module.init(key, batch[0])["params"]
        value_fn = lambda p: task.loss_fn(p, batch)  # noqa: E731
        return tx.update(None, tx.init(params), params, value_fn=value_fn)

    try:
        jax.eval_shape(step, jax.tree.map(lambda x: x[:1], task.train))
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"this configuration does not work: {error}") from error


def stored_config(run: RunDirectory) -> Config:
    """Returns the configuration of a run to resume, checked against the command line.

    Args:
        run: The folder of the run.
    """
    stored = run.read_config()
    try:
        config = Config(**{name: value for name, value in stored.items() if name != "where"})
    except (TypeError, ValueError) as error:
        raise UserError(f"{run.path} is a run of another version: {error}") from error
    requested = cli.parse(Config, None, PRESETS, defaults=config)
    free = {"resume", "output", "data_dir", "baseline", "baseline_steps", "baseline_learning_rate"}
    check_same_config(stored, dataclasses.asdict(requested), ignore=free | {"where"})
    return requested


def agree_on_config(config: Config, cluster: Cluster) -> tuple[Config, RunDirectory | None]:
    """Returns the configuration of process 0, and there the folder of the run to resume.

    Args:
        config: What the command line of this process says.
        cluster: The processes.
    """
    run, own = None, {"where": config.where}
    own |= {"data_dir": config.data_dir} if config.data_dir else {}
    if config.resume and cluster.is_writer:
        run = RunDirectory.open_existing(config.resume)
        config = stored_config(run)
    values = {name: as_tuple(v) for name, v in cluster.agree(dataclasses.asdict(config)).items()}
    return Config(**values | own), run


def run_experiment(config: Config, cluster: Cluster) -> None:
    """Runs the experiment.

    Args:
        config: This process's command line.
        cluster: The processes and devices.
    """
    config, run = agree_on_config(config, cluster)
    keep_compiled_programs()

    dataset = load_dataset(config.dataset, config.data_dir)
    cluster.check_same(vars(dataset.train), f"the training data ({dataset.name} here)")
    if dataset.note:
        print(f"NOTE: {dataset.note}", flush=True)
    # What `auto` and the default pool stand for is stored, so that a resumed run has the same.
    pool = config.pool or (1 if dataset.name == "digits" else 2)
    config = dataclasses.replace(config, dataset=dataset.name, pool=pool)
    module = build_model(
        config.model,
        hidden=config.hidden,
        features=config.features,
        num_classes=dataset.num_classes,
        pool=pool,
    )
    task = build_task(module, dataset)
    check_step(config, task, cluster)
    if cluster.is_writer and run is None:
        run = RunDirectory.create(config.output, NAME, config.seed, config)
    advice = f"continue with python -m experiments.{NAME} --resume {run.path if run else 'RUN_DIR'}"
    print(
        f"{dataset.name}: {len(dataset.train.labels):,} training images; {config.model} with "
        f"{report.count_parameters(task):,} parameters; {config.num_directions} "
        f"{config.directions} directions ({config.stencil}), sigma {config.sigma:g}\n"
        f"writing {run.path if run else 'nothing'}",
        flush=True,
    )
    try:
        result = train(config, task, run, cluster)
        if run is None:
            return
        report.write(config.seed, dataset, task, run, result)
        if config.baseline:
            twin = train_baseline(config, task)
            report.write(config.seed, dataset, task, run, result, twin)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(advice) from None
    except jax.errors.JaxRuntimeError as error:
        raise distributed.describe(error, advice) from error
    print(f"figures: {run.figures_dir}\nsummary: {run.path / 'summary.json'}", flush=True)


def main() -> None:
    """Runs the command line."""
    config = cli.parse(Config, None, PRESETS)
    with distributed.session(config.where) as cluster:
        run_experiment(config, cluster)


if __name__ == "__main__":
    run_cli(main)
