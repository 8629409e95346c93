"""Negatives that a generator draws: a VAE, its inversion, and ink as a monotone attribute."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments import train_generator
from experiments.lib import generator_store
from experiments.lib.data import Dataset
from experiments.lib.runs import RunDirectory
from zojax import explain

LATENT_DIM = 10
NUM_CELLS = 4
"""Cells per side in which the ink is an attribute."""
_NUM_STARTS = 8
_NUM_STEPS = 200
_RATE = 0.1


def explainer(dataset: Dataset, config: Any, run: RunDirectory) -> explain.Explainer:
    """Trains a generator and returns latent negatives whose ink may only grow.

    Args:
        dataset: What the generator draws.
        config: With seed, data_dir and kappa.
        run: In whose folder the generator is kept.
    """
    training = train_generator.Config(
        dataset=dataset.name,
        data_dir=config.data_dir,
        latent_dim=LATENT_DIM,
        kl_weight=0.3,
        num_snapshots=2,
        seed=config.seed,
        output=str(run.path),
    )
    generator = generator_store.load(Path(train_generator.run_experiment(training).path))
    params = generator.snapshot(-1)

    def generate(z: jax.Array) -> jax.Array:
        return generator.generate(params, z)

    return explain.latent_negative(
        generate,
        lambda x: invert(generate, x),
        attributes=ink,
        kappa=config.kappa,
        gamma=10.0,
        beta=0.0,
    )


def invert(generate: Any, x: jax.Array) -> jax.Array:
    """Returns the latents whose image is nearest: Adam from several starts, with gradients of G.

    Args:
        generate: Latents to an image.
        x: An image.
    """
    optimizer = optax.adam(_RATE)

    def distance(z: jax.Array) -> jax.Array:
        return jnp.sum((generate(z) - x) ** 2)

    def descend(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            z, state = carry
            updates, state = optimizer.update(jax.grad(distance)(z), state)
            return (z + updates, state), None

        (z, _), _ = jax.lax.scan(step, (z, optimizer.init(z)), None, _NUM_STEPS)
        return z, distance(z)

    starts = jax.random.normal(jax.random.key(0), (_NUM_STARTS, LATENT_DIM))
    ends, distances = jax.vmap(descend)(starts)
    return ends[jnp.argmin(distances)]


def ink(image: jax.Array) -> jax.Array:
    """Returns the mean brightness of each cell of a grid over the image, (cells,).

    Args:
        image: (height, width, 1).
    """
    shape = (NUM_CELLS, NUM_CELLS, 1)
    return jax.image.resize(image, shape, "linear", antialias=True).ravel()
