"""Live studies of `experiments.tune`: trials that train, in processes that share one storage."""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from experiments.lib import tune_checkpoints
from experiments.lib.compilation_cache import keep_compiled_programs
from experiments.lib.data import load_dataset
from experiments.lib.errors import UserError
from experiments.lib.tune_searchers import build_pruner, build_sampler, silence_optuna
from experiments.lib.tune_space import TRAINING_SPACE
from experiments.lib.tune_training import NUM_UNITS, RUNGS, Trainable, build_tuning_task

INTERRUPTED = "interrupted"
"""User attribute of a trial whose process ended; another trial continues it."""
REASON = "reason"
"""User attribute of a failed trial: why it failed."""
_CONTINUES = "continues"  # number of the first trial of this configuration


@dataclasses.dataclass
class _Member:
    """A running trial, with its network between two rungs."""

    trial: optuna.Trial
    state: Any
    units: int


def open_study(config: Any, folder: Path, worker: int = 0) -> optuna.Study:
    """Opens the study of a run, or creates it.

    Args:
        config: The configuration.
        folder: Of the run; the SQLite file `study.db` is in it.
        worker: Number of this process.
    """
    silence_optuna()
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{folder / 'study.db'}", engine_kwargs={"connect_args": {"timeout": 60}}
    )
    pruner = build_pruner(config.pruner)
    study = optuna.create_study(
        study_name="tune", storage=storage, load_if_exists=True, pruner=pruner
    )
    skip = 1 + worker + 1000 * len(study.trials)
    study.sampler = build_sampler(config.sampler, TRAINING_SPACE, config.seed, skip)
    return study


def continue_interrupted(study: optuna.Study, folder: Path) -> int:
    """Fails the trials that a dead process left running, and enqueues their continuations.

    A continuation has the same configuration, keeps the reports and the sampler's notes, and goes
    on from the checkpoint.

    Args:
        study: The study; no process may be working on it.
        folder: Of the run.

    Returns:
        How many trials there were.
    """
    interrupted = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in interrupted:
        attrs = {_CONTINUES: trial.number, **trial.user_attrs}
        study._storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)
        study._storage.set_trial_user_attr(trial._trial_id, REASON, "its process ended")
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        if len(trial.params) < len(TRAINING_SPACE):
            continue  # It was not even sampled; another trial takes its place.
        _, units = tune_checkpoints.load(folder, attrs[_CONTINUES])
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs=attrs,
                system_attrs=trial.system_attrs,
                # The checkpoint's own report comes again.
                intermediate_values={
                    u: v for u, v in trial.intermediate_values.items() if u < units
                },
            )
        )
    return len(interrupted)


