"""What a classifier's training run tells its user: at the start, and in summary and figures."""

import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np

from experiments.lib import figures
from experiments.lib.classifier import Evaluator, Task
from experiments.lib.data import Dataset
from experiments.lib.errors import UserError
from experiments.lib.runs import RunDirectory
from experiments.lib.training import Plan


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished training.

    Attributes:
        params: Final parameters.
        plan: What was run.
        seconds: Training time, with compilation and evaluation.
        rows: Metrics at every evaluation.
    """

    params: Any
    plan: Plan
    seconds: float
    rows: list[dict[str, Any]]


def check_initial_loss(task: Task, params: Any) -> None:
    """Refuses to train from a loss that is not a number.

    Args:
        task: The loss and its data.
        params: Initial parameters.

    Raises:
        UserError: If the loss of the first training images is not finite.
    """
    images, labels = task.train
    value = float(jax.jit(task.loss_fn)(params, (images[:64], labels[:64])))
    if not np.isfinite(value):
        raise UserError(
            f"the loss is {value} at the initial parameters, so there is nothing to descend: "
            "check the data and the model"
        )


def count_parameters(task: Task) -> int:
    """Returns the number of parameters of the task's model."""
    shapes = jax.eval_shape(task.module.init, jax.random.key(0), task.train[0][:1])
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def write(
    seed: int,
    dataset: Dataset,
    task: Task,
    run: RunDirectory,
    result: Result,
    baseline: Result | None = None,
) -> None:
    """Scores the test part, writes figures and `summary.json`, and prints the result.

    Args:
        seed: The run's seed.
        dataset: The data.
        task: The loss.
        run: The run's folder.
        result: The training from function values.
        baseline: The back-propagation twin, once it is trained.
    """
    evaluator = Evaluator(task.module)
    summary = {
        "experiment": run.path.parent.name,
        "dataset": dataset.name,
        "note": dataset.note,
        "parameters": count_parameters(task),
        "seed": seed,
        **_scores(evaluator, task, result),
        "params_sha256": digest(result.params),
    }
    if baseline is not None:
        summary["back_propagation"] = _scores(evaluator, task, baseline)
    run.write_summary(summary)
    _draw(dataset, task, run, evaluator, result, baseline)
    if baseline is None:
        print(
            f"test accuracy {summary['test_accuracy']:.2%} after {result.seconds:.0f} s of "
            f"training, {summary['sample_forwards']:.3g} sample-forwards, "
            f"{summary['queries']:,} queries",
            flush=True,
        )
    else:
        twin = summary["back_propagation"]
        print(
            f"back-propagation twin: test accuracy {twin['test_accuracy']:.2%} after "
            f"{baseline.seconds:.0f} s, {twin['sample_forwards']:.3g} sample-forwards",
            flush=True,
        )


def _scores(evaluator: Evaluator, task: Task, result: Result) -> dict[str, Any]:
    plan = result.plan
    test_accuracy, test_loss = evaluator.score(result.params, task.test)
    validation_accuracy, _ = evaluator.score(result.params, task.validation)
    return {
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
        "validation_accuracy": validation_accuracy,
        "steps": plan.num_steps,
        "queries": plan.num_steps * plan.queries_per_step,
        "sample_forwards": plan.num_steps * plan.forwards_per_step,
        "seconds": round(result.seconds, 2),
    }


def digest(params: Any) -> str:
    """Returns the sha256 of all parameters."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def _draw(
    dataset: Dataset,
    task: Task,
    run: RunDirectory,
    evaluator: Evaluator,
    result: Result,
    baseline: Result | None,
) -> None:
    folder = run.figures_dir
    curves = {"function values only": result.rows}
    if baseline is not None:
        curves["back-propagation"] = baseline.rows
    figures.learning_curves(folder / "learning_curves.png", curves, title=dataset.name)
    first = "Conv_0" if "Conv_0" in result.params else "Dense_0"
    height, width = dataset.train.images.shape[1:3]
    pool = getattr(task.module, "pool", 1)
    figures.weight_images(
        folder / "first_layer.png",
        np.asarray(result.params[first]["kernel"]),
        (height // pool, width // pool),
        title="first-layer weights",
    )
    predictions = evaluator.logits(result.params, task.test[0]).argmax(-1)
    figures.misclassified(
        folder / "misclassified.png",
        dataset.test.images,
        dataset.test.labels,
        predictions,
        dataset.class_names,
    )
