"""Parts of the MNIST study on optimisers: the reference network, the twins, learning rates."""

from typing import Any

import numpy as np

from experiments.lib import figures, study_figures
from experiments.lib.study import Study, accuracy_table, markdown
from experiments.lib.study_recipes import (
    BACKPROP_RATES,
    OPTIMIZERS,
    PUBLISHED,
    VALUES_RATES,
    cnn_recipes,
)
from experiments.lib.study_training import DivergedError, Trained, initial, train


def first_order(study: Study) -> str:
    """The reference CNN by back-propagation: one seed of every setting, all seeds of the best."""
    config = study.config
    recipes = cnn_recipes(config, study.num_images, study.num_classes)
    networks = {
        name: [train(recipes[name], study.data, config.seed, config.num_evals)]
        for name in config.recipes
    }
    best = max(networks, key=lambda name: networks[name][0].rows[-1]["accuracy"])
    networks[best] += [
        train(recipes[best], study.data, seed, config.num_evals) for seed in study.seeds[1:]
    ]
    summaries = {name: study.summary(found) for name, found in networks.items()}
    curves = {
        name: {"label": recipes[name].label, "rows": [t.rows for t in found]}
        for name, found in networks.items()
    }
    study.best = networks[best][0]
    study.results["first_order"] = {"recipes": summaries, "best": best, "curves": curves}
    published = {name: f"{value:.2f}" for name, value in PUBLISHED.items()}
    _draw_filters(study, study.best)
    study_figures.optimizers(study)
    return (
        accuracy_table(summaries, published=published)
        + f"\nBest on the validation part, by the first seed: {summaries[best]['label']}.\n"
    )


def _draw_filters(study: Study, best: Trained) -> None:
    before = initial(best.recipe, study.data, study.config.seed)["Conv_0"]["kernel"]
    after = best.params["Conv_0"]["kernel"]
    limit = float(max(np.abs(before).max(), np.abs(after).max()))
    for name, kernel in (("before", before), ("after", after)):
        figures.weight_images(
            study.run.figures_dir / f"filters_{name}.png",
            np.asarray(kernel),
            study.data.train.images.shape[1:3],
            title=f"first-layer filters {name} training",
            limit=limit,
        )


def twins(study: Study) -> str:
    """The same four optimisers on a small network, by back-propagation and by values alone."""
    summaries, curves = {}, {}
    for values_only in (False, True):
        for optimizer in OPTIMIZERS:
            name = f"{'values' if values_only else 'backprop'}_{optimizer}"
            recipe = study.twin(optimizer, values_only=values_only)
            networks, summaries[name] = study.train(recipe)
            curves[name] = {"label": recipe.label, "rows": [t.rows for t in networks]}
    study.results["twins"] = {"recipes": summaries, "curves": curves}
    study_figures.optimizers(study)
    return accuracy_table(summaries)


def sensitivity(study: Study) -> str:
    """Validation accuracy against the learning rate, at a part of the budget."""
    found: dict[str, dict[str, Any]] = {}
    for values_only in (False, True):
        usual = VALUES_RATES if values_only else BACKPROP_RATES
        share = study.config.sensitivity_share * (1 if values_only else 3)
        for optimizer in OPTIMIZERS:
            accuracies: list[float | None] = []
            rates = [usual[optimizer] * factor for factor in study.config.rate_factors]
            for rate in rates:
                options = {"share": share, "learning_rate": rate, "values_only": values_only}
                recipe = study.twin(optimizer, **options)
                try:
                    last = train(recipe, study.data, study.config.seed, num_evals=1).rows[-1]
                    accuracies.append(last["accuracy"])
                except DivergedError:
                    accuracies.append(None)
            name = f"{'values' if values_only else 'backprop'}_{optimizer}"
            found[name] = {"label": recipe.label, "rates": rates, "accuracy": accuracies}
    study.results["sensitivity"] = found
    study_figures.sensitivity(study.run.figures_dir / "sensitivity.png", found)
    rows = [
        [
            entry["label"],
            *(
                f"{rate:g}: " + ("diverged" if a is None else f"{100 * a:.1f}")
                for rate, a in zip(entry["rates"], entry["accuracy"], strict=True)
            ),
        ]
        for entry in found.values()
    ]
    return markdown(["learning rate: validation %", *[""] * len(study.config.rate_factors)], rows)
