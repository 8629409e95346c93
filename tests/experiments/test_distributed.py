"""Several devices and several real processes: the curve of one, and what is left when one dies."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import mnist_es
from experiments.lib import distributed
from experiments.lib.distributed import Where
from experiments.lib.errors import UserError

ROOT = Path(__file__).parents[2]
SIZE = ["--dataset", "digits", "--hidden", "8", "--num-directions", "4", "--batch-size", "32"]
STEPS, EVERY = 50, 2
PLAN = ["--sample-forwards", str(STEPS * 2 * 4 * 32), "--num-evals", str(STEPS // EVERY)]
PATIENCE = 120  # seconds for anything to happen


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of the run of one process on one device."""
    return run_here(tmp_path_factory.mktemp("alone"), *SIZE, *PLAN)


def run_here(output, *options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mnist_es", "--output", str(output), *map(str, options)])
        mnist_es.main()
    return only_run(output)


def only_run(output):
    (folder,) = (output / "mnist_es").iterdir()
    return folder


def rows(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def assert_same_curve(folder, other):
    for name in ("step", "train_loss", "loss"):
        expected = [row[name] for row in rows(other)]
        assert len(expected) == STEPS // EVERY
        np.testing.assert_allclose([row[name] for row in rows(folder)], expected, atol=1e-4)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Processes:
    """Processes of one run on this machine; leaving the block kills what is left of them."""

    def __init__(self, output, count, *options, cache=None):
        where = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}"]
        where += ["--num-processes", str(count), "--start-timeout", str(PATIENCE)]
        environment = dict(os.environ)
        if cache is not None:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        command = [sys.executable, "-m", "experiments.mnist_es", "--output", str(output)]
        self.all = [
            subprocess.Popen(
                [*command, *map(str, options), *where, "--process-id", str(rank)],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.all:
            process.kill()
            process.communicate()

    def wait(self):
        """Returns the exit code, stdout and stderr of each."""
        deadline = time.monotonic() + PATIENCE
        texts = [p.communicate(timeout=deadline - time.monotonic()) for p in self.all]
        return [(p.returncode, *text) for p, text in zip(self.all, texts, strict=True)]


@pytest.mark.process
@pytest.mark.parametrize("count", [2, 4])
def test_processes_give_the_curve_of_one_and_only_the_first_speaks(tmp_path, alone, count):
    with Processes(tmp_path, count, *SIZE, *PLAN) as processes:
        (code, printed, errors), *others = processes.wait()
    assert code == 0, errors
    assert "test accuracy" in printed
    assert [(code, printed) for code, printed, _ in others] == [(0, "")] * (count - 1)
    folder = only_run(tmp_path)
    assert_same_curve(folder, alone)
    written = {path.name for path in folder.iterdir()}
    assert written == {path.name for path in alone.iterdir()}


@pytest.mark.process
def test_a_killed_process_loses_nothing_that_was_checkpointed(tmp_path, alone):
    # A killed process may leave a torn file in the compilation cache, so it has one of its own.
    with Processes(tmp_path, 2, *SIZE, *PLAN, cache=tmp_path / "cache") as processes:
        deadline = time.monotonic() + PATIENCE
        while not any(len(rows(path)) >= 3 for path in (tmp_path / "mnist_es").glob("*")):
            assert time.monotonic() < deadline
            assert processes.all[0].poll() is None, processes.all[0].communicate()
            time.sleep(0.01)
        processes.all[1].send_signal(signal.SIGKILL)
        since = time.monotonic()
        (code, _, errors), (killed, _, _) = processes.wait()
    assert time.monotonic() - since < 20
    assert (code, killed) == (2, -signal.SIGKILL)
    folder = only_run(tmp_path)
    assert not (folder / "summary.json").exists(), "the run was over before it could be killed"
    assert re.findall("^error: .*", errors, re.MULTILINE) == errors.strip().splitlines()[-1:]
    assert "lost" in errors
    assert "--resume" in errors
    saved = [path.name for path in (folder / "checkpoints").iterdir()]
    newest = max(int(name) for name in saved if name.isdecimal())
    assert newest >= rows(folder)[-2]["step"]

    before = rows(folder)
    assert run_here(tmp_path, "--resume", folder) == folder
    assert rows(folder)[: newest // EVERY] == before[: newest // EVERY], "it started from scratch"
    assert_same_curve(folder, alone)


FAKE_SRUN = """#!/bin/bash
# What srun does on one machine: starts the tasks, each with its SLURM_ variables.
while [[ $1 == -* ]]; do shift; done
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1 SLURM_PROCID=$task SLURM_LOCALID=$task \\
    "$@" & tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || exit; done
"""


@pytest.mark.process
def test_the_sbatch_example_resumes_a_run_of_one_process(tmp_path, alone):
    script = ROOT / "scripts" / "mnist_es.sbatch"
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", script.read_text(), re.MULTILINE))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]

    folder = tmp_path / "mnist_es" / alone.name
    shutil.copytree(alone, folder)
    shutil.rmtree(folder / "checkpoints" / str(STEPS))
    (folder / "summary.json").unlink()
    (tmp_path / "srun").write_text(FAKE_SRUN)
    (tmp_path / "srun").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": str(free_slurm_job()),
        "SLURM_NTASKS": "2",
    }
    done = subprocess.run(
        ["bash", script, "--resume", folder, "--start-timeout", str(PATIENCE)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    assert f"step {STEPS}/{STEPS}" in done.stdout
    assert f"step {STEPS - 2 * EVERY}/{STEPS}" not in done.stdout, "it started from scratch"
    assert_same_curve(folder, alone)


def free_slurm_job():
    """A job whose port, which JAX derives from its number, is free."""
    for job in range(os.getpid() % 4096, os.getpid() % 4096 + 4096):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", job % 4096 + 61440)) != 0:
                return job
    raise RuntimeError("no free port")


def test_several_devices_of_one_process_give_the_curve_of_one(tmp_path, alone):
    folder = run_here(tmp_path, *SIZE, *PLAN, "--devices", 2)
    assert_same_curve(folder, alone)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--coordinator", "host:1"], "coordinator needs --distributed"),
        (["--process-id", "0"], "process_id needs --distributed"),
        (["--distributed", "--coordinator", "host"], "coordinator must be HOST:PORT, got 'host'"),
        (["--distributed", "--num-processes", "0"], "num_processes must be >= 1, got 0"),
        (
            ["--distributed", "--num-processes", "2", "--process-id", "2"],
            "process_id must be from 0 to num_processes - 1, got 2 with num_processes=2",
        ),
        (["--devices", "0"], "devices must be >= 1, got 0"),
        (["--devices", "9"], "devices is 9, and a process has only 8"),
        (["--devices", "3"], "num_directions must be divisible by the 3 devices"),
        (["--start-timeout", "0"], "start_timeout must be > 0"),
    ],
)
def test_bad_options_are_one_sentence(tmp_path, options, words):
    with pytest.raises(UserError) as caught:
        run_here(tmp_path, *SIZE, *options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mnist_es").exists(), "a failed start must not leave a run behind"


def test_a_port_in_use_is_one_sentence():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"process 0 cannot listen on port {port}"):
            distributed.check_port(Where(distributed=True, coordinator=f"127.0.0.1:{port}"))


@pytest.mark.process
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "error: found neither SLURM nor Open MPI: give --coordinator HOST:PORT"),
        (
            ["--coordinator", "127.0.0.1:9", "--num-processes", "2", "--process-id", "1"],
            "error: not all processes of this run came together at 127.0.0.1:9 within 2 s",
        ),
    ],
)
def test_processes_that_do_not_meet_say_so(tmp_path, options, words):
    command = [sys.executable, "-m", "experiments.mnist_es", "--output", str(tmp_path)]
    command += ["--distributed", "--start-timeout", "2", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr.startswith(words)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.process
@pytest.mark.parametrize(
    ("action", "code", "words"),
    [
        ("os.abort()", 2, "error: a peer was lost\n"),
        ("os.kill(os.getpid(), 9)", 137, "error: killed by SIGKILL\n"),
        ("sys.exit(3)", 3, ""),
    ],
)
def test_the_parent_says_what_became_of_its_child(action, code, words):
    program = (
        "import os, sys; from experiments.lib.supervise import supervise; "
        f"supervise('a peer was lost'); {action}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (code, words)
