"""Random search on networks: short runs, resuming, the published networks, bad options."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax.flax
from experiments import rso
from experiments.lib.errors import UserError
from experiments.lib.rso_models import build_network, first_filters, with_statistics
from experiments.lib.rso_runs import cross_entropies
from zojax import search

SMALL = ["--dataset", "digits", "--models", "mlp", "--hidden", 4, "--num-rounds", 2]
WEIGHTS = 64 * 4 + 4 + 4 * 10 + 10


def run(tmp_path, monkeypatch, *options):
    """Runs the program in this process; returns the folder of its run."""
    argv = ["rso", "--output", str(tmp_path), *map(str, options)]
    monkeypatch.setattr(sys, "argv", argv)
    rso.main()
    (folder,) = (tmp_path / "rso").iterdir()
    return folder


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_short_run_writes_everything_and_counts_exactly(tmp_path, monkeypatch, capsys):
    folder = run(tmp_path, monkeypatch, *SMALL, "--batch-sizes", 32, 64, "--twin")
    found = rows(folder)
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row["by"] for row in found] == ["search"] * 4 + ["sgd"] * 2
    blocks = 1 + 1 + 1 + 1
    for row in found[:4]:
        assert row["updates"] == row["round"] * WEIGHTS
        assert row["queries"] == row["round"] * (2 * WEIGHTS + blocks)
        assert row["sample_forwards"] == row["queries"] * row["batch_size"]
        assert 0 < row["accepted"] <= WEIGHTS
        assert row["nonfinite"] == 0
    assert found[3]["loss"] < found[2]["loss"]
    assert 0 < found[3]["test_accuracy"] < 1
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {"curves.png", "filters-mlp-32.png", "filters-mlp-64.png", "method.png"}
    assert len((folder / "table.md").read_text().splitlines()) == 2 + 3
    printed = capsys.readouterr().out
    assert str(folder / "figures") in printed
    assert "queries/s" in printed


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    options = [*SMALL, "--batch-sizes", 32, 48]
    whole = run(tmp_path / "whole", monkeypatch, *options)

    class Stopped(rso.Recorder):
        def record(self, number, contest, round_, row):
            if (number, round_) == (1, 2):
                raise KeyboardInterrupt
            super().record(number, contest, round_, row)

    with monkeypatch.context() as patch:
        patch.setattr(rso, "Recorder", Stopped)
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            run(tmp_path / "half", patch, *options)
    (folder,) = (tmp_path / "half" / "rso").iterdir()
    assert len(rows(folder)) == 3
    run(tmp_path / "half", monkeypatch, "--resume", folder)
    kept = ("step", "accuracy", "loss", "test_accuracy", "accepted", "params_sha256")
    assert [[row.get(k) for k in kept] for row in rows(folder)] == [
        [row.get(k) for k in kept] for row in rows(whole)
    ]
    with pytest.raises(UserError, match="num_rounds was 2 and is now 3"):
        run(tmp_path / "half", monkeypatch, "--resume", folder, "--num-rounds", 3)


def test_the_black_box_gives_the_same_run(tmp_path, monkeypatch):
    options = [*SMALL, "--batch-sizes", 64, "--num-rounds", 1]
    ours = rows(run(tmp_path / "stages", monkeypatch, *options))
    theirs = rows(run(tmp_path / "whole", monkeypatch, *options, "--black-box"))
    # In float32 a close decision may fall the other way; the losses say whether many did.
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=0.05)
    assert ours[0]["queries"] == theirs[0]["queries"]
    assert ours[0]["flops"] < 0.5 * theirs[0]["flops"]


def network(name, side, channels, count=64):
    module = build_network(name, num_classes=10, is_training=True)
    images = jax.random.normal(jax.random.key(0), (count, side, side, channels))
    variables = module.init(jax.random.key(1), images)
    return module, images, variables


@pytest.mark.parametrize(
    ("name", "side", "channels", "parameters"),
    [
        ("mlp", 28, 1, 50_890),
        ("one_conv", 28, 1, 7_890),
        ("six_conv", 28, 1, 12_016),
        ("nine_conv", 32, 3, 57_104),
    ],
)
def test_networks_have_the_published_sizes(name, side, channels, parameters):
    module = build_network(name, num_classes=10, is_training=True)
    images = jnp.zeros((2, side, side, channels))
    shapes = jax.eval_shape(module.init, jax.random.key(1), images)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_statistics_of_one_batch_are_used_afterwards():
    module, images, variables = network("six_conv", 8, 1)
    params = variables["params"]
    stored = with_statistics(module, params, images)
    used = build_network("six_conv", num_classes=10, is_training=False)
    expected, _ = module.apply({"params": params}, images, mutable=["batch_stats"])
    np.testing.assert_allclose(used.apply(stored, images), expected, atol=1e-4)
    assert first_filters(params, (8, 8, 1)).shape == (16, 3, 3)


def test_the_six_layer_network_learns_in_two_rounds(tmp_path, monkeypatch):
    size = ["--models", "six_conv", "--batch-sizes", 32, "--num-rounds", 2]
    folder = run(tmp_path, monkeypatch, "--dataset", "digits", *size)
    found = rows(folder)
    assert found[1]["updates"] == 2 * 12_016
    assert found[1]["accuracy"] > 0.5


def test_the_residual_network_takes_steps_on_random_colour_images():
    module, images, _ = network("nine_conv", 8, 3, count=8)
    params = jax.tree.map(jnp.asarray, module.init(jax.random.key(1), images)["params"])

    def loss_fn(params, images, labels):
        logits, _ = module.apply({"params": params}, images, mutable=["batch_stats"])
        return cross_entropies(logits, labels)

    kernel = search.rso(loss_fn, block_size=4, batch_size=4, weight_decay=0.0)
    step, state = jax.jit(kernel.step), kernel.init(params)
    labels = jnp.arange(8)
    for _ in range(3):
        state, info = step(state, jax.random.key(0), images, labels)
    assert jnp.isfinite(info.value)
    variables = {"params": params}
    stages = zojax.flax.linen_stages(module, variables, images)
    assert [stage.kind for stage in stages].count("mixing") == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "magic"], "--models"),
        (["--batch-sizes", 0], "every batch size must be >= 1"),
        (["--batch-sizes", 64, 64], "each only once"),
        (["--batch-sizes", 5000], r"batch_size is 5000, larger than the data \(1293 examples\)"),
        (["--group-size", 300], "group_size must be at most block_size=256, got 300"),
        (["--weight-decay", 1], r"weight_decay must be in \[0, 1\), got 1"),
        (["--num-rounds", 0], "num_rounds must be >= 1, got 0"),
        (["--twin", "--twin-batch-size", 5000], "twin_batch_size is 5000, larger than the data"),
        (["--twin-learning-rate", 0], "twin_learning_rate must be > 0"),
    ],
)
def test_bad_options_give_a_sentence(tmp_path, monkeypatch, options, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, monkeypatch, *SMALL, *options)
    assert not (tmp_path / "rso").exists()
