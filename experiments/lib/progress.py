"""Progress of a run: a live bar on a terminal, plain lines everywhere else."""

import sys
import time
from typing import Self

from rich import progress as rich_progress


class Progress:
    """Shows how far a run is; use it as a context manager.

    On a terminal it is one live bar. Anywhere else (a file, a pipe, a CI log) every update is one
    plain line, because control characters would spoil the log.
    """

    def __init__(self, total: int, description: str) -> None:
        """Prepares the display.

        Args:
            total: Number of steps of the whole run.
            description: A word or two in front of the bar.
        """
        self._total = total
        self._description = description
        self._bar: rich_progress.Progress | None = None
        self._start = time.perf_counter()

    def __enter__(self) -> Self:
        """Starts the clock and, on a terminal, the live bar."""
        self._start = time.perf_counter()
        if sys.stdout.isatty():
            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("[bold]{task.description}"),
                rich_progress.BarColumn(bar_width=None),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TextColumn("[cyan]{task.fields[status]}"),
                rich_progress.TimeRemainingColumn(),
                rich_progress.TextColumn("left"),
                expand=True,
            )
            self._bar.add_task(self._description, total=self._total, status="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()

    def advance(self, completed: int) -> None:
        """Moves the live bar between two reports; prints nothing elsewhere.

        Args:
            completed: Steps done so far.
        """
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=completed)

    def update(
        self,
        completed: int,
        *,
        loss: float | None = None,
        accuracy: float | None = None,
        queries_per_second: float | None = None,
        images_per_second: float | None = None,
        signal_to_noise: float | None = None,
    ) -> None:
        """Reports the state of the run.

        Args:
            completed: Steps done so far.
            loss: The latest loss.
            accuracy: The latest validation accuracy, a fraction between 0 and 1.
            queries_per_second: Loss evaluations per second.
            images_per_second: Sample-forwards per second; only the plain lines have room for it.
            signal_to_noise: Of the latest estimate's loss differences; below 10 they are rounding.
        """
        parts = []
        if loss is not None:
            parts.append(f"loss {loss:.3f}")
        if accuracy is not None:
            parts.append(f"val acc {accuracy:.1%}".replace("%", " %"))
        if queries_per_second is not None:
            parts.append(f"{_short(queries_per_second)} queries/s")
        if signal_to_noise is not None:
            parts.append(f"snr {_short(signal_to_noise)}")
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=completed, status=" ".join(parts))
            return
        if images_per_second is not None:
            parts.append(f"{_short(images_per_second)} images/s")
        seconds = time.perf_counter() - self._start
        print(
            "  ".join([f"step {completed}/{self._total}", *parts, f"{seconds:.0f} s"]), flush=True
        )


def _short(value: float) -> str:
    """Writes 1234567 as 1.2M."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.1f}{suffix}"
    return f"{value:.0f}"
