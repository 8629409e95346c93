"""First-order training for noisy weights, to compare with training from values alone."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.flatten_util
import jax.numpy as jnp

from experiments.lib.classifier import Task

Params = Any
Batch = tuple[jax.Array, jax.Array]
Gradient = Callable[[Params, jax.Array, Batch], Params]

FIRST_ORDER_FORWARDS = 3  # a backward pass is counted as two forward passes
_NOISE_DRAWS = 8  # of noise-injected back-propagation, per step
_PARTS = 8  # of a batch, each with its own noise (LPF-SGD)
_INNER_STEPS = 4  # of Langevin dynamics (Entropy-SGD), each on a part of the batch
_SMALLEST_RMS = 0.02  # a bias starts at zero, where noise relative to it would be none


class Settings(Protocol):
    """What the methods read from an experiment's configuration."""

    sigma: float
    relative_sigma: float
    fault_sigma: float
    bits: int
    bit_error: float
    stuck: float
    cvar_level: float
    cvar_share: float
    lpf_gamma: float
    sam_radius: float
    entropy_scope: float
    clip: float
    fault_clip: float
    num_directions: int
    batch_size: int
    first_order_batch: int
    chunk: int
    learning_rate: float
    fault_learning_rate: float
    relative_weight_decay: float
    first_order_learning_rate: float


class Method(NamedTuple):
    """How to train.

    Attributes:
        label: For tables and figures.
        is_first_order: Whether it differentiates.
        forwards: Sample-forwards per step; a first-order step counts as three forward passes.
        batch_size: Examples per step.
        learning_rate: First learning rate of Adam.
        gradient: `(params, key, batch) -> what Adam descends along`.
        project: Applied to the parameters after every step.
        weight_decay: Decoupled (AdamW), as a multiple of the learning rate.
        late_gradient: What is descended along after `early_share` of the steps; None for no change.
        early_share: In [0, 1].
    """

    label: str
    is_first_order: bool
    forwards: int
    batch_size: int
    learning_rate: float
    gradient: Gradient
    project: Callable[[Params], Params] = lambda params: params
    weight_decay: float = 0.0
    late_gradient: Gradient | None = None
    early_share: float = 1.0


def _first_order(
    settings: Settings, label: str, gradient: Gradient, passes: int = 1, **options: Any
) -> Method:
    batch_size = settings.first_order_batch
    forwards = FIRST_ORDER_FORWARDS * passes * batch_size
    rate = settings.first_order_learning_rate
    return Method(label, True, forwards, batch_size, rate, gradient, **options)


def _plain(task: Task) -> Gradient:
    return lambda params, key, batch: jax.grad(task.loss_fn)(params, batch)


def back_propagation(settings: Settings, task: Task) -> Method:
    """Plain training."""
    return _first_order(settings, "back-propagation", _plain(task))


def clipped(settings: Settings, task: Task) -> Method:
    """Stutz et al. 2021, arXiv 2104.08323: every weight is kept in a range."""
    label = f"weight clipping ±{settings.clip:g}"
    return _first_order(settings, label, _plain(task), project=clipping(settings.clip))


def noise_injected(settings: Settings, task: Task, relative: bool = False) -> Method:
    """The mean gradient at several noisy copies of the weights."""

    def gradient(params: Params, key: jax.Array, batch: Batch) -> Params:
        scales = scales_of(params, settings, relative)

        def on_draw(key: jax.Array) -> Params:
            return jax.grad(task.loss_fn)(add(params, _normal(key, params), scales), batch)

        return mean(jax.vmap(on_draw)(jax.random.split(key, _NOISE_DRAWS)))

    label = f"noise-injected back-propagation, {strength(settings, relative)}"
    decay = settings.relative_weight_decay if relative else 0.0
    return _first_order(settings, label, gradient, passes=_NOISE_DRAWS, weight_decay=decay)


