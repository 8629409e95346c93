"""What the parts of the MNIST study share: configuration, data, the run, and trained networks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.lib import study_recipes
from experiments.lib.runs import RunDirectory
from experiments.lib.study_data import Data, score
from experiments.lib.study_networks import Network
from experiments.lib.study_training import Recipe, Trained, train


@dataclasses.dataclass
class Study:
    """One run of the study.

    Attributes:
        config: Of the experiment.
        data: The data set.
        run: Its folder.
        results: What the finished parts found, by their names.
        trained: Networks of the first seed that later parts use again, by recipe.
        best: The best reference network by back-propagation, once it is trained.
    """

    config: Any
    data: Data
    run: RunDirectory
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    trained: dict[Recipe, Trained] = dataclasses.field(default_factory=dict)
    best: Trained | None = None

    @property
    def num_images(self) -> int:
        """Training images."""
        return len(self.data.train.labels)

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.data.class_names)

    def perceptron(self, **options: Any) -> Network:
        """Returns the small network."""
        return study_recipes.perceptron(self.config, self.num_classes, **options)

    def twin(self, optimizer: Any, *, values_only: bool, **options: Any) -> Recipe:
        """Returns a recipe for the small network (or for `network`)."""
        network = options.pop("network", None) or self.perceptron()
        return study_recipes.twin(
            self.config, network, optimizer, self.num_images, values_only=values_only, **options
        )

    @property
    def seeds(self) -> range:
        """Of the networks of one setting."""
        return range(self.config.seed, self.config.seed + self.config.num_seeds)

    def train(
        self, recipe: Recipe, params: Sequence[Any] | None = None, num_evals: int | None = None
    ) -> tuple[list[Trained], dict[str, Any]]:
        """Trains a recipe with every seed; returns `(networks, summary)`.

        Args:
            recipe: How.
            params: Where to start, one for each seed; None for fresh ones.
            num_evals: Evaluations on the validation part.
        """
        evals = num_evals or self.config.num_evals
        starts = [None] * len(self.seeds) if params is None else params
        networks = [
            train(recipe, self.data, seed, evals, start)
            for seed, start in zip(self.seeds, starts, strict=True)
        ]
        self.trained[recipe] = networks[0]
        return networks, self.summary(networks)

    def network(self, recipe: Recipe) -> Trained:
        """Returns the network of the first seed, trained now if no part has trained it before."""
        if recipe not in self.trained:
            evals = self.config.num_evals
            self.trained[recipe] = train(recipe, self.data, self.config.seed, evals)
        return self.trained[recipe]

    def summary(self, networks: Sequence[Trained]) -> dict[str, Any]:
        """Scores networks of one recipe on the test part; a number per seed."""
        recipe = networks[0].recipe
        tested = [score(recipe.network, t.variables, self.data, self.data.test) for t in networks]
        return {
            "label": recipe.label,
            "values_only": bool(recipe.num_directions),
            "learning_rate": recipe.learning_rate,
            "steps": recipe.num_steps,
            "sample_forwards": recipe.num_steps * recipe.forwards_per_step,
            "seconds": [round(t.seconds, 1) for t in networks],
            "validation_accuracy": [t.rows[-1]["accuracy"] for t in networks],
            "test_accuracy": [accuracy for accuracy, _ in tested],
            "test_loss": [loss for _, loss in tested],
        }


def percent(values: Sequence[float], digits: int = 2) -> str:
    """Writes fractions as `mean ± standard deviation` in per cent."""
    mean = f"{100 * np.mean(values):.{digits}f}"
    return f"{mean} ± {100 * np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def accuracy_table(summaries: Mapping[str, Mapping[str, Any]], **extra: Mapping[str, str]) -> str:
    """Returns a Markdown table of training summaries, a row each.

    Args:
        summaries: From `Study.train`.
        **extra: Further columns by name: for each summary's key the cell.
    """
    head = ["trained by", "learning rate", "sample-forwards", "s", "validation %", "test %", *extra]
    rows = [
        [
            s["label"],
            f"{s['learning_rate']:g}",
            f"{s['sample_forwards']:.3g}",
            f"{np.mean(s['seconds']):.0f}",
            percent(s["validation_accuracy"]),
            percent(s["test_accuracy"]),
            *(column.get(name, "") for column in extra.values()),
        ]
        for name, s in summaries.items()
    ]
    return markdown(head, rows)
