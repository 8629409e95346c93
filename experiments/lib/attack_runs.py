"""Runs one attack after the other, each with a fresh oracle, and keeps whatever it found."""

import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console

from experiments.lib import attack_store, attack_white_box
from experiments.lib.attack_oracles import Function, Limits, Timed, build_oracle
from experiments.lib.attack_store import Record
from experiments.lib.attack_suite import SUITE, WHITE_BOX, Setting
from experiments.lib.attack_victims import Victim
from zojax import attacks
from zojax.attacks import AttackInterrupted, Results
from zojax.blackbox import Oracle

_LINE_EVERY = 10.0  # seconds, where there is no terminal


class Task(NamedTuple):
    """What is attacked.

    Attributes:
        images: (b, ...) in [0, 1].
        labels: True classes, (b,).
        targets: Classes to be reached, (b,); None if untargeted.
        function: The model.
        limits: How it may be called.
        budget: Queries per image, None for no bound.
        milestones: Numbers of queries at which the distortion is noted.
        setting: Of the attacks.
        seed: Of the attacks.
        victim: The model, if it was trained here.
    """

    images: np.ndarray
    labels: np.ndarray
    targets: np.ndarray | None
    function: Function
    limits: Limits
    budget: int | None
    milestones: tuple[int, ...]
    setting: Setting
    seed: int
    victim: Victim | None


class Ticker:
    """What the user sees while an attack runs: a live line on a terminal, else plain ones."""

    def __init__(self, name: str, total: int | None = None) -> None:
        """Starts the clock.

        Args:
            name: Of the attack.
            total: Images under attack; None where they are attacked as one.
        """
        self._name = name
        self._total = total
        self._start = self._last = time.perf_counter()
        console = Console()
        self._status = console.status("") if console.is_terminal else None
        if self._status is not None:
            self._status.start()

    def __call__(self, finished: int, rows: int) -> None:
        """Shows how far the attack is.

        Args:
            finished: Images that are.
            rows: Queries so far.
        """
        now = time.perf_counter()
        done = "" if self._total is None else f"{finished}/{self._total} images finished, "
        line = f"{self._name}: {done}{rows:,} queries, {now - self._start:.0f} s"
        if self._status is not None:
            self._status.update(line)
        elif now - self._last > _LINE_EVERY:
            self._last = now
            print(line, flush=True)

    def stop(self) -> None:
        """Leaves the terminal as it was."""
        if self._status is not None:
            self._status.stop()


def run_attack(name: str, task: Task, path: Path) -> Record:
    """Attacks every image that is not finished, and saves what is found, even if interrupted.

    Args:
        name: In the suite; not a universal attack.
        task: What is attacked.
        path: The attack's file.

    Raises:
        AttackInterrupted: After saving, if the oracle raises or the user interrupts.
    """
    before = attack_store.load_record(path)
    if before is not None and not before.unfinished.any():
        return before
    if name == WHITE_BOX:
        record = attack_white_box.run(task.victim, task.images, task.labels, task.targets)
        attack_store.save_record(path, record)
        return record
    places = np.arange(len(task.images)) if before is None else np.flatnonzero(before.unfinished)
    try:
        record, interruption = _attempt(name, task, places), None
    except _InterruptedError as error:
        record, interruption = error.record, error.cause
    if before is not None:
        record = attack_store.merge(before, record)
    attack_store.save_record(path, record)
    if interruption is not None:
        raise interruption
    return record


class _InterruptedError(Exception):
    """Carries what was found out of an attempt."""

    def __init__(self, record: Record, cause: AttackInterrupted) -> None:
        super().__init__()
        self.record = record
        self.cause = cause


def _attempt(name: str, task: Task, places: np.ndarray) -> Record:
    attack = SUITE[name].build(task.setting)
    timed = Timed(task.function)
    oracle = build_oracle(timed, task.limits, task.budget)
    targets = None if task.targets is None else task.targets[places]
    ticker, began = Ticker(name, len(places)), time.perf_counter()
    last_step = _LastStep(oracle, ticker, len(places))
    key = jax.random.key(task.seed)
    try:
        results = attacks.run(
            attack,
            oracle,
            task.images[places],
            task.labels[places],
            key,
            targets=targets,
            milestones=task.milestones,
            progress=last_step,
        )
    except AttackInterrupted as error:
        unfinished = _unfinished(error.results, SUITE[name].minimises, last_step.took_part)
        seconds = time.perf_counter() - began
        record = Record(error.results, unfinished, seconds, timed.seconds)
        raise _InterruptedError(record, error) from error
    finally:
        ticker.stop()
    return Record(results, np.zeros(len(places), bool), time.perf_counter() - began, timed.seconds)


class _LastStep:
    """Remembers which images took part in the last whole step."""

    def __init__(self, oracle: Oracle, ticker: Ticker, num_images: int) -> None:
        self._oracle = oracle
        self._ticker = ticker
        self._total = np.zeros(num_images, np.int64)
        self.took_part = np.ones(num_images, bool)

    def __call__(self, finished: int, rows: int) -> None:
        total = np.zeros_like(self._total)
        counts = self._oracle.counts.total
        total[: len(counts)] = counts
        self.took_part, self._total = total > self._total, total
        self._ticker(finished, rows)


def _unfinished(results: Results, minimises: bool, took_part: np.ndarray) -> np.ndarray:
    """Which images are to be attacked again, bool (b,).

    The results of an interrupted attack do not say whether the search for a nearer adversarial
    input was over. It was for images that had left before the last step.
    """
    waiting = results.status == "interrupted"
    return waiting | (results.success & took_part) if minimises else waiting
