"""Part of the MNIST study on transfer: few trained weights are where values alone shine."""

from typing import Any

from experiments.lib import study_figures
from experiments.lib.data import load_dataset
from experiments.lib.errors import UserError
from experiments.lib.study import Study, accuracy_table
from experiments.lib.study_networks import Network
from experiments.lib.study_training import (
    FIRST_ORDER_FORWARDS,
    Data,
    Recipe,
    Trainable,
    score,
    train,
)

_SOURCE = "fashion_mnist"
_WORDS: dict[Trainable, str] = {
    "last": "last layer",
    "last_two": "last two layers",
    "all": "all layers",
}


def transfer(study: Study) -> str:
    """Pretrains on Fashion-MNIST by back-propagation, then adapts to MNIST part by part."""
    config = study.config
    if study.data.name != "mnist":
        return f"Skipped: transfer goes from {_SOURCE} to mnist, and this is {study.data.name}.\n"
    try:
        source = Data.of(load_dataset(_SOURCE, config.data_dir), config.num_train)
    except UserError as error:
        return f"Skipped: {error}\n"
    network = Network(study.num_classes, config.transfer_features, config.transfer_hidden)
    budget = config.pretrain_epochs * FIRST_ORDER_FORWARDS * len(source.train.labels)
    recipe = Recipe(f"pretraining on {_SOURCE}", network, "adam", 1e-3, budget, shift=1, flip=True)
    pretrained = [train(recipe, source, seed, 4) for seed in study.seeds]
    starts = [t.params for t in pretrained]
    summaries, curves = {}, {}
    for values_only in (False, True):
        for trainable in _WORDS:
            name = f"{'values' if values_only else 'backprop'}_{trainable}"
            adapted = _recipe(study, network, trainable, values_only)
            networks, summaries[name] = study.train(adapted, starts)
            curves[name] = {"label": adapted.label, "rows": [t.rows for t in networks]}
    study.results["transfer"] = {
        "pretrained_validation_accuracy": [t.rows[-1]["accuracy"] for t in pretrained],
        "without_adaptation": score(network, pretrained[0].variables, study.data, study.data.test)[
            0
        ],
        "recipes": summaries,
        "curves": curves,
    }
    study_figures.transfer(study.run.figures_dir / "transfer.png", curves)
    return accuracy_table(summaries)


def _recipe(study: Study, network: Network, trainable: Trainable, values_only: bool) -> Recipe:
    config = study.config
    options: dict[str, Any] = {"network": network, "label": _WORDS[trainable]}
    budgets = dict(zip(_WORDS, config.transfer_forwards, strict=True))
    if not values_only:
        share = config.transfer_epochs / config.backprop_epochs
        rate = 3e-3 if trainable == "last" else 1e-3
        options |= {"share": share, "learning_rate": rate}
    else:
        # Frozen layers are the same for all points of a step, so they are computed once, and
        # what is not frozen is evaluated direction by direction.
        options |= {
            "share": budgets[trainable] / config.sample_forwards,
            "learning_rate": 0.01 if trainable == "last" else 3e-3,
            "sigma": 0.02,
            "batch_size": min(256, study.num_images),
            "num_directions": 64,
            "chunk": {"last": 0, "last_two": 16, "all": 1}[trainable],
        }
    return study.twin("adam", values_only=values_only, trainable=trainable, **options)