def run_workers(config: Any, folder: Path) -> None:
    """Works until the study has all its trials.

    Args:
        config: The configuration.
        folder: Of the run.

    Raises:
        UserError: If a worker process died.
    """
    if config.workers == 1:
        work(config, folder, 0, threading.Lock())
        return
    context = multiprocessing.get_context("spawn")  # JAX does not survive a fork
    lock = context.Lock()
    arguments = [(config, folder, i, lock) for i in range(config.workers)]
    workers = [context.Process(target=_work_as_child, args=a, daemon=True) for a in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        codes = ", ".join(str(worker.exitcode) for worker in workers)
        raise UserError(
            f"a worker ended before its time (exit codes: {codes}); its trials go on with "
            f"`python -m experiments.tune --resume {folder}`"
        )


def _work_as_child(config: Any, folder: Path, worker: int, lock: Any) -> None:
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()  # type: ignore[union-attr]
        os._exit(1)  # whoever resumes the study must be alone with it

    threading.Thread(target=follow, daemon=True).start()
    keep_compiled_programs()
    with contextlib.suppress(KeyboardInterrupt):  # the parent says how to resume
        work(config, folder, worker, lock)


def work(config: Any, folder: Path, worker: int, lock: Any) -> None:
    """Asks for batches of trials and trains them, until there are enough.

    Args:
        config: The configuration.
        folder: Of the run.
        worker: Number of this process.
        lock: Held while asking, so that no two processes get the same place in a study.
    """
    study = open_study(config, folder, worker)
    dataset = load_dataset(config.dataset, config.data_dir)
    task = build_tuning_task(dataset, config.hidden, config.pool)
    trainable = Trainable(task, config.batch_size, config.steps_per_unit, config.seed)
    while True:
        with lock:
            trials = study.get_trials(deepcopy=False)
            begun = [t for t in trials if is_counted(t) and t.state != TrialState.WAITING]
            count = min(config.batch, config.num_trials - len(begun))
            asked = [study.ask(dict(TRAINING_SPACE)) for _ in range(count)]
        if not asked:
            return
        members = [_start(trial, trainable, folder) for trial in asked]

        def shape(member: _Member) -> tuple[int, int]:
            return member.trial.params["log2_directions"], member.units

        for _, group in itertools.groupby(sorted(members, key=shape), shape):
            _train(study, trainable, list(group), folder)


def is_counted(trial: FrozenTrial) -> bool:
    """Returns whether a trial counts; one that another trial continues does not."""
    return INTERRUPTED not in trial.user_attrs


def _start(trial: optuna.Trial, trainable: Trainable, folder: Path) -> _Member:
    state = jax.tree.map(lambda x: x[0], trainable.init(1))
    leaves, units = tune_checkpoints.load(folder, _first_number(trial))
    if leaves is not None:
        state = jax.tree.unflatten(jax.tree.structure(state), leaves)
    return _Member(trial, state, units)


def _train(study: optuna.Study, trainable: Trainable, group: list[_Member], folder: Path) -> None:
    """Trains trials of one shape from rung to rung; who is pruned or fails drops out."""
    stop = group[0].units or RUNGS[0]  # a continued trial reports its checkpoint again
    while group:
        try:
            scores = _advance(trainable, group, stop)
        except Exception as error:  # Whatever it is, the other trials of the study go on.
            for member in group:
                _finish(study, member, folder, TrialState.FAIL, f"{type(error).__name__}: {error}")
            return
        group = _report(study, group, scores, folder)
        stop = next((rung for rung in RUNGS if rung > stop), NUM_UNITS)


def _advance(trainable: Trainable, group: Sequence[_Member], stop: int) -> np.ndarray:
    """Trains a group up to a rung and returns the scores there."""
    state = jax.tree.map(lambda *rows: np.stack(rows), *(m.state for m in group))
    state = trainable.advance(state, [m.trial.params for m in group], group[0].units, stop)
    for row, member in enumerate(group):
        member.state, member.units = jax.tree.map(lambda x, row=row: x[row], state), stop
    return trainable.score(state)


def _report(
    study: optuna.Study, group: Sequence[_Member], scores: np.ndarray, folder: Path
) -> list[_Member]:
    """Reports the scores of a rung; returns who goes on."""
    going_on = []
    for member, score in zip(group, scores.tolist(), strict=True):
        # First, so that nothing is reported that a kill can take away.
        tune_checkpoints.save(folder, _first_number(member.trial), member.state, member.units)
        member.trial.report(score, member.units)
        if not np.isfinite(score):
            _finish(study, member, folder, TrialState.FAIL, f"the score became {score}")
        elif member.units == NUM_UNITS:
            _finish(study, member, folder, TrialState.COMPLETE, value=score)
        elif member.trial.should_prune():
            _finish(study, member, folder, TrialState.PRUNED)
        else:
            going_on.append(member)
    return going_on


def _finish(
    study: optuna.Study,
    member: _Member,
    folder: Path,
    state: TrialState,
    reason: str = "",
    value: float | None = None,
) -> None:
    if reason:
        member.trial.set_user_attr(REASON, reason)
    done = study.tell(member.trial, value, state)
    tune_checkpoints.remove(folder, _first_number(member.trial))
    shown = " ".join(f"{name} {value:.3g}" for name, value in done.params.items())
    score = reason if state == TrialState.FAIL else f"{done.value:.4f}"
    print(
        f"trial {done.number:3d} {state.name.lower():8s} {member.units:2d}/{NUM_UNITS}  "
        f"{score}  {shown}",
        flush=True,
    )


def _first_number(trial: optuna.Trial) -> int:
    """Returns the number of the trial that this one continues, or its own."""
    return int(trial.user_attrs.get(_CONTINUES, trial.number))
