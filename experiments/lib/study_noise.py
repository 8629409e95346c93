"""Part of the MNIST study on noise: on the input, on the weights, and one that flips a decision."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import study_figures
from experiments.lib.study import Study, markdown
from experiments.lib.study_data import logits_of, predict, score
from experiments.lib.study_networks import Network
from experiments.lib.study_training import Trained
from zojax import robustness

_INPUT_LEVELS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
_WEIGHT_LEVELS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
_CANDIDATES = 16  # correctly classified images with the least margin, tried for a flip
_DRAWS = 256  # of noise per image and level
_SMALL_LEVELS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2)
_CONFIDENCES = (0.0, 0.9)  # least confidence in the image that is to be flipped


def noise(study: Study) -> str:
    """Accuracy against noise on pixels and on weights; images that small noise flips.

    The reference network is among them if the part first_order came before.
    """
    config = study.config
    pairs = {"values_only": True}, {"values_only": False}
    recipes = [study.twin("adam", **options) for options in pairs]
    recipes += [
        study.twin("adam", label="Adam, noisy pixels", input_noise=config.input_noise, **options)
        for options in pairs
    ]
    networks = [study.network(recipe) for recipe in recipes]
    if study.best:
        networks.append(study.best)
    flipped = study.best or networks[1]
    key = jax.random.key(config.seed)
    curves = {
        t.recipe.label: {
            "input": _input_curve(study, t, key),
            "weight": _weight_curve(study, t, key),
        }
        for t in networks
    }
    flips = [_flip(study, flipped, key, confidence) for confidence in _CONFIDENCES]
    study.results["noise"] = {
        "input_levels": _INPUT_LEVELS,
        "weight_levels": (0.0, *_WEIGHT_LEVELS),
        "curves": curves,
        "flips": [
            {name: value for name, value in flip.items() if np.ndim(value) == 0} for flip in flips
        ],
    }
    study_figures.noise(study.run.figures_dir / "noise.png", study.results["noise"])
    study_figures.flips(study.run.figures_dir / "flips.png", flips)
    head = ["test accuracy, %", *(f"pixels {level:g}" for level in (0, 0.2, 0.5))]
    head += [f"weights {level:g} rms" for level in (0.2, 0.5)]
    rows = [
        [
            label,
            *(f"{100 * c['input'][_INPUT_LEVELS.index(level)]:.1f}" for level in (0.0, 0.2, 0.5)),
            *(f"{100 * c['weight'][1 + _WEIGHT_LEVELS.index(level)]:.1f}" for level in (0.2, 0.5)),
        ]
        for label, c in curves.items()
    ]
    label = flipped.recipe.label
    return markdown(head, rows) + "".join(f"\n{_sentence(flip, label)}\n" for flip in flips)


def _sentence(flip: dict[str, Any], label: str) -> str:
    sure = f" made with a confidence of at least {flip['asked']:.0%}" if flip["asked"] else ""
    what = f"a decision of '{label}'{sure}"
    if not flip["found"]:
        return f"No noise up to {_SMALL_LEVELS[-1]:g} was found that flips {what}."
    return (
        f"Smallest noise found that flips {what}: standard deviation {flip['level']:g} of the range"
        f" of a pixel; {flip['was']} ({flip['confidence_before']:.0%}) → {flip['becomes']} "
        f"({flip['confidence_after']:.0%}), by {flip['share_of_draws']:.1%} of the draws; "
        f"{flip['queries']:,} queries."
    )


def _input_curve(study: Study, trained: Trained, key: jax.Array) -> list[float]:
    """Accuracy on the test part with Gaussian noise on pixels, which are in [0, 1]."""
    images, network = study.data.test.images, trained.recipe.network
    scores = []
    for number, level in enumerate(_INPUT_LEVELS):
        draw = jax.random.normal(jax.random.fold_in(key, number), images.shape)
        noisy = study.data.test._replace(images=images + level * draw)
        scores.append(score(network, trained.variables, study.data, noisy)[0])
    return scores


def _weight_curve(study: Study, trained: Trained, key: jax.Array) -> list[float]:
    """Mean accuracy over chips, with Gaussian noise relative to each layer's weights."""
    images = study.data.test.images[: study.config.noise_images]
    labels = study.data.test.labels[: study.config.noise_images]
    others = {name: v for name, v in trained.variables.items() if name != "params"}

    def accuracy(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = trained.recipe.network.apply({"params": params, **others}, images)
        return (logits.argmax(-1) == labels).mean()

    curve = robustness.noise_curve(
        accuracy,
        trained.params,
        lambda level: robustness.gaussian_noise(level, "rms"),
        _WEIGHT_LEVELS,
        key,
        num_chips=study.config.num_chips,
        chunk_size=1,
        args=(study.data.prepare(images), labels),
    )
    return [curve.clean, *curve.mean.tolist()]


def _flip(study: Study, trained: Trained, key: jax.Array, confidence: float) -> dict[str, Any]:
    """Looks for the smallest noise that changes a right decision, by values of the network only.

    Pixels stay in [0, 1], so on a black background only half of the noise is left.
    """
    data, network = study.data, trained.recipe.network
    logits = predict(network, trained.variables, data, data.test.images)
    labels = np.asarray(data.test.labels)
    ordered = np.sort(logits, axis=1)
    is_sure = np.asarray(jax.nn.softmax(logits)).max(1) >= confidence
    is_candidate = (logits.argmax(1) == labels) & is_sure
    margin = np.where(is_candidate, ordered[:, -1] - ordered[:, -2], np.inf)
    queries = len(labels)
    for level in _SMALL_LEVELS:
        for index in np.argsort(margin)[: min(_CANDIDATES, is_candidate.sum())]:
            image = data.test.images[index]
            found, tried = _try_draws(
                network, trained.variables, data.mean, data.deviation, image, level, key
            )
            queries += _DRAWS
            flipped = np.asarray(found).argmax(1) != labels[index]
            if flipped.any():
                place = int(flipped.argmax())
                return {
                    "found": True,
                    "asked": confidence,
                    "level": level,
                    "queries": queries,
                    "index": int(index),
                    "was": data.class_names[labels[index]],
                    "becomes": data.class_names[int(np.asarray(found)[place].argmax())],
                    "confidence_before": float(jax.nn.softmax(logits[index]).max()),
                    "confidence_after": float(jax.nn.softmax(found[place]).max()),
                    "share_of_draws": float(flipped.mean()),
                    "image": np.asarray(image),
                    "noisy": np.asarray(tried[place]),
                }
    return {"found": False, "asked": confidence, "queries": queries}


@functools.partial(jax.jit, static_argnums=0)
def _try_draws(
    network: Network,
    variables: Any,
    mean: jax.Array,
    deviation: jax.Array,
    image: jax.Array,
    level: Any,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    draws = jax.random.normal(key, (_DRAWS, *image.shape))
    noisy = jnp.clip(image + level * draws, 0, 1)  # what a screen could show
    return logits_of(network, variables, (noisy - mean) / deviation), noisy
