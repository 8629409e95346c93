"""Searchers and schedulers by name, and how one searches a function that costs nothing."""

import importlib.util
import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import optuna

from experiments.lib.errors import UserError
from experiments.lib.tune_samplers import EvolutionStrategySampler, ParticleSwarmSampler
from experiments.lib.tune_space import Space, from_unit
from experiments.lib.tune_training import NUM_UNITS

SamplerName = Literal["grid", "random", "tpe", "gp", "cmaes", "nsga2", "pso", "zojax_es"]
"""Search algorithms: what proposes configurations."""
PrunerName = Literal["none", "halving", "hyperband"]
"""Schedulers: what stops trials early."""

SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)
PRUNERS: tuple[PrunerName, ...] = get_args(PrunerName)
POPULATION = 8
"""Of the evolution strategy, the particle swarm and NSGA-II: budgets are tens of trials."""
_GRID_POINTS = 3
_REDUCTION = 4  # of trials from rung to rung, as in ASHA (Li et al. 2020, arXiv:1810.05934)


def silence_optuna() -> None:
    """Leaves the output to us: no line per trial, no warning that a feature is experimental."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def check_sampler(name: SamplerName, space: Space, num_trials: int) -> None:
    """Refuses what cannot be sampled.

    Args:
        name: The sampler.
        space: The search space.
        num_trials: Trials that are asked for.

    Raises:
        UserError: If the sampler lacks a package, or its grid is too small.
    """
    if name == "gp" and importlib.util.find_spec("torch") is None:
        raise UserError(
            "the Gaussian-process sampler needs torch: install the extra with "
            "`pip install -e '.[tune-gp]'`, or use another sampler, such as --sampler tpe"
        )
    if name == "grid" and num_trials >= _GRID_POINTS ** len(space):
        raise UserError(
            f"the grid has {_GRID_POINTS ** len(space)} points, so it serves fewer trials than "
            f"that, not {num_trials}: use another sampler for more"
        )


def build_sampler(name: SamplerName, space: Space, seed: int, skip: int = 0) -> Any:
    """Builds a sampler.

    Args:
        name: One of `SAMPLERS`.
        space: The search space.
        seed: Of its random numbers.
        skip: Differs between the processes of a study and after it was resumed, so that a sampler
            that keeps random numbers of its own does not repeat its proposals.
    """
    own = int(np.random.SeedSequence([seed, skip]).generate_state(1)[0])
    if name == "random":
        return optuna.samplers.RandomSampler(seed=own)
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=own, multivariate=True)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=own, deterministic_objective=True)
    if name == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=own, with_margin=True)
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=own, population_size=POPULATION)
    # The others keep what they need in the storage, so their seed stays.
    if name == "pso":
        return ParticleSwarmSampler(space, seed, POPULATION)
    if name == "zojax_es":
        return EvolutionStrategySampler(space, seed, POPULATION)
    middles = (np.arange(_GRID_POINTS) + 0.5) / _GRID_POINTS
    points = [from_unit([x] * len(space), space) for x in middles]
    return optuna.samplers.GridSampler({n: [p[n] for p in points] for n in space}, seed=seed)


def build_pruner(name: PrunerName) -> optuna.pruners.BasePruner:
    """Builds a pruner for reports in units of training: a quarter goes on at each power of four.

    Args:
        name: One of `PRUNERS`.
    """
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=_REDUCTION)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=1, max_resource=NUM_UNITS, reduction_factor=_REDUCTION
        )
    return optuna.pruners.NopPruner()


def search(
    sampler: SamplerName,
    pruner: PrunerName,
    space: Space,
    curve: Callable[[Mapping[str, Any]], Iterable[tuple[int, float]]],
    budget: int,
    seed: int,
) -> list[tuple[int, float, bool]]:
    """Runs one study in memory, where scores are looked up or computed at once.

    Args:
        sampler: Proposes configurations.
        pruner: Stops their training.
        space: The search space.
        curve: Maps a configuration to its scores, as pairs (units spent, score); a score that is
            not finite fails the trial.
        budget: Units to spend; the last trial may go beyond.
        seed: Of the sampler, and of Hyperband's brackets.

    Returns:
        For every trial that ended: the units spent in all by then, and the best score of a
        *complete* trial so far (infinity before there is one), and whether this one is complete.
    """
    study = optuna.create_study(
        study_name=f"replay-{seed}",
        sampler=build_sampler(sampler, space, seed),
        pruner=build_pruner(pruner),
    )
    history: list[tuple[int, float, bool]] = []
    spent, best = 0, float("inf")
    while spent < budget:
        trial = study.ask(dict(space))
        outcome = _train(trial, curve(trial.params))
        spent += outcome["units"]
        study.tell(trial, outcome["value"], outcome["state"])
        if outcome["value"] is not None:
            best = min(best, outcome["value"])
        history.append((spent, best, outcome["value"] is not None))
    return history


def _train(trial: Any, curve: Iterable[tuple[int, float]]) -> dict[str, Any]:
    """Follows a learning curve until its end, a bad score, or the pruner's word."""
    states, units, value = optuna.trial.TrialState, 0, None
    steps = list(curve)
    for units, value in steps:
        if not np.isfinite(value):
            return {"units": units, "value": None, "state": states.FAIL}
        trial.report(value, units)
        if units < steps[-1][0] and trial.should_prune():
            return {"units": units, "value": None, "state": states.PRUNED}
    return {"units": units, "value": value, "state": states.COMPLETE}


def contestants() -> dict[str, tuple[SamplerName, PrunerName]]:
    """Returns all pairs of searcher and scheduler that are compared, by the name of the pair."""
    plain = ((name, "none") for name in SAMPLERS)
    early = (("random", "halving"), ("random", "hyperband"), ("tpe", "hyperband"))
    pairs = itertools.chain(plain, early)
    return {s if p == "none" else f"{s}+{p}": (s, p) for s, p in pairs}  # type: ignore[misc]
