"""What a run of `experiments.attack` writes and prints: summary, tables and figures."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib import attack_figures, attack_report, attack_tables
from experiments.lib.attack_oracles import build_oracle
from experiments.lib.attack_runs import Task
from experiments.lib.attack_store import Record
from experiments.lib.attack_suite import SUITE, UNIVERSAL
from experiments.lib.attack_tables import HEAD, UNIVERSAL_HEAD
from experiments.lib.attack_universal import UniversalRecord
from experiments.lib.runs import RunDirectory
from zojax.blackbox import OracleError

_NUM_EXAMPLES = 4


class Outputs:
    """Collects records; tables and summary are up to date after each."""

    def __init__(self, run: RunDirectory, config: Any, task: Task) -> None:
        """Starts with nothing.

        Args:
            run: The run's folder.
            config: Its configuration.
            task: What attacks on single images are given.
        """
        self._run = run
        self._config = config
        self._task = task
        self._records: dict[str, Record] = {}
        self._universal: dict[tuple[str, str], UniversalRecord] = {}
        self._example_queries = 0

    def path_of(self, name: str) -> Path:
        """Returns the file of an attack's results.

        Args:
            name: Of the attack.
        """
        return self._run.path / "attacks" / f"{name}.npz"

    def add(self, name: str, record: Record) -> None:
        """Takes in the record of an attack on single images.

        Args:
            name: Of the attack.
            record: Of all images.
        """
        self._records[name] = record
        row = attack_report.row_of(name, self._task, record)
        median = row["queries_to_success"]["median"]
        queries = "" if median is None or row["is_white_box"] else f", median {median:g} queries"
        print(
            f"{name}: {row['success']}/{row['attacked']} successes{queries}, "
            f"{row['seconds']:.0f} s",
            flush=True,
        )
        self._write()

    def add_universal(self, name: str, images: str, record: UniversalRecord) -> None:
        """Takes in a universal perturbation.

        Args:
            name: Of the attack.
            images: Name of the images it was made for.
            record: What was found.
        """
        self._universal[name, images] = record
        print(
            f"{name}, {images}: {record.success.sum()}/{len(record.success)} successes, "
            f"l2 {record.l2:.2f}, {record.seconds:.0f} s",
            flush=True,
        )
        self._write()

    def finish(self) -> None:
        """Draws the figures, prints the table, says where everything is."""
        self._draw()
        self._write()
        rows, universal = self._rows()
        if rows:
            attack_tables.show(HEAD, [attack_tables.cells_of(row) for row in rows])
        if universal:
            attack_tables.show(
                UNIVERSAL_HEAD, [attack_tables.universal_cells(row) for row in universal]
            )
        print(self._notes(rows, universal).replace("\\*", "*"))
        print(
            f"table: {self._run.path / 'table.md'}\nfigures: {self._run.figures_dir}\n"
            f"summary: {self._run.path / 'summary.json'}",
            flush=True,
        )

    def _title(self) -> str:
        config, victim = self._config, self._task.victim
        model = f"{config.oracle}"
        if victim is not None:
            model = f"{config.dataset} {victim.name}, test accuracy {victim.test_accuracy:.1%}"
        kind = "targeted" if config.targeted else "untargeted"
        norms = {SUITE[name].norm for name in config.attacks if name not in UNIVERSAL}
        radii = {"linf": config.eps, "l2": config.eps_l2}
        parts = [f"{norm} {radius:g}" for norm, radius in radii.items() if norm in norms]
        return f"{model}; {', '.join([kind, *parts])}"

    def _rows(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        rows = [attack_report.row_of(name, self._task, r) for name, r in self._records.items()]
        universal = [
            attack_report.universal_row(name, images, record)
            for (name, images), record in self._universal.items()
        ]
        return rows, universal

    def _notes(self, rows: list[dict[str, Any]], universal: list[dict[str, Any]]) -> str:
        text = attack_tables.notes(rows, universal)
        if self._example_queries:
            text += f"\n\nThe figure of examples cost {self._example_queries} queries besides."
        return text

    def _write(self) -> None:
        rows, universal = self._rows()
        victim = self._task.victim
        self._run.write_summary(
            {
                "experiment": "attack",
                "title": self._title(),
                "test_accuracy": None if victim is None else victim.test_accuracy,
                "example_queries": self._example_queries,
                "attacks": rows,
                "universal": universal,
            }
        )
        parts = [self._title() + "\n"]
        if rows:
            cells = [attack_tables.cells_of(row) for row in rows]
            parts.append(attack_tables.markdown(HEAD, cells))
        milestones = attack_tables.milestone_table(rows) if self._config.milestones else []
        if milestones:
            parts.append(attack_tables.markdown(milestones[0], milestones[1:]))
        if universal:
            cells = [attack_tables.universal_cells(row) for row in universal]
            parts.append(attack_tables.markdown(UNIVERSAL_HEAD, cells))
        parts.append(self._notes(rows, universal) + "\n")
        (self._run.path / "table.md").write_text("\n".join(parts))

    def _draw(self) -> None:
        folder, title = self._run.figures_dir, self._title()
        rows, _ = self._rows()
        if any(not row["is_white_box"] for row in rows):
            path = folder / "success_vs_queries.png"
            attack_figures.success(path, self._records, self._task, title)
        attack_figures.distortion(folder / "distortion_vs_queries.png", rows, title)
        if attack_figures.as_image(self._task.images[:1]) is None:
            return
        if self._records:
            self._draw_examples(folder / "examples.png", title)
        if self._universal:
            found = {", ".join(key): record for key, record in self._universal.items()}
            attack_figures.universal(folder / "universal.png", found, title)

    def _draw_examples(self, path: Path, title: str) -> None:
        """Shows the first images that were attacked; the model is asked what it makes of them."""
        results = [record.results for record in self._records.values()]
        chosen = np.flatnonzero(results[0].status != "already")[:_NUM_EXAMPLES]
        if not len(chosen):
            return
        images = self._task.images[chosen]
        inputs = [images, *(result.adversarial[chosen] for result in results)]
        labels = self._labels(np.concatenate(inputs)).reshape(len(inputs), -1)
        found = {
            name: (
                attack_figures.as_image(result.adversarial[chosen]),
                np.where(result.success[chosen], given, -1),
            )
            for name, result, given in zip(self._records, results, labels[1:], strict=True)
        }
        original = attack_figures.as_image(images)
        attack_figures.examples(path, original, labels[0], found, title)

    def _labels(self, inputs: np.ndarray) -> np.ndarray:
        """What the model says; -1 where it does not answer. Not part of any attack's queries."""
        oracle = build_oracle(self._task.function, self._task.limits, None)
        try:
            found = oracle.labels(inputs, np.arange(len(inputs)), purpose="check")
        except OracleError:
            found = np.full(len(inputs), -1)
        self._example_queries = int(oracle.counts.total.sum())
        return found
