"""The picture that explains surfing: the loss over two latents while the generator learns."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib.figures import _INK, _save, _subplots
from experiments.lib.surfing_bench import Bench
from experiments.lib.surfing_problems import Solver
from zojax import inverse

_NUM_PANELS = 6
_RANGE = 4.0  # of latents, around 0
_SIDE = 121  # points of the grid
_RATE = 0.05


def surface(path: Path, bench: Bench) -> None:
    """Draws the loss of one target on several snapshots, with the way of both methods.

    The target is the first that surfing recovers and direct descent does not, if there is one.

    Args:
        path: The PNG to write.
        bench: Of a generator with two latents.
    """
    problem = bench.tuning
    loss_fn = inverse.reconstruction_loss(problem.generate)
    ways, values = {}, {}
    for method in ("direct", "surfing"):
        solver = Solver(method, loss_fn, problem.snapshots, bench.effort)
        found, _ = solver(_RATE, problem.starts_for(method), bench.key(0), problem.images)
        ways[method], values[method] = found.path, found.values[:, -1]
    differ = np.flatnonzero((values["surfing"] < 1e-2) & (values["direct"] > 1e-2))
    number = int(differ[0]) if len(differ) else 0
    start, target = np.asarray(problem.starts)[number, 0], np.asarray(problem.latents)[number]
    way = np.concatenate([start[None], ways["surfing"][number]])
    image = problem.images[number]

    ticks = np.linspace(-_RANGE, _RANGE, _SIDE, dtype=np.float32)
    grid = jnp.asarray(np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2))

    @jax.jit
    def losses(params: Any) -> jax.Array:
        return jax.lax.map(lambda x: loss_fn(params, x, image), grid, batch_size=_SIDE)

    count, steps = len(way) - 1, bench.steps
    shown = np.unique(np.linspace(0, count - 1, _NUM_PANELS).round().astype(int))
    columns = -(-len(shown) // 2)
    figure, axes = _subplots(2, columns, (3.5 * columns, 7.2), sharex=True, sharey=True)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis, at in zip(axes.flat, shown, strict=False):
        params = jax.tree.map(lambda leaf, at=at: leaf[at], problem.snapshots)
        height = np.asarray(losses(params)).reshape(_SIDE, _SIDE)
        axis.contourf(ticks, ticks, np.log10(height + 1e-3), levels=24, cmap="Blues_r")
        axis.plot(*way[: at + 2].T, ".-", color="#ff8c1a", linewidth=1.2, markersize=4)
        axis.plot(*way[at + 1], "o", color="#ff8c1a", markeredgecolor="white", markersize=8)
        axis.plot(*target, "*", color="white", markeredgecolor=_INK, markersize=14)
        axis.set_title(f"training steps: {steps[at]:,}", color=_INK, fontsize=10)
        axis.set(xlim=(-_RANGE, _RANGE), ylim=(-_RANGE, _RANGE), aspect="equal")
    stuck = ways["direct"][number, -1]
    axis.plot(*stuck, "X", color="#d1495b", markeredgecolor="white", markersize=11)
    title = (
        "Loss over two latents while the generator learns (dark is low): star, the answer;\n"
        "orange, the way of surfing; red cross, where direct descent from the same start ends"
    )
    if not len(differ):
        title += "\n(there was no target that surfing recovers and direct descent does not)"
    _save(figure, path, title)
