"""Self-tuning: a short run of everything, the parts of the inner problem, bad options."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import self_tuning
from experiments.lib.data import load_dataset
from experiments.lib.errors import UserError
from experiments.lib.self_tuning_inner import Hyperparameters, build_problem

TINY = ["--hidden", 4, "--num-train", 20, "--num-held-out", 30, "--inner-directions", 2]
TINY += ["--inner-steps", 2, "--num-truncations", 3, "--num-pairs", 2, "--outer-steps", 8]
TINY += ["--num-networks", 2, "--num-seeds", 2, "--batch-size", 10]


def run(tmp_path, monkeypatch, *options):
    """Runs the program in this process; returns the folder of its run."""
    argv = ["self_tuning", "--output", str(tmp_path), *map(str, options)]
    monkeypatch.setattr(sys, "argv", argv)
    self_tuning.main()
    (folder,) = (tmp_path / "self_tuning").iterdir()
    return folder


def test_a_short_run_writes_everything(tmp_path, monkeypatch, capsys):
    folder = run(tmp_path, monkeypatch, *TINY)

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["unrolls"] == 2 * 2 * 8
    assert summary["sample_forwards"] == 2 * 2 * 8 * 2 * (2 * 2 * 10)
    assert len(summary["seeds"]) == 2
    for seed in summary["seeds"]:
        assert set(seed["settings"]) == set(self_tuning.self_tuning_report.LABELS)
        assert seed["settings"]["without_l1"]["hyperparameters"]["l1"] == 0
        for rows in seed["trajectories"].values():
            assert rows["l1"][0] == pytest.approx(1e-2)
            assert len(set(rows["l1"])) == len(rows["held_out_loss"]) == 3  # of 8, one per episode
        cost, held_out = seed["trajectories"].values()
        np.testing.assert_allclose(cost["value"][0], cost["training_cost"][0], rtol=1e-5)
        np.testing.assert_allclose(held_out["value"][0], held_out["held_out_loss"][0], rtol=1e-5)
        best = seed["settings"]["held_out_loss"]
        assert seed["l1_sweep"]["1.0"] == pytest.approx(best["episode_held_out_loss"])
    assert summary["seeds"][0] != summary["seeds"][1]
    assert len((folder / "table.md").read_text().splitlines()) == 2 + 4
    assert (folder / "figures" / "self_tuning.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert str(folder) in printed
    assert "step 8/8" in printed


def test_the_inner_problem_learns_and_its_penalty_shrinks_weights():
    config = self_tuning.Config(hidden=(4,), num_train=20, num_held_out=30, batch_size=20)
    problem = build_problem(config, load_dataset("digits", None))
    data = problem.cut(0)
    assert [len(part[1]) for part in data] == [20, 30, 360]
    assert not np.array_equal(data.train[0], problem.cut(1).train[0])
    images = np.concatenate([np.asarray(part[0]).reshape(len(part[1]), -1) for part in data[:2]])
    assert len(np.unique(images, axis=0)) == 50  # held out is held out

    outer = jax.tree.map(
        lambda *x: jnp.stack(x), *(Hyperparameters.of(0.05, 0.02, l1) for l1 in (0.0, 0.1))
    )
    inner = problem.init(jax.random.key(0))

    train = jax.vmap(lambda o: problem.unroll(o, inner, jax.random.key(1), data, 0))
    costs, found = jax.jit(train)(outer)
    sizes = [
        sum(float(jnp.sum(jnp.abs(leaf[i]))) for leaf in jax.tree.leaves(found.params))
        for i in (0, 1)
    ]
    assert sizes[1] < 0.8 * sizes[0]
    losses = jax.vmap(lambda p: problem.measure(p, data.train)[0])(found.params)
    assert losses[0] < 0.9 * problem.measure(inner.params, data.train)[0]
    np.testing.assert_allclose(costs, losses + np.array([0, 0.1]) * sizes, rtol=1e-4)
    np.testing.assert_array_equal(found.scores[:, 0], costs)
    np.testing.assert_array_equal(found.age, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--l1", 0], r"l1 must be > 0 and finite, got 0"),
        (["--num-pairs", 0], r"num_pairs must be > 0 and finite, got 0"),
        (["--method", "magic"], r"--method"),
        (["--num-train", 1400], r"num_train \+ num_held_out is 2,400, but digits has 1,437 "),
        (["--batch-size", 101], r"batch_size must be at most num_train \(100\), got 101"),
        ([*TINY, "--learning-rate", 1e30], r"every network diverged by outer step"),
    ],
)
def test_bad_options_give_a_sentence(tmp_path, monkeypatch, options, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, monkeypatch, *options)
