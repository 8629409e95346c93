"""Parts of the MNIST study on penalties, and on dropout and batch norm under perturbation."""

from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

import zojax
from experiments.lib.study import Study, accuracy_table, markdown
from experiments.lib.study_networks import initial_variables
from experiments.lib.study_training import Recipe, Trained, loss_of

_SMALL = 1e-3
_PAIRS = 64  # directions of one estimate whose spread is measured
_ESTIMATES = 64
_SIGMAS = (0.05, 0.01, 0.002)


def regularization(study: Study) -> str:
    """L1 and L2 in the loss, L1 as a proximal step; L1 from trained and from fresh weights.

    The sample-forwards and seconds of a continued network are those of its second half.
    """
    summaries: dict[str, Any] = {}
    sparsity: dict[str, dict[str, str]] = {"zero": {}, "small": {}, "norm": {}}

    def add(name: str, recipe: Recipe, params: Any = None) -> list[Trained]:
        networks, summaries[name] = study.train(recipe, params, num_evals=1)
        numbers = [sizes(t.params) for t in networks]
        summaries[name] |= {key: [n[key] for n in numbers] for key in numbers[0]}
        for column, key in (("zero", "zero_share"), ("small", "small_share")):
            sparsity[column][name] = f"{100 * np.mean(summaries[name][key]):.1f}"
        sparsity["norm"][name] = f"{np.mean(summaries[name]['l1_norm']):.0f}"
        return networks

    strength = study.config.l1
    for values_only in (False, True):
        kind = "values" if values_only else "backprop"
        share = study.config.regularization_share if values_only else 1.0
        options = {"values_only": values_only, "share": share}
        plain = study.twin("adam", label="Adam, no penalty", **options)
        first = add(f"{kind}_none", plain)
        for field in ("l2", "l1"):
            label = f"Adam, {field.upper()} {strength:g} in the loss"
            add(f"{kind}_{field}", study.twin("adam", label=label, **{field: strength}, **options))
        # A proximal step goes with plain descent, so that is what it is compared with.
        label = f"SGD, L1 {strength:g} in the loss"
        add(f"{kind}_sgd_l1", study.twin("sgd", label=label, l1=strength, **options))
        label = f"SGD, L1 {strength:g} as proximal step"
        add(f"{kind}_prox", study.twin("sgd", label=label, prox_l1=strength, **options))
        # Continued with the penalty, continued without, and re-initialised for as long in all.
        start = [t.params for t in first]
        label = f"Adam, L1 {strength:g}, from the network without penalty"
        add(f"{kind}_continued", study.twin("adam", label=label, l1=strength, **options), start)
        label = "Adam, no penalty, from the network without penalty"
        add(f"{kind}_none_continued", study.twin("adam", label=label, **options), start)
        label = f"Adam, L1 {strength:g}, re-initialised, twice as long"
        longer = options | {"share": 2 * share}
        add(f"{kind}_fresh", study.twin("adam", label=label, l1=strength, **longer))
    study.results["regularization"] = summaries
    columns = {
        "exactly zero %": sparsity["zero"],
        f"below {_SMALL:g} %": sparsity["small"],
        "Σ abs(w)": sparsity["norm"],
    }
    return accuracy_table(summaries, **columns)


def sizes(params: Any) -> dict[str, float]:
    """Returns how many weights vanish, how many nearly, and the sum of magnitudes."""
    flat = np.abs(np.asarray(jax.flatten_util.ravel_pytree(params)[0]))
    return {
        "zero_share": float((flat == 0).mean()),
        "small_share": float((flat < _SMALL).mean()),
        "l1_norm": float(flat.sum()),
    }


def perturbation(study: Study) -> str:
    """Dropout and batch norm where the loss is evaluated at perturbed weights."""
    summaries: dict[str, Any] = {}
    variants = {
        "plain": ("no dropout, no batch norm", {}),
        "dropout": ("dropout 0.2", {"dropout": 0.2}),
        "batch_norm": ("batch norm", {"batch_norm": True}),
    }
    share = study.config.regularization_share
    for name, (label, options) in variants.items():
        network = study.perceptron(**options)
        given = {"network": network, "values_only": True, "share": share}
        recipe = study.twin("adam", label=f"Adam, {label}", **given)
        _, summaries[name] = study.train(recipe, num_evals=1)
    quality = _spread(study)
    study.results["perturbation"] = {"recipes": summaries, "relative_squared_error": quality}
    rows = [[name, *(f"{value:.3g}" for value in values)] for name, values in quality.items()]
    head = [f"relative squared error of an estimate, {_PAIRS} pairs; dropout masks"]
    head += [f"sigma {sigma:g}" for sigma in _SIGMAS]
    return accuracy_table(summaries) + "\n" + markdown(head, rows)


def _spread(study: Study) -> dict[str, list[float]]:
    """Compares points that share a dropout mask with points that each draw their own.

    Returns:
        For each the squared error of an estimate over the squared gradient, a number per sigma.
    """
    recipe = study.twin(
        "adam", network=study.perceptron(dropout=0.2), values_only=True, label="mask"
    )
    data, key = study.data, jax.random.key(study.config.seed)
    params, collections = initial_variables(recipe.network, key, data.train.images)
    size = min(512, study.num_images)
    batch = (data.prepare(data.train.images[:size]), data.train.labels[:size])
    shared = loss_of(recipe, collections)

    def own(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        # A key that differs from point to point: the bits of a perturbed weight.
        number = sum(leaf.sum() for leaf in jax.tree.leaves(params))
        bits = jax.lax.bitcast_convert_type(number, jnp.uint32)
        return shared(params, batch, jax.random.fold_in(key, bits))

    def estimates(loss_fn: Any, sigma: Any) -> jax.Array:
        est = zojax.finite_difference(
            directions=zojax.rademacher(), num_directions=_PAIRS, sigma=sigma
        )

        def one(key: jax.Array) -> jax.Array:
            mask_key, noise_key = jax.random.split(key)
            args = (batch, mask_key)
            found, _ = zojax.estimate(est, loss_fn, params, noise_key, (), args=args)
            return jax.flatten_util.ravel_pytree(found.grad)[0]

        return jax.lax.map(one, jax.random.split(key, _ESTIMATES))

    def reference(key: jax.Array) -> jax.Array:
        return jax.flatten_util.ravel_pytree(jax.grad(shared)(params, batch, key))[0]

    mean = jax.jit(jax.vmap(reference))(jax.random.split(key, 256)).mean(axis=0)

    def errors(loss_fn: Any) -> list[float]:
        run = jax.jit(lambda sigma: estimates(loss_fn, sigma))
        return [float(_relative_error(run(jnp.float32(sigma)), mean)) for sigma in _SIGMAS]

    return {"one for all points of a step": errors(shared), "one for every point": errors(own)}


def _relative_error(samples: jax.Array, mean: jax.Array) -> jax.Array:
    return jnp.mean(jnp.sum((samples - mean) ** 2, axis=1)) / jnp.sum(mean**2)
