"""Explanations of a function and of a forest: a short run, the white-box method, bad options."""

import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import explain
from experiments.lib import explain_forest, explain_report, explain_white_box
from experiments.lib.errors import UserError

MODULE = "my_explained_models"  # what a user would have written
WEIGHTS = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def _quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def options(monkeypatch, tmp_path):
    """Options for a function in a module, and a file of images."""
    module = types.ModuleType(MODULE)
    module.predict = lambda batch: 3 * batch.reshape(len(batch), -1) @ WEIGHTS
    module.label = lambda batch: module.predict(batch).argmax(axis=1)
    monkeypatch.setitem(sys.modules, MODULE, module)
    x = np.random.default_rng(1).uniform(0, 1, size=(2, 4, 4, 1)).astype(np.float32)
    np.savez(tmp_path / "images.npz", x=x, y=np.zeros(2, int))
    return {
        "oracle": f"{MODULE}:predict",
        "images": str(tmp_path / "images.npz"),
        "output": str(tmp_path),
        "dataset": "digits",
        "studies": ("pixels",),
        "num_images": 2,
        "budget": 3_000,
    }


def test_a_function_of_the_user_is_explained(options, capsys):
    run = explain.run_experiment(explain.Config(**options))
    summary = json.loads((run.path / "summary.json").read_text())
    negative, positive = summary["rows"]
    assert negative["success"] == negative["verified"] == 2
    assert positive["success"] + positive["blank_suffices"] == 2
    assert negative["queries_most"] <= 3_000
    assert (run.figures_dir / "explanations.png").is_file()
    assert "pertinent positive" in (run.path / "table.md").read_text()
    assert "pertinent negative: 2 of 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_images": 3}, "num_images must be at most 2"),
        ({"oracle": None}, "takes images of shape"),
        ({"oracle": f"{MODULE}:label"}, "scores"),
        ({"oracle": f"{MODULE}:nothing"}, "has no 'nothing'"),
    ],
)
def test_bad_options(options, change, message):
    with pytest.raises(UserError, match=message):
        explain.run_experiment(explain.Config(**options | change))


def test_bad_configurations():
    for bad in ({"studies": ()}, {"budget": 0}, {"beta": -1.0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            explain.Config(**bad)


def test_the_white_box_method_solves_a_linear_model(monkeypatch):
    monkeypatch.setattr(explain_white_box, "NUM_STEPS", 200)
    slope = jnp.asarray([-2.0, 0.1, 1.0])

    def apply(x):
        value = jnp.sum(x * slope[None], axis=1) + 0.5
        return jnp.stack([value, jnp.zeros_like(value)], axis=1)

    x = np.full((1, 3), 0.2, np.float32)
    found = explain_white_box.run(apply, x, np.zeros(1), keeps=False, beta=1.0, kappa=0.0)
    assert found.success.all()
    # Only the first entry helps: 0.32 - 2 d = 0.
    np.testing.assert_allclose(found.change, [[0.16, 0, 0]], atol=0.01)


def test_overlap_of_the_largest_entries():
    ours, theirs = np.zeros(30), np.zeros(30)
    ours[:4], theirs[2:6] = 1, 2
    assert explain_report._overlap(ours, theirs) == pytest.approx(2 / 6)
    assert explain_report._overlap(ours, ours) == 1


def test_sentences_are_checked_with_the_forest(monkeypatch):
    monkeypatch.setattr(explain_forest, "NUM_TREES", 10)
    result = explain_forest.run(num_rows=1, budget=3_000, seed=0)
    patients = explain_forest.load(0)
    (person,) = result["people"]
    assert person["verified"]
    row = patients.rows[:1].copy()
    for change in person["changes"]:
        row[0, patients.names.index(change["feature"])] = change["to"]
    assert patients.classes[patients.forest.predict(row)[0]] != person["class"]
    assert person["sentence"] in explain_forest.text(result)
