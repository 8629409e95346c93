"""Attacks on a function: a short run, an interrupted one, the victims' padding, bad options."""

import json
import sys
import types
from typing import get_args

import jax
import numpy as np
import pytest

from experiments import attack
from experiments.lib import attack_store, attack_suite, attack_victims
from experiments.lib.errors import UserError

MODULE = "my_models"  # what a user would have written
WEIGHTS = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def _quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


class Model:
    """Counts the rows it receives, and may fail after some."""

    def __init__(self):
        self.rows = 0
        self.last = np.inf
        self.error = ConnectionError("service away")

    def predict(self, batch):
        if self.rows + len(batch) > self.last:
            raise self.error
        self.rows += len(batch)
        return (batch.reshape(len(batch), -1) - 0.5) @ WEIGHTS


@pytest.fixture
def model(monkeypatch, tmp_path):
    """A module with a model, and a file of images, one of them misclassified."""
    model = Model()
    module = types.ModuleType(MODULE)
    module.predict = model.predict
    module.label = lambda batch: model.predict(batch).argmax(axis=1)
    module.flat = lambda batch: model.predict(batch)[:, 0]
    module.number = 3
    monkeypatch.setitem(sys.modules, MODULE, module)
    x = np.random.default_rng(1).uniform(0.3, 0.7, size=(4, 4, 4)).astype(np.float32)
    y = ((x.reshape(4, -1) - 0.5) @ WEIGHTS).argmax(axis=1)
    y[1] = (y[1] + 1) % 3
    np.savez(tmp_path / "images.npz", x=x, y=y)
    return model


def options_for(tmp_path):
    options = ["--oracle", f"{MODULE}:predict", "--images", tmp_path / "images.npz"]
    return [*options, "--num-images", 3, "--eps", 0.4, "--budget", 40]


def run(tmp_path, monkeypatch, *options):
    """Runs the program in this process; returns the folder of its run."""
    argv = ["attack", "--output", str(tmp_path / "runs"), *map(str, options)]
    monkeypatch.setattr(sys, "argv", argv)
    attack.main()
    (folder,) = (tmp_path / "runs" / "attack").iterdir()
    return folder


def test_a_short_run_writes_everything(tmp_path, monkeypatch, capsys, model):
    both = ("sign_hunter", "hop_skip_jump_linf")
    folder = run(tmp_path, monkeypatch, *options_for(tmp_path), "--attacks", *both)

    summary = json.loads((folder / "summary.json").read_text())
    rows = {row["attack"]: row for row in summary["attacks"]}
    assert tuple(rows) == both
    for row in rows.values():
        assert (row["num_images"], row["already"], row["attacked"]) == (3, 1, 2)
        assert row["success"] <= row["found"] <= 2
    # 12 rows of the examples: two images, and what two attacks made of each.
    sent = sum(row["loss_queries"] + row["check_queries"] for row in rows.values())
    assert model.rows == sent + summary["example_queries"]
    assert summary["example_queries"] == 2 * 3
    assert rows["sign_hunter"]["found"] == rows["sign_hunter"]["success"] == 2
    at = [point["median"] for point in rows["hop_skip_jump_linf"]["at_milestones"]]
    assert at[-1] == pytest.approx(rows["hop_skip_jump_linf"]["linf"]["median"])
    known = [value for value in at if value is not None]
    assert known == sorted(known, reverse=True)

    table = (folder / "table.md").read_text()
    assert "| sign_hunter | linf | 100 % | 3.0 (3) | 100 % |" in table
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {"success_vs_queries.png", "distortion_vs_queries.png", "examples.png"}
    assert all(path.stat().st_size > 5_000 for path in (folder / "figures").iterdir())
    printed = capsys.readouterr().out
    assert str(folder / "figures") in printed
    assert "1 of them already" in printed


