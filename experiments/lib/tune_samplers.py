"""Optuna samplers that Optuna lacks: particle swarm, and zojax's evolution strategy.

Both keep all their state in the storage, as system attributes of the trials, so that a study goes
on after a kill, and so that several processes can sample for it. Trial number i belongs to slot
i mod population of generation i // population; a trial that was interrupted hands its place on to
the trial that continues it.
"""

import abc
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

import zojax
from experiments.lib.tune_space import Space, from_unit

_PLACE = "tune:place"  # generation and slot


class _PopulationSampler(BaseSampler, abc.ABC):
    """What the two samplers share: places in generations, and what came of them."""

    def __init__(self, space: Space, seed: int, population: int) -> None:
        """Prepares the sampler.

        Args:
            space: What every trial of the study samples.
            seed: Two samplers with one seed propose the same after the same results.
            population: Trials per generation.
        """
        self._space, self._population = space, population
        self._key = jax.random.key(seed)
        self._independent = RandomSampler(seed=seed)  # for parameters that are not in the space

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Returns the whole space."""
        return dict(self._space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """Samples at random what is not in the space."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Proposes the configuration of a trial, and stores what it was made from."""
        if _PLACE in trial.system_attrs:  # it continues another one, parameters and all
            return {}
        generation, slot = divmod(trial.number, self._population)
        # Not study.get_trials: with Hyperband that shows a single bracket.
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        placed = {tuple(t.system_attrs[_PLACE]): t for t in trials if _PLACE in t.system_attrs}
        point, notes = self._propose(generation, slot, placed)
        for name, value in {_PLACE: [generation, slot], **notes}.items():
            study._storage.set_trial_system_attr(trial._trial_id, name, value)
        return from_unit(point, self._space)

    @abc.abstractmethod
    def _propose(
        self, generation: int, slot: int, placed: dict[tuple[int, ...], FrozenTrial]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Returns a point of the unit cube, and system attributes to store with it.

        Args:
            generation: Of the new trial.
            slot: Of the new trial.
            placed: For every place so far the newest trial that holds it.
        """


@functools.cache
def _swarm(dimensions: int, population: int) -> Any:
    """Returns the compiled move of a swarm: its next positions, and the state with velocities."""
    from evosax.algorithms import PSO

    swarm = PSO(population_size=population, solution=jnp.zeros(dimensions))
    settings = swarm.default_params.replace(
        inertia_coeff=0.72, cognitive_coeff=1.49, social_coeff=1.49
    )

    @jax.jit
    def move(key: jax.Array, position: Any, velocity: Any, best: Any, value: Any) -> Any:
        state = swarm.init(key, best, value, settings)
        return swarm.ask(key, state.replace(population=position, velocity=velocity), settings)

    return move


class ParticleSwarmSampler(_PopulationSampler):
    """Particle swarm optimisation in the unit cube, by evosax.

    A particle moves as soon as its own last trial is done, to the best that is known by then; a
    trial without a value (failed) is no particle's best. First velocities are half the way to
    another random point: a particle at rest on the best point would stay there. Inertia 0.72, both
    accelerations 1.49 (Clerc and Kennedy 2002, doi:10.1109/4235.985692); positions are clipped to
    the cube.
    """

    def __init__(self, space: Space, seed: int, population: int = 8) -> None:
        """Prepares the sampler; see the arguments of the base class."""
        super().__init__(space, seed, population)
        self._move = _swarm(len(space), population)

    def _propose(
        self, generation: int, slot: int, placed: dict[tuple[int, ...], FrozenTrial]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        key = jax.random.fold_in(self._key, generation)
        shape = (2, self._population, len(self._space))
        first, towards = np.asarray(jax.random.uniform(self._key, shape))
        position, velocity, best = first.copy(), (towards - first) / 2, first.copy()
        value = np.full(self._population, np.inf, np.float32)
        for (_, s), trial in sorted(placed.items(), key=lambda item: item[0]):
            position[s], velocity[s] = trial.system_attrs["pso:particle"]
            if (found := _value(trial)) <= value[s]:
                best[s], value[s] = position[s], found
        point, speed = position[slot], velocity[slot]
        if generation:
            points, state = self._move(key, position, velocity, best, value)
            point = np.clip(np.asarray(points[slot]), 0.0, 1.0)
            speed = np.asarray(state.velocity[slot])
        return point, {"pso:particle": [point.tolist(), speed.tolist()]}


@functools.cache
def _strategy(population: int, sigma: float, learning_rate: float) -> Any:
    """Returns the compiled halves of a generation, and the initialisation of Adam."""
    est = zojax.evolution_strategy(num_directions=population // 2, sigma=sigma)
    tx = optax.adam(learning_rate)

    def noise_key(key: jax.Array, generation: Any) -> jax.Array:
        return jax.random.fold_in(key, 1 + generation)

    @jax.jit
    def ask(key: jax.Array, center: Any, generation: Any) -> Any:
        return zojax.ask(est, center, noise_key(key, generation), ())

    @jax.jit
    def step(key: jax.Array, center: Any, state: Any, generation: Any, values: Any) -> Any:
        estimate, _ = zojax.tell(est, center, noise_key(key, generation), (), values)
        updates, state = tx.update(estimate.grad, state, center)
        return jnp.clip(optax.apply_updates(center, updates), 0.0, 1.0), state

    return ask, step, jax.jit(tx.init)


class EvolutionStrategySampler(_PopulationSampler):
    """zojax's evolution strategy on the unit cube: antithetic Gaussian, centred ranks, Adam.

    A generation is a pair of `zojax.ask` and `zojax.tell`. Its centre is where Adam has come, from
    the middle of the cube, by the estimates of the generations that were complete when its first
    trial was proposed; that trial stores it. An estimate depends on the values and the noise
    alone, so a generation that is completed late (parallel trials) is used late. A trial without a
    value is dropped together with its antithetic partner. Salimans et al. 2017, arXiv:1703.03864.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        population: int = 8,
        sigma: float = 0.1,
        learning_rate: float = 0.05,
    ) -> None:
        """Prepares the sampler.

        Args:
            space: What every trial of the study samples.
            seed: Of the noise.
            population: Trials per generation, an even number.
            sigma: Standard deviation of a proposal around the centre, in units of the cube.
            learning_rate: Of Adam, in units of the cube.
        """
        super().__init__(space, seed, population)
        self._ask, self._step, self._init = _strategy(population, sigma, learning_rate)

    def _propose(
        self, generation: int, slot: int, placed: dict[tuple[int, ...], FrozenTrial]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        name = "zojax_es:center"
        siblings = [placed.get((generation, s)) for s in range(self._population)]
        centers = [t.system_attrs[name] for t in siblings if t is not None]
        center = np.float32(centers[0]) if centers else self._center(generation, placed)
        points = self._ask(self._key, center, generation)
        return np.asarray(points[slot]), {name: np.asarray(center).tolist()}

    def _center(self, generation: int, placed: dict[tuple[int, ...], FrozenTrial]) -> Any:
        """Replays Adam over the generations before this one that are complete."""
        center = jnp.full(len(self._space), 0.5)  # as Optuna's CMA-ES
        state = self._init(center)
        for earlier in range(generation):
            # A place without a trial was given to one that continued another: it stays empty.
            trials = [placed.get((earlier, s)) for s in range(self._population)]
            if all(t is None or t.state.is_finished() for t in trials):
                values = [np.inf if t is None else _value(t) for t in trials]
                center, state = self._step(
                    self._key, center, state, earlier, np.array(values, np.float32)
                )
        return center


def _value(trial: FrozenTrial) -> float:
    """Returns a trial's score: the last report of a pruned one, infinity for a failed one."""
    is_useful = trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.value is not None
    return trial.value if is_useful else np.inf  # type: ignore[return-value]
