"""Figures of `experiments.train_generator`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.lib.figures import _INK, _column, _save, _style, _subplots
from experiments.lib.generator_training import Trained

_COLUMNS = 14
_ROWS = 8
_GRID = 15


def draw(folder: Path, trained: Trained, validation: np.ndarray, title: str) -> None:
    """Draws every figure that fits the generator.

    Args:
        folder: For the PNG files.
        trained: The generator.
        validation: Images (n, height, width, 1).
        title: Names dataset, family and decoder.
    """
    is_vae = "train_kl" in trained.rows[0]
    samples(folder / "samples.png", trained, f"{title}: the same latents at each step of training")
    losses(folder / "losses.png", trained.rows, title)
    if is_vae:
        reconstructions(folder / "reconstructions.png", trained, validation, title)
    if _latent_dim(trained) == 2:
        manifold(folder / "manifold.png", trained, f"{title}: images of the latent plane")


def samples(path: Path, trained: Trained, title: str) -> None:
    """Draws a row of samples per snapshot: down a column one sees the generator learn.

    Args:
        path: The PNG to write.
        trained: The generator.
        title: Above the figure.
    """
    latents = np.random.default_rng(0).standard_normal((_COLUMNS, _latent_dim(trained)))
    chosen = np.unique(np.linspace(0, len(trained.steps) - 1, _ROWS).round().astype(int))
    rows = [
        (f"step {trained.steps[index]:,}", _images(trained, index, latents)) for index in chosen
    ]
    _strips(path, rows, title)


def reconstructions(path: Path, trained: Trained, validation: np.ndarray, title: str) -> None:
    """Draws validation images above what the VAE makes of them (from the mean of the latents).

    Args:
        path: The PNG to write.
        trained: A VAE.
        validation: Images (n, height, width, 1).
        title: Above the figure.
    """
    images = validation[: 2 * _COLUMNS]
    encode = jax.jit(trained.helper.apply)
    mean, _ = encode(trained.helper_variables, images.reshape(len(images), -1))
    rebuilt = _images(trained, -1, mean)
    rows = []
    for half in (slice(0, _COLUMNS), slice(_COLUMNS, None)):
        rows += [("original", images[half, ..., 0]), ("rebuilt", rebuilt[half])]
    _strips(path, rows, f"{title}: validation images")


def manifold(path: Path, trained: Trained, title: str) -> None:
    """Draws the images of a grid in a two-dimensional latent space, at quantiles of the prior.

    Args:
        path: The PNG to write.
        trained: A generator with two latents.
        title: Above the figure.
    """
    quantiles = jax.scipy.stats.norm.ppf(np.linspace(0.02, 0.98, _GRID))
    grid = np.stack(np.meshgrid(quantiles, quantiles[::-1]), axis=-1)
    mosaic = np.vstack([_in_a_row(images) for images in _images(trained, -1, grid)])
    figure, axes = _subplots(1, 1, (6.6, 6.9))
    axis = axes[0, 0]
    axis.imshow(mosaic, cmap="gray_r", vmin=0, vmax=1)
    height, width = np.array(mosaic.shape) / _GRID
    shown = np.arange(0, _GRID, 2)
    labels = [f"{quantiles[index]:.1f}" for index in shown]
    axis.set_xticks((shown + 0.5) * width - 0.5, labels)
    axis.set_yticks((_GRID - 1 - shown + 0.5) * height - 0.5, labels)
    axis.set(xlabel="first latent", ylabel="second latent")
    axis.tick_params(colors=_INK, labelsize=9)
    axis.spines[:].set_visible(False)
    _save(figure, path, title)


def losses(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draws the parts of the loss at the snapshots, on training and on validation images.

    Args:
        path: The PNG to write.
        rows: Metrics.
        title: Above the figure.
    """
    is_vae = "train_kl" in rows[0]
    panels = (
        {"loss": "loss (nats per image)", "reconstruction": "reconstruction (nats per image)"}
        if is_vae
        else {"wasserstein": "Wasserstein estimate", "gradient_penalty": "gradient penalty"}
    )
    figure, axes = _subplots(1, 3 if is_vae else 2, (13.5 if is_vae else 9.5, 4.2))
    steps = _column(rows, "step")
    for axis, (name, label) in zip(axes[0], panels.items(), strict=False):
        for part, style in (("train", "--"), ("validation", "-")):
            axis.plot(steps, _column(rows, f"{part}_{name}"), style, color="C0", label=part)
        axis.set_ylabel(label)
        axis.legend(frameon=False)
    if is_vae:
        kl = np.array([row["validation_kl_per_latent"] for row in rows], dtype=float)
        for index, column in enumerate(kl.T):
            axes[0, 2].plot(steps, column, color=f"C{index % 10}", label=f"latent {index}")
        axes[0, 2].set_ylabel("KL divergence of each latent (nats), validation")
        axes[0, 2].legend(frameon=False, ncols=1 + kl.shape[1] // 8, fontsize=8)
    for axis in axes[0]:
        axis.set_xscale("symlog", linthresh=1)  # 0 is one of the steps
        axis.set_xlim(0, steps[-1])
        axis.set_xlabel("step")
        _style(axis)
    _save(figure, path, title)


def _latent_dim(trained: Trained) -> int:
    return trained.snapshots["params"]["Dense_0"]["kernel"].shape[1]


def _images(trained: Trained, index: int, latents: np.ndarray) -> np.ndarray:
    variables = jax.tree.map(lambda leaf: leaf[index], trained.snapshots)
    latents = np.asarray(latents, dtype=np.float32)
    return np.asarray(jax.jit(trained.module.apply)(variables, latents))[..., 0]


def _strips(path: Path, rows: Sequence[tuple[str, np.ndarray]], title: str) -> None:
    """Draws labelled rows of images (n, height, width)."""
    figure, axes = _subplots(len(rows), 1, (0.72 * _COLUMNS + 1.2, 0.82 * len(rows) + 0.5))
    for axis, (label, images) in zip(axes[:, 0], rows, strict=True):
        axis.imshow(_in_a_row(images), cmap="gray_r", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.set_ylabel(label, rotation=0, ha="right", va="center", color=_INK, fontsize=9)
    _save(figure, path, title)


def _in_a_row(images: np.ndarray) -> np.ndarray:
    """Joins images (n, height, width) from left to right, each within a white frame."""
    return np.hstack(list(np.pad(images, ((0, 0), (1, 1), (1, 1)))))
