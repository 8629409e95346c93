"""Inverse problems with known answers: latents to recover from what a generator made of them."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib.generator_store import Generator
from zojax import inverse
from zojax.types import Estimator

MethodName = Literal["direct", "restarts", "surfing"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
"""Direct descent from one start, from several that share its steps, and surfing."""
_AT_ONCE = 100  # targets per call: one program for those of tuning and those that are reported
NUM_STARTS = 8
"""Starts of the method "restarts" for each start of the others."""

X_TOLERANCE, ACTIVE_TOLERANCE, F_TOLERANCE = 0.01, 0.1, 1e-5


@dataclasses.dataclass(frozen=True)
class Problem:
    """Targets in the range of a generator, and where every method starts.

    Attributes:
        generate: `generate(params, x) -> image (height, width, 1)` of one latent (k,).
        snapshots: Stacked parameters.
        sensitivity: Of the latents, (k,), see `zojax.inverse.latent_sensitivity`.
        latents: The answers, standard normal, (n, k).
        images: What the generator makes of them, (n, height, width, 1).
        starts: First iterates, standard normal, (n, r, k).
        num_restarts: How many of them, the first, are for methods other than "restarts".
    """

    generate: Callable[..., jax.Array]
    snapshots: Any
    sensitivity: np.ndarray
    latents: jax.Array
    images: jax.Array
    starts: jax.Array
    num_restarts: int

    def starts_for(self, method: MethodName) -> jax.Array:
        """Returns the first iterates of a method, (n, r, k)."""
        return self.starts if method == "restarts" else self.starts[:, : self.num_restarts]

    @property
    def last(self) -> Any:
        """The trained generator."""
        return jax.tree.map(lambda leaf: leaf[-1], self.snapshots)

    @property
    def active(self) -> np.ndarray:
        """Which latents are not flat, (k,)."""
        return np.asarray(inverse.active_latents(self.sensitivity))

    def images_of(self, latents: Any) -> np.ndarray:
        """Returns the trained generator's images of latents (n, k)."""
        return np.asarray(_images(self.generate, self.last, jnp.asarray(latents)))


def make_problem(
    generator: Generator, num_targets: int, key: jax.Array, num_restarts: int = 1
) -> Problem:
    """Draws targets and starts.

    Args:
        generator: A trained one.
        num_targets: How many.
        key: Of the draws; other keys give other targets.
        num_restarts: Starts per target; the method "restarts" has several times as many.
    """
    snapshots = jax.tree.map(jnp.asarray, generator.snapshots)
    latent_dim = generator.info["latent_dim"]
    target_key, start_key = jax.random.split(key)
    latents = jax.random.normal(target_key, (num_targets, latent_dim))
    shape = (num_targets, num_restarts * NUM_STARTS, latent_dim)
    starts = jax.random.normal(start_key, shape)
    last = jax.tree.map(lambda leaf: leaf[-1], snapshots)
    sensitivity = inverse.latent_sensitivity(generator.generate, last, latents[:100])
    images = generator.generate(last, latents)
    return Problem(
        generator.generate,
        snapshots,
        np.asarray(sensitivity),
        latents,
        images,
        starts,
        num_restarts,
    )


def only_active(problem: Problem) -> Problem:
    """Leaves the active latents alone free, in the targets too; the others are 0.

    Args:
        problem: What is reduced.
    """
    active = problem.active
    generate = inverse.on_active(problem.generate, active)
    latents = problem.latents[:, active]
    images = _images(generate, problem.last, latents)
    return dataclasses.replace(
        problem,
        generate=generate,
        sensitivity=problem.sensitivity[active],
        latents=latents,
        images=images,
        starts=problem.starts[..., active],
    )


@functools.partial(jax.jit, static_argnums=0)
def _images(generate: Callable[..., jax.Array], params: Any, latents: jax.Array) -> jax.Array:
    return jax.vmap(lambda x: generate(params, x))(latents)


@dataclasses.dataclass(frozen=True)
class Effort:
    """What a method may spend on one start.

    Attributes:
        num_steps: Gradient steps per snapshot; the other methods make as many in all.
        polish_steps: Further steps on the trained generator, with a rate that falls to 0.
        options: Of `zojax.inverse.surf`.
        advance: When to leave a snapshot early.
    """

    num_steps: int
    polish_steps: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    advance: inverse.Advance | None = None


