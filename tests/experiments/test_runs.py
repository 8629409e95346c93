import dataclasses
import json

import numpy as np
import pytest

from experiments.lib.errors import UserError
from experiments.lib.runs import RunDirectory, check_same_config


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 3
    hidden: tuple[int, ...] = (8, 4)
    sigma: float = 0.1


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "runs", "mnist_es", 3, Config())


def test_config_and_environment(run):
    assert run.path.name.endswith("-3")
    assert Config(**run.read_config()) == Config()
    environment = json.loads((run.path / "config.json").read_text())["environment"]
    assert environment["devices"]
    assert environment["versions"]["jax"]
    assert "default_matmul_precision" in environment


def test_never_overwrites(tmp_path):
    runs = [RunDirectory.create(tmp_path, "x", 0, Config()) for _ in range(3)]
    assert len({run.path for run in runs}) == 3


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*choose another output folder"):
        RunDirectory.create(tmp_path / "file", "x", 0, Config())


def test_open_existing(run, tmp_path):
    assert RunDirectory.open_existing(str(run.path)) == run
    with pytest.raises(UserError, match="not the folder of a run"):
        RunDirectory.open_existing(tmp_path)


def test_damaged_config(run):
    (run.path / "config.json").write_text('{"config": {"se')
    with pytest.raises(UserError, match="damaged"):
        run.read_config()


def test_metrics_with_values_that_json_has_not(run):
    run.append_metrics({"step": 1, "loss": float("nan"), "accuracy": np.float32(0.5)})
    run.append_metrics({"step": 2, "loss": np.float32(np.inf), "sizes": (1, 2)})
    assert run.read_metrics() == [
        {"step": 1, "loss": None, "accuracy": 0.5},
        {"step": 2, "loss": None, "sizes": [1, 2]},
    ]


def test_truncate_drops_later_rows_and_a_torn_line(run):
    assert run.read_metrics() == []
    for step in (1, 2, 3):
        run.append_metrics({"step": step})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert len(run.read_metrics()) == 3
    run.truncate_metrics(2)
    run.append_metrics({"step": 3, "again": True})
    assert run.read_metrics() == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_summary_and_figures(run):
    run.write_summary({"test_accuracy": np.float64(0.955), "note": ""})
    assert json.loads((run.path / "summary.json").read_text())["test_accuracy"] == 0.955
    assert run.figures_dir.is_dir()
    assert not list(run.path.glob(".*.tmp"))


def test_same_config_passes_through_json(run):
    check_same_config(run.read_config(), dataclasses.asdict(Config()), ignore=set())


def test_different_config_names_fields_and_values(run):
    requested = dataclasses.asdict(Config(sigma=0.2, seed=4))
    with pytest.raises(UserError, match=r"seed was 3 and is now 4, sigma was 0.1 and is now 0.2"):
        check_same_config(run.read_config(), requested, ignore=set())
    with pytest.raises(UserError, match=r"configuration: sigma was"):
        check_same_config(run.read_config(), requested, ignore={"seed"})
    check_same_config(run.read_config(), requested, ignore={"seed", "sigma"})
