"""Evaluates the robustness of a model you own: attacks that ask it and do not differentiate.

    python -m experiments.attack

Attacks a network that it trains (and keeps), or your own function: --oracle mymodels.api:predict.
Expected numbers: see docs/results/attack.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.lib import attack_problem, attack_runs, attack_universal, attack_victims, cli
from experiments.lib.attack_oracles import AnswersName
from experiments.lib.attack_outputs import Outputs
from experiments.lib.attack_runs import Task
from experiments.lib.attack_suite import SUITE, UNIVERSAL, WHITE_BOX, AttackName
from experiments.lib.attack_victims import VictimName
from experiments.lib.compilation_cache import keep_compiled_programs
from experiments.lib.data import DatasetName
from experiments.lib.errors import UserError, run_cli
from experiments.lib.runs import RunDirectory, check_same_config
from zojax.attacks import AttackInterrupted
from zojax.blackbox import OracleError

NAME = "attack"


@dataclasses.dataclass(frozen=True)
class Config:
    """Evaluates the robustness of a model you own, by attacks that only ask it.

    The first images of the test part are attacked, the misclassified ones included: these cost one
    query and count as neither success nor failure. Every attack gets a fresh oracle, which counts
    every row that the model receives and never exceeds the budget. Writes
    runs/attack/<time>-<seed>/ with config.json, table.md, summary.json, figures/, and the results
    of each attack.
    """

    preset: Literal["default", "scores", "zoo", "labels", "universal"] = "default"
    """default: a few attacks on a small network, about a minute on two cores. scores: linf, from
    scores, on a convolutional network. zoo: least l2 distortion, from scores, beside a white-box
    attack. labels: least l2 distortion, from labels, on the network of the publications; an hour.
    universal: one perturbation for ten images."""

    dataset: DatasetName = "auto"
    """auto is mnist where it is prepared, else scikit-learn's digits."""
    data_dir: str | None = None
    """Folder with prepared data; then $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    victim: VictimName = "mlp"
    """The network that is trained and attacked. mlp: 256 and 128 units. cnn: two convolutions.
    conv: four, conv32-32-pool-conv64-64-pool-fc200-200."""
    victim_epochs: int | None = None
    """Of its training; by default 3 to 5, 100 for digits. It is kept in OUTPUT/attack-victims."""

    oracle: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """A function of your own instead: float32 (b, ...) in [0, 1] to what --answers says."""
    answers: AnswersName = "scores"
    """What the model answers. scores: (b, classes), logits or log-probabilities. labels: (b,)."""
    images: Annotated[str | None, tyro.conf.arg(metavar="FILE.npz")] = None
    """Images to attack instead of the data set's: x (n, ...) in [0, 1] and integers y (n,)."""
    batch_size: int | None = None
    """Rows per call of the model at most; None for no bound."""
    timeout: float | None = None
    """Seconds per call; None waits for ever."""
    retries: int = 0
    """How often rows that got no answer are sent again; each time counts."""
    min_interval: float = 0.0
    """Seconds between the starts of two calls."""

    attacks: tuple[AttackName, ...] = ("sign_hunter", "square", "nes", "hop_skip_jump_linf")
    """Which attacks. Without a suffix they are of linf, zoo, sign_opt, hop_skip_jump and universal
    ones of l2. latent: on a grid of half the height and width. carlini_wagner: with the gradient of
    the victim, a white-box reference."""
    num_images: int = 20
    """Images to attack."""
    budget: int | None = 1000
    """Queries per image and attack at most; None for no bound."""
    eps: float = 0.3
    """Radius in linf."""
    eps_l2: float = 3.0
    """Radius in l2."""
    targeted: bool = False
    """Each image shall be given a random wrong class, instead of any wrong class."""
    universal_label: int = 4
    """Class of the images of which universal perturbations are made; then of all classes."""
    milestones: tuple[int, ...] = ()
    """Numbers of queries at which distortions are noted; by default a grid up to the budget."""

    seed: int = 0
    """Of the victim and of the attacks."""
    output: str = "runs"
    """Folder for runs."""
    resume: Annotated[str | None, tyro.conf.arg(metavar="RUN_DIR")] = None
    """Continue an interrupted run: only images that are not finished are attacked."""

    def __post_init__(self) -> None:
        """Checks what no library below checks before training."""
        if not self.attacks or len(set(self.attacks)) < len(self.attacks):
            raise ValueError("attacks must name at least one, and each only once")
        for name in ("num_images", "budget", "batch_size", "victim_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        for name in ("eps", "eps_l2", "timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be > 0 and finite, got {value}")
        for name in ("retries", "min_interval", "universal_label"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be >= 0 and finite, got {getattr(self, name)}")
        if any(a >= b for a, b in zip((0, *self.milestones), self.milestones, strict=False)):
            raise ValueError(f"milestones must be >= 1 and increase, got {self.milestones}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in [0, 2^32), got {self.seed}")
        for name in self.attacks:
            if name == WHITE_BOX and self.oracle:
                raise ValueError(f"{name} needs gradients, which a function of yours has not")
            if self.answers == "labels" and SUITE[name].needs_scores and name != WHITE_BOX:
                raise ValueError(f"{name} needs scores, but --answers is labels")


PRESETS: dict[str, dict[str, Any]] = {
    "scores": {
        "victim": "cnn",
        "num_images": 100,
        "attacks": (
            "sign_hunter",
            "square",
            "simba",
            "nes",
            "zo_sign_sgd",
            "zo_adamm",
            "hop_skip_jump_linf",
        ),
    },
    "zoo": {
        "budget": None,
        "attacks": (
            "zoo_adam",
            "zoo_newton",
            "zoo_adam_latent",
            "zoo_newton_latent",
            "carlini_wagner",
        ),
    },
    "labels": {
        "victim": "conv",
        "answers": "labels",
        "num_images": 100,
        "budget": 14_000,
        "eps_l2": 1.5,
        "milestones": (1_000, 2_000, 4_000, 8_000, 14_000),
        "attacks": ("sign_opt", "hop_skip_jump"),
    },
    "universal": {"budget": 20_000, "attacks": ("universal_adamm", "universal_svrg")},
}


def run_attacks(config: Config, problem: attack_problem.Problem, task: Task, run: Outputs) -> None:
    """Runs every attack that is not finished; the table is written after each.

    Args:
        config: The configuration.
        problem: Model and images.
        task: What attacks on single images are given.
        run: Where everything goes.
    """
    everything = task._replace(images=problem.split.images, labels=problem.split.labels)
    sets = attack_universal.image_sets(problem.split.labels, config.universal_label)
    for name in config.attacks:
        if name not in UNIVERSAL:
            run.add(name, attack_runs.run_attack(name, task, run.path_of(name)))
            continue
        target = attack_problem.universal_target(problem)
        for images, places in sets.items():
            path = run.path_of(f"{name}-{images.replace(' ', '-')}")
            record = attack_universal.run(name, everything, places, target, path)
            run.add_universal(name, images, record)


def run_experiment(config: Config) -> RunDirectory:
    """Runs everything that is not finished.

    Args:
        config: The command line.
    """
    run, stored_images = None, None
    if config.resume:
        run = RunDirectory.open_existing(config.resume)
        config = stored_config(run)
        stored_images = run.path / "images.npz"
    problem = attack_problem.read(config, stored_images)
    config = problem.config
    if run is None:
        run = RunDirectory.create(config.output, NAME, config.seed, config)
        attack_problem.keep_images(problem, run.path / "images.npz")
    print(f"writing {run.path}", flush=True)
    victim = None
    if problem.function is None:
        folder = Path(config.output) / "attack-victims"
        arguments = (problem.dataset, config.seed, config.victim_epochs, folder)
        victim = attack_victims.load_or_train(config.victim, *arguments)
    task = attack_problem.task_of(problem, victim)
    outputs = Outputs(run, config, task)
    advice = f"continue with python -m experiments.{NAME} --resume {run.path}"
    try:
        run_attacks(config, problem, task, outputs)
    except (AttackInterrupted, OracleError) as error:
        cause = error.__cause__ if isinstance(error, AttackInterrupted) else error
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt(advice) from None
        raise UserError(f"{cause}; finished images are kept, {advice}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(advice) from None
    outputs.finish()
    return run


def stored_config(run: RunDirectory) -> Config:
    """Returns the configuration of a run to resume, checked against the command line.

    Args:
        run: The folder of the run.
    """
    stored: Mapping[str, Any] = run.read_config()
    try:
        config = Config(**stored)
    except (TypeError, ValueError) as error:
        raise UserError(f"{run.path} is a run of another version: {error}") from error
    requested = cli.parse(Config, None, PRESETS, defaults=config)
    ignored = {"resume", "output", "data_dir", "timeout", "retries", "min_interval", "batch_size"}
    check_same_config(stored, dataclasses.asdict(requested), ignore=ignored)
    return requested


def main() -> None:
    """Runs the command line."""
    config = cli.parse(Config, None, PRESETS)
    keep_compiled_programs()
    run_experiment(config)


if __name__ == "__main__":
    run_cli(main)
