"""Optimisers on a small classifier: everything is the same except what follows the estimate."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
from experiments.lib.classifier import Evaluator, Task
from experiments.lib.data import Dataset, Split
from experiments.lib.optimization_contests import report, round_number
from experiments.lib.optimization_problems import Problem
from experiments.lib.optimization_runs import Algorithm, Method, behind, from_optax, tune_and_run

PAIRS = 32
QUERIES_PER_STEP = 2 * PAIRS
SIGMA = 0.03
_CALIBRATION = 25


def pooled(dataset: Dataset, side: int) -> Dataset:
    """Averages squares of pixels once, instead of in every evaluation.

    Args:
        dataset: Images whose sides are multiples of `side`.
        side: Of the squares.
    """

    def shrink(split: Split) -> Split:
        count, height, width, channels = split.images.shape
        squares = split.images.reshape(count, height // side, side, width // side, side, channels)
        return Split(squares.mean((2, 4)), split.labels)

    parts = {name: shrink(getattr(dataset, name)) for name in ("train", "validation", "test")}
    return dataclasses.replace(dataset, **parts)


def classifier_problem(task: Task, batch_size: int) -> Problem:
    """Makes a problem of a classifier: batches of the training part, judged on validation.

    Args:
        task: The loss and its data.
        batch_size: Images per evaluation; all points of a step share them.
    """

    def sample(key: jax.Array, data: Any) -> Any:
        (images, labels), _ = data
        chosen = jax.random.randint(key, (batch_size,), 0, labels.shape[0])
        return images[chosen], labels[chosen]

    def measure(params: Any, data: Any) -> dict[str, jax.Array]:
        images, labels = data[1]
        logits = task.module.apply({"params": params}, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {"loss": losses.mean(), "error": jnp.mean(logits.argmax(-1) != labels)}

    return Problem(
        init=lambda key: task.module.init(key, task.train[0][:1])["params"],
        sample=sample,
        loss=task.loss_fn,
        full=lambda params, data: task.loss_fn(params, data[0]),
        measure=measure,
        data=(task.train, task.validation),
    )


def build_methods(spsa_schedule: Callable[[Any], Any], spsa_sigma: Any) -> list[Method]:
    """Makes all methods, each with 64 queries per step.

    Args:
        spsa_schedule: Gain of SPSA for a target change of 1; it is multiplied by the tuned rate.
        spsa_sigma: Its schedule of sigma.
    """
    signs = partial(zojax.finite_difference, directions=zojax.rademacher(), sigma=SIGMA)
    central = signs(num_directions=PAIRS)
    normalised = signs(
        stencil=zojax.forward, shaping=zojax.standardize, num_directions=QUERIES_PER_STEP - 1
    )
    votes = signs(shaping=zojax.sign_of_difference, num_directions=PAIRS)
    calibrated = zojax.spsa(sigma=spsa_sigma, num_directions=PAIRS)
    scaled = optax.scale_by_learning_rate

    def spsa(schedule: Any, key: jax.Array) -> Algorithm:
        rate = schedule(0)  # the target change
        gains = optax.sgd(lambda count: rate * spsa_schedule(count))
        return from_optax(optax.chain(zojax.as_gradient_transformation(calibrated, key), gains))

    def then(est: zojax.Estimator, link: Any) -> Any:
        return behind(est, lambda _: link, scaled)

    small, large, of_sign = (1e-3, 0.3), (1e-2, 3.0), (1e-3, 0.3)
    rows = {
        "SGD": (behind(central, optax.sgd), large),
        "momentum": (behind(central, lambda s: optax.sgd(s, momentum=0.9)), (1e-3, 0.3)),
        "signSGD": (then(central, optax.scale_by_sign()), of_sign),
        "Adam": (behind(central, optax.adam), small),
        "AdaMM": (then(central, zojax.scale_by_adamm()), small),
        "R-AdaZO": (then(central, zojax.scale_by_adamm(b2=0.99, refined=True)), small),
        "normalised steps": (behind(normalised, optax.sgd), (3e-4, 0.1)),
        "majority vote": (then(votes, optax.scale_by_sign()), of_sign),
        "SPSA gains": (spsa, (3e-3, 1.0)),
    }
    return [
        Method(name, build, _spsa_cost if name == "SPSA gains" else _cost, rates,
               ("constant",) if name == "SPSA gains" else ("cosine",))
        for name, (build, rates) in rows.items()
    ]  # fmt: skip


def _cost(steps: int) -> int:
    return steps * QUERIES_PER_STEP


def _spsa_cost(steps: int) -> int:
    return 2 * _CALIBRATION + _cost(steps)


def classifier(
    task: Task, batch_size: int, seeds: Sequence[int], num_rates: int, budget: int
) -> dict[str, Any]:
    """Runs all methods; the rate is tuned on the validation loss, the test part is used at the end.

    Args:
        task: The loss and its data.
        batch_size: Images per evaluation.
        seeds: Seeds that are reported.
        num_rates: Learning rates that are tried.
        budget: Queries per run; one query is one batch.
    """
    problem = classifier_problem(task, batch_size)
    images, labels = task.train
    gains = zojax.transforms.calibrate_spsa(
        task.loss_fn,
        problem.init(jax.random.key(1_000_000)),
        jax.random.key(1_000_001),
        num_steps=max(1, budget // QUERIES_PER_STEP),
        target_change=1.0,
        sigma=SIGMA,
        num_estimates=_CALIBRATION,
        args=((images[:batch_size], labels[:batch_size]),),
    )
    evaluator, results = Evaluator(task.module), {}
    for method in build_methods(gains.learning_rate, gains.sigma):
        outcome = tune_and_run(
            problem,
            method,
            budget,
            seeds=seeds,
            num_rates=num_rates,
            score=lambda curves: curves["loss"][:, -1],
            num_records=25,
        )
        scores = [
            evaluator.score(jax.tree.map(lambda leaf, i=i: leaf[i], outcome.params), task.test)
            for i in range(len(seeds))
        ]
        results[method.name] = report(outcome, "loss") | {
            "validation_error": [round_number(v) for v in outcome.curves["error"][:, -1]],
            "test_accuracy": [round_number(accuracy) for accuracy, _ in scores],
            "tuning_loss": [round_number(value) for value in np.minimum(outcome.tuning[0], 99)],
        }
        accuracies = ", ".join(f"{accuracy:.2%}" for accuracy, _ in scores)
        print(f"  {method.name}: test accuracy {accuracies}", flush=True)
    return results
