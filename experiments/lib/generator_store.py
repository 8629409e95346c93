"""Generators on disk: the snapshots of a run of `experiments.train_generator`."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib.checkpoint import CheckpointStore
from experiments.lib.errors import UserError
from experiments.lib.generator_training import Trained
from experiments.lib.generators import build_decoder
from experiments.lib.runs import RunDirectory

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Generator:
    """A generator and the path of its training.

    Attributes:
        module: Its `apply` maps variables and latents (..., k) to images (..., height, width, 1).
        snapshots: Variables, stacked on a leading axis, from the initialisation to the end.
        steps: The step of training of each snapshot.
        info: The configuration of the run, and of its summary image_shape, kl_per_latent and
            active_latents (both None for a GAN).
    """

    module: nn.Module
    snapshots: PyTree
    steps: np.ndarray
    info: dict[str, Any]

    def generate(self, params: PyTree, x: jax.Array) -> jax.Array:
        """Returns the images of latents.

        Args:
            params: Of one snapshot.
            x: Latents (..., k).
        """
        return self.module.apply(params, x)

    def snapshot(self, index: int) -> PyTree:
        """Returns the variables of one snapshot.

        Args:
            index: 0 is the initialisation, -1 the end.
        """
        return jax.tree.map(lambda leaf: leaf[index], self.snapshots)


def save(run: RunDirectory, trained: Trained, summary: dict[str, Any]) -> None:
    """Writes the snapshots and then the summary, which says that the run is complete.

    Args:
        run: Its config.json names `decoder`, `latent_dim` and `width`.
        trained: What to keep.
        summary: With `image_shape`, `num_snapshots`, `kl_per_latent` and `active_latents`.

    Raises:
        UserError: If the disk is full or cannot be written.
    """
    content = {"snapshots": trained.snapshots, "steps": trained.steps}
    CheckpointStore(run.checkpoints_dir).save(int(trained.steps[-1]), content)
    run.write_summary(summary)


def load(run_dir: str | Path) -> Generator:
    """Reads the generator of a run of `experiments.train_generator`, to the same bits.

    Args:
        run_dir: The folder of the run.

    Raises:
        UserError: If there is no such run, or it is unfinished or damaged.
    """
    run = RunDirectory.open_existing(run_dir)
    advice = "train one with `python -m experiments.train_generator`"
    config = run.read_config()
    if not {"decoder", "latent_dim", "width"} <= config.keys():
        raise UserError(f"{run_dir} is a run of another experiment and has no generator; {advice}")
    path = run.path / "summary.json"
    if not path.is_file() or not run.checkpoints_dir.is_dir():
        raise UserError(f"{run_dir} has no finished generator; {advice}")
    try:
        summary = json.loads(path.read_text())
        about = {name: summary[name] for name in ("image_shape", "kl_per_latent", "active_latents")}
        shape, count = tuple(about["image_shape"]), summary["num_snapshots"]
        module = build_decoder(config["decoder"], config["latent_dim"], shape, config["width"])
        one = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(config["latent_dim"]))
        like = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), one)
        store = CheckpointStore(run.checkpoints_dir)
        stored = store.restore(
            store.latest(), {"snapshots": like, "steps": np.zeros(count, np.int64)}
        )
    except Exception as error:  # A damaged file shows itself in a dozen ways.
        raise UserError(f"the generator in {run_dir} is damaged ({error}); {advice}") from error
    return Generator(module, stored["snapshots"], stored["steps"], config | about)
