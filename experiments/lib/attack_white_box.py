"""The attack of Carlini and Wagner, with the victim's gradient: what black-box ones aim at."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib.attack_store import Record
from experiments.lib.attack_victims import Victim
from zojax.attacks import Goal, Results, margin

NUM_STEPS = 1000
NUM_SEARCHES = 9
LEARNING_RATES = (0.003, 0.01, 0.03)
_INITIAL_C = 1.0


class _Search(NamedTuple):
    """The bisection of one image: weight of the margin, its bounds, and the nearest input."""

    c: jax.Array
    lower: jax.Array
    upper: jax.Array
    nearest: jax.Array
    distance: jax.Array


def run(
    victim: Victim, images: np.ndarray, labels: np.ndarray, targets: np.ndarray | None
) -> Record:
    """Minimises the l2 distortion with gradients; needs no queries of an oracle.

    For every image Adam minimises |x - x0|^2 + c max(margin, 0) over [0, 1], by projection, for
    nine values of c, and of three learning rates that which ends nearest counts. The margin is that
    of the logits, as in `zojax.attacks.zoo_adam`.

    Args:
        victim: The model.
        images: (b, height, width, channels) in [0, 1].
        labels: True classes, (b,).
        targets: Classes to be reached, (b,); None if untargeted.

    Returns:
        A record whose results count no queries.

    Source: Carlini and Wagner 2017, arXiv 1608.04644; the projection is ours.
    """
    began = time.perf_counter()
    is_targeted = targets is not None
    goal = Goal(
        jnp.asarray(targets if is_targeted else labels, jnp.int32),
        jnp.full(len(labels), is_targeted),
    )
    x0 = jnp.asarray(images, jnp.float32)
    is_already = np.asarray(jax.vmap(margin)(victim.apply(x0), goal) < 0)
    program = _program(victim.apply)
    nearest, distance = np.asarray(x0).copy(), np.full(len(labels), np.inf)
    for rate in LEARNING_RATES:
        found, at = (np.asarray(part) for part in program(x0, goal, jnp.float32(rate)))
        is_nearer = at < distance
        nearest[is_nearer], distance[is_nearer] = found[is_nearer], at[is_nearer]
    results = _results(images, nearest, is_already, np.isfinite(distance))
    seconds = time.perf_counter() - began
    return Record(results, np.zeros(len(labels), bool), seconds, 0.0)


@functools.lru_cache(maxsize=4)
def _program(apply: Callable[[jax.Array], jax.Array]) -> Any:
    return jax.jit(jax.vmap(functools.partial(_attack, apply), in_axes=(0, 0, None)))


def _attack(
    apply: Callable[[jax.Array], jax.Array], x0: jax.Array, goal: Goal, rate: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The nearest adversarial input to one image, and its distance; infinite without."""

    def step(c: jax.Array, carry: Any) -> Any:
        x, state, found, nearest, distance = carry

        def objective(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            value = margin(apply(x[None])[0], goal)
            return jnp.sum((x - x0) ** 2) + c * jnp.maximum(value, 0.0), value

        grad, value = jax.grad(objective, has_aux=True)(x)
        length = jnp.sqrt(jnp.sum((x - x0) ** 2))
        is_nearer = (value < 0) & (length < distance)
        nearest = jnp.where(is_nearer, x, nearest)
        distance = jnp.where(is_nearer, length, distance)
        updates, state = optax.scale_by_adam().update(grad, state)
        x = jnp.clip(x - rate * updates, 0.0, 1.0)
        return x, state, found | (value < 0), nearest, distance

    def search(_: Any, carry: _Search) -> _Search:
        start = (x0, optax.scale_by_adam().init(x0), jnp.zeros((), bool), *carry[3:])
        _, _, found, nearest, distance = jax.lax.fori_loop(
            0, NUM_STEPS, lambda _, inner: step(carry.c, inner), start
        )
        upper = jnp.where(found, jnp.minimum(carry.upper, carry.c), carry.upper)
        lower = jnp.where(found, carry.lower, jnp.maximum(carry.lower, carry.c))
        c = jnp.where(jnp.isfinite(upper), 0.5 * (lower + upper), 10 * carry.c)
        return _Search(c, lower, upper, nearest, distance)

    infinity = jnp.full((), jnp.inf, jnp.float32)
    begin = _Search(jnp.float32(_INITIAL_C), jnp.float32(0), infinity, x0, infinity)
    end = jax.lax.fori_loop(0, NUM_SEARCHES, search, begin)
    return end.nearest, end.distance


def _results(
    images: np.ndarray, nearest: np.ndarray, is_already: np.ndarray, is_found: np.ndarray
) -> Results:
    """In the form of black-box results, with no queries."""
    count = len(images)
    success = is_found & ~is_already
    adversarial = np.where(success.reshape(-1, *[1] * (images.ndim - 1)), nearest, images)
    offset = np.abs(adversarial - images).reshape(count, -1).astype(np.float64)
    missing = np.where(success | is_already, 0.0, np.nan)
    none = np.zeros(count, np.int64)
    return Results(
        adversarial=adversarial.astype(np.float32),
        success=success,
        status=np.where(is_already, "already", np.where(success, "success", "failed")),
        loss_queries=none,
        check_queries=none,
        queries_to_success=np.where(success, 0, -1),
        l2=np.sqrt((offset**2).sum(axis=1)) + missing,
        linf=offset.max(axis=1) + missing,
        l2_at=np.zeros((0, count)),
        linf_at=np.zeros((0, count)),
    )
