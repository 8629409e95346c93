"""How a trained network fares on many simulated devices."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax import trees
from zojax.errors import check_at_least, check_positive
from zojax.estimators.finite_difference import finite_difference
from zojax.keys import check_key
from zojax.robustness.weight_noise import WeightNoise, composed
from zojax.types import LossFn, Params, PRNGKey

_PAIRS_AT_ONCE = 16


class NoiseCurve(NamedTuple):
    """A score against the level of a noise.

    Attributes:
      levels: shape (l,), increasing.
      scores: shape (l, chips), larger is better and 0 is the worst, e.g. accuracy.
      clean: score without any noise.
    """

    levels: np.ndarray
    scores: np.ndarray
    clean: float

    @property
    def mean(self) -> np.ndarray:
        """Mean over chips, shape (l,)."""
        return self.scores.mean(axis=1)

    @property
    def fifth_percentile(self) -> np.ndarray:
        """The score that 95 % of chips reach, shape (l,)."""
        return np.percentile(self.scores, 5, axis=1)

    @property
    def worst(self) -> np.ndarray:
        """The worst chip, shape (l,)."""
        return self.scores.min(axis=1)

    @property
    def area(self) -> float:
        """Area under the mean over the range of levels, divided by that range."""
        return float(np.trapezoid(self.mean, self.levels) / (self.levels[-1] - self.levels[0]))

    def largest_level(self, share: float = 0.9) -> float:
        """The level up to which the mean keeps `share` of the clean score, interpolated.

        0 if it does not at the first level, the last level if it does at all of them.

        Args:
          share: of the clean score.
        """
        enough = self.mean >= share * self.clean
        if enough.all():
            return float(self.levels[-1])
        first = int(np.argmin(enough))
        if first == 0:
            return 0.0
        low, high = self.mean[first - 1], self.mean[first]
        part = (low - share * self.clean) / (low - high)
        return float(self.levels[first - 1] + part * (self.levels[first] - self.levels[first - 1]))


def chip_scores(
    score_fn: Callable[..., Any],
    params: Params,
    models: Sequence[WeightNoise],
    key: PRNGKey,
    *,
    num_chips: int = 25,
    chunk_size: int = 25,
    args: tuple[Any, ...] = (),
) -> np.ndarray:
    """Scores of one network on `num_chips` simulated devices, shape (num_chips,).

    Args:
      score_fn: `score_fn(params, *args) -> scalar`, e.g. accuracy on a split.
      params: the network.
      models: what happens to its weights, in order.
      key: typed key; chip i draws from `fold_in(key, i)` whatever the chunk size.
      num_chips: at least 1; 25 or more for percentiles.
      chunk_size: chips evaluated at once.
      args: further arguments of `score_fn`.

    Raises:
      TypeError: if `key` is not a typed key.
      ValueError: for `num_chips` or `chunk_size` < 1, no model, a model that covers no leaf, or
        weights that are not finite on some chip, naming their leaves.
    """
    check_at_least("num_chips", num_chips, 1)
    check_at_least("chunk_size", chunk_size, 1)
    check_key(key)

    @jax.jit
    def run(params: Params, key: PRNGKey, args: tuple[Any, ...]) -> tuple[chex.Array, Any]:
        return _on_chips(score_fn, params, models, key, num_chips, chunk_size, args)

    return _checked(models, params, *run(params, key, args))


def _on_chips(
    score_fn: Callable[..., Any],
    params: Params,
    models: Sequence[WeightNoise],
    key: PRNGKey,
    num_chips: int,
    chunk_size: int,
    args: tuple[Any, ...],
) -> tuple[chex.Array, list[chex.Array]]:
    """Scores (chips,), and for every leaf on which chips its weights are finite."""
    device = composed(*models)

    def on_chip(index: chex.Array) -> tuple[chex.Array, list[chex.Array]]:
        chip_key, read_key = jax.random.split(jax.random.fold_in(key, index))
        weights = device(chip_key, read_key, params)
        is_sound = [
            jnp.all(jnp.isfinite(x)) if trees.is_float(x) else jnp.array(True)
            for x in jax.tree.leaves(weights)
        ]
        return jnp.asarray(score_fn(weights, *args), jnp.float32), is_sound

    return jax.lax.map(on_chip, jnp.arange(num_chips), batch_size=min(chunk_size, num_chips))


def _checked(
    models: Sequence[WeightNoise], params: Params, scores: chex.Array, is_sound: list[chex.Array]
) -> np.ndarray:
    """The scores; raises if weights were not finite: accuracy of NaN outputs would not show it."""
    paths = [trees.path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    bad = [path for path, sound in zip(paths, is_sound, strict=True) if not np.all(sound)]
    if bad:
        names = ", then ".join(model.name for model in models)
        raise ValueError(f"{names} makes weights that are not finite in {', '.join(bad)}")
    return np.asarray(scores)


def noise_curve(
    score_fn: Callable[..., Any],
    params: Params,
    make_model: Callable[[float], WeightNoise],
    levels: Sequence[float],
    key: PRNGKey,
    *,
    num_chips: int = 25,
    chunk_size: int = 25,
    args: tuple[Any, ...] = (),
) -> NoiseCurve:
    """Scores against the level of a noise, the same chips at every level.

    Args:
      score_fn: `score_fn(params, *args) -> scalar`, larger is better.
      params: the network.
      make_model: level -> model, e.g. `lambda s: gaussian_noise(s, "rms")`. Compiled once for all
        levels where the level may be traced.
      levels: increasing.
      key: typed key, shared by all levels.
      num_chips: simulated devices.
      chunk_size: chips evaluated at once.
      args: further arguments of `score_fn`.

    Raises:
      ValueError: for levels that do not increase, and as `chip_scores`.
    """
    if len(levels) < 2 or any(b <= a for a, b in zip(levels, levels[1:], strict=False)):
        raise ValueError(f"levels must be at least two increasing numbers, got {list(levels)!r}")
    check_at_least("num_chips", num_chips, 1)
    check_at_least("chunk_size", chunk_size, 1)
    check_key(key)
    models = [make_model(level) for level in levels]

    @jax.jit
    def run(level: chex.Array, params: Params, key: PRNGKey, args: tuple[Any, ...]) -> Any:
        return _on_chips(score_fn, params, [make_model(level)], key, num_chips, chunk_size, args)

    def row(level: float, model: WeightNoise) -> np.ndarray:
        return _checked([model], params, *run(jnp.asarray(level, float), params, key, args))

    try:
        jax.eval_shape(run, jnp.asarray(levels[0], float), params, key, args)
    except (TypeError, ValueError):  # the level is a number of bits, or otherwise not to be traced
        rows = [
            chip_scores(
                score_fn,
                params,
                [model],
                key,
                num_chips=num_chips,
                chunk_size=chunk_size,
                args=args,
            )
            for model in models
        ]
    else:
        rows = [row(level, model) for level, model in zip(levels, models, strict=True)]
    clean = float(jax.jit(score_fn)(params, *args))
    return NoiseCurve(np.asarray(levels, float), np.stack(rows), clean)


class Sharpness(NamedTuple):
    """Sharpness of a minimum, by values only.

    Attributes:
      smoothed_gap: L_sigma - L, in loss units.
      hessian_trace: 2 (L_sigma - L) / sigma^2, which is tr H for small sigma.
      standard_error: of `smoothed_gap`.
    """

    smoothed_gap: float
    hessian_trace: float
    standard_error: float


def sharpness(
    loss_fn: LossFn,
    params: Params,
    key: PRNGKey,
    *,
    sigma: float,
    num_directions: int = 128,
    args: tuple[Any, ...] = (),
) -> Sharpness:
    """How much the loss rises under Gaussian weight noise.

    Args:
      loss_fn: `loss_fn(params, *args) -> scalar`.
      params: the network.
      key: typed key.
      sigma: standard deviation of the noise, in parameter units.
      num_directions: antithetic pairs. Queries: 2 of them and 1.
      args: further arguments of the loss.

    Raises:
      TypeError: if `key` is not a typed key.
      ValueError: for `sigma` <= 0 or `num_directions` < 2.
    """
    check_positive("sigma", sigma)
    check_at_least("num_directions", num_directions, 2)
    rises = np.asarray(
        jax.jit(_rises, static_argnums=(0, 4))(
            loss_fn, params, key, jnp.float32(sigma), num_directions, args
        ),
        float,
    )
    gap = float(rises.mean())
    error = float(rises.std(ddof=1) / num_directions**0.5)
    return Sharpness(gap, 2 * gap / sigma**2, error)


def _rises(
    loss_fn: LossFn,
    params: Params,
    key: PRNGKey,
    sigma: chex.Array,
    num_directions: int,
    args: tuple[Any, ...],
) -> chex.Array:
    """Mean loss of each antithetic pair less the loss at the parameters, shape (n,).

    A pair is one sample: its two losses are anything but independent. A loss that is not finite is
    a rise, and no sample to leave out.
    """
    check_key(key)
    est = finite_difference(num_directions=num_directions, sigma=sigma)
    clean = jnp.asarray(loss_fn(params, *args), jnp.float32)
    if clean.shape != ():
        raise ValueError(f"loss_fn must return a scalar, got shape {clean.shape}")

    def one(index: chex.Array) -> chex.Array:
        noise = jax.tree.map(lambda x: x[0], est.draw(key, params, (), index, 1, 1))
        losses = [
            jnp.asarray(loss_fn(est.point(params, (), noise, offset), *args), jnp.float32) - clean
            for offset in est.stencil.offsets
        ]
        return sum(losses) / len(losses)

    directions = jnp.arange(num_directions)
    return jax.lax.map(one, directions, batch_size=min(_PAIRS_AT_ONCE, num_directions))


def pac_bayes_radius(
    loss_fn: LossFn,
    params: Params,
    key: PRNGKey,
    *,
    rise: float = 0.1,
    highest: float = 1.0,
    num_directions: int = 64,
    num_bisections: int = 12,
    args: tuple[Any, ...] = (),
) -> float:
    """The largest sigma at which the smoothed loss rises by no more than `rise`, by bisection.

    Args:
      loss_fn: `loss_fn(params, *args) -> scalar`.
      params: the network.
      key: typed key, the same noise at every sigma.
      rise: allowed rise, in loss units.
      highest: where the search starts; returned if it is still allowed.
      num_directions: antithetic pairs per sigma.
      num_bisections: halvings.
      args: further arguments of the loss.

    Raises:
      TypeError: if `key` is not a typed key.
      ValueError: for `rise` or `highest` that is not positive, or counts < 1.
    """
    check_positive("rise", rise)
    check_positive("highest", highest)
    check_at_least("num_directions", num_directions, 1)
    check_at_least("num_bisections", num_bisections, 1)
    rises = jax.jit(_rises, static_argnums=(0, 4))

    def is_allowed(sigma: float) -> bool:
        risen = rises(loss_fn, params, key, jnp.float32(sigma), num_directions, args)
        return float(np.mean(risen)) <= rise

    if is_allowed(highest):
        return float(highest)
    low, high = 0.0, highest
    for _ in range(num_bisections):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if is_allowed(middle) else (low, middle)
    return low
