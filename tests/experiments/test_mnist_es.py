"""The whole program: short runs, resuming after kill -9, and one-sentence errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import mnist_es
from experiments.lib.cluster import Cluster
from experiments.lib.errors import UserError

ROOT = Path(__file__).parents[2]
SMALL = ["--dataset", "digits", "--hidden", "8", "--num-directions", "4", "--batch-size", "32"]
PER_STEP = 2 * 4 * 32  # queries times images


def run(tmp_path, monkeypatch, *options):
    """Runs the program in this process; returns the folder of its newest run."""
    argv = ["mnist_es", "--output", str(tmp_path), *map(str, options)]
    monkeypatch.setattr(sys, "argv", argv)
    mnist_es.main()
    return max((tmp_path / "mnist_es").iterdir(), key=lambda path: path.stat().st_mtime)


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_a_short_run_writes_everything(tmp_path, monkeypatch, capsys):
    options = ["--sample-forwards", 6 * PER_STEP, "--num-evals", 3, "--baseline-steps", 4]
    folder = run(tmp_path, monkeypatch, *SMALL, *options, "--baseline")

    result = summary(folder)
    assert result["steps"] == 6
    assert result["queries"] == 6 * 8
    assert result["sample_forwards"] == 6 * PER_STEP
    assert result["back_propagation"]["sample_forwards"] == 4 * 3 * 32
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert figures == {"learning_curves.png", "first_layer.png", "misclassified.png"}
    printed = capsys.readouterr().out
    assert str(folder / "figures") in printed
    assert "test accuracy" in printed


@pytest.mark.parametrize(
    ("queries", "options"),
    [
        (8, ["--preset", "evojax", "--chunk", 1]),
        (5, ["--directions", "low_rank", "--shaping", "centered_rank", "--stencil", "forward"]),
        (8, ["--directions", "orthogonal", "--optimizer", "momentum", "--chunk", 3]),
        (4, ["--sigma-schedule", "cosine", "--optimizer", "sgd", "--stencil", "one_point"]),
    ],
)
def test_other_settings_run_for_two_steps(tmp_path, monkeypatch, queries, options):
    budget = ["--sample-forwards", 2 * queries * 32, "--num-evals", 1]
    folder = run(tmp_path, monkeypatch, *options, *SMALL, *budget)
    assert summary(folder)["steps"] == 2
    assert summary(folder)["queries"] == 2 * queries


@pytest.mark.data
def test_the_evojax_network_takes_two_steps_on_mnist(tmp_path, monkeypatch, tfds_data_dir):
    options = ["--dataset", "mnist", "--data-dir", tfds_data_dir, "--chunk", 1]
    size = ["--preset", "evojax", "--num-directions", 1, "--batch-size", 16]
    folder = run(tmp_path, monkeypatch, *size, *options, "--sample-forwards", 2 * 2 * 16)
    assert summary(folder)["parameters"] == 11_274
    assert summary(folder)["steps"] == 2


def test_the_evojax_preset_is_the_published_budget():
    preset = mnist_es.PRESETS["evojax"]
    members = 2 * preset["num_directions"]
    assert members == 64
    assert preset["sample_forwards"] == 2_000 * members * preset["batch_size"]


def test_learns_digits(tmp_path, monkeypatch):
    options = ["--dataset", "digits", "--preset", "quick", "--sample-forwards", 2e7]
    assert summary(run(tmp_path, monkeypatch, *options))["test_accuracy"] > 0.85


def test_a_budget_in_seconds_is_kept(tmp_path, monkeypatch):
    folder = run(tmp_path, monkeypatch, *SMALL, "--seconds", 4)
    assert summary(folder)["steps"] >= 1  # however long the machine compiles
    assert summary(folder)["sample_forwards"] == summary(folder)["steps"] * PER_STEP


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        # 3 s compile here and 3 s for the real plan; 4 + 16 + 64 + 256 steps are timed.
        (60.0, 0.95 * (60 - 6 - 340 * 0.01) / 0.01),
        (5.0, 1),  # not even time to compile: one step
    ],
)
def test_how_many_steps_fit_into_a_budget_in_seconds(monkeypatch, seconds, expected):
    clock = [0.0]
    monkeypatch.setattr(mnist_es.training.time, "perf_counter", lambda: clock[0])

    class Trainer:
        cluster = Cluster()

        def advance(self, carry, count):
            clock[0] += 0.01 * count if count else 3.0

    steps = mnist_es.training.steps_within(Trainer(), jnp.zeros(()), seconds)
    assert steps == pytest.approx(expected, abs=1)


def test_chunks_of_any_length_share_one_compilation(tmp_path, monkeypatch):
    compiled = []
    original = mnist_es.training.make_chunk

    def make_chunk(*args, **kwargs):
        compiled.append(original(*args, **kwargs))
        return compiled[-1]

    monkeypatch.setattr(mnist_es.training, "make_chunk", make_chunk)
    run(tmp_path, monkeypatch, *SMALL, "--sample-forwards", 7 * PER_STEP, "--num-evals", 3)
    assert [chunk._cache_size() for chunk in compiled] == [1]


def start(tmp_path, *options):
    # A killed process may leave a torn file in the compilation cache, so it has one of its own.
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "experiments.mnist_es", "--output", str(tmp_path), *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.process
def test_kill_dash_nine_then_resume_gives_the_same_bits(tmp_path, monkeypatch):
    options = [*SMALL, "--sample-forwards", 6_000 * PER_STEP, "--num-evals", 60]
    whole = run(tmp_path / "whole", monkeypatch, *options)

    killed = start(tmp_path / "killed", *map(str, options))
    (folder,) = _wait(lambda: list((tmp_path / "killed" / "mnist_es").glob("*")))
    _wait(lambda: len(_lines(folder / "metrics.jsonl")) >= 3)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (folder / "summary.json").exists(), "the run was over before it could be killed"

    resumed = start(tmp_path / "killed", "--resume", str(folder))
    _, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    assert summary(folder)["params_sha256"] == summary(whole)["params_sha256"]
    steps = [json.loads(line)["step"] for line in _lines(folder / "metrics.jsonl")]
    assert steps == list(range(100, 6_001, 100))


def _wait(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.01)
    raise TimeoutError


def _lines(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dataset", "imagenet"], "imagenet"),
        (["--num-directions", "0"], "num_directions must be an integer >= 1, got 0"),
        (["--sigma", "-0.1"], "sigma must be a finite number > 0, got -0.1"),
        (["--optimizer", "newton"], "newton"),
        (["--batch-size", "0"], "batch_size must be >= 1, got 0"),
        (["--sample-forwards", "0"], "sample_forwards must be > 0"),
        (["--stencil", "one_point", "--shaping", "sign_of_difference"], "one_point"),
        (["--dataset", "mnist", "--data-dir", "/nowhere"], "prepare_data.py mnist"),
        (["--dataset", "digits", "--hidden", "0"], "hidden"),
        (["--sample-forwards", "inf"], "sample_forwards must be > 0 and finite"),
        (["--seed", "-1"], "seed"),
        (["--dataset", "digits", "--model", "cnn", "--features", *"2222"], "does not work"),
        (
            [
                "--dataset",
                "digits",
                "--directions",
                "orthogonal",
                "--num-directions",
                "9000",
                "--hidden",
                "128",
            ],
            "pass a smaller block_size",
        ),
        (["--dataset", "digits", "--output", "/proc/runs"], "/proc"),
        (["--resume", "/nowhere"], "/nowhere is not the folder of a run"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, options, words):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError) as caught:
        run(tmp_path, monkeypatch, *options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mnist_es").exists(), "a failed start must not leave a run behind"


@pytest.mark.process
def test_the_process_prints_one_line_and_exits_with_2(tmp_path):
    process = start(tmp_path, "--num-directions", "0")
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.splitlines() == [
        "error: num_directions must be an integer >= 1, got 0 (--help lists all options)"
    ]


def test_resuming_refuses_another_configuration_or_a_corrupt_checkpoint(tmp_path, monkeypatch):
    options = [*SMALL, "--sample-forwards", 4 * PER_STEP, "--num-evals", 2]
    folder = run(tmp_path, monkeypatch, *options)
    with pytest.raises(UserError, match=r"sigma was 0\.05 and is now 0\.2"):
        run(tmp_path, monkeypatch, "--resume", folder, "--sigma", "0.2")

    before = summary(folder)
    newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for path in newest.rglob("*"):
        if path.is_file():
            path.write_bytes(b"garbage")
    with pytest.raises(UserError, match="damaged"):
        run(tmp_path, monkeypatch, "--resume", folder)
    assert summary(folder) == before

    shutil.rmtree(newest)
    run(tmp_path, monkeypatch, "--resume", folder)
    assert summary(folder)["params_sha256"] == before["params_sha256"]


def test_a_loss_that_is_nan_at_the_start_is_refused(tmp_path, monkeypatch):
    def nan_loss(logits, labels):
        return jax.numpy.nan * logits.mean()

    monkeypatch.setattr("experiments.lib.classifier.cross_entropy", nan_loss)
    with pytest.raises(UserError, match="the loss is nan at the initial parameters"):
        run(tmp_path, monkeypatch, *SMALL)


def test_a_loss_that_diverges_stops_with_its_checkpoint_intact(tmp_path, monkeypatch):
    options = [*SMALL, "--optimizer", "sgd", "--learning-rate", 1e30, "--num-evals", 4]
    with pytest.raises(UserError, match="lower --learning-rate"):
        run(tmp_path, monkeypatch, *options, "--sample-forwards", 8 * PER_STEP)
    (folder,) = (tmp_path / "mnist_es").iterdir()
    assert (folder / "checkpoints" / "0").is_dir()


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mnist_es.training.Evaluator, "score", interrupted)
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            run(tmp_path, monkeypatch, *SMALL, "--sample-forwards", 4 * PER_STEP)
