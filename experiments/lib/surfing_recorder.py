"""What a run of `experiments.surfing` writes: metrics, images, summary, table, figures."""

from typing import Any

import numpy as np

from experiments.lib import surfing_report
from experiments.lib.runs import RunDirectory
from experiments.lib.surfing_bench import IMAGES

_NUM_KEPT = 50  # images per row that are kept for the figures


class Recorder:
    """Metrics and images of all studies."""

    def __init__(self, run: RunDirectory) -> None:
        """Opens the run's files.

        Args:
            run: The run's folder.
        """
        self._run = run
        self._folder = run.path / "images"
        self._folder.mkdir(exist_ok=True)

    def finished(self) -> set[tuple[str, str]]:
        """Returns the studies that are complete, as (generator, study)."""
        rows = self._run.read_metrics()
        return {(row["generator"], row["study"]) for row in rows if row.get("is_last")}

    def drop_unfinished(self) -> None:
        """Forgets rows of studies that were interrupted: they are made again."""
        rows, done = self._run.read_metrics(), self.finished()
        kept = [row for row in rows if (row["generator"], row["study"]) in done]
        self._run.truncate_metrics(-1)
        for row in kept:
            self._run.append_metrics(row)

    def record(self, row: dict[str, Any], step: int, generator: str, is_last: bool) -> None:
        """Adds a row, and keeps its images."""
        images = row.pop(IMAGES, {})
        for name, values in images.items():
            stem = surfing_report.stem(row | {"generator": generator})
            np.save(self._folder / f"{stem}-{name}.npy", np.asarray(values)[:_NUM_KEPT])
        self._run.append_metrics({"step": step, "generator": generator, "is_last": is_last, **row})

    def write(self, title: str) -> None:
        """Writes summary and table."""
        rows = self._run.read_metrics()
        hidden = {"step", "generator", "is_last"}
        public = [{k: v for k, v in row.items() if k not in hidden} for row in rows]
        self._run.write_summary({"experiment": "surfing", "title": title, "rows": public})
        (self._run.path / "table.md").write_text(surfing_report.table(public))

    def draw(self, title: str) -> None:
        """Draws the figures that are made of rows and images."""
        surfing_report.draw(self._run.figures_dir, self._run.read_metrics(), self._folder, title)
