"""Simulated devices on which the networks of `experiments.robust_training` are scored."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax import robustness

Models = Callable[[Any], robustness.WeightNoise]


@dataclasses.dataclass(frozen=True)
class Condition:
    """A noise and its levels.

    Attributes:
        name: Key in `summary.json`.
        label: Of the horizontal axis.
        levels: Increasing; 0 first.
        reported: The level that the table shows.
        make_model: Level, which may be traced, -> model.
    """

    name: str
    label: str
    levels: tuple[float, ...]
    reported: float
    make_model: Models


def conditions(sigma: float, relative: float, bits: int, bit_error: float) -> list[Condition]:
    """The three noises that every network meets.

    Args:
        sigma: Reported level of noise of one size for all weights.
        relative: Reported level of noise in units of each layer's root mean square.
        bits: Of the faulty memory.
        bit_error: Reported probability of a flipped bit.
    """
    steps = (0, 1 / 6, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3)
    rarer = (0, 0.1, 0.3, 0.5, 1, 2, 4)

    def grid(factors: Sequence[float], level: float) -> tuple[float, ...]:
        return tuple(level if f == 1 else round(f * level, 6) for f in factors)

    return [
        Condition(
            "absolute", "weight noise σ", grid(steps, sigma), sigma, robustness.gaussian_noise
        ),
        Condition(
            "relative",
            "weight noise σ / rms of the layer",
            grid(steps, relative),
            relative,
            lambda level: robustness.gaussian_noise(level, "rms"),
        ),
        Condition(
            "bit_errors",
            f"bit error rate, {bits}-bit weights",
            grid(rarer, bit_error),
            bit_error,
            lambda level: robustness.bit_errors(bits, level),
        ),
    ]


DEVICES: dict[str, robustness.WeightNoise] = {
    **{f"{bits} bits": robustness.quantized(bits) for bits in (8, 6, 4, 3, 2)},
    **{f"pruned {share:.0%}": robustness.pruned(share) for share in (0.5, 0.7, 0.9)},
    "a day": robustness.drift(24 * 60.0),
    "a year": robustness.drift(365 * 24 * 60.0),
}
"""What is reported as one number: rounding, pruning, drift (in minutes since programming)."""

_SHARPNESS_SIGMA = 0.05
_ALLOWED_RISE = 0.1


class Evaluator:
    """Curves of many networks of one shape; every condition is compiled once.

    A chip draws what it draws in `zojax.robustness.noise_curve`, which compiles at every level.
    """

    def __init__(
        self,
        accuracy: Callable[..., jax.Array],
        data: tuple[jax.Array, jax.Array],
        conditions: Sequence[Condition],
        num_chips: int,
    ) -> None:
        """Prepares the programs.

        Args:
            accuracy: `accuracy(params, images, labels) -> scalar`.
            data: The part to score on.
            conditions: What the chips do.
            num_chips: Simulated devices per level.
        """
        self._accuracy, self._data, self._num_chips = jax.jit(accuracy), data, num_chips
        self._programs = [(c, self._compile(c.make_model)) for c in conditions]
        self._devices = jax.jit(self._scores_on_devices)

    def _compile(self, make_model: Models) -> Callable[..., jax.Array]:
        @jax.jit
        def scores(params: Any, key: jax.Array, levels: jax.Array, data: Any) -> jax.Array:
            def on_chip(level: jax.Array, index: jax.Array) -> jax.Array:
                keys = jax.random.split(jax.random.fold_in(key, index))
                device = robustness.composed(make_model(level))
                return self._accuracy(device(*keys, params), *data)

            def at_level(level: jax.Array) -> jax.Array:
                chips = jnp.arange(self._num_chips)
                return jax.lax.map(lambda i: on_chip(level, i), chips, batch_size=25)

            return jax.lax.map(at_level, levels)

        return scores

    def curves(self, params: Any, key: jax.Array) -> dict[str, robustness.NoiseCurve]:
        """Returns a curve for every condition.

        Args:
            params: One network.
            key: Of the chips; the same for all networks that are compared.
        """
        clean = float(self._accuracy(params, *self._data))
        return {
            condition.name: robustness.NoiseCurve(
                np.asarray(condition.levels),
                np.asarray(program(params, key, jnp.asarray(condition.levels), self._data)),
                clean,
            )
            for condition, program in self._programs
        }

    def on_devices(self, params: Any, key: jax.Array) -> dict[str, float]:
        """Returns the mean accuracy over chips on each of `DEVICES`.

        Args:
            params: One network.
            key: Of the chips.
        """
        scores = self._devices(params, key, self._data)
        return {name: float(scores[name]) for name in DEVICES}

    def _scores_on_devices(self, params: Any, key: jax.Array, data: Any) -> dict[str, jax.Array]:
        def on_chip(index: jax.Array) -> dict[str, jax.Array]:
            keys = jax.random.split(jax.random.fold_in(key, index))
            return {
                name: self._accuracy(robustness.composed(model)(*keys, params), *data)
                for name, model in DEVICES.items()
            }

        scores = jax.lax.map(on_chip, jnp.arange(self._num_chips), batch_size=25)
        return jax.tree.map(jnp.mean, scores)


def sharpness(loss_fn: Callable[..., jax.Array], params: Any, data: Any) -> dict[str, float]:
    """Returns the trace of the Hessian and the PAC-Bayes radius, both from values only.

    Args:
        loss_fn: `loss_fn(params, (images, labels)) -> scalar`.
        params: One network.
        data: Images and labels.
    """
    key = jax.random.key(2**31 + 1)
    found = robustness.sharpness(loss_fn, params, key, sigma=_SHARPNESS_SIGMA, args=(data,))
    radius = robustness.pac_bayes_radius(
        loss_fn, params, key, rise=_ALLOWED_RISE, num_directions=16, args=(data,)
    )
    return {"hessian_trace": found.hessian_trace, "pac_bayes_radius": radius}


def describe(
    params: Any, curves: Mapping[str, robustness.NoiseCurve], conditions: Sequence[Condition]
) -> dict[str, Any]:
    """Returns the numbers of one network.

    Args:
        params: The network.
        curves: Of every condition.
        conditions: What the curves are over.
    """
    weights = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    numbers: dict[str, Any] = {"rms_weight": float(np.sqrt(np.mean(weights**2)))}
    for condition in conditions:
        curve, at = curves[condition.name], condition.levels.index(condition.reported)
        rows = {
            "mean": curve.mean,
            "fifth_percentile": curve.fifth_percentile,
            "worst": curve.worst,
        }
        numbers["clean"] = curve.clean
        numbers[condition.name] = {
            "levels": curve.levels,
            **rows,
            "at_reported": {name: values[at] for name, values in rows.items()},
            "sigma90": curve.largest_level(),
            "area": curve.area,
        }
    return numbers
