"""Hyperparameter search: studies that fail, die and resume, our samplers, replay, bad options."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

optuna = pytest.importorskip("optuna")

from optuna.distributions import FloatDistribution  # noqa: E402
from optuna.trial import TrialState  # noqa: E402

from experiments import tune  # noqa: E402
from experiments.lib import tune_live, tune_replay, tune_searchers, tune_training  # noqa: E402
from experiments.lib.data import load_dataset  # noqa: E402
from experiments.lib.errors import UserError  # noqa: E402
from experiments.lib.tune_functions import FUNCTIONS  # noqa: E402
from experiments.lib.tune_samplers import (  # noqa: E402
    EvolutionStrategySampler,
    ParticleSwarmSampler,
)
from experiments.lib.tune_space import TRAINING_SPACE, from_unit, to_unit  # noqa: E402

TINY = ["--steps-per-unit", 1, "--batch-size", 2, "--hidden", 4, "--num-retrainings", 1]
SQUARE = {"x": FloatDistribution(-1.0, 1.0), "y": FloatDistribution(1e-3, 10.0, log=True)}
OWN = [ParticleSwarmSampler, EvolutionStrategySampler]
SETTING = {"sigma": 0.1, "learning_rate": 0.01, "log2_directions": 4, "l1": 1e-4, "momentum": 0.5}


@pytest.fixture(autouse=True)
def quiet():
    tune_searchers.silence_optuna()


def run(tmp_path, monkeypatch, *options):
    """Runs the program in this process; returns the folder of its run."""
    argv = ["tune", "--output", str(tmp_path), *map(str, options)]
    monkeypatch.setattr(sys, "argv", argv)
    tune.main()
    (folder,) = (tmp_path / "tune").iterdir()
    return folder


def grid_of(folder):
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def stored(folder):
    return optuna.load_study(study_name="tune", storage=f"sqlite:///{folder / 'study.db'}").trials


def test_the_space_maps_to_the_unit_cube_and_back():
    for point in np.random.default_rng(0).random((20, 5)):
        params = from_unit(point, TRAINING_SPACE)
        for name, distribution in TRAINING_SPACE.items():
            assert distribution._contains(distribution.to_internal_repr(params[name]))
        again = to_unit(params, TRAINING_SPACE)
        np.testing.assert_allclose(np.delete(again, 2), np.delete(point, 2), atol=1e-12)
        assert abs(again[2] - point[2]) <= 1 / 6 + 1e-12  # three values, each in its third
    lowest, highest = (from_unit([x] * 5, TRAINING_SPACE) for x in (-1.0, 2.0))
    assert lowest == pytest.approx({name: d.low for name, d in TRAINING_SPACE.items()})
    assert highest == pytest.approx({name: d.high for name, d in TRAINING_SPACE.items()})


def test_a_configuration_has_one_curve_whoever_trains_beside_it():
    task = tune_training.build_tuning_task(load_dataset("digits", None), (4,), 1)
    assert abs(len(task.train[1]) - len(task.validation[1])) <= 1
    trainable = tune_training.Trainable(task, 2, 1, seed=0)
    assert trainable.unit_forwards == 2 * 64 * 2
    alone = trainable.advance(trainable.init(1), [SETTING], 0, 3)
    others = [SETTING | {"sigma": 0.3}, SETTING, SETTING | {"learning_rate": 0.1}]
    state = trainable.advance(trainable.init(3), others, 0, 1)
    together = trainable.advance(state, others, 1, 3)
    scores = trainable.score(together)
    assert len(set(scores.tolist())) == 3
    np.testing.assert_allclose(scores[1], trainable.score(alone)[0], rtol=1e-5)


def test_a_study_survives_bad_scores_and_exceptions(tmp_path, monkeypatch, capsys):
    score, calls = tune_training.Trainable.score, []

    def broken(self, state):
        calls.append(len(calls))
        if len(calls) == 2:
            raise RuntimeError("out of luck")
        scores = np.array(score(self, state))
        return np.where(len(calls) == 1, np.nan, scores)

    monkeypatch.setattr(tune_training.Trainable, "score", broken)
    options = ["--num-trials", 9, "--batch", 3, "--sampler", "random", "--pruner", "halving"]
    folder = run(tmp_path, monkeypatch, *TINY, *options)

    summary = json.loads((folder / "summary.json").read_text())
    assert sum(summary["trials"].values()) == 9
    assert summary["trials"]["complete"] >= 1
    assert set(summary["reasons"]) == {"the score became nan", "RuntimeError: out of luck"}
    assert summary["trials"]["fail"] == sum(summary["reasons"].values())
    rows = grid_of(folder)
    assert len(rows) == 9
    assert rows[0]["state"] == "complete"
    assert float(rows[0]["score"]) == pytest.approx(summary["best"]["score"])
    assert summary["sample_forwards"] == sum(int(row["sample_forwards"]) for row in rows)
    assert len(summary["retrained"]) == 1
    assert 0 < summary["test_accuracy"][0] < 1
    for name in ("history", "slice", "parallel_coordinate"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5_000
    assert not list((folder / "checkpoints").iterdir())
    printed = capsys.readouterr().out
    assert "out of luck" in printed
    assert str(folder) in printed


@pytest.mark.process
def test_a_killed_study_resumes_without_losing_a_finished_trial(tmp_path, monkeypatch):
    options = [*TINY, "--num-trials", 8, "--batch", 2, "--sampler", "zojax_es", "--pruner", "none"]
    options += ["--steps-per-unit", 30]  # long enough to be killed in the middle
    command = [sys.executable, "-m", "experiments.tune", "--output", tmp_path, *options]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("trial "):
            break
    (folder,) = (tmp_path / "tune").iterdir()
    deadline = time.monotonic() + 60
    while not list(folder.glob("checkpoints/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()

    before = stored(folder)
    finished = [t for t in before if t.state.is_finished()]
    running = [t for t in before if t.state == TrialState.RUNNING]
    assert finished and running
    assert not (folder / "summary.json").exists()
    monkeypatch.setattr(sys, "argv", ["tune", "--resume", str(folder)])
    tune.main()

    after = stored(folder)
    for trial in finished:
        assert after[trial.number] == trial
    for trial in running:
        assert after[trial.number].state == TrialState.FAIL
        assert after[trial.number].user_attrs[tune_live.REASON] == "its process ended"
        (continued,) = (t for t in after if t.user_attrs.get("continues") == trial.number)
        assert continued.state == TrialState.COMPLETE
        assert continued.params == trial.params
        assert set(trial.intermediate_values.items()) <= set(continued.intermediate_values.items())
    assert sum(t.state == TrialState.COMPLETE for t in after) == 8
    assert len(grid_of(folder)) == 8


@pytest.mark.process
def test_processes_share_a_study(tmp_path, monkeypatch):
    options = ["--num-trials", 5, "--batch", 2, "--workers", 2, "--sampler", "pso"]
    folder = run(tmp_path, monkeypatch, *TINY, *options)
    assert len(grid_of(folder)) == 5
    assert [t.number for t in stored(folder)] == list(range(5))


def square(trial):
    return trial.params["x"] ** 2 + np.log(trial.params["y"]) ** 2


def tell_some(study, count):
    """Runs trials of which every fifth fails and every seventh is pruned."""
    for _ in range(count):
        trial = study.ask(dict(SQUARE))
        if trial.number % 5 == 4:
            study.tell(trial, state=TrialState.FAIL)
        elif trial.number % 7 == 6:
            trial.report(square(trial), 1)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, square(trial))


@pytest.mark.parametrize("sampler", OWN)
def test_our_samplers_keep_their_state_in_the_storage(sampler):
    whole = optuna.create_study(sampler=sampler(SQUARE, seed=3, population=4))
    tell_some(whole, 19)
    parts = optuna.create_study(sampler=sampler(SQUARE, seed=3, population=4))
    tell_some(parts, 10)
    parts.sampler = sampler(SQUARE, seed=3, population=4)
    tell_some(parts, 9)
    assert [t.params for t in parts.trials] == [t.params for t in whole.trials]
    other = optuna.create_study(sampler=sampler(SQUARE, seed=4, population=4))
    tell_some(other, 4)
    assert [t.params for t in other.trials] != [t.params for t in whole.trials[:4]]


@pytest.mark.parametrize("sampler", OWN)
def test_our_samplers_work_while_trials_run(sampler):
    study = optuna.create_study(sampler=sampler(SQUARE, seed=0, population=4))
    asked = [study.ask(dict(SQUARE)) for _ in range(10)]  # nobody has told anything
    assert len({tuple(t.params.values()) for t in asked}) == 10
    for trial in reversed(asked):
        study.tell(trial, square(trial))
    tell_some(study, 4)
    assert len(study.trials) == 14


def test_a_continued_trial_keeps_its_place_in_the_generation(tmp_path):
    sampler = EvolutionStrategySampler(TRAINING_SPACE, seed=0, population=4)
    study = optuna.create_study(sampler=sampler)
    asked = [study.ask(dict(TRAINING_SPACE)) for _ in range(4)]
    for trial in asked[:3]:
        study.tell(trial, 1.0 + trial.number)
    assert tune_live.continue_interrupted(study, tmp_path) == 1
    again = study.ask(dict(TRAINING_SPACE))
    assert again.number == 4
    assert again.params == asked[3].params
    place = "tune:place"
    assert study.trials[4].system_attrs[place] == study.trials[3].system_attrs[place] == [0, 3]
    study.tell(again, 0.5)
    for _ in range(4):
        study.ask(dict(TRAINING_SPACE))
    places = [t.system_attrs[place] for t in study.trials[5:]]
    assert places == [[1, 1], [1, 2], [1, 3], [2, 0]]


@pytest.mark.parametrize("name", ["pso", "zojax_es"])
def test_our_samplers_find_the_valley_of_branin(name):
    function = FUNCTIONS["branin"]
    assert function.value({"x0": np.pi, "x1": 2.275}) == pytest.approx(function.minimum, abs=1e-6)
    best = [
        tune_searchers.search(name, "none", function.space, function.curve, 80, seed)[-1][1]
        for seed in range(3)
    ]
    assert np.mean(best) < function.minimum + 5  # the mean over the square is 54


def test_hartmann6_has_its_published_minimum():
    function = FUNCTIONS["hartmann6"]
    place = [0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573]
    params = {f"x{i}": x for i, x in enumerate(place)}
    assert function.value(params) == pytest.approx(function.minimum, abs=1e-4)


@pytest.fixture
def fake_table():
    """Curves that fall from 2 towards a bowl; a corner of the space diverges."""
    points = np.random.default_rng(0).random((64, 5))
    final = ((points - 0.3) ** 2).sum(1)
    share = np.array(tune_training.RUNGS) / 81
    scores = 2 + (final[:, None] - 2) * share**0.5
    scores[points[:, 0] > 0.8, 3:] = np.nan
    return tune_replay.Table(points, scores, unit_forwards=100)


def test_replay_counts_what_was_trained_and_never_forgets_the_best(fake_table):
    grid = np.arange(1, 8 * 81 + 1)
    results = tune_replay.contest(
        ("random", "random+halving", "tpe+hyperband", "zojax_es"),
        TRAINING_SPACE,
        fake_table.curve,
        8 * 81,
        grid,
        range(2),
    )
    for result in results.values():
        best = result["best"]
        assert best.shape == (2, len(grid))
        assert np.isinf(best[:, :80]).all()  # nobody is done before 81 units
        assert (np.diff(best[:, 200:]) <= 0).all()
        assert (best[:, -1] >= fake_table.best).all()
    assert results["random"]["trials"] >= 8
    assert results["random+halving"]["trials"] > 2 * results["random"]["trials"]
    history = tune_searchers.search("random", "none", TRAINING_SPACE, fake_table.curve, 500, 1)
    steps = np.diff([0, *(spent for spent, _, _ in history)])
    assert set(steps) <= {81, 5}  # to the end, or to the rung where it diverged
    again = tune_searchers.search("random", "none", TRAINING_SPACE, fake_table.curve, 500, 1)
    assert history == again


def test_a_replay_of_a_stored_table_writes_everything(fake_table, tmp_path, monkeypatch):
    fake_table.save(tmp_path / "fake.npz")
    options = ["--study", "replay", "--table", tmp_path / "fake.npz", "--trainings", 4]
    options += ["--num-seeds", 2, "--searchers", "random", "grid", "nsga2", "random+hyperband"]
    folder = run(tmp_path, monkeypatch, *options)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["configurations"] == 64
    assert summary["diverged"] > 0
    assert summary["best_score"] == pytest.approx(fake_table.best)
    assert list(summary["searchers"]) == ["random", "grid", "nsga2", "random+hyperband"]
    assert summary["rank_correlation_with_final"]["81"] == pytest.approx(1)
    assert len((folder / "table.md").read_text().splitlines()) == 6
    assert (folder / "figures" / "regret.png").stat().st_size > 10_000
    assert tune_replay.load_table(folder / "table.npz").unit_forwards == 100


def test_a_study_of_functions_writes_everything(tmp_path, monkeypatch):
    options = ["--study", "functions", "--evaluations", 6, "--num-seeds", 2]
    folder = run(tmp_path, monkeypatch, *options, "--searchers", "random", "tpe", "tpe+hyperband")
    summary = json.loads((folder / "summary.json").read_text())["functions"]
    assert set(summary) == {"branin", "hartmann6"}
    assert set(summary["branin"]) == {"random", "tpe"}
    assert (folder / "figures" / "hartmann6.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sampler", "luck"], "sampler"),
        (["--searchers", "random", "luck"], "unknown searcher 'luck'"),
        (["--searchers", "tpe", "tpe"], "only once"),
        (["--num-trials", "0"], "num_trials must be at least 1"),
        (["--sampler", "grid", "--num-trials", "300"], "243 points"),
        (["--study", "replay", "--table", "nowhere.npz"], "nowhere.npz is not a table"),
        (["--resume", "nowhere"], "not the folder of a run"),
    ],
)
def test_bad_options_are_one_sentence(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(sys, "argv", ["tune", "--output", str(tmp_path), *options])
    with pytest.raises(UserError, match=message):
        tune.main()
    assert not list(tmp_path.iterdir())


def test_the_gaussian_process_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(tune_searchers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="tune-gp"):
        run(tmp_path, monkeypatch, "--sampler", "gp")
    assert not list(tmp_path.iterdir())
