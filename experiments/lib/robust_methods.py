"""Ways to train a network for noisy weights, by name; here those that use function values only."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import zojax
from experiments.lib import robust_first_order
from experiments.lib.classifier import Task
from experiments.lib.robust_first_order import (
    Batch,
    Gradient,
    Method,
    Params,
    Settings,
    add,
    clipping,
    mean,
    scales_of,
    strength,
)
from zojax import robustness

_DEVICES = 16  # simulated per step where faults are inside the loss


def build_method(name: str, settings: Settings, task: Task) -> Method:
    """Returns a method by name.

    Args:
        name: One of `NAMES`.
        settings: The strengths of noise and the sizes.
        task: The loss.
    """
    return _BUILDERS[name](settings, task)


def _values(
    settings: Settings, label: str, gradient: Gradient, count: int, rate: float, **options: Any
) -> Method:
    forwards = 2 * count * settings.batch_size
    label = f"values only, {label}"
    return Method(label, False, forwards, settings.batch_size, rate, gradient, **options)


def _smoothed(
    settings: Settings,
    task: Task,
    share: float = 1.0,
    relative: bool = False,
    shaping: zojax.Shaping = zojax.identity,
) -> Method:
    """The noise that the network must survive is the noise that the estimate explores with.

    The estimator moves a displacement in units of the noise, so one `sigma = 1` serves noise of
    one size for all weights and noise relative to each layer's.
    """

    def displaced(move: Params, params: Params, scales: Params, batch: Batch) -> jax.Array:
        return task.loss_fn(add(params, move, scales), batch)

    est = _estimator(settings.num_directions, share, shaping)

    def gradient(params: Params, key: jax.Array, batch: Batch) -> Params:
        scales = jax.tree.map(jnp.asarray, scales_of(params, settings, relative))
        origin = jax.tree.map(jnp.zeros_like, params)
        args = (params, scales, batch)
        grad = _estimate(est, displaced, origin, key, args, settings.chunk)
        return jax.tree.map(lambda g, s: g / s, grad, scales)

    label = strength(settings, relative, share)
    label += "" if shaping is zojax.identity else f", {shaping.name}"
    count, rate = settings.num_directions, settings.learning_rate
    decay = settings.relative_weight_decay if relative else 0.0
    return _values(settings, label, gradient, count, rate, weight_decay=decay)


def _faulty(
    settings: Settings, task: Task, model: robustness.WeightNoise, **options: Any
) -> Method:
    """Faults inside the loss: every group of directions has a device of its own."""
    groups = min(_DEVICES, settings.num_directions)
    loss_fn = robustness.device_loss(task.loss_fn, model)
    count = settings.num_directions // groups
    est = _estimator(count, settings.fault_sigma)

    def gradient(params: Params, key: jax.Array, batch: Batch) -> Params:
        def on_device(key: jax.Array) -> Params:
            noise_key, device_key = jax.random.split(key)
            args = (device_key, batch)
            return _estimate(est, loss_fn, params, noise_key, args, chunk=0)

        return mean(jax.vmap(on_device)(jax.random.split(key, groups)))

    label, rate = f"{model.name} in the loss", settings.fault_learning_rate
    return _values(settings, label, gradient, groups * count, rate, **options)


def _bit_errors(settings: Settings, task: Task) -> Method:
    """The range of a quantiser is that of the weights, so that outliers cost resolution."""
    model = robustness.bit_errors(settings.bits, settings.bit_error)
    return _faulty(settings, task, model, project=clipping(settings.fault_clip))


def _stuck(settings: Settings, task: Task) -> Method:
    return _faulty(settings, task, robustness.stuck_at(settings.stuck))


def _cvar(settings: Settings, task: Task) -> Method:
    """The mean first: the worst of a network that knows nothing teach it little."""
    mean_first = _smoothed(settings, task)
    late = _smoothed(settings, task, shaping=robustness.cvar(settings.cvar_level))
    return late._replace(
        gradient=mean_first.gradient,
        late_gradient=late.gradient,
        early_share=1 - settings.cvar_share,
    )


def _estimator(count: int, sigma: float, shaping: zojax.Shaping = zojax.identity) -> Any:
    # Rademacher noise is the cheapest on a CPU; a sum of many weights hardly tells it from normal.
    return zojax.finite_difference(
        directions=zojax.rademacher(), num_directions=count, sigma=sigma, shaping=shaping
    )


def _estimate(
    est: zojax.Estimator, loss_fn: Any, params: Params, key: jax.Array, args: Any, chunk: int
) -> Params:
    execution = zojax.chunked(chunk, keep_noise=True) if chunk else None
    return zojax.estimate(est, loss_fn, params, key, (), args=args, execution=execution)[0].grad


_BUILDERS: dict[str, Callable[[Settings, Task], Method]] = {
    "backprop": robust_first_order.back_propagation,
    "noise_backprop": robust_first_order.noise_injected,
    "noise_backprop_relative": functools.partial(robust_first_order.noise_injected, relative=True),
    "lpf_sgd": robust_first_order.lpf_sgd,
    "sam": robust_first_order.sam,
    "entropy_sgd": robust_first_order.entropy_sgd,
    "clipped": robust_first_order.clipped,
    "values_third": functools.partial(_smoothed, share=1 / 3),
    "values_two_thirds": functools.partial(_smoothed, share=2 / 3),
    "values": _smoothed,
    "values_relative": functools.partial(_smoothed, relative=True),
    "values_cvar": _cvar,
    "values_bit_errors": _bit_errors,
    "values_stuck": _stuck,
}
NAMES = tuple(_BUILDERS)
