"""The comparison of optimisers and the choice of sensors: tiny runs, and one-sentence errors."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import optimizers, sensor_selection
from experiments.lib import constrained_contests, optimization_contests, sensors
from experiments.lib.errors import UserError
from experiments.lib.optimization_runs import Method, num_steps_within

TINY = ["--portfolio-queries", 200, "--mnist-queries", 128, "--num-rates", 1, "--num-seeds", 1]
TINY += ["--dataset", "digits", "--hidden", 4]


def run(module, tmp_path, monkeypatch, *options):
    """Runs a program in this process; returns its summary and the names of its figures."""
    argv = [module.NAME, "--output", str(tmp_path), *map(str, options)]
    monkeypatch.setattr(sys, "argv", argv)
    module.main()
    (folder,) = (tmp_path / module.NAME).iterdir()
    figures = {path.name for path in (folder / "figures").iterdir()}
    return json.loads((folder / "summary.json").read_text()), figures


def test_a_tiny_run_writes_everything(tmp_path, monkeypatch, capsys):
    # The other problems have tests of their own below; every method compiles for a second or two.
    problems = ["--problems", "portfolio", "mnist"]
    summary, figures = run(optimizers, tmp_path, monkeypatch, *TINY, *problems)
    assert figures == {"optimizers.png"}
    assert set(summary["results"]) == {"portfolio", "mnist"}
    assert summary["results"]["mnist"]["majority vote"]["queries"] == 128
    assert len(summary["results"]["mnist"]["SGD"]["test_accuracy"]) == 1
    for name in ("projected", "Frank-Wolfe", "mirror descent"):
        assert summary["results"]["portfolio"][name]["violation"] < 1e-6
    assert "portfolio" in capsys.readouterr().out


def test_a_tiny_choice_of_sensors(tmp_path, monkeypatch):
    small = ["--num-sensors", 12, "--dimension", 3, "--counts", 4, "--random-count", 0]
    summary, figures = run(
        sensor_selection, tmp_path, monkeypatch, *small, "--queries", 1_200, "--num-seeds", 1
    )
    rows = summary["results"]["m0=4"]
    reference = rows.pop("reference")
    assert figures == {"gap.png", "sensors_4.png"}
    assert reference["duality_gap"] < 1e-3
    for name, row in rows.items():
        assert row["sum_violation"] < 1e-6, name
        assert row["box_violation"] < 1e-6, name
        assert row["swapped"][0] <= reference["bound"] + 1e-6
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (optimizers, ["--num-rates", 0], "num_rates must be >= 1, got 0"),
        (optimizers, ["--finite-sum-queries", 10], "one full gradient"),
        (optimizers, ["--problems", "chess"], "chess"),
        (optimizers, ["--seed", -1], "seed must be in"),
        (sensor_selection, ["--counts", 5], r"counts must be in .*\[20, 100\), got 5"),
        (sensor_selection, ["--sigma", 2], r"sigma must be in \(0, 1\)"),
    ],
)
def test_what_cannot_work_is_one_sentence(module, options, message, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=message):
        run(module, tmp_path, monkeypatch, *options)
    assert not list(tmp_path.iterdir())


def test_variance_reduction_beats_sgd_at_equal_queries():
    names = ("SGD", "SVRG, coordinate snapshot")
    rows = optimization_contests.finite_sum((0, 1, 2), 5, 240_000, only=names)
    sgd, svrg = (rows[name]["final_gap"] for name in names)
    assert max(svrg) < min(sgd)


def test_admm_by_values_matches_scikit_learn():
    rows = constrained_contests.lasso((0,), 6, 24_000, only=("ADMM, coordinates",))
    assert rows["ADMM, coordinates"]["final_error"][0] < 1e-3


def test_minimax_reaches_the_saddle():
    for name, row in optimization_contests.saddle((0, 1), 4, 8_000).items():
        if name != "reference":
            assert max(row["final_distance"]) < 0.05, name


def test_line_search_never_rises():
    for name, row in optimization_contests.line_search(60).items():
        assert row["rises"] == 0, name
        assert row["final_loss"] < row["start"]


def test_budgets_are_kept():
    for cost in (1, 7, 50):
        method = Method("m", None, lambda steps, cost=cost: 10 + cost * steps, (1, 1))
        steps = num_steps_within(method, 1_000)
        assert method.queries(steps) <= 1_000 < method.queries(steps + 1)


def test_projection_in_the_entropy_geometry():
    v = jnp.array([5.0, 1.0, 0.5, 0.25, 1e-20])
    x = np.asarray(sensors.kl_projection(v, 2.0))
    assert np.isclose(x.sum(), 2, atol=1e-6)
    assert x.min() >= 0 and x.max() <= 1
    assert x[0] == 1
    assert np.allclose(x[1:4] / x[1], [1, 0.5, 0.25], rtol=1e-5)


def test_baselines_of_sensor_selection():
    task = sensors.make_sensors(10, 3, 2, seed=0)
    bound, relaxed, gap = sensors.relaxation(task, 4)
    value, choice, evaluations = sensors.greedy(task, 4)
    assert np.isclose(relaxed.sum(), 4) and choice.sum() == 4 and evaluations == 10 + 9 + 8 + 7
    assert 0 <= gap < 1e-4
    assert value <= bound
    swapped, better, _ = sensors.improve_by_swaps(task, choice, relaxed)
    assert value <= swapped <= bound and better.sum() == 4
    x = np.linspace(0.2, 0.6, 10)
    assert np.isclose(-float(task.loss(jnp.asarray(x))), sensors.exact_value(task, x), rtol=1e-5)
