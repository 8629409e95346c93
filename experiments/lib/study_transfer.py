"""Part of the MNIST study on transfer: few trained weights are where values alone shine."""

from experiments.lib import study_figures
from experiments.lib.data import load_dataset
from experiments.lib.errors import UserError
from experiments.lib.study import Study, accuracy_table
from experiments.lib.study_data import Data, score
from experiments.lib.study_networks import Network
from experiments.lib.study_training import FIRST_ORDER_FORWARDS, Recipe, Trainable, mask_of, train
from zojax import trees

_SOURCE = "fashion_mnist"
_WORDS: dict[Trainable, str] = {
    "last": "last layer",
    "last_two": "last two layers",
    "all": "all layers",
}


def transfer(study: Study) -> str:
    """Pretrains on Fashion-MNIST by back-propagation, then adapts to MNIST part by part.

    The whole network is kept, its last layer too. Sample-forwards count images times evaluations
    of the loss, not work: layers below the trained ones are computed once per step.
    """
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
    budgets = dict(zip(_WORDS, config.transfer_forwards, strict=True))
    recipes = {f"backprop_{part}": _back_propagation(study, network, part) for part in _WORDS}
    for part, forwards in budgets.items():
        recipes[f"values_{part}"] = _values_only(study, network, part, forwards)
    least = min(budgets.values())
    for part in (part for part, forwards in budgets.items() if forwards > least):
        recipes[f"values_{part}_equal"] = _values_only(study, network, part, least)
    summaries, curves, weights = {}, {}, {}
    for name, adapted in recipes.items():
        networks, summaries[name] = study.train(adapted, starts)
        curves[name] = {"label": adapted.label, "rows": [t.rows for t in networks]}
        trained = trees.partition(networks[0].params, mask_of(adapted))[0]
        summaries[name]["trained_weights"] = trees.size(trained)
        weights[name] = f"{trees.size(trained):,}"
    before, _ = score(network, pretrained[0].variables, study.data, study.data.test)
    study.results["transfer"] = {
        "pretrained_validation_accuracy": [t.rows[-1]["accuracy"] for t in pretrained],
        "test_accuracy_without_adaptation": before,
        "recipes": summaries,
        "curves": curves,
    }
    study_figures.transfer(study.run.figures_dir / "transfer.png", curves)
    return accuracy_table(summaries, **{"trained weights": weights})


def _back_propagation(study: Study, network: Network, part: Trainable) -> Recipe:
    return study.twin(
        "adam",
        values_only=False,
        network=network,
        label=_WORDS[part],
        trainable=part,
        share=study.config.transfer_epochs / study.config.backprop_epochs,
        learning_rate=3e-3 if part == "last" else 1e-3,
    )


def _values_only(study: Study, network: Network, part: Trainable, forwards: float) -> Recipe:
    return study.twin(
        "adam",
        values_only=True,
        network=network,
        label=f"{_WORDS[part]}, {forwards:.0e}".replace("e+0", "e"),
        trainable=part,
        share=forwards / study.config.sample_forwards,
        learning_rate=0.01 if part == "last" else 3e-3,
        sigma=0.02,
        batch_size=min(256, study.num_images),
        num_directions=64,
        # Perturbed convolutions are fastest one direction at a time.
        chunk={"last": 0, "last_two": 16, "all": 1}[part],
    )
