"""What a run of `experiments.attack` attacks: a model, and the images it is asked about."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.lib import attack_oracles, attack_store, attack_victims
from experiments.lib.attack_oracles import AnswersName, Function, Limits
from experiments.lib.attack_runs import Task
from experiments.lib.attack_suite import SUITE, UNIVERSAL, Setting
from experiments.lib.attack_universal import NUM_IMAGES, image_sets
from experiments.lib.attack_victims import Victim
from experiments.lib.data import Dataset, Split, load_dataset
from experiments.lib.errors import UserError
from zojax import attacks

_NUM_STARTS = 500  # images from which targeted hard-label attacks may start
_NUM_MILESTONES = 40
_LONGEST = 200_000  # queries, where milestones end without a budget


class Problem(NamedTuple):
    """Model and images, before anything is trained or asked.

    Attributes:
        config: With nothing left open.
        function: The user's model, None for a victim.
        dataset: Of the victim, or of the images; None if neither needs one.
        split: Images to attack, and more for universal perturbations.
        starts: Images from which targeted hard-label attacks start.
    """

    config: Any
    function: Function | None
    dataset: Dataset | None
    split: Split
    starts: Split


def read(config: Any, folder: Path | None) -> Problem:
    """Imports, loads and checks everything; asks and trains nothing.

    Args:
        config: Of the experiment.
        folder: Of the run that is resumed, which keeps images that came from a file.

    Raises:
        UserError: For whatever does not fit together.
    """
    function = attack_oracles.import_function(config.oracle) if config.oracle else None
    dataset = None
    if function is None or config.images is None:
        dataset = load_dataset(config.dataset, config.data_dir)
        if dataset.note:
            print(f"NOTE: {dataset.note}", flush=True)
    if config.images is None:
        split, starts = dataset.test, dataset.validation
    else:
        split = starts = attack_oracles.load_images(str(folder or config.images))
    if dataset is not None:
        config = dataclasses.replace(config, dataset=dataset.name)
    if function is None:
        _check_victim(config, dataset, split)
        epochs = attack_victims.num_epochs(config.victim, dataset, config.victim_epochs)
        config = dataclasses.replace(config, victim_epochs=epochs)
    _check_images(config, split)
    return Problem(config, function, dataset, split, starts)


def keep_images(problem: Problem, path: Path) -> None:
    """Copies images that came from a file, so that the run can be resumed without it.

    Args:
        problem: Of the run.
        path: An npz file.
    """
    if problem.config.images is not None:
        attack_store.save(path, x=problem.split.images, y=problem.split.labels)


def task_of(problem: Problem, victim: Victim | None) -> Task:
    """Returns what attacks on single images are given.

    Args:
        problem: Of the run.
        victim: The trained model, if there is no function of the user's.
    """
    config, split = problem.config, problem.split
    images, labels = split.images[: config.num_images], split.labels[: config.num_images]
    targets = None
    if config.targeted:
        # Any class but the true one, equally likely.
        shifts = np.random.RandomState(config.seed).randint(1, _num_classes(problem), len(labels))
        targets = ((labels + shifts) % _num_classes(problem)).astype(np.int32)
    starts = problem.starts
    initial = None
    if config.targeted:
        initial = attacks.class_examples(starts.images[:_NUM_STARTS], starts.labels[:_NUM_STARTS])
    function = problem.function
    if victim is not None:
        function = victim.answer if config.answers == "scores" else _labels_of(victim)
    return Task(
        images=images,
        labels=labels,
        targets=targets,
        function=function,
        limits=_limits(config, None if victim is None else victim.num_classes),
        budget=config.budget,
        milestones=_milestones(config),
        setting=Setting(config.eps, config.eps_l2, images.shape[1:], initial),
        seed=config.seed,
        victim=victim,
    )


def universal_target(problem: Problem) -> int | None:
    """Returns the class that a targeted universal perturbation shall reach.

    Args:
        problem: Of the run.
    """
    if not problem.config.targeted:
        return None
    return (problem.config.universal_label + 1) % _num_classes(problem)


def _num_classes(problem: Problem) -> int:
    if problem.config.images is None:
        return problem.dataset.num_classes
    return int(problem.split.labels.max()) + 1


def _limits(config: Any, num_classes: int | None) -> Limits:
    answers: AnswersName = config.answers
    options = (config.batch_size, config.timeout, config.retries, config.min_interval)
    return Limits(answers, num_classes, *options)


def _milestones(config: Any) -> tuple[int, ...]:
    if config.milestones:
        return config.milestones
    last = config.budget or _LONGEST
    grid = np.unique(np.geomspace(1, last, _NUM_MILESTONES).round().astype(int))
    return tuple(grid.tolist())


def _labels_of(victim: Victim) -> Function:
    return lambda batch: victim.answer(batch).argmax(axis=1)


def _check_victim(config: Any, dataset: Dataset, split: Split) -> None:
    attack_victims.check_size(config.victim, dataset)
    shape = dataset.test.images.shape[1:]
    if split.images.shape[1:] != shape:
        raise UserError(
            f"--images {config.images}: a victim of {dataset.name} takes images of shape {shape}, "
            f"got {split.images.shape[1:]}; name a model of your own with --oracle"
        )
    if split.labels.max() >= dataset.num_classes:
        raise UserError(
            f"--images {config.images}: y must be below {dataset.num_classes}, the number of "
            f"classes, got {split.labels.max()}"
        )


def _check_images(config: Any, split: Split) -> None:
    if config.num_images > len(split.labels):
        raise UserError(
            f"num_images must be at most {len(split.labels):,}, the images there are, got "
            f"{config.num_images:,}"
        )
    if config.targeted and config.images and split.labels.max() < 1:
        raise UserError(f"--images {config.images}: all are of class 0, so there is no target")
    shape = split.images.shape[1:]
    for name in config.attacks:
        if SUITE[name].needs_image and len(shape) not in (2, 3):
            raise UserError(
                f"{name} needs images of shape (h, w) or (h, w, channels), got shape {shape}"
            )
        if name in UNIVERSAL:
            for what, places in image_sets(split.labels, config.universal_label).items():
                if len(places) < NUM_IMAGES:
                    raise UserError(
                        f"{name} needs {NUM_IMAGES} images of {what}, there are {len(places)}; "
                        "choose another universal_label"
                    )