def test_an_interrupted_run_goes_on_with_what_is_not_finished(tmp_path, monkeypatch, model):
    model.last = 30  # of a hop_skip_jump that would take 80
    options = [*options_for(tmp_path), "--attacks", "sign_hunter", "hop_skip_jump_linf"]
    with pytest.raises(UserError, match=r"service away.*--resume"):
        run(tmp_path, monkeypatch, *options)
    (folder,) = (tmp_path / "runs" / "attack").iterdir()
    first = attack_store.load_record(folder / "attacks" / "sign_hunter.npz")
    half = attack_store.load_record(folder / "attacks" / "hop_skip_jump_linf.npz")
    assert not first.unfinished.any()
    assert half.unfinished.tolist() == [True, False, True]
    lost = int(half.results.queries[[0, 2]].sum())

    (tmp_path / "images.npz").unlink()  # the run has kept them
    with pytest.raises(UserError, match="budget was 40 and is now 50"):
        run(tmp_path, monkeypatch, "--resume", folder, "--budget", 50)
    model.last, model.error = model.rows + 20, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        run(tmp_path, monkeypatch, "--resume", folder)
    half = attack_store.load_record(folder / "attacks" / "hop_skip_jump_linf.npz")
    assert half.lost_queries == lost
    lost += int(half.results.queries[half.unfinished].sum())
    model.last, before = np.inf, model.rows
    run(tmp_path, monkeypatch, "--resume", folder)
    summary = json.loads((folder / "summary.json").read_text())
    rows = {row["attack"]: row for row in summary["attacks"]}
    assert rows["hop_skip_jump_linf"]["lost_queries"] == lost
    assert f"hop_skip_jump_linf {lost:,}" in (folder / "table.md").read_text()
    again = attack_store.load_record(folder / "attacks" / "hop_skip_jump_linf.npz")
    assert again.results.queries[1] == 1
    assert model.rows - before == again.results.queries[[0, 2]].sum() + summary["example_queries"]
    np.testing.assert_array_equal(again.results.status, ["success", "already", "success"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attacks", "magic"], "--attacks"),
        (["--attacks", "nes", "nes"], "attacks must name at least one"),
        (["--answers", "labels", "--attacks", "nes"], "nes needs scores, but --answers is labels"),
        (["--attacks", "carlini_wagner"], "carlini_wagner needs gradients"),
        (["--oracle", "my_models"], "must be package.module:function"),
        (["--oracle", "my_model:predict"], "cannot import the module 'my_model'"),
        (["--oracle", "my_models:guess"], "'my_models' has no 'guess'"),
        (["--oracle", "my_models:number"], "'number' is not callable"),
        (["--images", "nowhere.npz"], "there is no such file"),
        (["--images", __file__], "not a readable npz file"),
        (["--budget", 0], "budget must be >= 1"),
        (["--eps", 0], "eps must be > 0"),
        (["--milestones", 10, 5], "milestones must be >= 1 and increase"),
        (["--num-images", 5], "num_images must be at most 4"),
        (["--attacks", "universal_adamm"], "universal_adamm needs 10 images of class 4"),
        (["--dataset", "digits", "--oracle", "None"], "a victim of digits takes images of shape"),
        (["--resume", "nowhere"], "nowhere is not the folder of a run"),
    ],
)
def test_bad_options_are_found_before_anything_is_asked(
    tmp_path, monkeypatch, model, options, message
):
    with pytest.raises(UserError, match=message):
        run(tmp_path, monkeypatch, *options_for(tmp_path), *options)
    assert not (tmp_path / "runs").exists()
    assert model.rows == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": np.zeros((2, 4))}, "must hold the arrays x and y"),
        ({"x": np.zeros((2, 4)), "y": np.zeros(3, int)}, r"x must be \(n, ...\) with n >= 1"),
        ({"x": np.zeros((2, 4)), "y": np.zeros(2)}, "y must be integers >= 0"),
        ({"x": np.full((2, 4), 255), "y": np.zeros(2, int)}, "floating-point numbers within"),
    ],
)
def test_bad_images(tmp_path, monkeypatch, model, content, message):
    np.savez(tmp_path / "images.npz", **content)
    with pytest.raises(UserError, match=message):
        run(tmp_path, monkeypatch, *options_for(tmp_path))
    assert model.rows == 0


def test_a_function_of_the_wrong_shape_is_named_by_the_oracle(tmp_path, monkeypatch, model):
    options = [*options_for(tmp_path), "--oracle", f"{MODULE}:flat", "--attacks", "sign_hunter"]
    with pytest.raises(UserError, match=r"must return scores of shape \(3, classes\)"):
        run(tmp_path, monkeypatch, *options)


def test_the_suite_has_every_name():
    assert set(attack_suite.SUITE) == set(get_args(attack_suite.AttackName))


def test_a_victim_pads_its_batches_to_powers_of_two():
    sizes = []

    def double(batch):
        sizes.append(len(batch))
        return 2 * batch

    rows = np.arange(23, dtype=np.float32).reshape(23, 1)
    found = attack_victims._padded(double, 16, rows)
    np.testing.assert_array_equal(found, 2 * rows)
    assert sizes == [16, 8]