def lpf_sgd(settings: Settings, task: Task) -> Method:
    """Bisla et al. 2022, arXiv 2201.08025: noise in units of the norm of each filter."""

    def gradient(params: Params, key: jax.Array, batch: Batch) -> Params:
        scales = jax.tree.map(
            lambda w: settings.lpf_gamma * jnp.sqrt(jnp.sum(w**2, axis=0, keepdims=True)), params
        )

        def on_part(key: jax.Array, part: Batch) -> Params:
            return jax.grad(task.loss_fn)(add(params, _normal(key, params), scales), part)

        return mean(jax.vmap(on_part)(jax.random.split(key, _PARTS), _split(batch, _PARTS)))

    return _first_order(settings, f"LPF-SGD, γ {settings.lpf_gamma:g}", gradient)


def sam(settings: Settings, task: Task) -> Method:
    """Foret et al. 2021, arXiv 2010.01412."""

    def gradient(params: Params, key: jax.Array, batch: Batch) -> Params:
        del key
        ascent = jax.grad(task.loss_fn)(params, batch)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(ascent)))
        step = settings.sam_radius / jnp.maximum(norm, 1e-12)
        worst = jax.tree.map(lambda w, g: w + step * g, params, ascent)
        return jax.grad(task.loss_fn)(worst, batch)

    return _first_order(settings, f"SAM, ρ {settings.sam_radius:g}", gradient, passes=2)


def entropy_sgd(settings: Settings, task: Task) -> Method:
    """Chaudhari et al. 2017, arXiv 1611.01838: towards the mean of a Langevin walk."""
    scope, rate, temperature = settings.entropy_scope, 0.1, 1e-3

    def gradient(params: Params, key: jax.Array, batch: Batch) -> Params:
        def walk(state: tuple[Params, Params], given: Any) -> Any:
            here, mean = state
            key, part = given
            slope = jax.grad(task.loss_fn)(here, part)
            pull = jax.tree.map(lambda g, w, x: g - scope * (w - x), slope, params, here)
            here = jax.tree.map(lambda x, g: x - rate * g, here, pull)
            here = add(here, _normal(key, here), temperature * rate**0.5)
            return (here, jax.tree.map(lambda m, x: 0.25 * m + 0.75 * x, mean, here)), None

        steps = (jax.random.split(key, _INNER_STEPS), _split(batch, _INNER_STEPS))
        (_, mean), _ = jax.lax.scan(walk, (params, params), steps)
        return jax.tree.map(lambda w, m: scope * (w - m), params, mean)

    return _first_order(settings, f"Entropy-SGD, scope {scope:g}", gradient)


def clipping(limit: float) -> Callable[[Params], Params]:
    """Returns a projection of every weight into [-limit, limit]."""
    return lambda params: jax.tree.map(lambda w: jnp.clip(w, -limit, limit), params)


def scales_of(params: Params, settings: Settings, relative: bool) -> Params:
    """Standard deviations of the training noise, one per leaf."""
    if not relative:
        return jax.tree.map(lambda _: settings.sigma, params)
    rms = jax.tree.map(lambda w: jnp.sqrt(jnp.mean(w**2)), params)
    return jax.tree.map(lambda x: settings.relative_sigma * jnp.maximum(x, _SMALLEST_RMS), rms)


def strength(settings: Settings, relative: bool, share: float = 1.0) -> str:
    """Says how strong the training noise is."""
    if relative:
        return f"σ {share * settings.relative_sigma:.2g} rms"
    return f"σ {share * settings.sigma:.2g}"


def add(params: Params, noise: Params, scales: Any) -> Params:
    """Returns parameters plus noise times its scales: one number, or one per leaf."""
    if isinstance(scales, float):
        return jax.tree.map(lambda w, e: w + scales * e, params, noise)
    return jax.tree.map(lambda w, e, s: w + s * e, params, noise, scales)


def _normal(key: jax.Array, params: Params) -> Params:
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    return unravel(jax.random.normal(key, flat.shape, flat.dtype))  # one draw compiles faster


def mean(stacked: Params) -> Params:
    """Returns the mean over the leading axis."""
    return jax.tree.map(lambda x: x.mean(axis=0), stacked)


def _split(batch: Batch, parts: int) -> Batch:
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
