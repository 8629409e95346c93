"""Trains a generator and keeps its parameters along the way."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib.errors import UserError
from experiments.lib.generator_families import VAE, WGANGP, Family, FamilyName, Part, PyTree, State
from experiments.lib.generators import Critic, DecoderName, Encoder, build_decoder, hidden_width
from zojax import inverse

DEFAULTS = {"vae": (1e-3, 128), "wgan_gp": (5e-4, 64)}
"""Learning rate and batch size of each family. With the 1e-4 that was published for the WGAN-GP,
images are as good only after several times as many steps."""

_NUM_SCORED = 1_000  # images of each part, at most, that the metrics are computed on
_STRETCHES = 50  # a run is at least so many compiled calls, so that Ctrl-C is heard between them


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to train, and how.

    Attributes:
        family: `vae` or `wgan_gp`.
        decoder: The generator's architecture.
        latent_dim: Number of latents; their prior is a standard normal distribution.
        num_steps: Updates of the generator.
        width: Of the generator; None for the default of `build_decoder`.
        batch_size: Images per update; None for the family's.
        learning_rate: Of Adam; None for the family's.
        num_snapshots: How many snapshots to keep, the initialisation and the end included.
        kl_weight: Of the VAE's divergence.
        seed: Of everything random.
    """

    family: FamilyName
    decoder: DecoderName
    latent_dim: int
    num_steps: int
    width: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    num_snapshots: int = 40
    kl_weight: float = 1.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained generator.

    Attributes:
        module: The generator.
        snapshots: Its variables, stacked on a leading axis, on the host.
        steps: The step of each snapshot; the first is 0, the initialisation.
        rows: Metrics at each snapshot: step, seconds (of training alone), and the parts of the
            family's loss, each with the prefix train_ or validation_.
        helper: The encoder or the critic.
        helper_variables: Its variables at the end.
    """

    module: nn.Module
    snapshots: PyTree
    steps: np.ndarray
    rows: list[dict[str, Any]]
    helper: nn.Module
    helper_variables: PyTree


def snapshot_steps(num_steps: int, num_snapshots: int) -> np.ndarray:
    """Returns geometrically spaced steps: 0, 1, ..., num_steps, all different.

    Args:
        num_steps: The last step.
        num_snapshots: How many.

    Raises:
        UserError: If there are fewer than 2 or more than num_steps + 1.
    """
    try:
        return np.array(inverse.geometric_steps(num_steps, num_snapshots))
    except ValueError as error:
        raise UserError(str(error)) from error


def train_generator(
    settings: Settings,
    images: np.ndarray,
    validation: np.ndarray,
    report: Callable[[dict[str, Any]], None] | None = None,
    advance: Callable[[int], None] | None = None,
) -> Trained:
    """Trains a generator; the same settings and images give the same bits on the same machine.

    Args:
        settings: What to train.
        images: Training images (n, height, width, 1) in [0, 1].
        validation: Other images; metrics are computed on the first of both.
        report: Called with the metrics of each snapshot.
        advance: Called with the number of steps done, more often than `report`.

    Raises:
        UserError: If a setting is not possible, or training diverges.
    """
    module = prepare(settings, images.shape)
    family, helper, state, key = _start(settings, module, images.shape[1:])
    steps = snapshot_steps(settings.num_steps, settings.num_snapshots)
    data = {"train": _flat(images), "validation": _flat(validation)}
    count = min(_NUM_SCORED, *map(len, data.values()))  # one shape, one program
    scored = {name: pixels[:count] for name, pixels in data.items()}
    score = jax.jit(family.score)

    # Key, start and stop are arguments, so that every stretch of every seed is the same program.
    def run(
        state: State, key: jax.Array, pixels: jax.Array, start: jax.Array, stop: jax.Array
    ) -> State:
        def body(step: jax.Array, state: State) -> State:
            return family.step(state, jax.random.fold_in(key, step), pixels)

        return jax.lax.fori_loop(start, stop, body, state)

    arguments = (state, key, data["train"], jnp.int32(0), jnp.int32(1))
    compiled = jax.jit(run, donate_argnums=0).lower(*arguments).compile()
    longest = math.ceil(settings.num_steps / _STRETCHES)
    snapshots, rows, done, seconds = [], [], 0, 0.0
    for step in steps.tolist():
        since = time.perf_counter()
        while done < step:
            stop = min(step, done + longest)
            state = compiled(state, key, data["train"], jnp.int32(done), jnp.int32(stop))
            jax.block_until_ready(state)
            done = stop
            if advance is not None:
                advance(done)
        seconds += time.perf_counter() - since
        # A copy: the buffers behind a view are given to the next stretch.
        snapshots.append(jax.tree.map(lambda leaf: np.array(leaf), state.generator.variables))
        rows.append({"step": step, "seconds": seconds, **_measure(score, state, key, scored)})
        if report is not None:
            report(rows[-1])
        if not np.isfinite(rows[-1]["validation_loss"]):
            raise UserError(f"training diverged by step {step}: choose a smaller learning_rate")
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *snapshots)
    return Trained(module, stacked, steps, rows, helper, state.helper.variables)


def prepare(settings: Settings, shape: tuple[int, ...]) -> nn.Module:
    """Checks the settings before any training, and builds the generator.

    Args:
        settings: What to train.
        shape: Of the training images, (n, height, width, 1).

    Raises:
        UserError: If a setting is not possible.
    """
    if settings.family not in get_args(FamilyName):
        raise UserError(f"unknown family '{settings.family}'; the families are: vae, wgan_gp")
    snapshot_steps(settings.num_steps, settings.num_snapshots)
    batch_size, rate = settings.batch_size, settings.learning_rate
    if batch_size is not None and not 1 <= batch_size <= shape[0]:
        raise UserError(
            f"batch_size must be from 1 to the number of training images ({shape[0]:,}), "
            f"got {batch_size:,}"
        )
    if not 0 <= settings.kl_weight < float("inf"):
        raise UserError(f"kl_weight must be >= 0 and finite, got {settings.kl_weight}")
    if settings.family != "vae" and settings.kl_weight != 1:
        raise UserError(f"kl_weight is for the vae; {settings.family} has none")
    if rate is not None and not 0 < rate < float("inf"):
        raise UserError(f"learning_rate must be > 0 and finite, got {rate}")
    if not 0 <= settings.seed < 2**32:
        raise UserError(f"seed must be in [0, 2^32), got {settings.seed}")
    return build_decoder(settings.decoder, settings.latent_dim, shape[1:], settings.width)


def _start(
    settings: Settings, module: nn.Module, shape: tuple[int, ...]
) -> tuple[Family, nn.Module, State, jax.Array]:
    """Returns the family, the encoder or critic, both at their start, and the key of the steps."""
    rate, batch_size = DEFAULTS[settings.family]
    rate, batch_size = settings.learning_rate or rate, settings.batch_size or batch_size
    family: Family
    helper: nn.Module
    if settings.family == "vae":
        optimizer = optax.adam(rate)
        helper = Encoder(settings.latent_dim, hidden_width(shape))
        family = VAE(module, helper, optimizer, batch_size, settings.kl_weight)
    else:
        optimizer = optax.adam(rate, b1=0.0, b2=0.9)
        helper = Critic(hidden_width(shape))
        family = WGANGP(module, helper, optimizer, batch_size, settings.latent_dim)
    key = jax.random.key(settings.seed)
    ours, theirs, later = jax.random.split(key, 3)

    @jax.jit  # one program, where every random number would otherwise be compiled by itself
    def initialise(ours: jax.Array, theirs: jax.Array) -> State:
        both = (
            module.init(ours, jnp.zeros(settings.latent_dim)),
            helper.init(theirs, jnp.zeros((1, math.prod(shape)))),
        )
        return State(*(Part(variables, optimizer.init(variables)) for variables in both))

    return family, helper, initialise(ours, theirs), later


def _flat(images: np.ndarray) -> jax.Array:
    return jnp.asarray(images.reshape(len(images), -1))


def _measure(
    score: Callable[..., dict[str, jax.Array]],
    state: State,
    key: jax.Array,
    scored: dict[str, jax.Array],
) -> dict[str, Any]:
    variables = (state.generator.variables, state.helper.variables)
    return {
        f"{part}_{name}": np.asarray(value).tolist()
        for part, pixels in scored.items()
        for name, value in score(*variables, key, pixels).items()
    }
