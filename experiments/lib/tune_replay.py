"""A table of trained configurations, and searchers that replay it."""

import itertools
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.lib.errors import UserError
from experiments.lib.progress import Progress
from experiments.lib.tune_searchers import contestants, search
from experiments.lib.tune_space import TRAINING_SPACE, Space, from_unit, to_unit
from experiments.lib.tune_training import RUNGS, Trainable

_TOGETHER = 128  # networks under one vmap
Curve = Callable[[Mapping[str, Any]], Iterator[tuple[int, float]]]


class Table(NamedTuple):
    """Learning curves of many configurations.

    Attributes:
        points: Configurations in the unit cube, (n, d).
        scores: Held-out cross-entropy at every rung of `RUNGS`, (n, rungs); NaN where the training
            diverged.
        unit_forwards: Sample-forwards of one unit of training.
    """

    points: np.ndarray
    scores: np.ndarray
    unit_forwards: int

    @property
    def best(self) -> float:
        """The best final score."""
        return float(np.nanmin(self.scores[:, -1]))

    def curve(self, params: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
        """Yields (units, score) of the configuration that is nearest in the unit cube."""
        distances = ((self.points - to_unit(params, TRAINING_SPACE)) ** 2).sum(1)
        scores = self.scores[int(distances.argmin())]
        yield from zip(RUNGS, scores.tolist(), strict=True)

    def quantiles(self, levels: Sequence[float]) -> list[float]:
        """Returns quantiles of the final scores."""
        return np.nanquantile(self.scores[:, -1], levels).tolist()  # type: ignore[no-any-return]

    def rank_correlations(self) -> dict[int, float]:
        """Returns, for every rung, Spearman's correlation of its scores with the final ones."""
        ranks = np.nan_to_num(self.scores, nan=np.inf).argsort(0).argsort(0)
        return dict(zip(RUNGS, np.corrcoef(ranks.T)[-1].tolist(), strict=True))

    def save(self, path: Path) -> None:
        """Writes the table, whole or not at all."""
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.savez_compressed(file, **self._asdict(), ranges=_ranges())
        os.replace(temporary, path)


def load_table(path: str | Path) -> Table:
    """Reads a table.

    Args:
        path: What `Table.save` wrote.

    Raises:
        UserError: If it is not there, or not a table of this search space.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            table = Table(
                stored["points"].astype(float),
                stored["scores"].astype(float),
                int(stored["unit_forwards"]),
            )
            ranges = stored["ranges"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a table of trained configurations ({error})") from error
    if not np.array_equal(ranges, _ranges()) or table.scores.shape[1:] != (len(RUNGS),):
        raise UserError(
            f"{path} is a table of another search space; leave --table out to train one"
        )
    return table


def _ranges() -> np.ndarray:
    """Returns the ends of all ranges, (d, 2): points of the cube mean nothing without them."""
    return np.array([(d.low, d.high) for d in TRAINING_SPACE.values()])  # type: ignore[attr-defined]


def train_table(trainable: Trainable, num_configurations: int, seed: int) -> Table:
    """Trains configurations spread over the space by a Sobol sequence.

    Args:
        trainable: What is trained.
        num_configurations: How many.
        seed: Of the scrambling of the sequence.
    """
    from scipy.stats import qmc

    sequence = qmc.Sobol(len(TRAINING_SPACE), rng=seed)
    draws = sequence.random_base2((num_configurations - 1).bit_length())[:num_configurations]
    configurations = [from_unit(draw, TRAINING_SPACE) for draw in draws]
    scores = np.full((num_configurations, len(RUNGS)), np.nan)

    def shape(index: int) -> int:
        return configurations[index]["log2_directions"]

    done = 0
    with Progress(num_configurations, "table") as progress:
        for _, group in itertools.groupby(sorted(range(num_configurations), key=shape), shape):
            indices = list(group)
            for part in (indices[i : i + _TOGETHER] for i in range(0, len(indices), _TOGETHER)):
                scores[part] = _train(trainable, [configurations[i] for i in part])
                done += len(part)
                progress.update(done, loss=float(np.nanmin(scores[:, -1])))
    points = np.array([to_unit(c, TRAINING_SPACE) for c in configurations])
    return Table(points.astype(np.float32), scores.astype(np.float32), trainable.unit_forwards)


def _train(trainable: Trainable, configurations: Sequence[Mapping[str, Any]]) -> np.ndarray:
    state, units, columns = trainable.init(len(configurations)), 0, []
    for rung in RUNGS:
        state = trainable.advance(state, configurations, units, rung)
        columns.append(trainable.score(state))
        units = rung
    return np.stack(columns, 1)


def contest(
    names: Sequence[str], space: Space, curve: Curve, budget: int, grid: np.ndarray, seeds: range
) -> dict[str, dict[str, Any]]:
    """Lets searchers run over seeds.

    Args:
        names: Of the pairs of searcher and scheduler.
        space: The search space.
        curve: Answers a configuration with its learning curve.
        budget: Units that each may spend.
        grid: Units at which the best score so far is noted.
        seeds: One run each.

    Returns:
        For every name `best`, the best complete score at every point of `grid`, (seeds, grid);
        infinite before a trial is complete; the mean numbers of trials and of complete ones, and
        the seconds.
    """
    results = {}
    for name in names:
        began, rows, trials, complete = time.perf_counter(), [], [], []
        for seed in seeds:
            history = search(*contestants()[name], space, curve, budget, seed)
            spent = np.array([units for units, _, _ in history])
            best = np.array([np.inf, *(best for _, best, _ in history)])
            rows.append(best[np.searchsorted(spent, grid, side="right")])
            trials.append(len(history))
            complete.append(sum(is_complete for _, _, is_complete in history))
        seconds = time.perf_counter() - began
        results[name] = {
            "best": np.array(rows),
            "trials": float(np.mean(trials)),
            "complete": float(np.mean(complete)),
            "seconds": round(seconds, 1),
        }
        print(
            f"{name}: best {results[name]['best'][:, -1].mean():.4f}  {seconds:.0f} s", flush=True
        )
    return results