class Solver:
    """One method with Adam on one loss, compiled once for all learning rates."""

    def __init__(
        self,
        method: MethodName,
        loss_fn: Callable[..., jax.Array],
        snapshots: Any,
        effort: Effort,
        estimator: Estimator | None = None,
    ) -> None:
        """Prepares the method.

        Args:
            method: Which.
            loss_fn: `loss_fn(params, x, *target)`.
            snapshots: Stacked parameters.
            effort: Steps.
            estimator: Of gradients from values; None for back-propagation.
        """
        self.method = method
        share = NUM_STARTS if method == "restarts" else 1
        num_steps = max(effort.num_steps // share, 1)
        polish_steps = effort.polish_steps // share
        run = inverse.surf if method == "surfing" else inverse.direct

        @jax.jit
        def solve(
            snapshots: Any, starts: jax.Array, keys: jax.Array, rate: Any, *targets: Any
        ) -> inverse.Surfed:
            decay = optax.cosine_decay_schedule(rate, max(polish_steps, 1))
            polish = inverse.Descent(optax.adam(decay), max(polish_steps, 1), estimator)
            descent = inverse.Descent(optax.adam(rate), num_steps, estimator, effort.advance)
            options = {"polish": polish if polish_steps else None, **effort.options}

            def solve_one(x0: jax.Array, key: jax.Array, *target: Any) -> inverse.Surfed:
                return run(loss_fn, snapshots, x0, key, descent, args=target, **options)

            return jax.vmap(inverse.restarted(solve_one))(starts, keys, *targets)

        self._solve, self._snapshots, self._programs = solve, snapshots, {}

    def __call__(
        self, learning_rate: float, starts: jax.Array, key: jax.Array, *targets: Any
    ) -> tuple[inverse.Surfed, float]:
        """Solves many problems at once.

        Args:
            learning_rate: Of the optimiser.
            starts: First iterates, (n, r, k).
            key: Of everything random.
            *targets: Further arguments of the loss, leading axis n.

        Returns:
            What was found, leading axis n, and the seconds it took without compilation.
        """
        rate, keys = jnp.float32(learning_rate), jax.random.split(key, len(starts))
        parts, seconds = [], 0.0
        for first in range(0, len(starts), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            *batch, part_keys = jax.tree.map(lambda a, p=part: a[p], (starts, *targets, keys))
            # Snapshots are an argument: closed over they would be constants of every program.
            arguments = (self._snapshots, batch[0], part_keys, rate, *batch[1:])
            shapes = str(jax.tree.map(jnp.shape, batch))
            if shapes not in self._programs:
                self._programs[shapes] = self._solve.lower(*arguments).compile()
            since = time.perf_counter()
            parts.append(jax.block_until_ready(self._programs[shapes](*arguments)))
            seconds += time.perf_counter() - since
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts), seconds


def scores(problem: Problem, found: inverse.Surfed) -> dict[str, float]:
    """Returns shares of success and errors.

    `x_success`: |x - x*| < 0.01. `active_success`: the same over active latents, < 0.1, since flat
    ones bend the image a little. `f_success`: loss < 1e-5.

    Args:
        problem: With the answers.
        found: Of a solver.
    """
    offset = found.x - np.asarray(problem.latents)
    distance = np.linalg.norm(offset, axis=1)
    active = np.linalg.norm(offset * problem.active, axis=1)
    images = problem.images_of(found.x)
    return {
        "x_success": float(np.mean(distance < X_TOLERANCE)),
        "active_success": float(np.mean(active < ACTIVE_TOLERANCE)),
        "f_success": float(np.mean(found.value < F_TOLERANCE)),
        "median_f": float(np.median(found.value)),
        "median_distance": float(np.median(distance)),
        "pixel_mse": float(np.mean((images - np.asarray(problem.images)) ** 2)),
        "flat_norm": float(np.median(np.linalg.norm(found.path[:, -1] * ~problem.active, axis=1))),
        "num_targets": len(distance),
        "steps_per_target": float(np.mean(found.num_steps)),
        "queries_per_target": float(np.mean(found.num_queries)),
    }
