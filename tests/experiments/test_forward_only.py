"""Forward-only training: short runs, the convolutional network, colour images, bad options."""

import json
import sys

import jax
import numpy as np
import pytest

from experiments import forward_only
from experiments.lib import forward_only_report
from experiments.lib.data import Dataset, Split
from experiments.lib.errors import UserError

SMALL = (
    *("--methods", "back_propagation", "activation_noise", "low_rank"),
    *("--preset", "quick", "--hidden", 8, "--learning-rates", 0.01, "--num-evals", 2),
    *("--sample-forwards", 8e3, "--backprop-forwards", 1e3, "--es-forwards", 8e3),
    *("--cosine-draws", 2),
)


@pytest.fixture(autouse=True)
def _quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def run(tmp_path, monkeypatch, *options):
    """Runs the program in this process; returns the folder of its run."""
    argv = ["forward_only", "--output", str(tmp_path), *map(str, options)]
    monkeypatch.setattr(sys, "argv", argv)
    forward_only.main()
    (folder,) = (tmp_path / "forward_only").iterdir()
    return folder


def test_a_short_run_writes_everything_and_counts(tmp_path, monkeypatch, capsys):
    folder = run(tmp_path, monkeypatch, *SMALL)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = {row["method"]: row for row in rows}
    assert last["activation_noise"]["queries"] == last["activation_noise"]["step"] * 9
    assert last["activation_noise"]["sample_forwards"] == last["activation_noise"]["queries"] * 64
    assert last["low_rank"]["queries"] == last["low_rank"]["step"] * 32
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["memory"]["activation_noise"] > 0
    assert len(summary["cosines"]) == 2 and len(summary["methods"]) == 3
    assert (folder / "figures" / "forward_only.png").exists()
    assert "sample-forwards to 90 %" in (folder / "table.md").read_text()
    assert "noise on" in capsys.readouterr().out  # the table of sites


def test_colour_images_and_convolutions(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)

    def split(count):
        images = generator.random((count, 8, 8, 3), np.float32)
        return Split(images, generator.integers(0, 3, count, np.int32))

    fake = Dataset("cifar10", split(64), split(16), split(16), ("a", "b", "c"))
    monkeypatch.setattr(forward_only, "load_dataset", lambda *_: fake)
    options = ("--preset", "cifar10", "--features", 2, 3, "--learning-rates", 0.01)
    options += ("--num-draws", 1, "--batch-size", 16, "--sample-forwards", 100, "--num-evals", 1)
    options += ("--methods", "activation_noise", "activations_only", "--cosine-draws", 1)
    folder = run(tmp_path, monkeypatch, *options)
    summary = json.loads((folder / "summary.json").read_text())
    methods = [row["method"] for row in summary["methods"]]
    assert methods == ["activation_noise", "activations_only"]


def test_crossing_a_target_is_interpolated():
    rows = [{"accuracy": 0.8, "sample_forwards": 1e4}, {"accuracy": 1.0, "sample_forwards": 1e6}]
    assert forward_only_report.reached(rows, 0.9) == pytest.approx(1e5)
    assert forward_only_report.reached(rows, 0.7) == 1e4
    assert forward_only_report.reached(rows[:1], 0.9) is None


@pytest.mark.parametrize(
    "options, message",
    [
        (("--learning-rates", 0.1, 0.1), "learning_rates must name at least one"),
        (("--num-draws", 0), "num_draws must be > 0"),
        (("--target", 1.5), "target must be in"),
        (("--cosine-steps", 200, 0), "cosine_steps must rise"),
    ],
)
def test_bad_options(tmp_path, monkeypatch, options, message):
    with pytest.raises((UserError, SystemExit, ValueError), match=message):
        run(tmp_path, monkeypatch, *options)
