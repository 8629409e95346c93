"""Surfing: a short run of every study, resuming, the lasso, bad options."""

import json
import sys

import jax
import numpy as np
import pytest

from experiments import surfing
from experiments.lib import surfing_report
from experiments.lib.errors import UserError
from experiments.lib.sparse_recovery import cosines, recover
from experiments.lib.surfing_recorder import Recorder

SMALL = ["--dataset", "digits", "--latent-dims", 2, "--generator-steps", 30]
SMALL += ["--num-snapshots", 4, "--num-targets", 6, "--num-tuning", 3, "--num-steps", 3]
SMALL += ["--polish-steps", 5, "--learning-rates", 0.1, "--num-images", 4]
SMALL += ["--smoothing", 0.3, "--num-bits", 20, "--bit-steps", 2]
STUDIES = ["--studies", "success", "values", "compressed", "one_bit"]


@pytest.fixture(autouse=True)
def _quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def run(tmp_path, monkeypatch, *options):
    """Runs the program in this process; returns the folder of its run."""
    argv = ["surfing", "--output", str(tmp_path), *map(str, options)]
    monkeypatch.setattr(sys, "argv", argv)
    surfing.main()
    (folder,) = (tmp_path / "surfing").iterdir()
    return folder


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_short_run_writes_everything_and_counts_equally(tmp_path, monkeypatch, capsys):
    options = [*SMALL, *STUDIES, "--measurement-factors", 3, 100]
    folder = run(tmp_path, monkeypatch, *options)
    rows = rows_of(folder)
    found = [(row["study"], row.get("variant"), row["method"]) for row in rows]
    assert found == [
        ("success", "all", "direct"),
        ("success", "all", "restarts"),
        ("success", "all", "surfing"),
        ("values", "exact", "direct"),
        ("values", "values", "direct"),
        ("values", "exact", "surfing"),
        ("values", "values", "surfing"),
        ("compressed", None, "direct"),
        ("compressed", None, "restarts"),
        ("compressed", None, "surfing"),
        ("compressed", None, "lasso_pixel"),
        ("compressed", None, "lasso_dct"),  # 200 measurements of 64 pixels are left out
        ("one_bit", None, "direct"),
        ("one_bit", None, "restarts"),
        ("one_bit", None, "surfing"),
    ]
    for row in rows:
        if "steps_per_target" not in row:
            continue
        if row["method"] == "restarts":  # one step at least for each of eight starts
            assert row["steps_per_target"] <= 8 * (4 + 2)
            continue
        steps, per_step = 3 * 4 + 5, 1
        if row["study"] == "one_bit":
            steps, per_step = 2 * 4 + 2 * 10, 2 * 2 * 2
        elif row.get("variant") == "values":
            per_step = 2 * 2
        assert row["steps_per_target"] == steps
        surfaces = 4 if row["method"] == "surfing" else 1
        assert row["queries_per_target"] == steps * per_step + surfaces + 1
        assert row["num_targets"] == 6
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {
        "surface.png",
        "success.png",
        "measurements.png",
        *(f"images-{study}-2.png" for study in ("success", "compressed", "one_bit")),
    }
    assert (folder / "table.md").read_text().count("| k |") == 4
    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary["rows"]) == len(rows)
    printed = capsys.readouterr().out
    assert "|x - x*| < 0.01" in printed
    assert str(folder / "figures") in printed


def test_an_interrupted_run_goes_on_and_its_generators_can_be_taken(tmp_path, monkeypatch):
    options = [*SMALL, "--studies", "success", "--num-seeds", 2]
    whole = run(tmp_path / "whole", monkeypatch, *options)
    record, made = Recorder.record, []

    def stop(self, *arguments):
        made.append(1)
        if len(made) == 5:
            raise KeyboardInterrupt
        record(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "record", stop)
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            run(tmp_path / "half", patch, *options)
    (half,) = (tmp_path / "half" / "surfing").iterdir()
    with pytest.raises(UserError, match="num_steps was 3 and is now 4"):
        run(tmp_path / "half", monkeypatch, "--resume", half, "--num-steps", 4)
    run(tmp_path / "half", monkeypatch, "--resume", half)
    hidden = {"seconds", "generator"}
    expected, found = (
        [{k: v for k, v in row.items() if k not in hidden} for row in rows_of(folder)]
        for folder in (whole, half)
    )
    assert found == expected
    generators = sorted((whole / "generators" / "train_generator").iterdir())
    saved = [*SMALL, "--studies", "success", "--generators", generators[0]]
    again = rows_of(run(tmp_path / "again", monkeypatch, *saved))
    with pytest.raises(UserError, match="the same latents and seed"):
        run(tmp_path, monkeypatch, "--generators", generators[0], generators[0])
    assert [row["median_f"] for row in again] == [row["median_f"] for row in expected[:3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--studies", "success", "success"], "studies must name at least one"),
        (["--smoothing"], "smoothing must name at least one"),
        (["--kl-weight", -1, "--dataset", "digits"], "kl_weight must be >= 0"),
        (["--studies", "compressed", "--num-targets", 9], "num_images must be at most num_targets"),
        (
            [*SMALL, "--studies", "compressed", "--measurement-factors", 40],
            "k = 2 would need 80 measurements of 64 pixels",
        ),
        (["--num-targets", 0], "num_targets must be >= 1"),
        (["--learning-rates", -0.1], "learning_rates must be > 0"),
        (["--polish-steps", -1], "polish_steps must be >= 0"),
        (["--latent-dims", 0], "must be >= 1"),
        (["--latent-dims", 100, "--dataset", "digits"], "latent_dim must be from 1"),
        (["--num-snapshots", 1, "--dataset", "digits"], "num_snapshots must be"),
        (["--generators", "nowhere"], "nowhere is not the folder of a run"),
        (["--resume", "nowhere"], "nowhere is not the folder of a run"),
    ],
)
def test_bad_options_are_found_before_training(tmp_path, monkeypatch, options, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, monkeypatch, *options)
    assert not (tmp_path / "surfing").exists()


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_the_lasso_recovers_what_is_sparse_in_its_basis(basis):
    rng = np.random.default_rng(0)
    code = np.zeros((2, 64))
    code[0, [3, 40]] = 1.0, 2.0
    code[1, 17] = 1.5
    images = code if basis == "pixel" else code @ cosines(64).T
    matrix = rng.normal(size=(40, 64)) / np.sqrt(40)
    found = recover(basis, matrix, images @ matrix.T, 0.01)
    np.testing.assert_allclose(found, images, atol=0.05)


def test_cosines_are_orthonormal():
    basis = cosines(16)
    np.testing.assert_allclose(basis @ basis.T, np.eye(16), atol=1e-12)
    np.testing.assert_allclose(basis[:, 0], 0.25)  # the mean


def test_the_table_shows_mean_and_range_over_seeds():
    rows = [
        {
            "study": "success",
            "latent_dim": 5,
            "variant": "all",
            "method": "surfing",
            "x_success": share,
            "seed": seed,
        }
        for seed, share in enumerate((0.9, 1.0))
    ]
    text = surfing_report.table(rows)
    assert "95.0 (90.0–100.0)" in text
    assert text.splitlines()[2].endswith("| 2 |")
