"""The comparison of estimators: two steps of each, laws, side studies, errors."""

import json
import sys

import jax
import numpy as np
import pytest

from experiments import compare_estimators
from experiments.lib import side_studies
from experiments.lib.contenders import BACK_PROPAGATION, CONTENDERS, subset_ratios
from experiments.lib.errors import UserError
from experiments.lib.problems import build_problem

TINY = ["--num-steps", "2", "--num-seeds", "1", "--num-tuning-seeds", "1", "--num-rates", "1"]
TINY += ["--replicates", "2", "--no-side-studies"]


def run(tmp_path, monkeypatch, *options):
    """Runs the program in this process; returns the folder of its newest run."""
    argv = ["compare_estimators", "--output", str(tmp_path), *map(str, options)]
    monkeypatch.setattr(sys, "argv", argv)
    compare_estimators.main()
    return max((tmp_path / "compare_estimators").iterdir(), key=lambda p: p.stat().st_mtime)


# Each compiles for a few seconds: one of every kind; the contract suites run them all.
KINDS = ("gaussian", "orthogonal", "low_rank(1)", "guided(history)", "forward", "pgpe")


def test_estimators_of_every_kind_take_two_steps(tmp_path, monkeypatch):
    options = ["--problems", "digits", "--estimators", *KINDS]
    folder = run(tmp_path, monkeypatch, *options, *TINY)

    results = json.loads((folder / "results.json").read_text())
    assert [row["label"] for row in results["rows"]] == [*KINDS, BACK_PROPAGATION]
    for row in results["rows"]:
        assert row["queries"] == (3 if row["label"] == BACK_PROPAGATION else 64)
        assert np.isfinite(row["sgd"]["loss"]).all()
        assert np.isfinite(row["adam"]["loss"]).all()
    table = (folder / "table.md").read_text()
    assert all(f"| {label} |" in table for label in KINDS)
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert figures == {"cosine.png", "final_loss.png"}


def test_an_interrupted_run_continues(tmp_path, monkeypatch):
    options = ["--problems", "rosenbrock", "--estimators", "sphere", "hadamard", *TINY]
    folder = run(tmp_path, monkeypatch, *options)
    complete = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(complete) == 4  # with gaussian, where it ends all are measured, and the reference
    (folder / "metrics.jsonl").write_text("\n".join(complete[:2]) + "\n")
    assert run(tmp_path, monkeypatch, "--resume", folder) == folder
    again = (folder / "metrics.jsonl").read_text().splitlines()
    without_time = [{**json.loads(line), "seconds": 0} for line in complete]
    assert [{**json.loads(line), "seconds": 0} for line in again] == without_time


@pytest.mark.parametrize("name", ["quadratic", "rosenbrock", "digits"])
def test_every_estimator_spends_the_same_queries(name):
    problem = build_problem(name, None, None)
    for contender in CONTENDERS.values():
        est = contender.build(problem.setting)
        assert est.num_queries(problem.example) == problem.queries


def test_orthogonal_beats_independent_directions_by_the_predicted_factor():
    problem = build_problem("quadratic", None, None)
    rows = side_studies.sweep_directions(problem, [0, 1], 100, (0.25,))
    errors = {row["label"]: np.mean(row["error"]) for row in rows}
    d, n = problem.dimension, 25
    assert errors["orthogonal"] / errors["sphere"] == pytest.approx((d - n) / (d - 1), rel=0.05)
    for row in rows:
        assert np.mean(row["error"]) == pytest.approx(row["law"], rel=0.07)


def test_guided_directions_win_with_a_good_surrogate_and_lose_with_a_bad_one():
    study = side_studies.study_guides(build_problem("digits", None, None), [0], 64)
    plain = study["gaussian"][0]
    found = {(row["alpha"], row["overlap"]): row["cosine"][0] for row in study["rows"]}
    assert found[0.5, 0.6] > 2 * plain
    assert found[0.5, 0.1] < 0.7 * plain


def test_the_scale_is_one(monkeypatch):
    few = [CONTENDERS[label] for label in ("gaussian", "one_point, value_baseline", "pgpe")]
    monkeypatch.setattr(side_studies, "scale_contenders", lambda: few)
    for row in side_studies.check_scale(256, numbers=(8,)):
        assert abs(row["ratio"] - 1) < max(5 * row["error"], 2e-3), row


def test_ratios_share_out_exactly_the_number_of_coordinates():
    params = build_problem("digits", None, None).example
    ratios = subset_ratios(params, 32)
    counts = [
        round(ratio * leaf.size)
        for ratio, leaf in zip(jax.tree.leaves(ratios), jax.tree.leaves(params), strict=True)
    ]
    assert sum(counts) == 32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num-seeds", "0"], "num_seeds must be >= 1, got 0"),
        (["--num-steps", "0"], "num_steps must be >= 1, got 0"),
        (["--estimators", "newton"], "unknown estimator 'newton'; the estimators are: gaussian"),
        (["--problems", "sphere"], "quadratic"),
        (["--seed", "-1"], "seed must be in"),
        (["--resume", "nowhere"], "is not the folder of a run"),
    ],
)
def test_bad_options_are_one_sentence(tmp_path, monkeypatch, options, words):
    with pytest.raises(UserError) as caught:
        run(tmp_path, monkeypatch, *options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
