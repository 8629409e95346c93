"""The loops of `experiments.self_tuning`: tuning during training, and training afresh."""

from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib.errors import UserError
from experiments.lib.progress import Progress
from experiments.lib.self_tuning_inner import OBJECTIVES, Data, Hyperparameters, InnerProblem
from zojax import estimators

Method = Literal["pes", "nres"]
_NAMES = ("sigma", "learning_rate", "l1")  # in the order of `Hyperparameters`
_RECORDED = (*_NAMES, "value", *OBJECTIVES)
_NUM_LINES = 5  # of progress per run


class Settings(Protocol):
    """What the loops read from the experiment's configuration."""

    method: Method
    num_pairs: int
    num_truncations: int
    outer_sigma: float
    outer_learning_rate: float
    outer_steps: int
    sigma: float
    learning_rate: float
    l1: float


class Tuner:
    """Adapts the hyperparameters of networks while these are trained."""

    def __init__(self, config: Settings, problem: InnerProblem) -> None:
        """Prepares the compiled outer steps.

        Args:
            config: The configuration.
            problem: The inner problem.
        """
        self._config = config
        self._est = getattr(estimators, config.method)(
            problem.unroll,
            problem.init,
            num_truncations=config.num_truncations,
            num_directions=config.num_pairs,
            sigma=config.outer_sigma,
        )
        rate = optax.cosine_decay_schedule(config.outer_learning_rate, config.outer_steps, 0.1)
        self._tx = optax.adam(rate)
        self._advance = jax.jit(self._make_steps)

    def run(self, objective: str, seed: int, data: Data) -> dict[str, Any]:
        """Tunes from the configured initial values.

        Args:
            objective: What the hyperparameters minimise, one of `OBJECTIVES`.
            seed: Of networks, batches and perturbations.
            data: What is trained and scored on.

        Returns:
            Per outer step: `sigma`, `learning_rate`, `l1` before it, its `value`, and the mean over
            the networks in training of both objectives; and `tuned`, the geometric means of the
            hyperparameters in the last quarter.

        Raises:
            UserError: If every network of a step diverged.
        """
        config, key = self._config, jax.random.key(seed)
        outer = Hyperparameters.of(config.sigma, config.learning_rate, config.l1)
        state = self._est.init(outer, jax.random.fold_in(key, 0))
        rows = {name: jnp.zeros(config.outer_steps) for name in _RECORDED}
        carry = (outer, self._tx.init(outer), state, rows)
        stops = np.linspace(0, config.outer_steps, _NUM_LINES + 1).astype(int)
        with Progress(config.outer_steps, objective) as progress:
            for start, stop in zip(stops[:-1], stops[1:], strict=True):
                index = OBJECTIVES.index(objective)
                carry = self._advance(carry, start, stop, key, data, index)
                values = np.asarray(carry[-1]["value"])[start:stop]
                if not np.isfinite(values).all():
                    raise UserError(
                        f"every network diverged by outer step {stop}: start from a lower "
                        "--learning-rate, or take a lower --outer-learning-rate"
                    )
                progress.update(int(stop), loss=float(values[-config.num_truncations :].mean()))
        rows = {name: np.asarray(values) for name, values in carry[-1].items()}
        settled = config.outer_steps * 3 // 4
        tuned = {name: float(np.exp(np.log(rows[name][settled:]).mean())) for name in _NAMES}
        return rows | {"tuned": tuned}

    def _make_steps(
        self, carry: Any, start: Any, stop: Any, key: Any, data: Data, objective: Any
    ) -> Any:
        def step(index: Any, carry: Any) -> Any:
            outer, opt_state, state, rows = carry
            step_key = jax.random.fold_in(key, index + 1)
            found, state = self._est.estimate(outer, step_key, state, data, objective)
            updates, opt_state = self._tx.update(found.grad, opt_state)
            # A pair at the beginning of an episode has networks that are not trained yet.
            running = jnp.broadcast_to((state.clock > 0)[:, None, None], state.inner.scores.shape)
            scores = jnp.mean(state.inner.scores, (0, 1), where=running)
            row = [*(jnp.exp(value) for value in outer), found.value, *scores]
            now = dict(zip(_RECORDED, row, strict=True))
            rows = {name: rows[name].at[index].set(now[name]) for name in _RECORDED}
            return optax.apply_updates(outer, updates), opt_state, state, rows

        return jax.lax.fori_loop(start, stop, step, carry)


class Retrainer:
    """Trains fresh networks with fixed hyperparameters for one episode."""

    def __init__(self, config: Settings, problem: InnerProblem, num_networks: int) -> None:
        """Prepares the compiled training.

        Args:
            config: The configuration.
            problem: The inner problem.
            num_networks: Networks per training.
        """
        self._num_networks = num_networks
        held_out_loss = OBJECTIVES.index("held_out_loss")

        def train(outer: Hyperparameters, key: Any, data: Data) -> dict[str, Any]:
            init_key, key = jax.random.split(key)
            keys = jax.random.split(key, config.num_truncations)
            inner, losses = jax.lax.scan(
                lambda inner, k: problem.unroll(outer, inner, k, data, held_out_loss)[::-1],
                problem.init(init_key),
                keys,
            )
            results = {"episode_held_out_loss": losses.mean()}
            for part, split in data._asdict().items():
                loss, accuracy = problem.measure(inner.params, split)
                results |= {f"{part}_loss": loss, f"{part}_accuracy": accuracy}
            results["training_cost"], _ = inner.scores
            return results

        self._train = jax.jit(jax.vmap(train, (None, 0, None)))

    def run(self, tuned: dict[str, float], seed: int, data: Data) -> dict[str, float]:
        """Returns the means over the networks of loss and accuracy on all parts.

        Args:
            tuned: `sigma`, `learning_rate`, `l1`.
            seed: Of the networks; the same seed gives the same initial weights and batches.
            data: What is trained and scored on.
        """
        keys = jax.random.split(jax.random.key(2**31 + seed), self._num_networks)
        found = self._train(Hyperparameters.of(**tuned), keys, data)
        return {name: float(np.mean(value)) for name, value in found.items()}
